"""Pictures moved, scaled and turned, and where boxes come to lie."""

import math

import cv2
import numpy as np

SMOOTHLY_SHRUNK = 0.5  # share; the others lose samples, as frames do that are shrunk for speed
LEAST_VIEW = 48.0  # pixels: shorter side of a part of a picture that is looked at closely


def similarity(
    scale: float, turn: float, at: np.ndarray, to: np.ndarray, *, mirror: bool
) -> np.ndarray:
    """Map (2, 3) that brings the point `at` to `to`, scaled, turned by radians, mirrored."""
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    return np.concatenate([linear, (to - linear @ at)[:, None]], axis=1)


def determinant(matrix: np.ndarray) -> float:
    """Of a map (2, 3): by how much it changes areas, negative where it mirrors."""
    (a, b, _), (c, d, _) = matrix.tolist()
    return float(a * d - b * c)


def _scale(matrix: np.ndarray) -> float:
    return math.sqrt(abs(determinant(matrix)))


def warp(
    picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int, *, smooth: bool
) -> np.ndarray:
    """float32 (height, width, C). smooth: without gaps between samples where the map shrinks."""
    scale = _scale(matrix)
    if smooth and scale < 0.5:
        height, width = picture.shape[:2]
        small = (max(1, round(2 * scale * width)), max(1, round(2 * scale * height)))
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.diag([width / small[0], height / small[1], 1.0])
    warped = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return warped.astype(np.float32)


def moved_box(box: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The upright box that a detector would give a face that was moved: same sides, scaled.

    A box around the turned corners would be too large.
    """
    scale = _scale(matrix)
    centre = (box[:2] + box[2:]) / 2
    moved = matrix[:, :2] @ centre + matrix[:, 2]
    half = scale * (box[2:] - box[:2]) / 2
    return np.concatenate([moved - half, moved + half])


def view(picture: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Any part of a picture that has this shape, at least a quarter as high as fits, so large."""
    fits = min(picture.shape[0] / height, picture.shape[1] / width)
    least = np.clip(LEAST_VIEW / (fits * min(height, width)), 0.25, 1)
    scale = fits * math.exp(rng.uniform(math.log(least), 0))
    h, w = max(1, round(scale * height)), max(1, round(scale * width))
    y, x = (rng.uniform(0, 1, 2) * (picture.shape[0] - h, picture.shape[1] - w)).astype(int)
    return resized(picture[y : y + h, x : x + w], height, width, rng)


def resized(picture: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A picture in this size, `SMOOTHLY_SHRUNK` or not."""
    smooth = height < picture.shape[0] and rng.random() < SMOOTHLY_SHRUNK
    how = cv2.INTER_AREA if smooth else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how))
