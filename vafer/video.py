"""The frames of a recording, each with its own number and timestamp.

decord serves what it is known to serve right, PyAV all else (`vafer.probe` plans which). The pixels
are the same: 8-bit pictures are equal bit for bit, and equal to those of `ffmpeg -pix_fmt rgb24`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vafer.errors import VideoError
from vafer.options import ALL_FRAMES, Sampling
from vafer.pictures import numbered_pictures, read_picture
from vafer.probe import VideoInfo, display_path, open_container, packets, video_stream

_REORDER_FRAMES = 16  # the most pictures that an H.264 or HEVC decoder may hold back (A.3.1, A.4.2)
_DRAIN = av.Packet()  # the end of the stream, where a decoder hands out what it still holds

SEEK_FROM_S = 2.0
"""A start later than this is sought; up to there, decoding costs next to nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame."""

    index: int  # 0-based, presentation order, counted before sampling
    pts: int | None
    time_s: float | None  # 0 at the container's start time
    image: np.ndarray  # uint8 (H, W, 3) RGB as displayed, C-contiguous


class VideoReader:
    """Iterates once over the wanted frames of a recording; the counters are final afterwards.

    `frame.index` is the place of its pts among those that the demuxer promises, so a frame that
    cannot be decoded leaves a gap and shifts nothing. `n_frames` counts what was decoded from
    `start_s` on. Raises VideoError where no frame at all can be decoded, and where the sampling
    needs times that the recording does not have.
    """

    def __init__(self, info: VideoInfo, *, sampling: Sampling = ALL_FRAMES) -> None:
        self.info = info
        self.sampling = sampling
        self.n_frames = 0
        self.decoder = info.decoder
        self._wants = sampling.chooser()
        self._next = 0  # the next index to serve
        self._first = 0 if sampling.start_s is None else _index_at(info, sampling.start_s)
        self._n_failed = 0
        self._n_missing = 0
        self._is_used = False
        if info.pts is None and sampling.needs_time:
            what = "is a folder of pictures" if info.decoder == "pictures" else "has no timestamps"
            raise VideoError(
                f"{display_path(info.path)} {what}: found a start, an end or a rate in seconds,"
                " expected none; choose frames with --every instead"
            )

    @property
    def n_bad_packets(self) -> int:
        return self.info.n_bad_packets + self._n_failed

    @property
    def damage(self) -> str | None:
        reasons = [self.info.damage] if self.info.damage else []
        if self._n_failed:
            what = "pictures cannot be read"
            if self.info.decoder != "pictures":
                what = "packets failed to decode or gave a corrupt picture"
            reasons.append(f"{self._n_failed} {what}")
        if self._n_missing and not self.info.is_counted:  # an AVI may have packets without a frame
            reasons.append(f"{self._n_missing} frames are missing")
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

    def _from_pictures(self) -> Iterator[Frame]:
        for index, path in enumerate(numbered_pictures(self.info.path)):
            is_wanted = self._wants(index, None)
            image = read_picture(path) if is_wanted else None
            if is_wanted and image is None:
                self._n_failed += 1
                continue
            self.n_frames += 1
            if image is not None:
                yield Frame(index=index, pts=None, time_s=None, image=image)

    def _from_decord(self) -> Iterator[Frame]:
        """Frames from decord until they end or it goes wrong; `_next` says how far it came.

        Whatever it raises (errors of its own, of ctypes, bare asserts), PyAV goes on from `_next`,
        and tells what is wrong with the file if it is the file.
        """
        info = self.info
        n_until = _index_at(info, self.sampling.end_s)
        if info.pts is None or not _decodes_cleanly(info, n_until):
            return
        try:
            reader = _open_decord(info)
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
                yield Frame(index=index, pts=pts, time_s=float(time), image=picture.asnumpy())

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
            self._next = goal = goal if is_far and not info.is_counted else self._next
            attempts = [(goal, 0), (0, 1)]

        def count(failed_pts: int | None) -> None:
            if failed_pts is None or pts is None or failed_pts >= pts[goal]:
                self._n_failed += 1

        for seek_to, n_threads in attempts:
            self._n_failed = n_decoded = 0
            for index, frame in _decode(info, count, seek_to=seek_to, n_threads=n_threads):
                stamp = None if pts is None else frame.pts
                if pts is not None and info.is_counted and index < len(pts):
                    stamp = int(pts[index])
                time = None if stamp is None else info.time(stamp)
                if self.sampling.has_ended(time):
                    break
                n_decoded += index >= goal
                if index < self._next:
                    continue
                self._next = index + 1
                self.n_frames += index >= self._first
                if self._wants(index, time):
                    time_s = None if time is None else float(time)
                    image = _picture(frame, info.rotation)
                    yield Frame(index=index, pts=stamp, time_s=time_s, image=image)
            self._n_missing = 0 if pts is None else max(0, n_until - goal - n_decoded)
            if n_decoded and not self._n_missing:
                return
        if not self.n_frames:
            raise VideoError(
                f"{display_path(info.path)}: no frame of this {info.codec} stream can be decoded"
                f" ({self._n_failed} packets failed); expected at least one; copy the file again"
            )


def _index_at(info: VideoInfo, time_s: float | None) -> int:
    """The first index at or after `time_s`; the number of frames where none is, or for None."""
    pts = [] if info.pts is None else info.pts.tolist()
    if time_s is None:
        return len(pts)
    return bisect_left(pts, time_s, key=lambda tick: float(info.time(tick)))


def _decode(
    info: VideoInfo,
    on_failure: Callable[[int | None], None],
    *,
    seek_to: int = 0,
    n_threads: int = 0,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames of PyAV with their indices, in presentation order; 0 threads: one for each core.

    `on_failure` gets the pts of what fails to decode or comes out corrupt, unless the demuxer had
    flagged it. With `seek_to`, frames before that index may come first; none come where the seek
    did not land on a keyframe whose index is known.
    """
    next_index, is_landed = 0, seek_to == 0
    held: dict[int, av.VideoFrame] = {}
    for frame in _decode_packets(info, on_failure, seek_to=seek_to, n_threads=n_threads):
        index = None if info.is_counted else _place(info.pts, frame.pts)
        if not is_landed:
            if index is None or index > seek_to or not frame.key_frame:
                return
            next_index, is_landed = index, True
        if index is None:
            index = max(held, default=next_index - 1) + 1
        while index in held:  # two frames with one pts
            index += 1
        if index < next_index:
            on_failure(frame.pts)
            continue
        held[index] = frame
        # Damage can make the decoder hand out a frame before its predecessors. They may follow for
        # as long as they can lie in its buffer of pictures; what is whole passes straight through.
        while next_index in held or len(held) > _REORDER_FRAMES:
            index = min(held)
            next_index = index + 1
            yield index, held.pop(index)
    for index in sorted(held):
        yield index, held[index]


def _decode_packets(
    info: VideoInfo, on_failure: Callable[[int | None], None], *, seek_to: int, n_threads: int
) -> Iterator[av.VideoFrame]:
    """Frames as the decoder hands them out, tolerant of packets that fail."""
    flagged: set[int | None] = set()
    with open_container(info.path) as container:
        stream = video_stream(info.path, container)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = n_threads
        if info.pts is not None and seek_to:
            container.seek(int(info.pts[seek_to]), stream=stream)
        for packet in chain(packets(container, stream), (_DRAIN,)):
            if packet is None:
                continue
            if packet.is_corrupt:
                flagged.add(packet.pts)
            try:
                frames = stream.decode(None if packet is _DRAIN else packet)
            except av.FFmpegError:
                if packet.pts not in flagged:
                    on_failure(packet.pts)
                continue
            for frame in frames:
                if frame.is_corrupt and frame.pts not in flagged:
                    on_failure(frame.pts)
                yield frame


def _place(pts: np.ndarray | None, tick: int | None) -> int | None:
    """The first index of `tick` in the sorted `pts`, None where it is not there."""
    if pts is None or tick is None:
        return None
    index = int(pts.searchsorted(tick))
    return index if index < len(pts) and pts[index] == tick else None


def _decodes_cleanly(info: VideoInfo, n_frames: int) -> bool:
    """Whether PyAV decodes the first `n_frames` with the pts promised, one size and no complaint.

    decord does not tell: it passes on corrupt pictures, and where a frame is lost the next one
    takes its place, up to the end, where the last is repeated. Decoding without conversion is
    cheap, and what decord serves is short (DECORD_BUDGET_BYTES).
    """
    failures: list[int | None] = []
    size = (info.width, info.height) if info.rotation in (0, 180) else (info.height, info.width)
    n_clean = 0
    for index, frame in _decode(info, failures.append):
        if failures or index != n_clean or (frame.width, frame.height) != size:
            return False
        n_clean += 1
        if n_clean == n_frames:
            break
    return n_clean == n_frames and not failures


def _open_decord(info: VideoInfo) -> Any:
    """decord's reader of `info`. Raises ValueError where it does not see the same frames."""
    import decord  # lazily: it reads its environment at import, and torch has to come before it

    decord.logging.set_level(decord.logging.QUIET)
    assert info.pts is not None, "decord is for recordings whose pts are known"
    assert info.time_base is not None
    # The least tolerance there is: the first frame made up from a neighbour raises.
    options = {"num_threads": 1, "fault_tol": 1e-9}
    try:
        str(info.path).encode()
        reader = decord.VideoReader(str(info.path.absolute()), **options)
    except UnicodeEncodeError:  # decord takes paths in UTF-8 only
        with info.path.open("rb") as file:
            reader = decord.VideoReader(file, **options)
    if len(reader) != len(info.pts):
        raise ValueError(f"decord sees {len(reader)} frames of {len(info.pts)}")
    # decord rebases its times to 0 and rounds them to float32
    seen = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
    promised = (info.pts - info.pts[0]) * float(info.time_base)
    if not np.allclose(seen - seen[0], promised, rtol=1e-6, atol=1e-4):
        raise ValueError("decord sees other timestamps")
    return reader


def _picture(frame: av.VideoFrame, rotation: int) -> np.ndarray:
    """uint8 (H, W, 3) RGB as displayed, equal to what decord and `ffmpeg -pix_fmt rgb24` give."""
    # One thread: libswscale converts these sizes in less time than it takes to wake a second one.
    rgb = (
        VideoReformatter()
        .reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        .to_ndarray()
    )
    return np.ascontiguousarray(np.rot90(rgb, -rotation // 90))
