"""Scenes: faces pasted at many sizes, angles, lights and blurs on backgrounds without faces, frames
of recordings moved about, pictures of faces or photographs of people side by side, and people
before one another; some heads turned, some with glasses; each scene with where its faces are.

Everything is a function of a generator, so that a scene can be made again.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from train.detector.backdrops import N_PAGES, PAGES, background, kept_page, written
from train.detector.heads import (
    HEAD,
    at_times_with_glasses,
    blanked,
    cover,
    oval,
    part_of,
    seen_anew,
    shuffled,
    skin_colour,
    soft_mask,
    tinted,
)
from train.detector.material import Labelled, Material
from train.detector.warps import (
    SMOOTHLY_SHRUNK,
    determinant,
    moved_box,
    similarity,
    view,
    warp,
)

SMALLEST = 11.0  # pixels: mean side of the smallest face that is pasted
LEAST_SIDE = 9.0  # a smaller one is neither asked for nor forbidden
TURN = math.radians(30)
BODIES = 0.4  # share of pasted faces that get hair, a neck and clothes, if there is room
FIGURE = np.array([1.7, 1.1])  # how far a figure reaches to the sides and up, in the box's sides
# How many faces are pasted, and into which share of scenes: many, since each scene costs the same.
N_PASTED, PASTED_SHARES = (0, 2, 5, 10, 18), (0.1, 0.2, 0.25, 0.25, 0.2)
# Share of scenes that are photographs of people, one or some side by side: small faces with all
# that is around them, which recordings show seldom. How many there are across and down, and how
# much one is enlarged at most to make a face larger.
ALBUMS, ACROSS, ACROSS_SHARES, MOST_ZOOM = 0.25, (1, 2, 3), (0.6, 0.25, 0.15), 1.5
# Shares of the others. No face of pictures side by side has a pasted edge; a cell's share that its
# face takes.
MOSAICS, MOST_IN_A_ROW, FACE_OF_CELL = 0.25, 10, 0.6
CROWDS, MOST_PEOPLE = 0.35, 24  # people before one another, and how many
FROM_BEHIND, NO_FACE = 0.15, -1  # share of these people; what is seen where none of their faces is
MOSTLY_HIDDEN, HIDDEN = 0.4, 0.9  # share of a face from which it may be one, and is none
CLOSE_UPS, CLOSE = 0.4, 0.4  # share of the others; a face's least share of their shorter side
FROM_FRAMES, FROM_SCENERY = 0.5, 0.35  # shares of the others; the rest has a drawn background
# A picture without a face is drawn in proportion to EASY + the square of its highest score; in
# AT_SUSPECTS of the scenes that begin with one, the place of that score is moved into view.
EASY, AT_SUSPECTS = 0.02, 0.5
LARGE = 48.0  # pixels across; wider faces are of pictures with more detail, some of them in colour
FROM_LARGE = 0.5  # share of faces
SEEN = 0.6  # share of a face's box that must be inside
CAPTIONS = 0.15  # share of backgrounds and of pictures of no face that have letters on them
# How many pictures are kept as they are decoded, in each process: photographs of people, up to 5 MB
# each, and those that clothes and hair take their light and dark from, up to 80 kB.
N_PHOTOGRAPHS, N_GRAINS = 64, 400


@dataclass(slots=True)
class Scene:
    """A picture uint8 (H, W, 3), RGB, with boxes (N, 4) and points (N, 5, 2) of its faces.

    doubtful: boxes (K, 4) of what may be a face.
    """

    picture: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    doubtful: np.ndarray


class Composer:
    """Makes scenes of material.

    suspects: float (N, 3) of the N pictures of its scenery, as `train.detector.mining` finds them:
    those with high scores are used more often. None: all alike.
    """

    def __init__(self, material: Material, suspects: np.ndarray | None = None) -> None:
        self.material = material
        frames = [frame for frame in material.frames if not len(frame.boxes)]
        self._empty = frames + material.scenery
        self._suspects = np.zeros((len(self._empty), 3))
        if suspects is not None:
            assert len(suspects) == len(material.scenery)
            self._suspects[len(frames) :] = suspects
        self._up_to = np.cumsum(EASY + self._suspects[:, 0] ** 2)  # cumulative, of each empty one
        self._of_frames, self._of_people = map(_shares, (material.frames, material.people))
        self._large = [p for p in material.portraits if np.diff(p.boxes[0, ::2]) > LARGE]

    def scene(self, rng: np.random.Generator, height: int, width: int) -> Scene:
        """One scene of this size."""
        made = _Scene(self, rng, height, width)
        if self.material.people and rng.random() < ALBUMS:
            made.lay_photographs()
            return made.finished()
        frames, layout, kind = self.material.frames, rng.random(), rng.random()
        if layout < MOSAICS:
            made.canvas = background(rng, height, width)
            made.lay_side_by_side()
            return made.finished()
        if layout < MOSAICS + CROWDS:
            made.canvas = view(self.nothing(rng), height, width, rng).astype(np.float32)
            made.gather_people()
            return made.finished()
        is_close = rng.random() < CLOSE_UPS
        least = CLOSE * min(height, width) if is_close else SMALLEST
        if frames and kind < FROM_FRAMES:
            made.begin_with_frame(frames[rng.choice(len(frames), p=self._of_frames)], least)
            if is_close and made.boxes:
                return made.finished()
        elif self._empty and kind < FROM_FRAMES + FROM_SCENERY:
            i = self._any_empty(rng)
            score, *place = self._suspects[i]
            made.begin_with_frame(self._empty[i], least, np.array(place) if score else None)
        else:
            made.canvas = background(rng, height, width)
        if not made.boxes and not made.doubtful and rng.random() < CAPTIONS:
            made.canvas = written(made.canvas.clip(0, 255).astype(np.uint8), rng).astype(np.float32)
        for _ in range(rng.integers(5) if rng.random() < 0.4 else 0):
            made.paste_none()
        n_faces = 1 if is_close else rng.choice(N_PASTED, p=PASTED_SHARES)
        for _ in range(n_faces):
            most = 0.95 * min(height, width) / math.sqrt(n_faces)
            made.paste_face(math.exp(rng.uniform(*np.log((least, most)))))
        return made.finished()

    def portrait(self, rng: np.random.Generator) -> Labelled:
        """Any face."""
        chosen = (
            self._large if self._large and rng.random() < FROM_LARGE else self.material.portraits
        )
        return chosen[rng.integers(len(chosen))]

    def photograph(self, rng: np.random.Generator) -> Labelled:
        """Any of people."""
        people = self.material.people
        return people[rng.choice(len(people), p=self._of_people)]

    def nothing(self, rng: np.random.Generator) -> np.ndarray:
        """Any picture without a face, uint8 (H, W, 3)."""
        if rng.random() < PAGES:
            return kept_page(int(rng.integers(N_PAGES)))
        if not self._empty:
            return background(rng, 64, 64).astype(np.uint8)
        picture = self._empty[self._any_empty(rng)].picture()
        return written(picture, rng) if rng.random() < CAPTIONS else picture

    def grain(self, rng: np.random.Generator) -> np.ndarray:
        """The light and dark of one of `N_GRAINS` pictures without a face, as `_kept_grain`."""
        if not self._empty:
            return np.ones((1, 1), np.float32)
        few = self._empty[:: -(-len(self._empty) // N_GRAINS)]
        return _kept_grain(few[rng.integers(len(few))].file)

    def _any_empty(self, rng: np.random.Generator) -> int:
        return int(np.searchsorted(self._up_to, rng.random() * self._up_to[-1], side="right"))


def _shares(pictures: list[Labelled]) -> np.ndarray:
    """How often each is drawn: the oftener the more sure faces it shows, with none as with one."""
    n_faces = np.array([max(1, picture.sure.sum()) for picture in pictures])
    return n_faces / n_faces.sum()


class _Figure(NamedTuple):
    """Where clothes, neck, collar and hair are: uint8 (4, h, w), 0 or 1, of a region of a scene."""

    region: tuple[slice, slice]
    layers: np.ndarray


class _Scene:
    """A scene in the making."""

    def __init__(self, source: Composer, rng: np.random.Generator, height: int, width: int) -> None:
        self.source, self.rng, self.height, self.width = source, rng, height, width
        self.canvas = np.zeros((height, width, 3), np.float32)
        self.boxes: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        self.doubtful: list[np.ndarray] = []

    def begin_with_frame(
        self, frame: Labelled, least: float, place: np.ndarray | None = None
    ) -> None:
        """A frame, moved so that one of its faces, of `least` pixels or more, is in the scene.

        Of one without faces any piece, often that around `place`, in shares of its sides.
        """
        rng, picture = self.rng, frame.picture()
        height, width = picture.shape[:2]
        side = min(self.height, self.width)
        if len(frame.boxes):
            box = frame.boxes[rng.integers(len(frame.boxes))]
            target = math.exp(rng.uniform(math.log(least), math.log(0.95 * side)))
            scale = target / max(1.0, float((box[2:] - box[:2]).mean()))
            scale = max(scale, 0.5 * side / max(height, width))
            at = (box[:2] + box[2:]) / 2
        else:
            scale = math.exp(rng.uniform(-1.0, 0.7)) * side / min(height, width)
            if place is None or rng.random() >= AT_SUSPECTS:
                place = rng.uniform(0.2, 0.8, 2)
            at = place * (width, height)
        to = rng.uniform(0.15, 0.85, 2) * (self.width, self.height)
        matrix = similarity(scale, rng.normal(0, TURN / 4), at, to, mirror=rng.random() < 0.5)
        self._lay(frame, picture, matrix, (0, 0, self.width, self.height))

    def lay_photographs(self) -> None:
        """Photographs of people, in cells of one size, each with one of its faces."""
        n = self.rng.choice(ACROSS, p=ACROSS_SHARES)
        rows, columns = (
            np.linspace(0, side, n + 1).astype(int) for side in (self.height, self.width)
        )
        for top, bottom in pairwise(rows):
            for left, right in pairwise(columns):
                self._lay_photograph(self.source.photograph(self.rng), (left, top, right, bottom))

    def _lay_photograph(self, photograph: Labelled, cell: tuple[int, int, int, int]) -> None:
        rng, picture = self.rng, _kept_picture(photograph.file)
        height, width = picture.shape[:2]
        sure = photograph.boxes[photograph.sure]
        box = sure[rng.integers(len(sure))]
        low, high = np.array(cell[:2]), np.array(cell[2:])
        side, size = (high - low).min(), float((box[2:] - box[:2]).mean())
        most = min(0.9 * side, MOST_ZOOM * size)
        scale = math.exp(rng.uniform(math.log(SMALLEST), math.log(max(SMALLEST, most)))) / size
        scale = max(scale, 0.7 * side / max(height, width))
        at, mirror = (box[:2] + box[2:]) / 2, rng.random() < 0.5
        # Where the photograph leaves as little of the cell empty as it can.
        before = np.array([width - at[0] if mirror else at[0], at[1]])
        ends = low + scale * before, high - scale * (np.array([width, height]) - before)
        to = rng.uniform(low + 0.15 * (high - low), high - 0.15 * (high - low))
        to = to.clip(np.minimum(*ends), np.maximum(*ends))
        matrix = similarity(scale, rng.normal(0, TURN / 4), at, to, mirror=mirror)
        self._lay(photograph, picture, matrix, cell)

    def _lay(
        self,
        frame: Labelled,
        picture: np.ndarray,
        matrix: np.ndarray,
        within: tuple[int, int, int, int],
    ) -> None:
        """A frame and its picture, moved, into a part of the scene (x1, y1, x2, y2)."""
        rng, (left, top, right, bottom) = self.rng, within
        border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
        smooth = rng.random() < SMOOTHLY_SHRUNK
        shifted = matrix.copy()
        shifted[:, 2] -= (left, top)
        self.canvas[top:bottom, left:right] = warp(
            picture, shifted, (right - left, bottom - top), border, smooth=smooth
        )
        for box, points, sure in zip(frame.boxes, frame.points, frame.sure, strict=True):
            self._add(box, points, matrix, sure=bool(sure), within=within)

    def lay_side_by_side(self) -> None:
        """Cells of one size, most of them filled by a picture of a face each, some by another."""
        rng = self.rng
        side = min(self.height, self.width) / math.exp(rng.uniform(0, math.log(MOST_IN_A_ROW)))
        size = round(max(SMALLEST / FACE_OF_CELL, side))
        for top in range(0, self.height, size):
            for left in range(0, self.width, size):
                kind = rng.random()
                if kind < 0.75:
                    self._fill(self.source.portrait(rng), left, top, size)
                elif kind < 0.9:
                    self._fill_with_nothing(self.source.nothing(rng), left, top, size)

    def _fill(self, portrait: Labelled, left: int, top: int, size: int) -> None:
        """A picture, turned and zoomed a little, into a cell."""
        rng = self.rng
        width, height = min(size, self.width - left), min(size, self.height - top)
        face = FACE_OF_CELL * size * math.exp(rng.normal(0, 0.25))
        picture, box, points = seen_anew(portrait, face, rng)
        to = np.array([left, top]) + size * rng.normal(0.5, 0.06, 2)
        matrix = similarity(
            face / float((box[2:] - box[:2]).mean()),
            rng.normal(0, TURN / 3),
            (box[:2] + box[2:]) / 2,
            to,
            mirror=rng.random() < 0.5,
        )
        shifted = matrix.copy()
        shifted[:, 2] -= (left, top)
        border = cv2.BORDER_REPLICATE  # a reflected face would be another one
        cell = warp(tinted(picture, rng), shifted, (width, height), border, smooth=True)
        self.canvas[top : top + height, left : left + width] = cell
        self._add(box, points, matrix, sure=True, within=(left, top, left + width, top + height))

    def _fill_with_nothing(self, picture: np.ndarray, left: int, top: int, size: int) -> None:
        """A picture without a face, any square of it, into a cell."""
        square = view(picture, size, size, self.rng)
        height, width = min(size, self.height - top), min(size, self.width - left)
        self.canvas[top : top + height, left : left + width] = square[:height, :width]

    def gather_people(self) -> None:
        """People before one another: the nearest come last, and hide whom they stand before."""
        rng = self.rng
        most = 0.35 * min(self.height, self.width)
        nearest = math.exp(rng.uniform(*np.log((1.3 * SMALLEST, most))))
        farthest = max(SMALLEST, nearest * rng.uniform(0.3, 0.9))
        room = self.height * self.width / (nearest * farthest) / 8
        n_people = int(min(MOST_PEOPLE, max(2.0, room * rng.uniform(0.3, 1))))
        # Which face is seen at each pixel, by its index in `boxes`.
        seen = np.full((self.height, self.width), NO_FACE)
        sizes = np.exp(rng.uniform(math.log(farthest), math.log(nearest), n_people))
        for size in np.sort(sizes):
            picture, box, points = seen_anew(self.source.portrait(rng), size, rng)
            picture = tinted(picture, rng)
            to = rng.uniform(0, 1, 2) * (self.width, 0.95 * self.height)
            scale = size / float((box[2:] - box[:2]).mean())
            turn = rng.normal(0, TURN / 4)
            middle = (box[:2] + box[2:]) / 2
            matrix = similarity(scale, turn, middle, to, mirror=rng.random() < 0.5)
            moved, has_face = moved_box(box, matrix), rng.random() >= FROM_BEHIND
            figure = self._figure(moved, has_face=has_face)
            self._dress(figure, skin_colour(picture, points))
            seen[figure.region][figure.layers.any(axis=0)] = NO_FACE
            if not has_face:
                continue
            self._blend(picture, oval(picture, box, 1.0, 1.3, rng), matrix)
            n_before = len(self.boxes)
            self._add(box, points, matrix, sure=True)
            x1, y1, x2, y2 = moved.clip(0).astype(int)
            is_asked_for = len(self.boxes) > n_before
            seen[y1 : y2 + 1, x1 : x2 + 1] = n_before if is_asked_for else NO_FACE
        self._forget_hidden(seen)

    def _forget_hidden(self, seen: np.ndarray) -> None:
        """Forget faces that are mostly hidden. seen (H, W): see `gather_people`."""
        boxes, points = self.boxes, self.points
        self.boxes, self.points = [], []
        for i, (box, of_face) in enumerate(zip(boxes, points, strict=True)):
            x1, y1, x2, y2 = box.astype(int)
            hidden = 1 - (seen[y1 : y2 + 1, x1 : x2 + 1] == i).mean()
            if hidden < MOSTLY_HIDDEN:
                self.boxes.append(box)
                self.points.append(of_face)
            elif hidden < HIDDEN:
                self.doubtful.append(box)

    def paste_face(self, size: float) -> None:
        """A face of `size` pixels, unless it would hide another."""
        rng = self.rng
        picture, box, points = seen_anew(self.source.portrait(rng), size, rng)
        scale = size / float((box[2:] - box[:2]).mean())
        turn = rng.uniform(-TURN, TURN) * (rng.random() < 0.7)
        at = (box[:2] + box[2:]) / 2
        to = rng.uniform(
            0.3 * size, np.maximum(0.31 * size, np.array([self.width, self.height]) - 0.3 * size)
        )
        matrix = similarity(scale, turn, at, to, mirror=rng.random() < 0.5)
        if self._hides(moved_box(box, matrix)):
            return
        picture = tinted(picture, rng)
        if rng.random() < BODIES:
            self._add_figure(moved_box(box, matrix), skin_colour(picture, points), has_face=True)
        if rng.random() < 0.15:
            cover(picture, box, rng)
        self._blend(picture, soft_mask(picture, box, rng), matrix)
        self._add(box, points, matrix, sure=True)

    def paste_none(self) -> None:
        """What is no face: one's pieces in another order, a part, a blank head, another thing."""
        rng, portrait = self.rng, self.source.portrait(self.rng)
        picture = tinted(at_times_with_glasses(portrait.picture(), portrait.points[0], rng), rng)
        kind = rng.integers(7)
        if kind == 6:  # seen from behind
            middle = rng.uniform(0, 1, 2) * (self.width, self.height)
            size = math.exp(rng.uniform(math.log(12), math.log(0.3 * min(self.height, self.width))))
            half = size / 2 * np.array([0.85, 1.1])
            head = np.concatenate([middle - half, middle + half])
            self._add_figure(head, skin_colour(picture, portrait.points[0]), has_face=False)
            return
        if kind == 0:
            picture = shuffled(picture, rng)
        elif kind == 1:
            picture = part_of(picture, portrait.points[0], rng)
        elif kind == 2:
            picture = blanked(picture, portrait.boxes[0])
        elif kind < 5:
            picture = self.source.nothing(rng)
        else:
            picture = background(rng, 64, 64)
        height, width = picture.shape[:2]
        box = np.array([0.15, 0.1, 0.85, 0.9]) * (width, height, width, height)
        most = 0.7 * min(self.height, self.width)
        size = math.exp(rng.uniform(math.log(12), math.log(max(13.0, most))))
        matrix = similarity(
            size / max(height, width),
            rng.uniform(-TURN, TURN),
            np.array([width, height]) / 2,
            rng.uniform(0, 1, 2) * (self.width, self.height),
            mirror=False,
        )
        if not self._hides(moved_box(box, matrix)):
            self._blend(picture, soft_mask(picture, box, rng), matrix)

    def _add_figure(self, box: np.ndarray, skin: np.ndarray, *, has_face: bool) -> None:
        """Hair and clothes around a face (4,), unless they would hide another."""
        figure = self._figure(box, has_face=has_face)
        y, x = figure.region
        for x1, y1, x2, y2 in (other.astype(int) for other in (*self.boxes, *self.doubtful)):
            rows = slice(max(0, y1 - y.start), max(0, y2 + 1 - y.start))
            columns = slice(max(0, x1 - x.start), max(0, x2 + 1 - x.start))
            if figure.layers[:, rows, columns].any():
                return
        self._dress(figure, skin)

    def _figure(self, box: np.ndarray, *, has_face: bool) -> _Figure:
        """Clothes, neck, collar and hair around a face (4,) whose middle is in the scene.

        has_face: whether one will be laid over; else the head is seen from behind.
        """
        rng, sides = self.rng, box[2:] - box[:2]
        middle = (box[:2] + box[2:]) / 2
        most = (self.width, self.height)
        left, top = (middle - FIGURE * sides).clip(0, most).astype(int)
        right = math.ceil((middle + FIGURE * sides).clip(0, most)[0])
        layers = np.zeros((4, self.height - top, right - left), np.uint8)
        middle = middle - (left, top)

        def round_off(layer: np.ndarray, x: float, y: float, half_x: float, half_y: float) -> None:
            centre, axes = middle + (x, y) * sides, (half_x, half_y) * sides
            at, half = [*map(int, centre)], [*map(int, axes.clip(min=1))]
            cv2.ellipse(layer, at, half, 0, 0, 360, 1, -1)

        clothes, neck, collar, hair = layers
        broad, tall = rng.uniform(0.9, 1.6), rng.uniform(0.7, 1.2)
        round_off(clothes, 0, 0.65 + tall, broad, tall)
        if rng.random() < 0.7:  # down to where the picture ends
            ends = middle[0] + np.array([-broad, broad]) * sides[0]
            x1, x2 = ends.clip(0).astype(int)
            clothes[int(max(0, middle[1] + (0.65 + tall) * sides[1])) :, x1 : x2 + 1] = 1
        round_off(neck, 0, 0.55, rng.uniform(0.25, 0.4), 0.4)
        if rng.random() < 0.6:
            tip = middle + (rng.normal(0, 0.1), rng.uniform(0.9, 1.6)) * sides
            ends = [middle + (side * rng.uniform(0.25, 0.5), 0.6) * sides for side in (-1, 1)]
            cv2.fillPoly(collar, [np.array([*ends, tip]).astype(int)], 1)
        round_off(hair, 0, -0.12, HEAD * rng.uniform(0.9, 1.3), HEAD * rng.uniform(0.95, 1.25))
        if has_face and rng.random() < 0.7:  # no beard
            hair[max(0, int(middle[1] + rng.uniform(-0.2, 0.4) * sides[1])) :] = 0
        if rng.random() < 0.3:  # long
            round_off(hair, 0, rng.uniform(0, 0.4), HEAD * rng.uniform(1, 1.4), rng.uniform(0.6, 1))
        return _Figure((slice(top, self.height), slice(left, right)), layers)

    def _dress(self, figure: _Figure, skin: np.ndarray) -> None:
        """Colour a figure, with the light and dark of some picture of no face."""
        rng, grain, share = self.rng, self.source.grain(self.rng), self.rng.uniform(0, 1)
        any_colour, dark = rng.uniform(0, 255, 3), rng.uniform(5, 70) + rng.normal(0, 8, 3)
        hair = rng.uniform(5, 200) * np.array([1.0, *np.sort(rng.uniform(0.4, 1, 2))[::-1]])
        colours = (dark if rng.random() < 0.6 else any_colour, skin, rng.uniform(0, 255, 3), hair)
        softness = rng.uniform(0.4, 1.2)
        x, y, width, height = cv2.boundingRect(figure.layers.max(axis=0))
        if not width:
            return
        whole, layers = self.canvas[figure.region][y : y + height, x : x + width], figure.layers
        light = 1 + share * (cv2.resize(grain, (width, height))[..., None] - 1)
        for layer, colour in zip(layers[:, y : y + height, x : x + width], colours, strict=True):
            left, top, broad, tall = cv2.boundingRect(layer)
            if not broad:
                continue
            reach = math.ceil(3 * softness)
            part = (
                slice(max(0, top - reach), top + tall + reach),
                slice(max(0, left - reach), left + broad + reach),
            )
            region = whole[part]
            alpha = cv2.GaussianBlur(layer[part].astype(np.float32), (0, 0), softness)[..., None]
            region += alpha * ((np.float32(colour) * light[part]).clip(0, 255) - region)

    def finished(self) -> Scene:
        picture = _photographed(self.canvas, self.rng)

        def stacked(rows: list[np.ndarray], *shape: int) -> np.ndarray:
            return np.array(rows, np.float32).reshape(-1, *shape)

        return Scene(
            picture, stacked(self.boxes, 4), stacked(self.points, 5, 2), stacked(self.doubtful, 4)
        )

    def _hides(self, box: np.ndarray) -> bool:
        """Whether a box lies over a face by more than a fifth of the smaller of both."""
        for other in (*self.boxes, *self.doubtful):
            low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
            shared = (high - low).clip(min=0).prod()
            if shared > 0.2 * min((box[2:] - box[:2]).prod(), (other[2:] - other[:2]).prod()):
                return True
        return False

    def _add(
        self,
        box: np.ndarray,
        points: np.ndarray,
        matrix: np.ndarray,
        *,
        sure: bool,
        within: tuple[int, int, int, int] | None = None,
    ) -> None:
        """A face that was moved; within: x1, y1, x2, y2 of what can be seen, all of it if None."""
        moved = moved_box(box, matrix)
        x1, y1, x2, y2 = within or (0, 0, self.width, self.height)
        inside = np.clip(moved, (x1, y1, x1, y1), (x2, y2, x2, y2))
        share = (inside[2:] - inside[:2]).prod() / max(1e-6, (moved[2:] - moved[:2]).prod())
        if share <= 0.05:
            return
        if sure and share >= SEEN and (inside[2:] - inside[:2]).min() >= LEAST_SIDE:
            placed = points @ matrix[:, :2].T + matrix[:, 2]
            if determinant(matrix) < 0:  # left and right are as seen in the picture
                placed = placed[[1, 0, 2, 4, 3]]
            self.boxes.append(inside)
            self.points.append(placed)
        else:
            self.doubtful.append(inside)

    def _blend(self, picture: np.ndarray, mask: np.ndarray, matrix: np.ndarray) -> None:
        """Lay a picture over the canvas where its mask (0..1) says."""
        height, width = picture.shape[:2]
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]])
        placed = corners @ matrix[:, :2].T + matrix[:, 2]
        x0, y0 = np.clip(np.floor(placed.min(axis=0)), 0, None).astype(int)
        x1, y1 = np.minimum(np.ceil(placed.max(axis=0)), (self.width, self.height)).astype(int)
        if x1 <= x0 or y1 <= y0:
            return
        shifted = matrix.copy()
        shifted[:, 2] -= (x0, y0)
        layers = np.dstack([picture.astype(np.float32), mask.astype(np.float32)])
        smooth = self.rng.random() < SMOOTHLY_SHRUNK
        size = (x1 - x0, y1 - y0)
        layers = warp(layers, shifted, size, cv2.BORDER_CONSTANT, smooth=smooth)
        alpha = layers[..., 3:]
        region = self.canvas[y0:y1, x0:x1]
        region += alpha * (layers[..., :3] - region)


@lru_cache(maxsize=N_PHOTOGRAPHS)
def _kept_picture(file: bytes) -> np.ndarray:
    """uint8 (H, W, 3), RGB; not to be written to."""
    picture = np.asarray(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB))
    picture.flags.writeable = False
    return picture


@lru_cache(maxsize=N_GRAINS)
def _kept_grain(file: bytes) -> np.ndarray:
    """Light and dark of a picture, about 1: float32 (H, W), a quarter of its size."""
    grey = np.asarray(
        cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_4), np.float32
    )
    grain = grey / max(1.0, float(grey.mean()))
    grain.flags.writeable = False
    return grain


def _photographed(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light, blur, noise and compression of a camera: float32 → uint8."""
    height, width = canvas.shape[:2]
    if rng.random() < 0.25:
        slope = np.linspace(-1, 1, width, dtype=np.float32)[None] * rng.normal(0, 0.4)
        slope = slope + np.linspace(-1, 1, height, dtype=np.float32)[:, None] * rng.normal(0, 0.4)
        canvas = canvas * np.exp(slope.clip(-1, 1))[..., None].astype(np.float32)
    picture: np.ndarray = canvas.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    grey = 255 * np.linspace(0, 1, 256) ** math.exp(rng.normal(0, 0.3))
    grey = (grey - 128) * math.exp(rng.normal(0, 0.25)) + 128 + rng.normal(0, 20)
    curves = grey[:, None] * np.exp(rng.normal(0, 0.06, 3))
    picture = cv2.LUT(picture, curves.clip(0, 255).astype(np.uint8)[None])
    kind = rng.random()
    if kind < 0.15:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.6))
    elif kind < 0.2:
        length = int(rng.integers(3, 8))
        kernel = np.eye(length) if rng.random() < 0.5 else np.ones((1, length))
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
    if rng.random() < 0.4:
        cv2.setRNGSeed(int(rng.integers(2**31)))
        noise = cv2.randn(
            np.empty(picture.shape, np.int16), np.zeros(3), np.full(3, rng.uniform(1, 14))
        )
        picture = cv2.add(picture, noise, dtype=cv2.CV_8U)
    if rng.random() < 0.3:
        options = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))]
        _, jpeg = cv2.imencode(".jpg", picture, options)
        picture = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))
    return np.asarray(picture)
