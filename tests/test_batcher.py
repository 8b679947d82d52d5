"""Faces of many lanes in batches: each gets its own, in order; memory that does not suffice."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch

import vafer
from tests import clips
from vafer import annotation, faces
from vafer.annotation import Progress
from vafer.batcher import FRAMES_IN_BATCH, BatchedWalk, Batcher, Found
from vafer.crops import CropSpec, Patch
from vafer.faces import Detector, Faces
from vafer.model import Model
from vafer.options import Sampling
from vafer.pipeline import NO_VALUES, Batches
from vafer.table import FrameResult
from vafer.video import Chunk, Frame
from vafer.workers import DecoderProcess

ONE_FACE = Faces(np.zeros((1, 4), np.float32), np.ones(1, np.float32), None)


class Counting:
    """Finds one face a frame, its score the value of its first pixel; has little memory."""

    device = "cpu"

    def __init__(self, most: int = 1000) -> None:
        self.most, self.sizes = most, list[int]()
        self.tried = list[weakref.ref[torch.Tensor]]()

    def detect_many(self, frames: torch.Tensor) -> list[Faces]:
        assert all(tried() is None for tried in self.tried), "a failed try still has its memory"
        if len(frames) > self.most:
            held = frames.clone()
            self.tried.append(weakref.ref(held))
            raise torch.OutOfMemoryError
        self.sizes.append(len(frames))
        values = frames[:, 0, 0, 0].float().numpy()
        return [Faces(np.float32([[0, 0, 4, 4]]), np.float32([v]), None) for v in values]


def model_of(predict: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    """A model of boxes without a margin, so that a crop shows what is in the box."""
    crop = CropSpec(kind="box", size=8)
    model = SimpleNamespace(
        card=SimpleNamespace(crop=crop), device=torch.device("cpu"), predict=predict
    )
    return cast(Model, model)


N_AT_ONCE = 5  # faces in a prediction


def first_pixel(crops: torch.Tensor) -> torch.Tensor:
    assert len(crops) == N_AT_ONCE, "predictions are always of as many"
    return crops[:, 0, 0, :2].clone()


class Run:
    """A batcher, until the end of the test."""

    def __init__(self, detector: object) -> None:
        self.is_over = threading.Event()
        self.batcher = Batcher(
            cast(Detector, detector), model_of(first_pixel), N_AT_ONCE, self.is_over
        )

    def ask(self, *values: int, side: int = 4) -> "Future[list[Found]]":
        """Of frames that are filled with a value each."""
        frames = [np.full((side, side, 3), value, np.uint8) for value in values]
        return self.batcher.find(self.batcher.upload(np.stack(frames)), 1.0)


@pytest.fixture
def run() -> Iterator[Callable[[object], Run]]:
    runs: list[Run] = []

    def start(detector: object) -> Run:
        runs.append(Run(detector))
        return runs[-1]

    yield start
    for started in runs:
        started.is_over.set()
        started.batcher.thread.join()


@pytest.mark.parametrize("most", [1000, 3, 1])
def test_each_frame_gets_its_own_faces_and_values(most: int, run: Callable[[object], Run]) -> None:
    detector = Counting(most)
    batcher = (started := run(detector)).batcher
    asked = [started.ask(*range(i, i + 1 + i % 4), side=4 + i % 3) for i in range(0, 100, 4)]
    for i, waiting in zip(range(0, 100, 4), asked, strict=True):
        expected = [*range(i, i + 1 + i % 4)]
        found = batcher.wait(waiting)
        assert [faces.scores[0] for faces, _ in found] == expected
        assert [values[0].tolist() for _, values in found] == [[v, v] for v in expected]
    assert max(detector.sizes) <= min(most, FRAMES_IN_BATCH)
    assert sum(detector.sizes) == sum(1 + i % 4 for i in range(0, 100, 4))


def test_frames_without_and_with_many_faces(run: Callable[[object], Run]) -> None:
    class Several(Counting):
        def detect_many(self, frames: torch.Tensor) -> list[Faces]:
            return [several(int(frame[0, 0, 0])) for frame in frames]

    def several(n: int) -> Faces:
        return Faces(np.tile(np.float32([0, 0, 4, 4]), (n, 1)), np.ones(n, np.float32), None)

    started = run(Several())
    assert [len(f) for f, _ in started.batcher.wait(started.ask(0, 0))] == [0, 0]
    found = started.batcher.wait(started.ask(0, 7, 0, 1, 3))
    assert [values.shape for _, values in found] == [(n, 2) for n in (0, 7, 0, 1, 3)]
    assert [values.mean() for _, values in found if len(values)] == [7, 1, 3]


@pytest.mark.parametrize("most", [1000, 1])
def test_crops_are_cut_as_their_own_recording_is_displayed(
    most: int, run: Callable[[object], Run]
) -> None:
    class Wide(Counting):
        def detect_many(self, frames: torch.Tensor) -> list[Faces]:
            super().detect_many(frames)
            box = np.float32([[4, 0, 8, 8]])  # of white, with black on both sides
            return [Faces(box, np.ones(1, np.float32), None) for _ in frames]

    frame = np.zeros((8, 12, 3), np.uint8)
    frame[:, 3:9] = 255  # and one column more, for bilinear sampling
    batcher = run(Wide(most)).batcher
    upload = batcher.upload(np.stack([frame, frame]))
    asked = [batcher.find(upload, aspect) for aspect in (1.0, 2.0, 1.0)]
    # The box is square where its pixels are twice as wide as high, and else has black beside it.
    found = [[values[0, 0] for _, values in batcher.wait(one)] for one in asked]
    assert found == [[0, 0], [255, 255], [0, 0]]


def test_memory_that_does_not_suffice_for_one_frame_is_an_error(
    run: Callable[[object], Run],
) -> None:
    class Picky(Counting):
        """Has no memory for a frame of 3s, however many come with it."""

        def detect_many(self, frames: torch.Tensor) -> list[Faces]:
            if (frames == 3).any():
                raise torch.OutOfMemoryError
            return super().detect_many(frames)

    started = run(Picky())
    asked = [started.ask(i, i + 100) for i in range(5)]
    for i, waiting in enumerate(asked):
        if i == 3:
            with pytest.raises(torch.OutOfMemoryError):
                started.batcher.wait(waiting)
        else:
            assert [f.scores[0] for f, _ in started.batcher.wait(waiting)] == [i, i + 100]


def test_memory_that_does_not_suffice_to_gather_frames_halves_the_batch(
    run: Callable[[object], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for is let go of, whoever waits for it."""
    real = torch.cat

    def cat(pieces: list[torch.Tensor], *more: Any) -> torch.Tensor:
        if pieces[0].dtype == torch.uint8 and sum(map(len, pieces)) > 8:
            raise torch.OutOfMemoryError
        return real(pieces, *more)

    monkeypatch.setattr(torch, "cat", cat)
    started = run(Counting())
    asked = [started.ask(*range(i, i + 4)) for i in range(0, 64, 4)]
    for i, waiting in zip(range(0, 64, 4), asked, strict=True):
        assert [f.scores[0] for f, _ in started.batcher.wait(waiting)] == [*range(i, i + 4)]
    assert started.batcher._most[torch.Size([4, 4, 3])] <= 8


def test_memory_that_does_not_suffice_for_predictions_halves_those(
    run: Callable[[object], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def predict(crops: torch.Tensor) -> torch.Tensor:
        if len(crops) > 2:
            raise torch.OutOfMemoryError
        sizes.append(len(crops))
        return crops[:, 0, 0, :2].clone()

    started = run(Counting())
    monkeypatch.setattr(started.batcher.model, "predict", predict)
    found = started.batcher.wait(started.ask(*range(7)))
    assert [values[0, 0] for _, values in found] == [*range(7)]
    assert {*sizes} == {2}


@pytest.mark.parametrize("lacking", [1, 2])
def test_an_upload_that_does_not_fit_waits_for_what_is_ahead(
    run: Callable[[object], Run], monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    started = run(Counting())
    started.batcher.detector.has_landmarks = False
    walk, real, n_failed = BatchedWalk(started.batcher, 8), started.batcher.upload, 0

    def upload(pictures: np.ndarray) -> torch.Tensor:
        nonlocal n_failed
        if pictures[0, 0, 0, 0] == 4 and n_failed < lacking:
            n_failed += 1
            raise torch.OutOfMemoryError
        return real(pictures)

    monkeypatch.setattr(started.batcher, "upload", upload)

    def chunk(first: int) -> Chunk:
        pictures = np.stack([np.full((4, 4, 3), v, np.uint8) for v in range(first, first + 2)])
        frames = [Frame(first + k, None, None, picture) for k, picture in enumerate(pictures)]
        return Chunk(frames, pictures)

    assert [*walk.take(chunk(0))] == [*walk.take(chunk(2))] == []
    if lacking == 2:
        with pytest.raises(torch.OutOfMemoryError):
            list(walk.take(chunk(4)))
        return
    results = [result for result, _ in walk.take(chunk(4))]
    assert [result.index for result in results] == [0, 1, 2, 3]
    results += [result for result, _ in walk.rest()]
    assert [result.values[0, 0] for result in results] == [*range(6)]


@pytest.mark.parametrize("error", [ValueError("odd"), TimeoutError("late")])
def test_what_detection_raises_is_raised_where_it_is_waited_for(
    error: Exception, run: Callable[[object], Run]
) -> None:
    class Broken(Counting):
        def detect_many(self, frames: torch.Tensor) -> list[Faces]:
            if frames[0, 0, 0, 0] == 1:
                raise error
            return super().detect_many(frames)

    started = run(Broken())
    with pytest.raises(type(error)):
        started.batcher.wait(started.ask(1))
    assert len(started.batcher.wait(started.ask(2))) == 1


def test_who_waits_when_all_is_over_is_told(run: Callable[[object], Run]) -> None:
    started = run(Counting())
    started.is_over.set()
    started.batcher.thread.join()
    with pytest.raises(CancelledError):
        started.batcher.wait(started.ask(1))


def test_predictions_go_on_with_half_a_batch_where_memory_does_not_suffice() -> None:
    sizes: list[int] = []

    def predict(crops: torch.Tensor) -> torch.Tensor:
        if len(crops) > 2:
            raise torch.OutOfMemoryError
        sizes.append(len(crops))
        return crops[:, 0, 0, :2] / 255

    batches: Batches[int, Any] = Batches(model_of(predict), 8)
    shift = np.array([[1.0, 0, 0], [0, 1, 0]])
    finished = []
    for i in range(11):
        patch = Patch(np.full((8, 8, 3), i, np.uint8), shift)
        result = FrameResult(i, None, None, ONE_FACE, np.zeros(1, np.int32), NO_VALUES, "full")
        finished += list(batches.add(i, result, [patch]))
    finished += list(batches.finish())
    assert [owner for owner, _ in finished] == [*range(11)]
    values = [item.values[0, 0] for _, item in finished]
    np.testing.assert_allclose(values, np.arange(11) / 255, atol=1e-6)
    assert sizes == [2] * 6


@pytest.fixture
def how(shared: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a run that goes in batches, on a CPU."""
    monkeypatch.setattr(faces, "BY_TORCH", ("cpu",))
    return {
        "model": untrained,
        "detector": shared / "models" / "scrfd_500m.onnx",
        "sampling": Sampling(every=5),
        "detect": "full",
    }


def in_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each batch has that is from now on."""
    sizes: list[int] = []
    real = Detector.detect_many

    def spied(self: Detector, frames: torch.Tensor) -> list[Faces]:
        sizes.append(len(frames))
        return real(self, frames)

    monkeypatch.setattr(Detector, "detect_many", spied)
    return sizes


def agrees(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """The same faces, values apart by rounding."""
    keys = pl.col("video", "frame_index", "pts", "track_id", "face_source")
    assert found.select(keys).equals(expected.select(keys))
    limits = {"x1": 0.5, "y1": 0.5, "x2": 0.5, "y2": 0.5, "det_score": 0.01, "valence": 0.05}
    for column, within in {**limits, "arousal": 0.05}.items():
        apart = (found[column] - expected[column]).abs()
        assert apart.quantile(0.99) < within, (column, apart.max())


def test_a_run_in_batches_gives_the_table_of_a_run_frame_by_frame(
    shared: Path, tmp_path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stage_cuts.mp4", "turning_head.mp4", "face_then_none_vfr.mov"):
        (tmp_path / name).symlink_to(shared / "videos" / name)
    with monkeypatch.context() as by_onnx_runtime:
        by_onnx_runtime.setattr(faces, "BY_TORCH", ())
        expected = vafer.annotate(tmp_path, **how).table
    sizes = in_batches(monkeypatch)
    found = vafer.annotate(tmp_path, workers=3, **how).table
    assert sum(sizes) == len(expected.unique(["video", "frame_index"]))
    assert max(sizes) > 1
    agrees(found, expected)


def test_frames_whose_size_changes_within_a_recording(
    shared: Path, tmp_path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transport streams of other sizes, the second one's times after the first one's."""
    parts = []
    for k, size in enumerate(("640:360", "320:240")):
        parts.append(tmp_path / f"{k}.ts")
        clips.run(
            "-i", shared / "videos" / "single_face.mp4", "-frames:v", "15", "-r", "25", "-an",
            "-vf", f"scale={size},setsar=1", "-bf", "0", "-output_ts_offset", str(0.6 * k),
            parts[-1],
        )  # fmt: skip
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    how["sampling"] = Sampling(every=2)
    with monkeypatch.context() as by_onnx_runtime:
        by_onnx_runtime.setattr(faces, "BY_TORCH", ())
        expected = vafer.annotate(both, workers=1, **how)
    assert expected.table["x2"].max() > 320  # of the larger ones
    assert len(expected.table) == 15
    agrees(vafer.annotate(both, workers=2, **how).table, expected.table)


def test_a_decoder_that_dies_with_frames_ahead_costs_nothing(
    shared: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = shared / "videos" / "expressive_33s.mp4"
    undisturbed = vafer.annotate(video, workers=2, **how).table
    started: list[DecoderProcess] = []

    def start(**options: Any) -> DecoderProcess:
        started.append(DecoderProcess(**options))
        return started[-1]

    monkeypatch.setattr(annotation, "DecoderProcess", start)
    notices: list[str] = []

    def kill(progress: Progress) -> None:
        if progress.n_frames >= 20 and len(started) == 1:
            started[0].kill()

    found = vafer.annotate(video, workers=2, on_progress=kill, on_notice=notices.append, **how)
    assert [notice.split(": ", 1)[1] for notice in notices] == [
        "the process that decoded it was ended by signal 9: it begins anew"
    ]
    agrees(found.table, undisturbed)


def test_a_run_that_is_stopped_leaves_no_thread(
    shared: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(progress: Progress) -> None:
        if progress.n_frames >= 3:
            raise KeyboardInterrupt

    video = shared / "videos" / "expressive_33s.mp4"
    with pytest.raises(KeyboardInterrupt):
        vafer.annotate([video], workers=2, on_progress=stop, **how)
    deadline = time.monotonic() + 60
    while {thread.name for thread in threading.enumerate()} & {"device", "predictor", "lane-0"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_memory_that_a_frame_lacks_costs_its_recording(
    sample: Path,
    shared: Path,
    tmp_path: Path,
    how: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not those that come after it."""
    (tmp_path / "a.mp4").symlink_to(shared / "videos" / "crowd_1080p.mp4")
    for name in "bcdef":
        (tmp_path / f"{name}.mp4").symlink_to(sample)
    real = Detector.detect_many

    def small(self: Detector, frames: torch.Tensor) -> list[Faces]:
        if frames.shape[1] == 1080:
            raise torch.OutOfMemoryError
        return real(self, frames)

    monkeypatch.setattr(Detector, "detect_many", small)
    how["sampling"] = Sampling(every=10)
    notices: list[str] = []
    results = vafer.annotate(tmp_path, workers=2, on_notice=notices.append, **how)
    assert results.videos["status"].to_list() == ["failed", *["done"] * 5]
    assert "a.mp4: one of its frames does not fit into the memory" in results.videos["error"][0]
    assert notices == []
