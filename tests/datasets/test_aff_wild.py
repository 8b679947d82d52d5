import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests import clips, trees
from tests.datasets.opening import labels_of, located, opened, refusal
from vafer.datasets import open_dataset
from vafer.datasets.labels import five_points
from vafer.errors import UsageError

BOX = ("x1", "y1", "x2", "y2")


def annotation(root: Path, name: str = "valence", video: str = "105") -> Path:
    return root / "annotations/train" / name / f"{video}.txt"


def lines_of(path: Path, edit: Callable[[list[str]], list[str]]) -> Path:
    path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))
    return path


def cut_both(root: Path, by: int) -> None:
    """The labels of video 105 get shorter by so many lines, or longer where by is negative."""
    for name in ("valence", "arousal"):
        lines_of(annotation(root, name), lambda lines: (lines + ["0.5"] * 9)[: len(lines) - by])


@pytest.mark.parametrize(
    "layout",
    [{}, {"nested": trees.NESTED}, {"faces": ("landmarks", "bboxs")}, {"train": "train/train"}],
)
def test_labels_faces_and_videos(tmp_path: Path, layout: dict[str, Any]) -> None:
    labels = trees.aff_wild(tmp_path, **layout)
    dataset, notices = opened("aff-wild", tmp_path)
    assert labels_of(dataset) == labels
    assert notices == [f"{tmp_path} holds the labels of 4 of 252 videos"]
    assert (dataset.units, dataset.frames_in, dataset.has_subjects) == ("video", "videos", False)
    assert dataset.labels["split"].is_null().all()
    train = f"videos/{layout.get('train', 'train')}"
    assert dataset.recordings == {
        "105": f"{train}/105.mp4",
        "106": f"{train}/106.avi",
        "107": f"{train}/107.mp4",
        "108": f"{train}/108.avi",
    }
    rows = located(dataset)
    assert len(notices) == 1
    assert rows["path"].to_list() == [dataset.recordings[video] for video in rows["video"]]
    for at in (0, 30, 60, 101):
        row = rows.row(at, named=True)
        video, frame = row["video"], row["frame_index"]
        shot = trees.shoot(
            labels[video, frame], size=(320, 240), person=int(video) - 105, frame=frame
        )
        np.testing.assert_allclose([row[name] for name in BOX], shot.box, atol=1e-3)
        np.testing.assert_allclose(row["landmarks"], five_points(shot.points[None])[0], atol=1e-3)


@pytest.mark.parametrize("by", [1, 3, -1, -3])
def test_labels_that_differ_a_little_are_cut(tmp_path: Path, by: int) -> None:
    trees.aff_wild(tmp_path, n_videos=2, faces=())
    cut_both(tmp_path, by)
    dataset, notices = opened("aff-wild", tmp_path)
    assert dataset.labels["video"].value_counts(sort=True)["count"].sum() == 24 - by + 25
    rows = located(dataset)
    assert len(rows) == min(24, 24 - by) + 25
    assert notices[1:] == [
        f"{annotation(tmp_path)} has {24 - by} lines, 105.mp4 24 frames: cut to the shorter"
    ]


@pytest.mark.parametrize("by", [4, -4])
def test_labels_that_differ_are_refused(tmp_path: Path, by: int) -> None:
    trees.aff_wild(tmp_path, n_videos=2, faces=())
    cut_both(tmp_path, by)
    text = refusal("aff-wild", tmp_path, by_locate=True)
    assert (
        f"{annotation(tmp_path)} has {24 - by} lines, 105.mp4 24 frames; expected as many" in text
    )


def test_other_videos_are_not_counted(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, n_videos=2, faces=())
    cut_both(tmp_path, 4)
    dataset, _ = opened("aff-wild", tmp_path)
    rows = dataset.labels.filter(video="106")
    assert len(dataset.locate(rows, must_exist=True)) == 25


@pytest.mark.parametrize(("by", "is_cut"), [(1, True), (3, True), (4, False)])
@pytest.mark.parametrize("name", ["valence", "arousal"])
def test_valence_and_arousal_of_different_lengths(
    tmp_path: Path, name: str, by: int, is_cut: bool
) -> None:
    labels = trees.aff_wild(tmp_path, n_videos=1, faces=())
    lines_of(annotation(tmp_path, name), lambda lines: lines[:-by])
    n = {"valence": 24, "arousal": 24} | {name: 24 - by}
    words = f"{annotation(tmp_path)} has {n['valence']} lines, that of arousal {n['arousal']}"
    if not is_cut:
        assert f"{words}; expected as many" in refusal("aff-wild", tmp_path)
        return
    dataset, notices = opened("aff-wild", tmp_path)
    assert labels_of(dataset) == {at: v for at, v in labels.items() if at[1] < 24 - by}
    assert notices[0] == f"{words}: cut to the shorter"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("1.01", "'1.01'"),
        ("-1.5", "'-1.5'"),
        ("nan", "'nan'"),
        ("inf", "'inf'"),
        ("-5", "'-5'"),
        ("happy", "'happy'"),
        ("0,5", "'0,5'"),
        ("", "empty"),
        ("0.1 0.2", "'0.1 0.2'"),
        ("x" * 99, f"'{'x' * 59}…"),
        ("0.1\x00", r"'0.1\x00'"),
    ],
)
def test_lines_that_are_no_labels(tmp_path: Path, line: str, found: str) -> None:
    trees.aff_wild(tmp_path, with_videos=False, faces=())
    path = lines_of(annotation(tmp_path, "arousal"), lambda lines: [*lines[:2], line, *lines[3:]])
    words = f"{path}, line 3: arousal is {found}; expected a number from -1 to 1. Get the file anew"
    assert refusal("aff-wild", tmp_path).startswith(words)


def test_a_header_is_no_label(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, with_videos=False, faces=())
    path = lines_of(annotation(tmp_path), lambda lines: ["valence", *lines])
    assert f"{path}, line 1: valence is 'valence'; expected" in refusal("aff-wild", tmp_path)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\r"),
        lambda data: data + b"\n  \n\n",
        lambda data: data.rstrip(b"\n"),
        lambda data: data.replace(b"\n", b"  \n\t"),
    ],
)
def test_other_ways_to_write_lines(tmp_path: Path, rewrite: Callable[[bytes], bytes]) -> None:
    labels = trees.aff_wild(tmp_path, n_videos=1, with_videos=False, faces=())
    for name in ("valence", "arousal"):
        path = annotation(tmp_path, name)
        path.write_bytes(rewrite(path.read_bytes()))
    assert labels_of(opened("aff-wild", tmp_path)[0]) == labels


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "found an empty file; expected valence, a line a frame"),
        (b"\n\n", "found an empty file"),
        (b"0.1\n\xff\n", "found bytes that are no UTF-8, from byte 4 on; expected text"),
        ("0.1\n0.2".encode("utf-16"), "found bytes that are no UTF-8, from byte 0 on"),
    ],
)
def test_files_that_are_no_lines(tmp_path: Path, data: bytes, words: str) -> None:
    trees.aff_wild(tmp_path, with_videos=False, faces=())
    annotation(tmp_path).write_bytes(data)
    assert refusal("aff-wild", tmp_path).startswith(f"{annotation(tmp_path)}: {words}")


def test_a_video_with_half_its_labels(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, with_videos=False, faces=())
    annotation(tmp_path, "arousal", "106").unlink()
    annotation(tmp_path, "valence", "108").unlink()
    text = refusal("aff-wild", tmp_path)
    missing = f"{annotation(tmp_path, 'arousal', '106')}, {annotation(tmp_path, 'valence', '108')}"
    assert f"2 annotations are missing: {missing}; expected each video in valence/ and" in text
    shutil.rmtree(tmp_path / "annotations/train/arousal")
    assert "3 annotations are missing" in refusal("aff-wild", tmp_path)


def test_no_annotations(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, n_videos=1)
    annotation(tmp_path).unlink()
    annotation(tmp_path, "arousal").unlink()
    assert "valence: found nothing; expected a text file a video" in refusal("aff-wild", tmp_path)
    shutil.rmtree(tmp_path / "annotations")
    text = refusal("aff-wild", tmp_path)
    assert "found bboxes/, landmarks/, videos/; expected annotations/train/valence/" in text


def test_missing_videos(tmp_path: Path) -> None:
    labels = trees.aff_wild(tmp_path, n_videos=3)
    (tmp_path / "videos/train/106.avi").unlink()
    dataset, _ = opened("aff-wild", tmp_path)
    rows = located(dataset, must_exist=False)
    assert len(rows) == len(labels)
    assert set(rows.filter(rows["path"].is_null())["video"]) == {"106"}
    text = refusal("aff-wild", tmp_path, by_locate=True)
    assert f"{tmp_path}: 1 of 3 videos are missing: videos/train/106.mp4 or .avi. Finish" in text
    shutil.rmtree(tmp_path / "videos")
    (tmp_path / "videos.zip").touch()
    dataset, _ = opened("aff-wild", tmp_path)
    assert located(dataset, must_exist=False)["path"].is_null().all()
    assert "Unpack videos.zip there first" in refusal("aff-wild", tmp_path, by_locate=True)


def test_two_videos_of_one_name(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, n_videos=1)
    shutil.copy(tmp_path / "videos/train/105.mp4", tmp_path / "videos/train/105.avi")
    text = refusal("aff-wild", tmp_path)
    assert f"{tmp_path}/videos/train/105.avi and 105.mp4: found two videos for the" in text


def test_a_video_that_is_none(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, n_videos=2)
    (tmp_path / "videos/train/105.mp4").write_text("an error page")
    dataset, _ = opened("aff-wild", tmp_path)
    message = r"1 of 2 videos cannot be read: .*105\.mp4: no video container.*Finish the download"
    with pytest.raises(UsageError, match=message):
        located(dataset)
    rows = dataset.locate(dataset.labels, must_exist=False)
    assert set(rows.filter(pl.col("path").is_null())["video"]) == {"105"}


def test_files_of_no_video(tmp_path: Path) -> None:
    labels = trees.aff_wild(tmp_path, n_videos=2)
    for path in ("videos/train/notes.txt", "videos/train/._105.mp4", "videos/train/999.mp4"):
        (tmp_path / path).touch()
    for path in (annotation(tmp_path).with_name("._105.txt"), annotation(tmp_path).parent / "x.md"):
        path.touch()
    dataset, _ = opened("aff-wild", tmp_path)
    assert labels_of(dataset) == labels
    assert len(located(dataset)) == len(labels)


def test_a_box_that_is_given_goes_before_one_drawn(tmp_path: Path) -> None:
    labels = trees.aff_wild(tmp_path, n_videos=1)
    (tmp_path / "bboxes/train/105/3.pts").unlink()
    (tmp_path / "landmarks/train/105/4.pts").unlink()
    rows = located(opened("aff-wild", tmp_path)[0])
    points = trees.shoot(labels["105", 3], size=(320, 240), frame=3).points
    drawn = [*points.min(axis=0), *points.max(axis=0)]
    np.testing.assert_allclose(rows.select(BOX).row(3), drawn, atol=1e-3)
    assert rows["landmarks"].is_null().arg_true().to_list() == [4]
    box = trees.shoot(labels["105", 4], size=(320, 240), frame=4).box
    np.testing.assert_allclose(rows.select(BOX).row(4), box, atol=1e-3)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_the_corners_of_a_box_may_start_anywhere(tmp_path: Path, turn: int) -> None:
    labels = trees.aff_wild(tmp_path, n_videos=1, faces=("bboxes",))
    box = trees.shoot(labels["105", 0], size=(320, 240)).box
    corners = np.roll(trees.corners(box), turn, axis=0)[:: 1 if turn % 2 else -1]
    trees.write_pts(tmp_path / "bboxes/train/105/0.pts", corners)
    rows = located(opened("aff-wild", tmp_path)[0])
    np.testing.assert_allclose(rows.select(BOX).row(0), box, atol=1e-3)
    assert rows["landmarks"].is_null().all()


def test_points_that_count_from_one(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path / "from 0", n_videos=2)
    trees.aff_wild(tmp_path / "from 1", n_videos=2, first_number=1)
    expected = located(opened("aff-wild", tmp_path / "from 0")[0])
    dataset, notices = opened("aff-wild", tmp_path / "from 1")
    assert located(dataset).equals(expected)
    assert not notices[1:]  # the last number is that of frames, so it cannot be otherwise
    for path in (tmp_path / "from 1").rglob("*.pts"):
        if int(path.stem) > 20:
            path.unlink()
    dataset, notices = opened("aff-wild", tmp_path / "from 1")
    faces = located(dataset).filter(pl.col("landmarks").is_not_null())
    assert faces.equals(expected.filter(pl.col("frame_index") < 20))
    assert len(notices) == 3
    assert "bboxes: no file is called 0" in notices[2]
    assert "they are taken to count from 1" in notices[2]


def test_points_of_another_video_tell_where_they_count_from(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, n_videos=2, faces=("bboxes",))
    (tmp_path / "bboxes/train/106/0.pts").unlink()
    dataset, _ = opened("aff-wild", tmp_path)
    rows = dataset.locate(dataset.labels.filter(video="106"), must_exist=True)
    assert rows["x1"].is_null().arg_true().to_list() == [0]


def test_no_faces(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, n_videos=1, faces=("bboxes",))
    shutil.rmtree(tmp_path / "bboxes/train/105")
    rows = located(opened("aff-wild", tmp_path)[0])
    assert rows.select(BOX).null_count().row(0) == (24,) * 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "0 points"),
        ("n_points: 4 { 1 2 3 4 5 6 7 }", "3.5 points"),
        ("n_points: 4 { 1 2 3 4 5 6 7 8", "0 points"),
        ("n_points: 4 { 1 2 3 4 5 6 7 x }", "0 points"),
        ("n_points: 4 { 1 2 3 4 5 6 7 1e300 }", "a point that is no number of pixels"),
        ("n_points: 4 { 1 2 3 4 5 6 7 nan }", "a point that is no number of pixels"),
        ("n_points: 68 {" + " 1" * 136 + "}", "68 points"),
    ],
)
def test_files_that_are_no_box(tmp_path: Path, text: str, found: str) -> None:
    trees.aff_wild(tmp_path, n_videos=1, faces=("bboxes",))
    path = tmp_path / "bboxes/train/105/5.pts"
    path.write_text(text)
    words = f"{path}: found {found}; expected `n_points: 4` and as many lines"
    assert refusal("aff-wild", tmp_path, by_locate=True).startswith(words)


def test_two_boxes_of_one_frame(tmp_path: Path) -> None:
    trees.aff_wild(tmp_path, n_videos=1, faces=("bboxes",))
    folder = tmp_path / "bboxes/train/105"
    shutil.copy(folder / "5.pts", folder / "005.pts")
    text = refusal("aff-wild", tmp_path, by_locate=True)
    assert "found two files of one frame; expected one" in text
    assert "005.pts" in text


def test_two_copies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        trees.aff_wild(tmp_path / name, n_videos=1, with_videos=False, faces=())
    assert "found annotations more than once" in refusal("aff-wild", tmp_path)
    open_dataset("aff-wild", tmp_path / "a")


@pytest.mark.parametrize("video", ["105.mp4", "106.avi"])
def test_a_video_that_is_cut_off_though_its_header_is_whole(video: str, tmp_path: Path) -> None:
    """Headers keep the number of frames; what they point at is no longer in the file."""
    trees.aff_wild(tmp_path, n_videos=2, n_frames=60)
    path = tmp_path / "videos" / "train" / video
    if path.suffix == ".mp4":  # with its index first, as for the web
        clips.run("-i", path, "-c", "copy", "-movflags", "faststart", tmp_path / "fast.mp4")
        (tmp_path / "fast.mp4").replace(path)
    located(opened("aff-wild", tmp_path)[0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UsageError, match=rf"has 6[01] lines, {video} \d+ frames; expected as many"):
        located(opened("aff-wild", tmp_path)[0])
