"""Faces of many lanes in batches: each gets its own, in order; memory that does not suffice."""

import threading
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch

import vafer
from vafer import faces
from vafer.batcher import FRAMES_AT_ONCE, Batcher
from vafer.crops import CropSpec, Patch, cut, cut_on_device
from vafer.faces import Detector, Faces
from vafer.model import Model
from vafer.options import Sampling
from vafer.pipeline import NO_VALUES, Batches
from vafer.table import FrameResult

ONE_FACE = Faces(np.zeros((1, 4), np.float32), np.ones(1, np.float32), None)


class Counting:
    """Finds one face a frame, whose box is at the value of its first pixel; has little memory."""

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
        return [Faces(np.full((1, 4), v, np.float32), np.ones(1, np.float32), None) for v in values]


def frame(value: int, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


@pytest.mark.parametrize("most", [1000, 3, 1])
def test_each_frame_gets_its_own_faces(most: int) -> None:
    detector, is_over = Counting(most), threading.Event()
    batcher = Batcher(cast(Detector, detector), is_over)
    asked = [batcher.find(batcher.upload(frame(i, 4 + i % 3))) for i in range(100)]
    assert [batcher.wait(found).boxes[0, 0] for found in asked] == [*range(100)]
    assert max(detector.sizes) <= min(most, FRAMES_AT_ONCE)
    assert sum(detector.sizes) == 100
    is_over.set()
    batcher.thread.join()


def test_memory_that_does_not_suffice_for_one_frame_is_an_error() -> None:
    is_over = threading.Event()
    batcher = Batcher(cast(Detector, Counting(0)), is_over)
    asked = [batcher.find(batcher.upload(frame(i))) for i in range(5)]
    for found in asked:
        with pytest.raises(torch.OutOfMemoryError):
            batcher.wait(found)
    is_over.set()


@pytest.mark.parametrize("error", [ValueError("odd"), TimeoutError("late")])
def test_what_detection_raises_is_raised_where_it_is_waited_for(error: Exception) -> None:
    class Broken(Counting):
        def detect_many(self, frames: torch.Tensor) -> list[Faces]:
            if frames[0, 0, 0, 0] == 1:
                raise error
            return super().detect_many(frames)[:-1]  # one too few

    is_over = threading.Event()
    batcher = Batcher(cast(Detector, Broken()), is_over)
    with pytest.raises(type(error)):
        batcher.wait(batcher.find(batcher.upload(frame(1))))
    with pytest.raises(ValueError, match="shorter"):
        batcher.wait(batcher.find(batcher.upload(frame(2))))
    assert batcher.thread.is_alive()
    is_over.set()


def test_who_waits_when_all_is_over_is_told() -> None:
    is_over = threading.Event()
    batcher = Batcher(cast(Detector, Counting()), is_over)
    is_over.set()
    batcher.thread.join()
    with pytest.raises(CancelledError):
        batcher.wait(batcher.find(batcher.upload(frame(1))))


def test_predictions_go_on_with_half_a_batch_where_memory_does_not_suffice() -> None:
    sizes: list[int] = []

    def predict(crops: torch.Tensor) -> torch.Tensor:
        if len(crops) > 2:
            raise torch.OutOfMemoryError
        sizes.append(len(crops))
        return crops[:, 0, 0, :2] / 255

    model = SimpleNamespace(
        card=SimpleNamespace(crop=CropSpec(size=8)), device=torch.device("cpu"), predict=predict
    )
    batches: Batches[int, Any] = Batches(cast(Model, model), 8)
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


@pytest.mark.parametrize("shift", [3.0, 60.0])  # well within the picture, over its edge
@pytest.mark.parametrize("factor", [0.4, 1.0, 2.3, 5.0])
def test_pieces_cut_on_a_device_equal_those_in_memory(factor: float, shift: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 170, 3), dtype=np.uint8)
    matrix = np.array(
        [[1 / factor, 0.1 / factor, -20 / factor], [-0.1 / factor, 1 / factor, shift]]
    )
    expected = cut(image, matrix, 24)
    found = cut_on_device(torch.from_numpy(image), matrix, 24)
    assert isinstance(found.pixels, torch.Tensor)
    np.testing.assert_array_equal(found.to_patch, expected.to_patch)
    np.testing.assert_allclose(found.pixels.numpy(), expected.pixels, atol=1)


def test_a_run_in_batches_gives_the_table_of_a_run_frame_by_frame(
    shared: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stage_cuts.mp4", "turning_head.mp4", "face_then_none_vfr.mov"):
        (tmp_path / name).symlink_to(shared / "videos" / name)
    how: dict[str, Any] = {
        "model": untrained,
        "detector": shared / "models" / "scrfd_500m.onnx",
        "sampling": Sampling(every=5),
        "detect": "full",
    }
    expected = vafer.annotate(tmp_path, **how).table
    monkeypatch.setattr(faces, "BY_TORCH", ("cpu",))
    sizes: list[int] = []
    real = Detector.detect_many

    def spied(self: Detector, frames: torch.Tensor) -> list[Faces]:
        sizes.append(len(frames))
        return real(self, frames)

    monkeypatch.setattr(Detector, "detect_many", spied)
    found = vafer.annotate(tmp_path, workers=3, **how).table
    assert sum(sizes) == len(expected.unique(["video", "frame_index"]))
    assert max(sizes) > 1
    keys = pl.col("video", "frame_index", "track_id", "face_source")
    assert found.select(keys).equals(expected.select(keys))
    limits = {"x1": 0.5, "y1": 0.5, "x2": 0.5, "y2": 0.5, "det_score": 0.01, "valence": 0.05}
    for column, within in {**limits, "arousal": 0.05}.items():
        apart = (found[column] - expected[column]).abs()
        assert apart.quantile(0.99) < within, (column, apart.max())


def test_memory_that_a_frame_lacks_costs_its_recording(
    sample: Path, shared: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").symlink_to(sample)
    (tmp_path / "b.mp4").symlink_to(shared / "videos" / "crowd_1080p.mp4")
    real = Detector.detect_many

    def small(self: Detector, frames: torch.Tensor) -> list[Faces]:
        if frames.shape[1] == 1080:
            raise torch.OutOfMemoryError
        return real(self, frames)

    monkeypatch.setattr(faces, "BY_TORCH", ("cpu",))
    monkeypatch.setattr(Detector, "detect_many", small)
    detector = shared / "models" / "scrfd_500m.onnx"
    results = vafer.annotate(
        tmp_path,
        model=untrained,
        detector=detector,
        detect="full",
        workers=2,
        sampling=Sampling(every=10),
    )
    assert results.videos["status"].to_list() == ["done", "failed"]
    assert "b.mp4: one of its frames does not fit into the memory" in results.videos["error"][1]
