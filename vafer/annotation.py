"""The run over many recordings: what is done already, what is to do, and what came of it."""

import datetime
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import torch

from vafer import __version__
from vafer.errors import UsageError, VideoError, display_path
from vafer.faces import Detector
from vafer.inputs import Source, find_sources, size_bytes, source_sha256
from vafer.lock import own_folder
from vafer.model import load_model
from vafer.options import ALL_FRAMES, BATCH_SIZE, DetectorOptions, Sampling, Shard
from vafer.output import Output
from vafer.parts import check_output, parts_folder_of, read_table, remove_output
from vafer.pipeline import Pipeline
from vafer.probe import probe
from vafer.store import choose_detector, choose_model, describe_choice, sha256
from vafer.table import VIDEOS_SCHEMA, to_batch, videos_table
from vafer.video import VideoReader

DETECT = ("auto", "full", "search")
_RECORDED_MODULES = ("torch", "onnxruntime", "insightface", "cv2", "decord", "av")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run has done so far.

    share: of all bytes to read, 0 to 1. video: the recording at work, None at the start and the
    end. n_frames, n_faces: analysed in this run. n_done: recordings finished or failed, of
    n_videos.
    """

    share: float
    video: str | None
    n_frames: int
    n_faces: int
    n_done: int
    n_videos: int


@dataclass(frozen=True, eq=False)
class Results:
    """What `annotate` made.

    videos: the table of videos, those of earlier runs into the same output included. path and
    videos_path: where the results (a file, or a folder of files) and the table of videos are; None
    when nothing was to be kept on disk. This run found n_skipped recordings finished, analysed
    n_frames and took elapsed_s for it, start-up left out. Of its inputs, n_incomplete are `failed`
    or `partial`.
    """

    videos: pl.DataFrame
    path: Path | None
    videos_path: Path | None
    n_skipped: int
    n_incomplete: int
    n_frames: int
    elapsed_s: float
    _table: pl.DataFrame | None = None

    @cached_property
    def table(self) -> pl.DataFrame:
        """One row per face per analysed frame, of all recordings, in memory."""
        if self._table is not None:
            return self._table
        assert self.path is not None
        return read_table(self.path)


def annotate(
    inputs: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    model: str | Path | None = None,
    detector: str | Path | None = None,
    device: str = "auto",
    sampling: Sampling = ALL_FRAMES,
    detection: DetectorOptions | None = None,
    detect: str = "auto",
    batch_size: int = BATCH_SIZE,
    shard: Shard | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Results:
    """Valence and arousal of every face in every frame of recordings.

    inputs: videos, folders of numbered pictures, and folders that are searched for both. out: a
    .parquet file, or a folder that gets one file per recording; None keeps nothing on disk. model,
    detector: names or paths; see `vafer.store`. detect: `full` looks for faces in every whole
    frame, `search` mostly around those of the frame before, see `vafer.search`; `auto` is `search`
    where the detector runs on a CPU. shard: the part of the recordings that is this call's; each
    needs an `out` of its own, and `vafer.merge` joins them.

    A recording that cannot be read costs only itself: its row of `Results.videos` says `failed` and
    why. A second call with the same options and `out` does only what is not done yet; two at once
    are refused.

    Raises UsageError (nothing was done), ModelError, OutputError.
    """
    detection = detection or DetectorOptions()
    sources = find_sources(
        [Path(i) for i in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    )
    if shard is not None:
        sources = [source for source in sources if shard.has(source.video)]
    if out == "":
        raise UsageError("the output has no name: expected NAME.parquet, or a folder")
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: expected 1 or more")
    if detect not in DETECT:
        raise UsageError(f"--detect {detect}: expected {', '.join(DETECT)}")
    torch_device = choose_device(device)
    chosen_detector = choose_detector(detector, on_notice=on_notice)
    chosen_model = choose_model(model, on_notice=on_notice)
    if chosen_detector.is_default or chosen_model.is_default:
        on_notice(describe_choice([chosen_model], chosen_detector))
    face_detector = Detector(chosen_detector.path, detection, device=torch_device)
    if detect == "auto":
        detect = "search" if face_detector.device == "cpu" else "full"
    pipeline = Pipeline(
        face_detector,
        load_model(chosen_model.path, device=torch_device),
        batch_size=batch_size,
        searches=detect == "search",
    )
    if torch_device.startswith("cuda") and pipeline.detector.device == "cpu":
        on_notice("the detector runs on the CPU: this onnxruntime has no CUDA provider")
    run = {
        "id": _run_id(),
        "vafer": __version__,
        "model": {
            "name": pipeline.model.card.name,
            "sha256": sha256(chosen_model.path),
            "origin": chosen_model.origin,
        },
        "detector": {
            "name": chosen_detector.path.stem,
            "sha256": pipeline.detector.sha256,
            "origin": chosen_detector.origin,
        },
        "options": {
            **asdict(sampling),
            **{f"det_{k}": v for k, v in asdict(detection).items()},
            "detect": detect,
        },
        "shard": shard and str(shard),
        "environment": _environment(pipeline.detector, torch_device, batch_size),
    }
    on_progress(Progress(0.0, None, 0, 0, 0, len(sources)))
    if out is not None:
        out = Path(out)
        check_output(out, sources)
        with own_folder(parts_folder_of(out), name=out):
            if overwrite:
                remove_output(out)
            return _run_all(pipeline, sources, sampling, Output(out, run), on_progress)
    with tempfile.TemporaryDirectory(prefix="vafer-") as folder:
        output = Output(Path(folder) / "results.parquet", run)
        results = _run_all(pipeline, sources, sampling, output, on_progress)
        return replace(results, path=None, videos_path=None, _table=results.table)


def choose_device(device: str) -> str:
    """`auto` → `cuda` where there is one, else `cpu`; checks what is named. Raises UsageError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device}: found {torch.cuda.device_count()} CUDA devices")
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

    def report(
        self, video: str | None, n_bytes: float = 0, n_frames: int = 0, n_faces: int = 0
    ) -> None:
        """Tell how far the run is with this much of `video` done beside what is finished."""
        is_over = self.n_done == self.n_videos  # though there was nothing to read
        self.on_progress(
            Progress(
                share=1.0 if is_over else (self.bytes_done + n_bytes) / max(1, self.n_bytes),
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


def _run_all(
    pipeline: Pipeline,
    sources: list[Source],
    sampling: Sampling,
    output: Output,
    on_progress: Callable[[Progress], None],
) -> Results:
    """Annotate what is not finished, and finish the output."""
    started = time.perf_counter()
    todo = [source for source in sources if not output.is_finished(source)]
    sizes = {source: _size(source) for source in todo}
    tally = _Tally(on_progress, sum(sizes.values()), len(todo))
    for source in todo:
        tally.report(source.video)
        tally.add(_run_one(pipeline, source, sizes[source], sampling, output, tally))
    elapsed_s = time.perf_counter() - started
    output.finish()
    tally.report(None)
    return Results(
        videos=pl.DataFrame(videos_table(list(output.rows.values()))),
        path=output.path,
        videos_path=output.videos_path,
        n_skipped=len(sources) - len(todo),
        n_incomplete=sum(output.rows[source.video]["status"] != "done" for source in sources),
        n_frames=tally.n_frames,
        elapsed_s=elapsed_s,
    )


def _run_one(
    pipeline: Pipeline,
    source: Source,
    size: int,
    sampling: Sampling,
    output: Output,
    tally: _Tally,
) -> dict[str, Any]:
    """Annotate one recording into its part; returns its row of the table of videos."""
    started = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(VIDEOS_SCHEMA.names)
    row |= {"video": source.video, "size_bytes": size}
    try:
        row["sha256"] = source_sha256(source)
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
        reader = VideoReader(info, sampling=sampling)
        n_expected = None if info.pts is None else len(info.pts)
        n_analysed = n_with_face = n_faces = 0
        with output.write_part(source.video) as writer:
            for results in pipeline.results(reader):
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
        output.done(row)
    except (VideoError, OSError) as error:  # what the output raises is an OutputError
        found = error.strerror if isinstance(error, OSError) else None
        row |= {
            "status": "failed",
            "error": f"{display_path(source.path)}: {found}" if found else str(error),
            "elapsed_s": time.perf_counter() - started,
        }
        output.fail(row)
    return row


def _size(source: Source) -> int:
    try:
        return size_bytes(source)
    except OSError:
        return 0  # probing it will say why it cannot be read


def _run_id() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def _environment(detector: Detector, device: str, batch_size: int) -> dict[str, Any]:
    """What may change values by rounding alone; recorded for whoever has to explain a number."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "device": device,
        "device_name": name,
        "detector_device": detector.device,
        "batch_size": batch_size,
        "python": platform.python_version(),
        # By the modules: the packages have several names, such as onnxruntime-gpu.
        **{name: import_module(name).__version__ for name in _RECORDED_MODULES},
    }
