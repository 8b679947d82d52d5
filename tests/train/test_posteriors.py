"""Posteriors come from networks that never saw the face, and grade its label."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.toys import CPU, toy_faces
from train import posteriors
from train.data import FaceSet
from train.posteriors import CrossFit, cross_fitted, make_classifier

NAMES = ["dark", "bright"]


def named_faces(n: int = 96) -> tuple[FaceSet, np.ndarray]:
    """Faces called by their brightness, and persons of four faces each."""
    faces = toy_faces(n)
    names = np.array(NAMES, object)[(faces.labels[:, 0] > 0).astype(int)]
    return replace(faces, expressions=names), np.array([f"person {i // 4}" for i in range(n)])


def fitted(faces: FaceSet, groups: np.ndarray, cache: Path, **changes: float) -> np.ndarray:
    options = CrossFit(**({"n_folds": 2, "epochs": 1, "width": 8} | changes))  # type: ignore[arg-type]
    return cross_fitted([faces], NAMES, groups, cache, options=options, key="toy", device=CPU)


def test_nobody_is_predicted_by_a_network_that_saw_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, groups = named_faces()
    trained_on: list[set[str]] = []
    predicted: list[set[str]] = []

    def train(crops: torch.Tensor, labels: np.ndarray, rows: torch.Tensor, n: int, *_: object):  # type: ignore[no-untyped-def]
        trained_on.append({*groups[rows.numpy()]})
        return make_classifier(n, 8).eval()

    whole = posteriors._posteriors

    def predict(net: torch.nn.Module, crops: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
        predicted.append({*groups[rows.numpy()]})
        return whole(net, crops, rows)

    monkeypatch.setattr(posteriors, "_train", train)
    monkeypatch.setattr(posteriors, "_posteriors", predict)
    found = fitted(faces, groups, tmp_path, n_folds=3)
    assert found.shape == (len(faces), 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert len(trained_on) == 3
    assert all(not a & b for a, b in zip(trained_on, predicted, strict=True))
    assert set.union(*predicted) == {*groups}

    fitted(faces, groups, tmp_path, n_folds=3)
    assert len(trained_on) == 3  # all of it was kept


def test_posteriors_learn_what_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        posteriors, "vary", lambda crops, side, draws: crops[..., 4:-4, 4:-4].float()
    )
    # Each crop is seen in its own light and mirrored, so what is named is its slope from the top.
    faces, groups = named_faces(160)
    names = np.array(NAMES, object)[(faces.labels[:, 1] > 0).astype(int)]
    assert isinstance(faces.crops, np.ndarray)
    faces = replace(faces, expressions=names, crops=faces.crops.swapaxes(2, 3))
    found = fitted(faces, groups, tmp_path, epochs=12, width=32, batch=16, ema_decay=0.8, lr=2e-3)
    said = np.array(NAMES)[found.argmax(axis=1)]
    assert (said == faces.expressions).mean() > 0.8


def test_a_finished_fold_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces, groups = named_faces()
    first = fitted(faces, groups, tmp_path)
    [folder] = tmp_path.iterdir()
    (folder / "1.npy").unlink()
    made: list[int] = []
    train = posteriors._train

    def counted(*arguments: object):  # type: ignore[no-untyped-def]
        made.append(1)
        return train(*arguments)

    monkeypatch.setattr(posteriors, "_train", counted)
    np.testing.assert_array_equal(fitted(faces, groups, tmp_path), first)
    assert len(made) == 1


def test_smoothing_is_taken_out_of_posteriors() -> None:
    truth = np.array([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]])
    smoothed = truth * 0.9 + 0.1 / 3
    np.testing.assert_allclose(posteriors.without_smoothing(smoothed, 0.1), truth, atol=1e-12)
    flat = posteriors.without_smoothing(np.full((1, 3), 1 / 3), 0.1)
    np.testing.assert_allclose(flat, 1 / 3)
