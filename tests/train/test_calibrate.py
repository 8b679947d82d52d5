"""The last layer of a model, fitted to the expressions of the faces that it was trained on."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.train.toys import toy_faces
from train import calibrate, evaluation
from train.calibrate import ANCHORS, calibrated, constrained_least_squares, main, split_of
from train.data import FaceSet, Split
from train.evaluation import predict_faces
from train.sets import FACE_NORMS, NO_IDENTITY, fold_of
from vafer.errors import UsageError
from vafer.model import Model, load_model, read_card, save_model
from vafer.onnx_file import onnx_weights_sha256

NAMES = ("sad", "neutral", "happy")
LAST = "regressor.6."


def named(faces: FaceSet) -> FaceSet:
    """Faces whose expressions go with their brightness."""
    third = np.searchsorted((-0.25, 0.25), faces.labels[:, 0])
    return replace(faces, expressions=np.array(NAMES, object)[third])


@pytest.fixture
def model(untrained: Path) -> Model:
    """One that was trained by a procedure, of which only its card knows."""
    model = load_model(untrained)
    crops = torch.from_numpy(toy_faces(128).crops)[..., 4:-4, 4:-4].float().expand(-1, 3, -1, -1)
    before = model.net.regressor[:-3](model.predict_with_features(crops)[1])
    units = model.net.regressor[-3]
    found = units(before)
    units.weight.div_(found.std(dim=0)[:, None])  # so that faces differ by more than rounding
    units.bias.copy_(units.bias + 0.5 - units(before).mean(dim=0))
    model.card = replace(model.card, training={"procedure": {"seed": 3}})
    return model


@pytest.fixture
def split() -> Split:
    train, held_out = named(toy_faces(128)), named(toy_faces(64, name="held_out", seed=1))
    rows = np.arange(128)
    parts = (train.where(rows < 40, name="a"), train.where(rows >= 40, name="b"))
    return Split(parts, (held_out,), {})


def seen(model: Model, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """What a model makes of the faces that are trained on, and their names."""
    predicted = np.concatenate([predict_faces(model, faces) for faces in split.train])
    return predicted, np.concatenate([faces.expressions for faces in split.train])


def inputs_of_the_last_layer(model: Model, split: Split) -> np.ndarray:
    """(N, 9) of the faces that are trained on; the last is 1."""
    given: list[torch.Tensor] = []
    hook = model.net.regressor[-1].register_forward_pre_hook(lambda _, x: given.append(x[0]))
    seen(model, split)
    hook.remove()
    return np.column_stack([torch.cat(given).double().numpy(), np.ones(len(torch.cat(given)))])


def test_the_last_layer_is_the_fit_to_all_faces_and_nothing_else_changes(
    model: Model, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 50)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    found = calibrated(model, split, "of the detector")
    for name, value in found.net.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], before[name])  # as it was
        assert torch.equal(value, before[name]) != name.startswith(LAST)
    predicted, names = seen(found, split)
    inputs = inputs_of_the_last_layer(model, split)
    assert inputs.shape == (128, 9)
    last = found.net.regressor[-1]
    read = inputs @ np.column_stack([last.weight, last.bias]).astype(float).T
    np.testing.assert_allclose(predicted, read.clip(-1, 1), atol=1e-3)
    for name in ANCHORS:
        np.testing.assert_allclose(read[names == name].mean(axis=0), FACE_NORMS[name], atol=1e-3)
    # By what leaves these means as they are, nothing more can be gained.
    means = np.array([inputs[names == name].mean(axis=0) for name in ANCHORS])
    moved = inputs @ np.linalg.svd(means)[2][len(ANCHORS) :].T
    off = np.array([FACE_NORMS[name] for name in names]) - read
    gained = np.linalg.lstsq(moved, off, rcond=1e-6)[0]
    np.testing.assert_allclose(moved @ gained, 0, atol=2e-3)


def test_the_card_tells_of_it_and_of_what_was_held_out(model: Model, split: Split) -> None:
    found = calibrated(model, split, "of the detector")
    assert found.card.training == model.card.training | {
        "calibration": {
            "last_layer": "least squares to the points of the expressions",
            "n_faces": 128,
            "means": {"neutral": [0.0, 0.0], "happy": [0.66, 0.33]},
            "from_weights_sha256": model.card.weights_sha256,
            "detector_weights_sha256": "of the detector",
        }
    }
    scored = found.card.metrics["held_out"]
    assert scored["n_faces"] == 64
    faces = split.held_out[0]
    difference = predict_faces(found, faces) - faces.labels
    rmse = np.sqrt((difference**2).mean(axis=0))
    assert [scored[d]["rmse"] for d in ("valence", "arousal")] == pytest.approx(rmse, rel=1e-4)


def test_the_fit_is_the_nearest_that_meets_the_conditions() -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(50, 5)), rng.normal(size=(50, 2))
    means, wanted = inputs[:20].reshape(2, 10, 5).mean(axis=1), np.array([[0, 0], [0.7, 0.3]])
    found = constrained_least_squares(inputs, targets, means, wanted)
    np.testing.assert_allclose(means @ found, wanted, atol=1e-12)
    larger = constrained_least_squares(inputs * 1000, targets, means * 1000, wanted)
    np.testing.assert_allclose(larger, found / 1000, rtol=1e-6)
    least = ((inputs @ found - targets) ** 2).sum(axis=0)
    free = np.linalg.svd(means)[2][2:]  # what may be added without moving the means
    for step in (*free, *-free):
        moved = found + 1e-3 * step[:, None]
        np.testing.assert_allclose(means @ moved, wanted, atol=1e-12)
        assert (((inputs @ moved - targets) ** 2).sum(axis=0) > least).all()


def test_a_fit_without_conditions_is_the_ordinary_one() -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    found = constrained_least_squares(inputs, targets, np.empty((0, 4)), np.empty((0, 2)))
    np.testing.assert_allclose(found, np.linalg.lstsq(inputs, targets, rcond=None)[0])


def test_what_cannot_be_fitted_is_refused(model: Model, split: Split) -> None:
    sad = [replace(f, expressions=np.full(len(f), "sad", object)) for f in split.train]
    with pytest.raises(UsageError, match="no neutral and no happy face is among the 128 that"):
        calibrated(model, replace(split, train=tuple(sad)))
    weights = model.net.state_dict()
    weights["regressor.4.weight"].mul_(1e-12)  # so that all faces look alike to the last layer
    with pytest.raises(UsageError, match=r"faces too badly .* would be .*, expected \[\[0.0, 0.0"):
        calibrated(model, split)
    weights["regressor.4.weight"].fill_(torch.nan)
    with pytest.raises(UsageError, match="gives NaN for some faces"):
        calibrated(model, split)


FEW = {"fer_train": {"faces": 24}, "lfw_train": {"faces": 43}}  # of `few_faces`


def trained(path: Path, model: Model, **changes: object) -> Path:
    """A model's file that says of itself that it was trained on `few_faces`."""
    data = {"dataset": "faces", "fold": 1, "n_folds": 4}
    facts = {"procedure": {"data": data}, "sets": FEW, **changes}
    save_model(path, model.net, replace(model.card, training=facts))
    return path


def test_the_faces_are_those_that_the_model_was_trained_on(
    model: Model, few_faces: Path, yunet: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    found = split_of(trained(path, model), few_faces, yunet, tmp_path)
    persons = pl.read_parquet(few_faces / "lfw_expressions.parquet")["identity"]
    held_out = {name for name in persons if fold_of(name, 4) == 1 and name != NO_IDENTITY}
    assert held_out
    assert {*found.held_out[1].subjects} == held_out
    assert not held_out & {*found.train[1].subjects}
    affectnet = {"data": {"dataset": "affectnet", "fold": 1, "n_folds": 4}}
    for changes, says in (
        ({"procedure": None}, r"mine\.safetensors does not say that it was trained on .* faces"),
        ({"procedure": {"data": {"dataset": "faces", "fold": "x", "n_folds": 4}}}, "does not say"),
        ({"procedure": affectnet}, "does not say"),
        ({"calibration": {}}, "is calibrated already: expected a model as it was trained"),
        (
            {"sets": FEW | {"lfw_train": {"faces": 10_861}}},
            r"holds 43 faces of lfw_train, .*mine\.safetensors was trained on 10,861: expected the",
        ),
    ):
        with pytest.raises(UsageError, match=says):
            split_of(trained(path, model, **changes), few_faces, yunet, tmp_path)


def test_the_command_writes_another_file(
    model: Model, few_faces: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path, out = tmp_path / "mine.safetensors", tmp_path / "calibrated.safetensors"
    model.card = replace(model.card, text="# Of the model before")
    trained(path, model)
    before = path.read_bytes()
    command = ["calibrate", str(path), str(few_faces), str(yunet), str(out), "--cache",
               str(tmp_path)]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(calibrate, "TOLERANCE", 1.0)  # the network never learnt to tell them
    assert main() == 0
    assert path.read_bytes() == before
    printed, told = capsys.readouterr()
    assert printed.startswith(f"{out}: fitted to 67 faces\n")
    assert "lfw_test valence PCC" in printed
    assert re.search(r"^fitting to 67 faces, then scoring \d+ that were held out", told, re.M)
    card = load_model(out).card
    assert (card.name, card.text) == ("calibrated", "")
    facts = card.training["calibration"]
    assert facts["from_weights_sha256"] == read_card(path).weights_sha256
    assert facts["detector_weights_sha256"] == onnx_weights_sha256(yunet)
    assert main() == 2
    assert "calibrated.safetensors is there already" in capsys.readouterr().err
    for wrong in (tmp_path / "other", tmp_path / "no" / "folder.safetensors"):
        monkeypatch.setattr("sys.argv", [*command[:4], str(wrong)])
        assert main() == 2
        assert "expected a name that ends in .safetensors, in a folder" in capsys.readouterr().err
    other = str(tmp_path / "other.safetensors")
    monkeypatch.setattr("sys.argv", [*command[:4], other])
    with monkeypatch.context() as context:
        context.setattr("os.access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
        assert main() == 2
    assert "other.safetensors cannot be written: expected a folder" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*command[:1], str(tmp_path / "gone"), *command[2:4], other])
    assert main() == 2
    assert "gone: no such file" in capsys.readouterr().err
