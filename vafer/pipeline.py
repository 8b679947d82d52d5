"""One recording's walk: frames → faces → tracks → crops → valence and arousal."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from vafer.crops import Patch, cut, warp
from vafer.errors import ModelError
from vafer.faces import Detector
from vafer.model import Model
from vafer.search import Search
from vafer.table import FrameResult
from vafer.tracks import CutDetector, Tracker
from vafer.video import Frame

FRAMES_AT_ONCE = 1024  # most frames whose rows wait for a batch of faces to fill up
PICTURES_PER_SECOND = 25.0  # what the tracker takes for the rate of recordings without timestamps
NO_VALUES = np.empty((0, 2), np.float32)


class Pipeline:
    """A detector and a model at work on one recording at a time.

    batch_size: faces per prediction. searches: look for faces around those of the frame before,
    see `vafer.search`. Raises ModelError when the model aligns faces by landmarks and
    the detector gives none.
    """

    def __init__(
        self, detector: Detector, model: Model, *, batch_size: int, searches: bool = False
    ) -> None:
        if model.card.crop.kind == "aligned" and not detector.has_landmarks:
            raise ModelError(
                f"{detector.path} gives boxes without landmarks, and {model.card.name} aligns "
                "faces by five landmarks: use another detector or another model"
            )
        self.detector = detector
        self.model = model
        self.batch_size = batch_size
        self.searches = searches

    def results(self, frames: Iterable[Frame]) -> Iterator[list[FrameResult]]:
        """Walk through the frames of one recording; yields finished ones in order, in batches."""
        search, tracker = Search(self.detector, is_on=self.searches), Tracker()
        cuts = CutDetector()
        waiting: list[FrameResult] = []  # not the frames: a thousand 1080p pictures are 6 GB
        patches: list[Patch] = []
        crop = self.model.card.crop
        for frame in frames:
            time_s = frame.index / PICTURES_PER_SECOND if frame.time_s is None else frame.time_s
            is_cut = cuts.update(frame.image)
            faces, source = search.find(frame.image, time_s=time_s, is_cut=is_cut)
            ids = tracker.update(faces.boxes, faces.scores, time_s=time_s, is_cut=is_cut)
            if len(faces):
                maps = crop.matrices(faces.boxes, faces.landmarks)
                patches += [cut(frame.image, matrix, crop.size) for matrix in maps]
            waiting.append(
                FrameResult(frame.index, frame.pts, frame.time_s, faces, ids, NO_VALUES, source)
            )
            if len(patches) >= self.batch_size or len(waiting) >= FRAMES_AT_ONCE:
                yield self._predict(waiting, patches)
                waiting, patches = [], []
        if waiting:
            yield self._predict(waiting, patches)

    def _predict(self, waiting: list[FrameResult], patches: list[Patch]) -> list[FrameResult]:
        parts = [NO_VALUES]
        for start in range(0, len(patches), self.batch_size):
            batch = patches[start : start + self.batch_size]
            crops = warp(batch, self.model.card.crop.size, self.model.device)
            parts.append(self.model.predict(crops).numpy())
        ends = np.cumsum([len(result.faces) for result in waiting])
        values = np.split(np.concatenate(parts), ends[:-1])
        return [replace(r, values=v) for r, v in zip(waiting, values, strict=True)]
