"""One recording's walk: frames → faces → tracks → crops; and crops → values, in full batches."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch

from vafer.crops import CropSpec, Patch, cut, warp
from vafer.cuts import with_cuts
from vafer.errors import ModelError
from vafer.faces import Detector, Faces
from vafer.model import Model
from vafer.search import Groups, Search
from vafer.table import FrameResult
from vafer.tracks import Tracker
from vafer.video import Chunk, Frame

FRAMES_AT_ONCE = 1024  # most frames whose rows wait for a batch of faces to fill up
PICTURES_PER_SECOND = 25.0  # what the tracker takes for the rate of recordings without timestamps
NO_ROOM_FOR_ONE = "one face does not fit into the memory of the GPU: give it more, or use the CPU"
NO_VALUES = np.empty((0, 2), np.float32)

Owner = TypeVar("Owner")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen in a frame: its faces, the table's `face_source`, and a patch for each face."""

    faces: Faces
    source: str
    patches: list[Patch]


Step = tuple[FrameResult, list[Patch]]  # a frame's faces without values, and what these need of it


class Walk:
    """The faces of one recording, frame by frame, without their values."""

    def __init__(self, detector: Detector, crop: CropSpec, *, searches: bool) -> None:
        self.crop = crop
        self._detector = detector
        self._groups = Groups(are_long=searches)
        self._search: Search  # of the group; its first frame begins it
        self._tracker = Tracker()

    def take(self, chunk: Chunk) -> Iterator[Step]:
        """Take in the next frames; yields what `step` gives, of these or of earlier ones."""
        for frame in chunk.frames:
            yield self.step(frame)

    def rest(self) -> Iterator[Step]:
        """The frames that were taken in and are still to come, after the last."""
        yield from ()

    def close(self) -> None:
        """End what others do for it, come what may of it; more than once is nothing."""

    def step(self, frame: Frame) -> Step:
        """The next frame's faces, and what their crops need of it; the frame itself can go."""
        if self.begins_group(frame):
            self._search = Search(self._detector)
        seen = self.look(frame, self._search)
        return self.link(frame, seen.faces, NO_VALUES, seen.source), seen.patches

    def begins_group(self, frame: Frame) -> bool:
        """Whether a group of `vafer.search` begins with the next frame."""
        return self._groups.begins(frame.image, time_s=_time_of(frame), is_cut=frame.is_cut)

    def look(self, frame: Frame, search: Search) -> Seen:
        """What is seen in the next frame of a group."""
        faces, source = search.find(frame.image)
        maps = (
            self.crop.matrices(faces.boxes, faces.landmarks, pixel_aspect=frame.pixel_aspect)
            if len(faces)
            else ()
        )
        return Seen(faces, source, [cut(frame.image, matrix, self.crop.size) for matrix in maps])

    def link(self, frame: Frame, faces: Faces, values: np.ndarray, source: str) -> FrameResult:
        """The next frame's faces with their tracks; of the frame itself no pixel is used."""
        ids = self._tracker.update(
            faces.boxes, faces.scores, time_s=_time_of(frame), is_cut=frame.is_cut
        )
        return FrameResult(frame.index, frame.pts, frame.time_s, faces, ids, values, source)


def _time_of(frame: Frame) -> float:
    return frame.index / PICTURES_PER_SECOND if frame.time_s is None else frame.time_s


class Batches(Generic[Owner, Item]):
    """Fills batches with the faces of frames, of whatever recordings, and hands out all items in
    the order in which they came, frames with their values.

    Every batch has the same size, the last one filled up with black, so that a face's values do not
    depend, to the last bit, on which others came with it; where a GPU's memory does not suffice,
    half of it from then on. `owner` is what an item belongs to.
    """

    def __init__(self, model: Model, size: int) -> None:
        self._model, self._size = model, size
        self._waiting: deque[tuple[Owner, FrameResult | Item, int]] = deque()  # with its faces
        self._patches: deque[Patch] = deque()
        self._values: deque[np.ndarray] = deque()  # (2,) each, of the first faces that wait

    def add(
        self, owner: Owner, item: FrameResult | Item, patches: Sequence[Patch] = ()
    ) -> Iterator[tuple[Owner, FrameResult | Item]]:
        """Take in a frame with its faces, or anything else; yields what is finished by now."""
        self._waiting.append((owner, item, len(patches)))
        self._patches += patches
        while len(self._patches) >= self._size:
            self._predict()
        if len(self._waiting) >= FRAMES_AT_ONCE:
            yield from self.finish()
        else:
            yield from self._finished()

    def finish(self) -> Iterator[tuple[Owner, FrameResult | Item]]:
        """Yield all that wait."""
        while self._patches:
            self._predict()
        yield from self._finished()

    def _finished(self) -> Iterator[tuple[Owner, FrameResult | Item]]:
        while self._waiting and self._waiting[0][2] <= len(self._values):
            owner, item, n_faces = self._waiting.popleft()
            if isinstance(item, FrameResult) and n_faces:  # else it has none, or its values
                values = np.stack([self._values.popleft() for _ in range(n_faces)])
                item = replace(item, values=values)
            yield owner, item

    def _predict(self) -> None:
        n = min(self._size, len(self._patches))
        batch = list(islice(self._patches, n))
        size = self._model.card.crop.size
        try:
            crops = torch.zeros((self._size, 3, size, size), device=self._model.device)
            crops[:n] = warp(batch, size, self._model.device)
            values = self._model.predict(crops)[:n].numpy()
        except torch.OutOfMemoryError:
            if self._size == 1:
                raise ModelError(NO_ROOM_FOR_ONE) from None
            self._size //= 2
            return  # and what was tried is let go of
        for _ in range(n):
            self._patches.popleft()
        self._values += list(values)


class Pipeline:
    """A detector and a model at work on one recording at a time.

    batch_size: faces per prediction. searches: look for faces around those of the frame before,
    see `vafer.search`. Raises ModelError when the model aligns faces by landmarks and the detector
    gives none.
    """

    def __init__(
        self, detector: Detector, model: Model, *, batch_size: int, searches: bool = False
    ) -> None:
        check_fit(detector, model)
        self.detector = detector
        self.model = model
        self.batch_size = batch_size
        self.searches = searches

    def results(self, frames: Iterable[Frame]) -> Iterator[list[FrameResult]]:
        """Walk through the frames of one recording; yields finished ones in order, in batches."""
        walk = Walk(self.detector, self.model.card.crop, searches=self.searches)
        batches: Batches[None, FrameResult] = Batches(self.model, self.batch_size)
        for frame in with_cuts(frames):
            if finished := [result for _, result in batches.add(None, *walk.step(frame))]:
                yield finished
        if finished := [result for _, result in batches.finish()]:
            yield finished


def check_fit(detector: Detector, model: Model) -> None:
    """Raise ModelError when the model aligns faces by landmarks and the detector gives none."""
    if model.card.crop.kind == "aligned" and not detector.has_landmarks:
        raise ModelError(
            f"{detector.path} gives boxes without landmarks, and {model.card.name} aligns "
            "faces by five landmarks: use another detector or another model"
        )
