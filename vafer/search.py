"""Faces over the frames of one recording, with as few looks at whole frames as will do.

A recording is parted into groups of frames by what its frames are alone, whatever is seen in them.
The first frame of a group is looked at whole, the others mostly around the faces of the frame
before; nothing goes from one group to the next, so several can be looked at at once.
"""

import numpy as np

from vafer.faces import Detector, Faces
from vafer.mosaic import SAME
from vafer.tracks import TIME_TOLERANCE_S, box_distance

# How long a face that comes in while others are there may be overlooked: longest, exclusive, and
# most frames of a group.
GROUP_S = 0.4
GROUP_FRAMES = 8
# SHA-256 of the weights of detectors that find nearly the same this way: 98 % of the faces, 1 %
# others, valence and arousal a median of 0.02 apart (bench/search.py, docs/performance.md).
AGREES = {
    "87212fb071b7fde095542066a5cf917db292178fcde798dc4def6573c7bff583",  # vafer-faces
    "dd97927cf84785674c0826dbb0c25f6096c2ce3e2e03c1a1d09b21727b4163c2",  # SCRFD-500M
}


class Groups:
    """Parts a recording, frame by frame. are_long: else each frame is a group by itself."""

    def __init__(self, *, are_long: bool) -> None:
        self._n_most = GROUP_FRAMES if are_long else 1
        self._n_frames = 0  # of the group
        self._begun_s = 0.0
        self._shape: tuple[int, ...] = ()

    def begins(self, image: np.ndarray, *, time_s: float, is_cut: bool) -> bool:
        """Whether a group begins with the next frame, (H, W, 3)."""
        begins = (
            is_cut
            or image.shape != self._shape
            or self._n_frames == self._n_most
            or time_s - self._begun_s >= GROUP_S - TIME_TOLERANCE_S
        )
        if begins:
            self._n_frames, self._begun_s, self._shape = 0, time_s, image.shape
        self._n_frames += 1
        return begins


class Search:
    """Looks for the faces of one group's frames, one after the other.

    In the whole frame for the first, where the frame before has no face, and where one of its faces
    is not found again; else around them.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._boxes = np.empty((0, 4), np.float32)  # of the faces of the frame before
        self._gone = np.empty((0, 4), np.float32)  # of those of frames before that one

    def find(self, image: np.ndarray) -> tuple[Faces, str]:
        """The faces of the next frame, uint8 (H, W, 3) RGB, and the table's `face_source`."""
        faces, source = None, "search"
        known = np.concatenate([self._boxes, self._gone])
        if len(self._boxes):
            faces = self._detector.search(image, known, n_needed=len(self._boxes))
        if faces is None:
            faces, source = self._detector.detect(image), "full"
        if len(faces) and len(known):
            known = known[box_distance(known, faces.boxes).min(axis=1) > SAME]
        self._boxes, self._gone = faces.boxes, known
        return faces, source
