"""How fast annotation is, where the time goes, and how it compares with the loop one writes first.

    python bench/annotate.py VIDEO DETECTOR.onnx [--repeats 3] [--model FILE]

The plain loop decodes with OpenCV, gives each frame to insightface's detector with a square input
of 640 pixels, aligns each face with `norm_crop`, and runs the model face by face. Both do the same
recording with the same detector and model, in turn, start-up left out; DETECTOR must be one that
insightface loads. Prints frames/s (median), the share of each stage, and the ratio.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from insightface.model_zoo import get_model
from insightface.utils.face_align import norm_crop

from vafer import pipeline
from vafer.faces import Detector
from vafer.model import Model, load_model
from vafer.options import BATCH_SIZE
from vafer.probe import probe
from vafer.store import find_model
from vafer.table import TableWriter, to_batch
from vafer.tracks import Tracker
from vafer.video import VideoReader


class Stopwatch:
    """Seconds spent in each stage; a stage's function is wrapped for the time of a run."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] += time.perf_counter() - started

        return timed

    def iterate(self, stage: str, items: Iterator[Any]) -> Iterator[Any]:
        advance = self.wrap(stage, lambda: next(items, None))
        while (item := advance()) is not None:
            yield item


def run_vafer(video: Path, detector: Detector, model: Model) -> tuple[int, float, Stopwatch]:
    watch = Stopwatch()
    walk = pipeline.Pipeline(detector, model, batch_size=BATCH_SIZE)
    stages = [
        (detector, "detect", "detect"),
        (Tracker, "update", "track"),
        (pipeline, "cut", "crop"),
        (pipeline, "warp", "crop"),
        (model, "predict", "predict"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in stages]
    for (owner, name, stage), original in zip(stages, originals, strict=True):
        setattr(owner, name, watch.wrap(stage, original))
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            reader = VideoReader(watch.wrap("probe", probe)(video))
            frames = watch.iterate("decode", iter(reader))
            n_frames = 0
            with TableWriter(Path(folder) / "r.parquet", {"schema_version": 1}) as writer:
                for batch in walk.results(frames):
                    watch.wrap("write", lambda b=batch: writer.write(to_batch(video.name, b)))()
                    n_frames += len(batch)
    finally:
        for (owner, name, _), original in zip(stages, originals, strict=True):
            setattr(owner, name, original)
    return n_frames, time.perf_counter() - started, watch


def run_plain(video: Path, detector: Any, model: Model) -> tuple[int, float]:
    started = time.perf_counter()
    capture = cv2.VideoCapture(str(video))
    rows = []
    index = 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        boxes, landmarks = detector.detect(frame)
        for box, points in zip(boxes, landmarks, strict=True):
            crop = norm_crop(frame, points, model.card.crop.size)
            tensor = torch.from_numpy(np.ascontiguousarray(crop[:, :, ::-1])).permute(2, 0, 1)
            valence, arousal = model.predict(tensor[None].float())[0].tolist()
            rows.append((index, *box.tolist(), valence, arousal))
        index += 1
    return index, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    detector, model = Detector(arguments.detector), load_model(find_model(arguments.model))
    plain = get_model(str(arguments.detector), providers=["CPUExecutionProvider"])
    plain.prepare(ctx_id=-1, input_size=(640, 640), det_thresh=0.5)
    warm = np.zeros((360, 640, 3), np.uint8)
    detector.detect(warm)
    plain.detect(warm)
    model.predict(torch.zeros(1, 3, model.card.crop.size, model.card.crop.size))

    rates, plain_rates, ratios = [], [], []
    stages: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.repeats):
        n_frames, seconds, watch = run_vafer(arguments.video, detector, model)
        n_plain, plain_seconds = run_plain(arguments.video, plain, model)
        rates.append(n_frames / seconds)
        plain_rates.append(n_plain / plain_seconds)
        ratios.append(rates[-1] / plain_rates[-1])
        for stage, spent in watch.seconds.items():
            stages[stage].append(spent / seconds)
    print(f"{arguments.video.name}: {n_frames} frames, {arguments.repeats} runs of each, medians")
    print(f"vafer       {statistics.median(rates):7.1f} frames/s")
    print(f"plain loop  {statistics.median(plain_rates):7.1f} frames/s  ({n_plain} frames)")
    print(
        f"ratio       {statistics.median(ratios):7.2f}   ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    for stage, shares in stages.items():
        print(f"  {stage:8}  {statistics.median(shares):6.1%}")
    print(f"  {'rest':8}  {1 - sum(statistics.median(s) for s in stages.values()):6.1%}")


if __name__ == "__main__":
    main()
