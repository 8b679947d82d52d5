"""Where results lie while a run is under way, and how parts become the output.

The unit is one recording. Each finished one is a Parquet file of its own, a part, whose metadata
holds its row of the table of videos and the run that made it; so a second run knows what is done
and whether it still fits. With `--out results/` the parts are the output. With a single file as
output they wait in `results.parquet.parts/` until all are there, and are then joined in order.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from vafer.errors import OutputError, UsageError
from vafer.table import (
    SCHEMA_VERSION,
    TableWriter,
    read_batches,
    read_provenance,
    read_videos,
    write_videos,
)

# What may differ between two runs of one table: it changes no value beyond rounding.
_INCIDENTAL = {"id", "vafer", "environment", "name"}


@dataclass
class Output:
    """One output, a file or a folder, and what earlier runs have done in it.

    rows maps each `video` met so far to its row of the table of videos. Raises UsageError when what
    lies there was made with other options, OutputError when it is no output of vafer.
    """

    path: Path
    run: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.is_folder = self.path.suffix.lower() != ".parquet"
        if self.is_folder and self.path.is_file():
            raise UsageError(
                f"{self.path} is a file and no .parquet: expected --out NAME.parquet, or a folder"
            )
        if not self.is_folder and self.path.is_dir():
            raise UsageError(f"{self.path} is a folder: expected --out to name a .parquet file")
        self._runs: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            if not self.videos_path.is_file():
                raise UsageError(
                    f"{self.path} is there without {self.videos_path.name}, so what is done in it "
                    "cannot be told: give another --out, or --overwrite"
                )
            self._accept(self.path)
        if self.videos_path.is_file() and (self.is_folder or self.path.is_file()):
            self.rows = {row["video"]: row for row in read_videos(self.videos_path)}
        for part in self._parts():
            row = self._accept(part)["video"]
            self.rows[row["video"]] = row

    @property
    def videos_path(self) -> Path:
        """The table of videos that belongs to this output."""
        if self.is_folder:
            return self.path / "_videos.parquet"
        return self.path.with_name(f"{self.path.stem}.videos.parquet")

    @property
    def parts_folder(self) -> Path:
        return self.path if self.is_folder else self.path.with_name(f"{self.path.name}.parts")

    def part(self, video: str) -> Path:
        """Where the rows of one recording lie once it is finished."""
        if self.is_folder:
            return self.parts_folder / f"{video}.parquet"
        return self.parts_folder / f"{hashlib.sha256(video.encode()).hexdigest()[:24]}.parquet"

    def write_part(self, video: str) -> TableWriter:
        """A writer of one recording's rows; its provenance must get their row as `video`."""
        return TableWriter(
            self.part(video), {"schema_version": SCHEMA_VERSION, "runs": [self.run], "video": None}
        )

    def is_finished(self, video: str, size_bytes: int) -> bool:
        """Whether this recording, of this size, need not be done again."""
        row = self.rows.get(video)
        if row is None or row["status"] == "failed" or row["size_bytes"] != size_bytes:
            return False
        return self.part(video).is_file() or not self.is_folder

    def fail(self, row: dict[str, Any]) -> None:
        """Note a recording that could not be read; rows of an earlier state of it go."""
        self.part(row["video"]).unlink(missing_ok=True)
        self.rows[row["video"]] = row

    def finish(self) -> None:
        """Join the parts and write the table of videos. Raises OutputError."""
        if not self.is_folder:
            self._join(sorted(v for v, row in self.rows.items() if row["status"] != "failed"))
        write_videos(self.videos_path, list(self.rows.values()))
        if not self.is_folder:
            shutil.rmtree(self.parts_folder, ignore_errors=True)

    def _join(self, videos: list[str]) -> None:
        old = _by_video(self.path) if self.path.is_file() else iter(())
        waiting = next(old, None)
        runs = {**self._runs, self.run["id"]: self.run}
        provenance = {"schema_version": SCHEMA_VERSION, "runs": [runs[i] for i in sorted(runs)]}
        with TableWriter(self.path, provenance) as writer:
            for video in videos:
                while waiting is not None and waiting[0] < video:
                    waiting = next(old, None)
                if (part := self.part(video)).is_file():
                    batches = read_batches(part)
                elif waiting is not None and waiting[0] == video:
                    batches = waiting[1]
                else:
                    raise OutputError(f"{part} has vanished: run the same command again")
                for batch in batches:
                    writer.write(batch)

    def _parts(self) -> Iterator[Path]:
        if self.parts_folder.is_dir():
            for path in sorted(self.parts_folder.rglob("*.parquet")):
                if path != self.videos_path and not path.name.startswith("."):
                    yield path

    def _accept(self, path: Path) -> dict[str, Any]:
        """The provenance of a finished table. Raises UsageError when other options made it."""
        provenance = read_provenance(path)
        for run in provenance["runs"]:
            if run["id"] not in self._runs:
                if differences := _differences(run, self.run):
                    raise UsageError(
                        f"{path} was made with other options: {differences}. "
                        "Give the same options, another --out, or --overwrite to start anew."
                    )
                self._runs[run["id"]] = run
        return provenance


def remove_output(path: Path) -> None:
    """Delete what an earlier run left at an output: its tables and parts, and nothing else.

    Raises OutputError when a Parquet file there was not written by vafer.
    """
    if path.suffix.lower() == ".parquet":
        parts = path.with_name(f"{path.name}.parts")
        tables = [path, *parts.rglob("*.parquet")]
        companions = [path.with_name(f"{path.stem}.videos.parquet")]
    else:
        parts = None
        companions = [path / "_videos.parquet"]
        tables = [p for p in path.rglob("*.parquet") if p not in companions]
    existing = [p for p in tables if p.is_file()]
    for table in existing:
        read_provenance(table)
    for table in [*existing, *companions]:
        table.unlink(missing_ok=True)
    if parts is not None:
        shutil.rmtree(parts, ignore_errors=True)


def _by_video(path: Path) -> Iterator[tuple[str, Iterator[pa.RecordBatch]]]:
    return groupby(read_batches(path), key=lambda batch: batch.column("video")[0].as_py())


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name what two runs differ in that changes values; empty where nothing does."""
    a, b = _settings(old), _settings(new)
    return "; ".join(
        f"{key} was {a.get(key)}, is {b.get(key)} now"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    )


def _settings(run: dict[str, Any], prefix: str = "") -> dict[str, Any]:
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
