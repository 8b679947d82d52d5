import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import trees
from tests.datasets.opening import labels_of, located, opened, refusal
from vafer.datasets.labels import five_points

IMAGES = "Manually_Annotated_Images"
BOX = ("x1", "y1", "x2", "y2")


def rewrite(root: Path, edit: Callable[[list[str]], list[str]]) -> Path:
    """training.csv with its lines changed by edit."""
    path = root / "training.csv"
    path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))
    return path


def field(number: int, column: int, value: str) -> Callable[[list[str]], list[str]]:
    """Lines with one field set: of a line as numbered from 1, in a column as numbered from 0."""

    def edit(lines: list[str]) -> list[str]:
        fields = lines[number - 1].split(",")
        fields[column] = value
        return [*lines[: number - 1], ",".join(fields), *lines[number:]]

    return edit


class TestCsv:
    def test_labels_faces_and_pictures(self, tmp_path: Path) -> None:
        labels = trees.affectnet_csv(tmp_path)
        dataset, notices = opened("affectnet", tmp_path)
        assert labels_of(dataset) == labels
        assert notices == ["2 of 16 pictures are marked as without valence and arousal (-2)"]
        assert dataset.facts == {"n_invalid": 2}
        assert (dataset.units, dataset.frames_in, dataset.is_cropped) == (None, "images", True)
        assert not dataset.has_subjects
        splits = dict(dataset.labels.select("video", "split").rows())
        assert all((split == "train") == ("training" in name) for name, split in splits.items())
        for row in located(dataset).rows(named=True):
            assert row["path"] == f"{IMAGES}/{row['video']}"
            number = int(
                Path(row["video"]).stem.removeprefix("training").removeprefix("validation")
            )
            shot = trees.shoot((0, 0), size=(128, 128), person=number, frame=number, fills=0.7)
            assert [row[name] for name in BOX] == shot.box.round().tolist()
            five = five_points(shot.points[None])[0]
            np.testing.assert_allclose(row["landmarks"], five, atol=0.01)

    def test_columns_go_by_name(self, tmp_path: Path) -> None:
        labels = trees.affectnet_csv(tmp_path)
        expected = located(opened("affectnet", tmp_path)[0])
        rewrite(tmp_path, lambda lines: [",".join(line.split(",")[::-1]) for line in lines])
        dataset, _ = opened("affectnet", tmp_path)
        assert labels_of(dataset) == labels
        assert located(dataset).equals(expected)

    def test_labels_alone(self, tmp_path: Path) -> None:
        labels = trees.affectnet_csv(tmp_path)
        for name in ("training", "validation"):
            path = tmp_path / f"{name}.csv"
            rows = [line.split(",") for line in path.read_text().splitlines()]
            path.write_text("\n".join(",".join([row[0], *row[-2:]]) for row in rows))
        dataset, _ = opened("affectnet", tmp_path)
        assert labels_of(dataset) == labels
        rows = located(dataset)
        assert rows.select(*BOX, "landmarks").null_count().row(0) == (14,) * 5

    @pytest.mark.parametrize(
        "edit",
        [
            lambda data: b"\xef\xbb\xbf" + data,
            lambda data: data.replace(b"\n", b"\r\n"),
            lambda data: data.replace(b"\n", b"\n\n"),
            lambda data: data + b"\n\n",
            lambda data: data.rstrip(b"\n"),
            lambda data: b"\n".join(
                b",".join(b'"' + f + b'"' for f in line.split(b",")) for line in data.splitlines()
            ),
        ],
    )
    def test_other_ways_to_write_lines(
        self, tmp_path: Path, edit: Callable[[bytes], bytes]
    ) -> None:
        labels = trees.affectnet_csv(tmp_path)
        expected = located(opened("affectnet", tmp_path)[0])
        path = tmp_path / "training.csv"
        path.write_bytes(edit(path.read_bytes()))
        dataset, _ = opened("affectnet", tmp_path)
        assert labels_of(dataset) == labels
        assert located(dataset).equals(expected)

    def test_a_comma_in_a_quoted_name(self, tmp_path: Path) -> None:
        trees.affectnet_csv(tmp_path, with_pictures=False)
        rewrite(tmp_path, field(2, 0, '"1/a,b ü.jpg"'))
        assert "1/a,b ü.jpg" in opened("affectnet", tmp_path)[0].labels["video"]

    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (field(4, 7, "1.2"), "line 4: valence is '1.2'; expected a number from -1 to 1, or -2"),
            (field(4, 8, "-3"), "line 4: arousal is '-3'; expected a number"),
            (field(4, 8, "nan"), "line 4: arousal is 'nan'; expected a number"),
            (field(4, 7, "inf"), "line 4: valence is 'inf'; expected a number"),
            (field(4, 7, "NULL"), "line 4: valence is 'NULL'; expected a number"),
            (field(4, 7, ""), "line 4: valence is empty; expected a number"),
            (field(4, 0, ""), "line 4: subDirectory_filePath is empty; expected the path"),
            (field(1, 7, "joy"), "line 1: found the columns subDirectory_filePath, face_x, face_y"),
            (field(1, 7, "joy"), "joy, arousal; expected valence too"),
            (field(1, 6, "valence"), "line 1: found valence twice; expected each column once"),
            (lambda lines: lines[1:], "expected subDirectory_filePath, valence, arousal too"),
            (lambda lines: [line.replace(",", "\t") for line in lines], "too, with commas between"),
            (
                lambda lines: [*lines[:3], lines[3] + ",1", *lines[4:]],
                "line 4: found 10 fields; ex",
            ),
            (
                lambda lines: [*lines[:3], "1/x.jpg,0.5", *lines[4:]],
                "line 4: found 2 fields; expec",
            ),
            (
                lambda lines: [*lines[:3], "", "", *field(4, 7, "9")(lines)[3:]],
                "line 6: valence is",
            ),
            (
                lambda lines: [*lines[:3], "", lines[4] + ",1"],
                "line 5: found 10 fields; expected 9",
            ),
            (lambda lines: [*lines[:4], lines[4][:20]], "line 5: found 3 fields; expected 9"),
            (lambda lines: lines[:1], ": found a header alone; expected a line a picture"),
            (lambda lines: [], ": found no CSV in UTF-8 (Empty CSV file); expected a header"),
        ],
    )
    def test_lines_that_are_no_labels(
        self, tmp_path: Path, edit: Callable[[list[str]], list[str]], words: str
    ) -> None:
        trees.affectnet_csv(tmp_path, with_pictures=False)
        path = rewrite(tmp_path, edit)
        text = refusal("affectnet", tmp_path)
        assert text.startswith(str(path))
        assert words in text

    @pytest.mark.parametrize("data", [b"\xff", "ü,ö\n".encode("utf-16"), b'"', b"\0" * 99])
    def test_files_that_are_no_csv(self, tmp_path: Path, data: bytes) -> None:
        trees.affectnet_csv(tmp_path, with_pictures=False)
        path = tmp_path / "training.csv"
        original = path.read_bytes()
        for changed in (data, data + original, original + b"1/x.jpg,1,1,1,1," + data + b",1,0,0\n"):
            path.write_bytes(changed)
            if changed.endswith(original) or data != b"\0" * 99:
                assert refusal("affectnet", tmp_path).startswith(str(path))

    @pytest.mark.parametrize(("valence", "arousal"), [("-2", "-2"), ("-2.0", "0.5"), ("0.5", "-2")])
    def test_a_sentinel_in_either_column(self, tmp_path: Path, valence: str, arousal: str) -> None:
        labels = trees.affectnet_csv(tmp_path, with_pictures=False)
        rewrite(tmp_path, lambda lines: field(2, 7, valence)(field(2, 8, arousal)(lines)))
        dataset, _ = opened("affectnet", tmp_path)
        del labels["1/training0.jpg", 0]
        assert labels_of(dataset) == labels
        assert dataset.facts == {"n_invalid": 3}

    @pytest.mark.parametrize(
        "points", ["", "NULL", "1;2", ";".join("1" * 135), ";".join("1" * 137), "x;" * 136]
    )
    def test_points_that_are_none(self, tmp_path: Path, points: str) -> None:
        trees.affectnet_csv(tmp_path)
        rewrite(tmp_path, field(2, 5, points))
        rows = located(opened("affectnet", tmp_path)[0])
        assert rows["landmarks"].null_count() == 1
        assert rows.filter(video="1/training0.jpg")["landmarks"].is_null().all()
        assert rows["x1"].null_count() == 0

    def test_points_that_end_in_a_semicolon(self, tmp_path: Path) -> None:
        trees.affectnet_csv(tmp_path)
        expected = located(opened("affectnet", tmp_path)[0])
        rewrite(tmp_path, lambda lines: field(2, 5, lines[1].split(",")[5] + "; ")(lines))
        assert located(opened("affectnet", tmp_path)[0]).equals(expected)

    def test_a_box_that_is_none(self, tmp_path: Path) -> None:
        trees.affectnet_csv(tmp_path)
        rewrite(tmp_path, field(2, 3, "NULL"))
        row = located(opened("affectnet", tmp_path)[0]).filter(video="1/training0.jpg")
        assert row["x2"].is_null().all()

    def test_a_picture_in_both_lists(self, tmp_path: Path) -> None:
        trees.affectnet_csv(tmp_path, with_pictures=False)
        line = (tmp_path / "validation.csv").read_text().splitlines()[1]
        rewrite(tmp_path, lambda lines: [*lines, line])
        text = refusal("affectnet", tmp_path)
        assert "1 pictures are both in training.csv and in validation.csv: 1/validation0.jp" in text
        assert "expected each in one" in text

    def test_a_picture_twice(self, tmp_path: Path) -> None:
        labels = trees.affectnet_csv(tmp_path, with_pictures=False)
        rewrite(tmp_path, lambda lines: [*lines, lines[2]])
        assert labels_of(opened("affectnet", tmp_path)[0]) == labels
        path = rewrite(tmp_path, lambda lines: [lines[0], "", *field(3, 7, "0.123")(lines)[1:]])
        text = refusal("affectnet", tmp_path)
        assert f"{path}, lines 4 and 12: found 2/training1.jpg with two labels; expected" in text

    def test_lists_and_pictures_in_folders_of_their_own(self, tmp_path: Path) -> None:
        labels = trees.affectnet_csv(tmp_path)
        for folder, names in (("lists", ("training.csv", "validation.csv")), ("a/b", (IMAGES,))):
            (tmp_path / folder).mkdir(parents=True)
            for name in names:
                (tmp_path / name).rename(tmp_path / folder / name)
        dataset, _ = opened("affectnet", tmp_path)
        assert labels_of(dataset) == labels
        assert located(dataset)["path"][0] == f"a/b/{IMAGES}/1/training0.jpg"

    def test_one_list_alone(self, tmp_path: Path) -> None:
        trees.affectnet_csv(tmp_path)
        (tmp_path / "training.csv").unlink()
        dataset, notices = opened("affectnet", tmp_path)
        assert f"{tmp_path} holds no labels of the train set" in notices
        assert set(dataset.labels["split"]) == {"validation"}

    def test_missing_pictures(self, tmp_path: Path) -> None:
        labels = trees.affectnet_csv(tmp_path)
        (tmp_path / IMAGES / "1/training0.jpg").unlink()
        dataset, _ = opened("affectnet", tmp_path)
        rows = located(dataset, must_exist=False)
        assert rows["path"].is_null().to_list() == [True] + [False] * (len(labels) - 1)
        text = refusal("affectnet", tmp_path, by_locate=True)
        assert f"{tmp_path}: 1 of 14 pictures are missing: {IMAGES}/1/training0.jpg. Fini" in text
        shutil.rmtree(tmp_path / IMAGES)
        assert "14 of 14 pictures are missing" in refusal("affectnet", tmp_path, by_locate=True)
        (tmp_path / f"{IMAGES}.7z").touch()
        text = refusal("affectnet", tmp_path, by_locate=True)
        assert f"Unpack {IMAGES}.7z there first" in text

    @pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 300 + ".jpg", "../training.csv/x.jpg"])
    def test_odd_names_of_pictures(self, tmp_path: Path, name: str) -> None:
        trees.affectnet_csv(tmp_path)
        rewrite(tmp_path, field(2, 0, name))
        refusal("affectnet", tmp_path, by_locate=True)

    def test_blocks_are_joined(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        labels = trees.affectnet_csv(tmp_path, n_train=40, with_pictures=False)
        whole = located(opened("affectnet", tmp_path)[0], must_exist=False)
        monkeypatch.setattr("vafer.datasets.affectnet.BLOCK_BYTES", 3000)
        dataset, _ = opened("affectnet", tmp_path)
        assert labels_of(dataset) == labels
        assert located(dataset, must_exist=False).equals(whole)
        rewrite(tmp_path, field(30, 7, "7"))
        assert "line 30: valence is '7'" in refusal("affectnet", tmp_path)
        rewrite(tmp_path, lambda lines: [*lines[:20], "x", *lines[20:]])
        assert "line 21: found 1 fields; expected 9" in refusal("affectnet", tmp_path)


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the file was unpickled",))


def save(path: Path, value: Any) -> None:
    np.save(path, np.array(value))


def as_bytes(value: Any, *, version: tuple[int, int] | None = None) -> bytes:
    from io import BytesIO

    file = BytesIO()
    np.lib.format.write_array(file, np.array(value), version=version)
    return file.getvalue()


class TestNpy:
    @pytest.mark.parametrize("as_text", [True, False])
    def test_labels_faces_and_pictures(self, tmp_path: Path, as_text: bool) -> None:
        labels = trees.affectnet_npy(tmp_path, as_text=as_text)
        dataset, notices = opened("affectnet", tmp_path)
        assert labels_of(dataset) == labels
        assert {("train_set/images/0.jpg", 0), ("val_set/images/0.jpg", 0)} <= labels.keys()
        assert notices == ["2 of 16 pictures are marked as without valence and arousal (-2)"]
        assert (dataset.units, dataset.frames_in, dataset.is_cropped) == (None, "images", True)
        splits = dict(dataset.labels.select("video", "split").rows())
        assert all((split == "train") == name.startswith("t") for name, split in splits.items())
        for row in located(dataset).rows(named=True):
            assert row["path"] == row["video"]
            number = int(Path(row["video"]).stem)
            shot = trees.shoot((0, 0), size=(128, 128), person=number, frame=number, fills=0.7)
            box = [*shot.points.min(axis=0), *shot.points.max(axis=0)]
            np.testing.assert_allclose([row[name] for name in BOX], box, atol=0.01)
            five = five_points(shot.points[None])[0]
            np.testing.assert_allclose(row["landmarks"], five, atol=0.01)

    @pytest.mark.parametrize(
        "value",
        ["0.25", "  0.25 ", b"0.25", [0.25], [["0.25"]], np.float32(0.25), np.array(0.25, ">f8")],
    )
    def test_ways_to_store_a_label(self, tmp_path: Path, value: Any) -> None:
        labels = trees.affectnet_npy(tmp_path, with_pictures=False)
        save(tmp_path / "train_set/annotations/3_val.npy", value)
        at = ("train_set/images/3.jpg", 0)
        labels[at] = (0.25, labels[at][1])
        assert labels_of(opened("affectnet", tmp_path)[0]) == labels

    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
    def test_versions_of_the_format(self, tmp_path: Path, version: tuple[int, int]) -> None:
        labels = trees.affectnet_npy(tmp_path, with_pictures=False)
        for path in tmp_path.rglob("*_aro.npy"):
            path.write_bytes(as_bytes(np.load(path), version=version))
        assert labels_of(opened("affectnet", tmp_path)[0]) == labels

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("1.5", "found ['1.5']; expected one number from -1 to 1, or -2 for a picture"),
            ("nan", "found ['nan']; expected one number"),
            (float("inf"), "found [inf]; expected one number"),
            ("happy", "found ['happy']; expected one number"),
            ("", "found ['']; expected one number"),
            ([0.1, 0.2], "found [0.1, 0.2]; expected one number"),
            ([], "found []; expected one number"),
            (np.zeros(10_000), "found [0.0, 0.0, 0.0"),
            (1j, "found no array of numbers or text (another header); expected"),
            (np.datetime64("2020-01-01"), "found no array of numbers or text (another header)"),
            (np.zeros(1, [("x", "f4")]), "found no array of numbers or text (another header)"),
            ({"a": 1}, "found no array of numbers or text (Python objects, which are not loaded)"),
            (Bomb(), "found no array of numbers or text (Python objects, which are not loaded)"),
        ],
        ids=str,
    )
    def test_arrays_that_are_no_labels(self, tmp_path: Path, value: Any, words: str) -> None:
        trees.affectnet_npy(tmp_path, with_pictures=False)
        path = tmp_path / "val_set/annotations/2_aro.npy"
        save(path, value)
        assert refusal("affectnet", tmp_path).startswith(f"{path}: {words}")

    def test_files_that_are_no_arrays(self, tmp_path: Path) -> None:
        trees.affectnet_npy(tmp_path, with_pictures=False)
        path = tmp_path / "val_set/annotations/2_aro.npy"
        whole = path.read_bytes()
        header = b"\x93NUMPY\1\0\x40\0{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"
        files = [whole[:n] for n in range(len(whole))]
        files += [whole[:10] + bytes([b]) + whole[11:] for b in range(256) if b != whole[10]]
        files += [header.replace(b"%s", n) + b" " * 9 for n in (b"9" * 30, b"-1", b"2", b"x")]
        files += [pickle.dumps(Bomb()), b"PK\3\4", whole + b"\0"]
        for data in files:
            path.write_bytes(data)
            assert str(path) in refusal("affectnet", tmp_path)

    def test_a_transposed_array(self, tmp_path: Path) -> None:
        trees.affectnet_npy(tmp_path)
        expected = located(opened("affectnet", tmp_path)[0])
        path = tmp_path / "train_set/annotations/1_lnd.npy"
        for points in (
            np.load(path).reshape(68, 2),
            np.asfortranarray(np.load(path).reshape(68, 2)),
        ):
            np.save(path, points)
            assert located(opened("affectnet", tmp_path)[0]).equals(expected)
        np.save(path, np.load(path).astype(str))
        assert located(opened("affectnet", tmp_path)[0]).equals(expected)

    @pytest.mark.parametrize(
        "points", [np.ones(135), ["x"] * 136, [float("nan")] * 136, [1e300] * 136]
    )
    def test_points_that_are_none(self, tmp_path: Path, points: Any) -> None:
        trees.affectnet_npy(tmp_path, with_pictures=False)
        path = tmp_path / "train_set/annotations/1_lnd.npy"
        save(path, points)
        words = f"{path}: found {len(points)} values; expected 68 points x, y as numbers"
        assert refusal("affectnet", tmp_path).startswith(words)

    def test_pictures_without_points(self, tmp_path: Path) -> None:
        trees.affectnet_npy(tmp_path)
        (tmp_path / "train_set/annotations/1_lnd.npy").unlink()
        rows = located(opened("affectnet", tmp_path)[0])
        assert rows.filter(rows["landmarks"].is_null())["video"].to_list() == [
            "train_set/images/1.jpg"
        ]
        for path in tmp_path.rglob("*_lnd.npy"):
            path.unlink()
        rows = located(opened("affectnet", tmp_path)[0])
        assert rows.select(*BOX, "landmarks").null_count().row(0) == (14,) * 5

    def test_pictures_and_labels_that_differ(self, tmp_path: Path) -> None:
        trees.affectnet_npy(tmp_path)
        (tmp_path / "train_set/images/5.jpg").unlink()
        text = refusal("affectnet", tmp_path)
        notes = tmp_path / "train_set/annotations"
        assert f"{notes} labels 9 pictures, train_set/images holds 8; 5 is in one of them" in text
        shutil.rmtree(tmp_path / "train_set/images")
        dataset, _ = opened("affectnet", tmp_path)
        assert located(dataset, must_exist=False)["path"].null_count() == 8
        text = refusal("affectnet", tmp_path, by_locate=True)
        assert "8 of 14 pictures are missing: train_set/images/0.jpg" in text

    def test_half_a_label(self, tmp_path: Path) -> None:
        trees.affectnet_npy(tmp_path)
        notes = tmp_path / "val_set/annotations"
        (notes / "3_aro.npy").unlink()
        (notes / "4_val.npy").unlink()
        text = refusal("affectnet", tmp_path)
        assert f"{notes}: 2 of 7 pictures lack a label: 3_aro.npy, 4_val.npy. Finish" in text
        for path in notes.iterdir():
            path.unlink()
        assert f"{notes}: found nothing; expected files called ID_val" in refusal(
            "affectnet", tmp_path
        )

    def test_one_set_alone(self, tmp_path: Path) -> None:
        labels = trees.affectnet_npy(tmp_path)
        dataset, notices = opened("affectnet", tmp_path / "train_set")
        assert labels_of(dataset) == {
            at: v for at, v in labels.items() if at[0].startswith("train")
        }
        assert f"{tmp_path}/train_set holds no labels of the validation set" in notices
        assert located(dataset)["path"][0] == "images/0.jpg"

    def test_hidden_files_are_left_alone(self, tmp_path: Path) -> None:
        labels = trees.affectnet_npy(tmp_path)
        for name in ("images/._0.jpg", "annotations/._0_val.npy", "annotations/notes.txt"):
            (tmp_path / "train_set" / name).touch()
        assert labels_of(opened("affectnet", tmp_path)[0]) == labels


def test_both_releases(tmp_path: Path) -> None:
    trees.affectnet_csv(tmp_path, with_pictures=False)
    trees.affectnet_npy(tmp_path, with_pictures=False)
    text = refusal("affectnet", tmp_path)
    assert (
        f"{tmp_path}: found both releases, {tmp_path}/training.csv and {tmp_path}/train_s" in text
    )
    assert "--root" in text
