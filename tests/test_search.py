"""When a whole frame is looked at and when not; and what that changes on real recordings."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bench.search import compare
from vafer.faces import Detector, Faces
from vafer.model import load_model
from vafer.options import DetectorOptions
from vafer.search import GROUP_FRAMES, Groups, Search

IMAGE = np.zeros((360, 640, 3), np.uint8)


def faces_at(*xs: float) -> Faces:
    boxes = np.array([(x, 100, x + 60, 160) for x in xs], np.float32).reshape(-1, 4)
    return Faces(boxes, np.full(len(boxes), 0.9, np.float32), None)


class Scripted:
    """A detector that knows where the faces are, and notes how it was asked."""

    def __init__(self) -> None:
        self.there = faces_at(100)
        self.asked: list[str] = []
        self.around = np.empty((0, 4))

    def detect(self, image: np.ndarray) -> Faces:
        self.asked.append("full")
        return self.there

    def search(self, image: np.ndarray, around: np.ndarray, *, n_needed: int) -> Faces | None:
        self.asked.append("search")
        self.around = around
        apart = np.abs(self.there.boxes[None, :, 0] - around[:, None, 0])
        if not len(self.there) or apart[:n_needed].min(axis=1).max() > 30:
            return None
        return faces_at(*self.there.boxes[apart.min(axis=0) <= 30, 0])


def looked(detector: Scripted, *there: Faces) -> list[tuple[int, str]]:
    """How many faces are found in each frame of a group, given where they are, and how."""
    search = Search(detector)  # type: ignore[arg-type]
    found = []
    for detector.there in there:
        faces, source = search.find(IMAGE)
        found.append((len(faces), source))
    return found


def begun(
    times: Iterable[float], *, cuts: tuple[int, ...] = (), are_long: bool = True
) -> list[int]:
    """The frames with which a group begins."""
    groups = Groups(are_long=are_long)
    return [
        k for k, time_s in enumerate(times) if groups.begins(IMAGE, time_s=time_s, is_cut=k in cuts)
    ]


def test_groups_have_a_number_of_frames_and_a_length() -> None:
    assert begun(np.arange(30) / 30) == [0, GROUP_FRAMES, 2 * GROUP_FRAMES, 3 * GROUP_FRAMES]
    assert begun(np.arange(8) / 5) == [0, 2, 4, 6]
    assert begun(np.arange(4) / 2) == [0, 1, 2, 3]
    assert begun(np.arange(4) / 30, are_long=False) == [0, 1, 2, 3]


def test_a_cut_and_a_picture_of_another_size_begin_a_group() -> None:
    assert begun(np.arange(14) / 30, cuts=(3,)) == [0, 3, 3 + GROUP_FRAMES]
    groups = Groups(are_long=True)
    sizes = [(8, 8, 3), (8, 8, 3), (8, 9, 3), (8, 9, 3)]
    assert [groups.begins(np.zeros(size), time_s=0.0, is_cut=False) for size in sizes] == [
        True, False, True, False,
    ]  # fmt: skip


def test_the_first_frame_is_looked_at_whole_and_nothing_twice() -> None:
    detector = Scripted()
    found = looked(detector, *[faces_at(100)] * 3)
    assert found == [(1, "full"), (1, "search"), (1, "search")]
    assert detector.asked == ["full", "search", "search"]


def test_a_frame_after_one_without_faces_is_looked_at_whole() -> None:
    detector = Scripted()
    found = looked(detector, faces_at(100), faces_at(), faces_at(), faces_at(100))
    assert found == [(1, "full"), (0, "full"), (0, "full"), (1, "full")]
    assert detector.asked == ["full", "search", "full", "full", "full"]


def test_a_face_that_is_lost_makes_the_same_frame_be_looked_at_whole() -> None:
    detector = Scripted()
    assert looked(detector, faces_at(100), faces_at(400)) == [(1, "full"), (1, "full")]


def test_a_face_that_comes_back_is_looked_for_where_it_was() -> None:
    detector = Scripted()
    both, one = faces_at(100, 300), faces_at(100)
    assert looked(detector, both, one, one) == [(2, "full"), (1, "full"), (1, "search")]
    assert detector.around[:, 0].tolist() == [100, 300]
    assert looked(detector, both, one, one, both)[-1] == (2, "search")


def test_real_faces_are_found_as_in_whole_frames(shared: Path, untrained: Path) -> None:
    """Seven seconds of one face, moving; `docs/performance.md` has all recordings."""
    detector = Detector(shared / "models" / "scrfd_500m.onnx", DetectorOptions())
    found = compare(shared / "videos" / "expressive_talk.mp4", detector, load_model(untrained))
    assert found.n_matched >= 0.98 * found.n_full
    assert found.n_search - found.n_matched <= 0.01 * found.n_full
    assert found.n_searched > 0.7 * found.n_frames
