"""A recording's walk with frames ahead of those whose turn it is: their faces are being found."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, TypeVar

from vafer.crops import CropSpec
from vafer.faces import Detector
from vafer.pipeline import NO_VALUES, Seen, Step, Walk
from vafer.search import GROUP_FRAMES, Search
from vafer.video import Chunk, Frame

BYTES_AHEAD = 256 << 20  # of the frames of one recording that are being looked at

T = TypeVar("T")


class WalkAhead(Walk, ABC, Generic[T]):
    """A walk that has the faces of frames found elsewhere; T is what is found in a frame."""

    def __init__(self, detector: Detector, crop: CropSpec, *, searches: bool) -> None:
        super().__init__(detector, crop, searches=searches)
        # Frames whose turn is still to come; the pictures of a decoder's may be others by then.
        self._ahead: deque[tuple[list[Frame], Future[list[T]]]] = deque()

    def rest(self) -> Iterator[Step]:
        while self._ahead:
            yield from self._next()

    @abstractmethod
    def _linked(self, frame: Frame, found: T) -> Step:
        """What `step` gives, of what was found in the next frame."""

    def _wait(self, found: Future[list[T]]) -> list[T]:
        return found.result()

    def _next(self) -> Iterator[Step]:
        frames, found = self._ahead.popleft()
        for frame, own in zip(frames, self._wait(found), strict=True):
            yield self._linked(frame, own)


class ParallelWalk(WalkAhead[Seen]):
    """A walk whose groups of frames are looked at by several threads, with one detector.

    Frames are copied, so their own pictures may go. Where three groups do not fit into BYTES_AHEAD,
    one frame is looked at after the other: search in 4K; full looks, whose groups are single
    frames, still fit. is_over: set to end it, whoever waits gets CancelledError. Close it to end
    its threads.
    """

    def __init__(
        self,
        detector: Detector,
        crop: CropSpec,
        *,
        searches: bool,
        n_threads: int,
        is_over: threading.Event,
    ) -> None:
        super().__init__(detector, crop, searches=searches)
        self._n_threads = n_threads
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="faces")
        self._most_frames = GROUP_FRAMES if searches else 1  # of a group
        self._is_over = is_over
        self._group: list[Frame] = []  # that is not whole yet

    def take(self, chunk: Chunk) -> Iterator[Step]:
        n_fit = BYTES_AHEAD // (self._most_frames * chunk.frames[0].image.nbytes)
        n_ahead = min(self._n_threads, n_fit - 2)  # beside one more, and one that is not whole
        if n_ahead < 1:
            yield from self.rest()
            yield from super().take(chunk)
            return
        for frame in chunk.frames:
            if self.begins_group(frame):
                self._send_group()
            self._group.append(replace(frame, image=frame.image.copy()))
            while len(self._ahead) > n_ahead:
                yield from self._next()

    def rest(self) -> Iterator[Step]:
        self._send_group()
        yield from super().rest()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _send_group(self) -> None:
        if self._group:
            self._ahead.append((self._group, self._threads.submit(self._look_at, self._group)))
            self._group = []

    def _look_at(self, frames: list[Frame]) -> list[Seen]:
        search, seen = Search(self._detector), list[Seen]()
        for frame in frames:
            if self._is_over.is_set():
                raise CancelledError
            seen.append(self.look(frame, search))
        return seen

    def _linked(self, frame: Frame, found: Seen) -> Step:
        return self.link(frame, found.faces, NO_VALUES, found.source), found.patches
