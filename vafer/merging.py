"""Several outputs of one job, such as the shards of an array, → one table."""

import heapq
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from vafer.errors import OutputError, UsageError, counted, display_path
from vafer.lock import own_folder
from vafer.options import Shard
from vafer.output import by_video, differences
from vafer.parts import check_whole, parts_folder_of, videos_path_of, whole_parts
from vafer.table import (
    SCHEMA_VERSION,
    TableWriter,
    read_batches,
    read_provenance,
    read_videos,
    videos_table,
    write_videos,
)

OTHER_FILES, FEWEST_OTHER_FILES = 256, 16  # that are open beside those that are merged


@dataclass(frozen=True, eq=False, slots=True)
class Merged:
    """What `merge` made: where the table is and how many rows it has; the table of videos."""

    path: Path
    videos_path: Path
    videos: pl.DataFrame
    n_rows: int

    @property
    def n_incomplete(self) -> int:
        """How many recordings are failed or partial."""
        return int((self.videos["status"] != "done").sum())


def merge(
    inputs: Iterable[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Merged:
    """Join finished outputs of `annotate`, folders or .parquet files, into one .parquet file.

    The inputs stay as they are. Memory does not grow with their size. Raises UsageError (nothing
    was done) where one is not finished, where a recording is in two, where they were made with
    other options, or where `out` is there and not to be overwritten; OutputError.
    """
    out = Path(out)
    given = [Path(path) for path in inputs]
    own_tables = {videos_path_of(path).resolve() for path in given}  # as of `results/*.parquet`
    paths = [path for path in given if path.resolve() not in own_tables]
    if not paths:
        raise UsageError("nothing to merge: expected outputs of vafer annotate")
    seen = set[Path]()
    for path in paths:
        if path.resolve() in seen:
            raise UsageError(f"{display_path(path)} is given twice: leave one out")
        seen.add(path.resolve())
    if out.suffix.lower() != ".parquet":
        raise UsageError(f"{display_path(out)}: expected --out NAME.parquet")
    try:
        outputs = [_Finished(path) for path in paths]
    except OutputError as error:
        raise UsageError(str(error)) from error
    rows = _rows(outputs)
    runs = _runs(outputs, on_notice)
    read = {file.resolve() for output in outputs for file in output.files}
    if {out.resolve(), videos_path_of(out).resolve()} & read:
        raise UsageError(f"{display_path(out)} is to be merged itself: give another --out")
    for folder in paths:
        if folder.is_dir() and folder.resolve() in out.resolve().parents:
            raise UsageError(
                f"{display_path(out)} lies in {display_path(folder)}, which is to be merged and "
                "holds its own tables alone: give another --out"
            )
    with own_folder(parts_folder_of(out), name=out):
        if any(parts_folder_of(out).iterdir()):
            raise UsageError(
                f"{display_path(out)} belongs to a run of vafer annotate that is not finished: "
                "give another --out"
            )
        if there := [path for path in (out, videos_path_of(out)) if path.exists()]:
            _check_ours(out)
            if not overwrite:
                raise UsageError(
                    f"{display_path(there[0])} is there already: give another --out, or --overwrite"
                )
        n_rows = 0
        provenance = {"schema_version": SCHEMA_VERSION, "runs": [runs[i] for i in sorted(runs)]}
        with _room_for(len(outputs)), TableWriter(out, provenance) as writer:
            for _, batches in heapq.merge(*(o.by_video() for o in outputs), key=itemgetter(0)):
                for batch in batches:
                    writer.write(batch)
                    n_rows += len(batch)
        videos = list(rows.values())
        write_videos(videos_path_of(out), videos)
    return Merged(
        path=out,
        videos_path=videos_path_of(out),
        videos=pl.DataFrame(videos_table(videos)),
        n_rows=n_rows,
    )


@contextmanager
def _room_for(n_files: int) -> Iterator[None]:
    """Let so many files be open, all at once. Raises UsageError where that is not allowed."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and hard < n_files + FEWEST_OTHER_FILES:
        raise UsageError(
            f"{n_files} outputs at once need as many open files, and {hard} are allowed: "
            "merge some of them first, then the results, or raise `ulimit -n`"
        )
    wanted = n_files + OTHER_FILES
    if soft != unlimited and soft < wanted:
        most = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _check_ours(out: Path) -> None:
    """Raise UsageError where what is to be replaced was not written by vafer."""
    try:
        if out.exists():
            read_provenance(out)
        if videos_path_of(out).exists():
            read_videos(videos_path_of(out))
    except OutputError as error:
        raise UsageError(f"{error}. It is not replaced: give another --out") from error


class _Finished:
    """One output that is whole. Raises UsageError where it is not, OutputError where it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        videos_path = videos_path_of(path)
        is_waiting = path.suffix.lower() == ".parquet" and parts_folder_of(path).is_dir()
        if not path.exists() and not is_waiting:
            raise UsageError(f"{display_path(path)}: no such file or folder")
        if not videos_path.is_file():
            if path.name == "_videos.parquet" or path.name.endswith(".videos.parquet"):
                raise UsageError(
                    f"{display_path(path)} is a table of videos: expected the table or the folder "
                    "that it belongs to"
                )
            if path.is_file():
                read_provenance(path)  # that it is no table of vafer's comes first
            inside = sorted(path.glob("*/_videos.parquet"))
            advice = "Run its command again"
            if inside:
                advice = f"Name the outputs in it, such as {display_path(inside[0].parent)}"
            raise UsageError(
                f"{display_path(path)} has no {videos_path.name}: expected an output of vafer "
                f"annotate that is finished. {advice}"
            )
        self.rows = {row["video"]: row for row in read_videos(videos_path)}
        parts = list(whole_parts(path))
        self.files = [path, videos_path, *(part for part, _ in parts)]
        self.parts = {provenance["video"]["video"]: part for part, provenance in parts}
        provenances = [provenance for _, provenance in parts]
        if path.is_file():
            provenances.append(read_provenance(path))
            unfinished = bool(self.parts)
        else:
            check_whole(path, self.rows.values(), self.parts)
            unfinished = any(
                self.rows.get(provenance["video"]["video"]) != provenance["video"]
                for provenance in provenances
            )
        if unfinished:
            raise UsageError(
                f"{display_path(path)} is not finished: {videos_path.name} and the tables beside "
                "it differ. Run its command again, then merge"
            )
        self.runs = {run["id"]: run for found in provenances for run in found["runs"]}

    def by_video(self) -> Iterator[tuple[str, Iterator[pa.RecordBatch]]]:
        """The rows of each recording, ordered by name."""
        if self.path.is_file():
            yield from by_video(self.path)
            return
        for video, part in sorted(self.parts.items()):
            yield video, read_batches(part)


def _rows(outputs: list[_Finished]) -> dict[str, dict[str, Any]]:
    """The rows of all tables of videos. Raises UsageError where two have one recording."""
    rows: dict[str, dict[str, Any]] = {}
    homes: dict[str, Path] = {}
    for output in outputs:
        for video, row in output.rows.items():
            other = homes.setdefault(video, output.path)
            if video in rows:
                raise UsageError(
                    f"{video} is in {display_path(other)} and in {display_path(output.path)}: "
                    "expected outputs that share no recording, as shards do. Leave one out"
                )
            rows[video] = row
    return rows


def _runs(outputs: list[_Finished], on_notice: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """All runs by id, made with the same options; shards that are missing are told.

    Raises UsageError where options differ.
    """
    runs = {run_id: (output, run) for output in outputs for run_id, run in output.runs.items()}
    if not runs:
        return {}
    first_output, first = next(iter(runs.values()))
    for output, run in runs.values():
        if found := differences(first, run):
            raise UsageError(
                f"{display_path(first_output.path)} and {display_path(output.path)} were made "
                f"with other options: {found}. Give outputs of one job"
            )
    shards = [Shard.parse(run["shard"]) for _, run in runs.values() if run.get("shard")]
    if shards and len({shard.count for shard in shards}) == 1:
        missing = {*range(1, shards[0].count + 1)} - {shard.number for shard in shards}
        n_empty = sum(not output.runs for output in outputs)  # which shard's, no table says
        if len(missing) > n_empty:
            listed = ", ".join(map(str, sorted(missing)))
            if n_empty:
                told = f"{len(missing) - n_empty} of the shards {listed} (of {shards[0].count})"
                why = f"{counted(n_empty, 'input')} without a finished recording may be any of them"
                on_notice(f"not among the inputs: {told}; {why}")
            else:
                on_notice(f"shards of {shards[0].count} that are not among the inputs: {listed}")
    return {run_id: run for run_id, (_, run) in runs.items()}
