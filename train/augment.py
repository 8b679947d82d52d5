"""What a face may look like in a recording and did not in its picture; a whole batch at once."""

import math

import torch
import torch.nn.functional as F

from train.draws import BatchDraws

TURN = math.radians(15)
ZOOM = 0.14
STRETCH = 0.06
SHIFT = 0.06  # of the widened crop's side
COARSEST = 4.0  # a face may have this many times fewer pixels than the crop


def middle(crops: torch.Tensor, size: int) -> torch.Tensor:
    """Widened crops (N, C, S, S) → their middle (N, C, size, size), as annotation would cut it."""
    border = (crops.shape[-1] - size) // 2
    return crops[..., border : border + size, border : border + size]


def crop_and_flip(crops: torch.Tensor, size: int, draws: BatchDraws) -> torch.Tensor:
    """Random crop and horizontal flip, the paper's: (N, C, S, S) → (N, C, size, size)."""
    n, channels, wide = crops.shape[:3]
    steps = torch.arange(size, device=crops.device)
    rows = draws.integers(wide - size + 1)[:, None] + steps
    columns = draws.integers(wide - size + 1)[:, None] + steps
    is_flipped = draws.uniform(0, 1) < 0.5
    columns = torch.where(is_flipped[:, None], columns.flip(1), columns)
    return crops[
        torch.arange(n, device=crops.device)[:, None, None, None],
        torch.arange(channels, device=crops.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def vary(crops: torch.Tensor, size: int, draws: BatchDraws) -> torch.Tensor:
    """Turn, zoom, blur, light, noise, occlusion: (N, C, S, S), 0..255 → (N, C, size, size)."""
    crops = _move(crops.float(), size, draws)
    crops = _coarsen(crops, draws)
    crops = _relight(crops, draws)
    return _cover(crops, draws).clamp(0, 255)


def _move(crops: torch.Tensor, size: int, draws: BatchDraws) -> torch.Tensor:
    n, wide = len(crops), crops.shape[-1]
    angle = draws.uniform(-TURN, TURN)
    zoom = torch.exp(draws.uniform(-ZOOM, ZOOM)) * size / wide
    stretch = torch.exp(draws.uniform(-STRETCH, STRETCH))
    mirror = torch.sign(draws.uniform(-1, 1))
    theta = torch.zeros(n, 2, 3, device=crops.device)
    theta[:, 0, 0] = torch.cos(angle) * zoom * stretch * mirror
    theta[:, 0, 1] = -torch.sin(angle) * zoom
    theta[:, 1, 0] = torch.sin(angle) * zoom * mirror
    theta[:, 1, 1] = torch.cos(angle) * zoom / stretch
    theta[:, 0, 2] = draws.uniform(-2 * SHIFT, 2 * SHIFT)
    theta[:, 1, 2] = draws.uniform(-2 * SHIFT, 2 * SHIFT)
    grid = F.affine_grid(theta, [n, crops.shape[1], size, size], align_corners=False)
    return F.grid_sample(crops, grid, padding_mode="border", align_corners=False)


def _coarsen(crops: torch.Tensor, draws: BatchDraws) -> torch.Tensor:
    """Half of the faces lose resolution, as a small or blurred face has."""
    size = crops.shape[-1]
    small = F.interpolate(crops, size=round(size / draws.common(1, COARSEST)), mode="area")
    coarse = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    return torch.where(_a_share(0.5, draws), coarse, crops)


def _relight(crops: torch.Tensor, draws: BatchDraws) -> torch.Tensor:
    gamma = torch.exp(draws.uniform(-0.5, 0.5)).view(-1, 1, 1, 1)
    contrast = torch.exp(draws.uniform(-0.4, 0.4)).view(-1, 1, 1, 1)
    brightness = draws.uniform(-40, 40).view(-1, 1, 1, 1)
    noise = draws.normal(*crops.shape[1:]) * draws.uniform(0, 8).view(-1, 1, 1, 1)
    crops = 255 * (crops.clamp(0, 255) / 255) ** gamma
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    return (crops - mean) * contrast + mean + brightness + noise


def _cover(crops: torch.Tensor, draws: BatchDraws) -> torch.Tensor:
    """A quarter of the faces loses a rectangle, as behind a hand or a microphone."""
    size = crops.shape[-1]
    steps = torch.arange(size, device=crops.device)
    within = []
    for _ in ("columns", "rows"):
        start = draws.uniform(-0.1, 0.9)[:, None] * size
        length = draws.uniform(0.15, 0.5)[:, None] * size
        within.append((steps >= start) & (steps < start + length))
    columns, rows = within
    inside = columns[:, None, None, :] & rows[:, None, :, None]
    grey = draws.uniform(0, 255).view(-1, 1, 1, 1)
    return torch.where(inside & _a_share(0.25, draws), grey, crops)


def _a_share(share: float, draws: BatchDraws) -> torch.Tensor:
    return (draws.uniform(0, 1) < share).view(-1, 1, 1, 1)
