"""Search around tracked faces against detection in every whole frame: what changes, and how fast.

    python bench/search.py DETECTOR.onnx VIDEO... [--model NAME|PATH] [--det-size 640]

VIDEO are recordings, or folders of them. Both ways read the same frames, use the same tracker and
model. A face of full detection is matched by one of search's in the same frame, by descending IoU,
from 0.6 on. The time is that of finding faces alone, cuts not included.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.boxes import ious
from bench.tables import table
from vafer.faces import Detector
from vafer.inputs import find_sources
from vafer.model import Model, load_model
from vafer.options import BATCH_SIZE, DetectorOptions
from vafer.pipeline import Pipeline
from vafer.probe import probe
from vafer.search import Search
from vafer.store import find_model
from vafer.table import FrameResult
from vafer.video import VideoReader

MIN_IOU = 0.6


@dataclass(frozen=True)
class Compared:
    """What search did on one recording, beside full detection."""

    name: str
    n_frames: int
    n_full: int  # faces of full detection
    n_matched: int
    n_search: int  # faces of search
    n_searched: int  # frames without a look at the whole
    differences: np.ndarray  # (n_matched, 2), absolute, of valence and arousal
    seconds: tuple[float, float]  # of finding, full and search


def walk(video: Path, detector: Detector, model: Model, *, searches: bool) -> Any:
    """All frames' results, and the seconds that finding took."""
    seconds = 0.0
    find: Callable[..., Any] = Search.find

    def timed(self: Search, *arguments: Any, **options: Any) -> Any:
        nonlocal seconds
        started = time.perf_counter()
        try:
            return find(self, *arguments, **options)
        finally:
            seconds += time.perf_counter() - started

    Search.find = timed  # type: ignore[method-assign]
    try:
        pipeline = Pipeline(detector, model, batch_size=BATCH_SIZE, searches=searches)
        results = [r for batch in pipeline.results(VideoReader(probe(video))) for r in batch]
    finally:
        Search.find = find  # type: ignore[method-assign]
    return results, seconds


def matches(full: FrameResult, search: FrameResult) -> list[tuple[int, int]]:
    overlap = ious(full.faces.boxes, search.faces.boxes)
    pairs = []
    while overlap.size and overlap.max() >= MIN_IOU:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        pairs.append((int(i), int(j)))
        overlap[i], overlap[:, j] = 0, 0
    return pairs


def compare(video: Path, detector: Detector, model: Model) -> Compared:
    full, full_seconds = walk(video, detector, model, searches=False)
    search, search_seconds = walk(video, detector, model, searches=True)
    differences = [
        np.abs(a.values[i] - b.values[j])
        for a, b in zip(full, search, strict=True)
        for i, j in matches(a, b)
    ]
    return Compared(
        name=video.name,
        n_frames=len(full),
        n_full=sum(len(r.faces) for r in full),
        n_matched=len(differences),
        n_search=sum(len(r.faces) for r in search),
        n_searched=sum(r.source == "search" for r in search),
        differences=np.array(differences).reshape(-1, 2),
        seconds=(full_seconds, search_seconds),
    )


def row(name: str, found: list[Compared]) -> list[str]:
    def total(field: str) -> int:
        return sum(getattr(c, field) for c in found)

    n_full, n_matched = total("n_full"), total("n_matched")
    differences = np.concatenate([c.differences for c in found])
    full_s, search_s = np.sum([c.seconds for c in found], axis=0)
    n_frames = total("n_frames")

    def share(part: float, whole: float) -> str:
        return f"{part / whole:.1%}" if whole else "–"

    middles = [f"{m:.3f}" for m in np.median(differences, axis=0)] if n_matched else ["–", "–"]
    high = [f"{m:.3f}" for m in np.quantile(differences, 0.95, axis=0)] if n_matched else ["–", "–"]
    return [
        name,
        str(n_frames),
        str(n_full),
        share(n_matched, n_full),
        share(total("n_search") - n_matched, n_full),
        " / ".join(middles),
        " / ".join(high),
        share(total("n_searched"), n_frames),
        f"{1000 * full_s / n_frames:.1f}",
        f"{1000 * search_s / n_frames:.1f}",
        f"{full_s / search_s:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--model", default=None)
    parser.add_argument("--det-size", type=int, default=DetectorOptions.size)
    arguments = parser.parse_args()
    detector = Detector(arguments.detector, DetectorOptions(size=arguments.det_size))
    model = load_model(find_model(arguments.model))
    found = [compare(s.path, detector, model) for s in find_sources(arguments.videos)]
    table(
        f"{arguments.detector.stem}, {model.card.name}",
        [
            "recording", "frames", "faces", f"matched at IoU {MIN_IOU}", "extra",
            "valence / arousal apart, median", "95th percentile", "frames searched",
            "full, ms a frame", "search, ms a frame", "ratio",
        ],
        [*(row(c.name, [c]) for c in found), row("all", found)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
