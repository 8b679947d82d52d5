"""Hard negatives: what a network takes for a face in pictures without one."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from train.detector.material import Labelled
from train.detector.network import STRIDES, centres


@torch.inference_mode()
def most_like_faces(net: nn.Module, pictures: list[Labelled]) -> np.ndarray:
    """Of each picture the cell with the highest score: float32 (N, 3).

    The score, before any shift, and the cell's centre, x and y in shares of width and height. net:
    a `FaceNet` in evaluation mode.
    """
    device = next(net.parameters()).device
    found = np.zeros((len(pictures), 3), np.float32)
    for row, labelled in zip(found, pictures, strict=True):
        picture = torch.from_numpy(labelled.picture()).to(device).permute(2, 0, 1)[None].float()
        height, width = picture.shape[2:]
        right, below = -width % STRIDES[-1], -height % STRIDES[-1]
        logits = net(F.pad((picture - 127.5) / 128, (0, right, 0, below))).logits[0]
        cells = centres(height + below, width + right, device)[:, :2]
        is_inside = (cells < cells.new_tensor([width, height])).all(dim=1)
        best = logits.where(is_inside, -torch.inf).argmax()
        x, y = cells[best].tolist()
        row[:] = logits[best].sigmoid().item(), x / width, y / height
    return found
