"""A recording's walk with frames ahead of those whose turn it is: their faces are being found."""

import threading
from abc import abstractmethod
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

Found = TypeVar("Found")


class WalkAhead(Walk, Generic[Found]):
    """A walk that does not find the faces itself, but sends frames to where they are found."""

    def __init__(self, detector: Detector, crop: CropSpec, *, searches: bool) -> None:
        super().__init__(detector, crop, searches=searches)
        self._ahead: deque[tuple[list[Frame], Future[list[Found]]]] = deque()

    @property
    def n_frames_ahead(self) -> int:
        """How many frames have been sent and not been yielded."""
        return sum(len(frames) for frames, _ in self._ahead)

    def rest(self) -> Iterator[Step]:
        while self._ahead:
            yield from self._next()

    @abstractmethod
    def _linked(self, frame: Frame, found: Found) -> Step:
        """What `step` gives, of what was found in the next frame."""

    def _wait(self, found: Future[list[Found]]) -> list[Found]:
        return found.result()

    def _send(self, frames: list[Frame], found: Future[list[Found]]) -> None:
        """found: in the frames, whose own pictures may change from now on."""
        self._ahead.append((frames, found))

    def _next(self) -> Iterator[Step]:
        frames, found = self._ahead.popleft()
        for frame, own in zip(frames, self._wait(found), strict=True):
            yield self._linked(frame, own)


class ParallelWalk(WalkAhead[Seen]):
    """A walk whose groups of frames are looked at by several threads, with one detector.

    most_bytes: of frames that are ahead; where two groups are too much, one frame is looked at
    after the other. is_over: set to end it, whoever waits gets CancelledError.
    """

    def __init__(
        self,
        detector: Detector,
        crop: CropSpec,
        *,
        searches: bool,
        threads: ThreadPoolExecutor,
        n_threads: int,
        most_bytes: int,
        is_over: threading.Event,
    ) -> None:
        super().__init__(detector, crop, searches=searches)
        self._threads, self._n_threads = threads, n_threads
        self._most_frames = GROUP_FRAMES if searches else 1  # of a group
        self._most_bytes = most_bytes
        self._is_over = is_over
        self._group: list[Frame] = []  # that is not whole yet

    def take(self, chunk: Chunk) -> Iterator[Step]:
        n_fit = self._most_bytes // (self._most_frames * chunk.frames[0].image.nbytes)
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

    def _send_group(self) -> None:
        if self._group:
            self._send(self._group, self._threads.submit(self._look_at, self._group))
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
