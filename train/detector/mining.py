"""Hard negatives: what a network takes for a face in pictures without one."""

import torch
import torch.nn.functional as F
from torch import nn

from train.detector.material import Labelled
from train.detector.network import STRIDES, centres


@torch.inference_mode()
def most_like_faces(net: nn.Module, pictures: list[Labelled]) -> torch.Tensor:
    """Of each picture the cell of the highest score: float32 (N, 3) on the CPU.

    The score, before `SHIFTS`, and the cell's x and y in shares of width and height. net: a
    `FaceNet`, in evaluation mode.
    """
    device = next(net.parameters()).device
    found = torch.zeros(len(pictures), 3)
    for row, labelled in zip(found, pictures, strict=True):
        picture = torch.from_numpy(labelled.picture()).to(device).permute(2, 0, 1)[None].float()
        height, width = picture.shape[2:]
        # Zeros are what a mid grey becomes; insightface pads so, too.
        right, below = -width % STRIDES[-1], -height % STRIDES[-1]
        scores = net(F.pad((picture - 127.5) / 128, (0, right, 0, below))).logits[0].sigmoid()
        best = scores.argmax()
        x, y = centres(height + below, width + right)[best.item(), :2].tolist()
        row[:] = torch.tensor([scores[best].item(), min(x / width, 1.0), min(y / height, 1.0)])
    return found
