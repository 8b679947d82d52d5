"""Where the files of an output lie, and which of the files there are its own."""

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from vafer.errors import OutputError, UsageError, display_path
from vafer.inputs import Source
from vafer.table import SCHEMA, opened, read_provenance, read_videos

# Endings of tables that are not Parquet: nobody means a folder by them.
_OTHER_TABLES = {".csv", ".db", ".feather", ".gz", ".h5", ".json", ".pkl", ".pq", ".sav", ".tsv"}
_OTHER_TABLES |= {".arrow", ".sqlite", ".xlsx"}

_OF_DAMAGED = (b"PAR1", b"", bytes(4))  # what a table begins with that was cut off, or zeroed

_LONGEST_NAME = 240  # bytes of a file name; file systems allow 255, and `.parquet` is added


def read_table(path: str | Path) -> pl.DataFrame:
    """Read a results table, a file or a folder of files, ordered by video, frame and face.

    Raises OutputError when there is none, when a file is none of vafer's, or when one of a folder's
    is damaged or not there.
    """
    path = Path(path)
    if not path.exists():
        raise OutputError(f"{display_path(path)}: no such file or folder")
    if path.is_dir():
        parts = {provenance["video"]["video"]: part for part, provenance in whole_parts(path)}
        files = list(parts.values())
        videos_path = videos_path_of(path)
        if videos_path.is_file():
            check_whole(path, read_videos(videos_path), parts)
        elif not files:
            raise OutputError(f"{display_path(path)} is a folder without results of vafer")
    else:
        read_provenance(path)
        files = [path]
    tables = []
    for file in files:
        with opened(file) as native:
            tables.append(pl.DataFrame(pq.read_table(native, schema=SCHEMA)))
    if not tables:
        return pl.DataFrame(SCHEMA.empty_table())
    return pl.concat(tables).sort("video", "frame_index", "face_index", maintain_order=True)


def check_output(path: Path, sources: Iterable[Source]) -> None:
    """Refuse an output that cannot be meant, before anything there is read, deleted or written.

    Raises UsageError when the name is no output's, when a recording would take the place of the
    table of videos, or when what vafer did not write lies where a table would.
    """
    shown = display_path(path)
    try:
        is_file, is_dir = path.is_file(), path.is_dir()
        if videos_path_of(path).is_dir():
            raise UsageError(
                f"{display_path(videos_path_of(path))} is a folder, where the table of videos "
                "would be: move it, or give another --out"
            )
        if path.suffix.lower() == ".parquet":
            if is_dir:
                raise UsageError(f"{shown} is a folder: expected --out to name a .parquet file")
            for source in sources:
                if (part := part_of(path, source.video)).is_dir():
                    raise UsageError(
                        f"{display_path(part)} is a folder, where the table of {source.video} "
                        "would be: move it, or give another --out"
                    )
            return
        if is_file:
            raise UsageError(
                f"{shown} is a file and no .parquet: expected --out NAME.parquet, or a folder"
            )
        if path.suffix.lower() in _OTHER_TABLES and not is_dir:
            raise UsageError(
                f"{shown}: vafer writes Parquet: expected --out NAME.parquet, or a folder"
            )
        for source in sources:
            part = part_of(path, source.video)
            if part == videos_path_of(path):
                raise UsageError(
                    f"a recording called {source.video!r} would take the place of {part.name}: "
                    "rename it, or write to one .parquet file"
                )
            for inside in part.relative_to(path).parents:
                if (path / inside).is_file():
                    raise UsageError(
                        f"{display_path(path / inside)} is a file, where a folder of tables would "
                        "be: move it, or give another --out"
                    )
            if part.is_dir() or (part.is_file() and _is_foreign(part, source.video)):
                raise UsageError(
                    f"{display_path(part)} is not the table of {source.video}, and would be "
                    "replaced by it: move it, or give another --out"
                )
    except OSError as error:
        raise UsageError(f"{shown} cannot be an output: {error.strerror}") from error


def remove_output(path: Path) -> None:
    """Delete what earlier runs left at an output, and nothing else.

    Raises UsageError when a file that would be deleted or replaced was not written by vafer, or
    when one cannot be deleted.
    """
    videos_path = videos_path_of(path)
    try:
        if videos_path.is_file():
            read_videos(videos_path)
        if path.is_file():
            read_provenance(path)
        parts = [part for part, _ in whole_parts(path)]
        for file in (*parts, videos_path):
            file.unlink(missing_ok=True)
        if path.suffix.lower() == ".parquet":
            path.unlink(missing_ok=True)
            remove_parts(parts_folder_of(path), keep_folder=True)  # this run's lock is on it
    except OutputError as error:
        raise UsageError(f"{error}: --overwrite leaves it alone. Give another --out") from error
    except OSError as error:
        raise UsageError(f"{display_path(path)} cannot be deleted: {error.strerror}") from error


def whole_parts(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Parts of the output at `path`, with their provenance.

    What is damaged is passed over and will be done again; so is what is not ours or belongs to
    another output that lies in the folder.
    """
    folder = parts_folder_of(path)
    if not folder.is_dir():
        return
    for file in sorted(folder.rglob("*.parquet")):
        try:
            provenance = read_provenance(file)
        except OutputError:
            continue
        row = provenance.get("video")
        if row and part_of(path, row["video"]) == file:
            yield file, provenance


def check_whole(path: Path, rows: Iterable[dict[str, Any]], parts: Collection[str]) -> None:
    """Raise OutputError where a recording of the folder's table of videos lacks its own table.

    parts: recordings whose tables are whole.
    """
    wanted = {row["video"] for row in rows if row["status"] != "failed"}
    if lacking := sorted(wanted.difference(parts)):
        more = f", and {len(lacking) - 1:,} more," if lacking[1:] else ""
        raise OutputError(
            f"{display_path(part_of(path, lacking[0]))}{more} is damaged or not there: run the "
            "command that made it again"
        )


def _is_foreign(part: Path, video: str) -> bool:
    """Whether a file is not the part of this recording, nor a damaged one, by its first bytes."""
    try:
        with opened(part) as file:
            pq.read_metadata(file)
    except pa.ArrowException:
        with part.open("rb") as damaged:
            return damaged.read(4) not in _OF_DAMAGED
    try:
        row = read_provenance(part).get("video")
    except OutputError:
        return True
    return not row or row["video"] != video


def part_of(path: Path, video: str) -> Path:
    """Where the rows of `video` lie in the output at `path`."""
    if path.suffix.lower() == ".parquet":
        return parts_folder_of(path) / f"{_digest(video)}.parquet"
    *folders, name = (_short(component) for component in video.split("/"))
    return Path(path, *folders, f"{name}.parquet")


def _short(component: str) -> str:
    """A component of a path, shortened if no file could have its name."""
    try:
        if len(os.fsencode(component)) <= _LONGEST_NAME:
            return component
    except UnicodeEncodeError:  # a locale without the name's letters
        return _digest(component)
    kept = component.encode()[: _LONGEST_NAME - 30].decode(errors="ignore")
    return f"{kept}-{_digest(component)}"


def videos_path_of(path: Path) -> Path:
    """The table of videos that belongs to the output at `path`."""
    if path.suffix.lower() == ".parquet":
        return path.with_name(f"{path.stem}.videos{path.suffix}")
    return path / "_videos.parquet"


def parts_folder_of(path: Path) -> Path:
    """Where the parts of the output at `path` lie: beside a file, in a folder."""
    if path.suffix.lower() == ".parquet":
        return path.with_name(f"{path.name}.parts")
    return path


def remove_parts(folder: Path, *, keep_folder: bool = False) -> None:
    """Delete the parts of a single file once they are joined, and their folder if that is empty."""
    for pattern in ("*.parquet", ".*.tmp"):
        for path in folder.glob(pattern):
            if not path.is_dir():  # somebody else's
                path.unlink(missing_ok=True)
    if keep_folder:
        return
    with contextlib.suppress(OSError):  # somebody else's file lies in it, or it is not there
        folder.rmdir()


def _digest(video: str) -> str:
    return hashlib.sha256(video.encode()).hexdigest()[:24]
