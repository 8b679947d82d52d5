"""A folder of numbered pictures, or a single one: which files are the frames, and their pixels."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_DIGITS = "0123456789"
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
_WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD9)})  # markers, and bytes that fill


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of `folder` in numeric order; empty where it holds no series.

    A series is what is named by digits alone (`00012.png`) or, where nothing is, by digits after
    one common prefix (`frame_0012.jpg`). Pictures under several prefixes are no series: which of
    them is the recording is anyone's guess, see `why_no_series`. Two with one number are both
    there. Raises OSError where the folder cannot be listed.
    """
    series = _by_prefix(folder)
    if "" not in series and len(series) != 1:
        return []
    return sorted(series.get("") or next(iter(series.values())), key=_number_and_name)


def why_no_series(folder: Path) -> str:
    """What keeps `numbered_pictures` from finding a series, for people. Raises OSError."""
    prefixes = sorted(_by_prefix(folder))
    if not prefixes:
        return "not numbered"
    some = ", ".join(prefixes[:3]) + (", …" if len(prefixes) > 3 else "")
    return f"numbered after {len(prefixes)} prefixes ({some})"


def twins(pictures: Sequence[Path]) -> tuple[Path, Path] | None:
    """The first two pictures of a series that have one number (`1.jpg`, `1.png`), if any have."""
    for a, b in pairwise(pictures):
        if _number_and_name(a)[0] == _number_and_name(b)[0]:
            return a, b
    return None


def _by_prefix(folder: Path) -> dict[str, list[Path]]:
    """The numbered pictures of a folder, by what their names have before the number."""
    series: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if is_picture(path) and not path.name.startswith(".") and path.stem[-1] in _DIGITS:
            series.setdefault(path.stem.rstrip(_DIGITS), []).append(path)
    return series


def _number_and_name(path: Path) -> tuple[int, str]:
    return int(path.stem[len(path.stem.rstrip(_DIGITS)) :]), path.name


def is_picture(path: Path) -> bool:
    """Whether a path, by its ending, names a picture."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def pictures_of(path: Path) -> list[Path]:
    """The frames of a recording that is a single picture, or a folder; see `numbered_pictures`."""
    return numbered_pictures(path) if path.is_dir() else [path]


def read_picture(path: Path) -> np.ndarray | None:
    """The pixels of one picture, uint8 (H, W, 3) RGB, upright as EXIF says; None if unreadable.

    A file that breaks off counts as unreadable: OpenCV would fill the rest with grey, and a face
    half grey still gets a number.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if data.startswith(_JPEG) and not _is_whole_jpeg(data):
        return None
    if data.startswith(_PNG) and not _is_whole_png(data):
        return None
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        return None
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether an end of image follows the first scan; thumbnails lie in segments before it, the
    video of a motion photo behind (ITU-T T.81, annex B)."""
    at = len(_JPEG)
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            return data.find(_END_OF_IMAGE, at) >= 0  # in a scan 0xff comes before 0 or a restart
        at += 1 if marker in _WITHOUT_LENGTH else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _is_whole_png(data: bytes) -> bool:
    """Whether the last chunk is there, whatever follows it."""
    at = len(_PNG)
    while at + 12 <= len(data):  # length, type, checksum
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False
