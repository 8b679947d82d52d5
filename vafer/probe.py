"""What the container says of a recording: its packets, read once, are the truth of timestamps."""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from vafer.container import (
    DRAIN,
    open_container,
    packets,
    refusal,
    show_life,
    unusable,
    video_stream,
)
from vafer.errors import VideoError, counted, display_path, why_unreadable
from vafer.matroska import fault_of_matroska
from vafer.mp4 import fault_of_mp4
from vafer.pictures import is_picture, pictures_of, read_picture, twins

VIDEO_SUFFIXES = frozenset(
    (  # noqa: SIM905 - a list of quoted words would take thirty lines
        ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .m1v .m2t .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov"
        " .mp4 .mpe .mpeg .mpg .mts .mxf .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .wtv .y4m"
    ).split()
)

DECORD_BUDGET_BYTES = 384 * 2**20
"""The most RGB that a recording may come to for decord to serve it.

decord has no back-pressure: it takes in packets as fast as they are read until its first frame is
out, and decodes them all while its consumer waits. At 360p that came to 700 to 1,950 frames (0.5
to 1.4 GB), at 1080p to more than the 4 GB at which the measurement ends (bench/decode.py). Only the
recording's length bounds it, so the whole of it must be small enough to be held.
"""

_DECORD_CODECS = frozenset({"h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9"})
_DECORD_CONTAINERS = ("mp4", "matroska")
_DECORD_PIXELS = frozenset({"yuv420p", "yuvj420p"})  # and even sizes: else its colours are off
MOST_PIXEL_ASPECT = 4.0  # and 1 over it is the least: what lies beyond is taken for a mistake


@dataclass(frozen=True, slots=True, eq=False)
class VideoInfo:
    """A recording as its container describes it."""

    path: Path
    width: int  # as displayed, after rotation
    height: int
    rotation: int  # degrees clockwise by which the stored picture is turned for display
    codec: str
    fps: float | None  # average
    duration_s: float | None
    time_base: Fraction | None  # seconds a tick of pts; None for pictures
    start_s: Fraction  # the container's start time
    pts: np.ndarray | None  # int64 (n,), presentation order; None where packets carry none
    n_bad_packets: int
    damage: str | None
    decoder: str  # planned: "decord", "pyav" or "pictures"
    is_counted: bool = False  # the n-th frame decoded has the n-th pts, whatever the decoder says
    can_seek: bool = True  # after a seek, frames have the pts that they have without one
    pixel_aspect: float = 1.0  # width of a pixel to its height, as displayed, after rotation

    def __post_init__(self) -> None:
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"rotation {self.rotation} is not 0, 90, 180 or 270")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a picture of {self.width}x{self.height}")
        if not 1 / MOST_PIXEL_ASPECT <= self.pixel_aspect <= MOST_PIXEL_ASPECT:
            raise ValueError(f"pixels {self.pixel_aspect} times as wide as high")
        if self.decoder not in ("decord", "pyav", "pictures"):
            raise ValueError(f"no decoder is called {self.decoder!r}")
        if self.pts is not None:
            if self.pts.dtype != np.int64 or self.pts.ndim != 1:
                raise ValueError(f"pts is {self.pts.dtype} {self.pts.shape}, not int64 (n,)")
            if (np.diff(self.pts) < 0).any():
                raise ValueError("pts is not in presentation order")
            if self.time_base is None:
                raise ValueError("pts without a time base")

    def __str__(self) -> str:
        rate = "" if self.fps is None else f" {self.fps:.5g} fps"
        frames = "" if self.pts is None else f", {len(self.pts)} frames"
        turned = f", turned {self.rotation}°" if self.rotation else ""
        if self.pixel_aspect != 1:
            turned += f", pixels {self.pixel_aspect:.4g} times as wide as high"
        damage = f", damaged: {self.damage}" if self.damage else ""
        size = f"{self.width}x{self.height}"
        return f"{display_path(self.path)}: {self.codec} {size}{rate}{frames}{turned}{damage}"

    def aspect_of(self, shape: tuple[int, ...]) -> float:
        """`pixel_aspect` of a picture (height, width, …); 1 of one that has another size."""
        return self.pixel_aspect if shape[:2] == (self.height, self.width) else 1.0

    def time(self, pts: int) -> Fraction:
        """Seconds from the container's start time to `pts`, exactly."""
        assert self.time_base is not None, "pictures have no time"
        return pts * self.time_base - self.start_s


def probe(path: Path) -> VideoInfo:
    """What `path`, a video file, a folder of numbered pictures or a single one, holds.

    Reads every packet and decodes one frame. Raises VideoError where there is nothing to decode.
    """
    of_pictures = path.is_dir() or (is_picture(path) and path.is_file())
    return _probe_pictures(path) if of_pictures else _probe_video(path)


def count_frames(path: Path, *, expected: int) -> int:
    """How many frames a video has: its index's word where that is as expected and all that it
    points at is in the file, else a full count.

    Without timestamps none can be counted, and what is expected is returned. Raises VideoError.
    """
    with open_container(path) as container:
        index = video_stream(path, container).index_entries
        if len(index) == expected and index[-1].pos + index[-1].size <= path.stat().st_size:
            return expected
    info = probe(path)
    return expected if info.pts is None else len(info.pts)


def _probe_video(path: Path) -> VideoInfo:
    with open_container(path) as container:
        stream = video_stream(path, container)
        n_header, n_packets, n_discarded, n_bad, first_is_key = stream.frames, 0, 0, 0, False
        times: list[int | None] = []
        n_restarts, latest = 0, -math.inf
        # AVI stores no pts. libav's guesses are out of order for H.264, and else late by the delay
        # of the B-frames. Its frames have one rate, so the n-th place is that of the n-th frame.
        is_counted = "avi" in container.format.name.split(",")
        for packet in packets(container, stream):
            if packet is None:
                n_bad += 1
                continue
            if n_packets == 0:
                first_is_key = packet.is_keyframe
            n_packets += 1
            if packet.pts is not None and not packet.is_corrupt and not is_counted:
                # A keyframe is shown after all that precede it. Not by dts, which libav makes up
                # where a container has none.
                is_restart = packet.is_keyframe and packet.pts < latest
                n_restarts += is_restart
                latest = packet.pts if is_restart else max(latest, packet.pts)
            n_bad += packet.is_corrupt
            n_discarded += packet.is_discard
            if not packet.is_discard:
                times.append(packet.dts if is_counted else packet.pts)
        if not n_packets:
            raise unusable(path, "a video stream without a single packet", "copy it again")

        rotation, first_pts = _first_frame(path)
        known = [pts for pts in times if pts is not None]
        if first_pts is not None and not is_counted and not n_restarts:
            # What precedes the first frame that decodes, as where a recording was cut between
            # keyframes, is no frame: ffprobe and every player count from there.
            known = [pts for pts in known if pts >= first_pts]
        pts = None if None in times else np.sort(np.array(known, np.int64))
        if pts is not None and n_restarts:
            pts = np.unique(pts)  # parts that were joined share times: one frame of each is kept

        width, height = stream.codec_context.width, stream.codec_context.height
        if width < 1 or height < 1:
            raise refusal(path, "a video stream without a picture size", "copy it again")
        container_name = container.format.name
        damage = _damage(path, container_name, n_header, n_packets, n_bad, n_restarts)
        decord_serves = (
            damage is None
            and pts is not None
            and len(pts) == n_packets
            and n_discarded == 0
            and first_is_key
            and bool((np.diff(pts) > 0).all())
            and len(container.streams.video) == 1
            and any(name in container_name for name in _DECORD_CONTAINERS)
            and stream.codec_context.name in _DECORD_CODECS
            and stream.codec_context.pix_fmt in _DECORD_PIXELS
            and width % 2 == height % 2 == 0
            and len(pts) * width * height * 3 + path.stat().st_size <= DECORD_BUDGET_BYTES
        )
        assert stream.time_base is not None
        duration_s = None
        if stream.duration is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = container.duration / av.time_base
        return VideoInfo(
            path=path,
            width=height if rotation in (90, 270) else width,
            height=width if rotation in (90, 270) else height,
            rotation=rotation,
            codec=stream.codec_context.codec.canonical_name,
            fps=float(stream.average_rate) if stream.average_rate else None,
            duration_s=duration_s,
            time_base=stream.time_base,
            start_s=_start(container),
            pts=pts,
            n_bad_packets=n_bad,
            damage=damage,
            decoder="decord" if decord_serves else "pyav",
            is_counted=is_counted,
            # MPEG program streams store some timestamps; libav's guesses hang on where it began
            can_seek=not is_counted and container_name != "mpeg",
            pixel_aspect=_pixel_aspect(stream, rotation),
        )


def _pixel_aspect(stream: av.VideoStream, rotation: int) -> float:
    """Width of a pixel to its height as displayed; 1 where nothing or nonsense is said of it."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / MOST_PIXEL_ASPECT <= aspect <= MOST_PIXEL_ASPECT:
        return 1.0
    return 1 / aspect if rotation in (90, 270) else aspect


def _first_frame(path: Path) -> tuple[int, int | None]:
    """The rotation (degrees clockwise) and the pts of the first frame that decodes.

    The pts is None where a packet failed on the way: then frames are missing, not absent.
    """
    with open_container(path) as container:
        stream = video_stream(path, container)
        n_failed = 0
        for packet in chain(packets(container, stream), (DRAIN,)):
            if packet is None:
                n_failed += 1
                continue
            try:
                frames = stream.decode(None if packet is DRAIN else packet)
            except MemoryError:  # which PyAV's own is, and an FFmpegError too
                raise
            except av.FFmpegError:
                n_failed += 1
                continue
            for frame in frames:
                # libav turns counter-clockwise
                rotation = round(-frame.rotation / 90) * 90 % 360
                return rotation, None if n_failed else frame.pts
    return 0, None


def _start(container: av.container.InputContainer) -> Fraction:
    """The container's start time in seconds, 0 where it has none.

    libav rounds it to microseconds; a stream that starts there has it exactly.
    """
    if container.start_time is None:
        return Fraction(0)
    start = Fraction(container.start_time, av.time_base)
    for stream in container.streams:
        if stream.start_time is not None and stream.time_base is not None:
            exact = stream.start_time * stream.time_base
            if abs(exact - start) < Fraction(1, av.time_base):
                return exact
    return start


def _damage(
    path: Path, container: str, n_header: int, n_packets: int, n_bad: int, n_restarts: int
) -> str | None:
    """What is wrong with the file as far as its packets tell; None where nothing is."""
    if n_restarts:
        return (
            f"its timestamps go back at {counted(n_restarts, 'place')}, as where files were joined"
            " byte by byte: annotate each by itself, or join them with ffmpeg's concat demuxer"
        )
    if n_packets < n_header:
        return f"{n_packets} of {n_header} packets promised by the header are there"
    size = path.stat().st_size
    if "matroska" in container and (fault := fault_of_matroska(path, show_life)):
        return fault
    if "mp4" in container and (of_mp4 := fault_of_mp4(path)) and of_mp4.n_whole:
        return of_mp4.found  # of what fragments hold, the header promises nothing
    if container == "mpegts" and size % 188 and size % 192 and size % 204:
        return "the last transport packet breaks off"
    if n_bad:
        return f"{n_bad} of {counted(n_packets, 'packet')} corrupt or unreadable"
    return None


def _probe_pictures(path: Path) -> VideoInfo:
    try:
        paths = pictures_of(path)
        if paths == [path]:
            path.open("rb").close()  # says why it cannot be
    except OSError as error:
        raise refusal(path, why_unreadable(path, error), "check the path") from error
    if not paths:
        found = "a folder without a series of numbered pictures"
        raise refusal(path, found, "name them 0001.png, 0002.png, … or give a video file")
    if pairs := twins(paths):
        names = " and ".join(display_path(Path(twin.name)) for twin in pairs[0])
        raise VideoError(
            f"{display_path(path)}: found {counted(len(pairs), 'pair')} of pictures with one "
            f"number, such as {names}; expected one picture of each number: remove the others"
        )
    first = next((image for image in map(read_picture, paths) if image is not None), None)
    if first is None:
        if paths == [path]:
            is_empty = path.stat().st_size == 0
            found = "the file is empty" if is_empty else "a picture that cannot be decoded"
            raise refusal(path, found, "copy it again")
        raise refusal(path, f"none of its {len(paths)} pictures can be read", "copy them again")
    return VideoInfo(
        path=path,
        width=first.shape[1],
        height=first.shape[0],
        rotation=0,
        codec=paths[0].suffix.lower().removeprefix("."),
        fps=None,
        duration_s=None,
        time_base=None,
        start_s=Fraction(0),
        pts=None,
        n_bad_packets=0,
        damage=None,
        decoder="pictures",
    )
