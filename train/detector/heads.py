"""Pictures of faces changed: glasses, turned heads, colours of skin, masks to paste them by; and
changed into what is no face.
"""

import math

import cv2
import numpy as np

from train.detector.material import Labelled
from train.detector.warps import resized

# Faces seen from the side, from above or below: most pictures of faces are taken from the front.
HEADS_TURNED, YAW, PITCH = 0.35, math.radians(50), math.radians(30)
HEAD = 0.62  # half width of a head and its half height, in widths and heights of the face's box
GLASSES, DARK_LENSES = 0.25, 0.2  # share of faces that are given them, and of these with dark ones
SUBPIXELS = 4  # binary digits after the point of places that OpenCV draws at
SKIN_LIGHT, SKIN_DARK = (255.0, 215.0, 190.0), (25.0, 12.0, 8.0)


def _shrunk(
    portrait: Labelled, size: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, box (4,) and points (5, 2) of a face, shrunk to near twice its size in the scene."""
    picture, box, points = portrait.picture(), portrait.boxes[0], portrait.points[0]
    scale = 2 * size / float((box[2:] - box[:2]).mean())
    if scale >= 1:
        return picture, box, points
    height, width = picture.shape[:2]
    small = (max(2, round(scale * width)), max(2, round(scale * height)))
    share = np.array([small[0] / width, small[1] / height], np.float32)
    return resized(picture, small[1], small[0], rng), box * np.tile(share, 2), points * share


def seen_anew(
    portrait: Labelled, size: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A face as `_shrunk` gives it, at times with glasses, at times of a head that has turned."""
    picture, box, points = _shrunk(portrait, size, rng)
    picture = at_times_with_glasses(picture, points, rng)
    if rng.random() < HEADS_TURNED:
        return turned(picture, box, points, rng.uniform(-YAW, YAW), rng.uniform(-PITCH, PITCH))
    return picture, box, points


def at_times_with_glasses(
    picture: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """As `with_glasses`, in a share of `GLASSES`; else the picture itself."""
    return with_glasses(picture, points, rng) if rng.random() < GLASSES else picture


def with_glasses(picture: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Glasses put on a face, uint8 (H, W, 3), whose eyes are points[:2]: a copy of it."""
    between = points[1] - points[0]
    apart = float(np.linalg.norm(between))
    along = between / max(1e-6, apart)
    axes = np.stack([along, along[::-1] * (-1, 1)])  # of the glasses, in the picture
    half = apart * rng.uniform((0.28, 0.18), (0.44, 0.38))
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rim = np.sign(circle) * np.abs(circle) ** rng.uniform(0.4, 1) * half  # round to rectangular
    lenses = [_fixed(eye + rim @ axes) for eye in points[:2]]
    colour = np.full(3, rng.uniform(0, 60)) if rng.random() < 0.7 else rng.uniform(0, 255, 3)
    glass = picture.copy()
    is_dark = rng.random() < DARK_LENSES
    tint = rng.uniform(0, 50, 3) if is_dark else rng.uniform(150, 255, 3)
    cv2.fillPoly(glass, lenses, [*map(float, tint)], cv2.LINE_AA, SUBPIXELS)
    share = rng.uniform(0.6, 1) if is_dark else rng.uniform(0, 0.35)
    seen = cv2.addWeighted(glass, share, picture, 1 - share, 0)
    height = rng.uniform(-0.5, 0.2) * half[1]
    ends = np.array([half[0], 0.5 * apart]), np.array([-half[0], -half[0] - 0.4 * apart])
    bars = [
        _fixed(eye + np.stack([side * np.array(reach), np.full(2, height)], axis=1) @ axes)
        for eye, side in zip(points[:2], (1, -1), strict=True)
        for reach in ends
    ]
    thick = max(1, round(apart * rng.uniform(0.02, 0.12)))
    rims = [*map(float, colour)]
    cv2.polylines(seen, lenses, True, rims, thick, cv2.LINE_AA, SUBPIXELS)
    cv2.polylines(seen, bars, False, rims, thick, cv2.LINE_AA, SUBPIXELS)
    return seen


def _fixed(places: np.ndarray) -> np.ndarray:
    """Places (N, 2) as integers of which `SUBPIXELS` digits come after the point."""
    return np.round(places * 2**SUBPIXELS).astype(np.int32)


def turned(
    picture: np.ndarray, box: np.ndarray, points: np.ndarray, yaw: float, pitch: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A head as if it were a cylinder about its vertical axis, and one about its horizontal axis.

    Both are turned by angles in radians; what was behind the silhouette is smeared. Returns the
    picture with the face's box (4,), which keeps to what is still seen, and its points (5, 2).
    """
    height, width = picture.shape[:2]
    centre, reach = (box[:2] + box[2:]) / 2, HEAD * (box[2:] - box[:2])
    angles = np.array([yaw, pitch])

    def where(at: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """Of places (..., 2): where they come to; those outside the head stay."""
        on_head = (at - centre) / reach
        turned = np.arcsin(on_head.clip(-1, 1)) + angles
        moved = np.sin(turned.clip(-np.pi / 2, np.pi / 2))
        return np.where(np.abs(on_head) < 1, centre + reach * moved, at)

    columns = where(np.stack([np.arange(width), np.full(width, centre[1])], 1), -angles)[:, 0]
    rows = where(np.stack([np.full(height, centre[0]), np.arange(height)], 1), -angles)[:, 1]
    inside_x = np.abs(np.arange(width) - centre[0]) < reach[0]
    inside_y = np.abs(np.arange(height) - centre[1]) < reach[1]
    is_head = inside_y[:, None] & inside_x
    map_x = np.where(is_head, columns, np.arange(width)).astype(np.float32)
    map_y = np.where(is_head, rows[:, None], np.arange(height)[:, None]).astype(np.float32)
    picture = cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    corners = where(box.reshape(2, 2), angles)
    return picture, corners.ravel().astype(np.float32), where(points, angles).astype(np.float32)


def tinted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Most pictures of faces are grey: some are given the colours of skin, in some light."""
    picture = picture.astype(np.float32)
    kind = rng.random()
    if kind < 0.6:
        light = np.array(SKIN_LIGHT) * np.exp(rng.normal(0, 0.12, 3)) * rng.uniform(0.6, 1.1)
        dark = np.array(SKIN_DARK) * rng.uniform(0, 2, 3)
        grey = cv2.transform(picture, np.full((1, 3), 1 / 3 / 255))[..., None]
        picture = np.float32(dark) + grey * np.float32(light - dark)
    elif kind < 0.8:
        picture *= np.float32(np.exp(rng.normal(0, 0.15, 3)))
    return picture.clip(0, 255)


def skin_colour(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Mean colour (3,) of a face between nose and mouth, where no glasses are."""
    most = np.array(picture.shape[1::-1]) - 1
    (x1, y1), (x2, y2) = (
        p.clip(0, most).astype(int) for p in (points[2:].min(0), points[2:].max(0))
    )
    return np.asarray(picture[y1 : y2 + 1, x1 : x2 + 1].mean(axis=(0, 1)))


def oval(
    picture: np.ndarray, box: np.ndarray, least: float, most: float, rng: np.random.Generator
) -> np.ndarray:
    """How much of a pasted picture is seen: an oval of `least` to `most` of the face's box, of
    which the larger ones reach up, to the hair."""
    height, width = picture.shape[:2]
    axes = (box[2:] - box[:2]) / 2 * rng.uniform(least, most, 2)
    centre = (box[:2] + box[2:]) / 2 - (0, 0.16 * (axes[1] - (box[3] - box[1]) / 2))
    y, x = np.mgrid[:height, :width]
    inside = ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2
    return np.clip((1 - inside) / rng.uniform(0.05, 0.6), 0, 1).astype(np.float32)


def soft_mask(picture: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much of a pasted picture is seen: an oval around the head, or all, with soft edges."""
    height, width = picture.shape[:2]
    mask = np.zeros((height, width), np.float32)
    kind = rng.random()
    if kind < 0.6:
        return oval(picture, box, 1.02, 1.5, rng)
    if kind < 0.85:
        edge = rng.uniform(0.02, 0.25) * min(height, width)
        y, x = np.mgrid[:height, :width]
        distance = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
        mask = np.clip((distance + 0.5) / edge, 0, 1)
    else:
        mask[:] = 1
    return mask.astype(np.float32)


def cover(picture: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> None:
    """A hand, a microphone, a frame's edge: up to a third of the face, in place."""
    sides = box[2:] - box[:2]
    extent = rng.uniform(0.15, 0.55, 2) * sides
    corner = box[:2] + rng.uniform(-0.1, 0.9, 2) * sides
    x0, y0 = np.clip(corner, 0, None).astype(int)
    x1, y1 = np.clip(corner + extent, 0, None).astype(int)
    picture[y0:y1, x0:x1] = rng.uniform(0, 255, 3)


def shuffled(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A face's pieces in another order: a square of 3 × 3 or 4 × 4 of them, 24 pixels each."""
    n = int(rng.integers(3, 5))
    side = 24 * n
    square = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    blocks = square.reshape(n, 24, n, 24, 3).swapaxes(1, 2).reshape(n * n, 24, 24, 3)
    blocks = blocks[rng.permutation(n * n)]
    return blocks.reshape(n, n, 24, 24, 3).swapaxes(1, 2).reshape(side, side, 3)


def part_of(picture: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An eye, a nose or the mouth, by itself."""
    at = points[3:].mean(axis=0) if rng.random() < 0.4 else points[rng.integers(3)]
    reach = max(4.0, rng.uniform(0.35, 0.6) * float(np.linalg.norm(points[1] - points[0])))
    x0, y0 = np.clip(at - reach, 0, np.array(picture.shape[1::-1]) - 4).astype(int)
    x1, y1 = np.ceil(at + reach).astype(int)
    return picture[y0 : max(y1, y0 + 3), x0 : max(x1, x0 + 3)]


def blanked(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A head without a face: what is inside the box is smeared."""
    x0, y0 = np.clip(box[:2], 0, None).astype(int)
    x1, y1 = box[2:].astype(int) + 1
    blank = picture.copy()
    inner = blank[y0:y1, x0:x1]
    tiny = cv2.resize(inner, (2, 2), interpolation=cv2.INTER_AREA)
    blank[y0:y1, x0:x1] = cv2.resize(tiny, inner.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return blank.clip(0, 255)
