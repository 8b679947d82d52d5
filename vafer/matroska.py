"""What of a Matroska or WebM file is missing, by its elements (RFC 8794, 4 to 6, and RFC 9559)."""

import os
from pathlib import Path

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_KINDS = (
    "1a45dfa3 18538067 bf ec"  # EBML, Segment; CRC-32, Void
    " 114d9b74 1549a966 1654ae6b 1c53bb6b 1941a469 1043a770 1254c367 1f43b675"  # in a Segment
    " e7 5854 a7 ab a3 a0 af"  # in a Cluster
)
_KNOWN = frozenset(  # and what of an id is left where a file ends within it
    kind[: n + 1] for kind in map(bytes.fromhex, _KINDS.split()) for n in range(len(kind))
)
_LONGEST_HEAD = 12  # bytes: an id of up to four, a size of up to eight
_MAX_ELEMENTS = 1_000_000  # that are looked at: an hour and more of a live recording's blocks


def what_is_missing(path: Path) -> str | None:
    """That a Matroska file breaks off, and after how many bytes; None where its elements do not
    tell, or it is none.

    A live recording's Segment has no size, at times its Clusters have none: then what they hold
    tells.
    """
    with path.open("rb", buffering=0) as file:  # but for the heads of elements nothing is read
        file_no, size = file.fileno(), os.fstat(file.fileno()).st_size
        if file.read(4) != _EBML:
            return None
        at = 0
        for _ in range(_MAX_ELEMENTS):
            head = os.pread(file_no, _LONGEST_HEAD, at)
            if not head:
                return None
            kind, n_head, n_data = _element(head)
            if kind not in _KNOWN:  # damaged, or something else that follows a whole one
                return None
            end = at + n_head + (n_data or 0)
            if end > size:
                if kind == _SEGMENT:
                    return f"{size} of {end} bytes promised by the header are there"
                return f"it breaks off: {size} of {end} bytes or more are there"
            if n_data is None:
                if kind not in (_SEGMENT, _CLUSTER):
                    return None
            elif kind == _SEGMENT:
                return None
            at = end
        return None


def _element(head: bytes) -> tuple[bytes, int, int | None]:
    """The id, the bytes of the head and those of the data, None if unknown, of the element that
    begins with these 12 bytes, or fewer at a file's end.

    A number of n bytes begins with n - 1 zero bits and a one; where all other bits of a size are
    ones it is unknown.
    """
    n_id = 9 - head[0].bit_length()
    kind, rest = head[:n_id], head[n_id:]
    if not rest:
        return kind, n_id + 1, 0
    n_size = 9 - rest[0].bit_length()
    if len(rest) < n_size:
        return kind, n_id + n_size, 0
    mask = (1 << 7 * n_size) - 1
    n_data = int.from_bytes(rest[:n_size], "big") & mask
    return kind, n_id + n_size, None if n_data == mask else n_data
