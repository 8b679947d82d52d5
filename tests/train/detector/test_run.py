"""A detector is trained, goes on exactly, and is a file that insightface loads as SCRFD."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from insightface.model_zoo import get_model

from tests.train.detector.test_mining import nothing
from tests.train.detector.test_scenes import frame, portrait
from train.detector import run
from train.detector.export import export
from train.detector.material import Labelled, Material
from train.detector.network import SHIFTS, SIZES, FaceNet, centres
from train.detector.run import DetectorConfig, train_detector
from train.detector.scenes import Composer


@pytest.fixture
def material() -> Material:
    return Material([portrait()], [frame(n_faces=1)], [])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHAPES", ((64, 96, 2, 0.5), (96, 64, 2, 0.5)))
    monkeypatch.setattr(run, "KEEP_EVERY", 2)
    monkeypatch.setattr(run, "LOG_EVERY", 2)


@pytest.fixture
def net() -> FaceNet:
    """Untrained, but with scores and boxes that vary."""
    torch.manual_seed(0)
    net = FaceNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    net(torch.randn(4, 3, 96, 160))  # or nothing would be left of a picture after ten layers
    for head in net.heads:
        torch.nn.init.normal_(head.weight, std=0.1)
    return net.eval()


def test_insightface_reads_what_the_network_says(net: FaceNet, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net, path, {"name": "test"})
    detector = get_model(str(path), providers=["CPUExecutionProvider"])
    assert detector.taskname == "detection"
    assert detector.use_kps
    picture = np.random.default_rng(0).integers(0, 255, (96, 160, 3)).astype(np.uint8)
    detector.prepare(-1, input_size=(160, 96), det_thresh=0.002)
    boxes, points = detector.detect(picture[..., ::-1])

    x = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 127.5) / 128
    with torch.inference_mode():
        found = net(x)
    cells = centres(96, 160)
    shift_of = dict(zip(sum(SIZES, ()), sum(SHIFTS, ()), strict=True))
    shifted = found.logits[0] - torch.tensor([shift_of[int(size)] for size in cells[:, 3]])
    best = shifted.argmax()
    at, stride = cells[best, :2], cells[best, 2]
    distances = found.boxes[0, best] * stride
    expected = torch.cat([at - distances[:2], at + distances[2:]])
    offsets = found.points[0, best].view(5, 2) * stride + at
    assert len(boxes) > 1
    np.testing.assert_allclose(boxes[0, :4], expected, atol=0.05)
    np.testing.assert_allclose(points[0], offsets, atol=0.05)
    np.testing.assert_allclose(boxes[0, 4], shifted[best].sigmoid(), atol=1e-4)


def test_exported_scores_are_shifted_by_stride_and_anchor(net: FaceNet, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net, path, {})
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"input": x.numpy()})
    with torch.inference_mode():
        maps = net.maps(x)
    for found, scores, shifts in zip(maps, outputs[:3], SHIFTS, strict=True):
        for anchor, shift in enumerate(shifts):
            expected = (found.logits[0, anchor::2] - shift).sigmoid()
            np.testing.assert_allclose(scores[anchor::2, 0], expected, atol=1e-4)


def test_the_card_is_in_the_file(net: FaceNet, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net, path, {"name": "test", "licence": "Apache-2.0"})
    properties = {p.key: p.value for p in onnx.load_model(path).metadata_props}
    assert json.loads(properties["vafer"]) == {"name": "test", "licence": "Apache-2.0"}


def test_a_run_goes_on_exactly(material: Material, tmp_path: Path) -> None:
    told: list[str] = []
    config = DetectorConfig(steps=4, warmup=2)
    whole = train_detector(material, tmp_path / "whole", config, workers=0)

    halted = tmp_path / "halted"
    with pytest.raises(InterruptedError):
        train_detector(material, halted, config, workers=0, on_progress=_stop)
    path = train_detector(material, halted, config, workers=0, on_progress=told.append)
    assert told[0] == "going on after step 2"
    assert path.read_bytes() == whole.read_bytes()
    steps = [json.loads(line)["step"] for line in (halted / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


LOOKING = "looking for what is taken for a face"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | None]:
    """The suspects of each call's scenes, in turn."""
    found: list[np.ndarray | None] = []

    def composer(material: Material, suspects: np.ndarray | None) -> Composer:
        found.append(suspects)
        return Composer(material, suspects)

    monkeypatch.setattr(run, "Composer", composer)
    return found


def test_the_next_call_looks_for_suspects_once(
    material: Material, shown: list[np.ndarray | None], tmp_path: Path
) -> None:
    material.scenery.extend([frame(n_faces=0), nothing(64, 96, (32, 32))])
    first, then = DetectorConfig(steps=2, warmup=2), DetectorConfig(steps=6, warmup=2)
    told: list[str] = []
    for name in ("whole", "halted"):
        train_detector(material, tmp_path / name, first, workers=0, on_progress=told.append)
    assert LOOKING not in told
    train_detector(material, tmp_path / "whole", then, workers=0, on_progress=told.append)
    assert told.count(LOOKING) == 1
    with pytest.raises(InterruptedError):
        train_detector(material, tmp_path / "halted", then, workers=0, on_progress=_stop_at_6)
    train_detector(material, tmp_path / "halted", then, workers=0, on_progress=told.append)
    assert told.count(LOOKING) == 1
    whole, halted = (tmp_path / name / "detector.onnx" for name in ("whole", "halted"))
    assert halted.read_bytes() == whole.read_bytes()
    assert shown[:2] == [None, None]
    looked, looked_again, resumed = shown[2:]
    assert looked is not None
    assert looked.shape == (2, 3)
    assert (looked[0] != looked[1]).any()
    np.testing.assert_array_equal(looked_again, looked)
    np.testing.assert_array_equal(resumed, looked)


def test_other_scenery_is_looked_at_anew(
    material: Material, shown: list[np.ndarray | None], tmp_path: Path
) -> None:
    material.scenery.append(frame(n_faces=0))
    config = DetectorConfig(steps=6, warmup=2)
    with pytest.raises(InterruptedError):
        train_detector(material, tmp_path, config, workers=0, on_progress=_stop_at_6)
    material.scenery[:] = [nothing(64, 96), frame(n_faces=0)]
    train_detector(material, tmp_path, config, workers=0)
    assert [None if suspects is None else len(suspects) for suspects in shown] == [None, 2]
    calls = torch.load(tmp_path / "last.pt", weights_only=True)["calls"]
    assert [call["until"] for call in calls] == [4, 6]


def _stop_at_6(text: str) -> None:
    if "'step': 6" in text:
        raise InterruptedError


def _stop(text: str) -> None:
    if "'step': 4" in text:
        raise InterruptedError


def test_a_scene_that_is_always_the_same_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = Material([portrait()], [], [])
    scene = Composer(material).scene(np.random.default_rng(3), 64, 64)
    assert len(scene.boxes) > 0
    monkeypatch.setattr(Composer, "scene", lambda *_: scene)
    monkeypatch.setattr(run, "LOG_EVERY", 10)
    monkeypatch.setattr(run, "SHAPES", ((64, 64, 2, 1.0),))
    train_detector(material, tmp_path, DetectorConfig(steps=150, lr=3e-3, warmup=10), workers=0)
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name in ("score", "box", "points"):
        assert entries[-1][name] < 0.3 * entries[0][name], name


def test_labelled_pictures_decode_as_rgb() -> None:
    picture = portrait().picture()
    assert isinstance(portrait(), Labelled)
    assert picture[18, 14, 0] > 200
    assert picture[18, 34, 2] > 200
