"""Arousal of a model set by two expressions, of faces that it is not scored on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.toys import toy_faces
from train.calibrate import AROUSAL, calibrated, main, predict
from train.data import FaceSet, Split
from train.sets import FACE_NORMS
from vafer.errors import UsageError
from vafer.model import Model, load_model, save_model

NAMES = ("sad", "neutral", "happy")


def named(faces: FaceSet, model: Model) -> FaceSet:
    """Faces whose expressions go with the arousal that the model gives them."""
    arousal = predict(model, faces)[:, AROUSAL]
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
    values = np.concatenate([predict(model, faces)[:, column] for faces in split.train])
    names = np.concatenate([faces.expressions for faces in split.train])
    return {name: float(values[names == name].mean()) for name in ("neutral", "happy")}


def test_neutral_faces_read_0_and_happy_ones_their_label(model: Model, split: Split) -> None:
    valence, before = means(model, split, 0), predict(model, split.held_out[0])
    card = calibrated(model, split)
    found = means(model, split, AROUSAL)
    assert found["neutral"] == pytest.approx(0, abs=1e-4)
    assert found["happy"] == pytest.approx(FACE_NORMS["happy"][AROUSAL], abs=1e-4)
    assert means(model, split, 0) == pytest.approx(valence, abs=1e-6)
    assert card.training["calibration"]["detector_sha256"] == "of the detector"
    after = predict(model, split.held_out[0])
    slope, offset = np.polyfit(before[:, AROUSAL], after[:, AROUSAL], 1)
    assert card.training["calibration"]["arousal"] == (
        f"{slope:.4f} × (arousal − {-offset / slope:.4f})"
    )
    scored = card.metrics["held_out"]
    assert scored["n_faces"] == 64
    difference = after[:, AROUSAL] - split.held_out[0].labels[:, AROUSAL]
    assert scored["arousal"]["rmse"] == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-4)


def test_what_cannot_be_calibrated_is_refused(model: Model, split: Split) -> None:
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
    twice = Model(model.net, calibrated(model, split))
    with pytest.raises(UsageError, match="is calibrated: expected a model as it was trained"):
        calibrated(twice, split)


def test_the_command_writes_another_file(
    model: Model, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked: list[object] = []

    def given(crop: object, *paths: object) -> Split:
        asked.extend((crop, *paths))
        return split

    monkeypatch.setattr("train.calibrate.split_by_name", given)
    save_model(tmp_path / "mine.safetensors", model.net, model.card)
    before = (tmp_path / "mine.safetensors").read_bytes()
    arguments = ["mine.safetensors", "FACES", "detector.onnx", "calibrated.safetensors"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["calibrate", *arguments])
    assert main() == 0
    assert asked == [model.card.crop, Path("FACES"), Path("detector.onnx"), None]
    assert (tmp_path / "mine.safetensors").read_bytes() == before
    found = load_model(tmp_path / "calibrated.safetensors")
    assert means(found, split, AROUSAL)["neutral"] == pytest.approx(0, abs=1e-4)
    assert found.card.training["calibration"]["arousal"] in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["calibrate", "gone.safetensors", *arguments[1:]])
    assert main() == 2
    assert "gone.safetensors: no such model file" in capsys.readouterr().err
