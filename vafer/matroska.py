"""What is wrong with a Matroska or WebM file, by its elements (RFC 8794, 4 to 6, and RFC 9559)."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def _ids(text: str) -> frozenset[bytes]:
    """Ids, and what is left of them where a file ends within one."""
    ids = map(bytes.fromhex, text.split())
    return frozenset(kind[: n + 1] for kind in ids for n in range(len(kind)))


_ANYWHERE = _ids("bf ec")  # CRC-32, Void
_IN_CLUSTER = _ids("e7 5854 a7 ab a3 a0 af")
_OUTSIDE = _ids(
    "1a45dfa3 18538067 114d9b74 1549a966 1654ae6b 1c53bb6b 1941a469 1043a770 1254c367 1f43b675"
)
_LONGEST_HEAD = 12  # bytes: an id of up to four, a size of up to eight
_LONGEST_TRAILER = 1024  # bytes after a live recording that are no damage
_MAX_ELEMENTS = 10_000_000  # that are looked at: a day of a live recording


def fault_of_matroska(path: Path, on_element: Callable[[], None] = lambda: None) -> str | None:
    """Where a Matroska file breaks off, is damaged or goes on as another file; None where its
    elements do not tell, or it is none.

    A live recording's Segment has no size, at times its Clusters have none: then what they hold
    tells. on_element: called for each, which may be millions.
    """
    try:
        with path.open("rb", buffering=0) as file:  # but for the heads of elements nothing is read
            if file.read(4) != _EBML:
                return None
            return _fault(file.fileno(), os.fstat(file.fileno()).st_size, on_element)
    except OSError:
        return None


def _fault(file_no: int, size: int, on_element: Callable[[], None]) -> str | None:
    at = 0
    in_cluster = False
    segment_end = cluster_end = math.inf  # as long as they are not known
    for _ in range(_MAX_ELEMENTS):
        on_element()
        head = os.pread(file_no, _LONGEST_HEAD, at)
        if at and head.startswith(_EBML):
            return (
                f"from byte {at:,} on there is another file, joined to it: annotate each by itself"
            )
        if not head or at == segment_end:
            return None  # what else follows a whole Segment is not looked at
        if at >= cluster_end:
            in_cluster, cluster_end = False, math.inf
        parent_end = min(segment_end, cluster_end)
        element = _element(head)
        if element is None or not _fits(element.kind, in_cluster, parent_end):
            is_trailer = parent_end == math.inf and size - at <= _LONGEST_TRAILER
            return None if is_trailer else f"it is damaged from byte {at:,} on"
        inside = at + element.n_head
        end = inside + (element.n_data or 0)
        if end > min(parent_end, size):
            if element.kind == _SEGMENT:
                return f"{size} of {end} bytes promised by the header are there"
            if parent_end < math.inf:
                return f"it is damaged from byte {at:,} on"
            return f"it breaks off: what begins at byte {at:,} is not whole"
        if element.kind == _SEGMENT:
            at, segment_end = inside, end if element.n_data else math.inf
        elif element.kind == _CLUSTER:
            at, in_cluster, cluster_end = inside, True, end if element.n_data else math.inf
        else:
            at, in_cluster = end, in_cluster and element.kind not in _OUTSIDE
    return None


def _fits(kind: bytes, in_cluster: bool, parent_end: float) -> bool:
    """Whether an element may stand there; one that is not known may where its parent has a size."""
    if kind in _OUTSIDE:
        return not in_cluster or parent_end == math.inf  # which ends a Cluster without a size
    if kind in _IN_CLUSTER:
        return in_cluster
    return kind in _ANYWHERE or parent_end < math.inf


class _Element(NamedTuple):
    """kind: its id. n_head: bytes of id and size. n_data: those that follow, None if unknown."""

    kind: bytes
    n_head: int
    n_data: int | None


def _element(head: bytes) -> _Element | None:
    """The element that begins with these 12 bytes, or fewer at a file's end; None if none can.

    A number of n bytes begins with n - 1 zero bits and a one; where all other bits of a size are
    ones it is unknown, as only those of Segments and Clusters may be.
    """
    n_id = 9 - head[0].bit_length()
    if n_id > 4:
        return None
    kind, rest = head[:n_id], head[n_id:]
    if not rest:
        return _Element(kind, n_id + 1, 0)
    n_size = 9 - rest[0].bit_length()
    if n_size > 8:
        return None
    if len(rest) < n_size:
        return _Element(kind, n_id + n_size, 0)
    mask = (1 << 7 * n_size) - 1
    n_data = int.from_bytes(rest[:n_size], "big") & mask
    if n_data < mask:
        return _Element(kind, n_id + n_size, n_data)
    return _Element(kind, n_id + n_size, None) if kind in (_SEGMENT, _CLUSTER) else None
