"""A folder of numbered pictures, or a single one: which files are the frames, and their pixels."""

import os
import string
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
_WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD9)})  # markers, and bytes that fill


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of `folder` in numeric order; empty where it holds no series.

    See `series_among`. Raises OSError where the folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        files = [folder / entry.name for entry in entries if not entry.is_dir()]
    series, _ = series_among(files)
    return series


def series_among(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The series of numbered pictures among a folder's files, in numeric order.

    A series is what is named by digits alone (`00012.png`) or, where nothing is, by digits after
    one common prefix (`frame_0012.jpg`). Pictures under several prefixes are no series: which of
    them is the recording is anyone's guess. Then one picture of each prefix comes second. Hidden
    files do not count; two pictures of one number both do, see `twins`.
    """
    by_prefix: dict[str, list[Path]] = {}
    for path in files:
        prefix, number = _prefix_and_number(path)
        if number and is_picture(path) and not path.name.startswith("."):
            by_prefix.setdefault(prefix, []).append(path)
    if "" not in by_prefix and len(by_prefix) > 1:
        return [], [min(by_prefix[prefix], key=_number_and_name) for prefix in sorted(by_prefix)]
    series = by_prefix.get("") or [path for pictures in by_prefix.values() for path in pictures]
    return sorted(series, key=_number_and_name), []


def twins(series: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Neighbours in a series that have one number, such as `1.jpg` and `1.png`."""
    return [pair for pair in pairwise(series) if len({_number_and_name(p)[0] for p in pair}) == 1]


def _prefix_and_number(path: Path) -> tuple[str, str]:
    """What a file's name has before the digits at its end, and these; both may be empty."""
    prefix = path.stem.rstrip(string.digits)
    return prefix, path.stem[len(prefix) :]


def _number_and_name(path: Path) -> tuple[int, str]:
    return int(_prefix_and_number(path)[1]), path.name


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
