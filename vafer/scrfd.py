"""SCRFD in true batches on a GPU: shrinking, the network, decoding of boxes and non-maximum
suppression all on the device. Gives what insightface gives, within rounding (bench/gpu.py).

Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", ICLR 2022.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.ops import batched_nms

from vafer.errors import ModelError
from vafer.onnx_torch import Graph

STRIDES = (8, 16, 32)
N_ANCHORS = 2


class SCRFD:
    """A detector file of SCRFD's output layout: three strides, two anchors, with landmarks or not.

    Raises ModelError when the file has another layout or cannot be run by PyTorch.
    """

    def __init__(self, path: Path, device: torch.device | str) -> None:
        self.device = torch.device(device)
        try:
            self._graph = Graph(path, self.device)
            n_outputs = len(self._graph.outputs)
            if n_outputs not in (6, 9):
                raise ModelError(f"{path} has {n_outputs} outputs: expected 6 or 9, as SCRFD has")
            self.has_landmarks = n_outputs == 9
            self._cells_come_first = self._layout(path)
        except ModelError:
            raise
        except Exception as error:  # whatever a foreign graph makes of the trial in `_layout`
            raise ModelError(f"{path} cannot be run by PyTorch: {error!r}") from error

    def _layout(self, path: Path) -> bool:
        """Whether rows of outputs run over cells, then pictures, or the other way: files say not.

        insightface's exports are for one picture; of more, some give one order, some the other.
        """
        pictures = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        pictures = pictures.to(self.device) * 2 - 1
        singles = [self._graph(one[None]) for one in pictures]
        alone = [
            torch.cat([_split(t, 1, first=True) for t in parts])
            for parts in zip(*singles, strict=True)
        ]
        together = self._graph(pictures)
        for cells_come_first in (False, True):
            split = [_split(t, 2, first=cells_come_first) for t in together]
            if all(
                a.shape == b.shape and (a - b).abs().mean() <= 1e-3 + 1e-2 * a.abs().mean()
                for a, b in zip(alone, split, strict=True)
            ):
                return cells_come_first
        raise ModelError(f"{path} does not give of two pictures what it gives of each")

    @torch.inference_mode()
    def detect(
        self,
        frames: torch.Tensor,
        inner: tuple[int, int],
        canvas: tuple[int, int],
        *,
        threshold: float,
        iou: float,
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Faces of frames of one size.

        frames: uint8 (N, H, W, 3), RGB, on the device. They are shrunk to `inner` and padded with
        black to `canvas`, both (height, width). Returns for each frame boxes with scores float32
        (K, 5) and landmarks (K, 5, 2) or None, in pixels of the canvas, by descending score, on the
        CPU.
        """
        pictures = frames.permute(0, 3, 1, 2).float()
        if inner != tuple(pictures.shape[2:]):
            pictures = F.interpolate(pictures, size=inner, mode="bilinear", align_corners=False)
            pictures = pictures.round()
        pictures = F.pad(pictures, (0, canvas[1] - inner[1], 0, canvas[0] - inner[0]))
        raw = self._graph((pictures - 127.5) / 128)
        n = len(frames)
        parts = [_split(t, n, first=self._cells_come_first) for t in raw]
        centres, strides = _centres(canvas, self.device)
        scores = torch.cat(parts[:3], dim=1)[..., 0]
        picture, cell = (scores >= threshold).nonzero(as_tuple=True)
        at, stride = centres[cell], strides[cell, None]
        distances = torch.cat(parts[3:6], dim=1)[picture, cell] * stride
        boxes = torch.cat([at - distances[:, :2], at + distances[:, 2:]], dim=1)
        # One pixel more, as insightface counts the pixels of a box.
        counted = boxes + boxes.new_tensor([0, 0, 1, 1])
        found = scores[picture, cell]
        keep = batched_nms(counted, found, picture, iou)
        rows = torch.cat([picture[keep, None].float(), boxes[keep], found[keep, None]], dim=1)
        if self.has_landmarks:
            points = torch.cat(parts[6:], dim=1)[picture, cell][keep] * stride[keep]
            rows = torch.cat([rows, points + at[keep].repeat(1, 5)], dim=1)
        rows = rows.cpu()
        of = [rows[rows[:, 0] == i] for i in range(n)]
        return [
            (own[:, 1:6], own[:, 6:].reshape(-1, 5, 2) if self.has_landmarks else None)
            for own in of
        ]


def _split(values: torch.Tensor, n: int, *, first: bool) -> torch.Tensor:
    """Rows of n pictures → (n, cells · anchors, C). first: cells come first in rows."""
    if values.ndim == 3:
        return values
    channels = values.shape[-1]
    if not first:
        return values.reshape(n, -1, channels)
    by_cell = values.reshape(-1, n, N_ANCHORS, channels)
    return by_cell.transpose(0, 1).reshape(n, -1, channels)


@lru_cache(maxsize=8)
def _centres(canvas: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all anchors: x, y in pixels (M, 2), and strides (M,)."""
    centres, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(
            torch.arange(canvas[0] // stride, device=device),
            torch.arange(canvas[1] // stride, device=device),
            indexing="ij",
        )
        cells = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).expand(-1, N_ANCHORS, -1)
        centres.append(cells.reshape(-1, 2) * stride)
        strides.append(torch.full((len(centres[-1]),), stride, device=device))
    return torch.cat(centres).float(), torch.cat(strides).float()
