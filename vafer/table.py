"""The tables that vafer writes: their columns, their provenance, and how they reach the disk.

Columns and metadata are described in docs/table.md. A table is written to a temporary file beside
its place and renamed when it is complete, so that a reader never meets half of one.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vafer.errors import OutputError, display_path
from vafer.faces import Faces
from vafer.files import on_disk

SCHEMA_VERSION = 1
METADATA_KEY = b"vafer"
ROWS_PER_GROUP = 1 << 17  # about 10 MB in memory; statistics per group let readers skip

SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32(), nullable=False),
        ("pts", pa.int64()),
        ("time_s", pa.float64()),
        ("face_index", pa.int16()),
        ("track_id", pa.int32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
        ("x2", pa.float32()),
        ("y2", pa.float32()),
        ("det_score", pa.float32()),
        ("landmarks", pa.list_(pa.float32(), 10)),
        ("face_source", pa.string()),
        ("valence", pa.float32()),
        ("arousal", pa.float32()),
    ]
)

VIDEOS_SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        ("error", pa.string()),
        ("n_frames", pa.int64()),
        ("n_frames_analysed", pa.int64()),
        ("n_frames_with_face", pa.int64()),
        ("n_faces", pa.int64()),
        ("n_bad_packets", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation", pa.int16()),
        ("pixel_aspect", pa.float64()),
        ("codec", pa.string()),
        ("fps", pa.float64()),
        ("duration_s", pa.float64()),
        ("time_base", pa.string()),
        ("decoder", pa.string()),
        ("elapsed_s", pa.float64()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)

_SINCE = {"pixel_aspect"}  # columns that tables of development versions may lack

# Bytes of equal weight lie together, which zstd then packs better than the floats themselves.
_SPLIT_COLUMNS = ["time_s", "x1", "y1", "x2", "y2", "det_score", "valence", "arousal",
                  "landmarks.list.element"]  # fmt: skip
_DICTIONARY_COLUMNS = ["video", "face_source"]


@dataclass(frozen=True, slots=True)
class FrameResult:
    """All that is known of one analysed frame: N faces, track_ids int32 (N,), values (N, 2).

    source: how the faces were found, `full` in the whole frame, `search` around those of before.
    """

    index: int
    pts: int | None
    time_s: float | None
    faces: Faces
    track_ids: np.ndarray
    values: np.ndarray
    source: str = "full"


def to_batch(video: str, frames: Sequence[FrameResult]) -> pa.RecordBatch:
    """Frames of one video → rows: one per face, and one with null faces for a frame without any."""
    counts = np.array([len(f.faces) for f in frames], np.int64)
    n_rows = np.maximum(counts, 1)
    empty = np.repeat(counts == 0, n_rows)
    first = np.repeat(np.cumsum(n_rows) - n_rows, n_rows)

    def per_frame(values: list[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(pa.array(np.repeat(np.arange(len(frames)), n_rows)))

    def per_face(values: Iterable[np.ndarray], kind: pa.DataType) -> pa.Array:
        column = np.zeros(len(empty), kind.to_pandas_dtype())
        column[~empty] = np.concatenate([v for v in values if len(v)] or [column[:0]])
        return pa.array(column, kind, mask=empty)

    boxes = [per_face((f.faces.boxes[:, i] for f in frames), pa.float32()) for i in range(4)]
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(video, len(empty)),
            per_frame([f.index for f in frames], pa.int32()),
            per_frame([f.pts for f in frames], pa.int64()),
            per_frame([f.time_s for f in frames], pa.float64()),
            pa.array(np.arange(len(empty)) - first, pa.int16(), mask=empty),
            per_face((f.track_ids for f in frames), pa.int32()),
            *boxes,
            per_face((f.faces.scores for f in frames), pa.float32()),
            _landmark_column(frames, empty),
            pa.array(
                np.repeat(np.array([f.source for f in frames], object), n_rows),
                pa.string(),
                mask=empty,
            ),
            per_face((f.values[:, 0] for f in frames), pa.float32()),
            per_face((f.values[:, 1] for f in frames), pa.float32()),
        ],
        schema=SCHEMA,
    )


def _landmark_column(frames: Sequence[FrameResult], empty: np.ndarray) -> pa.Array:
    points = np.zeros((len(empty), 10), np.float32)
    missing = empty.copy()
    given = [f.faces.landmarks for f in frames if len(f.faces) and f.faces.landmarks is not None]
    if given:
        points[~empty] = np.concatenate(given).reshape(-1, 10)
    else:
        missing[:] = True
    return pa.FixedSizeListArray.from_arrays(points.ravel(), 10, mask=pa.array(missing))


class TableWriter:
    """Writes one results table; use it as a context, or `open` it and `finish` or `abandon` it.

    Rows are gathered into large row groups whatever the size of the batches. The file appears under
    its name when it is finished, and leaves nothing behind otherwise. `provenance` is stored under
    the metadata key `vafer`; it may be set until then. Raises OutputError when the file cannot be
    written.
    """

    def __init__(self, path: Path, provenance: dict[str, Any]) -> None:
        self.path = path
        self.provenance = provenance
        self._temporary = _temporary(path)
        self._file: IO[bytes] | None = None
        self._writer: pq.ParquetWriter | None = None
        self._start_group()

    def open(self) -> "TableWriter":
        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Opened here: pyarrow would take a name with a colon for an address.
            self._file = self._temporary.open("wb")
        self._writer = pq.ParquetWriter(
            self._file,
            SCHEMA,
            compression="zstd",
            use_dictionary=_DICTIONARY_COLUMNS,
            use_byte_stream_split=_SPLIT_COLUMNS,
            write_page_index=True,
        )
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. Raises OutputError when they cannot be written."""
        self._group.write_batch(batch)
        self._n_waiting += len(batch)
        if self._n_waiting >= ROWS_PER_GROUP:
            with output_errors(self.path):
                self._flush()

    def finish(self) -> None:
        """Let the file appear under its name."""
        try:
            with output_errors(self.path):
                self._flush()
                assert self._writer is not None
                assert self._file is not None
                self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(self.provenance)})
                self._writer.close()
                on_disk(self._file)
                self._file.close()
                self._temporary.replace(self.path)
        finally:
            self._clean_up()

    def abandon(self) -> None:
        """Leave nothing behind, at whatever point; what is finished stays."""
        with contextlib.suppress(OSError, ValueError):  # of a file that is closed already
            if self._writer is not None:
                self._writer.close()
        self._clean_up()

    def __enter__(self) -> "TableWriter":
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):  # of a folder that may not be written to any more
            self._temporary.unlink(missing_ok=True)

    def _start_group(self) -> None:
        # One buffer of Arrow's own. Thousands of small batches kept alive between the large arrays
        # of prediction fragment the heap, and memory would grow with a recording's length; that it
        # does not is measured in docs/performance.md, "Memory".
        self._buffer = pa.BufferOutputStream()
        self._group = pa.ipc.new_stream(self._buffer, SCHEMA)
        self._n_waiting = 0

    def _flush(self) -> None:
        if self._n_waiting:
            self._group.close()
            rows = pa.ipc.open_stream(self._buffer.getvalue()).read_all().combine_chunks()
            self._start_group()
            assert self._writer is not None
            self._writer.write_table(rows, row_group_size=ROWS_PER_GROUP)


def videos_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of the table of videos, ordered by `video`."""
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["video"]), VIDEOS_SCHEMA)


def write_videos(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table of videos atomically. Raises OutputError."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            with temporary.open("wb") as file:
                pq.write_table(videos_table(rows), file, compression="zstd")
                on_disk(file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def opened(path: Path) -> Iterator[pa.NativeFile]:
    """A file that pyarrow reads without Python. Raises OSError.

    Its threads may still hold what they read when the interpreter ends: where that is a file of
    Python's they then abort the process.
    """
    # By Python first, whose errors say what is wrong; as bytes, since a name may be no UTF-8.
    path.open("rb").close()
    with pa.OSFile(os.fsencode(path)) as file:
        yield file


def read_videos(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of videos. Raises OutputError when it is none, or cannot be read.

    What development versions before 0.1.0 did not record yet is None.
    """
    try:
        with opened(path) as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise _unread(path, error) from error
    known = [
        field
        for field in VIDEOS_SCHEMA
        if field.name in table.schema.names or field.name not in _SINCE
    ]
    if not table.schema.equals(pa.schema(known)):
        raise OutputError(f"{display_path(path)} is not a table of videos that vafer wrote")
    return [_with_all(row) for row in table.to_pylist()]


def _with_all(row: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(VIDEOS_SCHEMA.names) | row


def read_provenance(path: Path) -> dict[str, Any]:
    """What a results table says of its making.

    Raises OutputError when it was not written by vafer, or by a newer one.
    """
    try:
        with opened(path) as file:
            metadata = pq.read_metadata(file).metadata or {}
        provenance = json.loads(metadata[METADATA_KEY])
        version = provenance["schema_version"]
    except (OSError, pa.ArrowException) as error:
        raise _unread(path, error) from error
    except (KeyError, TypeError, ValueError) as error:
        raise _no_table(path, "a Parquet file that does not say how vafer made it") from error
    if version > SCHEMA_VERSION:
        raise OutputError(
            f"{display_path(path)} has table version {version}, this vafer knows {SCHEMA_VERSION}: "
            "install a newer vafer"
        )
    if provenance.get("video"):
        provenance["video"] = _with_all(provenance["video"])
    return provenance


def _no_table(path: Path, found: str) -> OutputError:
    return OutputError(f"{display_path(path)} is not a results table of vafer: found {found}")


def _unread(path: Path, error: Exception) -> OutputError:
    """A table that cannot be read; pyarrow tells damage as an OSError too, without a number."""
    if isinstance(error, pa.ArrowInvalid) or (isinstance(error, OSError) and error.errno is None):
        what = "is not a whole Parquet file: it is damaged, or none"
    else:
        why = (error.strerror or "").lower() if isinstance(error, OSError) else str(error)
        what = f"cannot be read: {why}"
    return OutputError(f"{display_path(path)} {what}")


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Rows of a results table in order, with bounded memory; each batch holds one video.

    Raises OutputError where it cannot be read.
    """
    try:
        with opened(path) as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1 << 16):
                videos = batch.column("video")
                start = 0
                while start < len(batch):
                    same = np.asarray(pa.compute.equal(videos[start:], videos[start]))
                    length = len(same) if same.all() else int(same.argmin())
                    yield batch.slice(start, length)
                    start += length
    except (OSError, pa.ArrowException) as error:
        raise _unread(path, error) from error


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the file system's errors into OutputError, naming the output."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{display_path(path)} cannot be written: {error.strerror or error}. What was finished "
            "is kept; the same command, without --overwrite, goes on."
        ) from error


def _temporary(path: Path) -> Path:
    """Where a file is written before it is renamed: beside it, by a name that is never too long."""
    return path.with_name(
        f".{hashlib.sha256(path.name.encode(errors='surrogateescape')).hexdigest()[:24]}.tmp"
    )
