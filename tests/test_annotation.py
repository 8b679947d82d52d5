"""The main job on real recordings: exact to the frame, repeatable, and a fault costs only itself.

The network here is untrained: its values mean nothing, but they are repeatable.
"""

import json
import shutil
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from typer.main import get_command

import vafer
from tests import clips
from vafer import annotation, cli, staged
from vafer.errors import ModelError, UsageError
from vafer.inputs import Source, source_sha256
from vafer.options import DetectorOptions, Sampling
from vafer.output import differences
from vafer.probe import VideoInfo
from vafer.sample import write_sample
from vafer.table import SCHEMA

SINGLE_FACE = ["smile_cry_smile.mp4", "expressive_33s.mp4", "single_face.mp4"]


@pytest.fixture(scope="session")
def every_video(
    shared: Path, untrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> vafer.Results:
    """All real recordings, annotated once with the reference detector."""
    return vafer.annotate(
        shared / "videos",
        tmp_path_factory.mktemp("all") / "results.parquet",
        model=untrained,
        detector=shared / "models" / "scrfd_500m.onnx",
    )


def ffprobe(path: Path) -> tuple[list[int], Fraction, float]:
    """Timestamps of all frames that ffprobe decodes, their time base, the container's start."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-of", "json"]
    shown = ["-show_entries", "frame=pts:stream=time_base:format=start_time"]
    found = json.loads(subprocess.check_output([*command, *shown, path]))
    pts = [frame["pts"] for frame in found["frames"]]
    return pts, Fraction(found["streams"][0]["time_base"]), float(found["format"]["start_time"])


def test_every_frame_of_every_real_recording_is_there(
    every_video: vafer.Results, shared: Path
) -> None:
    assert every_video.videos["status"].to_list() == ["done"] * len(every_video.videos)
    assert every_video.n_incomplete == 0
    for path in sorted(p for p in (shared / "videos").iterdir() if p.suffix in (".mp4", ".mov")):
        pts, time_base, start_s = ffprobe(path)
        rows = every_video.table.filter(pl.col("video") == path.name)
        frames = rows.unique("frame_index", maintain_order=True)
        assert frames["frame_index"].to_list() == list(range(len(pts))), path.name
        assert frames["pts"].to_list() == pts, path.name
        expected = [float(p * time_base) - start_s for p in pts]
        np.testing.assert_allclose(frames["time_s"], expected, rtol=0, atol=1e-6)


def test_rows_are_ordered_and_lie_in_their_ranges(every_video: vafer.Results) -> None:
    table = every_video.table
    assert table.equals(table.sort("video", "frame_index", "face_index", maintain_order=True))
    faces = table.filter(pl.col("face_index").is_not_null())
    assert faces.select(pl.all().exclude("pts").null_count()).row(0) == (0,) * 14
    assert faces.filter(
        (pl.col("x1") < 0) | (pl.col("y1") < 0) | (pl.col("x1") >= pl.col("x2"))
    ).is_empty()
    assert faces["valence"].abs().max() <= 1
    assert faces["arousal"].abs().max() <= 1
    per_frame = faces.group_by("video", "frame_index")
    assert per_frame.agg(pl.col("track_id").n_unique() == pl.len())["track_id"].all()
    size = faces.join(every_video.videos, on="video")
    assert (size["x2"] <= size["width"]).all()
    assert (size["y2"] <= size["height"]).all()


def test_faces_are_where_they_are(every_video: vafer.Results) -> None:
    by_name = {row["video"]: row for row in every_video.videos.iter_rows(named=True)}
    assert by_name["no_face.mp4"]["n_faces"] == 0
    for video in SINGLE_FACE:
        row = by_name[video]
        assert row["n_frames_with_face"] >= 0.95 * row["n_frames"], video
    for video in SINGLE_FACE[:2]:
        ids = every_video.table.filter(
            (pl.col("video") == video) & pl.col("track_id").is_not_null()
        )["track_id"]
        assert ids.value_counts()["count"].max() >= 0.95 * by_name[video]["n_frames_with_face"]


def test_a_crowd_is_counted(shared: Path, untrained: Path) -> None:
    results = vafer.annotate(
        shared / "videos" / "crowd_1080p.mp4",
        model=untrained,
        detector=shared / "models" / "scrfd_2.5g.onnx",
        sampling=Sampling(every=3),
    )
    per_frame = results.table.group_by("frame_index").agg(pl.col("face_index").count())
    assert per_frame["face_index"].is_between(5, 7).mean() > 0.5


def test_the_trained_model_tells_smiling_from_crying(shared: Path) -> None:
    """A woman cries until 5.5 s, looks distressed from 6.5 to 8.8 s, and smiles from 10 s on."""
    results = vafer.annotate(
        shared / "videos" / "smile_cry_smile.mp4",
        detector=shared / "models" / "scrfd_500m.onnx",
        sampling=Sampling(every=2),
    )
    at = results.table["time_s"]
    valence = results.table["valence"]
    cries = [valence.filter(at.is_between(*span)).mean() for span in ((0, 5.5), (6.5, 8.8))]
    assert valence.filter(at >= 10).mean() - max(cries) >= 0.4


def test_squeezed_faces_are_read_as_they_are_displayed(shared: Path, tmp_path: Path) -> None:
    """As in HDV: 1,440 pixels of 1,920, each 4/3 as wide as high."""
    whole = shared / "videos" / "expressive_talk.mp4"
    for name, said in (("squeezed", "4/3"), ("untold", "1")):
        clips.run(
            *("-i", whole, "-an", "-vf", f"scale=iw*3/4:ih,setsar={said}"),
            *("-c:v", "libx264", "-preset", "ultrafast", "-crf", "12", tmp_path / f"{name}.mp4"),
        )
    results = vafer.annotate(
        [whole, tmp_path],
        detector=shared / "models" / "scrfd_500m.onnx",
        sampling=Sampling(every=6),
    )
    assert results.videos["pixel_aspect"].to_list() == pytest.approx([1, 4 / 3, 1])
    faces = results.table.filter(face_index=0).pivot(
        "video", index="frame_index", values=["valence", "arousal"]
    )
    assert len(faces) >= 25

    def apart(value: str, name: str) -> float:
        return (faces[f"{value}_{name}.mp4"] - faces[f"{value}_{whole.name}"]).abs().median()

    for value in ("valence", "arousal"):
        assert apart(value, "squeezed") <= 0.03
        assert apart(value, "squeezed") < apart(value, "untold") / 1.5


def test_two_runs_give_equal_tables_and_batches_do_not_matter(
    sample: Path, untrained: Path, yunet: Path
) -> None:
    tables = [
        vafer.annotate(sample, model=untrained, detector=yunet, batch_size=n).table
        for n in (32, 32, 1)
    ]
    assert tables[0].equals(tables[1])
    values = ["valence", "arousal"]
    assert tables[0].drop(values).equals(tables[2].drop(values))
    for name in values:
        assert tables[0][name].std() > 0.01  # values that vary, so that a mix-up would show
        difference = (tables[0][name] - tables[2][name]).abs().max()
        assert difference <= 1e-4


def test_a_damaged_or_foreign_file_costs_only_itself(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    whole = sample.read_bytes()
    (videos / "b_whole.mp4").write_bytes(whole)
    (videos / "a_text.mp4").write_text("this is no video")
    (videos / "c_empty.mp4").touch()
    write_sample(videos / "d_cut.mkv", seconds=2)
    cut = (videos / "d_cut.mkv").read_bytes()
    (videos / "d_cut.mkv").write_bytes(cut[: len(cut) // 2])
    out = tmp_path / "results.parquet"
    results = vafer.annotate(videos, out, model=untrained, detector=yunet)
    assert results.videos["status"].to_list() == ["failed", "done", "failed", "partial"]
    assert results.n_incomplete == 3
    for row in results.videos.iter_rows(named=True):
        assert (row["error"] is None) == (row["status"] == "done")
    assert "a_text.mp4" in results.videos["error"][0]
    assert results.table["video"].unique().sort().to_list() == ["b_whole.mp4", "d_cut.mkv"]
    assert results.table.filter(pl.col("video") == "b_whole.mp4")["frame_index"].n_unique() == 50
    n_cut = results.table.filter(pl.col("video") == "d_cut.mkv")["frame_index"].n_unique()
    assert 5 < n_cut < 50


def test_a_second_run_does_only_what_is_not_done(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "results.parquet"
    videos.mkdir()
    for name in ("a.mp4", "c.mp4"):
        (videos / name).symlink_to(sample)
    options = {"model": untrained, "detector": yunet, "workers": 1}

    def interrupt(progress: vafer.annotation.Progress) -> None:
        if progress.n_done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vafer.annotate(videos, out, on_progress=interrupt, **options)
    assert not out.exists()
    assert len(list((tmp_path / "results.parquet.parts").iterdir())) == 1

    done: list[str] = []
    real = annotation.probe
    monkeypatch.setattr(annotation, "probe", lambda path: done.append(path.name) or real(path))
    results = vafer.annotate(videos, out, **options)
    assert done == ["c.mp4"]
    assert results.n_skipped == 1
    (videos / "b.mp4").symlink_to(sample)
    results = vafer.annotate(videos, out, **options)
    assert done == ["c.mp4", "b.mp4"]
    assert results.table.group_by("video").len().sort("video").rows() == [
        ("a.mp4", 50),
        ("b.mp4", 50),
        ("c.mp4", 50),
    ]
    with pytest.raises(UsageError, match="--every 1 against 2"):
        vafer.annotate(videos, out, sampling=Sampling(every=2), **options)
    fresh = vafer.annotate(videos, out, sampling=Sampling(every=2), overwrite=True, **options)
    assert len(fresh.table) == 75


def test_a_folder_gets_one_table_a_recording(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos" / "day1").mkdir(parents=True)
    (tmp_path / "videos" / "day1" / "a.mp4").symlink_to(sample)
    out = tmp_path / "results"
    results = vafer.annotate(tmp_path / "videos", out, model=untrained, detector=yunet)
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert files == ["_videos.parquet", "day1/a.mp4.parquet"]
    assert results.table["video"].unique().to_list() == ["day1/a.mp4"]


def test_a_folder_of_pictures_has_indices_and_no_times(
    shared: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    picture = (shared / "faces" / "six_faces.jpg").read_bytes()
    for number in (2, 10, 1):
        (folder / f"{number}.jpg").write_bytes(picture)
    results = vafer.annotate(folder, model=untrained, detector=yunet)
    assert results.table["frame_index"].to_list() == [0] * 6 + [1] * 6 + [2] * 6
    assert results.table["pts"].null_count() == 18
    assert results.table["time_s"].null_count() == 18
    assert results.table["track_id"].n_unique() == 6
    assert results.videos.row(0, named=True)["decoder"] == "pictures"


def test_provenance_says_how_a_number_came_to_be(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    options = DetectorOptions(size=320, threshold=0.6, max_faces=1)
    vafer.annotate(sample, out, model=untrained, detector=yunet, detection=options)
    found = json.loads(pq.read_metadata(out).metadata[b"vafer"])
    assert found["schema_version"] == 1
    (run,) = found["runs"]
    assert run["vafer"] == vafer.__version__
    for what, path in (("model", untrained), ("detector", yunet)):
        digest = annotation.sha256(path)
        assert run[what] == {"name": path.stem, "sha256": digest, "origin": "file"}
    assert run["options"]["detect"] == "full"  # what auto is with this detector
    assert run["options"]["det_size"] == 320
    assert run["options"]["det_max_faces"] == 1
    asked = {
        name for option in get_command(cli.app).commands["annotate"].params for name in option.opts
    }
    for key in run["options"]:  # each is called as it is asked, where two runs differ in it
        called, *_ = differences({"options": {key: 1}}, {"options": {key: 2}}).split()
        assert called in asked
    assert run["environment"]["torch"] == torch.__version__
    row = pl.read_parquet(tmp_path / "r.videos.parquet").row(0, named=True)
    assert row["sha256"] == annotation.sha256(sample)
    assert row["size_bytes"] == sample.stat().st_size
    assert (row["width"], row["height"], row["rotation"], row["codec"]) == (640, 360, 0, "h264")
    assert row["fps"] == 25
    assert row["n_frames"] == row["n_frames_analysed"] == 50


def test_the_table_says_how_faces_were_looked_for(
    sample: Path, untrained: Path, yunet: Path
) -> None:
    how = {"model": untrained, "detector": yunet}
    full = vafer.annotate(sample, detect="full", **how).table
    search = vafer.annotate(sample, detect="search", **how).table
    assert full["face_source"].drop_nulls().unique().to_list() == ["full"]
    counts = dict(search["face_source"].drop_nulls().value_counts().iter_rows())
    assert counts["search"] > counts["full"] > 0
    # The same faces, nearly in the same places.
    for column in ("frame_index", "face_index", "track_id"):
        assert search[column].to_list() == full[column].to_list(), column
    sides = full.select("x1", "y1", "x2", "y2").drop_nulls().to_numpy()
    apart = np.abs(search.select("x1", "y1", "x2", "y2").drop_nulls().to_numpy() - sides)
    assert np.median(apart) < 0.03 * np.median(sides[:, 2] - sides[:, 0])


def test_auto_searches_only_with_detectors_for_which_both_ways_agree(
    sample: Path, untrained: Path, shared: Path
) -> None:
    models, both = shared / "models", {"full", "search"}
    for detector, expected in (
        (None, both),
        (models / "scrfd_500m.onnx", both),
        (models / "yunet_n_dynamic.onnx", {"full"}),
    ):
        results = vafer.annotate(sample, model=untrained, detector=detector)
        assert {*results.table["face_source"].drop_nulls()} == expected


def test_progress_ends_complete(sample: Path, untrained: Path, yunet: Path, tmp_path: Path) -> None:
    seen: list[annotation.Progress] = []
    out = tmp_path / "r.parquet"
    vafer.annotate(sample, out, model=untrained, detector=yunet, on_progress=seen.append)
    shares = [p.share for p in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert seen[-1] == annotation.Progress(1.0, None, 50, seen[-1].n_faces, 1, 1)
    vafer.annotate(sample, out, model=untrained, detector=yunet, on_progress=seen.append)
    assert seen[-1] == annotation.Progress(1.0, None, 0, 0, 0, 0)  # nothing was to do


def test_what_cannot_be_done_is_said_before_anything_is_done(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    for error, match, change in (
        (UsageError, "batch size", {"batch_size": 0}),
        (UsageError, "device", {"device": "tpu"}),
        (UsageError, "expected auto, full, search", {"detect": "fast"}),
        (UsageError, "device", {"device": "mps"}),
        (ModelError, "no such", {"model": "missing.safetensors"}),
        (ModelError, "no such", {"detector": "missing.onnx"}),
    ):
        with pytest.raises(error, match=match):
            vafer.annotate(sample, out, **{"model": untrained, "detector": yunet, **change})
    assert not list(tmp_path.iterdir())


def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="CUDA devices"):
        annotation.choose_device(f"cuda:{torch.cuda.device_count()}")
    assert annotation.choose_device("cpu") == "cpu"
    assert annotation.choose_device("auto") in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["r.parquet", "run:1.parquet", "out", "o:2", "caf\udce9.parquet"])
def test_any_name_can_be_an_output_even_where_every_recording_fails(
    untrained: Path, yunet: Path, tmp_path: Path, name: str
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    results = vafer.annotate(broken, tmp_path / name, model=untrained, detector=yunet)
    assert results.videos["status"].to_list() == ["failed"]
    assert results.n_incomplete == 1
    assert len(results.table) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_recording_takes_as_long_as_it_is_at_work(
    workers: int,
    sample: Path,
    untrained: Path,
    yunet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly(source: Source) -> str:
        time.sleep(0.5)
        return source_sha256(source)

    for module in (annotation, staged):
        monkeypatch.setattr(module, "source_sha256", slowly)
    for name in "abc":
        shutil.copy(sample, tmp_path / f"{name}.mp4")
    started = time.perf_counter()
    videos = vafer.annotate(
        tmp_path, model=untrained, detector=yunet, sampling=Sampling(every=25), workers=workers
    ).videos
    assert videos["elapsed_s"].min() >= 0.5
    assert videos["elapsed_s"].sum() <= workers * (time.perf_counter() - started)


def test_a_link_to_nothing_fails_with_what_it_names(
    untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").symlink_to("gone.mp4")
    (row,) = vafer.annotate(tmp_path, model=untrained, detector=yunet).videos.rows(named=True)
    assert (row["status"], row["size_bytes"], row["sha256"]) == ("failed", None, None)
    assert row["error"].endswith("a.mp4: links to gone.mp4: no such file or directory")


def test_a_recording_out_of_reach_keeps_its_rows(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.mp4"
    disk.symlink_to(sample)
    videos, out = tmp_path / "videos", tmp_path / "r.parquet"
    videos.mkdir()
    (videos / "a.mp4").symlink_to(disk)
    options = {"model": untrained, "detector": yunet, "sampling": Sampling(end_s=0.2)}
    first = vafer.annotate(videos, out, **options)
    before = out.read_bytes()
    disk.unlink()
    again = vafer.annotate(videos, out, **options)
    assert again.n_skipped == 1
    assert again.table.equals(first.table)
    assert out.read_bytes() == before  # nothing to do, nothing written


def test_a_recording_that_vanishes_on_the_way_costs_only_itself(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).symlink_to(sample)
    real = annotation.probe

    def vanishing(path: Path) -> VideoInfo:
        info = real(path)
        if path.name == "a.mp4":
            path.unlink()
        return info

    monkeypatch.setattr(annotation, "probe", vanishing)
    results = vafer.annotate(
        tmp_path, model=untrained, detector=yunet, sampling=Sampling(every=9), workers=1
    )
    assert results.videos["status"].to_list() == ["failed", "done"]
    assert "a.mp4" in results.videos["error"][0]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("detect", "does not fit into the memory of the GPU"),
        ("__iter__", "a.mp4: ZeroDivision"),
        ("probe", "a.mp4: ZeroDivision"),
    ],
)
def test_what_goes_wrong_with_one_costs_only_itself_with_one_worker_too(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    what: str, says: str,
) -> None:  # fmt: skip
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).symlink_to(sample)
    owners: dict = {"detect": annotation.Detector, "__iter__": annotation.VideoReader}
    owner = owners.get(what, annotation)
    real, calls = getattr(owner, what), list[int]()

    def once(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError if what == "detect" else ZeroDivisionError
        return real(*arguments)

    monkeypatch.setattr(owner, what, once)
    results = vafer.annotate(
        tmp_path, model=untrained, detector=yunet, sampling=Sampling(every=9), workers=1,
        detect="full",
    )  # fmt: skip
    assert results.videos["status"].to_list() == ["failed", "done"]
    assert says in results.videos["error"][0]


def test_names_that_are_too_long_are_refused(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    for name in (f"{'x' * 246}.parquet", f"{'x' * 300}.parquet"):
        with pytest.raises(UsageError, match="cannot be"):
            vafer.annotate(sample, tmp_path / name, model=untrained, detector=yunet)
    assert not list(tmp_path.iterdir())


def test_a_start_beyond_the_end_gives_no_rows_and_no_error(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    options = {"model": untrained, "detector": yunet, "sampling": Sampling(start_s=50)}
    results = vafer.annotate(sample, out, **options)
    assert results.videos["status"].to_list() == ["done"]
    assert results.table.schema == pl.DataFrame(SCHEMA.empty_table()).schema
    (tmp_path / "b.mp4").symlink_to(sample)
    results = vafer.annotate([sample, tmp_path / "b.mp4"], out, **options)
    assert results.videos["n_frames_analysed"].to_list() == [0, 0]


def test_a_detector_without_landmarks_is_refused_before_any_work(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(self: annotation.Detector, *args: object, **kwargs: object) -> None:
        real(self, *args, **kwargs)
        self.has_landmarks = False

    real = annotation.Detector.__init__
    monkeypatch.setattr(annotation.Detector, "__init__", without)
    with pytest.raises(ModelError, match="without landmarks"):
        vafer.annotate(sample, tmp_path / "r.parquet", model=untrained, detector=yunet)
    assert not list(tmp_path.iterdir())
