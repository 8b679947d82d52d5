"""Arousal of a model set by two expressions, of the faces that it was trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.train.toys import toy_faces
from train.calibrate import AROUSAL, calibrated, main, split_of
from train.data import FaceSet, Split
from train.evaluation import predict_faces
from train.sets import FACE_NORMS, NO_IDENTITY, fold_of
from vafer.errors import UsageError
from vafer.model import Model, ModelCard, load_model, save_model
from vafer.onnx_file import onnx_weights_sha256

NAMES = ("sad", "neutral", "happy")


def named(faces: FaceSet, model: Model) -> FaceSet:
    """Faces whose expressions go with the arousal that the model gives them."""
    arousal = predict_faces(model, faces)[:, AROUSAL]
    third = np.searchsorted(np.quantile(arousal, [1 / 3, 2 / 3]), arousal)
    return replace(faces, expressions=np.array(NAMES, object)[third])


@pytest.fixture
def model(untrained: Path) -> Model:
    model = load_model(untrained)
    last = model.net.regressor[-1]
    with torch.no_grad():  # so that toy faces lie about .2, far from the limits
        crops = (
            torch.from_numpy(toy_faces(128).crops).float()[..., 4:-4, 4:-4].expand(-1, 3, -1, -1)
        )
        raw = model.net(model.card.crop.normalise(crops))
        last.weight *= 0.05 / raw.std(dim=0)[:, None]
        last.bias.copy_(0.2 - (raw.mean(dim=0) - last.bias) * 0.05 / raw.std(dim=0))
    return model


@pytest.fixture
def split(model: Model) -> Split:
    train, held_out = named(toy_faces(128), model), toy_faces(64, name="held_out", seed=1)
    rows = np.arange(128)
    parts = (train.where(rows < 40, name="a"), train.where(rows >= 40, name="b"))
    return Split(parts, (named(held_out, model),), {"detector_sha256": "of the detector"})


def means(model: Model, split: Split, column: int) -> dict[str, float]:
    values = np.concatenate([predict_faces(model, faces)[:, column] for faces in split.train])
    names = np.concatenate([faces.expressions for faces in split.train])
    return {name: float(values[names == name].mean()) for name in ("neutral", "happy")}


def test_neutral_faces_read_0_and_happy_ones_the_point_of_their_name(
    model: Model, split: Split
) -> None:
    before = predict_faces(model, split.held_out[0])
    found = calibrated(model, split)
    arousal = means(found, split, AROUSAL)
    assert arousal["neutral"] == pytest.approx(0, abs=1e-4)
    assert arousal["happy"] == pytest.approx(FACE_NORMS["happy"][AROUSAL], abs=1e-4)
    assert means(found, split, 0) == pytest.approx(means(model, split, 0), abs=1e-6)
    np.testing.assert_array_equal(predict_faces(model, split.held_out[0]), before)  # as it was
    after = predict_faces(found, split.held_out[0])
    slope, offset = np.polyfit(before[:, AROUSAL], after[:, AROUSAL], 1)
    line = f"{slope:.4f} × (arousal − {-offset / slope:.4f})"
    assert found.card.training["calibration"] == {"arousal": line}
    scored = found.card.metrics["held_out"]
    assert scored["n_faces"] == 64
    difference = after[:, AROUSAL] - split.held_out[0].labels[:, AROUSAL]
    assert scored["arousal"]["rmse"] == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-4)


def test_without_two_expressions_in_order_there_is_no_line(model: Model, split: Split) -> None:
    swapped = {"neutral": "happy", "happy": "neutral"}
    others = [
        replace(f, expressions=np.array([swapped.get(e, e) for e in f.expressions], object))
        for f in split.train
    ]
    with pytest.raises(UsageError, match="gives neutral faces an arousal of"):
        calibrated(model, replace(split, train=tuple(others)))
    sad = [replace(f, expressions=np.full(len(f), "sad", object)) for f in split.train]
    with pytest.raises(UsageError, match="no happy and no neutral face to calibrate by"):
        calibrated(model, replace(split, train=tuple(sad)))


def trained(card: ModelCard, **data: object) -> ModelCard:
    facts = {"dataset": "faces", "labels": "graded", "fold": 1, "n_folds": 4, **data}
    return replace(card, training={"procedure": {"data": facts}})


def test_the_faces_are_those_that_the_model_was_trained_on(
    model: Model, few_faces: Path, yunet: Path, tmp_path: Path
) -> None:
    found = split_of(trained(model.card), few_faces, yunet, tmp_path)
    persons = pl.read_parquet(few_faces / "lfw_expressions.parquet")["identity"]
    held_out = {name for name in persons if fold_of(name, 4) == 1 and name != NO_IDENTITY}
    assert held_out
    assert {*found.held_out[1].subjects} == held_out
    assert not held_out & {*found.train[1].subjects}
    for card, says in (
        (model.card, "was trained on what its card does not say: expected dataset faces"),
        (trained(model.card, labels="norms"), "trained on dataset faces, labels norms"),
        (replace(model.card, training={"calibration": {}}), "is calibrated: expected a model as"),
    ):
        with pytest.raises(UsageError, match=says):
            split_of(card, few_faces, yunet, tmp_path)


def test_the_command_writes_another_file(
    model: Model, few_faces: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    card = trained(model.card)
    path, out = tmp_path / "mine.safetensors", tmp_path / "calibrated.safetensors"
    few = split_of(card, few_faces, yunet, tmp_path)
    own = means(model, few, AROUSAL)
    if own["neutral"] > own["happy"]:  # a network that learnt nothing may order them either way
        with torch.no_grad():
            model.net.regressor[-1].weight[AROUSAL] *= -1
    save_model(path, model.net, card)
    before = path.read_bytes()
    command = ["calibrate", str(path), str(few_faces), str(yunet), str(out), "--cache",
               str(tmp_path)]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    assert path.read_bytes() == before
    facts = load_model(out).card.training["calibration"]
    assert facts["arousal"] in capsys.readouterr().out
    assert not np.allclose(*(predict_faces(load_model(p), few.train[1]) for p in (path, out)))
    assert facts["detector_weights_sha256"] == onnx_weights_sha256(yunet)
    assert main() == 2
    assert "calibrated.safetensors is there already" in capsys.readouterr().err
    for wrong in (tmp_path / "other", tmp_path / "no" / "folder.safetensors"):
        monkeypatch.setattr("sys.argv", [*command[:4], str(wrong)])
        assert main() == 2
        assert "expected a name that ends in .safetensors, in a folder" in capsys.readouterr().err
    other = str(tmp_path / "other.safetensors")
    monkeypatch.setattr("sys.argv", [*command[:1], str(tmp_path / "gone"), *command[2:4], other])
    assert main() == 2
    assert "gone: no such model file" in capsys.readouterr().err
