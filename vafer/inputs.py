"""What the user named → the recordings to annotate, each with the name it has in the tables."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vafer.errors import UsageError, VideoError, counted, display_path, why_unreadable
from vafer.pictures import PICTURE_SUFFIXES, is_picture, series_among
from vafer.probe import VIDEO_SUFFIXES
from vafer.store import sha256


@dataclass(frozen=True, slots=True)
class Source:
    """One recording: a video file, a folder of numbered pictures, or a single picture.

    video: its name in the tables, unique over the run; the path relative to the input folder, with
    POSIX separators, or the file's own name where it was given by itself. Bytes of a name that are
    no UTF-8 appear as \\xNN.
    """

    path: Path
    video: str


@dataclass(frozen=True, slots=True)
class _PassedOver:
    """Pictures of a folder that are no recording. why: a sentence, as in `there are videos`."""

    folder: Path
    pictures: list[Path]
    why: str


def find_sources(
    inputs: Iterable[Path], *, on_notice: Callable[[str], None] = lambda text: None
) -> list[Source]:
    """Find all recordings, ordered by `video`.

    Folders are searched recursively for known video endings and for folders of numbered pictures;
    hidden files are passed over. A file that is named, such as a picture, is always tried; others
    that are passed over are told of. Raises UsageError when an input is missing, when there
    is no recording, and when two would get the same `video`.
    """
    inputs = list(inputs)
    found: dict[str, Source] = {}
    passed_over: dict[str, _PassedOver] = {}
    for given in inputs:
        for source in _sources_of(given, passed_over):
            other = found.setdefault(source.video, source)
            if os.path.realpath(other.path) != os.path.realpath(source.path):
                raise UsageError(
                    f"two recordings would be called {source.video!r} in the table: "
                    f"{display_path(other.path)} and {display_path(source.path)}. "
                    "Annotate the folder above both, rename one, or write to two outputs."
                )
    if not found:
        named = ", ".join(display_path(p) for p in inputs) or "nothing"
        n = sum(len(passed.pictures) for passed in passed_over.values())
        example = next(iter(passed_over.values()), None)
        but = (
            f" but {counted(n, 'picture')} (in {display_path(example.folder)} {example.why})"
            if example
            else ""
        )
        raise UsageError(
            f"no recording found in {named}{but}: expected files ending in "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}, or folders of numbered pictures "
            f"({' '.join(sorted(PICTURE_SUFFIXES))}). "
            "Any other file, such as a single picture, is tried when it is named itself."
        )
    taken = {os.path.realpath(source.path) for source in found.values()}
    for passed in passed_over.values():
        if n := sum(os.path.realpath(picture) not in taken for picture in passed.pictures):
            on_notice(
                f"{counted(n, 'picture')} in {display_path(passed.folder)} passed over, since "
                f"{passed.why}: name a file itself to annotate it; a series of frames needs a "
                "folder of its own"
            )
    return [found[video] for video in sorted(found)]


def size_bytes(source: Source) -> int:
    """Bytes of the file, or of all files of the folder. Raises OSError."""
    return sum(path.stat().st_size for path in _files(source))


def modified_s(source: Source) -> float:
    """When the file, or a folder or the last of its files, was modified, as POSIX time.

    A folder is modified where something in it is renamed, made or deleted. Raises OSError.
    """
    return max(path.stat().st_mtime for path in (source.path, *_files(source)))


def source_sha256(source: Source) -> str:
    """Hash of the file; of a folder that of its listing, names and hashes.

    Raises OSError, and VideoError of a pipe or a device, which may never come to an end.
    """
    if not source.path.is_dir():
        if not stat.S_ISREG(source.path.stat().st_mode):
            raise VideoError(
                f"{display_path(source.path)} is a pipe or a device: expected a file; leave it out"
            )
        return sha256(source.path)
    listing = "".join(f"{sha256(p)} {display_path(Path(p.name))}\n" for p in _files(source))
    return hashlib.sha256(listing.encode()).hexdigest()


def _files(source: Source) -> list[Path]:
    if not source.path.is_dir():
        return [source.path]
    return sorted(path for path in source.path.iterdir() if path.is_file())


def _sources_of(given: Path, passed_over: dict[str, _PassedOver]) -> Iterator[Source]:
    """The recordings of one input. Pictures of folders that are none come into `passed_over`."""
    try:
        given.stat()
    except OSError as error:
        found = why_unreadable(given, error)
        raise UsageError(f"{display_path(given)}: {found}: check the path") from error
    if not given.is_dir():
        yield Source(given, display_path(Path(given.name)))
        return
    seen: set[str] = set()
    for folder_name, subfolders, files in os.walk(given, onerror=_refuse, followlinks=True):
        folder = Path(folder_name)
        # A link to a folder above would otherwise be walked for ever.
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        paths = [folder / name for name in sorted(files) if not name.startswith(".")]
        videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
        for path in videos:
            yield Source(path, display_path(path.relative_to(given)))
        series, of_others = ([], []) if videos else series_among(paths)
        if series:
            relative = folder.relative_to(given)
            name = relative if relative.parts else Path(folder.resolve().name)
            yield Source(folder, display_path(name))
        of_series = set(series)
        if rest := [path for path in paths if is_picture(path) and path not in of_series]:
            why = _why_passed_over(of_others, has_videos=bool(videos), has_series=bool(series))
            passed_over[real] = _PassedOver(folder, rest, why)


def _why_passed_over(of_others: list[Path], *, has_videos: bool, has_series: bool) -> str:
    """Why pictures are no recording. of_others: one of each series, where it could be several."""
    if has_videos:
        return "there are videos"
    if has_series:
        return "there is a numbered series"
    if not of_others:
        return "there is no numbered series"
    some = ", ".join(f"'{display_path(Path(path.name))}'" for path in of_others[:2])
    return f"there is more than one series ({some}{', …' if len(of_others) > 2 else ''})"


def _refuse(error: OSError) -> NoReturn:
    raise UsageError(
        f"{display_path(Path(error.filename))} cannot be searched: {error.strerror}. "
        "Make it readable, or name the folders to search"
    ) from error
