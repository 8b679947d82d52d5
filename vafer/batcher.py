"""A GPU's stage: faces, crops and values of all lanes' frames in batches.

A lane gives its frames to the device some ahead of those that it needs next, so that batches fill
even with one recording. One thread does all that is computed there; uploads are the lanes' own.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress

import numpy as np
import torch

from vafer.ahead import WalkAhead
from vafer.crops import cut_and_warp
from vafer.faces import Detector, Faces
from vafer.model import Model
from vafer.pipeline import NO_VALUES, Step
from vafer.video import Chunk, Frame

FRAMES_IN_BATCH = 32  # at most: it takes hardly longer than one (bench/gpu.py)
PATIENCE_S = 0.2

Found = tuple[Faces, np.ndarray]  # of a frame, with values (N, 2)
Piece = tuple[torch.Tensor, float]  # frames (K, H, W, 3), and their pixels' width to height
Asked = tuple[Piece, Future[list[Found]]]


class Batcher:
    """Runs a detector that is `in_batches`, and a model, for many threads.

    size: faces per prediction. is_over: set to end it. Where the device's memory does not suffice,
    predictions, or else batches of frames of that size, are half as large from then on; where not
    for one frame, whoever waits for it gets torch.OutOfMemoryError.
    """

    def __init__(
        self, detector: Detector, model: Model, size: int, is_over: threading.Event
    ) -> None:
        self.detector, self.model = detector, model
        self._size, self._is_over = size, is_over
        self._own = threading.local()  # stream of each thread
        self._most: dict[torch.Size, int] = {}  # frames of a size, where fewer fit
        self._asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="device", daemon=True)
        self.thread.start()

    def upload(self, pictures: np.ndarray) -> torch.Tensor:
        """Frames uint8 (K, H, W, 3) on the device; those in memory can go when this returns."""
        device = self.detector.device
        if not device.startswith("cuda"):
            return torch.from_numpy(pictures).clone()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._own.stream):  # beside what computes
            on_device = torch.from_numpy(pictures).to(device)
        self._own.stream.synchronize()
        on_device.record_stream(torch.cuda.default_stream(on_device.device))
        return on_device

    def find(self, frames: torch.Tensor, pixel_aspect: float) -> Future[list[Found]]:
        """Of each of the frames on the device, uint8 (K, H, W, 3) RGB, at some time."""
        found: Future[list[Found]] = Future()
        self._asked.put(((frames, pixel_aspect), found))
        return found

    def wait(self, found: Future[list[Found]]) -> list[Found]:
        """Raises CancelledError when all is over, and what went wrong with one of the frames."""
        while not found.done():
            if self._is_over.is_set():
                raise CancelledError
            with suppress(TimeoutError):
                found.exception(PATIENCE_S)
        return found.result()

    def _run(self) -> None:
        aside: deque[Asked] = deque()  # of another size than the batch before
        while not self._is_over.is_set():
            self._answer(self._next_batch(aside))

    def _next_batch(self, aside: deque[Asked]) -> list[Asked]:
        """Frames of one size, as many as are there and fit; none where none come."""
        try:
            batch = [aside.popleft() if aside else self._asked.get(timeout=PATIENCE_S)]
        except queue.Empty:
            return []
        first, _ = batch[0][0]
        shape, n_frames = first.shape[1:], len(first)
        most = self._most.get(shape, FRAMES_IN_BATCH)
        others: deque[Asked] = deque()
        while n_frames < most:
            try:
                asked = aside.popleft() if aside else self._asked.get_nowait()
            except queue.Empty:
                break
            frames, _ = asked[0]
            if frames.shape[1:] == shape and n_frames + len(frames) <= most:
                batch.append(asked)
                n_frames += len(frames)
            else:
                others.append(asked)
        aside.extendleft(reversed(others))
        return batch

    def _answer(self, batch: list[Asked]) -> None:
        try:
            found = self._find([piece for piece, _ in batch])
        except BaseException as error:  # to be raised where it is waited for
            for _, waiting in batch:
                waiting.set_exception(error)
            return
        for (frames, _), waiting in batch:
            own, found = found[: len(frames)], found[len(frames) :]
            if None in own:
                # A new one, that does not hold on to what was tried.
                waiting.set_exception(torch.OutOfMemoryError("one frame does not fit"))
            else:
                waiting.set_result([one for one in own if one is not None])

    def _find(self, pieces: list[Piece]) -> list[Found | None]:
        """Of all frames of pieces of one size; None for one that does not fit even alone."""
        if not pieces:
            return []
        shape, n_frames = pieces[0][0].shape[1:], sum(len(frames) for frames, _ in pieces)
        if n_frames <= self._most.get(shape, FRAMES_IN_BATCH):
            found = self._tried(pieces)
            if found is not None:
                return [*found]
            if n_frames == 1:
                return [None]
            self._most[shape] = n_frames // 2
        whole = [(frame[None], aspect) for frames, aspect in pieces for frame in frames]  # views
        most = self._most.get(shape, FRAMES_IN_BATCH)
        return [one for k in range(0, n_frames, most) for one in self._find(whole[k : k + most])]

    def _tried(self, pieces: list[Piece]) -> list[Found] | None:
        """None where there is not memory enough; what was tried is let go of by then."""
        try:
            aspects = [aspect for frames, aspect in pieces for _ in frames]
            return self._on_device(torch.cat([frames for frames, _ in pieces]), np.array(aspects))
        except torch.OutOfMemoryError:
            return None

    def _on_device(self, frames: torch.Tensor, pixel_aspects: np.ndarray) -> list[Found]:
        faces = self.detector.detect_many(frames)
        counts = [len(own) for own in faces]
        if not sum(counts):
            return [(own, NO_VALUES) for own in faces]
        some = [own for own in faces if len(own)]
        landmarks = [own.landmarks for own in some if own.landmarks is not None]
        crop = self.model.card.crop
        of_frame = np.repeat(np.arange(len(frames)), counts)
        matrices = crop.matrices(
            np.concatenate([own.boxes for own in some]),
            np.concatenate(landmarks) if landmarks else None,
            pixel_aspect=pixel_aspects[of_frame],
        )
        crops = cut_and_warp(frames, of_frame, matrices, crop.size)
        values = self._predict(crops).numpy()
        return list(zip(faces, np.split(values, np.cumsum(counts)[:-1]), strict=True))

    def _predict(self, crops: torch.Tensor) -> torch.Tensor:
        """Always as many at once: values do not depend, to the last bit, on who came with them."""
        size = self._size
        while True:
            n_more = -len(crops) % size
            filled = torch.cat([crops, crops.new_zeros(n_more, *crops.shape[1:])])
            try:
                values = [self.model.predict(part) for part in torch.split(filled, size)]
                self._size = size
                return torch.cat(values)[: len(crops)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise  # then fewer frames may do
            size //= 2


class BatchedWalk(WalkAhead[Found]):
    """A walk whose faces and values a batcher finds, about `n_ahead` frames ahead."""

    def __init__(self, batcher: Batcher, n_ahead: int) -> None:
        super().__init__(batcher.detector, batcher.model.card.crop, searches=False)
        self._batcher, self._n_ahead = batcher, n_ahead

    def take(self, chunk: Chunk) -> Iterator[Step]:
        on_device = self._uploaded(chunk)
        if on_device is None:
            yield from self.rest()  # what is ahead lets go of its memory
            on_device = self._batcher.upload(chunk.pictures)
        found = self._batcher.find(on_device, chunk.frames[0].pixel_aspect)
        self._ahead.append((chunk.frames, found))
        del on_device
        while len(self._ahead) > 1 and sum(len(some) for some, _ in self._ahead) > self._n_ahead:
            yield from self._next()

    def _uploaded(self, chunk: Chunk) -> torch.Tensor | None:
        try:
            return self._batcher.upload(chunk.pictures)
        except torch.OutOfMemoryError:
            return None

    def _wait(self, found: Future[list[Found]]) -> list[Found]:
        return self._batcher.wait(found)

    def _linked(self, frame: Frame, found: Found) -> Step:
        faces, values = found
        return self.link(frame, faces, values, "full"), []
