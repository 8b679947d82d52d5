"""Frames + faces → crops, the same way for training and for annotation.

A crop is a similarity or a box map from frame pixels to crop pixels, followed by one bilinear
`grid_sample` over all faces of a batch. Pixel centres lie at whole numbers, as in `cv2.warpAffine`.
"""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal

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

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


@dataclass(frozen=True, slots=True)
class CropSpec:
    """How a face becomes the network's input. It is stored in the model file.

    kind: `aligned` (similarity that brings five landmarks onto `template`) or `box` (square around
    the detector's box: its longer side, times 1 + `margin`). size: pixels. template: five (x, y) as
    shares of the crop's side. grey: colour is replaced by luma, for networks trained on grey faces.
    mean, std: per channel, of values in [0, 1]. Outside the frame its edge pixels are repeated.
    """

    kind: Literal["aligned", "box"] = "aligned"
    size: int = 112
    template: tuple[tuple[float, float], ...] = FACE_TEMPLATE
    margin: float = 0.0
    grey: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.kind not in ("aligned", "box"):
            raise ModelError(f"crop kind is {self.kind!r}: expected 'aligned' or 'box'")
        if self.size < 1:
            raise ModelError(f"crop size is {self.size}: expected 1 pixel or more")
        if np.shape(self.template) != (5, 2):
            raise ModelError(f"crop template has shape {np.shape(self.template)}: expected (5, 2)")
        if self.margin < 0:
            raise ModelError(f"crop margin is {self.margin}: expected 0 or more")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ModelError("crop mean and std: expected three values each, std above 0")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CropSpec":
        """Rebuild a spec from `to_dict`, as read from JSON. Raises ModelError on anything else."""
        try:
            spec = cls(**values)
            r, g, b = map(float, spec.mean)
            rs, gs, bs = map(float, spec.std)
            template = tuple((float(x), float(y)) for x, y in spec.template)
            return replace(spec, template=template, mean=(r, g, b), std=(rs, gs, bs))
        except (TypeError, ValueError) as error:
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

    def matrices(self, boxes: np.ndarray, landmarks: np.ndarray | None) -> np.ndarray:
        """Maps from frame pixels to crop pixels: boxes (N, 4), landmarks (N, 5, 2) → (N, 2, 3).

        Raises ModelError when the spec aligns by landmarks and there are none.
        """
        if self.kind == "aligned":
            if landmarks is None:
                raise ModelError(
                    "this model aligns faces by five landmarks and the detector gives none: "
                    "use a detector with landmarks"
                )
            return similarity(landmarks, np.asarray(self.template) * self.size)
        return _box_maps(boxes, self.margin, self.size)


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


def _box_maps(boxes: np.ndarray, margin: float, size: int) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) * (1 + margin)
    scale = size / np.maximum(side, 1.0)
    # The square's edge is the crop's edge: half a pixel before the first pixel's centre.
    start = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.maximum(side, 1.0)[:, None] / 2
    maps = np.zeros((len(boxes), 2, 3))
    maps[:, 0, 0] = maps[:, 1, 1] = scale
    maps[:, :, 2] = -start * scale[:, None] + (scale[:, None] - 1) / 2
    return maps


@dataclass(frozen=True, slots=True)
class Patch:
    """What one crop needs of its frame, so that the frame can go: a piece and the map into it.

    pixels: uint8 (h, w, 3), a piece of the frame, shrunk by a whole factor where the face is larger
    than the crop; in memory or on a device. to_patch: float64 (2, 3), crop pixels → pixels of the
    piece.
    """

    pixels: np.ndarray | torch.Tensor
    to_patch: np.ndarray


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a frame, columns x0 … x1 and rows y0 … y1, that is averaged by a whole factor."""

    x0: int
    x1: int
    y0: int
    y1: int
    factor: int
    to_patch: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, int], matrix: np.ndarray, size: int) -> "_Piece":
        height, width = shape
        to_frame = np.asarray(cv2.invertAffineTransform(matrix), np.float64)
        corners = np.array([[0, 0, 1], [size - 1, 0, 1], [0, size - 1, 1], [size - 1, size - 1, 1]])
        reached = corners @ to_frame.T
        factor = max(1, int(np.sqrt(abs(np.linalg.det(to_frame[:, :2])))))
        # One sample further on each side for the bilinear neighbours.
        low = np.floor(reached.min(axis=0)) - factor
        high = np.ceil(reached.max(axis=0)) + factor + 1
        x0, y0 = (int(np.clip(v, 0, n - 1)) for v, n in zip(low, (width, height), strict=True))
        x1, y1 = (int(np.clip(v, s + 1, n)) for v, s, n in
                  zip(high, (x0, y0), (width, height), strict=True))  # fmt: skip
        to_patch = to_frame.copy()
        to_patch[:, 2] += 0.5 - np.array([x0, y0])
        to_patch /= factor
        to_patch[:, 2] -= 0.5
        return cls(x0, x1, y0, y1, factor, to_patch)

    @property
    def missing(self) -> tuple[int, int]:
        """Rows and columns that a whole number of averages lacks at the end."""
        return -(self.y1 - self.y0) % self.factor, -(self.x1 - self.x0) % self.factor


def cut(image: np.ndarray, matrix: np.ndarray, size: int) -> Patch:
    """Cut out of a frame what the crop `matrix` (2, 3) of `size` pixels will sample.

    A face n times the crop's size is first averaged over whole n x n pixels: plain bilinear
    sampling would skip most of them, and flicker from frame to frame.
    """
    of = _Piece.of(image.shape[:2], matrix, size)
    piece = image[of.y0 : of.y1, of.x0 : of.x1]
    if of.factor > 1:
        rows, columns = of.missing
        piece = cv2.copyMakeBorder(piece, 0, rows, 0, columns, cv2.BORDER_REPLICATE)
        shrunk = (piece.shape[1] // of.factor, piece.shape[0] // of.factor)
        piece = cv2.resize(piece, shrunk, interpolation=cv2.INTER_AREA)
    return Patch(np.array(piece, order="C"), of.to_patch)  # the frame may go


def cut_on_device(frame: torch.Tensor, matrix: np.ndarray, size: int) -> Patch:
    """The same of a frame that is on a device, uint8 (H, W, 3); the piece stays there."""
    of = _Piece.of((frame.shape[0], frame.shape[1]), matrix, size)
    piece = frame[of.y0 : of.y1, of.x0 : of.x1]
    if of.factor > 1:
        rows, columns = of.missing
        planes = piece.permute(2, 0, 1)[None].float()
        planes = F.avg_pool2d(F.pad(planes, (0, columns, 0, rows), mode="replicate"), of.factor)
        return Patch(planes[0].permute(1, 2, 0).round().byte(), of.to_patch)
    return Patch(piece.clone(), of.to_patch)  # the frame may go


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
            torch.as_tensor(patch.pixels).to(device).permute(2, 0, 1)[None].float(),
            own[None],
            mode="bilinear",
            align_corners=False,
        )
        for patch, own in zip(patches, grid, strict=True)
    ]
    return torch.cat(crops)
