"""The tables that vafer writes: their columns, their provenance, and how they reach the disk.

Columns and metadata are described in docs/table.md. A table is written to a temporary file beside
its place and renamed when it is complete, so that a reader never meets half of one.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vafer.errors import OutputError
from vafer.faces import Faces

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

# Bytes of equal weight lie together, which zstd then packs better than the floats themselves.
_SPLIT_COLUMNS = ["time_s", "x1", "y1", "x2", "y2", "det_score", "valence", "arousal",
                  "landmarks.list.element"]  # fmt: skip
_DICTIONARY_COLUMNS = ["video", "face_source"]


@dataclass(frozen=True, slots=True)
class FrameResult:
    """All that is known of one analysed frame: N faces, track_ids int32 (N,), values (N, 2)."""

    index: int
    pts: int | None
    time_s: float | None
    faces: Faces
    track_ids: np.ndarray
    values: np.ndarray


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
            pa.array(["full"] * len(empty), pa.string(), mask=empty),
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
    """Writes one results table; use it as a context.

    Rows are gathered into large row groups whatever the size of the batches. The file appears under
    its name when the context ends without an error, and leaves nothing behind otherwise.
    `provenance` is stored under the metadata key `vafer`; it may be set until the context ends.
    """

    def __init__(self, path: Path, provenance: dict[str, Any]) -> None:
        self.path = path
        self.provenance = provenance
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._waiting: list[pa.RecordBatch] = []
        self._n_waiting = 0

    def __enter__(self) -> "TableWriter":
        with _output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(
                self._temporary,
                SCHEMA,
                compression="zstd",
                use_dictionary=_DICTIONARY_COLUMNS,
                use_byte_stream_split=_SPLIT_COLUMNS,
                write_page_index=True,
                store_schema=True,
            )
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. Raises OutputError when they cannot be written."""
        self._waiting.append(batch)
        self._n_waiting += len(batch)
        if self._n_waiting >= ROWS_PER_GROUP:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with _output_errors(self.path):
                    self._flush()
                    self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(self.provenance)})
                    self._writer.close()
                    self._temporary.replace(self.path)
            else:
                self._discard()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._n_waiting:
            rows = pa.Table.from_batches(self._waiting, SCHEMA).combine_chunks()
            self._waiting, self._n_waiting = [], 0
            with _output_errors(self.path):
                self._writer.write_table(rows, row_group_size=ROWS_PER_GROUP)

    def _discard(self) -> None:
        # The error that brought us here matters more than that of a full disk at closing.
        with contextlib.suppress(OSError):
            self._writer.close()


def videos_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of the table of videos, ordered by `video`."""
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["video"]), VIDEOS_SCHEMA)


def write_videos(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table of videos atomically. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _output_errors(path):
        try:
            pq.write_table(videos_table(rows), temporary, compression="zstd")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_videos(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of videos. Raises OutputError when the file cannot be read as one."""
    try:
        return pq.read_table(path, schema=VIDEOS_SCHEMA).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{path} cannot be read as a table of videos: {error}") from error


def read_provenance(path: Path) -> dict[str, Any]:
    """What a results table says of its making.

    Raises OutputError when it was not written by vafer, or by a newer one.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
        provenance = json.loads(metadata[METADATA_KEY])
        version = provenance["schema_version"]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{path} is not a results table of vafer ({error!r})") from error
    if version > SCHEMA_VERSION:
        raise OutputError(
            f"{path} has table version {version}, this vafer knows {SCHEMA_VERSION}: "
            "install a newer vafer"
        )
    return provenance


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Rows of a results table in order, with bounded memory; each batch holds one video."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1 << 16):
            videos = batch.column("video")
            start = 0
            while start < len(batch):
                name = videos[start].as_py()
                same = np.asarray(pa.compute.equal(videos[start:], name))
                length = len(same) if same.all() else int(same.argmin())
                yield batch.slice(start, length)
                start += length


class _output_errors:  # noqa: N801 - a context, named like contextlib's
    """Turns the file system's errors into OutputError, naming the output."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror or error}. "
                "What was finished is kept; run the same command again to go on."
            ) from error
