"""What a user may ask of a run, and what is taken where nothing is asked."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vafer.errors import UsageError

STRIDE = 32  # the coarsest stride of the detectors: their input is a multiple of it
BATCH_SIZE = 32  # faces per prediction


@dataclass(frozen=True)
class DetectorOptions:
    """What is asked of a detector.

    size: the most that the longer side of a frame may have, in pixels. threshold: the least score.
    min_face: the least shorter side of a box, in pixels of the frame. max_faces: how many of the
    best-scored faces of a frame are kept.
    """

    size: int = 640
    threshold: float = 0.5
    min_face: float = 0.0
    max_faces: int | None = None

    def __post_init__(self) -> None:
        if self.size < STRIDE:
            raise UsageError(f"--det-size {self.size}: expected {STRIDE} pixels or more")
        if not 0 < self.threshold < 1:
            raise UsageError(f"--det-threshold {self.threshold}: expected more than 0, below 1")
        if not 0 <= self.min_face < math.inf:
            raise UsageError(
                f"smallest face {self.min_face}: expected a number of pixels, 0 or more"
            )
        if self.max_faces is not None and self.max_faces < 1:
            raise UsageError(f"at most {self.max_faces} faces: expected 1 or more")


@dataclass(frozen=True)
class Sampling:
    """Which frames to analyse. Raises UsageError where the wishes contradict each other.

    `every` keeps the indices divisible by it, wherever `start_s` lies, so that a part of a
    recording has the frames that the whole has. `fps` keeps the first frame at or after each
    multiple of 1/fps from `start_s` on. `start_s` and `end_s` are half-open: [start, end).
    """

    every: int = 1
    fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"every {self.every} frames: expected 1 or more")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise UsageError(f"--fps {self.fps}: expected more than 0 frames a second")
        if self.fps is not None and self.every != 1:
            raise UsageError("both --every and --fps: give one of them")
        for name, value in (("start", self.start_s), ("end", self.end_s)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} at {value} s: expected 0 seconds or more")
        if self.end_s is not None and (self.start_s or 0.0) >= self.end_s:
            begin = f"--start {self.start_s} s" if self.start_s else "the beginning"
            raise UsageError(f"--end {self.end_s} s: expected a time after {begin}")

    @property
    def needs_time(self) -> bool:
        return not (self.fps is None and self.start_s is None and self.end_s is None)

    def chooser(self) -> Callable[[int, Fraction | None], bool]:
        """A function that says of each (index, time in s), given in order, whether it is wanted."""
        if self.fps is None:
            return lambda index, time: index % self.every == 0 and self._has_begun(time)
        # 23.976023976023978 means 24000/1001: without this a frame on the grid may fall before it.
        rate = Fraction(self.fps).limit_denominator(100_000) or Fraction(self.fps)
        origin = Fraction(self.start_s or 0.0).limit_denominator(1_000_000)
        last = -1

        def wants(index: int, time: Fraction | None) -> bool:
            nonlocal last
            if time is None or not self._has_begun(time):
                return False
            point = math.floor((time - origin) * rate)
            if point <= last:
                return False
            last = point
            return True

        return wants

    def _has_begun(self, time: Fraction | None) -> bool:
        return self.start_s is None or (time is not None and float(time) >= self.start_s)

    def has_ended(self, time: Fraction | None) -> bool:
        return self.end_s is not None and time is not None and float(time) >= self.end_s


@dataclass(frozen=True)
class Shard:
    """Part `number`, from 1, of `count` parts of a job, for machines that do not know each other.

    A recording's part is decided by its name alone, so recordings added later move no other.
    Raises UsageError where there is no such part.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(f"--shard {self}: expected I/N with I from 1 to N")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`3/16` → the third of sixteen. Raises UsageError."""
        if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
            raise UsageError(f"--shard {text}: expected I/N, such as 3/16, with I from 1 to N")
        number, _, count = text.partition("/")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, video: str) -> bool:
        """Whether the recording of this name is in the part."""
        digest = hashlib.sha256(f"shard {video}".encode()).digest()
        return int.from_bytes(digest) % self.count == self.number - 1


@dataclass(frozen=True)
class SplitOptions:
    """Which part of a dataset is wanted.

    split: `train`, `validation` or `all`; None is `validation`, or all of what has folds. fold: of
    `n_folds`, from 0. seed, fraction: of Aff-Wild's validation videos. assignment: file that says
    where each person or video belongs, instead of n_folds, seed and fraction.
    """

    split: str | None = None
    fold: int | None = None
    n_folds: int = 5
    seed: int = 0
    fraction: float = 0.2
    assignment: Path | None = None

    def __post_init__(self) -> None:
        if self.split is not None and self.fold is not None:
            raise UsageError("both a split and a fold: give one of them")
        if self.n_folds < 2:
            raise UsageError(f"{self.n_folds} folds: expected 2 or more")
        if not 0 < self.fraction < 1:
            raise UsageError(f"validation fraction {self.fraction}: expected more than 0, below 1")


ALL_FRAMES = Sampling()
