"""Groups of frames that several threads look at: what each sees, in order; what is held for it."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from vafer.ahead import ParallelWalk
from vafer.crops import CropSpec
from vafer.faces import Faces
from vafer.pipeline import Step, Walk
from vafer.search import GROUP_FRAMES
from vafer.video import Chunk, Frame

CROP = CropSpec(kind="box", size=8)
N_THREADS = 3
N_FRAMES, N_IN_CHUNK = 50, 4
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
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(N_THREADS) as threads:
        yield threads


def parallel(detector: Any, threads: ThreadPoolExecutor, **options: Any) -> ParallelWalk:
    chosen = {"searches": True, "most_bytes": 1 << 30, "is_over": threading.Event(), **options}
    return ParallelWalk(detector, CROP, threads=threads, n_threads=N_THREADS, **chosen)


def walked(walk: Walk, n_frames: int = N_FRAMES) -> Iterator[Step]:
    """Through frames that are overwritten when the next ones come, as those of a decoder are."""
    memory = np.empty((N_IN_CHUNK, 32, 32, 3), np.uint8)
    for first in range(0, n_frames, N_IN_CHUNK):
        pictures = memory[: min(N_IN_CHUNK, n_frames - first)]
        for k, picture in enumerate(pictures):
            picture[:] = first + k
        frames = [
            Frame(first + k, None, (first + k) / 30, picture, is_cut=first + k == 21)
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
def test_threads_see_what_one_sees(threads: ThreadPoolExecutor, searches: bool) -> None:
    alone = seen(walked(Walk(Reading(), CROP, searches=searches)))  # type: ignore[arg-type]
    assert [index for index, *_ in alone] == [*range(N_FRAMES)]
    assert {source for _, _, source, *_ in alone} == {"full", *(["search"] if searches else [])}
    assert seen(walked(parallel(Reading(), threads, searches=searches))) == alone


def test_as_many_groups_are_looked_at_at_once_as_there_are_threads(
    threads: ThreadPoolExecutor,
) -> None:
    steps = walked(parallel(Together(), threads, searches=False), 4 * N_THREADS)
    assert len(list(steps)) == 4 * N_THREADS


def test_no_more_frames_are_held_than_threads_and_memory_ask_for(
    threads: ThreadPoolExecutor,
) -> None:
    for n_fit, n_ahead in ((100, N_THREADS), (4, 2), (3, 1)):
        most_bytes = n_fit * GROUP_FRAMES * FRAME_BYTES
        walk = parallel(Reading(), threads, most_bytes=most_bytes)
        assert max(walk.n_frames_ahead for _ in walked(walk)) == n_ahead * GROUP_FRAMES


def test_where_two_groups_do_not_fit_one_frame_is_looked_at_after_the_other(
    threads: ThreadPoolExecutor,
) -> None:
    detector = Reading()
    most_bytes = 3 * GROUP_FRAMES * FRAME_BYTES - 1
    steps = seen(walked(parallel(detector, threads, most_bytes=most_bytes)))
    assert detector.threads == {threading.current_thread().name}
    assert steps == seen(walked(Walk(Reading(), CROP, searches=True)))  # type: ignore[arg-type]


def test_what_a_look_raises_is_raised_in_its_turn(threads: ThreadPoolExecutor) -> None:
    class Broken(Reading):
        def detect(self, image: np.ndarray) -> Faces:
            if image[0, 0, 0] == 24:
                raise ValueError("odd")
            return super().detect(image)

    with pytest.raises(ValueError, match="odd"):
        list(walked(parallel(Broken(), threads)))


def test_who_waits_when_all_is_over_is_told(threads: ThreadPoolExecutor) -> None:
    is_over = threading.Event()
    is_over.set()
    with pytest.raises(CancelledError):
        list(walked(parallel(Reading(), threads, is_over=is_over)))
