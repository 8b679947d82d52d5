"""Frames + faces → crops, the same way for training and for annotation.

A crop is a similarity, or a map of a box, from frame pixels to crop pixels, followed by one
bilinear `grid_sample` over all faces of a batch. Pixel centres lie at whole numbers, as in
`cv2.warpAffine`.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from vafer.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Left eye, right eye, nose, left and right mouth corner, as shares of the crop's side: where they
# lie on average in the pictures of FER2013, so that a crop shows what those show, brow to chin.
FACE_TEMPLATE = ((0.32, 0.38), (0.68, 0.38), (0.50, 0.58), (0.355, 0.755), (0.645, 0.755))

PIXELS_AT_ONCE = 1 << 22  # that are looked up for crops on a device: each takes some 30 bytes

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
LARGEST = 4096  # side of a crop in pixels
WIDEST = 100  # margin of a crop, in sides of its box

CropKind = Literal["aligned", "box", "stretched"]


@dataclass(frozen=True, slots=True)
class CropSpec:
    """How a face becomes the network's input. It is stored in the model file.

    kind: `aligned` (similarity that brings five landmarks onto `template`), `box` (square around
    the detector's box: its longer side, times 1 + `margin`) or `stretched` (the box, each side
    times 1 + `margin`, stretched to a square). size: pixels. template: five (x, y) as shares of the
    crop's side. grey: colour is replaced by luma, for networks trained on grey faces. mean, std:
    per channel, of values in [0, 1]. Outside the frame its edge pixels are repeated.
    """

    kind: CropKind = "aligned"
    size: int = 112
    template: tuple[tuple[float, float], ...] = FACE_TEMPLATE
    margin: float = 0.0
    grey: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.kind not in get_args(CropKind):
            expected = ", ".join(get_args(CropKind))
            raise ModelError(f"crop kind is {self.kind!r}: expected one of {expected}")
        if type(self.size) is not int or not 1 <= self.size <= LARGEST:
            raise ModelError(f"crop size is {self.size}: expected whole pixels, 1 to {LARGEST}")
        if np.shape(self.template) != (5, 2):
            raise ModelError(f"crop template has shape {np.shape(self.template)}: expected (5, 2)")
        if not np.isfinite(np.asarray(self.template, float)).all():
            raise ModelError("crop template: expected numbers")
        if not 0 <= self.margin <= WIDEST:
            raise ModelError(f"crop margin is {self.margin}: expected 0 to {WIDEST}")
        is_usable = all(map(math.isfinite, self.mean)) and all(0 < v < math.inf for v in self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not is_usable:
            raise ModelError("crop mean and std: expected three numbers each, std above 0")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CropSpec":
        """Rebuild a spec from `to_dict`, as read from JSON. Raises ModelError on anything else."""
        try:
            spec = cls(**values)
            r, g, b = map(float, spec.mean)
            rs, gs, bs = map(float, spec.std)
            template = tuple((float(x), float(y)) for x, y in spec.template)
            return replace(spec, template=template, mean=(r, g, b), std=(rs, gs, bs))
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"not a crop specification: {values!r} ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def widened(self, border: int) -> "CropSpec":
        """The same crop with `border` more pixels of surroundings on every side.

        Training caches such crops, so that augmentation can shift, turn and shrink them.
        """
        size = self.size + 2 * border
        share = self.size / size
        return replace(
            self,
            size=size,
            template=tuple((border / size + x * share, border / size + y * share)
                           for x, y in self.template),
            margin=(1 + self.margin) / share - 1,
        )  # fmt: skip

    def normalise(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops (N, 3, S, S), values 0..255 → the network's input, float32, same shape."""
        values = crops.float() / 255
        if self.grey:
            weights = _per_channel(GREY_WEIGHTS, values.device)
            values = (values * weights).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        mean, std = (_per_channel(v, values.device) for v in (self.mean, self.std))
        return (values - mean) / std

    def matrices(
        self,
        boxes: np.ndarray,
        landmarks: np.ndarray | None,
        *,
        pixel_aspect: float | np.ndarray = 1.0,
    ) -> np.ndarray:
        """Maps from frame pixels to crop pixels: boxes (N, 4), landmarks (N, 5, 2) → (N, 2, 3).

        pixel_aspect: width of the frame's pixels to their height, of all or (N,). A crop's pixels
        are square, so that a face is seen as it is displayed. Raises ModelError when the spec
        aligns by landmarks and there are none.
        """
        wide = np.broadcast_to(np.asarray(pixel_aspect, np.float64), len(boxes))
        # A pixel's centre is 0.5 from its edge before and after it is made as wide as it is shown.
        shift = (wide - 1) / 2
        if self.kind == "aligned":
            if landmarks is None:
                raise ModelError(
                    "this model aligns faces by five landmarks and the detector gives none: "
                    "use a detector with landmarks"
                )
            points = np.array(landmarks, np.float64)
            points[..., 0] = points[..., 0] * wide[:, None] + shift[:, None]
            maps = similarity(points, np.asarray(self.template) * self.size)
        else:
            boxes = np.array(boxes, np.float64)
            boxes[:, ::2] *= wide[:, None]
            sides = (boxes[:, 2:] - boxes[:, :2]) * (1 + self.margin)
            if self.kind == "box":
                sides[:] = sides.max(axis=1, keepdims=True)
            maps = _box_maps((boxes[:, :2] + boxes[:, 2:]) / 2, sides, self.size)
        maps[:, :, 2] += maps[:, :, 0] * shift[:, None]
        maps[:, :, 0] *= wide[:, None]
        return maps


@lru_cache
def _per_channel(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    """(1, 3, 1, 1) on a device, copied there once: a copy waits for all that runs on it."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def similarity(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Least-squares similarity (turn, scale, shift; no mirroring) that maps points to a template.

    points (N, K, 2), template (K, 2) → float64 (N, 2, 3). In closed form: read as complex numbers,
    it is the linear regression of the template on the points. K coinciding points get scale 1.
    """
    points = np.asarray(points, np.float64)
    centre, target_centre = points.mean(axis=1), template.mean(axis=0)
    x, y = np.moveaxis(points - centre[:, None], -1, 0)
    u, v = (template - target_centre).T
    spread = (x**2 + y**2).sum(axis=1)
    degenerate = spread < 1e-9
    spread = np.where(degenerate, 1.0, spread)
    a = np.where(degenerate, 1.0, (x * u + y * v).sum(axis=1) / spread)
    b = np.where(degenerate, 0.0, (x * v - y * u).sum(axis=1) / spread)
    turn = np.stack([np.stack([a, -b], axis=-1), np.stack([b, a], axis=-1)], axis=-2)
    shift = target_centre - np.einsum("nij,nj->ni", turn, centre)
    return np.concatenate([turn, shift[..., None]], axis=-1)


def _box_maps(middles: np.ndarray, sides: np.ndarray, size: int) -> np.ndarray:
    """Maps of rectangles with middles (N, 2) and sides (N, 2) to squares of `size` pixels."""
    sides = np.maximum(sides, 1.0)
    scale = size / sides
    # The rectangle's edge is the crop's edge: half a pixel before the first pixel's centre.
    start = middles - sides / 2
    maps = np.zeros((len(sides), 2, 3))
    maps[:, 0, 0], maps[:, 1, 1] = scale.T
    maps[:, :, 2] = -start * scale + (scale - 1) / 2
    return maps


@dataclass(frozen=True, slots=True)
class Patch:
    """What one crop needs of its frame, so that the frame can go: a piece and the map into it.

    pixels: uint8 (h, w, 3), a piece of the frame, shrunk by a whole factor where the face is larger
    than the crop. to_patch: float64 (2, 3), crop pixels → pixels of the piece.
    """

    pixels: np.ndarray
    to_patch: np.ndarray


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Pieces of frames, columns x0 … x1 and rows y0 … y1, each averaged by a whole factor.

    low, high: int (N, 2), x and y. factor: int (N,). to_patch: see `Patch`, (N, 2, 3).
    """

    low: np.ndarray
    high: np.ndarray
    factor: np.ndarray
    to_patch: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, int], matrices: np.ndarray, size: int) -> "_Pieces":
        """What crops `matrices` (N, 2, 3) of `size` pixels need of frames (height, width)."""
        to_frame = np.stack([cv2.invertAffineTransform(matrix) for matrix in matrices])
        linear, shift = to_frame[:, :, :2], to_frame[:, :, 2:]
        corners = (size - 1) * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
        reached = corners @ linear.transpose(0, 2, 1) + shift.transpose(0, 2, 1)
        factor = np.sqrt(np.abs(np.linalg.det(linear))).astype(int).clip(min=1)
        # One sample further on each side for the bilinear neighbours.
        low = np.floor(reached.min(axis=1)) - factor[:, None]
        high = np.ceil(reached.max(axis=1)) + factor[:, None] + 1
        sides = np.array(shape[::-1])
        low = low.clip(0, sides - 1).astype(int)
        high = high.clip(low + 1, sides).astype(int)
        to_frame[:, :, 2] += 0.5 - low
        to_patch = to_frame / factor[:, None, None]
        to_patch[:, :, 2] -= 0.5
        return cls(low, high, factor, to_patch)


def cut(image: np.ndarray, matrix: np.ndarray, size: int) -> Patch:
    """Cut out of a frame what the crop `matrix` (2, 3) of `size` pixels will sample.

    A face n times the crop's size is first averaged over whole n x n pixels: plain bilinear
    sampling would skip most of them, and flicker from frame to frame. Of a stretched crop n is the
    geometric mean of both directions.
    """
    of = _Pieces.of(image.shape[:2], matrix[None], size)
    (x0, y0), (x1, y1), factor = of.low[0], of.high[0], int(of.factor[0])
    piece = image[y0:y1, x0:x1]
    if factor > 1:
        rows, columns = -(y1 - y0) % factor, -(x1 - x0) % factor  # that the last average lacks
        piece = cv2.copyMakeBorder(piece, 0, rows, 0, columns, cv2.BORDER_REPLICATE)
        shrunk = (piece.shape[1] // factor, piece.shape[0] // factor)
        piece = cv2.resize(piece, shrunk, interpolation=cv2.INTER_AREA)
    return Patch(np.array(piece, order="C"), of.to_patch[0])  # the frame may go


def cut_and_warp(
    frames: torch.Tensor, of_frame: np.ndarray, matrices: np.ndarray, size: int
) -> torch.Tensor:
    """What `warp` gives of what is `cut`, within rounding, of all faces of frames on a device.

    frames uint8 (K, H, W, 3). of_frame int (N,): whose face it is. matrices (N, 2, 3): see
    `CropSpec.matrices`. Returns float32 (N, 3, size, size), 0..255.
    """
    crops = torch.empty((len(matrices), 3, size, size), device=frames.device)
    if not len(matrices):
        return crops
    of = _Pieces.of((frames.shape[1], frames.shape[2]), matrices, size)
    # All numbers in one copy, as each waits for the device; float32 is exact for those of pixels.
    numbers = np.concatenate(
        [of.to_patch.reshape(-1, 6), of.low, of.high - 1, of_frame[:, None]], axis=1
    )
    told = torch.from_numpy(numbers.astype(np.float32)).to(frames.device)
    for factor in np.unique(of.factor):
        if (of.factor == factor).all():
            return _sampled(frames, told, int(factor), size)
        chosen = torch.from_numpy((of.factor == factor).nonzero()[0]).to(frames.device)
        crops[chosen] = _sampled(frames, told[chosen], int(factor), size)
    return crops


def _sampled(frames: torch.Tensor, told: torch.Tensor, factor: int, size: int) -> torch.Tensor:
    """Crops of pieces with one factor; told (N, 11): `to_patch`, first and last x, y, frame."""
    n_at_once = max(1, PIXELS_AT_ONCE // (size * factor) ** 2)
    if len(told) > n_at_once:
        parts = torch.split(told, n_at_once)
        return torch.cat([_sampled(frames, part, factor, size) for part in parts])
    own = told[:, :, None, None]
    steps = torch.arange(size, dtype=torch.float32, device=frames.device)
    # In whole averages; clamped, so that what lies outside the frame repeats its edge.
    last_x = ((own[:, 8] - own[:, 6]) / factor).floor()
    last_y = ((own[:, 9] - own[:, 7]) / factor).floor()
    x = own[:, 0] * steps + own[:, 1] * steps[:, None] + own[:, 2]
    y = own[:, 3] * steps + own[:, 4] * steps[:, None] + own[:, 5]
    x, y = x.clamp_min(0).minimum(last_x), y.clamp_min(0).minimum(last_y)
    left, top = x.floor(), y.floor()
    right, bottom = (left + 1).minimum(last_x), (top + 1).minimum(last_y)
    offsets = torch.arange(factor, device=frames.device)
    whole = told[:, 6:, None, None, None].long()

    def averages(column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """(N, size, size) → the averages there, (N, size, size, 3)."""
        columns = (whole[:, 0] + factor * column.long()[..., None] + offsets).minimum(whole[:, 2])
        rows = (whole[:, 1] + factor * row.long()[..., None] + offsets).minimum(whole[:, 3])
        pixels = frames[whole[:, 4, ..., None], rows[..., None], columns[..., None, :]]
        if factor == 1:
            return pixels[..., 0, 0, :].float()
        return (pixels.sum(dim=(3, 4), dtype=torch.int32) / factor**2).round()

    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = torch.lerp(averages(left, top), averages(right, top), across)
    lower = torch.lerp(averages(left, bottom), averages(right, bottom), across)
    return torch.lerp(upper, lower, down).permute(0, 3, 1, 2)


def warp(patches: list[Patch], size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Sample all crops of a batch: N patches → float32 (N, 3, size, size), 0..255, RGB.

    A crop does not depend, to the last bit, on which others are sampled with it.
    """
    if not patches:
        return torch.empty((0, 3, size, size), device=device)
    to_patch = torch.as_tensor(np.stack([p.to_patch for p in patches]), dtype=torch.float32)
    along_x, along_y, shift = to_patch[:, None, None].unbind(dim=-1)  # each (N, 1, 1, 2)
    sides = torch.tensor([p.pixels.shape[1::-1] for p in patches], dtype=torch.float32)
    sides = sides[:, None, None]  # width, height
    steps = torch.arange(size, dtype=torch.float32)
    # No matrix product: how it rounds may depend on how many there are.
    grid = along_x * steps[None, None, :, None] + along_y * steps[None, :, None, None] + shift
    # Clamped to the piece, so that what lies outside the frame repeats its edge.
    grid = torch.minimum(grid.clamp_min(0), sides - 1)
    grid = ((2 * grid + 1) / sides - 1).to(device)
    crops = [
        F.grid_sample(
            torch.from_numpy(patch.pixels).to(device).permute(2, 0, 1)[None].float(),
            own[None],
            mode="bilinear",
            align_corners=False,
        )
        for patch, own in zip(patches, grid, strict=True)
    ]
    return torch.cat(crops)
