"""SCRFD by PyTorch gives what insightface gives, of many frames at once."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vafer import faces
from vafer.errors import ModelError
from vafer.faces import Detector, Faces
from vafer.onnx_torch import Graph
from vafer.options import DetectorOptions, Sampling
from vafer.probe import probe
from vafer.scrfd import SCRFD
from vafer.store import WEIGHTS
from vafer.video import VideoReader

DETECTORS = ("scrfd_500m.onnx", "scrfd_2.5g.onnx", "vafer-faces.onnx")


@pytest.fixture(params=DETECTORS)
def file(request: pytest.FixtureRequest, shared: Path) -> Path:
    name: str = request.param
    return WEIGHTS / name if name.startswith("vafer") else shared / "models" / name


@pytest.fixture(scope="module")
def crowd(shared: Path) -> list[np.ndarray]:
    info = probe(shared / "videos" / "crowd_1080p.mp4")
    return [frame.image for frame in VideoReader(info, sampling=Sampling(every=50))][:3]


def by_torch(monkeypatch: pytest.MonkeyPatch, path: Path, size: int) -> Detector:
    with monkeypatch.context() as patch:
        patch.setattr(faces, "BY_TORCH", ("cpu",))
        return Detector(path, DetectorOptions(size=size))


def assert_same(found: Faces, expected: Faces, pixels: float) -> None:
    assert len(found) == len(expected) > 0
    assert found.landmarks is not None
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=pixels)
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=pixels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=pixels / 50)


def test_frames_at_once_equal_insightface_frame_by_frame(
    file: Path, crowd: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = by_torch(monkeypatch, file, 640)
    assert detector.in_batches
    found = detector.detect_many(torch.from_numpy(np.stack(crowd)))
    reference = Detector(file, DetectorOptions(size=640))
    assert not reference.in_batches
    for frame, own in zip(crowd, found, strict=True):
        assert_same(own, reference.detect(frame), 0.5)
        assert_same(detector.detect(frame), reference.detect(frame), 1e-2)


def test_frames_that_need_no_shrinking_equal_insightface(
    file: Path, crowd: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [frame[::2, ::2].copy() for frame in crowd]  # 540 rows are padded
    found = by_torch(monkeypatch, file, 960).detect_many(torch.from_numpy(np.stack(small)))
    reference = Detector(file, DetectorOptions(size=960))
    for frame, own in zip(small, found, strict=True):
        assert_same(own, reference.detect(frame), 1e-2)


def test_frames_without_a_face(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = by_torch(monkeypatch, file, 640)
    for own in detector.detect_many(torch.zeros((2, 90, 160, 3), dtype=torch.uint8)):
        assert own.boxes.shape == (0, 4)
        assert own.landmarks is not None
        assert own.landmarks.shape == (0, 5, 2)


def a_graph(path: Path, *nodes: onnx.NodeProto, sides: tuple[int | str, int | str]) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, *sides])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save_model(helper.make_model(graph), str(path))
    return path


def test_what_cannot_be_run_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ModelError, match="cannot be read as an ONNX file"):
        Graph(path)
    with pytest.raises(ModelError, match="has the operator Tanh"):
        Graph(a_graph(path, helper.make_node("Tanh", ["x"], ["y"]), sides=("h", "w")))
    with pytest.raises(ModelError, match=r"takes pictures of \[64, 64\] pixels alone"):
        Graph(a_graph(path, helper.make_node("Relu", ["x"], ["y"]), sides=(64, 64)))
    with pytest.raises(ModelError, match="has 1 outputs: expected 6 or 9"):
        SCRFD(a_graph(path, helper.make_node("Relu", ["x"], ["y"]), sides=("h", "w")), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives(file: Path, crowd: list[np.ndarray]) -> None:
    detector = Detector(file, device="cuda")
    found = detector.detect_many(torch.from_numpy(np.stack(crowd)).cuda())
    for frame, own in zip(crowd, found, strict=True):
        assert_same(own, Detector(file).detect(frame), 0.5)
