"""What a face may look like in a recording and did not in its picture; a whole batch at once."""

import math

import torch
import torch.nn.functional as F

TURN = math.radians(15)
ZOOM = 0.14
STRETCH = 0.06
SHIFT = 0.06  # of the widened crop's side
COARSEST = 4.0  # a face may have this many times fewer pixels than the crop


def augment(crops: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Widened crops (N, C, S, S), 0..255 → varied crops (N, C, size, size), 0..255."""
    crops = _move(crops.float(), size, generator)
    crops = _coarsen(crops, generator)
    crops = _relight(crops, generator)
    return _cover(crops, generator).clamp(0, 255)


def centre(crops: torch.Tensor, size: int) -> torch.Tensor:
    """Widened crops (N, C, S, S) → their middle (N, C, size, size), as annotation would cut it."""
    border = (crops.shape[-1] - size) // 2
    return crops[..., border : border + size, border : border + size].float()


def _uniform(
    n: int, low: float, high: float, like: torch.Tensor, g: torch.Generator
) -> torch.Tensor:
    return torch.rand(n, generator=g, device=g.device).to(like.device) * (high - low) + low


def _move(crops: torch.Tensor, size: int, g: torch.Generator) -> torch.Tensor:
    n, wide = len(crops), crops.shape[-1]
    angle = _uniform(n, -TURN, TURN, crops, g)
    zoom = torch.exp(_uniform(n, -ZOOM, ZOOM, crops, g)) * size / wide
    stretch = torch.exp(_uniform(n, -STRETCH, STRETCH, crops, g))
    mirror = torch.sign(_uniform(n, -1, 1, crops, g))
    theta = torch.zeros(n, 2, 3, device=crops.device)
    theta[:, 0, 0] = torch.cos(angle) * zoom * stretch * mirror
    theta[:, 0, 1] = -torch.sin(angle) * zoom
    theta[:, 1, 0] = torch.sin(angle) * zoom * mirror
    theta[:, 1, 1] = torch.cos(angle) * zoom / stretch
    theta[:, :, 2] = _uniform(2 * n, -2 * SHIFT, 2 * SHIFT, crops, g).view(n, 2)
    grid = F.affine_grid(theta, [n, crops.shape[1], size, size], align_corners=False)
    return F.grid_sample(crops, grid, padding_mode="border", align_corners=False)


def _coarsen(crops: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Half of the batch loses resolution, as a small or blurred face has."""
    size = crops.shape[-1]
    factor = float(_uniform(1, 1, COARSEST, crops, g))
    half = torch.randperm(len(crops), generator=g, device=g.device)[: len(crops) // 2]
    half = half.to(crops.device)
    small = F.interpolate(crops[half], size=round(size / factor), mode="area")
    crops = crops.clone()
    crops[half] = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    return crops


def _relight(crops: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    n = len(crops)
    shape = (n, 1, 1, 1)
    gamma = torch.exp(_uniform(n, -0.5, 0.5, crops, g)).view(shape)
    contrast = torch.exp(_uniform(n, -0.4, 0.4, crops, g)).view(shape)
    brightness = _uniform(n, -40, 40, crops, g).view(shape)
    crops = 255 * (crops.clamp(0, 255) / 255) ** gamma
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    noise = torch.randn(crops.shape, generator=g, device=g.device).to(crops.device)
    return (
        (crops - mean) * contrast
        + mean
        + brightness
        + noise * _uniform(n, 0, 8, crops, g).view(shape)
    )


def _cover(crops: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A quarter of the faces loses a rectangle, as behind a hand or a microphone."""
    n, size = len(crops), crops.shape[-1]
    steps = torch.arange(size, device=crops.device)
    inside = torch.ones(n, 1, size, size, dtype=torch.bool, device=crops.device)
    for axis_shape in ((n, 1, 1, size), (n, 1, size, 1)):
        length = _uniform(n, 0.15, 0.5, crops, g) * size
        start = _uniform(n, -0.1, 0.9, crops, g) * size
        within = (steps >= start[:, None]) & (steps < (start + length)[:, None])
        inside = inside & within.view(axis_shape)
    chosen = _uniform(n, 0, 1, crops, g) < 0.25
    grey = _uniform(n, 0, 255, crops, g).view(n, 1, 1, 1)
    return torch.where(inside & chosen.view(n, 1, 1, 1), grey, crops)
