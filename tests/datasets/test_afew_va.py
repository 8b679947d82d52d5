import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import trees
from tests.datasets.opening import labels_of, located, opened, refusal
from vafer.datasets.labels import five_points

Edit = Callable[[dict[str, Any]], Any]


def change(root: Path, edit: Edit, video: str = "001") -> Path:
    """The JSON file of a clip, changed by edit."""
    path = next(root.rglob(f"{video}.json"))
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("layout", [{}, {"in_parts": False}, {"suffix": ".jpg"}])
def test_labels_faces_and_pictures(tmp_path: Path, layout: dict[str, Any]) -> None:
    labels = trees.afew_va(tmp_path, n_frames=12, **layout)
    dataset, notices = opened("afew-va", tmp_path)
    assert labels_of(dataset) == labels
    assert notices == [
        f"{tmp_path} holds 6 of AFEW-VA's 600 clips: scores on them are not those of the whole"
    ]
    assert (dataset.units, dataset.frames_in, dataset.is_cropped) == ("subject", "pictures", False)
    subjects = dict(dataset.labels.select("video", "subject").rows())
    assert subjects == {f"{i + 1:03}": f"Actor {i % 3 + 1}" for i in range(6)}
    assert dataset.labels["split"].is_null().all()

    row = located(dataset).row(14, named=True)  # of clip 002, whose person is 1
    assert (row["video"], row["frame_index"]) == ("002", 2)
    shot = trees.shoot(labels["002", 2], person=1, frame=2)
    low, high = shot.points.min(axis=0), shot.points.max(axis=0)
    box = [row[name] for name in ("x1", "y1", "x2", "y2")]
    np.testing.assert_allclose(box, [*low, *high], atol=1e-3)
    np.testing.assert_allclose(row["landmarks"], five_points(shot.points[None])[0], atol=1e-3)
    folder = "01/002" if layout.get("in_parts", True) else "002"
    assert row["path"] == f"{folder}/00002{layout.get('suffix', '.png')}"
    assert dataset.recordings["002"] == folder


def test_keys_are_numbers_not_text(tmp_path: Path) -> None:
    labels = trees.afew_va(tmp_path, n_actors=1, clips_per_actor=1, n_frames=12)

    def rename(values: dict[str, Any]) -> None:
        frames = values["frames"]
        values["frames"] = {str(int(key)): frames[key] for key in sorted(frames, reverse=True)}

    change(tmp_path, rename)
    dataset, _ = opened("afew-va", tmp_path)
    assert labels_of(dataset) == labels
    assert located(dataset)["path"].to_list()[9:] == [f"01/001/000{n:02}.png" for n in (9, 10, 11)]


def test_frames_count_from_the_first_picture(tmp_path: Path) -> None:
    trees.afew_va(tmp_path, n_actors=1, clips_per_actor=1)
    (tmp_path / "01/001/00000.png").unlink()
    change(tmp_path, lambda values: values["frames"].pop("00000"))
    rows = located(opened("afew-va", tmp_path)[0])
    assert rows["frame_index"].to_list() == [0, 1, 2]
    assert rows["path"][0] == "01/001/00001.png"


def test_frames_without_landmarks(tmp_path: Path) -> None:
    trees.afew_va(tmp_path, n_actors=1, clips_per_actor=2)
    change(tmp_path, lambda values: values["frames"]["00001"].pop("landmarks"))
    change(tmp_path, lambda v: [f.update(landmarks=[]) for f in v["frames"].values()], "002")
    rows = located(opened("afew-va", tmp_path)[0])
    assert rows["landmarks"].is_null().to_list() == [False, True, False, False, *[True] * 4]
    assert rows["x1"].is_null().to_list() == [False, True, False, False, *[True] * 4]
    assert rows["path"].null_count() == 0


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda v: v["frames"]["00002"].update(valence=11), "valence of frame 00002 is 11"),
        (lambda v: v["frames"]["00002"].update(arousal=-10.5), "arousal of frame 00002 is -10.5"),
        (
            lambda v: v["frames"]["00000"].update(valence=float("nan")),
            "valence of frame 00000 is n",
        ),
        (
            lambda v: v["frames"]["00000"].update(valence=float("inf")),
            "valence of frame 00000 is i",
        ),
        (lambda v: v["frames"]["00000"].update(valence="3"), "valence of frame 00000 is '3'"),
        (lambda v: v["frames"]["00000"].update(valence=True), "valence of frame 00000 is True"),
        (lambda v: v["frames"]["00000"].update(valence=10**400), "valence of frame 00000 is 1000"),
        (lambda v: v["frames"]["00000"].pop("arousal"), "arousal of frame 00000 is empty"),
        (lambda v: v["frames"].update({"00001": 3}), "valence of frame 00001 is empty"),
        (lambda v: v["frames"].update({"frame3": {}}), "a frame called 'frame3'; expected digits"),
        (lambda v: v["frames"].update({"9" * 5000: {}}), "a frame called '999"),
        (lambda v: v["frames"].update({"1": {}}), "frames '00001' and '1'; expected each number"),
        (lambda v: v.update(frames=[]), "frames is list; expected an object"),
        (lambda v: v.update(frames={}), "frames is dict; expected an object"),
        (lambda v: v.update(actor=" "), "actor is ' '; expected a name, since folds"),
        (lambda v: v.pop("actor"), "actor is empty; expected a name"),
        (lambda v: v.update(video_id="2"), "video_id is '2'; expected '001'"),
        (
            lambda v: v["frames"]["00003"].update(landmarks=[[1, 2]] * 67),
            "landmarks of frame 00003 are not (68, 2) numbers; expected 68 points in pixels",
        ),
        (
            lambda v: v["frames"]["00003"].update(landmarks=[[1, 2], [3]]),
            "landmarks of frame 00003 are not (68, 2) numbers",
        ),
        (
            lambda v: v["frames"]["00003"].update(landmarks=[[1, 1e300]] * 68),
            "landmarks of frame 00003 are not (68, 2) numbers",
        ),
        (
            lambda v: v["frames"]["00003"].update(landmarks=[[1, 10**400]] * 68),
            "landmarks of frame 00003 are not (68, 2) numbers",
        ),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, edit: Edit, words: str) -> None:
    trees.afew_va(tmp_path, with_pictures=False)
    path = change(tmp_path, edit)
    text = refusal("afew-va", tmp_path)
    assert text.startswith(f"{path}: found {words}")
    assert len(text) < 600


@pytest.mark.parametrize("value", [-10, 10, 0, 3.0])
def test_values_that_can(tmp_path: Path, value: float) -> None:
    trees.afew_va(tmp_path, with_pictures=False)
    change(tmp_path, lambda values: values["frames"]["00000"].update(valence=value))
    assert opened("afew-va", tmp_path)[0].labels["valence"][0] == value / 10


def test_other_names_of_a_video(tmp_path: Path) -> None:
    trees.afew_va(tmp_path, with_pictures=False)
    change(tmp_path, lambda values: values.update(video_id=1))
    change(tmp_path, lambda values: values.pop("video_id"), "002")
    opened("afew-va", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"actor": "A", "frames": {"00000": {}, "00000": {}}}', "the key '00000' twice"),
        (
            b'{"actor": "A", "actor": "B", "frames": {}}',
            "the key 'actor' twice; expected each once",
        ),
        (b"", "no JSON (Expecting value: line 1 column 1 (char 0))"),
        (b'{"actor": "A", "fra', "no JSON (Unterminated string"),
        (b'{"actor": "\xff"}', "no JSON ('utf-8' codec"),
        (b"[" * 100_000, "no JSON (maximum recursion depth"),
        (b"[1]", "list; expected an object with actor, video_id and frames"),
    ],
)
def test_files_that_are_no_labels(tmp_path: Path, text: bytes, words: str) -> None:
    trees.afew_va(tmp_path, with_pictures=False)
    path = tmp_path / "01/001/001.json"
    path.write_bytes(text)
    assert refusal("afew-va", tmp_path).startswith(f"{path}: found {words}")


def test_a_byte_order_mark(tmp_path: Path) -> None:
    labels = trees.afew_va(tmp_path, with_pictures=False)
    path = tmp_path / "01/001/001.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert labels_of(opened("afew-va", tmp_path)[0]) == labels


def test_an_actor_that_no_table_can_hold(tmp_path: Path) -> None:
    trees.afew_va(tmp_path, with_pictures=False)
    change(tmp_path, lambda values: values.update(actor="\ud800"))
    assert r"\ud800: found a name that is no UTF-8" in refusal("afew-va", tmp_path)


def test_a_clip_twice(tmp_path: Path) -> None:
    trees.afew_va(tmp_path)
    shutil.copytree(tmp_path / "01/001", tmp_path / "02/001")
    text = refusal("afew-va", tmp_path)
    assert f"found clip 001 twice, {tmp_path}/01/001 and {tmp_path}/02/001; expected one" in text


def test_pictures_and_labels_that_differ(tmp_path: Path) -> None:
    trees.afew_va(tmp_path)
    picture = tmp_path / "01/001/00002.png"
    path = tmp_path / "01/001/001.json"
    copy = shutil.copy(picture, picture.with_suffix(".jpg"))
    assert f"{path} labels 4 frames, {path.parent} holds 5 pictures;" in refusal(
        "afew-va", tmp_path
    )
    Path(copy).unlink()
    picture.unlink()
    assert (
        f"{path} labels 4 frames, {path.parent} holds 3 pictures; number 2 is in one of them only"
        in refusal("afew-va", tmp_path)
    )


def test_pictures_that_count_otherwise(tmp_path: Path) -> None:
    trees.afew_va(tmp_path)
    for picture in sorted((tmp_path / "01/001").glob("*.png"), reverse=True):
        picture.rename(picture.with_stem(f"{int(picture.stem) + 1:05}"))
    text = refusal("afew-va", tmp_path)
    assert "labels 4 frames" in text
    assert "holds 4 pictures; number 0 is in one of them only" in text


def test_pictures_under_other_names(tmp_path: Path) -> None:
    trees.afew_va(tmp_path)
    for picture in (tmp_path / "01/001").glob("*.png"):
        picture.rename(picture.with_stem(f"²{picture.stem}"))
    assert "holds 4 pictures; number 0 is in one of them only" in refusal("afew-va", tmp_path)


def test_clips_without_labels(tmp_path: Path) -> None:
    trees.afew_va(tmp_path)
    for video in ("002", "004"):
        next(tmp_path.rglob(f"{video}.json")).unlink()
    text = refusal("afew-va", tmp_path)
    assert f"labels of 2 clips are missing: {tmp_path}/01/002/002.json, {tmp_path}/02/004" in text
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    assert "labels of 6 clips are missing" in refusal("afew-va", tmp_path)


def test_clips_without_pictures(tmp_path: Path) -> None:
    labels = trees.afew_va(tmp_path)
    for picture in tmp_path.rglob("00[34]/*.png"):
        picture.unlink()
    dataset, _ = opened("afew-va", tmp_path)
    assert labels_of(dataset) == labels
    rows = located(dataset, must_exist=False)
    assert rows["path"].is_null().to_list() == [False] * 8 + [True] * 8 + [False] * 8
    text = refusal("afew-va", tmp_path, by_locate=True)
    assert text.startswith(f"{tmp_path}: 2 of 6 clips have no pictures: 01/003, 02/004. Finish")
    (tmp_path / "12.zip").touch()
    assert "Unpack 12.zip there first" in refusal("afew-va", tmp_path, by_locate=True)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    labels = trees.afew_va(tmp_path)
    for path in ("package/package.json", "01/01.txt", "01/001/notes.json", "01/001/._00000.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert labels_of(opened("afew-va", tmp_path)[0]) == labels
