"""Crops against OpenCV's own warp, and the closed-form similarity against least squares."""

import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vafer.crops import FACE_TEMPLATE, CropSpec, Patch, cut, cut_and_warp, similarity, warp
from vafer.errors import ModelError

RNG = np.random.default_rng(0)


def smooth_image(height: int, width: int) -> np.ndarray:
    small = RNG.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def turned(scale: float, degrees: float, x: float, y: float, size: int) -> np.ndarray:
    """The map that brings a face at (x, y) to the middle of the crop."""
    matrix = cv2.getRotationMatrix2D((x, y), degrees, scale)
    matrix[:, 2] += size / 2 - np.array([x, y])
    return matrix


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.51, 3),
    degrees=st.floats(-180, 180),
    x=st.floats(-20, 220),
    y=st.floats(-20, 170),
)
def test_warp_equals_opencv(scale: float, degrees: float, x: float, y: float) -> None:
    image = smooth_image(150, 200)
    matrix = turned(scale, degrees, x, y, 64)
    expected = cv2.warpAffine(image, matrix, (64, 64), borderMode=cv2.BORDER_REPLICATE)
    found = warp([cut(image, matrix, 64)], 64)[0].permute(1, 2, 0).numpy()
    # OpenCV places samples on a grid of 1/32 pixel; this image changes by up to 60 a pixel.
    assert np.abs(found - expected).max() <= 4
    assert np.abs(found - expected).mean() <= 0.6


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_large_faces_are_averaged_not_skipped(factor: int) -> None:
    image = RNG.integers(0, 256, (64 * factor, 64 * factor, 3), dtype=np.uint8)
    matrix = np.array([[1 / factor, 0, 0.5 / factor - 0.5], [0, 1 / factor, 0.5 / factor - 0.5]])
    expected = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    found = warp([cut(image, matrix, 64)], 64)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_a_batch_gives_what_its_members_give_alone() -> None:
    image = smooth_image(300, 400)
    patches = [
        cut(image, turned(s, a, x, y, 56), 56)
        for s, a, x, y in [(0.1, 5, 200, 150), (2, 40, 390, 5), (0.7, -90, -10, 290)]
    ]
    together = warp(patches, 56)
    alone = torch.cat([warp([p], 56) for p in patches])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)
    assert warp([], 56).shape == (0, 3, 56, 56)


def test_a_patch_of_a_large_face_is_small() -> None:
    image = smooth_image(2000, 2000)
    patch = cut(image, turned(1 / 12, 30, 1000, 1000, 112), 112)
    assert max(patch.pixels.shape) < 112 * 2 * 1.5


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_similarity_is_the_least_squares_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, template = rng.normal(size=(5, 2)) * 50 + 100, np.array(FACE_TEMPLATE) * 112
    # a x − b y + c = u and b x + a y + d = v, stacked over the five points.
    rows = [[x, -y, 1, 0] for x, y in points] + [[y, x, 0, 1] for x, y in points]
    a, b, c, d = np.linalg.lstsq(np.array(rows), template.T.ravel(), rcond=None)[0]
    expected = np.array([[a, -b, c], [b, a, d]])
    np.testing.assert_allclose(similarity(points[None], template)[0], expected, atol=1e-8)


def test_coinciding_landmarks_stay_finite() -> None:
    matrix = similarity(np.full((1, 5, 2), 30.0), np.array(FACE_TEMPLATE) * 112)
    np.testing.assert_allclose(matrix[0, :, :2], np.eye(2))


def test_aligned_crop_brings_the_landmarks_onto_the_template() -> None:
    spec = CropSpec(size=112)
    target = np.array(FACE_TEMPLATE) * 112
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * 3.1
    landmarks = (target @ turn.T + [500, 300])[None]
    matrix = spec.matrices(np.zeros((1, 4)), landmarks)[0]
    np.testing.assert_allclose(landmarks[0] @ matrix[:, :2].T + matrix[:, 2], target, atol=1e-6)


def test_box_crop_shows_the_box_with_its_margin() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[30:70, 20:60] = 255  # rows 30..69, columns 20..59
    spec = CropSpec(kind="box", size=40)
    exact = warp([cut(image, spec.matrices(np.array([[20, 30, 60, 70]]), None)[0], 40)], 40)
    assert exact.min() == 255
    wide = CropSpec(kind="box", size=80, margin=1.0)
    shown = warp([cut(image, wide.matrices(np.array([[20, 30, 60, 70]]), None)[0], 80)], 80)[0, 0]
    assert shown[20:60, 20:60].min() == 255
    assert shown.sum().item() == pytest.approx(255 * 40 * 40)


def test_a_stretched_crop_shows_the_box_alone_with_its_margin() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[30:70, 20:40] = 255  # 40 rows, 20 columns
    box = np.array([[20, 30, 40, 70]])
    spec = CropSpec(kind="stretched", size=40)
    exact = warp([cut(image, spec.matrices(box, None)[0], 40)], 40)
    assert exact[..., 1:-1].min() > 254
    wide = CropSpec(kind="stretched", size=80, margin=1.0)
    shown = warp([cut(image, wide.matrices(box, None)[0], 80)], 80)[0, 0]
    assert shown[21:59, 21:59].min() > 254
    assert shown.sum().item() == pytest.approx(255 * 40 * 40, rel=0.02)


@pytest.mark.parametrize("kind", ["aligned", "box", "stretched"])
def test_a_widened_crop_holds_the_crop_in_its_middle(kind: str) -> None:
    image = smooth_image(300, 300)
    landmarks = (np.array(FACE_TEMPLATE) * 60 + 110)[None]
    boxes = np.array([[110.0, 110, 170, 170]])
    spec = CropSpec(kind=kind, size=48)
    wide = spec.widened(8)
    small = warp([cut(image, spec.matrices(boxes, landmarks)[0], 48)], 48)
    large = warp([cut(image, wide.matrices(boxes, landmarks)[0], 64)], 64)
    torch.testing.assert_close(large[:, :, 8:-8, 8:-8], small, atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", ["aligned", "box"])
@pytest.mark.parametrize(("along", "aspect"), [(1, 2.0), (0, 0.5)])
def test_a_crop_shows_a_face_as_it_is_displayed(kind: str, along: int, aspect: float) -> None:
    stored = smooth_image(200, 200)
    sides = (400, 200) if along else (200, 400)  # each pixel twice as wide, or as high
    displayed = cv2.resize(stored, sides, interpolation=cv2.INTER_LINEAR)
    centres = (np.array(FACE_TEMPLATE) * 60 + 70)[None]  # of what is displayed
    edges = np.array([[65.0, 75, 135, 145]])
    half = np.where(np.arange(2) == 1 - along, 2, 1)
    landmarks, boxes = (centres + 0.5) / half - 0.5, edges / np.tile(half, 2)
    spec = CropSpec(kind=kind, size=48)
    found = spec.matrices(boxes, landmarks, pixel_aspect=np.array([aspect]))
    crop = warp([cut(stored, found[0], 48)], 48)
    expected = warp([cut(displayed, spec.matrices(edges, centres)[0], 48)], 48)
    torch.testing.assert_close(crop, expected, atol=5, rtol=0)
    squeezed = warp([cut(stored, spec.matrices(boxes, landmarks)[0], 48)], 48)
    assert (squeezed - expected).abs().max() > 10


def test_normalise_and_grey() -> None:
    crops = torch.tensor([255.0, 0.0, 51.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    plain = CropSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1)).normalise(crops)
    assert plain[0, :, 0, 0].tolist() == pytest.approx([2.0, -1.0, -0.3])
    grey = CropSpec(mean=(0, 0, 0), std=(1, 1, 1), grey=True).normalise(crops)
    assert grey[0, :, 0, 0].tolist() == pytest.approx([0.299 + 0.114 * 0.2] * 3)


def test_spec_survives_json_and_refuses_nonsense() -> None:
    spec = CropSpec(kind="box", size=224, margin=0.3, grey=True)
    assert CropSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    for wrong in (
        {"kind": "oval"},
        {"size": 0},
        {"template": [[0, 0]]},
        {"margin": -1},
        {"margin": float("nan")},
        {"size": 64.5},
        {"size": True},
        {"template": [[float("nan"), 0]] * 5},
        {"mean": [10**400, 0, 0]},
        {"std": [1, 1, float("nan")]},
        {"mean": [0, 0, float("inf")]},
        {"std": [1, 1, 0]},
        {"colour": "red"},
        {"mean": ["a", "b", "c"]},
    ):
        with pytest.raises(ModelError):
            CropSpec.from_dict(wrong)
    with pytest.raises(ModelError, match="landmarks"):
        CropSpec().matrices(np.zeros((1, 4)), None)


def test_a_crop_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(0)
    patches = [
        Patch(
            rng.integers(0, 255, (int(h), int(w), 3), np.uint8),
            np.array([[s, -t, 9], [t, s, 5]]),
        )
        for h, w, s, t in zip(
            rng.integers(60, 230, 9), rng.integers(60, 230, 9),
            rng.uniform(0.5, 1.6, 9), rng.uniform(-0.3, 0.3, 9), strict=True,
        )
    ]  # fmt: skip
    whole = warp(patches, 64)
    assert torch.equal(torch.cat([warp([patch], 64) for patch in patches]), whole)
    assert torch.equal(torch.cat([warp(patches[:2], 64), warp(patches[2:], 64)]), whole)


def test_crops_made_on_a_device_equal_those_in_memory() -> None:
    """Faces of every size, turned, within the picture, over its edges and beside it."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 120, 170, 3), dtype=np.uint8)
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 1) for frame in frames])
    matrices, of_frame = [], []
    for factor in (0.4, 1.0, 2.3, 5.0, 5.9):
        for shift in (-20.0, 3.0, 60.0, 400.0):
            turn = rng.uniform(-0.5, 0.5)
            matrices.append([[1 / factor, turn / factor, -20 / factor],
                             [-turn / factor, 1 / factor, shift / factor]])  # fmt: skip
            of_frame.append(rng.integers(3))
    maps = np.array(matrices)
    expected = warp(
        [cut(frames[k], matrix, 24) for k, matrix in zip(of_frame, maps, strict=True)], 24
    )
    found = cut_and_warp(torch.from_numpy(frames), np.array(of_frame), maps, 24)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1.001)  # of rounding
    assert np.abs(found.numpy() - expected.numpy()).mean() < 0.05
    alone = cut_and_warp(torch.from_numpy(frames), np.array(of_frame[:1]), maps[:1], 24)
    torch.testing.assert_close(alone, found[:1])
    assert cut_and_warp(torch.from_numpy(frames), np.array([], int), maps[:0], 24).shape[0] == 0
