"""Faces over the frames of one recording, with as few looks at whole frames as will do."""

import numpy as np

from vafer.faces import Detector, Faces
from vafer.mosaic import SAME
from vafer.tracks import box_distance

REMEMBERED_S = 0.5  # how long a face that is missed is looked for where it was last seen
FULL_EVERY_S = 0.4  # how long a face that comes in while others are there may be overlooked
FULL_EVERY_FRAMES = 8
# SHA-256 of the weights of detectors that find nearly the same this way: 98 % of the faces, 1 %
# others, valence and arousal a median of 0.02 apart (bench/search.py, docs/performance.md).
AGREES = {
    "87212fb071b7fde095542066a5cf917db292178fcde798dc4def6573c7bff583",  # vafer-faces
    "dd97927cf84785674c0826dbb0c25f6096c2ce3e2e03c1a1d09b21727b4163c2",  # SCRFD-500M
}


class Search:
    """Looks for the faces of one recording, frame by frame.

    is_on: around the faces of the frame before, and in the whole frame at intervals, after a cut,
    where there was no face, and where one is not found again. Else always in the whole frame.
    """

    def __init__(self, detector: Detector, *, is_on: bool) -> None:
        self._detector = detector
        self._is_on = is_on
        self._full_s = -np.inf  # when the whole frame was looked at
        self._n_searched = 0  # frames since
        self._forget()

    def find(self, image: np.ndarray, *, time_s: float, is_cut: bool) -> tuple[Faces, str]:
        """The faces of the next frame, uint8 (H, W, 3) RGB, and the table's `face_source`."""
        if is_cut:
            self._forget()
        is_due = (
            not len(self._boxes)
            or self._n_searched + 1 >= FULL_EVERY_FRAMES
            or time_s - self._full_s >= FULL_EVERY_S
        )
        faces = None
        if self._is_on and not is_due:
            around = np.concatenate([self._boxes, self._gone])
            faces = self._detector.search(image, around, n_needed=len(self._boxes))
        source = "full" if faces is None else "search"
        self._n_searched += 1
        if faces is None:
            faces = self._detector.detect(image)
            self._full_s, self._n_searched = time_s, 0
        self._remember(faces.boxes, time_s)
        return faces, source

    def _forget(self) -> None:
        self._boxes = np.empty((0, 4), np.float32)  # of the faces of the frame before
        self._gone = np.empty((0, 4), np.float32)  # of those of a moment ago
        self._gone_s = np.empty(0)  # when they were first missed

    def _remember(self, boxes: np.ndarray, time_s: float) -> None:
        known = np.concatenate([self._boxes, self._gone])
        gone_s = np.concatenate([np.full(len(self._boxes), time_s), self._gone_s])
        is_gone = time_s - gone_s <= REMEMBERED_S
        if len(boxes) and len(known):
            is_gone &= box_distance(known, boxes).min(axis=1) > SAME
        self._boxes, self._gone, self._gone_s = boxes, known[is_gone], gone_s[is_gone]
