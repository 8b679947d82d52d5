"""Drawn faces: labels and looks are distributed as documented, and pixels show the labels."""

from typing import Any

import numpy as np
import pytest

from train import synthetic
from train.synthetic import DrawnFaces, draw_faces
from vafer.errors import UsageError
from vafer.metrics import pcc


def of_identities(faces: DrawnFaces, n_each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Looks, means of labels and variances of labels within each identity."""
    labels = faces.labels.reshape(-1, n_each, 2)
    return faces.looks[::n_each], labels.mean(axis=1), labels.var(axis=1, ddof=1)


def test_shapes_and_names() -> None:
    n = 3 * 15  # more than are painted at once, and no multiple of it
    faces = draw_faces(3, 15, size=20, seed=0, prefix="train")
    assert (faces.crops.shape, faces.crops.dtype) == ((n, 20, 20, 3), np.uint8)
    assert (faces.labels.shape, faces.labels.dtype) == ((n, 2), np.float32)
    assert (faces.looks.shape, faces.looks.dtype) == ((n, 3), np.float32)
    assert faces.subjects.tolist() == [s for i in range(3) for s in [f"train-{i:03d}"] * 15]
    assert all(len(np.unique(faces.looks[i * 15 : i * 15 + 15], axis=0)) == 1 for i in range(3))
    assert len(np.unique(faces.crops, axis=0)) == n


def test_same_seed_same_bytes() -> None:
    first, again = (draw_faces(4, 10, size=16, seed=7, confounding=0.5) for _ in range(2))
    for name in ("crops", "labels", "subjects", "looks"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    other = draw_faces(4, 10, size=16, seed=8, confounding=0.5)
    assert not np.array_equal(first.crops, other.crops)
    assert not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize("confounding", [0.0, 0.5, 0.9, 1.0])
def test_looks_follow_the_means_of_labels(confounding: float) -> None:
    looks, means, within = of_identities(
        draw_faces(400, 8, size=16, seed=1, confounding=confounding), 8
    )
    found = np.corrcoef(looks.T, means.T)[:3, 3:]
    expected = [[confounding, 0], [0, confounding], [0, 0]]
    np.testing.assert_allclose(found, expected, atol=0.15)  # three standard errors at 0
    between = means.var(axis=0, ddof=1) - within.mean(axis=0) / 8
    share = between / (between + within.mean(axis=0))
    np.testing.assert_allclose(share, 0.49 if confounding else 0.0, atol=0.08)


@pytest.mark.parametrize("confounding", [0.0, 0.9])
def test_distributions_are_alike_at_every_confounding(confounding: float) -> None:
    faces = draw_faces(400, 8, size=16, seed=2, confounding=confounding)
    radius = np.linalg.norm(faces.labels, axis=1)
    assert radius.max() <= 1
    assert np.mean(radius < 0.4) == pytest.approx(0.4**1.5, abs=0.05)
    assert np.mean(radius > 0.8) == pytest.approx(1 - 0.8**1.5, abs=0.05)
    deciles = np.quantile(faces.looks, np.linspace(0, 1, 11), axis=0)
    np.testing.assert_allclose(deciles, np.repeat(np.linspace(-1, 1, 11)[:, None], 3, 1), atol=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_subjects": 0}, "n_subjects of drawn faces is 0"),
        ({"n_each": 0}, "n_each of drawn faces is 0"),
        ({"size": 15}, "size of drawn faces is 15"),
        ({"confounding": -0.1}, "confounding of drawn faces is -0.1"),
        ({"confounding": 1.1}, "confounding of drawn faces is 1.1"),
        ({"confounding": float("nan")}, "confounding of drawn faces is nan"),
    ],
)
def test_what_cannot_be_drawn(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_faces(**{"n_subjects": 2, "n_each": 2, "size": 16, "seed": 0} | arguments)


EYES, MOUTH, BACKGROUND = np.s_[:, 18:34, 16:48], np.s_[:, 40:52, 20:44], np.s_[:, :, :6]


def paint(valence: float, arousal: float) -> np.ndarray:
    """Grey pictures (64, 64, 64) of one identity with one expression; all else by one seed."""
    labels = np.tile(np.array([valence, arousal], np.float32), (64, 1))
    looks, habits = np.zeros((64, 3), np.float32), np.zeros((64, synthetic.N_HABITS))
    crops = synthetic._paint(labels, looks, habits, 64, np.random.default_rng(0))
    return crops.astype(np.float64).mean(axis=3)


def test_valence_shows_at_the_mouth_and_arousal_at_the_eyes_too() -> None:
    valence = np.abs(paint(1, 0) - paint(-1, 0))
    arousal = np.abs(paint(0, 1) - paint(0, -1))
    assert valence[MOUTH].mean() > 5
    assert valence[MOUTH].mean() > 2 * valence[EYES].mean()
    assert arousal[EYES].mean() > 5
    assert arousal[MOUTH].mean() > 5
    assert valence[BACKGROUND].max() == arousal[BACKGROUND].max() == 0


@pytest.mark.parametrize("valence", [1.0, -1.0])
def test_corners_of_a_smile_go_up(valence: float) -> None:
    """The dark of the mouth lies higher at its corners than in its middle; a frown's, lower."""
    dark = -paint(valence, 0).mean(axis=0)[40:54]
    dark -= dark.min(axis=0)
    height = (np.arange(40, 54) @ dark) / dark.sum(axis=0)  # row, downwards, of each column
    corners = np.append(height[23:26], height[38:41])
    assert np.sign(height[29:35].mean() - corners.mean()) == valence


def test_a_line_reads_expressions_of_identities_it_has_not_seen() -> None:
    def grey(faces: DrawnFaces) -> np.ndarray:
        pixels = faces.crops.astype(np.float64).mean(axis=3).reshape(len(faces.crops), -1)
        return (pixels - pixels.mean(axis=1, keepdims=True)) / pixels.std(axis=1, keepdims=True)

    train, test = (draw_faces(n, 5, size=24, seed=n) for n in (600, 100))
    pixels, mean = grey(train), grey(train).mean(axis=0)
    pixels -= mean
    ridge = pixels.T @ pixels + 30 * np.eye(24 * 24)
    found = (grey(test) - mean) @ np.linalg.solve(ridge, pixels.T @ train.labels)
    valence, arousal = (pcc(test.labels[:, i], found[:, i]) for i in range(2))
    assert valence is not None
    assert arousal is not None
    assert valence > 0.3
    assert arousal > 0.5
