"""Pieces of a frame, each around a face that was there a moment ago, side by side in one picture.

So one call of the detector looks for all of them, at the resolution that they need.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from vafer.options import STRIDE
from vafer.tracks import box_distance

SEARCHED_SIDE = 64  # pixels of a face in the mosaic, at most; measured by bench/search.py
REACH = 2.0  # side of a piece, in sides of its face
REACH_NEAR = 3.0  # the same, for a second look
MOST_OF_FULL = 0.4  # of the whole frame's pixels as `detect` sees it; measured by bench/search.py
BEYOND = 127  # grey beyond the frame: about 0 when normalised, as what convolutions pad with
SAME = 0.7  # `box_distance` up to which a face is the one that was there


@dataclass(frozen=True)
class Mosaic:
    """Where each piece lies: `x_mosaic = scale · x_frame + offset`, for N pieces.

    cell: side of a piece in pixels, a multiple of STRIDE. columns: pieces in a row. around (N, 4).
    scales (N,). offsets (N, 2).
    """

    cell: int
    columns: int
    around: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, int], around: np.ndarray, size: int) -> "Mosaic | None":
        """A mosaic of a frame of shape (H, W), whose longer side `detect` would shrink to `size`.

        None where it would have more than `MOST_OF_FULL` of the shrunken frame's pixels.
        """
        whole = min(1.0, size / max(shape))
        sides = (around[:, 2:] - around[:, :2]).max(axis=1)
        mosaic = cls._with(around, np.minimum(whole, SEARCHED_SIDE / sides), REACH)
        n_pixels = math.ceil(len(around) / mosaic.columns) * mosaic.columns * mosaic.cell**2
        return mosaic if n_pixels <= MOST_OF_FULL * whole**2 * shape[0] * shape[1] else None

    @classmethod
    def near(cls, around: np.ndarray) -> "Mosaic":
        """A mosaic with more around each face, at its full resolution where that is needed."""
        sides = np.maximum((around[:, 2:] - around[:, :2]).max(axis=1), 1)
        return cls._with(around, np.minimum(1.0, SEARCHED_SIDE / sides), REACH_NEAR)

    @classmethod
    def _with(cls, around: np.ndarray, scales: np.ndarray, reach: float) -> "Mosaic":
        """reach: side of a piece, in sides of its face."""
        sides = (around[:, 2:] - around[:, :2]).max(axis=1)
        cell = math.ceil(reach * float((scales * sides).max()) / STRIDE) * STRIDE
        columns = math.ceil(math.sqrt(len(around)))
        rows, places = np.divmod(np.arange(len(around)), columns)
        middles = cell * (np.stack([places, rows], axis=1) + 0.5)
        offsets = middles - scales[:, None] * (around[:, :2] + around[:, 2:]) / 2
        return cls(cell, columns, around, scales, offsets)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """The pieces of a frame uint8 (H, W, 3) RGB, in BGR; grey beyond the frame, and
        where no piece is."""
        rows = math.ceil(len(self.around) / self.columns)
        canvas = np.full((rows * self.cell, self.columns * self.cell, 3), BEYOND, np.uint8)
        for i, (scale, offset) in enumerate(zip(self.scales, self.offsets, strict=True)):
            row, column = divmod(i, self.columns)
            top, left = row * self.cell, column * self.cell
            # Pixel centres lie at halves, as in cv2.resize, which shrinks whole frames.
            shift = offset - (left, top) + scale / 2 - 0.5
            matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
            cv2.warpAffine(
                image,
                matrix,
                (self.cell, self.cell),
                dst=canvas[top : top + self.cell, left : left + self.cell],
                flags=cv2.INTER_LINEAR,
                borderValue=(BEYOND, BEYOND, BEYOND),
            )
        return cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR)

    def found(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which boxes (M, 4) of the picture are the faces that were looked for.

        Returns the K pieces whose face is there, the rows of its boxes, both (K,), and these boxes
        in the frame (K, 4). Of two pieces that show one face, the first has it.
        """
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        places = np.floor(middles / self.cell).astype(int)
        piece = places[:, 1] * self.columns + places[:, 0]
        pieces: list[int] = []
        rows: list[int] = []
        framed: list[np.ndarray] = []
        for i, before in enumerate(self.around):
            inside = np.flatnonzero(piece == i)
            there = (boxes[inside] - np.tile(self.offsets[i], 2)) / self.scales[i]
            distances = box_distance(before[None], there)[0]
            if not len(inside) or distances.min() > SAME:
                continue
            box = there[distances.argmin()]
            if framed and box_distance(box[None], np.stack(framed)).min() < SAME / 2:
                continue
            pieces.append(i)
            rows.append(int(inside[distances.argmin()]))
            framed.append(box)
        return np.array(pieces, int), np.array(rows, int), np.reshape(framed, (-1, 4))

    def in_frame(self, points: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        """Points (K, P, 2) of the picture, in these pieces (K,), as points of the frame."""
        return (points - self.offsets[pieces, None]) / self.scales[pieces, None, None]
