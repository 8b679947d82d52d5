"""What is kept of finished recordings, when it still fits, and how parts become one table."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.test_table import frame
from vafer.errors import OutputError, UsageError
from vafer.output import Output, remove_output
from vafer.table import VIDEOS_SCHEMA, to_batch


def run(run_id: str = "1", **changes: Any) -> dict[str, Any]:
    return {
        "id": run_id,
        "vafer": "0",
        "model": {"name": "m", "sha256": "aa"},
        "detector": {"name": "d", "sha256": "bb"},
        "options": {"every": 1, **changes},
        "environment": {"device": "cpu"},
    }


def add(output: Output, video: str, n_frames: int, *, size: int = 10) -> None:
    row: dict[str, Any] = dict.fromkeys(VIDEOS_SCHEMA.names)
    row |= {"video": video, "status": "done", "n_frames": n_frames, "size_bytes": size}
    with output.write_part(video) as writer:
        writer.write(to_batch(video, [frame(i, i % 2) for i in range(n_frames)]))
        writer.provenance["video"] = row
    output.rows[video] = row


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


def test_an_interrupted_run_goes_on(place: Path) -> None:
    first = Output(place, run("1"))
    add(first, "a.mp4", 2)
    second = Output(place, run("2"))
    assert second.is_finished("a.mp4", 10)
    assert not second.is_finished("a.mp4", 11)  # the recording has changed
    assert not second.is_finished("b.mp4", 10)
    add(second, "b.mp4", 1)
    second.finish()
    assert rows_of(place) == [("a.mp4", 0), ("a.mp4", 1), ("b.mp4", 0)]


def test_recordings_are_added_to_a_finished_table(place: Path) -> None:
    first = Output(place, run("1"))
    add(first, "b.mp4", 2)
    first.fail(failed("d.mp4"))
    first.finish()
    second = Output(place, run("2"))
    assert second.is_finished("b.mp4", 10)
    assert not second.is_finished("d.mp4", 10)  # failed: tried again
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
    add(second, "b.mp4", 1, size=11)
    second.finish()
    assert rows_of(place) == [("a.mp4", 0), ("b.mp4", 0)]
    third = Output(place, run("3"))
    third.fail(failed("b.mp4"))
    third.finish()
    assert rows_of(place) == [("a.mp4", 0)]


def test_other_options_are_refused_naming_the_difference(place: Path) -> None:
    first = Output(place, run())
    add(first, "a.mp4", 1)
    with pytest.raises(UsageError, match="options every was 1, is 5 now"):
        Output(place, run(every=5))
    first.finish()
    with pytest.raises(UsageError, match="options every was 1, is 5 now"):
        Output(place, run(every=5)).finish()
    other_detector = {**run(), "detector": {"name": "d", "sha256": "cc"}}
    with pytest.raises(UsageError, match="detector sha256 was bb, is cc now"):
        Output(place, other_detector)


def test_another_device_or_file_name_is_no_difference(place: Path) -> None:
    first = Output(place, run())
    add(first, "a.mp4", 1)
    changed = {
        **run("2"),
        "environment": {"device": "cuda"},
        "model": {"name": "renamed", "sha256": "aa"},
    }
    assert Output(place, changed).is_finished("a.mp4", 10)


def test_all_runs_stand_in_the_metadata(tmp_path: Path) -> None:
    place = tmp_path / "r.parquet"
    for run_id, video in (("1", "a.mp4"), ("2", "b.mp4")):
        output = Output(place, run(run_id))
        add(output, video, 1)
        output.finish()
    from vafer.table import read_provenance

    assert [r["id"] for r in read_provenance(place)["runs"]] == ["1", "2"]


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


def test_overwriting_a_foreign_parquet_file_is_refused(place: Path) -> None:
    import pyarrow as pa

    foreign = place if place.suffix else place / "other.parquet"
    foreign.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.raises(OutputError, match="not a results table"):
        remove_output(place)
    assert foreign.is_file()


def test_places_that_cannot_be_outputs(tmp_path: Path) -> None:
    (tmp_path / "file.csv").write_text("")
    with pytest.raises(UsageError, match=r"no \.parquet"):
        Output(tmp_path / "file.csv", run())
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        Output(tmp_path / "folder.parquet", run())
    output = Output(tmp_path / "r.parquet", run())
    add(output, "a.mp4", 1)
    output.finish()
    output.videos_path.unlink()
    with pytest.raises(UsageError, match="without"):
        Output(tmp_path / "r.parquet", run())
