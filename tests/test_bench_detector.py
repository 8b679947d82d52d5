"""What `bench/detector.py` counts: the figures of a detector's card."""

import numpy as np
import polars as pl
import pytest

from bench.boxes import ious, landmark_errors, match
from bench.detector import held_out
from bench.detector_agreement import BLOCK, Agreement, above, interval, summary
from bench.detector_false import rates, variants
from train.detector.material import LFW_FOLDS
from train.sets import NO_IDENTITY, fold_of
from vafer.faces import Faces


def faces(*boxes: tuple[float, float, float, float], scores: list[float] | None = None) -> Faces:
    """With landmarks at a box's left, right and middle, and at its lower corners."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    x0, y0, x1, y1 = array.T
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    points = [[x0, y], [x1, y], [x, y], [x0, y1], [x1, y1]]
    landmarks = np.array(points, np.float32).transpose(2, 0, 1)
    return Faces(array, np.array(scores or [0.9] * len(array), np.float32), landmarks)


def test_the_overlap_of_boxes_is_their_intersection_over_their_union() -> None:
    first = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 2]], float)
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], float)
    expected = [[1, 1 / 3, 0], [1, 1 / 3, 0], [0.08, 0, 0]]
    np.testing.assert_allclose(ious(first, second), expected)


def test_the_nearest_pair_is_matched_first_and_none_below_a_half() -> None:
    true = faces((0, 0, 100, 100), (10, 0, 110, 100), (300, 0, 400, 100))
    ours = faces((12, 0, 112, 100), (360, 0, 460, 100), (20, 0, 120, 100))
    rows, found = match(true, ours)
    assert rows.tolist() == [2, 0, -1]  # the first would rather have had box 0
    np.testing.assert_allclose(found, [80 / 120, 98 / 102, 0])
    assert match(faces(), ours)[0].tolist() == []
    assert match(true, faces())[0].tolist() == [-1, -1, -1]


def test_the_errors_of_landmarks_are_in_distances_between_the_eyes() -> None:
    true, ours = faces((0, 0, 50, 50), (100, 0, 150, 50)), faces((0, 5, 50, 55))
    errors = landmark_errors(true, ours, np.array([0, -1]))
    np.testing.assert_allclose(errors[0], [0.1] * 5, rtol=1e-6)
    assert np.isnan(errors[1]).all()
    without = Faces(ours.boxes, ours.scores, None)
    assert np.isnan(landmark_errors(true, without, np.array([0, -1]))).all()


def test_a_higher_threshold_leaves_the_faces_that_reach_it() -> None:
    found = above(faces((0, 0, 9, 9), (20, 0, 29, 9), scores=[0.5, 0.4]), 0.5)
    assert found.boxes.tolist() == [[0, 0, 9, 9]]
    assert found.landmarks is not None
    assert len(found.landmarks) == len(found.scores) == 1


def of_recording(iou: np.ndarray, *, side: float = 50, n_extra: int = 0) -> Agreement:
    """One face a frame."""
    n = len(iou)
    error = np.where(iou[:, None] > 0, 0.05, np.nan).repeat(5, axis=1)
    blocks = np.arange(n) // BLOCK
    return Agreement("a.mp4", n, blocks, np.full(n, side), iou, error, n_extra, 0)


def test_recall_is_of_faces_that_are_large_enough() -> None:
    large = of_recording(np.repeat([0.0, 0.8], [50, 150]), n_extra=3)
    small = of_recording(np.zeros(80), side=39.9)
    found = summary([large, small])
    assert (found["recall"], found["found"], found["faces"]) == (0.75, 150, 200)
    assert (found["frames"], found["more_than_reference"]) == (280, 3)
    assert (found["mean_iou"], found["landmark_error_median"]) == (0.8, 0.05)
    nothing = summary([small])
    assert (nothing["recall"], nothing["recall_ci"], nothing["faces"]) == (None, None, 0)


def test_the_interval_of_recall_is_over_blocks_of_frames() -> None:
    """Frames that follow each other fail together, so they count for less than so many faces."""
    together = interval([of_recording(np.repeat([0.0, 0.8], [50, 150]))])
    apart = interval([of_recording(np.tile([0.0, 0.8, 0.8, 0.8], 50))])
    assert together is not None
    assert apart is not None
    # 8 blocks of which 2 fail: the binomial's standard deviation is 15 %.
    assert together == (pytest.approx(37.5, abs=13), pytest.approx(100, abs=13))
    assert 74 <= apart[0] <= apart[1] <= 76
    assert interval([of_recording(np.full(100, 0.8))]) == (100, 100)
    assert interval([of_recording(np.full(100, 0.8), side=10)]) is None


@pytest.mark.parametrize(
    ("n_false", "n_pictures", "per_100", "between"),
    [  # exact intervals of a Poisson count: Garwood, Biometrika 28 (1936), 437–442
        (0, 100, 0, (0, 3.69)),
        (3, 100, 3, (0.62, 8.77)),
        (10, 1000, 1, (0.48, 1.84)),
    ],
)
def test_the_interval_of_false_faces_is_that_of_a_poisson_count(
    n_false: int, n_pictures: int, per_100: float, between: tuple[float, float]
) -> None:
    found = rates(n_false, n_pictures)
    assert found[0] == per_100
    assert found[1] == pytest.approx(between, abs=0.005)


def test_faces_are_those_that_no_detector_was_trained_on() -> None:
    fer = pl.DataFrame({"split": ["train", "test", "test"], "jpeg": [b"a", b"b", b"c"]})
    assert held_out(fer)["jpeg"].to_list() == [b"b", b"c"]
    persons = [f"person {i}" for i in range(50)] + [NO_IDENTITY]
    found = held_out(pl.DataFrame({"identity": persons}))["identity"].to_list()
    assert found == [p for p in persons[:-1] if fold_of(p, LFW_FOLDS) == 0]
    assert found


def test_pictures_are_varied_in_scale_turn_and_cut() -> None:
    picture = np.arange(128 * 256 * 3, dtype=np.uint32).astype(np.uint8).reshape(128, 256, 3)
    shapes = sorted(piece.shape[:2] for piece in variants(picture))
    quarters, doubled = [(64, 128)] * 4, [(128, 256)] * 4
    half, middle, double, turned = (64, 128), (64, 128), (256, 512), (256, 128)
    assert shapes == sorted([*quarters, *doubled, half, middle, double, turned])
    assert len([*variants(picture[:100])]) == 6  # pieces with a side below 64 pixels are left out
