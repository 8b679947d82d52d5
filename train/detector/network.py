"""The detector's network, in SCRFD's output layout: picture → scores, boxes, landmarks per stride.

A cell of each of three maps (strides 8, 16, 32) speaks for two sizes of faces, as SCRFD's two
anchors do (Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", ICLR
2022), so that whatever loads SCRFD loads this.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

STRIDES = (8, 16, 32)
SIZES = ((16, 32), (64, 128), (256, 512))  # pixels of a face, per stride and anchor
N_ANCHORS = 2
N_POINTS = 5
WIDTHS = (16, 48, 96, 160, 160)  # channels at strides 2, 4, 8, 16, 32
N_NECK = 80
PRIOR = 0.01  # score that every cell starts with


class Found(NamedTuple):
    """What the network says of a batch, over all cells and anchors of all strides, M in all.

    logits (N, M). boxes (N, M, 4): distances to left, top, right, bottom. points (N, M, 10): x, y
    from the cell's centre. Both in strides.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
    points: torch.Tensor


class _Conv2d(nn.Conv2d):
    """The same values. In training on a CPU, depthwise convolutions with a stride are computed
    everywhere, and only what the stride asks for is kept.

    oneDNN takes some three to ten times as long for the gradient of a depthwise convolution with a
    stride of 2 as for that of one without (a profile, by no command that is kept).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stride = self.stride[0]
        is_slow = self.groups > 1 and stride > 1 and x.device.type == "cpu"
        if not (self.training and is_slow):
            return super().forward(x)
        dense = F.conv2d(x, self.weight, self.bias, padding=self.padding, groups=self.groups)
        return dense[..., ::stride, ::stride].contiguous(memory_format=torch.channels_last)


def _conv(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        _Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


def _separable(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(n_in, n_in, 3, stride, n_in), _conv(n_in, n_out, 1))


class FaceNet(nn.Module):
    """Pictures (N, 3, H, W), RGB, (x − 127.5) / 128, H and W multiples of 32 → `Found`."""

    def __init__(self) -> None:
        super().__init__()
        w = WIDTHS
        self.stem = nn.Sequential(
            _conv(3, w[0], 3, 2), _separable(w[0], w[1], 2), _separable(w[1], w[1])
        )
        self.stages = nn.ModuleList(
            nn.Sequential(_separable(n_in, n_out, 2), *(_separable(n_out, n_out) for _ in range(n)))
            for n_in, n_out, n in ((w[1], w[2], 3), (w[2], w[3], 3), (w[3], w[4], 2))
        )
        self.lateral = nn.ModuleList(_conv(n, N_NECK, 1) for n in w[2:])
        self.smooth = nn.ModuleList(
            nn.Sequential(_separable(N_NECK, N_NECK), _separable(N_NECK, N_NECK)) for _ in STRIDES
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(N_NECK, N_ANCHORS * (1 + 4 + 2 * N_POINTS), 1) for _ in STRIDES
        )
        for head in self.heads:
            assert isinstance(head, nn.Conv2d)
            nn.init.normal_(head.weight, std=0.01)
            assert head.bias is not None
            nn.init.zeros_(head.bias)
            with torch.no_grad():
                odds = PRIOR / (1 - PRIOR)
                head.bias.view(N_ANCHORS, -1)[:, 0] = torch.tensor(odds).log()

    def maps(self, x: torch.Tensor) -> list[Found]:
        """`Found` of each stride."""
        x = self.stem(x)
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2.0, mode="nearest")
        smoothed = [smooth(level) for level, smooth in zip(levels, self.smooth, strict=True)]
        with torch.autocast(x.device.type, enabled=False):
            return [
                _decode(head(level.float()), i)
                for i, (level, head) in enumerate(zip(smoothed, self.heads, strict=True))
            ]

    def forward(self, x: torch.Tensor) -> Found:
        return Found(*(torch.cat(parts, dim=1) for parts in zip(*self.maps(x), strict=True)))


def _decode(raw: torch.Tensor, level: int) -> Found:
    """(N, 2 · 15, h, w) → values per cell and anchor, in the order rows, columns, anchors."""
    values = raw.permute(0, 2, 3, 1).reshape(len(raw), -1, N_ANCHORS, 1 + 4 + 2 * N_POINTS)
    half = values.new_tensor(SIZES[level]).view(1, 1, N_ANCHORS, 1) / 2 / STRIDES[level]
    boxes = half * values[..., 1:5].clamp(-4, 4).exp()
    points = half * values[..., 5:]
    return Found(values[..., 0].flatten(1), boxes.flatten(1, 2), points.flatten(1, 2))


class SCRFDLayout(nn.Module):
    """The network as SCRFD's ONNX files give it: one picture → nine outputs of (cells · 2, C).

    Scores first, of strides 8, 16, 32, then boxes, then landmarks. shift: of the logits, downwards.
    """

    def __init__(self, net: FaceNet, shift: float) -> None:
        super().__init__()
        self.net, self.shift = net, shift

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.net.maps(x)
        scores = [(m.logits.reshape(-1, 1) - self.shift).sigmoid() for m in maps]
        boxes = [m.boxes.reshape(-1, 4) for m in maps]
        points = [m.points.reshape(-1, 2 * N_POINTS) for m in maps]
        return (*scores, *boxes, *points)


def centres(height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Of all cells and anchors of a picture: x, y in pixels, stride, size of face (M, 4)."""
    rows = []
    for stride, sizes in zip(STRIDES, SIZES, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height // stride), torch.arange(width // stride), indexing="ij"
        )
        cells = torch.stack([x, y], dim=-1).reshape(-1, 1, 2) * stride
        anchors = torch.tensor([[stride, size] for size in sizes])
        rows.append(
            torch.cat(
                [cells.expand(-1, N_ANCHORS, -1), anchors.expand(len(cells), -1, -1)], dim=-1
            ).reshape(-1, 4)
        )
    return torch.cat(rows).float().to(device)
