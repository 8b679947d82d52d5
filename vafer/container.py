"""A video file opened: its container, its video stream, its packets, through PyAV."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import av
from av.stream import Discard, Disposition

from vafer.errors import VideoError, display_path, why_unreadable
from vafer.matroska import fault_of_matroska
from vafer.mp4 import fault_of_mp4

_MAX_DEMUX_ERRORS = 16
_UNREADABLE = (av.FFmpegError, OSError, ValueError)

DRAIN = av.Packet()  # the end of a stream, where a decoder hands out what it still holds

on_packet: Callable[[], None] | None = None
"""Called for each packet, or element, read in this process; one that reads for another shows so
that it lives."""

av.logging.set_level(None)  # libav's complaints become counts and `damage`, not lines on stderr


def show_life() -> None:
    """Call `on_packet`, where it is set."""
    if on_packet is not None:
        on_packet()


def open_container(path: Path) -> av.container.InputContainer:
    """`path` opened for reading. Raises VideoError naming what it is instead of a video."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise refusal(path, why_unreadable(path, error), "check the path") from error
    if not head:
        raise refusal(path, "the file is empty", "copy it again")
    try:
        # absolute, for libav takes what precedes a colon in `12:30.mp4` for a protocol
        return _opened(str(path.absolute()))
    except _UNREADABLE as error:
        fault = fault_of_mp4(path)
        if of_matroska := fault_of_matroska(path):
            found = f"a Matroska file that cannot be opened: {of_matroska}"
            raise refusal(path, found, "copy it again") from error
        if fault is None:
            found = f"no video container ({getattr(error, 'strerror', None) or error})"
            raise refusal(path, found, "check that it is a video, or copy it again") from error
        if fault.n_whole:  # libav may refuse all where it ends within a moof
            with suppress(*_UNREADABLE):
                return _opened(f"subfile,,start,0,end,{fault.n_whole},,:file:{path.absolute()}")
        raise refusal(path, fault.found, fault.advice) from error


def _opened(url: str) -> av.container.InputContainer:
    return av.open(url, metadata_errors="replace")


def video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is no cover picture. Raises VideoError where there is none."""
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            tag = f"stream {stream.index}"
            raise unusable(path, f"{tag} has a codec unknown here", "convert it to H.264 first")
        return stream
    kinds = sorted({stream.type or "unknown" for stream in container.streams})
    if not kinds:
        raise unusable(path, "no streams", "copy it again, or leave it out")
    raise unusable(path, f"only {' and '.join(kinds)} streams", "leave it out")


def packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.Packet | None]:
    """The packets of `stream` in file order; None stands for a place that could not be read.

    Empty packets are left out: to a decoder they would mean the end. Other streams are not read:
    where one's next packet lies beyond the end of a file that was cut off, libav would stop.
    """
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    n_errors = 0
    while n_errors < _MAX_DEMUX_ERRORS:
        try:
            for packet in container.demux(stream):
                show_life()
                if packet.size:
                    n_errors = 0
                    yield packet
            return
        except MemoryError:  # which PyAV's own is, and an FFmpegError too
            raise
        except (av.FFmpegError, OSError):
            n_errors += 1
            yield None


def unusable(path: Path, found: str, advice: str) -> VideoError:
    """The error that says what is wrong with a file, by what it lacks where its boxes tell."""
    if fault := fault_of_mp4(path):
        found, advice = fault.found, fault.advice
    elif of_matroska := fault_of_matroska(path):
        found = f"{found}: {of_matroska}"
    return refusal(path, found, advice)


def refusal(path: Path, found: str, advice: str) -> VideoError:
    """The error that says what was found at `path` instead of a video, and what to do."""
    expected = "expected a video, a picture or a folder of numbered pictures"
    return VideoError(f"{display_path(path)}: {found}; {expected}; {advice}")
