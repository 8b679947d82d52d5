"""When a whole frame is looked at and when not; and what that changes on real recordings."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from bench.search import compare
from vafer.faces import Detector, Faces
from vafer.model import load_model
from vafer.options import DetectorOptions
from vafer.search import FULL_EVERY_FRAMES, Search

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


def make() -> tuple[Scripted, Search]:
    detector = Scripted()
    return detector, Search(detector, is_on=True)  # type: ignore[arg-type]


def test_whole_frames_come_first_and_at_intervals() -> None:
    detector, search = make()
    sources = [search.find(IMAGE, time_s=k / 30, is_cut=False)[1] for k in range(30)]
    assert sources[0] == "full"
    full = [k for k, source in enumerate(sources) if source == "full"]
    assert {b - a for a, b in pairwise(full)} == {FULL_EVERY_FRAMES}
    assert detector.asked == sources  # nothing is looked at twice


def test_frames_far_apart_are_looked_at_whole() -> None:
    _, search = make()
    assert {search.find(IMAGE, time_s=float(k), is_cut=False)[1] for k in range(5)} == {"full"}


def test_without_it_every_frame_is_looked_at_whole() -> None:
    detector = Scripted()
    search = Search(detector, is_on=False)  # type: ignore[arg-type]
    assert {search.find(IMAGE, time_s=k / 30, is_cut=False)[1] for k in range(5)} == {"full"}
    assert detector.asked == ["full"] * 5


def test_a_cut_and_a_frame_without_faces_ask_for_the_whole() -> None:
    detector, search = make()
    search.find(IMAGE, time_s=0.0, is_cut=False)
    assert search.find(IMAGE, time_s=0.03, is_cut=True)[1] == "full"
    detector.there = faces_at()
    for k in range(2, 5):
        faces, source = search.find(IMAGE, time_s=k * 0.03, is_cut=False)
        assert (len(faces), source) == (0, "full")
    assert detector.asked == ["full", "full", "search", "full", "full", "full"]


def test_a_face_that_is_lost_makes_the_same_frame_be_looked_at_whole() -> None:
    detector, search = make()
    search.find(IMAGE, time_s=0.0, is_cut=False)
    detector.there = faces_at(400)
    faces, source = search.find(IMAGE, time_s=0.03, is_cut=False)
    assert (faces.boxes[0, 0], source) == (400, "full")


def test_a_face_that_comes_back_is_looked_for_where_it_was_for_a_while() -> None:
    detector, search = make()
    detector.there = faces_at(100, 300)
    search.find(IMAGE, time_s=0.0, is_cut=False)
    detector.there = faces_at(100)
    assert search.find(IMAGE, time_s=0.03, is_cut=False)[1] == "full"
    assert search.find(IMAGE, time_s=0.06, is_cut=False)[1] == "search"
    assert detector.around[:, 0].tolist() == [100, 300]
    detector.there = faces_at(100, 300)
    faces, source = search.find(IMAGE, time_s=0.09, is_cut=False)
    assert (len(faces), source) == (2, "search")
    detector.there = faces_at(100)
    for k in range(4, 40):
        search.find(IMAGE, time_s=k * 0.03, is_cut=False)
    assert detector.around[:, 0].tolist() == [100]


def test_a_cut_makes_faces_of_before_be_forgotten() -> None:
    detector, search = make()
    detector.there = faces_at(100, 300)
    search.find(IMAGE, time_s=0.0, is_cut=False)
    detector.there = faces_at(100)
    search.find(IMAGE, time_s=0.03, is_cut=True)
    search.find(IMAGE, time_s=0.06, is_cut=False)
    assert detector.around[:, 0].tolist() == [100]


def test_real_faces_are_found_as_in_whole_frames(shared: Path, untrained: Path) -> None:
    """Seven seconds of one face, moving; `docs/performance.md` has all recordings."""
    detector = Detector(shared / "models" / "scrfd_500m.onnx", DetectorOptions())
    found = compare(shared / "videos" / "expressive_talk.mp4", detector, load_model(untrained))
    assert found.n_matched >= 0.98 * found.n_full
    assert found.n_search - found.n_matched <= 0.01 * found.n_full
    assert found.n_searched > 0.7 * found.n_frames
