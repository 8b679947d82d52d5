"""Groups of frames that several threads look at: what each sees, in order; what is held for it."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from vafer import ahead
from vafer.ahead import ParallelWalk
from vafer.crops import CropSpec
from vafer.faces import Detector, Faces
from vafer.pipeline import Step, Walk
from vafer.search import GROUP_FRAMES
from vafer.video import Chunk, Frame

CROP = CropSpec(kind="box", size=8)
N_THREADS = 3
N_FRAMES, N_IN_CHUNK, CUT = 50, 4, 21
FRAME_BYTES = 32 * 32 * 3


class Reading:
    """Finds one face a frame, its score what the frame's first pixel says."""

    device = "cpu"

    def __init__(self) -> None:
        self.threads = set[str]()

    def detect(self, image: np.ndarray) -> Faces:
        self.threads.add(threading.current_thread().name)
        score = image[0, 0, 0] / 255
        return Faces(np.float32([[4, 4, 20, 20]]), np.float32([score]), None)

    def search(self, image: np.ndarray, around: np.ndarray, *, n_needed: int) -> Faces | None:
        # As with real faces, what is seen depends on where the face was in the frame before.
        return Faces(around[:1] + 1, self.detect(image).scores, None)


class Together(Reading):
    """Looks at a group's first frame when as many threads do so as there are."""

    def __init__(self) -> None:
        super().__init__()
        self._barrier = threading.Barrier(N_THREADS)

    def detect(self, image: np.ndarray) -> Faces:
        self._barrier.wait(20)
        return super().detect(image)


@pytest.fixture
def parallel() -> Iterator[Callable[..., ParallelWalk]]:
    with ExitStack() as stack:

        def make(detector: Any, **options: Any) -> ParallelWalk:
            chosen = {"searches": True, "is_over": threading.Event(), **options}
            walk = ParallelWalk(detector, CROP, n_threads=N_THREADS, **chosen)
            return stack.enter_context(closing(walk))

        yield make


def alone(*, searches: bool) -> Walk:
    return Walk(cast(Detector, Reading()), CROP, searches=searches)


def walked(walk: Walk, n_frames: int = N_FRAMES) -> Iterator[Step]:
    """Through frames that are overwritten when the next ones come, as those of a decoder are."""
    memory = np.empty((N_IN_CHUNK, 32, 32, 3), np.uint8)
    for first in range(0, n_frames, N_IN_CHUNK):
        pictures = memory[: min(N_IN_CHUNK, n_frames - first)]
        for k, picture in enumerate(pictures):
            picture[:] = first + k
        frames = [
            Frame(first + k, None, (first + k) / 30, picture, is_cut=first + k == CUT)
            for k, picture in enumerate(pictures)
        ]
        yield from walk.take(Chunk(frames, pictures))
    yield from walk.rest()


def seen(steps: Iterable[Step]) -> list[Any]:
    return [
        (
            result.index,
            result.time_s,
            result.source,
            result.track_ids.tolist(),
            result.faces.boxes.tolist(),
            result.faces.scores.tolist(),
            [patch.pixels.tolist() for patch in patches],
        )
        for result, patches in steps
    ]


@pytest.mark.parametrize("searches", [False, True])
def test_threads_see_what_one_sees(parallel: Callable[..., ParallelWalk], searches: bool) -> None:
    expected = seen(walked(alone(searches=searches)))
    assert [index for index, *_ in expected] == [*range(N_FRAMES)]
    whole = [index for index, _, source, *_ in expected if source == "full"]
    assert whole == ([0, 8, 16, CUT, 29, 37, 45] if searches else [*range(N_FRAMES)])
    assert seen(walked(parallel(Reading(), searches=searches))) == expected


def test_as_many_groups_are_looked_at_at_once_as_there_are_threads(
    parallel: Callable[..., ParallelWalk],
) -> None:
    steps = walked(parallel(Together(), searches=False), 4 * N_THREADS)
    assert len(list(steps)) == 4 * N_THREADS


@pytest.mark.parametrize(
    ("searches", "n_fit", "most"),
    [
        (True, 100, N_THREADS + 2),
        (True, 4, 4),
        (True, 3, 3),
        (False, 100, N_THREADS + 2),
        (False, 3, 3),
    ],
)
def test_no_more_groups_are_held_than_threads_and_memory_ask_for(
    parallel: Callable[..., ParallelWalk],
    monkeypatch: pytest.MonkeyPatch,
    searches: bool,
    n_fit: int,
    most: int,
) -> None:
    n_frames = GROUP_FRAMES if searches else 1
    monkeypatch.setattr(ahead, "BYTES_AHEAD", n_fit * n_frames * FRAME_BYTES)
    copies = list[weakref.ref[np.ndarray]]()

    def noted(frame: Frame, *, image: np.ndarray) -> Frame:
        copies.append(weakref.ref(image))
        return replace(frame, image=image)

    monkeypatch.setattr(ahead, "replace", noted)
    walk = parallel(Reading(), searches=searches)
    held = [sum(copy() is not None for copy in copies) for _ in walked(walk)]
    assert (most - 2) * n_frames < max(held) <= most * n_frames


def test_where_three_groups_do_not_fit_one_frame_is_looked_at_after_the_other(
    parallel: Callable[..., ParallelWalk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BYTES_AHEAD", 3 * GROUP_FRAMES * FRAME_BYTES - 1)
    detector = Reading()
    steps = seen(walked(parallel(detector)))
    assert detector.threads == {threading.current_thread().name}
    assert steps == seen(walked(alone(searches=True)))


def test_what_a_look_raises_is_raised_in_its_turn(parallel: Callable[..., ParallelWalk]) -> None:
    class Broken(Reading):
        def detect(self, image: np.ndarray) -> Faces:
            if image[0, 0, 0] == 3 * GROUP_FRAMES - 1:
                raise ValueError("odd")
            return super().detect(image)

    indices = list[int]()
    with pytest.raises(ValueError, match="odd"):
        indices.extend(result.index for result, _ in walked(parallel(Broken())))
    assert indices == [*range(CUT)]


def test_who_waits_when_all_is_over_is_told(parallel: Callable[..., ParallelWalk]) -> None:
    is_over = threading.Event()
    is_over.set()
    with pytest.raises(CancelledError):
        list(walked(parallel(Reading(), is_over=is_over)))


def test_a_walk_that_is_closed_looks_no_further(parallel: Callable[..., ParallelWalk]) -> None:
    class Waiting(Reading):
        n_begun, may_go_on = 0, threading.Event()

        def detect(self, image: np.ndarray) -> Faces:
            self.n_begun += 1
            assert self.may_go_on.wait(20)
            return super().detect(image)

    detector = Waiting()
    walk = parallel(detector, searches=False)
    pictures = np.zeros((N_THREADS, 32, 32, 3), np.uint8)
    frames = [Frame(k, None, k / 30, picture) for k, picture in enumerate(pictures)]
    assert list(walk.take(Chunk(frames, pictures))) == []
    others = [thread for thread in threading.enumerate() if thread.name.startswith("faces")]
    walk.close()
    detector.may_go_on.set()
    for thread in others:
        thread.join(20)
        assert not thread.is_alive()
    assert detector.n_begun <= N_THREADS
