"""Where results lie while a run is under way, and how parts become the output.

The unit is one recording. Each finished one is a Parquet file of its own, a part, whose metadata
holds its row of the table of videos and the run that made it; so a second run knows what is done
and whether it still fits. With `--out results/` the parts are the output. With a single file as
output they wait in `results.parquet.parts/` until all are there, and are then joined in order.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from vafer.errors import OutputError, UsageError, display_path
from vafer.inputs import Source, modified_s, size_bytes, source_sha256
from vafer.parts import part_of, parts_folder_of, remove_parts, videos_path_of, whole_parts
from vafer.table import (
    SCHEMA_VERSION,
    TableWriter,
    output_errors,
    read_batches,
    read_provenance,
    read_videos,
    write_videos,
)

# What may differ between two runs of one table and is only recorded.
_INCIDENTAL = {"id", "vafer", "environment", "name", "origin", "shard"}
_AS_ASKED = {
    "options every": "--every",
    "options fps": "--fps",
    "options start_s": "--start",
    "options end_s": "--end",
    "options det_size": "--det-size",
    "options det_threshold": "--det-threshold",
    "options det_min_face": "--min-face",
    "options det_max_faces": "--max-faces",
    "options detect": "--detect",
}


class Output:
    """One output, a file or a folder, and what earlier runs have done in it.

    `rows` maps each `video` met so far to its row of the table of videos. Raises UsageError when
    what lies there was made with other options or not by vafer, or when nothing can be written.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.run = run
        self.rows: dict[str, dict[str, Any]] = {}
        self._runs: dict[str, dict[str, Any]] = {}
        self._written_s: dict[str, float] = {}
        self._parts: set[str] = set()  # the videos whose parts are whole and fit
        self._has_changed = False
        self.is_folder = path.suffix.lower() != ".parquet"
        try:
            self._read_what_is_there()
        except OutputError as error:
            raise UsageError(f"{error}. Give another --out") from error
        except OSError as error:
            raise UsageError(f"{display_path(path)} cannot be read: {error.strerror}") from error
        try:
            self.parts_folder.mkdir(parents=True, exist_ok=True)
            probe = self.parts_folder / f".{run['id']}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(f"{display_path(path)} cannot be written: {error.strerror}") from error

    @property
    def videos_path(self) -> Path:
        """The table of videos that belongs to this output."""
        return videos_path_of(self.path)

    @property
    def parts_folder(self) -> Path:
        return parts_folder_of(self.path)

    def part(self, video: str) -> Path:
        """Where the rows of one recording lie once it is finished."""
        return part_of(self.path, video)

    def is_finished(self, source: Source) -> bool:
        """Whether this recording need not be done again.

        It must have the size that it had; one that was modified since is told by its hash. What
        cannot be reached at the moment stays as finished as it was.
        """
        row = self.rows.get(source.video)
        if row is None or row["status"] == "failed":
            return False
        if self.is_folder and source.video not in self._parts:
            return False
        try:
            if size_bytes(source) != row["size_bytes"]:
                return False
            is_newer = modified_s(source) > self._written_s[source.video]
            return not is_newer or source_sha256(source) == row["sha256"]
        except OSError:
            return True

    def write_part(self, video: str) -> TableWriter:
        """A writer of one recording's rows; its provenance must get their row as `video`."""
        return TableWriter(
            self.part(video), {"schema_version": SCHEMA_VERSION, "runs": [self.run], "video": None}
        )

    def done(self, row: dict[str, Any]) -> None:
        """Note a recording whose part is written."""
        self._parts.add(row["video"])
        self.rows[row["video"]] = row
        self._runs[self.run["id"]] = self.run
        self._has_changed = True

    def fail(self, row: dict[str, Any]) -> None:
        """Note a recording that could not be read; rows of an earlier state of it go."""
        with output_errors(self.path):
            self.part(row["video"]).unlink(missing_ok=True)
        self._parts.discard(row["video"])
        self.rows[row["video"]] = row
        self._has_changed = True

    def finish(self) -> None:
        """Join the parts, write the table of videos, let the parts go. Raises OutputError.

        In this order: what the table of videos says is done is in the results, and a run that is
        cut off in between finds its parts again. Where nothing has changed, nothing is written.
        """
        with output_errors(self.path):
            if self._has_changed or not self.videos_path.is_file():
                if not self.is_folder:
                    self._join(sorted(v for v, r in self.rows.items() if r["status"] != "failed"))
                write_videos(self.videos_path, list(self.rows.values()))
            if not self.is_folder:
                _names_on_disk(self.path.parent)
                remove_parts(self.parts_folder)

    def _read_what_is_there(self) -> None:
        parts = list(whole_parts(self.path))
        if self.path.is_file():
            self._accept(read_provenance(self.path))
        if self.videos_path.is_file():
            for row in read_videos(self.videos_path):
                if self.is_folder or self.path.is_file():
                    self.rows[row["video"]] = row
                    self._written_s[row["video"]] = self.videos_path.stat().st_mtime
        elif self.path.is_file():
            waiting = {provenance["video"]["video"] for _, provenance in parts}
            if any(video not in waiting for video, _ in by_video(self.path)):
                raise OutputError(
                    f"{display_path(self.path)} is there without {self.videos_path.name}, so what "
                    "is done in it cannot be told"
                )
        for part, provenance in parts:
            self._accept(provenance)
            row = provenance["video"]
            self._has_changed |= self.rows.get(row["video"]) != row
            self.rows[row["video"]] = row
            self._parts.add(row["video"])
            self._written_s[row["video"]] = part.stat().st_mtime

    def _accept(self, provenance: dict[str, Any]) -> None:
        for run in provenance["runs"]:
            if found := differences(run, self.run):
                raise UsageError(
                    f"{display_path(self.path)} was made with other options, there against here: "
                    f"{found}. Give the same options, another --out, or --overwrite to start anew."
                )
            self._runs[run["id"]] = run

    def _join(self, videos: list[str]) -> None:
        old = by_video(self.path) if self.path.is_file() else iter(())
        waiting = next(old, None)
        runs = [self._runs[run_id] for run_id in sorted(self._runs)]
        with TableWriter(self.path, {"schema_version": SCHEMA_VERSION, "runs": runs}) as writer:
            for video in videos:
                while waiting is not None and waiting[0] < video:
                    waiting = next(old, None)
                if video in self._parts:
                    batches = read_batches(self.part(video))
                elif waiting is not None and waiting[0] == video:
                    batches = waiting[1]
                elif self.rows[video]["n_frames_analysed"] == 0:
                    continue  # no frame was asked for, so there is no row
                else:
                    raise OutputError(f"the rows of {video} have vanished: run the command again")
                for batch in batches:
                    writer.write(batch)


def _names_on_disk(folder: Path) -> None:
    """Wait until the names in a folder, as those of files that were renamed, are on the disk.

    Some file systems know nothing of it, and some folders may not be opened: then do not wait.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def by_video(path: Path) -> Iterator[tuple[str, Iterator[pa.RecordBatch]]]:
    """The rows of each recording of a table; take them before the next."""
    return groupby(read_batches(path), key=lambda batch: batch.column("video")[0].as_py())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name what two runs differ in that changes values; empty where nothing does.

    Values may be nested; names of models and files are incidental where their hashes are there.
    Options of `annotate` are called as on the command line.
    """
    a, b = _settings(old), _settings(new)
    return "; ".join(
        f"{_AS_ASKED.get(key, key)} {_in_words(a.get(key))} against {_in_words(b.get(key))}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    )


def _in_words(value: Any) -> str:
    return "none" if value is None else str(value)


def _settings(run: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A run's nested settings as one flat mapping: `detector sha256`, `options det_size`, …"""
    flat: dict[str, Any] = {}
    for key, value in run.items():
        if key in _INCIDENTAL:
            continue
        if isinstance(value, dict):
            flat |= _settings(value, f"{prefix}{key} ")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
