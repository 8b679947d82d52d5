"""Shards are disjoint, and merging their outputs gives the table that one run would have made."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import vafer
from tests.test_output import add, failed, run
from vafer import merging
from vafer.annotation import Progress
from vafer.cli import app
from vafer.errors import OutputError, UsageError
from vafer.lock import own_folder
from vafer.options import Shard
from vafer.output import Output
from vafer.parts import part_of, parts_folder_of
from vafer.table import read_provenance

VIDEOS = [f"{letter}.mp4" for letter in "abcdefgh"]


def make(out: Path, videos: list[str], *, shard: str | None = None, **changes: object) -> Path:
    """An output of annotate with two frames a recording."""
    output = Output(out, {**run(out.stem, **changes), "shard": shard})
    for video in videos:
        add(output, video, 2)
    output.finish()
    return out


def test_shards_cover_all_once_and_stay_when_recordings_are_added() -> None:
    for count in (1, 3, 7):
        shards = [Shard(number + 1, count) for number in range(count)]
        assert all(sum(shard.has(video) for shard in shards) == 1 for video in VIDEOS)
    many = [f"session-{i}/cam.mp4" for i in range(4000)]
    assert all(900 < sum(Shard(i, 4).has(v) for v in many) < 1100 for i in range(1, 5))
    # By the name alone: where a recording was done once, it is found again.
    assert [video for video in VIDEOS if Shard(2, 3).has(video)] == ["a.mp4", "g.mp4"]


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "1", "1/0", "a/b", "1/-2", " 1/2", "1/2/3", "1.0/2"]
)
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="expected I/N"):
        Shard.parse(text)


def test_merged_shards_equal_one_run(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for video in VIDEOS[:4]:
        shutil.copy(sample, folder / video)
    (folder / "broken.mp4").write_text("no video")
    how = {"model": untrained, "detector": yunet, "sampling": vafer.Sampling(every=40)}
    whole = vafer.annotate(folder, tmp_path / "whole.parquet", **how)
    outs = [tmp_path / "1", tmp_path / "2.parquet", *(tmp_path / name for name in "345")]
    for i, out in enumerate(outs, 1):
        vafer.annotate(folder, out, shard=Shard(i, 5), **how)
    notices: list[str] = []
    merged = vafer.merge(outs, tmp_path / "m" / "all.parquet", on_notice=notices.append)
    assert vafer.read_table(merged.path).equals(whole.table)
    assert (len(merged.videos), merged.n_incomplete, merged.n_rows) == (5, 1, len(whole.table))
    same = pl.all().exclude("elapsed_s")
    assert pl.read_parquet(merged.videos_path).select(same).equals(whole.videos.select(same))
    # As if one run had made it: what is added since is done, and nothing else.
    shutil.copy(sample, folder / "new.mp4")
    again = vafer.annotate(folder, merged.path, **how)
    assert again.n_skipped == 4
    assert again.table["video"].n_unique() == 5
    assert [path.name for path in (tmp_path / "m").iterdir() if path.is_dir()] == []


def test_a_shard_without_recordings_is_an_output_too(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    empty = next(s for s in (Shard(1, 2), Shard(2, 2)) if not s.has(sample.name))
    for out in (tmp_path / "folder", tmp_path / "file.parquet"):
        results = vafer.annotate(sample, out, model=untrained, detector=yunet, shard=empty)
        assert (results.n_frames, len(results.videos)) == (0, 0)
        merged = vafer.merge([out], tmp_path / f"{out.stem}-merged.parquet")
        assert (len(merged.videos), merged.n_rows) == (0, 0)


def test_more_outputs_than_files_may_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [
        make(tmp_path / f"{i:03}.parquet", [f"{i:03}.mp4"], shard=f"{i + 1}/100")
        for i in range(100)
    ]
    n_open = len([*Path("/proc/self/fd").iterdir()])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = (n_open + 40, before[1])
    monkeypatch.setattr(merging, "OTHER_FILES", n_open + 20)  # no room for two of each
    resource.setrlimit(resource.RLIMIT_NOFILE, few)
    try:
        merged = vafer.merge(inputs, tmp_path / "all.parquet")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(merged.videos) == 100
    monkeypatch.setattr(merging, "FEWEST_OTHER_FILES", before[1])
    with pytest.raises(UsageError, match="merge some of them first"):
        vafer.merge(inputs, tmp_path / "again.parquet")
    assert not (tmp_path / "again.parquet").exists()


def test_missing_shards_are_told(tmp_path: Path) -> None:
    outs = [make(tmp_path / str(i), [VIDEOS[i]], shard=f"{i}/5") for i in (1, 3)]
    notices: list[str] = []
    merged = vafer.merge(outs, tmp_path / "all.parquet", on_notice=notices.append)
    assert notices == ["shards of 5 that are not among the inputs: 2, 4, 5"]
    assert [r["shard"] for r in read_provenance(merged.path)["runs"]] == ["1/5", "3/5"]
    notices.clear()
    outs += [make(tmp_path / str(i), [], shard=f"{i}/5") for i in (2, 4)]  # without a recording
    vafer.merge(outs, tmp_path / "more.parquet", on_notice=notices.append)
    assert notices == [
        "not among the inputs: 1 of the shards 2, 4, 5 (of 5); 2 inputs without a finished "
        "recording may be any of them"
    ]
    notices.clear()
    outs.append(make(tmp_path / "5.parquet", [], shard="5/5"))
    vafer.merge(outs, tmp_path / "whole.parquet", on_notice=notices.append)
    assert notices == []


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", VIDEOS[:2]), make(tmp_path / "b.parquet", VIDEOS[2:4])
    twice = make(tmp_path / "twice", VIDEOS[1:2])
    other = make(tmp_path / "other", VIDEOS[5:], every=2)
    cut_off = tmp_path / "cut"
    add(Output(cut_off, run("cut")), "x.mp4", 2)
    lost = make(tmp_path / "lost", ["y.mp4", "z.mp4"])
    (lost / "z.mp4.parquet").unlink()
    add(Output(tmp_path / "under_way.parquet", run("under_way")), "x.mp4", 2)
    waiting = make(tmp_path / "waiting.parquet", ["w.mp4"])
    add(Output(waiting, run("w")), "v.mp4", 2)
    before = sorted(tmp_path.rglob("*"))
    for inputs, problem in (
        ([], "nothing to merge"),
        ([a, tmp_path / "gone"], "gone: no such file or folder"),
        ([a, twice], "b.mp4 is in .*a and in .*twice"),
        ([a, a], "a is given twice"),
        ([twice / "_videos.parquet"], "is a table of videos"),
        ([tmp_path], "Name the outputs in it, such as .*a"),
        ([cut_off.with_name("under_way.parquet")], "under_way.parquet has no under_way.videos"),
        ([a, b, other], "with other options: --every 1 against 2"),
        ([a, cut_off], "cut has no _videos.parquet"),
        ([lost], r"z\.mp4\.parquet is damaged or not there"),
        ([waiting], "waiting.parquet is not finished"),
    ):
        with pytest.raises(UsageError, match=problem):
            vafer.merge(inputs, tmp_path / "out.parquet")
    with pytest.raises(UsageError, match=r"expected --out NAME\.parquet"):
        vafer.merge([a], tmp_path / "folder")
    with pytest.raises(UsageError, match="is to be merged itself"):
        vafer.merge([a, b], b, overwrite=True)
    with pytest.raises(UsageError, match="is to be merged itself"):
        vafer.merge([a, b], a / "a.mp4.parquet", overwrite=True)
    for inside in (a / "all.parquet", a / "below" / "all.parquet"):
        with pytest.raises(UsageError, match="which is to be merged"):
            vafer.merge([a, b], inside)
        assert not inside.exists()
    with pytest.raises(UsageError, match="there already"):
        vafer.merge([a], b)
    with pytest.raises(UsageError, match="a run of vafer annotate that is not finished"):
        vafer.merge([a], waiting, overwrite=True)
    with (
        own_folder(parts_folder_of(tmp_path / "out.parquet")),
        pytest.raises(UsageError, match=r"out\.parquet is being written by another run"),
    ):
        vafer.merge([a], tmp_path / "out.parquet")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_input_that_breaks_off_leaves_what_is_there(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", VIDEOS[:2]), make(tmp_path / "b.parquet", VIDEOS[2:4])
    out = tmp_path / "out.parquet"
    vafer.merge([a], out)
    before = out.read_bytes(), (tmp_path / "out.videos.parquet").read_bytes()
    data = bytearray(b.read_bytes())
    data[4:200] = bytes(196)  # the first pages; what describes them lies at the end
    b.write_bytes(data)
    with pytest.raises(OutputError, match=r"b\.parquet is not a whole Parquet file"):
        vafer.merge([a, b], out, overwrite=True)
    assert (out.read_bytes(), (tmp_path / "out.videos.parquet").read_bytes()) == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["out.parquet", "out.videos.parquet"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_there_and_is_not_ours_stays(tmp_path: Path, name: str, overwrite: bool) -> None:
    a = make(tmp_path / "a", VIDEOS[:2])
    (tmp_path / name).write_text("my notes")
    with pytest.raises(UsageError, match="It is not replaced: give another --out") as refused:
        vafer.merge([a], tmp_path / "out.parquet", overwrite=overwrite)
    assert name in str(refused.value)
    assert "--overwrite" not in str(refused.value)
    assert (tmp_path / name).read_text() == "my notes"


def test_inputs_that_are_none_are_told_as_what_they_are(tmp_path: Path) -> None:
    a, notes = make(tmp_path / "a", VIDEOS[:2]), tmp_path / "notes.parquet"
    notes.write_text("my notes")
    with pytest.raises(UsageError, match=r"notes\.parquet is not a whole Parquet file"):
        vafer.merge([a, notes], tmp_path / "out.parquet")
    part_of(a, VIDEOS[0]).unlink()
    with pytest.raises(UsageError, match=f"{VIDEOS[0]}.parquet is damaged or not there"):
        vafer.merge([a], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_refusal_ends_in_order(tmp_path: Path) -> None:
    one, two = (make(tmp_path / f"{name}.parquet", ["a.mp4"]) for name in ("one", "two"))
    command = [
        sys.executable,
        "-m",
        "vafer.cli",
        "merge",
        one,
        two,
        "--out",
        tmp_path / "m.parquet",
    ]
    for _ in range(12):  # threads of pyarrow aborted one in five, after the interpreter had ended
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.startswith("error: a.mp4 is in ")


def test_tables_of_videos_among_the_inputs_are_those_of_the_others(tmp_path: Path) -> None:
    make(tmp_path / "1.parquet", VIDEOS[:2])
    make(tmp_path / "2.parquet", VIDEOS[2:4])
    merged = vafer.merge(sorted(tmp_path.glob("*.parquet")), tmp_path / "all" / "out.parquet")
    assert (len(merged.videos), merged.n_rows) == (4, len(vafer.read_table(merged.path)))


def test_any_name_of_a_table_can_be_merged(tmp_path: Path) -> None:
    inputs = [make(tmp_path / f"{name}.videos.parquet", [f"{name}.mp4"]) for name in "ab"]
    assert len(vafer.merge(inputs, tmp_path / "all.parquet").videos) == 2


def test_the_command(tmp_path: Path) -> None:
    output = Output(tmp_path / "a", run())
    add(output, "a.mp4", 3)
    output.fail(failed("bad.mp4"))
    output.finish()
    b = make(tmp_path / "b", ["b.mp4"])
    out = tmp_path / "all.parquet"
    arguments = ["merge", str(tmp_path / "a"), str(b), "--out", str(out)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "3 recordings, 1 of them failed or damaged, 5 rows" in shown.stdout
    assert f"failed: {failed('bad.mp4')['error']}" in shown.stdout
    assert f"table: {out}" in shown.stdout
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "is there already" in refused.stderr
    again = CliRunner().invoke(app, [*arguments, "--overwrite", "--quiet"])
    assert (again.exit_code, again.stdout) == (0, "")
    assert len(vafer.read_table(out)) == 5


@pytest.mark.parametrize("name", ["results.parquet", "results"])
def test_a_second_run_on_one_output_is_refused(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    tried: list[Progress] = []

    def second(progress: Progress) -> None:
        if progress.video is None:  # before the first, and after the last
            return
        with pytest.raises(UsageError, match=f"{name} is being written by another run"):
            vafer.annotate(sample, out, model=untrained, detector=yunet)
        tried.append(progress)

    every = vafer.Sampling(every=50)
    vafer.annotate(
        sample,
        out,
        model=untrained,
        detector=yunet,
        on_progress=second,
        sampling=every,
        overwrite=True,
    )
    assert len(tried) > 1
    assert vafer.read_table(out)["frame_index"].to_list() == [0]


def test_a_run_records_its_shard(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    mine = next(s for s in (Shard(1, 2), Shard(2, 2)) if s.has(sample.name))
    out = tmp_path / "r.parquet"
    result = CliRunner().invoke(app, [
        "annotate", str(sample), "--out", str(out), "--model", str(untrained), "--detector",
        str(yunet), "--every", "50", "--shard", str(mine),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [r["shard"] for r in read_provenance(out)["runs"]] == [str(mine)]
    assert json.dumps(read_provenance(out))  # plain values
