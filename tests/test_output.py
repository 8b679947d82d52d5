"""What is kept of finished recordings, when it still fits, and how parts become one table."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_table import frame
from vafer import output as output_module
from vafer.errors import OutputError, UsageError
from vafer.inputs import Source, size_bytes, source_sha256
from vafer.merging import merge
from vafer.output import Output
from vafer.parts import check_output, part_of, read_table, remove_output
from vafer.table import VIDEOS_SCHEMA, read_provenance, to_batch


def run(run_id: str = "1", **changes: Any) -> dict[str, Any]:
    return {
        "id": run_id,
        "vafer": "0",
        "model": {"name": "m", "sha256": "aa"},
        "detector": {"name": "d", "sha256": "bb"},
        "options": {"every": 1, **changes},
        "environment": {"device": "cpu"},
    }


def add(output: Output, video: str, n_frames: int, source: Source | None = None) -> None:
    row: dict[str, Any] = dict.fromkeys(VIDEOS_SCHEMA.names)
    row |= {"video": video, "status": "done", "n_frames_analysed": n_frames}
    if source is not None:
        row |= {"size_bytes": size_bytes(source), "sha256": source_sha256(source)}
    with output.write_part(video) as writer:
        writer.write(to_batch(video, [frame(i, i % 2) for i in range(n_frames)]))
        writer.provenance["video"] = row
    output.done(row)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "recording.mp4"
    path.write_bytes(b"0123456789")
    os.utime(path, (1, 1))
    return Source(path, "a.mp4")


def failed(video: str) -> dict[str, Any]:
    return {
        **dict.fromkeys(VIDEOS_SCHEMA.names),
        "video": video,
        "status": "failed",
        "error": "why",
    }


@pytest.fixture(params=["results.parquet", "results"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def rows_of(place: Path) -> list[tuple[str, int]]:
    files = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    return [
        (row["video"], row["frame_index"])
        for file in files
        if not file.name.startswith("_")
        for row in pq.read_table(file).to_pylist()
    ]


def test_parts_become_one_table_in_order(place: Path) -> None:
    output = Output(place, run())
    for video, n in (("b.mp4", 2), ("a/z.mp4", 1), ("c.mp4", 3)):
        add(output, video, n)
    output.fail(failed("d.mp4"))
    output.finish()
    expected = [("a/z.mp4", 0), ("b.mp4", 0), ("b.mp4", 1), *(("c.mp4", i) for i in range(3))]
    assert rows_of(place) == expected
    videos = pq.read_table(output.videos_path)
    assert videos.schema.equals(VIDEOS_SCHEMA)
    assert videos["video"].to_pylist() == ["a/z.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert videos["status"].to_pylist() == ["done"] * 3 + ["failed"]
    left = {p.name for p in place.parent.iterdir()}
    assert left == (
        {"results.parquet", "results.videos.parquet"} if place.is_file() else {"results"}
    )


def test_an_interrupted_run_goes_on(place: Path, source: Source) -> None:
    first = Output(place, run("1"))
    add(first, "a.mp4", 2, source)
    second = Output(place, run("2"))
    assert second.is_finished(source)
    assert not second.is_finished(Source(source.path, "b.mp4"))
    add(second, "b.mp4", 1)
    second.finish()
    assert rows_of(place) == [("a.mp4", 0), ("a.mp4", 1), ("b.mp4", 0)]


def test_a_recording_is_done_again_when_it_has_changed(place: Path, source: Source) -> None:
    first = Output(place, run())
    add(first, "a.mp4", 1, source)
    first.finish()
    later = time.time() + 100
    os.utime(source.path, (later, later))
    assert Output(place, run()).is_finished(source)  # touched, and the same
    source.path.write_bytes(b"9876543210")
    os.utime(source.path, (later, later))
    assert not Output(place, run()).is_finished(source)  # of the same size
    source.path.write_bytes(b"01234567890")
    os.utime(source.path, (1, 1))
    assert not Output(place, run()).is_finished(source)  # not newer
    source.path.unlink()
    assert Output(place, run()).is_finished(source)  # out of reach


def test_recordings_are_added_to_a_finished_table(place: Path, source: Source) -> None:
    first = Output(place, run("1"))
    add(first, "b.mp4", 2, source)
    first.fail(failed("d.mp4"))
    first.finish()
    second = Output(place, run("2"))
    assert second.is_finished(Source(source.path, "b.mp4"))
    assert not second.is_finished(Source(source.path, "d.mp4"))  # failed: tried again
    add(second, "a.mp4", 1)
    add(second, "c.mp4", 1)
    add(second, "d.mp4", 1)
    second.finish()
    assert [v for v, _ in rows_of(place)] == ["a.mp4", "b.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert pq.read_table(second.videos_path)["status"].to_pylist() == ["done"] * 4


def test_a_changed_recording_replaces_its_rows(place: Path) -> None:
    first = Output(place, run("1"))
    add(first, "a.mp4", 1)
    add(first, "b.mp4", 3)
    first.finish()
    second = Output(place, run("2"))
    add(second, "b.mp4", 1)
    second.finish()
    assert rows_of(place) == [("a.mp4", 0), ("b.mp4", 0)]
    third = Output(place, run("3"))
    third.fail(failed("b.mp4"))
    third.finish()
    assert rows_of(place) == [("a.mp4", 0)]


def test_nothing_to_do_writes_nothing(place: Path) -> None:
    first = Output(place, run("1"))
    add(first, "a.mp4", 1)
    first.finish()
    before = {p: p.stat().st_mtime_ns for p in place.parent.rglob("*.parquet")}
    second = Output(place, run("2"))
    second.finish()
    assert {p: p.stat().st_mtime_ns for p in place.parent.rglob("*.parquet")} == before


def test_a_run_that_dies_before_its_parts_are_gone_leaves_only_that_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "r.parquet"
    first = Output(place, run("1"))
    add(first, "a.mp4", 1)
    with monkeypatch.context() as patch:
        patch.setattr(output_module, "remove_parts", lambda folder: None)
        first.finish()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.parquet")}
    second = Output(place, run("2"))
    assert second.part("a.mp4").is_file()
    second.finish()
    assert not second.parts_folder.exists()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.parquet")} == before


def test_parts_go_when_what_was_made_of_them_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "r.parquet"
    output = Output(place, run("1"))
    add(output, "a.mp4", 1)
    synced: list[tuple[str, bool]] = []  # what, and whether the part is still there

    def fsync(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        synced.append((name, output.part("a.mp4").is_file()))

    monkeypatch.setattr(os, "fsync", fsync)
    output.finish()
    assert not output.parts_folder.exists()
    names = [Path(name) for name, _ in synced]
    assert [name.suffix for name in names] == [".tmp", ".tmp", ""]  # before each is renamed
    assert {name.parent for name in names[:2]} == {tmp_path}
    assert names[2] == tmp_path
    assert all(is_there for _, is_there in synced)


def test_a_run_that_dies_before_the_table_of_videos_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "r.parquet"
    first = Output(place, run("1"))
    add(first, "a.mp4", 1)

    def die(path: Path, rows: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output_module, "write_videos", die)
        with pytest.raises(KeyboardInterrupt):
            first.finish()
    second = Output(place, run("2"))
    assert set(second.rows) == {"a.mp4"}
    second.finish()
    assert rows_of(place) == [("a.mp4", 0)]
    assert second.videos_path.is_file()


def test_a_join_that_fails_promises_nothing(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "r.parquet"
    first = Output(place, run("1"))
    add(first, "0.mp4", 1)
    first.finish()
    second = Output(place, run("2"))
    add(second, "a.mp4", 1, source)

    def full(self: Output, videos: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Output, "_join", full)
        with pytest.raises(OutputError, match="No space left"):
            second.finish()
    shutil.rmtree(second.parts_folder)  # to make room
    third = Output(place, run("3"))
    assert not third.is_finished(source)
    assert set(third.rows) == {"0.mp4"}


def test_a_table_that_was_deleted_is_made_again(tmp_path: Path, source: Source) -> None:
    first = Output(tmp_path / "r.parquet", run("1"))
    add(first, "a.mp4", 1, source)
    first.finish()
    first.path.unlink()
    assert not Output(first.path, run("2")).is_finished(source)


def test_a_table_that_holds_more_than_is_known_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "r.parquet"
    first = Output(place, run("1"))
    add(first, "a.mp4", 1)
    first.finish()
    add(Output(place, run("2")), "b.mp4", 1)
    first.videos_path.unlink()
    with pytest.raises(UsageError, match="without"):
        Output(place, run("3"))


def test_a_file_in_the_place_of_a_part_is_not_replaced(tmp_path: Path, source: Source) -> None:
    place = tmp_path / "results"
    place.mkdir()
    part = place / "a.mp4.parquet"
    pq.write_table(pa.table({"mine": [1]}), part)
    with pytest.raises(UsageError, match="is not the table of"):
        check_output(place, [source])
    part.write_bytes(part.read_bytes()[:50])
    check_output(place, [source])  # damaged: done again
    add(Output(place, run()), "a.mp4", 1)
    check_output(place, [source])  # its own
    single = Output(part.with_name("x.parquet"), run())
    add(single, "z.mp4", 1)
    single.finish()
    (place / "x.parquet").replace(part)
    with pytest.raises(UsageError, match="is not the table of"):
        check_output(place, [source])


def test_a_damaged_part_of_an_interrupted_run_is_done_again(place: Path, source: Source) -> None:
    first = Output(place, run("1"))
    add(first, "a.mp4", 1, source)
    part = first.part("a.mp4")
    part.write_bytes(part.read_bytes()[:100])
    assert not Output(place, run("2")).is_finished(source)


def test_a_damaged_part_of_a_finished_folder_is_done_again(tmp_path: Path, source: Source) -> None:
    first = Output(tmp_path / "results", run("1"))
    add(first, "a.mp4", 1, source)
    first.finish()
    part = first.part("a.mp4")
    part.write_bytes(part.read_bytes()[:100])
    assert not Output(first.path, run("2")).is_finished(source)


def test_a_folder_that_lacks_a_table_is_not_read_as_if_it_were_whole(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder without results of vafer"):
        read_table(tmp_path)
    output = Output(tmp_path / "results", run())
    for video in ("a.mp4", "b.mp4", "c.mp4"):
        add(output, video, 2)
    output.fail(failed("bad.mp4"))
    output.finish()
    assert len(read_table(tmp_path / "results")) == 6
    part_of(tmp_path / "results", "b.mp4").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"b\.mp4\.parquet is damaged or not there: run the"):
        read_table(tmp_path / "results")
    part_of(tmp_path / "results", "c.mp4").unlink()
    with pytest.raises(OutputError, match=r"b\.mp4\.parquet, and 1 more, is damaged or not there"):
        read_table(tmp_path / "results")


def test_foreign_files_are_neither_read_nor_harmed(place: Path) -> None:
    """Another table of vafer, and one that is none, lie in the folder of parts."""
    output = Output(place, run())
    add(output, "a.mp4", 1)
    other = output.parts_folder / "nested" / "other.parquet"
    add_to = Output(other, run(every=9))
    add(add_to, "z.mp4", 1)
    add_to.finish()
    foreign = output.parts_folder / "foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    again = Output(place, run())
    assert set(again.rows) == {"a.mp4"}
    if again.is_folder:
        again.finish()
        nested = Output(place / "study", run(every=9))
        add(nested, "y.mp4", 1)
        remove_output(place)
        assert other.is_file()
        assert foreign.is_file()
        assert nested.part("y.mp4").is_file()
        assert not output.part("a.mp4").exists()


def test_a_table_of_videos_that_is_not_ours_is_left_alone(place: Path) -> None:
    output = Output(place, run())
    output.videos_path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"video": ["mine"]}), output.videos_path)
    before = output.videos_path.read_bytes()
    for refused in (lambda: Output(place, run()), lambda: remove_output(place)):
        with pytest.raises(UsageError, match="is not a table of videos"):
            refused()
    assert output.videos_path.read_bytes() == before


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    output = Output(tmp_path / "results", run())
    long = "day1/" + "あ" * 82 + ".mp4"  # 250 bytes: a legal name that cannot be made longer
    add(output, long, 1)
    assert output.part(long).name.startswith("ああ")
    assert output.part(long) != output.part(long.replace("mp4", "mkv"))
    deep = "い" * 100 + "/a.mp4"
    add(output, deep, 1)
    assert set(Output(output.path, run()).rows) == {long, deep}
    with pytest.raises(UsageError, match="_videos"):
        check_output(output.path, [Source(tmp_path, "a.mp4"), Source(tmp_path, "_videos")])
    with pytest.raises(UsageError, match="too long"):
        check_output(tmp_path / ("x" * 300), [])


def test_other_options_are_refused_naming_the_difference(place: Path) -> None:
    first = Output(place, run())
    add(first, "a.mp4", 1)
    with pytest.raises(UsageError, match="--every 1 against 5"):
        Output(place, run(every=5))
    first.finish()
    with pytest.raises(UsageError, match="--every 1 against 5"):
        Output(place, run(every=5)).finish()
    other_detector = {**run(), "detector": {"name": "d", "sha256": "cc"}}
    with pytest.raises(UsageError, match="detector sha256 bb against cc"):
        Output(place, other_detector)


def test_what_a_development_version_left_goes_on(place: Path, source: Source) -> None:
    """Its tables of videos had no `pixel_aspect`; nor had the rows in its parts."""
    first = Output(place, run())
    add(first, source.video, 1, source)
    first.finish()
    path = first.videos_path
    pq.write_table(pq.read_table(path).drop_columns(["pixel_aspect"]), path)
    for part in first.parts_folder.rglob("*.mp4.parquet"):
        provenance = read_provenance(part)
        del provenance["video"]["pixel_aspect"]
        told = {b"vafer": json.dumps(provenance).encode()}
        pq.write_table(pq.read_table(part).replace_schema_metadata(told), part)
    again = Output(place, run())
    assert again.rows[source.video]["pixel_aspect"] is None
    assert again.is_finished(source)
    merged = merge([place], place.with_name("merged.parquet"))
    assert merged.videos["pixel_aspect"].to_list() == [None]


def test_another_device_or_file_name_is_no_difference(place: Path) -> None:
    first = Output(place, run())
    add(first, "a.mp4", 1)
    changed = {
        **run("2"),
        "environment": {"device": "cuda"},
        "model": {"name": "renamed", "sha256": "aa"},
    }
    assert set(Output(place, changed).rows) == {"a.mp4"}


def test_all_runs_stand_in_the_metadata(tmp_path: Path) -> None:
    place = tmp_path / "r.parquet"
    for run_id, video in (("1", "a.mp4"), ("2", "b.mp4")):
        output = Output(place, run(run_id))
        add(output, video, 1)
        output.finish()
    assert [r["id"] for r in read_provenance(place)["runs"]] == ["1", "2"]


def test_a_folder_among_the_parts_is_left_alone(tmp_path: Path) -> None:
    output = Output(tmp_path / "r.parquet", run())
    (output.parts_folder / "mine.parquet").mkdir()
    add(output, "a.mp4", 1)
    output.finish()
    assert [path.name for path in output.parts_folder.iterdir()] == ["mine.parquet"]
    remove_output(tmp_path / "r.parquet")
    assert not output.videos_path.exists()


def test_overwriting_removes_what_vafer_wrote_and_nothing_else(place: Path) -> None:
    output = Output(place, run())
    add(output, "a.mp4", 1)
    output.finish()
    add(Output(place, run()), "b.mp4", 1)
    note = place.parent / "note.txt"
    note.write_text("mine")
    remove_output(place)
    assert note.read_text() == "mine"
    assert not list(place.parent.rglob("*.parquet"))
    Output(place, run(every=5))


def test_overwriting_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "r.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.raises(UsageError, match="not a results table"):
        remove_output(foreign)
    with pytest.raises(UsageError, match="not a results table"):
        Output(foreign, run())
    assert foreign.is_file()


def test_places_that_cannot_be_outputs(tmp_path: Path) -> None:
    (tmp_path / "file.odd").write_text("")
    with pytest.raises(UsageError, match=r"no \.parquet"):
        check_output(tmp_path / "file.odd", [])
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path / "folder.parquet", [])
    for out, table in (("s.parquet", "s.videos.parquet"), ("s", "s/_videos.parquet")):
        (tmp_path / table).mkdir(parents=True)
        with pytest.raises(UsageError, match=f"{table} is a folder, where the table of videos"):
            check_output(tmp_path / out, [])
    (tmp_path / "others" / "sub").mkdir(parents=True)
    (tmp_path / "others" / "sub" / "deep").touch()
    with pytest.raises(UsageError, match="deep is a file, where a folder of tables would be"):
        check_output(tmp_path / "others", [Source(tmp_path / "v", "sub/deep/v.mp4")])
    (tmp_path / "others" / "v.mp4.parquet").write_text("my notes")
    with pytest.raises(UsageError, match=r"v\.mp4\.parquet is not the table of v\.mp4"):
        check_output(tmp_path / "others", [Source(tmp_path / "v.mp4", "v.mp4")])
    (tmp_path / "others" / "v.mp4.parquet").write_bytes(bytes(100))  # as after a power cut
    check_output(tmp_path / "others", [Source(tmp_path / "v.mp4", "v.mp4")])
    (tmp_path / "results" / "a.mp4.parquet").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"a\.mp4\.parquet is not the table of a\.mp4"):
        check_output(tmp_path / "results", [Source(tmp_path / "a.mp4", "a.mp4")])
    part_of(tmp_path / "f.parquet", "a.mp4").mkdir(parents=True)
    check_output(tmp_path / "f.parquet", [Source(tmp_path / "b.mp4", "b.mp4")])
    with pytest.raises(UsageError, match=r"is a folder, where the table of a\.mp4 would be"):
        check_output(tmp_path / "f.parquet", [Source(tmp_path / "a.mp4", "a.mp4")])
    output = Output(tmp_path / "r.parquet", run())
    add(output, "a.mp4", 1)
    output.finish()
    output.videos_path.unlink()
    with pytest.raises(UsageError, match="without"):
        Output(tmp_path / "r.parquet", run())
    (tmp_path / "file").touch()
    for inside in ("file/r.parquet", "file/results"):
        with pytest.raises(UsageError, match="cannot be written"):
            Output(tmp_path / inside, run())
