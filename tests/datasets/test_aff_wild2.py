import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import trees
from tests.datasets.opening import labels_of, located, opened, refusal

HEADER = "valence,arousal\n"


def label_file(root: Path, video: str = "video1") -> Path:
    return next(root.rglob(f"VA_Set/*/{video}.txt"))


def rewrite(root: Path, edit: Callable[[str], str]) -> Path:
    """The label file of the first video, changed by edit."""
    path = label_file(root)
    path.write_bytes(edit(path.read_text()).encode())
    return path


def line_5(text: str, line: str) -> str:
    lines = text.split("\n")
    return "\n".join([*lines[:4], line, *lines[5:]])


@pytest.mark.parametrize("layout", [{}, {"train": "Training_Set"}])
def test_labels_and_pictures(tmp_path: Path, layout: dict[str, Any]) -> None:
    labels = trees.aff_wild2(tmp_path, **layout)
    dataset, notices = opened("aff-wild2", tmp_path)
    assert labels_of(dataset) == labels
    assert notices == ["10 of 100 frames are marked invalid (-5)"]
    assert dataset.facts == {"n_videos": 5, "n_invalid": 10}
    assert (dataset.units, dataset.frames_in, dataset.is_cropped) == (None, "pictures", True)
    splits = dict(dataset.labels.select("video", "split").unique().rows())
    names = ["train"] * 3 + ["validation"] * 2
    assert splits == {f"video{i + 1}": name for i, name in enumerate(names)}
    assert dataset.recordings == {name: f"cropped_aligned/{name}" for name in splits}
    for row in located(dataset).rows(named=True):
        name = f"cropped_aligned/{row['video']}/{row['frame_index'] + 1:05}.jpg"
        assert row["path"] == (None if row["frame_index"] == 6 else name)
        assert row["x1"] is row["landmarks"] is None
    numbers = dataset.picture_numbers("video1")
    assert numbers is not None
    assert numbers.tolist() == [i for i in range(20) if i != 6]
    assert dataset.picture_numbers("another") is None


@pytest.mark.parametrize("line", ["-5,-5", "-5,0.5", "0.5,-5", "-5.0, -5.00", "-5e0,0.1"])
def test_a_sentinel_in_either_column_drops_the_frame(tmp_path: Path, line: str) -> None:
    labels = trees.aff_wild2(tmp_path, with_pictures=False)
    rewrite(tmp_path, lambda text: line_5(text, line))
    assert labels_of(opened("aff-wild2", tmp_path)[0]) == labels  # line 5 was marked before


def test_columns_go_by_name(tmp_path: Path) -> None:
    labels = trees.aff_wild2(tmp_path, with_pictures=False)

    def swap(text: str) -> str:
        return "".join(",".join(line.split(",")[::-1]) + "\n" for line in text.splitlines())

    rewrite(tmp_path, swap)
    assert label_file(tmp_path).read_text().startswith("arousal,valence\n")
    assert labels_of(opened("aff-wild2", tmp_path)[0]) == labels


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n \n",
        lambda text: text.rstrip(),
        lambda text: text.replace(",", " , ").replace("valence", "Valence"),
    ],
)
def test_other_ways_to_write_lines(tmp_path: Path, edit: Callable[[str], str]) -> None:
    labels = trees.aff_wild2(tmp_path, with_pictures=False)
    rewrite(tmp_path, edit)
    assert labels_of(opened("aff-wild2", tmp_path)[0]) == labels


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: line_5(text, "0.1,1.01"), ", line 5: arousal is '1.01'; expected a number"),
        (lambda text: line_5(text, "-4.9,0"), ", line 5: valence is '-4.9'; expected a number"),
        (lambda text: line_5(text, "nan,0"), ", line 5: valence is 'nan'; expected"),
        (lambda text: line_5(text, "0,-inf"), ", line 5: arousal is '-inf'; expected"),
        (lambda text: line_5(text, "0,"), ", line 5: arousal is empty; expected"),
        (lambda text: line_5(text, "-2,0"), "-1 to 1, or -5 for one without a label. Get the"),
        (lambda text: line_5(text, "0.1"), ", line 5: found '0.1'; expected two numbers with a"),
        (lambda text: line_5(text, ""), ", line 5: found empty; expected two numbers"),
        (lambda text: line_5(text, "0.1,0.2,0.3"), ", line 5: found '0.1,0.2,0.3'; expected two"),
        (lambda text: line_5(text, "0.1;0.2"), ", line 5: found '0.1;0.2'; expected two"),
        (lambda text: text.removeprefix(HEADER), ", line 1: found '0.137,-0.2302'; expected val"),
        (lambda text: "valence,anger\n", ", line 1: found 'valence,anger'; expected valence,arou"),
        (lambda text: "valence;arousal\n", ", line 1: found 'valence;arousal'; expected valence,"),
        (lambda text: "", ", line 1: found empty; expected valence,arousal"),
        (lambda text: HEADER, ": found a header alone; expected a line a frame"),
    ],
)
def test_lines_that_are_no_labels(tmp_path: Path, edit: Callable[[str], str], words: str) -> None:
    trees.aff_wild2(tmp_path, with_pictures=False)
    path = rewrite(tmp_path, edit)
    text = refusal("aff-wild2", tmp_path)
    assert text.startswith(str(path))
    assert words in text


def test_no_frame_with_a_label(tmp_path: Path) -> None:
    trees.aff_wild2(tmp_path, n_train=1, n_validation=0, with_pictures=False)
    rewrite(tmp_path, lambda text: HEADER + "-5,-5\n" * 3)
    assert "found no frame of aff-wild2 with a label" in refusal("aff-wild2", tmp_path)


@pytest.mark.parametrize("n_beyond", [1, 3])
def test_a_few_pictures_beyond_the_labels(tmp_path: Path, n_beyond: int) -> None:
    labels = trees.aff_wild2(tmp_path)
    path = rewrite(tmp_path, lambda text: "\n".join(text.split("\n")[: 21 - n_beyond]))
    dataset, notices = opened("aff-wild2", tmp_path)
    rows = located(dataset)
    assert len(rows) == len(labels) - n_beyond
    folder = tmp_path / "cropped_aligned/video1"
    assert notices[1:] == [
        f"{path} labels {20 - n_beyond} frames, {folder} holds pictures up to 20: those beyond are "
        "left out"
    ]


def test_many_pictures_beyond_the_labels(tmp_path: Path) -> None:
    trees.aff_wild2(tmp_path)
    path = rewrite(tmp_path, lambda text: "\n".join(text.split("\n")[:17]))
    text = refusal("aff-wild2", tmp_path, by_locate=True)
    folder = tmp_path / "cropped_aligned/video1"
    assert f"{path} labels 16 frames, {folder} holds pictures up to 20; expected no more" in text


def test_labels_beyond_the_pictures(tmp_path: Path) -> None:
    trees.aff_wild2(tmp_path)
    rewrite(tmp_path, lambda text: text + "0.5,0.5\n" * 50)
    rows = located(opened("aff-wild2", tmp_path)[0]).filter(video="video1")
    assert rows["path"].is_null().to_list() == [i in (5, *range(18, 68)) for i in range(68)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("00000.jpg", "00000.jpg: found a picture so called; expected numbers alone, from 00001"),
        ("1.jpg", "found two pictures of one number; expected one. Remove one"),
        ("00001.png", "00001.jpg and 00001.png: found two pictures of one number"),
        ("9" * 12 + ".jpg", "found a picture so called; expected numbers"),
        ("000999999.jpg", "holds pictures up to 999,999; expected"),
    ],
)
def test_odd_pictures(tmp_path: Path, name: str, words: str) -> None:
    trees.aff_wild2(tmp_path)
    (tmp_path / "cropped_aligned/video1" / name).touch()
    assert words in refusal("aff-wild2", tmp_path, by_locate=True)


def test_pictures_under_other_names(tmp_path: Path) -> None:
    trees.aff_wild2(tmp_path)
    for path in (tmp_path / "cropped_aligned/video1").iterdir():
        path.rename(path.with_stem(f"frame_{path.stem}"))
    text = refusal("aff-wild2", tmp_path, by_locate=True)
    assert "frame_00001.jpg: found a picture so called; expected numbers alone" in text


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    labels = trees.aff_wild2(tmp_path)
    for name in ("cropped_aligned/.DS_Store", "cropped_aligned/video1/._00001.jpg"):
        (tmp_path / name).touch()
    for name in ("._video1.txt", "video1.csv"):
        (tmp_path / "VA_Set/Train_Set" / name).touch()
    dataset, _ = opened("aff-wild2", tmp_path)
    assert labels_of(dataset) == labels
    assert located(dataset)["path"].null_count() == 5


def test_two_people_in_one_video(tmp_path: Path) -> None:
    labels = trees.aff_wild2(tmp_path, sides=True)
    dataset, _ = opened("aff-wild2", tmp_path)
    assert labels_of(dataset) == labels
    assert {"video5_left", "video5_right"} <= {video for video, _ in labels}
    rows = located(dataset)
    for side in ("left", "right"):
        assert dataset.recordings[f"video5_{side}"] == "cropped_aligned/video5"
        paths = rows.filter(video=f"video5_{side}")["path"]
        assert paths[0] == "cropped_aligned/video5/00001.jpg"
    shutil.copytree(tmp_path / "cropped_aligned/video5", tmp_path / "cropped_aligned/video5_right")
    dataset, _ = opened("aff-wild2", tmp_path)
    assert dataset.recordings["video5_left"] == "cropped_aligned/video5"
    assert dataset.recordings["video5_right"] == "cropped_aligned/video5_right"


def test_a_video_in_both_sets(tmp_path: Path) -> None:
    trees.aff_wild2(tmp_path, with_pictures=False)
    path = label_file(tmp_path)
    copy = shutil.copy(path, tmp_path / "VA_Set/Validation_Set" / path.name)
    text = refusal("aff-wild2", tmp_path)
    assert f"found video1 in both sets, {path} and {copy}; expected it in one" in text


def test_two_sets_for_training(tmp_path: Path) -> None:
    trees.aff_wild2(tmp_path, with_pictures=False)
    (tmp_path / "VA_Set/Training_Set").mkdir()
    assert "VA_Set: found Train_Set and Training_Set; expected one" in refusal(
        "aff-wild2", tmp_path
    )


def test_one_set_alone(tmp_path: Path) -> None:
    trees.aff_wild2(tmp_path, with_pictures=False)
    shutil.rmtree(tmp_path / "VA_Set/Validation_Set")
    _, notices = opened("aff-wild2", tmp_path)
    assert notices[-1] == f"{tmp_path}/VA_Set holds no labels of the validation set"
    for path in (tmp_path / "VA_Set/Train_Set").iterdir():
        path.unlink()
    text = refusal("aff-wild2", tmp_path)
    assert "VA_Set/Train_Set: found nothing; expected a text file a video" in text


def test_missing_and_empty_folders_of_pictures(tmp_path: Path) -> None:
    trees.aff_wild2(tmp_path)
    shutil.rmtree(tmp_path / "cropped_aligned/video2")
    for path in (tmp_path / "cropped_aligned/video3").iterdir():
        path.unlink()
    dataset, _ = opened("aff-wild2", tmp_path)
    rows = located(dataset, must_exist=False)
    gone = dict(rows.filter(rows["path"].is_null())["video"].value_counts().rows())
    assert gone == {"video1": 1, "video2": 18, "video3": 18, "video4": 1, "video5": 1}
    text = refusal("aff-wild2", tmp_path, by_locate=True)
    assert "2 of 5 folders of pictures are missing or empty: cropped_aligned/video2, cropp" in text
    only = dataset.labels.filter(video="video1")
    assert len(dataset.locate(only, must_exist=True)) == 18
    shutil.rmtree(tmp_path / "cropped_aligned")
    (tmp_path / "cropped_aligned.zip").touch()
    dataset, _ = opened("aff-wild2", tmp_path)
    assert located(dataset, must_exist=False)["path"].is_null().all()
    assert dataset.picture_numbers("video1") is None
    text = refusal("aff-wild2", tmp_path, by_locate=True)
    assert "5 of 5 folders" in text
    assert "Unpack cropped_aligned.zip there first" in text


def test_the_labels_folder_as_root(tmp_path: Path) -> None:
    labels = trees.aff_wild2(tmp_path)
    dataset, _ = opened("aff-wild2", tmp_path / "VA_Set")
    assert labels_of(dataset) == labels
    assert "found Train_Set/, Validation_Set/" not in refusal(
        "aff-wild2", tmp_path / "VA_Set", by_locate=True
    )
    assert "expected VA_Set/ with one of" in refusal("aff-wild2", tmp_path / "VA_Set/Train_Set")
