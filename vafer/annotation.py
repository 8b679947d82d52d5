"""One recording's walk through all the rooms, from frames to table rows; and the run over many."""

import datetime
import hashlib
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from vafer import __version__
from vafer.crops import Patch, cut, warp
from vafer.errors import OutputError, UsageError, VideoError
from vafer.faces import Detector, Faces
from vafer.inputs import Source, find_sources, size_bytes
from vafer.model import Model, load_model
from vafer.options import ALL_FRAMES, BATCH_SIZE, DetectorOptions, Sampling
from vafer.output import Output, remove_output
from vafer.probe import display_path, probe
from vafer.store import find_detector, find_model, sha256
from vafer.table import VIDEOS_SCHEMA, FrameResult, to_batch, videos_table
from vafer.tracks import Tracker
from vafer.video import VideoReader

FRAMES_AT_ONCE = 1024  # most frames whose rows wait for a batch of faces to fill up
PICTURES_PER_SECOND = 25.0  # what the tracker takes for the rate of recordings without timestamps


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run has done so far.

    share: of all bytes to read, 0 to 1. video: the recording at work, None at the end. n_frames,
    n_faces: analysed in this run. n_done: recordings finished or failed, of n_videos.
    """

    share: float
    video: str | None
    n_frames: int
    n_faces: int
    n_done: int
    n_videos: int


@dataclass(frozen=True)
class Results:
    """What `annotate` made.

    videos: the table of videos, those of earlier runs into the same output included. path: the
    results table, a file or a folder of files; None when the rows were not to be kept on disk. This
    run found n_skipped recordings finished, could not read n_failed, analysed n_frames and took
    elapsed_s for it, start-up left out.
    """

    videos: pl.DataFrame
    path: Path | None
    n_skipped: int
    n_failed: int
    n_frames: int
    elapsed_s: float
    _table: pl.DataFrame | None = None

    @cached_property
    def table(self) -> pl.DataFrame:
        """One row per face per analysed frame, of all recordings, in memory."""
        return self._table if self._table is not None else read_table(_given(self.path))


def read_table(path: Path) -> pl.DataFrame:
    """Read a results table, a file or a folder of files, ordered by video, frame and face."""
    if path.is_file():
        return pl.read_parquet(path)
    parts = sorted(p for p in path.rglob("*.parquet") if p.name != "_videos.parquet")
    frames = [pl.read_parquet(p) for p in parts] or [pl.DataFrame(to_batch("", []))]
    return pl.concat(frames).sort("video", "frame_index", "face_index", maintain_order=True)


def annotate(
    inputs: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    model: str | Path | None = None,
    detector: str | Path | None = None,
    device: str = "auto",
    sampling: Sampling = ALL_FRAMES,
    detection: DetectorOptions | None = None,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Results:
    """Valence and arousal of every face in every frame of recordings.

    inputs: videos, folders of numbered pictures, and folders that are searched for both. out: a
    .parquet file, or a folder that gets one file per recording; None keeps nothing on disk. model,
    detector: names or paths; see `vafer.store`. A recording that cannot be read costs only itself:
    its row of `Results.videos` says `failed` and why. A second call with the same options and `out`
    does only what is not done yet.

    Raises UsageError (nothing was done), ModelError, OutputError.
    """
    detection = detection or DetectorOptions()
    sources = find_sources(
        [Path(i) for i in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    )
    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}: expected 1 or more")
    torch_device = choose_device(device)
    detector_path = find_detector(detector, on_notice=on_notice)
    model_path = find_model(model)
    annotator = Annotator(
        Detector(detector_path, detection, device=torch_device),
        load_model(model_path, device=torch_device),
        sampling=sampling,
        batch_size=batch_size,
    )
    run = {
        "id": _run_id(),
        "vafer": __version__,
        "model": {"name": annotator.model.card.name, "sha256": sha256(model_path)},
        "detector": {"name": detector_path.stem, "sha256": annotator.detector.sha256},
        "options": {**asdict(sampling), **{f"det_{k}": v for k, v in asdict(detection).items()}},
        "environment": _environment(torch_device, batch_size),
    }
    if out is not None:
        if overwrite:
            remove_output(Path(out))
        return _run_all(annotator, sources, Output(Path(out), run), on_progress)
    with tempfile.TemporaryDirectory(prefix="vafer-") as folder:
        output = Output(Path(folder) / "results.parquet", run)
        results = _run_all(annotator, sources, output, on_progress)
        return replace(results, path=None, _table=results.table)


# What is known of a frame before its faces have values: FrameResult without them.
_Waiting = tuple[int, int | None, float | None, Faces, np.ndarray]


class Annotator:
    """A detector and a model at work on one recording at a time."""

    def __init__(
        self, detector: Detector, model: Model, *, sampling: Sampling, batch_size: int
    ) -> None:
        self.detector = detector
        self.model = model
        self.sampling = sampling
        self.batch_size = batch_size

    def frames(self, reader: VideoReader) -> Iterator[list[FrameResult]]:
        """Walk through a recording; yields finished frames in order, a batch of faces at a time."""
        tracker = Tracker()
        waiting: list[_Waiting] = []
        patches: list[Patch] = []
        crop = self.model.card.crop
        for frame in reader:
            faces = self.detector.detect(frame.image)
            time_s = frame.index / PICTURES_PER_SECOND if frame.time_s is None else frame.time_s
            ids = tracker.update(faces.boxes, faces.scores, time_s=time_s, image=frame.image)
            if len(faces):
                maps = crop.matrices(faces.boxes, faces.landmarks)
                patches += [cut(frame.image, matrix, crop.size) for matrix in maps]
            # Not the frame itself: a thousand 1080p pictures would be 6 GB.
            waiting.append((frame.index, frame.pts, frame.time_s, faces, ids))
            if len(patches) >= self.batch_size or len(waiting) >= FRAMES_AT_ONCE:
                yield self._finish(waiting, patches)
                waiting, patches = [], []
        if waiting:
            yield self._finish(waiting, patches)

    def _finish(self, waiting: list[_Waiting], patches: list[Patch]) -> list[FrameResult]:
        values = self._values(patches)
        ends = np.cumsum([len(faces) for *_, faces, _ in waiting])
        return [
            FrameResult(*frame, values=part)
            for frame, part in zip(waiting, np.split(values, ends[:-1]), strict=True)
        ]

    def _values(self, patches: list[Patch]) -> np.ndarray:
        parts = []
        for start in range(0, len(patches), self.batch_size):
            batch = patches[start : start + self.batch_size]
            crops = warp(batch, self.model.card.crop.size, self.model.device)
            parts.append(self.model.predict(crops).numpy())
        return np.concatenate(parts) if parts else np.empty((0, 2), np.float32)


def choose_device(device: str) -> str:
    """`auto` → `cuda` where there is one, else `cpu`; checks what is named. Raises UsageError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"--device is {device!r}: expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device is {device}: found {torch.cuda.device_count()} CUDA devices")
    return device


@dataclass
class _Tally:
    """What a run has done, and whom to tell."""

    on_progress: Callable[[Progress], None]
    n_bytes: int
    n_videos: int
    bytes_done: int = 0
    n_frames: int = 0
    n_faces: int = 0
    n_done: int = 0
    n_failed: int = 0

    def report(
        self, video: str | None, n_bytes: float = 0, n_frames: int = 0, n_faces: int = 0
    ) -> None:
        """Tell how far the run is with this much of `video` done beside what is finished."""
        self.on_progress(
            Progress(
                share=(self.bytes_done + n_bytes) / max(1, self.n_bytes),
                video=video,
                n_frames=self.n_frames + n_frames,
                n_faces=self.n_faces + n_faces,
                n_done=self.n_done,
                n_videos=self.n_videos,
            )
        )

    def add(self, row: dict[str, Any]) -> None:
        self.bytes_done += row["size_bytes"]
        self.n_frames += row["n_frames_analysed"] or 0
        self.n_faces += row["n_faces"] or 0
        self.n_done += 1
        self.n_failed += row["status"] == "failed"


def _run_all(
    annotator: Annotator,
    sources: list[Source],
    output: Output,
    on_progress: Callable[[Progress], None],
) -> Results:
    """Annotate what is not finished, and finish the output."""
    started = time.perf_counter()
    sizes = {source: _size(source) for source in sources}
    todo = [s for s in sources if not output.is_finished(s.video, sizes[s])]
    tally = _Tally(on_progress, sum(sizes[s] for s in todo), len(todo))
    for source in todo:
        tally.report(source.video)
        tally.add(_run_one(annotator, source, sizes[source], output, tally))
    elapsed_s = time.perf_counter() - started
    output.finish()
    tally.report(None)
    return Results(
        videos=pl.DataFrame(videos_table(list(output.rows.values()))),
        path=output.path,
        n_skipped=len(sources) - len(todo),
        n_failed=tally.n_failed,
        n_frames=tally.n_frames,
        elapsed_s=elapsed_s,
    )


def _run_one(
    annotator: Annotator,
    source: Source,
    size: int,
    output: Output,
    tally: _Tally,
) -> dict[str, Any]:
    """Annotate one recording into its part; returns its row of the table of videos."""
    started = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(VIDEOS_SCHEMA.names)
    row |= {"video": source.video, "size_bytes": size}
    try:
        row["sha256"] = _source_sha256(source)
        info = probe(source.path)
        row |= {
            "width": info.width,
            "height": info.height,
            "rotation": info.rotation,
            "codec": info.codec,
            "fps": info.fps,
            "duration_s": info.duration_s,
            "time_base": None if info.time_base is None else str(info.time_base),
        }
        reader = VideoReader(info, sampling=annotator.sampling)
        n_expected = None if info.pts is None else len(info.pts)
        n_analysed = n_with_face = n_faces = 0
        with output.write_part(source.video) as writer:
            for results in annotator.frames(reader):
                writer.write(to_batch(source.video, results))
                n_analysed += len(results)
                n_with_face += sum(len(r.faces) > 0 for r in results)
                n_faces += sum(len(r.faces) for r in results)
                share = (results[-1].index + 1) / n_expected if n_expected else 0.0
                tally.report(source.video, share * size, n_analysed, n_faces)
            row |= {
                "status": "partial" if reader.damage else "done",
                "error": reader.damage,
                "n_frames": reader.n_frames,
                "n_frames_analysed": n_analysed,
                "n_frames_with_face": n_with_face,
                "n_faces": n_faces,
                "n_bad_packets": reader.n_bad_packets,
                "decoder": reader.decoder,
                "elapsed_s": time.perf_counter() - started,
            }
            writer.provenance["video"] = row
        output.rows[source.video] = row
    except VideoError as error:
        row |= {
            "status": "failed",
            "error": str(error),
            "elapsed_s": time.perf_counter() - started,
        }
        output.fail(row)
    return row


def _size(source: Source) -> int:
    try:
        return size_bytes(source)
    except OSError:
        return 0  # probing it will say why it cannot be read


def _source_sha256(source: Source) -> str:
    """Of a file, or of the names and contents of a folder's files. Raises VideoError."""
    try:
        if not source.path.is_dir():
            return sha256(source.path)
        files = sorted(p for p in source.path.iterdir() if p.is_file())
        listing = "".join(f"{sha256(p)} {display_path(Path(p.name))}\n" for p in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    except OSError as error:
        raise VideoError(f"{display_path(source.path)} cannot be read: {error.strerror}") from error


def _run_id() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def _environment(device: str, batch_size: int) -> dict[str, Any]:
    """What may change values by rounding alone; recorded for whoever has to explain a number."""
    packages = ("torch", "onnxruntime", "insightface", "opencv-python", "decord", "av")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "device": device,
        "device_name": name,
        "batch_size": batch_size,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _given(path: Path | None) -> Path:
    if path is None:
        raise OutputError("these results were not kept on disk")
    return path
