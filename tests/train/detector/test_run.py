"""A detector is trained, goes on exactly, and is a file that insightface loads as SCRFD."""

import json
from collections.abc import Callable
from dataclasses import replace
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
from train.detector.material import Material
from train.detector.network import FaceNet, centres
from train.detector.run import DetectorConfig, shift_for, train_detector
from train.detector.scenes import Composer
from train.loop import DivergedError
from vafer.errors import UsageError
from vafer.onnx_file import onnx_weights_sha256

SHIFT = 0.6


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
    export(net, path, {"name": "test"}, SHIFT)
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
    shifted = found.logits[0] - SHIFT
    best = shifted.argmax()
    at, stride = cells[best, :2], cells[best, 2]
    distances = found.boxes[0, best] * stride
    expected = torch.cat([at - distances[:2], at + distances[2:]])
    offsets = found.points[0, best].view(5, 2) * stride + at
    assert len(boxes) > 1
    np.testing.assert_allclose(boxes[0, :4], expected, atol=0.05)
    np.testing.assert_allclose(points[0], offsets, atol=0.05)
    np.testing.assert_allclose(boxes[0, 4], shifted[best].sigmoid(), atol=1e-4)


def test_every_exported_score_is_shifted(net: FaceNet, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net, path, {}, SHIFT)
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"input": x.numpy()})
    with torch.inference_mode():
        maps = net.maps(x)
    for found, scores in zip(maps, outputs[:3], strict=True):
        np.testing.assert_allclose(scores[:, 0], (found.logits[0] - SHIFT).sigmoid(), atol=1e-4)


def test_strides_in_training_leave_values_and_gradients_as_they_are(net: FaceNet) -> None:
    strided = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.stride[0] == 2]
    depthwise = [m for m in strided if m.groups > 1]
    assert len(depthwise) == 4
    for conv in depthwise:
        x = torch.randn(2, conv.in_channels, 10, 14, requires_grad=True)
        given = []
        for mode in (conv.train, conv.eval):
            mode()
            y = conv(x)
            assert y.shape == (2, conv.in_channels, 5, 7)
            given.append((y, *torch.autograd.grad(y.square().sum(), (x, conv.weight))))
        for in_training, plain in zip(*given, strict=True):
            torch.testing.assert_close(in_training, plain, rtol=1e-4, atol=1e-4)


def test_the_card_is_in_the_file(net: FaceNet, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(net, path, {"name": "test", "licence": "Apache-2.0"}, 0.0)
    properties = {p.key: p.value for p in onnx.load_model(path).metadata_props}
    card = {"name": "test", "licence": "Apache-2.0"}
    weights = onnx_weights_sha256(path)
    assert json.loads(properties["vafer"]) == {
        **card, "second_look": True, "weights_sha256": weights,
    }  # fmt: skip


def test_a_run_goes_on_exactly(material: Material, tmp_path: Path) -> None:
    told: list[str] = []
    config = DetectorConfig(steps=4, warmup=2)
    whole = train_detector(material, tmp_path / "whole", config, workers=0)

    halted = tmp_path / "halted"
    with pytest.raises(InterruptedError):
        train_detector(material, halted, config, workers=0, on_progress=_stop_at(4))
    path = train_detector(material, halted, config, workers=0, on_progress=told.append)
    assert told[0] == "going on after step 2"
    assert path.read_bytes() == whole.read_bytes()
    steps = [json.loads(line)["step"] for line in (halted / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


LOOKING = "looking for what is taken for a face"


@pytest.fixture
def composers(monkeypatch: pytest.MonkeyPatch) -> list[Composer]:
    """Who makes the scenes of each part, in turn."""
    made: list[Composer] = []

    def composer(material: Material, suspects: np.ndarray | None) -> Composer:
        made.append(Composer(material, suspects))
        return made[-1]

    monkeypatch.setattr(run, "Composer", composer)
    return made


@pytest.mark.parametrize("workers", [0, 1])
def test_hard_negatives_are_mined_on_the_way(
    material: Material, composers: list[Composer], workers: int, tmp_path: Path
) -> None:
    material.scenery.extend([frame(n_faces=0), nothing(64, 96, (32, 32))])
    config = DetectorConfig(steps=10, warmup=2)  # mined after 3, 6 and 8
    told: list[str] = []
    train_detector(material, tmp_path / "whole", config, workers=workers, on_progress=told.append)
    assert told.count(LOOKING) == 3
    never, first, second, third = (composer._suspects[-2:] for composer in composers)
    assert not never.any()
    assert (first[0] != first[1]).any()
    assert (first != second).any()
    assert (second != third).any()

    for stop_at in (6, 10):  # the last that was kept is 4, then 8
        with pytest.raises(InterruptedError):
            train_detector(
                material, tmp_path / "halted", config, workers=0, on_progress=_stop_at(stop_at)
            )
    train_detector(material, tmp_path / "halted", config, workers=0)
    whole, halted = (tmp_path / name / "detector.onnx" for name in ("whole", "halted"))
    assert halted.read_bytes() == whole.read_bytes()
    np.testing.assert_array_equal(composers[-1]._suspects[-2:], third)


def test_a_training_begins_with_what_another_learned(
    material: Material, composers: list[Composer], tmp_path: Path
) -> None:
    material.scenery.extend([frame(n_faces=0), nothing(64, 96, (32, 32))])
    config, first = DetectorConfig(steps=4, warmup=2), tmp_path / "first" / "last.pt"
    train_detector(material, first.parent, config, workers=0)
    learned = torch.load(first, weights_only=True)["average"]

    tiny = replace(config, steps=2, lr=0.0)
    told: list[str] = []
    second = tmp_path / "second"
    train_detector(material, second, tiny, begin_with=first, workers=0, on_progress=told.append)
    state = torch.load(second / "last.pt", weights_only=True)
    weights = dict(run.FaceNet().named_parameters())
    for name in weights:
        torch.testing.assert_close(state["net"][name], learned[f"module.{name}"])
    assert told[0] == LOOKING  # before the first step
    assert composers[-2]._suspects[-2:].any()

    with pytest.raises(UsageError, match="another training, there against here: begin_with"):
        train_detector(material, second, tiny, workers=0)
    train_detector(material, second, tiny, begin_with=first, workers=0)


def test_what_is_no_training_is_not_begun_with(material: Material, tmp_path: Path) -> None:
    config = DetectorConfig(steps=2)
    torch.save({"step": 2}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("is none")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("other.pt", "list.pt", "text.pt", "empty.pt", "missing.pt"):
        with pytest.raises(UsageError, match=rf"{name} cannot be begun with .*expected the last"):
            train_detector(material, tmp_path, config, begin_with=tmp_path / name, workers=0)


def test_pictures_that_were_looked_at_are_all_trained_on(
    material: Material, composers: list[Composer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BLOCK": 1, "SET_ASIDE": 2}.items():
        monkeypatch.setattr(run, name, value)
    plain, spotted = nothing(64, 96), nothing(64, 96, (32, 32))
    material.scenery.extend([plain, spotted])
    material.face_free.extend([spotted, spotted])
    path = train_detector(material, tmp_path, DetectorConfig(steps=2, warmup=2), workers=0)
    assert composers[-1].material.scenery == [plain, spotted, spotted]
    properties = {p.key: p.value for p in onnx.load_model(path).metadata_props}
    facts = json.loads(properties["vafer"])["training"]
    assert (facts["scenery"], facts["set_aside"], facts["face_free"]) == (1, 1, 2)


def test_another_training_in_the_folder_is_refused(material: Material, tmp_path: Path) -> None:
    config = DetectorConfig(steps=2, warmup=2)
    material.scenery.append(frame(n_faces=0))
    train_detector(material, tmp_path, config, workers=0)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(
        UsageError,
        match=r"another training, there against here: steps 2 against 4\. .*another --out",
    ):
        train_detector(material, tmp_path, replace(config, steps=4), workers=0)
    kinds = (material.scenery, material.people, material.portraits, material.frames)
    for pictures in (*kinds, material.face_free):
        pictures.append(frame(n_faces=1))
        with pytest.raises(UsageError, match="another training, there against here: material "):
            train_detector(material, tmp_path, config, workers=0)
        pictures.pop()
    assert (tmp_path / "last.pt").read_bytes() == before


def test_what_an_older_vafer_left_is_another_training(material: Material, tmp_path: Path) -> None:
    torch.save({"step": 2, "calls": []}, tmp_path / "last.pt")
    with pytest.raises(UsageError, match="another training"):
        train_detector(material, tmp_path, DetectorConfig(steps=2), workers=0)


def test_a_checkpoint_that_breaks_off_is_named(material: Material, tmp_path: Path) -> None:
    config = DetectorConfig(steps=2, warmup=2)
    train_detector(material, tmp_path, config, workers=0)
    whole = (tmp_path / "last.pt").read_bytes()
    for rest in (b"", whole[: len(whole) // 2]):
        (tmp_path / "last.pt").write_bytes(rest)
        with pytest.raises(UsageError, match=r"last\.pt cannot be gone on with .* damaged"):
            train_detector(material, tmp_path, config, workers=0)


@pytest.mark.parametrize("what", ["a loss", "a weight"])
def test_what_is_not_finite_is_not_kept(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = DetectorConfig(steps=4, warmup=2)
    update = run._Training.update

    def broken(self: run._Training, batch: run.Batch, step: int) -> dict[str, torch.Tensor]:
        losses = update(self, batch, step)
        if step == 4 and what == "a weight":
            next(iter(self.net.parameters())).data[0] = torch.nan
        elif step == 4:
            losses["box"] = torch.tensor(torch.inf)
        return losses

    monkeypatch.setattr(run._Training, "update", broken)
    says = "box is inf" if what == "a loss" else "the norm of the parameters is nan"
    with pytest.raises(DivergedError, match=f"iteration 4: {says}.*last.pt is of before"):
        train_detector(material, tmp_path, config, workers=0)
    assert torch.load(tmp_path / "last.pt")["step"] == 2
    assert not (tmp_path / "detector.onnx").exists()


def test_a_log_without_a_checkpoint_begins_anew(material: Material, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 2}\n{"step": 4, "sco')
    train_detector(material, tmp_path, DetectorConfig(steps=2, warmup=2), workers=0)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line).keys() == {"step", "score", "box", "points"}


@pytest.mark.parametrize("option", ["steps", "scale"])
def test_impossible_options_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} 0: expected 1 or more"):
        DetectorConfig(**{option: 0})


@pytest.mark.parametrize("enough", [1, 2])
def test_scores_are_shifted_by_pictures_set_aside(
    material: Material,
    composers: list[Composer],
    enough: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"BLOCK": 1, "SET_ASIDE": 2, "ENOUGH": enough}.items():
        monkeypatch.setattr(run, name, value)
    plain, spotted = nothing(64, 96), nothing(64, 96, (32, 32))
    material.scenery.extend([plain, spotted, plain, plain])  # the last is trained on as well
    path = train_detector(material, tmp_path, DetectorConfig(steps=4, warmup=2), workers=0)
    for composer in composers:
        assert composer.material.scenery == [plain, plain]
    properties = {p.key: p.value for p in onnx.load_model(path).metadata_props}
    facts = json.loads(properties["vafer"])["training"]
    assert (facts["scenery"], facts["set_aside"]) == (2, 1)
    if enough > 1:
        assert facts["shift"] == 0
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = (spotted.picture().transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 128
    scores = np.concatenate(session.run(None, {"input": x})[:3])
    assert scores.max() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_without_a_logit_give_a_shift(score: float) -> None:
    assert abs(shift_for(np.full(9, score))) < 20


def test_a_share_of_scores_stays_above_a_half() -> None:
    scores = np.random.default_rng(0).uniform(0.01, 0.9, 2000)
    shift = shift_for(scores)
    shifted = 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) - shift)))
    assert (shifted >= 0.5).mean() == pytest.approx(run.FALSE_FACES, abs=1e-3)


def test_bfloat16_comes_near_single_precision(material: Material, tmp_path: Path) -> None:
    last = []
    for bf16 in (False, True):
        config = DetectorConfig(steps=2, warmup=2, bf16=bf16)
        train_detector(material, tmp_path / f"{bf16}", config, workers=0)
        last.append(json.loads((tmp_path / f"{bf16}/log.jsonl").read_text()))
    assert last[0] != last[1]
    for name in ("score", "box", "points"):
        assert last[1][name] == pytest.approx(last[0][name], rel=0.05)


def _stop_at(step: int) -> Callable[[str], None]:
    def stop(text: str) -> None:
        if f"'step': {step}," in text:
            raise InterruptedError

    return stop


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
    assert picture[18, 14, 0] > 200
    assert picture[18, 34, 2] > 200
