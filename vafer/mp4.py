"""Why an MP4 cannot be used, by its boxes (ISO/IEC 14496-12, section 4.2)."""

import os
import struct
from io import FileIO
from pathlib import Path
from typing import NamedTuple

_MAX_BOXES = 500_000  # that are looked at: nearly three hours of a fragment (two boxes) a frame
_TOP_LEVEL = frozenset(  # what a box there may be called; other letters are no box but a trailer
    b"emsg free ftyp imda mdat meta mfra moof moov pdin pnot prft sidx skip ssix styp udta uuid"
    b" wide".split()
)
_PLACEHOLDER = b"?"  # Android's MPEG4Writer fills lengths with it until a recording is finished

CUT_OFF_ADVICE = "copy it again; if this is the original, repair it with a tool such as untrunc"


class Fault(NamedTuple):
    """What an MP4 lacks, and what to do.

    n_whole: where a recording in fragments breaks off, the bytes of the whole boxes before, which
    are one by themselves; else 0.
    """

    found: str
    advice: str
    n_whole: int = 0


UNFINISHED = Fault(
    "an MP4 without its index (moov), as of a recording that was never finished",
    "repair it with a tool such as untrunc",
)


def fault_of_mp4(path: Path) -> Fault | None:
    """What an MP4 lacks; None if its boxes say nothing of it, or it is none."""
    try:
        with path.open("rb", buffering=0) as file:  # but for the heads of boxes nothing is read
            if file.read(8)[4:] != b"ftyp":
                return None
            return _fault(file, os.fstat(file.fileno()).st_size)
    except OSError:
        return None


class _Box(NamedTuple):
    """kind: four letters. length: in bytes, None if not known yet or if it goes up to the end.
    head: bytes of the head."""

    kind: bytes
    length: int | None
    head: int = 8


def _fault(file: FileIO, size: int) -> Fault | None:
    at, kind = 0, b""
    has_index = has_data = in_fragments = False
    for _ in range(_MAX_BOXES):
        file.seek(at)
        head = file.read(16)
        n_whole = at if in_fragments else 0
        if not head and kind == b"moof":  # of a fragment whose data (mdat) is to follow
            return Fault("an MP4 that was cut off", CUT_OFF_ADVICE, n_whole)
        if not head:
            return None if has_index else UNFINISHED
        if len(head) < 8 or (head[:4] == b"\0\0\0\1" and len(head) < 16):
            if has_index and (not any(head) or (has_data and not in_fragments)):
                return None  # what follows a whole one
            return Fault("an MP4 that was cut off", CUT_OFF_ADVICE, n_whole)
        box = _box(head)
        if box is None:
            return None
        if box.length is not None and at + box.length > size:
            if box.kind not in _TOP_LEVEL:
                return None
            found = f"an MP4 that was cut off, {size:,} of {at + box.length:,} bytes or more"
            return Fault(found, CUT_OFF_ADVICE, n_whole)
        if box.kind == b"moov":
            has_index, in_fragments = True, _promises_fragments(file, at, box)
        if box.length is None:
            return None if has_index else UNFINISHED
        has_data |= box.kind == b"mdat"
        at, kind = at + box.length, box.kind
    return None


def _promises_fragments(file: FileIO, at: int, moov: _Box) -> bool:
    """Whether the index that begins at `at` says that fragments follow (mvex, section 8.8.1)."""
    if moov.length is None:
        return False
    inside, end = at + moov.head, at + moov.length
    for _ in range(_MAX_BOXES):
        if inside >= end:
            return False
        file.seek(inside)
        box = _box(file.read(16))
        if box is None or box.length is None:
            return False
        if box.kind == b"mvex":
            return True
        inside += box.length
    return False


def _box(head: bytes) -> _Box | None:
    """The box that begins with these 16 bytes, or fewer at a file's end; None if none can."""
    if len(head) < 8:
        return None
    length, kind = struct.unpack(">I4s", head[:8])
    least = 8
    if length == 1:  # it follows, in 64 bits
        (length,), least = struct.unpack(">Q", head[8:]), 16
        if head[8:] == 8 * _PLACEHOLDER:
            return _Box(kind, None)
    elif length == 0 or head[:4] == 4 * _PLACEHOLDER:
        return _Box(kind, None)
    is_one = length >= least and kind.isascii() and kind.decode("ascii").isprintable()
    return _Box(kind, length, least) if is_one else None
