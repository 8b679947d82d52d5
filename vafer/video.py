"""The frames of a recording, each with its own number and timestamp.

decord serves what it is known to serve right, PyAV all else (`vafer.probe` plans which). The pixels
are the same: 8-bit pictures are equal bit for bit, and equal to those of `ffmpeg -pix_fmt rgb24`.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vafer.container import refusal, unusable
from vafer.decoders import N_THREADS, decode, decodes_cleanly, open_decord, to_rgb
from vafer.errors import VideoError, counted, display_path
from vafer.options import ALL_FRAMES, Sampling
from vafer.pictures import pictures_of, read_picture
from vafer.probe import VideoInfo

NAMED = 3  # of the pictures that cannot be read

SEEK_FROM_S = 2.0
"""A start later than this is sought; up to there, decoding costs next to nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame."""

    index: int  # 0-based, presentation order, counted before sampling
    pts: int | None
    time_s: float | None  # 0 at the container's start time
    image: np.ndarray  # uint8 (H, W, 3) RGB as displayed, C-contiguous
    is_cut: bool = False  # whether it starts a shot, see `vafer.cuts`; the reader does not say
    pixel_aspect: float = 1.0  # width of a pixel to its height, as displayed


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some frames of one size, one after the other, and their pictures uint8 (N, H, W, 3)."""

    frames: list[Frame]
    pictures: np.ndarray


class VideoReader:
    """Iterates once over the wanted frames of a recording; the counters are final afterwards.

    `frame.index` is the place of its pts among those that the demuxer promises, so a frame that
    cannot be decoded leaves a gap and shifts nothing. `n_frames` counts what was decoded from
    `start_s` on. n_threads: of the decoder. Raises VideoError where no
    frame at all can be decoded, and where the sampling needs times that the recording does not
    have.
    """

    def __init__(
        self, info: VideoInfo, *, sampling: Sampling = ALL_FRAMES, n_threads: int = N_THREADS
    ) -> None:
        self.info = info
        self._n_threads = n_threads
        self.sampling = sampling
        self.n_frames = 0
        self.decoder = info.decoder
        self._wants = sampling.chooser()
        self._next = 0  # the next index to serve
        self._first = 0 if sampling.start_s is None else _index_at(info, sampling.start_s)
        self._n_failed = 0
        self._n_missing = 0
        self._unread: list[str] = []  # the first of the pictures that cannot be
        self._is_used = False
        if info.pts is None and sampling.needs_time:
            what = "pictures" if info.decoder == "pictures" else "a recording without timestamps"
            raise VideoError(
                f"{display_path(info.path)}: found {what}, expected times for --start, --end or"
                " --fps; leave these out, or choose frames with --every"
            )

    @property
    def n_bad_packets(self) -> int:
        return self.info.n_bad_packets + self._n_failed

    @property
    def damage(self) -> str | None:
        reasons = [self.info.damage] if self.info.damage else []
        if self._n_failed:
            if self.info.decoder == "pictures":
                named = ", ".join(self._unread) + (", …" if self._n_failed > NAMED else "")
                reasons.append(f"{counted(self._n_failed, 'picture')} cannot be read: {named}")
            else:
                packets = counted(self._n_failed, "packet")
                reasons.append(f"{packets} failed to decode, or gave a corrupt or late picture")
        if self._n_missing and not self.info.is_counted:  # an AVI may have packets without a frame
            n_asked = _index_at(self.info, self.sampling.end_s) - self._first
            lost = f"{self._n_missing:,} of {counted(n_asked, 'frame')} that packets are there for"
            reasons.append(f"{lost} cannot be decoded")
        return "; ".join(reasons) or None

    def __iter__(self) -> Iterator[Frame]:
        if self._is_used:
            raise RuntimeError("a VideoReader can be iterated once")
        self._is_used = True
        if self.info.pts is not None and not len(self.info.pts):
            raise VideoError(
                f"{display_path(self.info.path)}: every packet is to be discarded, as by an edit"
                " list beyond the end; expected a frame to show; check how it was cut"
            )
        if self.info.decoder == "pictures":
            yield from self._from_pictures()
            return
        if self.info.decoder == "decord":
            yield from self._from_decord()
            if self._next == _index_at(self.info, self.sampling.end_s):
                return
            self.decoder = "decord+pyav" if self._next else "pyav"
        yield from self._from_pyav()

    def _frame(
        self, index: int, pts: int | None, time: Fraction | None, image: np.ndarray
    ) -> Frame:
        return Frame(
            index=index,
            pts=pts,
            time_s=None if time is None else float(time),
            image=image,
            pixel_aspect=self.info.aspect_of(image.shape),
        )

    def _from_pictures(self) -> Iterator[Frame]:
        for index, path in enumerate(pictures_of(self.info.path)):
            is_wanted = self._wants(index, None)
            image = read_picture(path) if is_wanted else None
            if is_wanted and image is None:
                self._n_failed += 1
                if self._n_failed <= NAMED:
                    self._unread.append(display_path(Path(path.name)))
                continue
            self.n_frames += 1
            if image is not None:
                yield self._frame(index, None, None, image)

    def _from_decord(self) -> Iterator[Frame]:
        """Frames from decord until they end or it goes wrong; `_next` says how far it came.

        Whatever it raises (errors of its own, of ctypes, bare asserts), PyAV goes on from `_next`,
        and tells what is wrong with the file if it is the file.
        """
        info = self.info
        n_until = _index_at(info, self.sampling.end_s)
        if info.pts is None or not decodes_cleanly(info, n_until):
            return
        try:
            reader = open_decord(info)
        except Exception:
            return
        for pts in info.pts[:n_until].tolist():
            try:
                picture = reader.next()
            except Exception:
                return
            if picture.shape != (info.height, info.width, 3):
                return
            index, time = self._next, info.time(pts)
            self._next += 1
            self.n_frames += index >= self._first
            if self._wants(index, time):
                yield self._frame(index, pts, time, picture.asnumpy())

    def _from_pyav(self) -> Iterator[Frame]:
        """Frames from PyAV, from `_next` on.

        With frame threads a damaged end loses frames that are fine (PyAV cannot go on draining a
        decoder that raised), so what comes out short is decoded again on one thread, from the
        beginning, and what was not served yet is served. The same where a seek did not land right.
        """
        info, pts = self.info, self.info.pts
        n_until = _index_at(info, self.sampling.end_s)
        goal = max(self._next, self._first)
        if pts is not None and goal >= n_until:
            return
        attempts = [(0, 1)]
        if pts is not None:
            is_far = info.time(int(pts[goal])) - info.time(int(pts[0])) > SEEK_FROM_S
            self._next = goal = goal if is_far and info.can_seek else self._next
            attempts = [*dict.fromkeys([(goal, self._n_threads), (0, 1)])]

        first = max(goal, self._first)  # frame that is asked for

        def count(failed_pts: int | None) -> None:
            if failed_pts is None or pts is None or failed_pts >= pts[goal]:
                self._n_failed += 1

        for seek_to, n_threads in attempts:
            self._n_failed = n_decoded = 0
            for index, frame in decode(info, count, seek_to=seek_to, n_threads=n_threads):
                stamp = None if pts is None else frame.pts
                if pts is not None and info.is_counted and index < len(pts):
                    stamp = int(pts[index])
                time = None if stamp is None else info.time(stamp)
                if self.sampling.has_ended(time):
                    break
                n_decoded += index >= first
                if index < self._next:
                    continue
                self._next = index + 1
                self.n_frames += index >= self._first
                if self._wants(index, time):
                    yield self._frame(index, stamp, time, to_rgb(frame, info.rotation))
            self._n_missing = 0 if pts is None else max(0, n_until - first - n_decoded)
            if n_decoded and not self._n_missing:
                return
        if not self.n_frames:
            found = f"no frame of this {info.codec} stream can be decoded"
            if info.damage:
                raise refusal(info.path, f"{found} ({info.damage})", "copy it again")
            raise unusable(info.path, found, "copy it again")


def _index_at(info: VideoInfo, time_s: float | None) -> int:
    """The first index at or after `time_s`; the number of frames where none is, or for None."""
    pts = [] if info.pts is None else info.pts.tolist()
    if time_s is None:
        return len(pts)
    return bisect_left(pts, time_s, key=lambda tick: float(info.time(tick)))
