"""Drawn faces with valence and arousal, made on the spot: to try training without any data, and to
study what it learns when identity is a confounder by construction.

Valence bends the mouth and squints the eyes; arousal opens eyes and mouth and lifts the brows. An
identity's resting face, pose, light and noise stand between the labels and the pixels. They are
cartoons: what a network learns from them says nothing about real faces.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.special import ndtr

from vafer.errors import UsageError

IDENTITY_SHARE = 0.5  # of the variance of a face's latents: what its identity accounts for
RADIUS_POWER = 2 / 3  # 1/2 would spread labels evenly over the disc, 1 evenly over the radius
N_HABITS = 10  # of an identity's face, besides its looks
N_CHANCES = 17  # of a picture
FACES_AT_ONCE = 32  # few enough for their layers to stay in the processor's cache

# RGB at tone -1 and at tone 1.
SKIN = ((88, 56, 40), (246, 208, 180))
HAIR = ((24, 20, 22), (222, 184, 112))
IRIS = ((58, 36, 24), (96, 140, 168))
CLOTH = ((30, 34, 52), (196, 188, 180))
LIPS = np.array([0.85, 0.55, 0.55], np.float32)  # of the skin around them
CHEEKS = np.array([1.0, 0.72, 0.70], np.float32)

Colour: TypeAlias = tuple[int, int, int]
Axis: TypeAlias = float | np.ndarray


@dataclass(frozen=True, slots=True)
class DrawnFaces:
    """N faces, those of one identity in a row.

    crops: uint8 (N, S, S, 3) RGB. labels: float32 (N, 2), valence and arousal. subjects: (N,) str
    array such as 'train-003'. looks: float32 (N, 3), each identity's skin tone, face width and hair
    tone in [-1, 1], for studies.
    """

    crops: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    looks: np.ndarray


def draw_faces(
    n_subjects: int,
    n_each: int,
    *,
    size: int,
    seed: int,
    confounding: float = 0.0,
    prefix: str = "drawn",
) -> DrawnFaces:
    """Draw `n_each` faces of each of `n_subjects` identities, `size` pixels a side.

    `confounding` c is the correlation, over identities, of skin tone with mean valence and of face
    width with mean arousal. Face j of identity i has two latents, each standard normal,

        g_ij = sqrt(s) G_i + sqrt(1 - s) e_ij,    s = IDENTITY_SHARE if c > 0 else 0,

    and its label points where g_ij does, at radius (1 - exp(-|g|² / 2)) ** RADIUS_POWER. So labels
    lie in the disc of radius 1 and are distributed alike at every c: a quarter of them within 0.4,
    a quarter beyond 0.83. Where c > 0, half of their variance lies between identities (0.49), and
    none does at c = 0. With z_i the mean of g_ij over j, scaled to variance 1, the first two looks
    of identity i are

        2 Φ(ρ z_i + sqrt(1 - ρ²) ε_i) - 1,    ρ = 2 sin(π c / 6).

    This ρ makes c the correlation of two uniform variables; with the identity's mean labels it is c
    within 0.02, as measured over 20,000 identities. So looks are uniform in [-1, 1] at every c, and
    hair is independent of everything. At one seed, c changes labels, skin and width, nothing else.

    Raises UsageError when fewer than one identity or face, a confounding outside [0, 1] or a size
    below 16 is asked for.
    """
    for name, value, least in (
        ("n_subjects", n_subjects, 1),
        ("n_each", n_each, 1),
        ("size", size, 16),
    ):
        if value < least:
            raise UsageError(f"{name} of drawn faces is {value}: expected {least} or more")
    if not 0 <= confounding <= 1:
        raise UsageError(f"confounding of drawn faces is {confounding}: expected 0 to 1")
    rng = np.random.default_rng(seed)
    labels, looks = _draw_identities(n_subjects, n_each, confounding, rng)
    habits = np.clip(rng.standard_normal((n_subjects, N_HABITS)), -2, 2)
    looks, habits = np.repeat(looks, n_each, axis=0), np.repeat(habits, n_each, axis=0)
    crops = np.empty((len(labels), size, size, 3), np.uint8)
    for start in range(0, len(labels), FACES_AT_ONCE):
        part = slice(start, start + FACES_AT_ONCE)
        crops[part] = _paint(labels[part], looks[part], habits[part], size, rng)
    subjects = np.repeat([f"{prefix}-{i:03d}" for i in range(n_subjects)], n_each)
    return DrawnFaces(crops, labels, subjects, looks)


def _draw_identities(
    n_subjects: int, n_each: int, confounding: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n_subjects * n_each, 2) of faces and looks (n_subjects, 3) of identities, float32."""
    share = IDENTITY_SHARE if confounding > 0 else 0.0
    own = rng.standard_normal((n_subjects, 1, 2))
    latents = math.sqrt(share) * own
    latents = latents + math.sqrt(1 - share) * rng.standard_normal((n_subjects, n_each, 2))
    norms = np.linalg.norm(latents, axis=2, keepdims=True)
    radii = (-np.expm1(-(norms**2) / 2)) ** RADIUS_POWER
    labels = latents * (radii / norms)

    means = latents.mean(axis=1) / math.sqrt(share + (1 - share) / n_each)
    rho = 2 * math.sin(math.pi * confounding / 6)
    scores = rng.standard_normal((n_subjects, 3))
    scores[:, :2] = rho * means + math.sqrt(max(0.0, 1 - rho**2)) * scores[:, :2]
    return labels.reshape(-1, 2).astype(np.float32), (2 * ndtr(scores) - 1).astype(np.float32)


def _paint(
    labels: np.ndarray,
    looks: np.ndarray,
    habits: np.ndarray,
    size: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Faces of labels (N, 2), looks (N, 3) and habits (N, N_HABITS) → uint8 (N, size, size, 3).

    Pose, light, noise and what else differs from picture to picture are drawn from `rng`.
    """
    n = len(labels)
    chances = rng.uniform(-1, 1, (n, N_CHANCES)).astype(np.float32)
    layers = list(_layers(labels, looks, habits.astype(np.float32), chances, size))
    # Front to back: each layer takes its share of what those before it have left of a pixel.
    left = np.ones((n, size, size), np.float32)
    shares = np.empty((n, len(layers), size, size), np.float32)
    for i, (cover, _) in enumerate(layers):
        np.multiply(left, cover, out=shares[:, i])
        left -= shares[:, i]
    colours = np.stack([colour for _, colour in layers], axis=2)
    pictures = (colours @ shares.reshape(n, len(layers), -1)).reshape(n, 3, size, size)
    pictures += left[:, None] * _background(n, size, rng)
    pictures *= _light(n, size, rng)
    noise = rng.standard_normal(pictures.shape, np.float32)
    noise *= rng.uniform(2, 12, (n, 1, 1, 1)).astype(np.float32)
    pictures += noise
    np.clip(pictures, 0, 255, out=pictures)
    return pictures.transpose(0, 2, 3, 1).astype(np.uint8)


def _layers(
    labels: np.ndarray, looks: np.ndarray, habits: np.ndarray, chances: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the parts of N faces, front to back: share of each pixel (N, S, S), RGB (N, 3).

    Lengths are in half picture sides, x to the right and y down from the middle of the head.
    """
    valence, arousal = _columns(labels)
    _, breadth, _ = _columns(looks)
    (rest_mouth, rest_brow, rest_eye, rest_gape, vivid,
     mouth_width, eye_gap, nose_length, hairline, fullness) = _columns(habits)  # fmt: skip
    (turn, zoom, shift_x, shift_y, yaw, nod, by_mouth, by_squint, by_eye, by_brow, by_gape,
     slant, skew, gaze_x, gaze_y) = _columns(chances[:, :-2])  # fmt: skip
    skin, hair = _between(SKIN, looks[:, 0]), _between(HAIR, looks[:, 2])
    iris, cloth = _between(IRIS, chances[:, -2]), _between(CLOTH, chances[:, -1])

    # What the face does: its label as this identity shows it, the identity's resting face, chance.
    valence, arousal = valence * (1 + 0.15 * vivid), arousal * (1 + 0.15 * vivid)
    bend = 0.10 * valence + 0.022 * rest_mouth + 0.030 * by_mouth
    squint = np.maximum(0, 0.5 * valence + 0.5 * by_squint)
    opening = 0.080 + 0.050 * arousal + 0.012 * rest_eye + 0.022 * by_eye - 0.020 * squint
    opening = np.maximum(opening, 0.015)
    lift = 0.050 * arousal + 0.020 * rest_brow + 0.020 * by_brow
    gape = np.maximum(0, 0.030 + 0.080 * arousal + 0.018 * rest_gape + 0.038 * by_gape)

    x, y, per_length = _head_pixels(size, turn, zoom, shift_x, shift_y)

    def inside(distance: np.ndarray) -> np.ndarray:
        """Share of each pixel inside an outline, from the signed distance of its centre."""
        return np.clip(0.5 - distance * per_length, 0, 1)

    head_width = 0.60 * (1 + 0.17 * breadth)
    # The features lie on the front of the head, so that turning and nodding move them across it.
    front_x, front_y = x - 0.05 * yaw, y - 0.04 * nod
    from_middle = np.abs(front_x)

    eye_x = from_middle - (0.45 + 0.02 * eye_gap) * head_width
    brow = front_y + 0.30 + lift + 0.9 * eye_x**2 + 0.15 * slant * eye_x
    yield inside(np.maximum(np.abs(brow) - 0.026, np.abs(eye_x) - 0.16)), 0.55 * hair

    # A tired eye is closed by its upper lid, a smiling one by its lower.
    eye_y = front_y + 0.10 - 0.5 * (0.080 - opening) + 0.03 * squint
    eye = inside(_ellipse(eye_x, eye_y, 0.135, opening))
    gaze = np.hypot(eye_x - 0.03 * gaze_x * np.sign(front_x), front_y + 0.10 - 0.02 * gaze_y)
    yield np.minimum(eye, inside(gaze - 0.033)), np.full_like(skin, 16)
    yield np.minimum(eye, inside(gaze - 0.075)), iris
    yield eye, np.full_like(skin, 234)
    yield inside(_ellipse(eye_x, eye_y + 0.014, 0.155, opening + 0.020)), 0.35 * skin

    half = 0.24 + 0.015 * mouth_width + 0.3 * bend - 0.4 * gape
    across = (front_x / half) ** 2
    lip_y = front_y - 0.40 - 0.5 * gape - bend * (1 - 2 * across) - 0.06 * skew * front_x
    slope = np.sqrt(1 + (4 * bend / half) ** 2 * across)
    gap = inside(np.maximum((np.abs(lip_y) - gape * (1 - across)) / slope, from_middle - half))
    yield np.minimum(gap, inside(lip_y + 0.35 * gape)), np.full_like(skin, 226)
    yield gap, np.array([[70, 20, 24]], np.float32).repeat(len(skin), 0)
    thick = gape + 0.035 + 0.004 * fullness
    yield inside((np.abs(lip_y) - thick * (1 - across)) / slope), skin * LIPS

    nose_y = front_y - 0.14 - 0.02 * nose_length
    yield inside(_ellipse(from_middle - 0.045, nose_y, 0.035, 0.016)), 0.45 * skin
    ridge = _ellipse(front_x, nose_y + 0.12, 0.06, 0.20)
    yield np.clip(-4 * ridge, 0, 0.3), np.minimum(1.3 * skin, 255)
    cheek = _ellipse(eye_x, front_y - 0.17 + 0.04 * squint, 0.14, 0.10)
    yield np.clip(-8 * cheek, 0, 1) * (0.1 + 0.5 * squint), skin * CHEEKS

    hair_edge = _ellipse(x, y + 0.12, head_width + 0.10, 0.83)
    fringe_edge = y + 0.54 + 0.05 * hairline - 0.6 * x**2
    yield inside(np.maximum(hair_edge, fringe_edge)), hair
    head = inside(_ellipse(x, y, head_width, 0.80))
    yield head * np.clip(0.35 * ((x / head_width) ** 2 + (y / 0.8) ** 2), 0, 1), 0.55 * skin
    yield head, skin
    yield inside(_ellipse(np.abs(x) - head_width, y, 0.07, 0.15)), 0.85 * skin
    yield inside(np.maximum(hair_edge, y - 0.45)), 0.9 * hair
    yield inside(_ellipse(x, y - 1.3, 1.0, 0.45)), cloth
    yield inside(np.maximum(np.abs(x) - 0.32, 0.3 - y)), 0.65 * skin


def _head_pixels(
    size: int, turn: np.ndarray, zoom: np.ndarray, shift_x: np.ndarray, shift_y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where on the head pixel centres lie, x and y (N, S, S), and pixels a length (N, 1, 1)."""
    scale = 1 + 0.06 * zoom
    cos, sin = np.cos(0.10 * turn) / scale, np.sin(0.10 * turn) / scale
    steps = _steps(size)
    across, down = steps - 0.04 * shift_x, steps[:, None] - 0.04 * shift_y
    return cos * across + sin * down, cos * down - sin * across, scale * np.float32(size / 2)


def _ellipse(x: np.ndarray, y: np.ndarray, a: Axis, b: Axis) -> np.ndarray:
    """Signed distance to an ellipse of half-axes a and b, to first order around its outline."""
    u, v = x / a, y / b
    u2, v2 = u * u, v * v
    return (u2 + v2 - 1) / (2 * np.sqrt(u2 / a**2 + v2 / b**2 + np.float32(1e-6)))


def _background(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth patches of colour, bilinear between 4 x 4 points → (N, 3, S, S)."""
    points = rng.uniform(40, 215, (n, 1, 1, 1)) + rng.normal(0, 20, (n, 3, 1, 1))
    points = points + rng.normal(0, 20, (n, 1, 4, 4)) + rng.normal(0, 8, (n, 3, 4, 4))
    at = np.clip(1 - np.abs(np.linspace(0, 3, size)[:, None] - np.arange(4)), 0, 1)
    return (at @ points @ at.T).astype(np.float32)


def _light(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """How bright a light falls on each pixel, from one side and with a tint → (N, 3, S, S)."""
    steps = _steps(size)
    strength = rng.uniform(0.7, 1.25, (n, 1, 1, 1)) * rng.uniform(0.93, 1.07, (n, 3, 1, 1))
    x, y = rng.uniform(-0.3, 0.3, (2, n, 1, 1, 1)).astype(np.float32)
    return strength.astype(np.float32) * (1 + x * steps + y * steps[:, None])


def _steps(size: int) -> np.ndarray:
    """Middles of `size` pixels between -1 and 1, float32."""
    return ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)


def _columns(values: np.ndarray) -> np.ndarray:
    """(N, K) → (K, N, 1, 1), one value a picture."""
    return values.T[:, :, None, None]


def _between(colours: tuple[Colour, Colour], tone: np.ndarray) -> np.ndarray:
    """Colours of tones (N,) from -1 to 1 → float32 (N, 3)."""
    dark, light = np.asarray(colours, np.float32)
    return dark + (light - dark) * (tone[:, None] + 1) / 2
