"""What anchors are asked for, and that the right answer costs nothing."""

import numpy as np
import torch

from train.detector.network import SIZES, Found, centres
from train.detector.scenes import Scene
from train.detector.targets import FACE, NOTHING, UNASKED, assign, detection_loss

CELLS = centres(128, 160)


def scene(boxes: list[list[float]], doubtful: list[list[float]] | None = None) -> Scene:
    placed = np.array(boxes, np.float32).reshape(-1, 4)
    middles = (placed[:, :2] + placed[:, 2:]) / 2
    return Scene(
        np.zeros((128, 160, 3), np.uint8),
        placed,
        np.repeat(middles[:, None], 5, axis=1),
        np.array(doubtful or [], np.float32).reshape(-1, 4),
    )


def test_cells_are_in_the_order_of_scrfd() -> None:
    assert len(CELLS) == 2 * (16 * 20 + 8 * 10 + 4 * 5)
    assert CELLS[:4].tolist() == [[0, 0, 8, 16], [0, 0, 8, 32], [8, 0, 8, 16], [8, 0, 8, 32]]
    assert CELLS[2 * 20].tolist() == [0, 8, 8, 16]
    assert CELLS[-1].tolist() == [128, 96, 32, SIZES[-1][-1]]


def test_each_face_is_asked_of_anchors_of_its_size_near_its_middle() -> None:
    faces = scene([[20, 20, 36, 36], [90, 40, 154, 104], [60, 2, 67, 9]])
    kinds, owners = assign(faces, CELLS.numpy())
    for face, size in enumerate((16, 64, 7)):
        asked = CELLS[(kinds == FACE) & (owners == face)].numpy()
        assert len(asked) >= 1
        middle = (faces.boxes[face, :2] + faces.boxes[face, 2:]) / 2
        assert np.abs(asked[:, :2] - middle).max() <= max(0.75 * asked[:, 2].max(), 0.2 * size)
        assert np.abs(np.log2(asked[:, 3] / max(size, 16))).max() <= 0.75
    assert (kinds == NOTHING).mean() > 0.8
    assert (kinds == UNASKED).any()


def test_nothing_is_asked_inside_a_doubtful_face() -> None:
    kinds, _ = assign(scene([], [[40, 40, 80, 80]]), CELLS.numpy())
    inside = ((CELLS[:, :2] >= 40) & (CELLS[:, :2] <= 80)).all(dim=1).numpy()
    assert (kinds[inside] == UNASKED).all()
    assert (kinds[~inside] == NOTHING).all()


def answer(faces: Scene, kinds: np.ndarray, owners: np.ndarray, *, logit: float) -> Found:
    """The right boxes and points, and scores of ± logit."""
    at, stride = CELLS[:, :2], CELLS[:, 2:3]
    boxes, points = torch.from_numpy(faces.boxes[owners]), torch.from_numpy(faces.points[owners])
    distances = torch.cat([at - boxes[:, :2], boxes[:, 2:] - at], dim=1) / stride
    offsets = ((points - at[:, None]) / stride[:, None]).flatten(1)
    logits = torch.where(torch.from_numpy(kinds) == FACE, logit, -logit)
    return Found(logits[None], distances[None], offsets[None])


def losses(faces: Scene, found: Found, kinds: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    given = detection_loss(
        found,
        CELLS,
        torch.from_numpy(kinds)[None],
        torch.from_numpy(faces.boxes[owners])[None],
        torch.from_numpy(faces.points.reshape(-1, 10)[owners])[None],
    )
    return {name: loss.item() for name, loss in given.items()}


def test_the_right_answer_costs_nothing_and_a_wrong_one_does() -> None:
    faces = scene([[20, 20, 36, 36], [90, 40, 154, 104]])
    kinds, owners = assign(faces, CELLS.numpy())
    right = losses(faces, answer(faces, kinds, owners, logit=20.0), kinds, owners)
    assert max(right.values()) < 1e-4
    found = answer(faces, kinds, owners, logit=20.0)
    half = Found(found.logits, found.boxes * 0.5, found.points + 0.5)
    wrong = losses(faces, half, kinds, owners)
    assert wrong["box"] > 1
    assert wrong["points"] > 0.1
    assert losses(faces, found._replace(logits=-found.logits), kinds, owners)["score"] > 10


def test_a_scene_without_faces_has_finite_losses() -> None:
    faces = scene([])
    kinds, _ = assign(faces, CELLS.numpy())
    m = len(CELLS)
    found = Found(torch.zeros(1, m), torch.ones(1, m, 4), torch.zeros(1, m, 10))
    given = detection_loss(
        found, CELLS, torch.from_numpy(kinds)[None], torch.zeros(1, m, 4), torch.zeros(1, m, 10)
    )
    assert given["score"] > 0
    assert given["box"] == given["points"] == 0
