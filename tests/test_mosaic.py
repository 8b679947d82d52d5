"""A mosaic of pieces: what is found in it lies in the frame where it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vafer.mosaic import SEARCHED_SIDE, Mosaic

HEIGHT, WIDTH, SIZE = 720, 1280, 640


def boxes_of(*faces: tuple[float, float, float]) -> np.ndarray:
    """x, y of the middle and the side of each face → (N, 4)."""
    rows = [(x - s / 2, y - s / 2, x + s / 2, y + s / 2) for x, y, s in faces]
    return np.array(rows, np.float32)


def mosaic_of(*faces: tuple[float, float, float]) -> Mosaic:
    mosaic = Mosaic.of((HEIGHT, WIDTH), boxes_of(*faces), SIZE)
    assert mosaic is not None
    return mosaic


def placed(mosaic: Mosaic, boxes: np.ndarray) -> np.ndarray:
    """Boxes of the frame, one a piece, in the mosaic."""
    return boxes * mosaic.scales[:, None] + np.tile(mosaic.offsets, 2)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT), st.floats(12, 90)),
        min_size=1, max_size=6, unique_by=lambda face: (face[0] // 200, face[1] // 200),
    )
)  # fmt: skip
def test_what_moved_a_little_is_found_where_it_is(faces: list[tuple[float, float, float]]) -> None:
    mosaic = Mosaic.of((HEIGHT, WIDTH), boxes_of(*faces), SIZE)
    if mosaic is None:
        return
    assert mosaic.cell % 32 == 0
    assert mosaic.scales.max() <= SIZE / WIDTH
    moved = boxes_of(*((x + 0.2 * s, y - 0.2 * s, 1.1 * s) for x, y, s in faces))
    seen = placed(mosaic, moved)
    pieces, rows, boxes = mosaic.found(seen[::-1])
    distances = [np.abs(moved[i] - moved[j]).max() for i in range(len(moved)) for j in range(i)]
    if distances and min(distances) < 90:
        return  # two faces nearly in one place: which piece has them is not the question here
    assert pieces.tolist() == list(range(len(faces)))
    assert rows.tolist() == pieces[::-1].tolist()
    np.testing.assert_allclose(boxes, moved, atol=0.02)
    corners = seen.reshape(-1, 2, 2)
    np.testing.assert_allclose(mosaic.in_frame(corners, pieces), moved.reshape(-1, 2, 2), atol=0.02)


def test_pieces_show_the_frame_shrunk_as_far_as_needed() -> None:
    """A gradient shows where each pixel came from."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    image = np.stack([x / WIDTH * 255, y / HEIGHT * 255, 0 * x], axis=2).round().astype(np.uint8)
    mosaic = mosaic_of((1000, 200, 400), (300, 600, 20))
    assert mosaic.scales.tolist() == pytest.approx([SEARCHED_SIDE / 400, SIZE / WIDTH])
    canvas = mosaic.picture(image)
    assert canvas.shape == (mosaic.cell, 2 * mosaic.cell, 3)
    middle = mosaic.cell // 2
    for column, (at_x, at_y) in enumerate([(1000, 200), (300, 600)]):
        blue, green, red = canvas[middle, column * mosaic.cell + middle].astype(float)
        assert blue == 0
        assert red == pytest.approx(at_x / WIDTH * 255, abs=2)
        assert green == pytest.approx(at_y / HEIGHT * 255, abs=2)


def test_a_piece_that_is_not_shrunk_is_the_frame_itself() -> None:
    image = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    mosaic = Mosaic.of((240, 320), boxes_of((160, 120, 40)), SIZE)
    assert mosaic is not None
    half = mosaic.cell // 2
    expected = image[120 - half : 120 + half, 160 - half : 160 + half, ::-1]
    assert np.array_equal(mosaic.picture(image), expected)


def test_beyond_the_frame_it_is_grey() -> None:
    mosaic = mosaic_of((0, 0, 100))
    canvas = mosaic.picture(np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
    assert (canvas[: mosaic.cell // 2 - 2] == 127).all()
    assert canvas[mosaic.cell // 2 + 2 :, mosaic.cell // 2 + 2 :].min() == 200
    three = mosaic_of((300, 200, 60), (400, 300, 60), (200, 300, 60))
    canvas = three.picture(np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
    assert (canvas[three.cell :, three.cell :] == 127).all()  # of two by two, the last is none


def test_a_face_elsewhere_or_of_another_size_is_not_the_one_that_was_there() -> None:
    mosaic = mosaic_of((400, 300, 100))
    for other in ((400, 300, 30), (480, 300, 100)):
        pieces, rows, boxes = mosaic.found(placed(mosaic, boxes_of(other)))
        assert len(pieces) == len(rows) == len(boxes) == 0
    assert len(mosaic.found(np.empty((0, 4)))[0]) == 0


def test_two_pieces_that_show_one_face_have_it_once() -> None:
    mosaic = mosaic_of((400, 300, 100), (430, 300, 100))
    one = boxes_of((415, 300, 100), (415, 300, 100))
    pieces, rows, boxes = mosaic.found(placed(mosaic, one))
    assert (pieces.tolist(), rows.tolist(), boxes.shape) == ([0], [0], (1, 4))


def test_of_several_in_a_piece_the_nearest_is_the_face() -> None:
    mosaic = mosaic_of((400, 300, 100))
    both = boxes_of((440, 300, 100), (405, 300, 100))
    _, rows, boxes = mosaic.found(both * mosaic.scales[0] + np.tile(mosaic.offsets[0], 2))
    assert rows.tolist() == [1]
    np.testing.assert_allclose(boxes, both[1:], atol=0.01)


def test_where_the_whole_frame_costs_no_more_there_is_none() -> None:
    many = [(100.0 * i, 100.0 * j, 90.0) for i in range(10) for j in range(6)]
    assert Mosaic.of((HEIGHT, WIDTH), boxes_of(*many), SIZE) is None
    assert Mosaic.of((96, 96), boxes_of((48, 48, 60)), SIZE) is None
