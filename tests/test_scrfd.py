"""SCRFD by PyTorch gives what insightface gives, of many frames at once."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
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
    with pytest.raises(ModelError, match=r"a\.onnx: cannot be read: No such file"):
        Graph(path)
    path.touch()
    with pytest.raises(ModelError, match=r"a\.onnx is empty\. Expected a face detector"):
        Graph(path)
    with pytest.raises(ModelError, match="has the operator Tanh"):
        Graph(a_graph(path, helper.make_node("Tanh", ["x"], ["y"]), sides=("h", "w")))
    with pytest.raises(ModelError, match=r"takes pictures of \[64, 64\] pixels alone"):
        Graph(a_graph(path, helper.make_node("Relu", ["x"], ["y"]), sides=(64, 64)))
    with pytest.raises(ModelError, match="has 1 outputs: expected 6 or 9"):
        SCRFD(a_graph(path, helper.make_node("Relu", ["x"], ["y"]), sides=("h", "w")), "cpu")


STRIDED = {"kernel_shape": [3, 3], "strides": [2, 2]}
CASES = [
    helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 0, 2, 1], **STRIDED),
    helper.make_node("MaxPool", ["x"], ["y"], pads=[0, 0, 1, 1], ceil_mode=1, **STRIDED),
    helper.make_node("AveragePool", ["x"], ["y"], pads=[1, 1, 1, 1], ceil_mode=1, **STRIDED),
    helper.make_node("AveragePool", ["x"], ["y"], pads=[1] * 4, count_include_pad=1, **STRIDED),
    helper.make_node(
        "Resize", ["x", "", "s"], ["y"], mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    helper.make_node("Slice", ["x", "from", "to", "axes", "by"], ["y"]),
    helper.make_node("Gather", ["x", "last"], ["y"], axis=-1),
    helper.make_node("Unsqueeze", ["x", "new"], ["y"]),
    helper.make_node("Reshape", ["x", "shape"], ["y"]),
    helper.make_node("Transpose", ["x"], ["y"], perm=[2, 3, 0, 1]),
    helper.make_node("Clip", ["x", "low"], ["y"]),
    helper.make_node("Flatten", ["x"], ["y"], axis=2),
]  # fmt: skip


@pytest.mark.parametrize("node", CASES, ids=lambda node: node.op_type)
def test_operators_give_what_onnxruntime_gives(node: onnx.NodeProto, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "w": rng.standard_normal((4, 3, 3, 3), np.float32),
        "s": np.array([1, 1, 1.5, 2], np.float32),
        "from": np.array([1, -4]), "to": np.array([9, 100]), "axes": np.array([2, -1]),
        "by": np.array([2, 1]), "last": np.array([[-1, 0], [2, -3]]), "new": np.array([-1, -3]),
        "shape": np.array([0, -1, 5]), "low": np.array(-0.5, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w_"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items() if k in node.input],
    )
    opset = helper.make_opsetid("", 13)
    path = tmp_path / "a.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    x = rng.standard_normal((2, 3, 11, 10), np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [expected] = session.run(None, {"x": x})
    [found] = Graph(path)(torch.from_numpy(x))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER"),
        helper.make_node("MaxPool", ["x"], ["y"], dilations=[2, 2], **STRIDED),
        helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear"),
        helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest"),
        helper.make_node("Flatten", ["x"], ["y"], unheard_of=1),
    ],
    ids=lambda node: node.op_type,
)
def test_what_an_operator_cannot_do_is_never_ignored(node: onnx.NodeProto, tmp_path: Path) -> None:
    path = a_graph(tmp_path / "a.onnx", node, sides=("h", "w"))
    graph = Graph(path)
    graph._constants |= {"w": torch.zeros(4, 3, 3, 3), "s": torch.tensor([1.0, 1, 2, 2])}
    with pytest.raises((ModelError, TypeError)):
        graph(torch.zeros(1, 3, 8, 8))


def test_one_that_fails_on_trial_is_run_elsewhere_and_says_why(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "odd.onnx"
    model = onnx.load_model(str(shared / "models" / "scrfd_500m.onnx"))
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.attribute.append(helper.make_attribute("auto_pad", "NOTSET"))
    onnx.save_model(model, str(path))
    assert by_torch(monkeypatch, path, 640).in_batches
    monkeypatch.setattr("vafer.onnx_torch.OPERATORS", {})
    detector = by_torch(monkeypatch, path, 640)
    assert not detector.in_batches
    assert "has the operator" in detector.why_on_cpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives(file: Path, crowd: list[np.ndarray]) -> None:
    detector = Detector(file, device="cuda")
    found = detector.detect_many(torch.from_numpy(np.stack(crowd)).cuda())
    for frame, own in zip(crowd, found, strict=True):
        assert_same(own, Detector(file).detect(frame), 0.5)
