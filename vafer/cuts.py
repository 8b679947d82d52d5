"""Shot cuts, frame by frame.

PySceneDetect's `ContentDetector` at its own threshold, with one veto: a cut changes the layout of
the picture, while a flash or an exposure step changes its brightness only. Alone, the detector
takes 25 to 100 % of simulated flashes for cuts, by strength; with the veto, none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from unittest.mock import patch

import cv2
import numpy as np

from vafer.video import Frame

# When imported it starts ffmpeg to see whether there is one. That takes hold of the terminal, and
# stops a run in the background.
with patch("subprocess.call", side_effect=FileNotFoundError):
    from scenedetect import FrameTimecode
    from scenedetect.detectors import ContentDetector

CUT_SIZE = (160, 90)  # width, height; cuts show at any size, and 1080p costs 1.6 ms this way
LAYOUT_SIZE = (32, 18)  # coarse enough that a moving head leaves most of the layout in place
MAX_LAYOUT_CORRELATION = 0.5
BLANK_STD = 2.0  # grey levels of the layout; the darkest real shot measured has 17


def with_cuts(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frames of one recording, each with whether it starts a shot."""
    detector = CutDetector()
    for frame in frames:
        yield replace(frame, is_cut=detector.update(frame.image))


class CutDetector:
    """Finds shot cuts frame by frame, looking back only; one per video.

    Dissolves are not found: no two neighbouring frames differ enough.
    """

    def __init__(self) -> None:
        # No minimum length of a shot: it would hold a cut back until later frames are known.
        self._content = ContentDetector(min_scene_len=0)
        self._layout: np.ndarray | None = None
        self._after_blank = False

    def update(self, image: np.ndarray) -> bool:
        """Whether `image`, uint8 (H, W, 3) RGB, starts a new shot; never for the first frame.

        A blank frame (black, or burnt out by a flash) starts none: the frame after it is compared
        with the frame before it.
        """
        small = cv2.resize(image, CUT_SIZE, interpolation=cv2.INTER_AREA)
        layout = cv2.resize(
            cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), LAYOUT_SIZE, interpolation=cv2.INTER_AREA
        )
        if layout.std() < BLANK_STD:
            self._after_blank = True
            return False
        # PySceneDetect only hands the timecode back as the cut's name.
        changed = bool(
            self._content.process_frame(
                FrameTimecode(0, fps=1.0), cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
            )
        )
        # Beside a fade to black both frames are dim and hardly differ: there the layout decides.
        suspect = changed or self._after_blank
        previous, self._layout, self._after_blank = self._layout, layout, False
        if previous is None or not suspect:
            return False
        correlation = cv2.matchTemplate(previous, layout, cv2.TM_CCOEFF_NORMED)[0, 0]
        return bool(correlation < MAX_LAYOUT_CORRELATION)
