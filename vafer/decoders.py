"""The two decoders: PyAV, which copes with everything, and decord, which must agree with it."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vafer.container import DRAIN, open_container, packets, video_stream
from vafer.probe import VideoInfo

# Of a decoder, however many cores there are: what it makes up where a picture is damaged depends on
# them.
N_THREADS = 4
_REORDER_FRAMES = 16  # the most pictures that an H.264 or HEVC decoder may hold back (A.3.1, A.4.2)


def decode(
    info: VideoInfo,
    on_failure: Callable[[int | None], None],
    *,
    seek_to: int = 0,
    n_threads: int = N_THREADS,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames of PyAV with their indices, in presentation order.

    `on_failure` gets the pts of what fails to decode, comes out corrupt or after its successor,
    unless the demuxer had flagged it. With `seek_to`, frames before that index may come first; none
    come where the seek did not land on a keyframe whose index is known.
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
        while (index in held or index < next_index) and _is_shared(info.pts, index):
            index += 1  # of frames with one pts each has a place
        while index in held:
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
        for packet in chain(packets(container, stream), (DRAIN,)):
            if packet is None:
                continue
            if packet.is_corrupt:
                flagged.add(packet.pts)
            try:
                frames = stream.decode(None if packet is DRAIN else packet)
            except MemoryError:  # which PyAV's own is, and an FFmpegError too
                raise
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


def _is_shared(pts: np.ndarray | None, index: int) -> bool:
    """Whether the next index has the same pts."""
    return pts is not None and index + 1 < len(pts) and bool(pts[index] == pts[index + 1])


def decodes_cleanly(info: VideoInfo, n_frames: int) -> bool:
    """Whether PyAV decodes the first `n_frames` with the pts promised, one size and no complaint.

    decord does not tell: it passes on corrupt pictures, and where a frame is lost the next one
    takes its place, up to the end, where the last is repeated. The check takes nearly as long as
    reading with PyAV (bench/decode.py), but what decord serves is short (DECORD_BUDGET_BYTES).
    """
    failures: list[int | None] = []
    size = (info.width, info.height) if info.rotation in (0, 180) else (info.height, info.width)
    n_clean = 0
    for index, frame in decode(info, failures.append):
        if failures or index != n_clean or (frame.width, frame.height) != size:
            return False
        n_clean += 1
        if n_clean == n_frames:
            break
    return n_clean == n_frames and not failures


def open_decord(info: VideoInfo) -> Any:
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


def to_rgb(frame: av.VideoFrame, rotation: int) -> np.ndarray:
    """uint8 (H, W, 3) RGB as displayed, equal to what decord and `ffmpeg -pix_fmt rgb24` give."""
    # One thread: libswscale converts these sizes in less time than it takes to wake a second one.
    rgb = (
        VideoReformatter()
        .reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        .to_ndarray()
    )
    return np.ascontiguousarray(np.rot90(rgb, -rotation // 90))
