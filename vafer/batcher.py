"""Faces of all lanes' frames in batches, for a detector to which many at once are cheaper.

A lane gives its frames to the device some ahead of the one that it needs next, so that batches fill
even with one recording. Detection is one thread's; uploads are the lanes' own.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from vafer.crops import CropSpec, Patch, cut_on_device
from vafer.faces import Detector, Faces
from vafer.pipeline import Walk
from vafer.table import FrameResult
from vafer.video import Frame

FRAMES_AT_ONCE = 32  # in a batch of the detector: it takes hardly longer than one (bench/gpu.py)
PATIENCE_S = 0.2
NO_PICTURE = np.empty((0, 0, 3), np.uint8)

Asked = tuple[torch.Tensor, Future[Faces]]


class Batcher:
    """Runs a detector that is `in_batches` for many threads. is_over: set to end it.

    Where the device's memory does not suffice, batches of frames of that size are half as large
    from then on; where not for one frame, whoever waits for it gets torch.OutOfMemoryError.
    """

    def __init__(self, detector: Detector, is_over: threading.Event) -> None:
        self.detector, self._is_over = detector, is_over
        self._own = threading.local()  # stream of each thread
        self._most: dict[torch.Size, int] = {}  # frames of a size, where fewer fit
        self._asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="detector", daemon=True)
        self.thread.start()

    def upload(self, image: np.ndarray) -> torch.Tensor:
        """A frame uint8 (H, W, 3) on the device; the one in memory can go when this returns."""
        device = self.detector.device
        if not device.startswith("cuda"):
            return torch.from_numpy(image).clone()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._own.stream):  # beside what computes
            on_device = torch.from_numpy(image).to(device)
        self._own.stream.synchronize()
        on_device.record_stream(torch.cuda.default_stream(on_device.device))
        return on_device

    def find(self, frame: torch.Tensor) -> Future[Faces]:
        """The faces of a frame on the device, uint8 (H, W, 3) RGB, at some time."""
        found: Future[Faces] = Future()
        self._asked.put((frame, found))
        return found

    def wait(self, found: Future[Faces]) -> Faces:
        """Raises CancelledError when all is over, and what detection raised."""
        while not found.done():
            if self._is_over.is_set():
                raise CancelledError
            with suppress(TimeoutError):
                found.exception(PATIENCE_S)
        return found.result()

    def _run(self) -> None:
        aside: deque[Asked] = deque()  # frames of another size than the batch before
        while not self._is_over.is_set():
            try:
                batch = [aside.popleft() if aside else self._asked.get(timeout=PATIENCE_S)]
            except queue.Empty:
                continue
            shape = batch[0][0].shape
            others: deque[Asked] = deque()
            while len(batch) < self._most.get(shape, FRAMES_AT_ONCE):
                try:
                    asked = aside.popleft() if aside else self._asked.get_nowait()
                except queue.Empty:
                    break
                (batch if asked[0].shape == shape else others).append(asked)
            aside.extendleft(reversed(others))
            self._find(batch)

    def _find(self, batch: list[Asked]) -> None:
        if self._fits(batch):
            return
        half = len(batch) // 2  # what did not fit is let go of by now
        self._most[batch[0][0].shape] = half
        self._find(batch[:half])
        self._find(batch[half:])

    def _fits(self, batch: list[Asked]) -> bool:
        """Find the faces of a batch; whether there was memory enough, or no less can be asked."""
        try:
            faces = self.detector.detect_many(torch.stack([frame for frame, _ in batch]))
            for (_, found), own in zip(batch, faces, strict=True):
                found.set_result(own)
        except torch.OutOfMemoryError:
            if len(batch) > 1:
                return False
            # Another one, that does not hold on to what was tried.
            batch[0][1].set_exception(torch.OutOfMemoryError("one frame does not fit"))
        except BaseException as error:  # to be raised where it is waited for
            for _, found in batch:
                if not found.done():
                    found.set_exception(error)
        return True


@dataclass(frozen=True, slots=True)
class _Ahead:
    frame: Frame  # without its picture
    is_cut: bool
    on_device: torch.Tensor
    found: Future[Faces]


class WalkAhead(Walk):
    """A walk whose faces are found by a batcher, `n_ahead` frames ahead."""

    def __init__(self, batcher: Batcher, crop: CropSpec, n_ahead: int) -> None:
        super().__init__(batcher.detector, crop, searches=False)
        self._batcher, self._n_ahead = batcher, n_ahead
        self._ahead: deque[_Ahead] = deque()

    def take(self, frame: Frame) -> Iterator[tuple[FrameResult, list[Patch]]]:
        on_device = self._batcher.upload(frame.image)
        found = self._batcher.find(on_device)
        is_cut = self.is_cut(frame.image)
        self._ahead.append(_Ahead(replace(frame, image=NO_PICTURE), is_cut, on_device, found))
        if len(self._ahead) > self._n_ahead:
            yield self._next()

    def rest(self) -> Iterator[tuple[FrameResult, list[Patch]]]:
        while self._ahead:
            yield self._next()

    def _next(self) -> tuple[FrameResult, list[Patch]]:
        ahead = self._ahead.popleft()
        faces = self._batcher.wait(ahead.found)
        result, maps = self.link(ahead.frame, faces, "full", is_cut=ahead.is_cut)
        return result, [cut_on_device(ahead.on_device, m, self.crop.size) for m in maps]
