"""The tables on disk: columns, nulls, encoding, provenance; and that they appear whole or not."""

import errno
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vafer import table
from vafer.errors import OutputError
from vafer.faces import Faces
from vafer.table import FrameResult, TableWriter, read_batches, read_provenance, to_batch

RUN = {"schema_version": 1, "runs": [{"id": "a"}], "video": None}


def frame(index: int, n_faces: int, *, landmarks: bool = True, time: bool = True) -> FrameResult:
    rng = np.random.default_rng(index)
    return FrameResult(
        index=index,
        pts=512 * index if time else None,
        time_s=index / 30 if time else None,
        faces=Faces(
            rng.uniform(0, 99, (n_faces, 4)).astype(np.float32),
            np.sort(rng.random(n_faces).astype(np.float32))[::-1],
            rng.uniform(0, 99, (n_faces, 5, 2)).astype(np.float32) if landmarks else None,
        ),
        track_ids=np.arange(n_faces, dtype=np.int32) + 7,
        values=rng.uniform(-1, 1, (n_faces, 2)).astype(np.float32),
        source="search" if index % 4 == 1 else "full",
    )


def test_rows_hold_every_face_and_say_where_there_is_none() -> None:
    frames = [frame(0, 2), frame(1, 0), frame(5, 1)]
    rows = to_batch("a/b.mp4", frames).to_pylist()
    assert [(r["frame_index"], r["face_index"]) for r in rows] == [
        (0, 0),
        (0, 1),
        (1, None),
        (5, 0),
    ]
    none = rows[2]
    assert {k for k, v in none.items() if v is not None} == {
        "video",
        "frame_index",
        "pts",
        "time_s",
    }
    for row, result, i in (
        (rows[0], frames[0], 0),
        (rows[1], frames[0], 1),
        (rows[3], frames[2], 0),
    ):
        assert row["video"] == "a/b.mp4"
        assert row["pts"] == 512 * result.index
        assert row["time_s"] == result.index / 30
        assert row["track_id"] == 7 + i
        assert [row[c] for c in ("x1", "y1", "x2", "y2")] == result.faces.boxes[i].tolist()
        assert row["det_score"] == result.faces.scores[i]
        assert row["landmarks"] == result.faces.landmarks[i].ravel().tolist()
        assert row["face_source"] == ("search" if result.index == 5 else "full")
        assert [row["valence"], row["arousal"]] == result.values[i].tolist()


def test_what_a_recording_lacks_is_null() -> None:
    rows = to_batch("x", [frame(0, 1, landmarks=False, time=False)]).to_pylist()
    assert rows[0]["landmarks"] is None
    assert rows[0]["pts"] is None
    assert rows[0]["time_s"] is None
    assert rows[0]["valence"] is not None
    assert len(to_batch("x", [])) == 0


def test_a_file_is_encoded_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TableWriter(path, dict(RUN)) as writer:
        for i in range(20):
            writer.write(to_batch("v", [frame(i, 1)]))
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(table.SCHEMA)
    assert file.metadata.num_row_groups == 1  # twenty batches, one group
    columns = {}
    group = file.metadata.row_group(0)
    for i in range(group.num_columns):
        columns[group.column(i).path_in_schema] = group.column(i)
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    for name in ("time_s", "x1", "valence", "landmarks.list.element"):
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings, name
    assert any("DICTIONARY" in e for e in columns["video"].encodings)
    assert all(c.has_offset_index for c in columns.values())
    assert columns["valence"].has_column_index
    assert read_provenance(path) == RUN


def test_rows_are_cut_into_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS_PER_GROUP", 10)
    path = tmp_path / "t.parquet"
    with TableWriter(path, dict(RUN)) as writer:
        for i in range(25):
            writer.write(to_batch("v", [frame(i, 1)]))
        assert writer._n_waiting < 10  # nothing else is held back
    assert pq.read_metadata(path).num_row_groups == 3
    assert pq.read_table(path)["frame_index"].to_pylist() == list(range(25))


def test_an_error_leaves_nothing_behind_and_the_old_table_in_place(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TableWriter(path, dict(RUN)) as writer:
        writer.write(to_batch("old", [frame(0, 1)]))

    def interrupted_run() -> None:
        with TableWriter(path, dict(RUN)) as writer:
            writer.write(to_batch("new", [frame(0, 1)]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]
    assert pq.read_table(path)["video"].to_pylist() == ["old"]


def test_provenance_may_be_completed_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TableWriter(path, dict(RUN)) as writer:
        writer.provenance["video"] = {"status": "done"}
    assert json.loads(pq.read_metadata(path).metadata[b"vafer"])["video"] == {"status": "done"}


def test_each_batch_read_back_holds_one_video(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TableWriter(path, dict(RUN)) as writer:
        for video, n in (("a", 3), ("b", 1), ("c", 70_000)):
            for start in range(0, n, 1000):
                count = min(1000, n - start)
                writer.write(to_batch(video, [frame(start + i, 0) for i in range(count)]))
    lengths: dict[str, int] = {}
    for batch in read_batches(path):
        names = set(batch.column("video").to_pylist())
        assert len(names) == 1
        lengths[names.pop()] = lengths.get(batch.column("video")[0].as_py(), 0) + len(batch)
    assert lengths == {"a": 3, "b": 1, "c": 70_000}


def test_foreign_and_newer_tables_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.raises(OutputError, match=r"not a results table.*does not say how"):
        read_provenance(foreign)
    foreign.write_text("notes")
    damaged = r"foreign\.parquet is not a whole Parquet file: it is damaged, or none$"
    for read in (read_provenance, table.read_videos, lambda path: list(read_batches(path))):
        with pytest.raises(OutputError, match=damaged):
            read(foreign)
    for read in (read_provenance, table.read_videos, lambda path: list(read_batches(path))):
        with pytest.raises(OutputError, match=r"cannot be read: no such file or directory$"):
            read(tmp_path / "gone.parquet")
        with pytest.raises(OutputError, match=r"cannot be read: is a directory$"):
            read(tmp_path)
    newer = tmp_path / "newer.parquet"
    with TableWriter(newer, {"schema_version": 99}):
        pass
    with pytest.raises(OutputError, match="newer vafer"):
        read_provenance(newer)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot be written"),
        TableWriter(tmp_path / "file" / "t.parquet", dict(RUN)),
    ):
        pass
    with pytest.raises(OutputError, match="cannot be written"):
        table.write_videos(tmp_path / "file" / "v.parquet", [])


def test_a_folder_that_may_not_be_written_to_any_more_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    writer = TableWriter(tmp_path / "t.parquet", dict(RUN)).open()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", read_only)
        patch.setattr(Path, "unlink", read_only)
        with pytest.raises(OutputError, match=r"t\.parquet cannot be written: Read-only"):
            writer.finish()
        writer.abandon()


def test_a_writer_leaves_nothing_behind_whenever_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TableWriter(tmp_path / "a.parquet", RUN).abandon()
    writer = TableWriter(tmp_path / "a.parquet", RUN).open()
    assert list(tmp_path.iterdir())
    writer.abandon()
    assert not list(tmp_path.iterdir())

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    writer = TableWriter(tmp_path / "a.parquet", RUN).open()
    writer.write(to_batch("v", [frame(0, 1)]))
    with monkeypatch.context() as patch:
        patch.setattr(table.pq.ParquetWriter, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    writer.abandon()
    assert not list(tmp_path.iterdir())

    writer = TableWriter(tmp_path / "a.parquet", RUN).open()
    writer.write(to_batch("v", [frame(0, 1)]))
    writer.finish()
    writer.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
