"""The last layer of a model, fitted to the expressions of the faces that it was trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.train.toys import toy_faces
from train.calibrate import MET, calibrated, constrained_least_squares, main, split_of
from train.data import FaceSet, Split
from train.evaluation import predict_faces
from train.sets import FACE_NORMS, NO_IDENTITY, fold_of
from vafer.errors import UsageError
from vafer.model import Model, ModelCard, load_model, read_card, save_model
from vafer.onnx_file import onnx_weights_sha256

NAMES = ("sad", "neutral", "happy")
LAST = "regressor.6."


def named(faces: FaceSet) -> FaceSet:
    """Faces whose expressions go with their brightness."""
    third = np.searchsorted((-0.25, 0.25), faces.labels[:, 0])
    return replace(faces, expressions=np.array(NAMES, object)[third])


@pytest.fixture
def model(untrained: Path) -> Model:
    return load_model(untrained)


@pytest.fixture
def split() -> Split:
    train, held_out = named(toy_faces(128)), named(toy_faces(64, name="held_out", seed=1))
    rows = np.arange(128)
    parts = (train.where(rows < 40, name="a"), train.where(rows >= 40, name="b"))
    return Split(parts, (held_out,), {"detector_sha256": "of the detector"})


def seen(model: Model, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """What a model makes of the faces that are trained on, and their names."""
    predicted = np.concatenate([predict_faces(model, faces) for faces in split.train])
    return predicted, np.concatenate([faces.expressions for faces in split.train])


def test_neutral_and_happy_faces_read_the_points_of_their_names(model: Model, split: Split) -> None:
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    found = calibrated(model, split)
    predicted, names = seen(found, split)
    for name in MET:  # but for the few that are clipped
        np.testing.assert_allclose(
            predicted[names == name].mean(axis=0), FACE_NORMS[name], atol=5e-3
        )
    for name, value in found.net.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], before[name])  # as it was
        assert torch.equal(value, before[name]) != name.startswith(LAST)
    facts = found.card.training["calibration"]
    assert facts["n_faces"] == 128
    assert facts["means"] == {"neutral": [0.0, 0.0], "happy": [0.66, 0.33]}
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
    with pytest.raises(UsageError, match="no neutral and no happy face to calibrate by"):
        calibrated(model, replace(split, train=tuple(sad)))
    weights = model.net.state_dict()
    weights["regressor.4.weight"].zero_()  # so that its last layer is given the same of all faces
    with pytest.raises(UsageError, match="cannot tell neutral from happy faces: expected a train"):
        calibrated(model, split)


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
    save_model(path, model.net, card)
    before = path.read_bytes()
    command = ["calibrate", str(path), str(few_faces), str(yunet), str(out), "--cache",
               str(tmp_path)]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    assert path.read_bytes() == before
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: fitted to ")
    assert "lfw_test valence PCC" in printed
    facts = load_model(out).card.training["calibration"]
    assert facts["from_weights_sha256"] == read_card(path).weights_sha256
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
