"""The run over many recordings: what is done already, what is to do, and what came of it."""

import datetime
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import torch

from vafer import __version__
from vafer.decoding import facts_of
from vafer.errors import UsageError, VideoError, display_path
from vafer.faces import Detector
from vafer.inputs import Source, find_sources, size_bytes, source_sha256
from vafer.lock import own_folder
from vafer.model import load_model
from vafer.onnx_file import onnx_weights_sha256
from vafer.options import ALL_FRAMES, BATCH_SIZE, DetectorOptions, Sampling, Shard
from vafer.output import Output
from vafer.parts import check_output, parts_folder_of, read_table, remove_output
from vafer.pipeline import FRAMES_AT_ONCE, Pipeline
from vafer.probe import probe
from vafer.search import AGREES
from vafer.staged import (
    MOST_AT_ONCE,
    Begun,
    Event,
    Events,
    Failed,
    Hashed,
    Restarted,
    Stages,
    available_cores,
    run_staged,
    shared_cores,
    what_failed,
)
from vafer.store import choose_detector, choose_model, describe_choice, sha256
from vafer.table import VIDEOS_SCHEMA, FrameResult, TableWriter, to_batch, videos_table
from vafer.video import Frame, VideoReader
from vafer.workers import DecoderProcess, Ended, Opened

_COUNTED = ("n_frames_analysed", "n_frames_with_face", "n_faces")
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
    or `partial`; those of `videos` that are called as in `others` were no inputs of it.
    """

    videos: pl.DataFrame
    path: Path | None
    videos_path: Path | None
    n_skipped: int
    others: frozenset[str]
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
    workers: int | None = None,
    shard: Shard | None = None,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Results:
    """Valence and arousal of every face in every frame of recordings.

    inputs: videos, folders of numbered pictures, single pictures, and folders that are searched for
    the first two. out: a .parquet file, or a folder that gets one file per recording; None keeps
    nothing on disk. model, detector: names or paths; see `vafer.store`. detect: `full` looks for
    faces in every whole frame, `search` mostly around those of the frame before, see
    `vafer.search`; `auto` is `search` on a CPU with a detector for which both are known to agree.
    workers: how many recordings are at work at once, each decoded in a process of its own, see
    `vafer.staged`; one a core without, at most 16; 1 does all in this process, one recording after
    the other. shard: the part of the recordings that is this call's; each needs an `out` of its
    own, and `vafer.merge` joins them.

    A recording that cannot be read costs only itself: its row of `Results.videos` says `failed` and
    why. A second call with the same options and `out` does only what is not done yet; two at once
    are refused.

    Raises UsageError (nothing was done), ModelError, OutputError.
    """
    detection = detection or DetectorOptions()
    sources = find_sources(
        [Path(i) for i in ([inputs] if isinstance(inputs, str | Path) else inputs)],
        on_notice=on_notice,
    )
    if shard is not None:
        sources = [source for source in sources if shard.has(source.video)]
    if out == "":
        raise UsageError("the output has no name: expected NAME.parquet, or a folder")
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: expected 1 or more")
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers: expected 1 or more")
    if detect not in DETECT:
        raise UsageError(f"--detect {detect}: expected {', '.join(DETECT)}")
    if out is not None:
        out = Path(out)
        check_output(out, sources)
    torch_device = choose_device(device)
    chosen_detector = choose_detector(detector, on_notice=on_notice)
    chosen_model = choose_model(model, on_notice=on_notice)
    if chosen_detector.is_default or chosen_model.is_default:
        on_notice(describe_choice([chosen_model], chosen_detector))
    face_detector = Detector(
        chosen_detector.path,
        detection,
        device=torch_device,
        n_threads=0 if workers == 1 else 1,  # else vafer's own threads share it
    )
    if detect == "auto":
        on_cpu = face_detector.device == "cpu"
        agrees = on_cpu and onnx_weights_sha256(chosen_detector.path) in AGREES
        detect = "search" if agrees else "full"
    pipeline = Pipeline(
        face_detector,
        load_model(chosen_model.path, device=torch_device),
        batch_size=batch_size,
        searches=detect == "search",
    )
    events: Callable[[list[Source]], Events]
    if workers == 1:
        events = partial(_one_by_one, pipeline, sampling)
    else:
        stages = Stages(
            detector=face_detector,
            model=pipeline.model,
            batch_size=batch_size,
            searches=detect == "search",
            sampling=sampling,
            make_decoder=DecoderProcess,
        )
        events = partial(
            run_staged, stages, n_lanes=workers or min(available_cores(), MOST_AT_ONCE)
        )
    if torch_device.startswith("cuda") and pipeline.detector.device == "cpu":
        on_notice(f"the detector runs on the CPU: {pipeline.detector.why_on_cpu}")
    run = {
        "id": _run_id(),
        "vafer": __version__,
        "model": {
            "name": pipeline.model.card.name,
            "sha256": sha256(chosen_model.path),
            "origin": chosen_model.origin,
        },
        "detector": {
            "name": chosen_detector.name,
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
        with own_folder(parts_folder_of(out), name=out):
            if overwrite:
                remove_output(out)
            return _run_all(events, sources, Output(out, run), on_progress, on_notice)
    with tempfile.TemporaryDirectory(prefix="vafer-") as folder:
        output = Output(Path(folder) / "results.parquet", run)
        results = _run_all(events, sources, output, on_progress, on_notice)
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


class _Tally:
    """What a run has done, and whom to tell."""

    def __init__(self, on_progress: Callable[[Progress], None], todo: list[Source]) -> None:
        self._on_progress = on_progress
        self._sizes = {source.video: _size(source) or 0 for source in todo}
        self._n_bytes = max(1, sum(self._sizes.values()))
        self._bytes_done = 0.0
        self._counted: dict[str, tuple[int, int, float]] = {}  # frames, faces, bytes, of each
        self.n_frames = self._n_faces = self._n_done = 0

    def count(self, recording: "_Recording") -> None:
        """Tell of a recording that has come on, or to its end."""
        row, video = recording.row, recording.row["video"]
        n_frames, n_faces, n_bytes = self._counted.pop(video, (0, 0, 0.0))
        is_done = row["status"] is not None
        own = (
            row["n_frames_analysed"] or 0,
            row["n_faces"] or 0,
            (1.0 if is_done else recording.share) * self._sizes[video],
        )
        self.n_frames += own[0] - n_frames
        self._n_faces += own[1] - n_faces
        self._bytes_done += own[2] - n_bytes
        if is_done:
            self._n_done += 1
        else:
            self._counted[video] = own
        self.report(video)

    def report(self, video: str | None) -> None:
        is_over = self._n_done == len(self._sizes)  # though there was nothing to read
        self._on_progress(
            Progress(
                share=1.0 if is_over else self._bytes_done / self._n_bytes,
                video=video,
                n_frames=self.n_frames,
                n_faces=self._n_faces,
                n_done=self._n_done,
                n_videos=len(self._sizes),
            )
        )


def _run_all(
    events: Callable[[list[Source]], Events],
    sources: list[Source],
    output: Output,
    on_progress: Callable[[Progress], None],
    on_notice: Callable[[str], None],
) -> Results:
    """Annotate what is not finished, and finish the output.

    events: what becomes of recordings that are to be annotated, see `vafer.staged`.
    """
    started = time.perf_counter()
    todo = [source for source in sources if not output.is_finished(source)]
    tally = _Tally(on_progress, todo)
    recordings: dict[str, _Recording] = {}
    tally.report(None)
    with shared_cores(), closing(events(todo)) as stream:
        try:
            for source, event in stream:
                if source.video not in recordings:
                    recordings[source.video] = _Recording(source, output)
                recording = recordings[source.video]
                recording.take(event)
                if isinstance(event, Restarted):
                    on_notice(f"{event.why}: it begins anew")
                if recording.row["status"] is not None:
                    del recordings[source.video]
                tally.count(recording)
        finally:
            for recording in recordings.values():
                recording.abandon()
    elapsed_s = time.perf_counter() - started
    output.finish()
    tally.report(None)
    return Results(
        videos=pl.DataFrame(videos_table(list(output.rows.values()))),
        path=output.path,
        videos_path=output.videos_path,
        n_skipped=len(sources) - len(todo),
        others=frozenset(output.rows) - {source.video for source in sources},
        n_incomplete=sum(output.rows[source.video]["status"] != "done" for source in sources),
        n_frames=tally.n_frames,
        elapsed_s=elapsed_s,
    )


class _Recording:
    """What has come of one recording so far: its row of the table of videos, and its part.

    share: of it that is analysed, as far as that can be told.
    """

    def __init__(self, source: Source, output: Output) -> None:
        self._source, self._output = source, output
        self._begun_s = time.perf_counter()
        self.row: dict[str, Any] = dict.fromkeys(VIDEOS_SCHEMA.names)
        self.row |= {"video": source.video, "size_bytes": _size(source)}
        self._begin()

    def _begin(self) -> None:
        self._writer: TableWriter | None = None
        self._waiting: list[FrameResult] = []
        self._n_expected: int | None = None
        self.share = 0.0
        self.row |= dict.fromkeys(_COUNTED, 0)

    def take(self, event: Event) -> None:
        """Note what comes next of it. Raises OutputError."""
        match event:
            case Begun():
                self._begun_s = event.at_s
            case Hashed():
                self.row["sha256"] = event.sha256
            case Opened():
                self.row |= event.facts
                self._n_expected = event.n_expected
                # Known before it is opened, so that it is abandoned whenever a signal comes.
                self._writer = self._output.write_part(self._source.video)
                self._writer.open()
            case FrameResult():
                self._add(event)
            case Ended():
                self._end(event)
            case Restarted():
                self.abandon()
                self._begin()
            case Failed():
                self.abandon()
                self.row |= dict.fromkeys(_COUNTED)
                self._close("failed", event.error)
                self._output.fail(self.row)

    def abandon(self) -> None:
        """Leave nothing of its part."""
        if self._writer is not None:
            self._writer.abandon()

    def _add(self, result: FrameResult) -> None:
        self._waiting.append(result)
        self.row["n_frames_analysed"] += 1
        self.row["n_frames_with_face"] += len(result.faces) > 0
        self.row["n_faces"] += len(result.faces)
        if self._n_expected:
            self.share = (result.index + 1) / self._n_expected
        if len(self._waiting) == FRAMES_AT_ONCE:
            self._write()

    def _write(self) -> None:
        assert self._writer is not None
        self._writer.write(to_batch(self._source.video, self._waiting))
        self._waiting = []

    def _end(self, event: Ended) -> None:
        assert self._writer is not None
        self._write()
        self.row |= {
            "n_frames": event.n_frames,
            "n_bad_packets": event.n_bad_packets,
            "decoder": event.decoder,
        }
        self._close("partial" if event.damage else "done", event.damage)
        self._writer.provenance["video"] = self.row
        self._writer.finish()
        self._writer = None
        self._output.done(self.row)

    def _close(self, status: str, error: str | None) -> None:
        elapsed_s = time.perf_counter() - self._begun_s
        self.row |= {"status": status, "error": error, "elapsed_s": elapsed_s}


def _one_by_one(pipeline: Pipeline, sampling: Sampling, sources: list[Source]) -> Events:
    """All in this process, a recording at a time, as simple as it can be."""
    for source in sources:
        yield source, Begun(time.perf_counter())
        try:
            yield source, Hashed(source_sha256(source))
            with _decoding(source.path):
                info = probe(source.path)
            reader = VideoReader(info, sampling=sampling)
            yield source, Opened(facts_of(info), None if info.pts is None else len(info.pts))
            for results in pipeline.results(_frames(reader)):
                for result in results:
                    yield source, result
            yield (
                source,
                Ended(reader.n_frames, reader.n_bad_packets, reader.damage, reader.decoder),
            )
        except (VideoError, OSError, torch.OutOfMemoryError) as error:
            yield source, Failed(what_failed(source, error))


def _frames(reader: VideoReader) -> Iterator[Frame]:
    with _decoding(reader.info.path):
        yield from reader


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into VideoError: it costs this recording alone."""
    try:
        yield
    except (VideoError, OSError):
        raise
    except Exception as error:
        raise VideoError(f"{display_path(path)}: {error!r}") from error


def _size(source: Source) -> int | None:
    try:
        return size_bytes(source)
    except OSError:
        return None  # probing it will say why it cannot be read


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
        "detector_in_batches": detector.in_batches,  # then by PyTorch, else by ONNX Runtime, OpenCV
        "batch_size": batch_size,
        "python": platform.python_version(),
        # By the modules: the packages have several names, such as onnxruntime-gpu.
        **{name: import_module(name).__version__ for name in _RECORDED_MODULES},
    }
