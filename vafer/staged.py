"""Many recordings at once: processes decode, threads find faces, one predicts, one writes.

    decoder process ─ frames ─▸ lane: faces, tracks, crops ─▸ predictor ─▸ whoever takes the events
         × n                        × n, a thread each         a thread

A lane and its process work on one recording at a time. Where there are more cores than lanes, each
lane has several threads look for faces (`vafer.ahead`). Everything between them is bounded, so the
slowest stage sets the pace and memory does not grow. The predictor fills its batches with faces of
all lanes, and hands out each recording's events in their order. On a GPU one more thread finds the
faces of all lanes' frames, and their values at once (`vafer.batcher`); lanes link them to tracks,
and the predictor has nothing to predict.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import cv2
import torch

from vafer.ahead import ParallelWalk
from vafer.batcher import FRAMES_IN_BATCH, BatchedWalk, Batcher
from vafer.crops import Patch
from vafer.errors import VideoError, display_path, why_unreadable
from vafer.faces import Detector
from vafer.inputs import Source, source_sha256
from vafer.model import Model
from vafer.options import Sampling
from vafer.pipeline import Batches, Walk
from vafer.table import FrameResult
from vafer.video import Chunk
from vafer.workers import DecoderLostError, DecoderProcess, Ended, Opened

IN_QUEUE = 8  # between a stage and the next: mostly of as many frames as a decoder hands over
# Lanes, unless more are asked for, and threads that look for faces: beyond, threads of one process
# wait for one another.
MOST_AT_ONCE = 16
STOP_WITHIN_S = 3.0
PATIENCE_S = 0.2  # how long a stage waits before it looks whether all is over


@dataclass(frozen=True, slots=True)
class Begun:
    """A recording is at work, since at_s by `time.perf_counter`."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Hashed:
    """The SHA-256 of a recording that is being opened."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A recording cannot be read, and why; nothing of it is to be kept."""

    error: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """A recording begins anew; what came of it before is void."""

    why: str


Event = Begun | Hashed | Opened | FrameResult | Ended | Failed | Restarted
Events = Generator[tuple[Source, Event], None, None]


@dataclass(frozen=True)
class Stages:
    """What the stages are made of.

    detector: of all lanes; see `vafer.batcher` where it is `in_batches`.
    """

    detector: Detector
    model: Model
    batch_size: int
    searches: bool
    sampling: Sampling
    make_decoder: Callable[[], DecoderProcess]


def run_staged(stages: Stages, sources: list[Source], n_lanes: int) -> Events:
    """Annotate recordings, n_lanes at once; yields what becomes of each, in its order.

    Close the iterator to stop: the processes are killed, the threads end.
    """
    if not sources:
        return
    n_lanes = min(n_lanes, len(sources))
    run = _Run(stages, sources, n_lanes, threads_of_lane(n_lanes))
    try:
        yield from run.events()
    finally:
        run.stop()


class _Run:
    def __init__(self, stages: Stages, sources: list[Source], n_lanes: int, n_threads: int) -> None:
        self._stages, self._n_threads = stages, n_threads
        self._n_threads_of_model = torch.get_num_threads()
        self._decoders: set[DecoderProcess] = set()
        self._todo: queue.SimpleQueue[Source] = queue.SimpleQueue()
        for source in sources:
            self._todo.put(source)
        self._is_over = threading.Event()
        self._found: queue.Queue[tuple[Source, list[tuple[Event, list[Patch]]]] | None]
        self._found = queue.Queue(IN_QUEUE)
        self._done: queue.Queue[list[tuple[Source, Event]] | BaseException | None]
        self._done = queue.Queue(IN_QUEUE)
        self._n_lanes = n_lanes
        self._batcher = (
            Batcher(stages.detector, stages.model, stages.batch_size, self._is_over)
            if stages.detector.in_batches and not stages.searches
            else None
        )
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in [
                *((f"lane-{i}", self._lane) for i in range(self._n_lanes)),
                ("predictor", self._predictor),
            ]
        ]
        for thread in self._threads:
            thread.start()
        if self._batcher:
            self._threads.append(self._batcher.thread)

    def events(self) -> Iterator[tuple[Source, Event]]:
        while True:
            try:
                item = self._done.get(timeout=PATIENCE_S)  # never for long: Ctrl-C is to be heard
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield from item

    def stop(self) -> None:
        self._is_over.set()
        for decoder in list(self._decoders):
            decoder.kill()
        until = time.monotonic() + STOP_WITHIN_S
        for thread in self._threads:  # one that hashes a long file ends by itself, later
            thread.join(max(0.0, until - time.monotonic()))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (_OverError, CancelledError):
            pass
        except BaseException as error:  # to be raised where the events are taken
            with suppress(_OverError):
                self._put(self._done, error)

    def _put(self, to: "queue.Queue[Any]", item: Any) -> None:
        while not self._is_over.is_set():
            try:
                to.put(item, timeout=PATIENCE_S)
                return
            except queue.Full:
                continue
        raise _OverError

    def _predictor(self) -> None:
        torch.set_num_threads(self._n_threads_of_model)  # it holds for the thread that says so
        batches: Batches[Source, Event] = Batches(self._stages.model, self._stages.batch_size)
        n_lanes = self._n_lanes
        while n_lanes:
            try:
                item = self._found.get(timeout=PATIENCE_S)
            except queue.Empty:
                if self._is_over.is_set():
                    return
                self._put_some(batches.finish())  # what is whole is to be kept, not to wait
                continue
            if item is None:
                n_lanes -= 1
                continue
            source, events = item
            self._put_some(
                finished
                for event, patches in events
                for finished in batches.add(source, event, patches)
            )
        self._put_some(batches.finish())
        self._put(self._done, None)

    def _put_some(self, events: Iterable[tuple[Source, Event]]) -> None:
        if finished := list(events):
            self._put(self._done, finished)

    def _lane(self) -> None:
        decoder = self._new_decoder()
        try:
            while (source := self._next()) is not None:
                self._tell(source, Begun(time.perf_counter()))
                try:
                    self._tell(source, Hashed(source_sha256(source)))
                    for is_retry in (False, True):
                        try:
                            self._walk(source, decoder, is_retry=is_retry)
                            break
                        except DecoderLostError as error:
                            self._decoders.discard(decoder)
                            decoder = self._new_decoder()
                            shown = f"{display_path(source.path)}: {error}"
                            if is_retry:
                                self._tell(source, Failed(f"{shown}, twice; leave it out"))
                            else:
                                self._tell(source, Restarted(shown))
                except (VideoError, OSError) as error:
                    self._tell(source, Failed(what_failed(source, error)))
                except torch.OutOfMemoryError as error:
                    self._tell(source, Failed(what_failed(source, error)))
                    self._decoders.discard(decoder)
                    decoder.close()  # it is still at this recording
                    decoder = self._new_decoder()
        finally:
            decoder.close()
        self._put(self._found, None)

    def _new_decoder(self) -> DecoderProcess:
        if self._is_over.is_set():
            raise _OverError
        decoder = self._stages.make_decoder()
        self._decoders.add(decoder)
        if self._is_over.is_set():  # since; `stop` may not have seen it
            decoder.close()
            raise _OverError
        return decoder

    def _next(self) -> Source | None:
        try:
            return None if self._is_over.is_set() else self._todo.get_nowait()
        except queue.Empty:
            return None

    def _walk(self, source: Source, decoder: DecoderProcess, *, is_retry: bool) -> None:
        with closing(self._new_walk()) as walk:
            for item in decoder.decode(source.path, self._stages.sampling, is_retry=is_retry):
                if isinstance(item, Chunk):
                    results = []
                    for result in walk.take(item):
                        if self._is_over.is_set():
                            raise _OverError
                        results.append(result)
                    if results:
                        self._put(self._found, (source, results))
                else:
                    self._put(self._found, (source, [*walk.rest(), (item, [])]))

    def _new_walk(self) -> Walk:
        if self._batcher is not None:
            return BatchedWalk(self._batcher, max(1, 2 * FRAMES_IN_BATCH // self._n_lanes))
        detector, searches = self._stages.detector, self._stages.searches
        crop = self._stages.model.card.crop
        n_threads = min(self._n_threads, MOST_AT_ONCE // self._n_lanes)
        if n_threads > 1 and detector.device == "cpu":  # a GPU does one thing after the other
            return ParallelWalk(
                detector, crop, searches=searches, n_threads=n_threads, is_over=self._is_over
            )
        return Walk(detector, crop, searches=searches)

    def _tell(self, source: Source, event: Event) -> None:
        self._put(self._found, (source, [(event, [])]))


class _OverError(Exception):
    """The run is to stop."""


def what_failed(source: Source, error: Exception) -> str:
    """Why a recording cannot be read, naming it."""
    if isinstance(error, OSError):
        return f"{display_path(source.path)}: {why_unreadable(source.path, error)}"
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{display_path(source.path)}: one of its frames does not fit into the memory of the "
            "GPU. Give it more, or this recording --device cpu"
        )
    return str(error)


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def threads_of_lane(n_lanes: int) -> int:
    """How many threads a lane has for looking for faces."""
    return max(1, available_cores() // n_lanes)


@contextmanager
def shared_cores() -> Iterator[None]:
    """OpenCV on the thread that calls it, PyTorch on half of the cores, or two: others have work.

    On two cores both make search with a model of 224 pixels 1.3 times as fast as one, and cost a
    thirtieth with the embedded one (docs/performance.md).

    Predictions may differ in their last bits by the number of threads, so all ways to run use it.
    """
    before: Mapping[str, int] = {"cv2": cv2.getNumThreads(), "torch": torch.get_num_threads()}
    cv2.setNumThreads(1)
    torch.set_num_threads(min(available_cores(), max(2, available_cores() // 2)))
    try:
        yield
    finally:
        cv2.setNumThreads(before["cv2"])
        torch.set_num_threads(before["torch"])
