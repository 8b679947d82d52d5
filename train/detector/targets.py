"""What each cell and anchor should say of a scene, and how wrong it is."""

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss

from train.detector.network import SIZES, Found
from train.detector.scenes import Scene

FACE, NOTHING, UNASKED = 1, 0, -1
FIT, NEARLY = 0.75, 1.1  # octaves between a face and the size that an anchor stands for
NEAR, AROUND = (0.75, 0.2), (1.3, 0.4)  # from a face's middle, in strides or in its sizes
SMALLEST, LARGEST = SIZES[0][0], SIZES[-1][-1]
BOX_WEIGHT, POINTS_WEIGHT = 2.0, 5.0


def assign(scene: Scene, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which face each anchor speaks for.

    cells (M, 4): x, y, stride, size (see `train.detector.network.centres`). Returns kinds int8 (M,)
    of FACE, NOTHING and UNASKED, and the faces' indices int64 (M,).
    """
    kinds = np.full(len(cells), NOTHING, np.int8)
    owners = np.zeros(len(cells), np.int64)
    for x1, y1, x2, y2 in scene.doubtful:
        inside = (cells[:, 0] >= x1) & (cells[:, 0] <= x2)
        inside &= (cells[:, 1] >= y1) & (cells[:, 1] <= y2)
        kinds[inside] = UNASKED
    if not len(scene.boxes):
        return kinds, owners
    # (N, 1) of faces with (M,) of anchors: reduced over the first axis, which is fast.
    low, high = scene.boxes[:, :2], scene.boxes[:, 2:]
    sizes = np.sqrt((high - low).prod(axis=1, keepdims=True))
    x, y = ((low + high) / 2).T[..., None]
    octaves = np.abs(np.log2(cells[:, 3]) - np.log2(sizes.clip(SMALLEST, LARGEST)))
    apart = np.maximum(np.abs(cells[:, 0] - x), np.abs(cells[:, 1] - y))
    stride = cells[:, 2]
    near = apart <= np.maximum(NEAR[0] * stride, NEAR[1] * sizes)
    around = apart <= np.maximum(AROUND[0] * stride, AROUND[1] * sizes)
    is_face = near & (octaves <= FIT)
    kinds[(around & (octaves <= NEARLY)).any(axis=0)] = UNASKED
    kinds[is_face.any(axis=0)] = FACE
    owners[:] = np.where(is_face, apart, np.inf).argmin(axis=0)
    return kinds, owners


def detection_loss(
    found: Found,
    cells: torch.Tensor,
    kinds: torch.Tensor,
    boxes: torch.Tensor,
    points: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Score, box and landmark losses, each a scalar.

    cells (M, 4). kinds (N, M). boxes (N, M, 4) and points (N, M, 10) in pixels: what the anchors of
    FACE should say. Scores learn by the quality focal loss (Li et al., "Generalized Focal Loss",
    NeurIPS 2020), but a face's target is (1 + IoU) / 2, so that one whose box does not fit yet is
    still a face; boxes by generalised IoU, landmarks by their distance in sizes of the face.
    """
    is_face = kinds == FACE
    n, m = is_face.nonzero(as_tuple=True)
    count = max(1, len(n))
    at, stride = cells[m, :2], cells[m, 2:3]
    distances = found.boxes[n, m] * stride
    predicted = torch.cat([at - distances[:, :2], at + distances[:, 2:]], dim=1)
    wanted = boxes[n, m]
    overlap = 1 - generalized_box_iou_loss(predicted, wanted)
    sides = (wanted[:, 2:] - wanted[:, :2]).prod(dim=1).sqrt()
    said = found.points[n, m] * stride + at.repeat(1, 5)
    off = (said - points[n, m]).abs().mean(dim=1) / sides

    target = torch.zeros_like(found.logits)
    target[n, m] = 0.5 + 0.5 * overlap.detach().clamp(0, 1)
    surprise = (found.logits.sigmoid() - target).abs().square()
    scores = F.binary_cross_entropy_with_logits(found.logits, target, reduction="none") * surprise
    return {
        "score": scores[kinds != UNASKED].sum() / count,
        "box": BOX_WEIGHT * (1 - overlap).sum() / count,
        "points": POINTS_WEIGHT * off.sum() / count,
    }
