import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests import trees
from tests.datasets.opening import labels_of, opened, refusal
from vafer.datasets import NAMES, default_root, open_dataset
from vafer.datasets.labels import (
    Dataset,
    around,
    five_points,
    levels,
    number_of,
    numbers_in,
    one_folder,
    some,
    to_labels,
)
from vafer.errors import UsageError

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("name", NAMES)
class TestRoots:
    def test_no_folder(self, name: str, tmp_path: Path) -> None:
        text = refusal(name, tmp_path / "nowhere")
        assert f"{tmp_path / 'nowhere'}: no such folder" in text
        assert name in text
        assert "--root" in text

    def test_a_file(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "a file, no folder" in refusal(name, tmp_path / "file")

    def test_an_empty_folder(self, name: str, tmp_path: Path) -> None:
        assert f"{tmp_path}: found nothing; expected" in refusal(name, tmp_path)

    def test_another_folder(self, name: str, tmp_path: Path) -> None:
        for other in ("b/deep/er/still", "a", "c", "d", ".hidden"):
            (tmp_path / other).mkdir(parents=True)
        assert "found a/, b/, c/ and 1 more; expected" in refusal(name, tmp_path)

    def test_archives_are_to_be_unpacked(self, name: str, tmp_path: Path) -> None:
        for archive in ("one.zip", "two.tar.gz"):
            (tmp_path / archive).touch()
        assert "Unpack one.zip, two.tar.gz there first" in refusal(name, tmp_path)

    def test_names_that_are_no_utf8(self, name: str, tmp_path: Path) -> None:
        (tmp_path / NOT_UTF8).touch()
        assert r"found caf\xe9; expected" in refusal(name, tmp_path)

    def test_a_folder_that_cannot_be_listed(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def scandir(folder: Path) -> None:
            raise PermissionError(13, "Permission denied", str(folder))

        monkeypatch.setattr(os, "scandir", scandir)
        assert f"{tmp_path}: found permission denied; expected" in refusal(name, tmp_path)

    def test_too_many_folders(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vafer.datasets.labels.MOST_FOLDERS", 10)
        for number in range(10):
            (tmp_path / f"folder{number}").mkdir()
        assert "more than 10 folders" in refusal(name, tmp_path)


BUILDERS = [
    ("afew-va", trees.afew_va),
    ("aff-wild", trees.aff_wild),
    ("aff-wild2", trees.aff_wild2),
    ("affectnet", trees.affectnet_csv),
    ("affectnet", trees.affectnet_npy),
]


@pytest.mark.parametrize(
    ("name", "build"), BUILDERS, ids=lambda value: getattr(value, "__name__", "")
)
class TestEveryLayout:
    def test_in_odd_places(self, name, build, tmp_path, monkeypatch) -> None:
        root = tmp_path / "ünï [1] *{x}" / "data, mine"
        expected = build(root)
        assert labels_of(opened(name, root)[0]) == expected
        assert labels_of(opened(name, root.parent)[0]) == expected
        monkeypatch.chdir(root)
        dataset, _ = opened(name, Path())
        assert labels_of(dataset) == expected
        rows = dataset.locate(dataset.labels, must_exist=True)
        assert all(Path(path).is_file() for path in rows["path"].drop_nulls())
        assert rows["path"].null_count() == (5 if name == "aff-wild2" else 0)

    def test_a_root_that_is_no_utf8(self, name, build, tmp_path) -> None:
        expected = build(tmp_path / "root")
        root = (tmp_path / "root").rename(tmp_path / NOT_UTF8)
        dataset, _ = opened(name, root)
        assert labels_of(dataset) == expected
        dataset.locate(dataset.labels, must_exist=True)

    def test_a_name_that_is_no_utf8_above_it(self, name, build, tmp_path) -> None:
        build(tmp_path / "root")
        (tmp_path / "root").rename(tmp_path / NOT_UTF8)
        is_late = name in ("aff-wild", "aff-wild2")  # tables of labels hold no paths
        text = refusal(name, tmp_path, by_locate=is_late)
        assert text.startswith(r"caf\udce9/")
        assert "found a name that is no UTF-8; expected one that a table can hold. Rename" in text

    def test_rows_keep_their_order(self, name, build, tmp_path) -> None:
        build(tmp_path)
        dataset, _ = opened(name, tmp_path)
        every = dataset.locate(dataset.labels, must_exist=True)
        mixed = dataset.labels.sample(fraction=1, shuffle=True, seed=1)
        some_rows = dataset.locate(mixed.head(9), must_exist=True)
        assert some_rows.select(mixed.columns).equals(mixed.head(9))
        at = ["video", "frame_index"]
        assert some_rows.sort(at).equals(every.join(some_rows, on=at, how="semi").sort(at))

    def test_a_file_that_cannot_be_read(self, name, build, tmp_path, monkeypatch) -> None:
        build(tmp_path)

        def refuse(path: Path, *args: object, **kinds: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        for method in ("open", "read_bytes", "read_text"):
            monkeypatch.setattr(Path, method, refuse)
        assert "found permission denied; expected" in refusal(name, tmp_path)


def test_the_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAFER_DATA", raising=False)
    assert default_root("afew-va") == Path("data/afew-va")
    monkeypatch.setenv("VAFER_DATA", str(tmp_path))
    expected = trees.afew_va(tmp_path / "afew-va", with_pictures=False)
    assert labels_of(open_dataset("afew-va")) == expected


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'x'.*expected one of afew-va, aff-wild, aff-wild2"):
        open_dataset("x", tmp_path)
    with pytest.raises(UsageError, match=r"'AFEW_VA': did you mean afew-va\?"):
        open_dataset("AFEW_VA", tmp_path)


def test_five_of_sixty_eight_points() -> None:
    points = np.random.default_rng(0).normal(size=(3, 68, 2))
    five = five_points(points).reshape(3, 5, 2)
    for found, given in zip(five, points, strict=True):
        expected = [
            [sum(given[i][axis] for i in eye) / 6 for axis in (0, 1)]
            for eye in ([36, 37, 38, 39, 40, 41], [42, 43, 44, 45, 46, 47])
        ]
        np.testing.assert_allclose(found, [*expected, given[30], given[48], given[54]], rtol=1e-6)


def test_the_trees_place_the_five_points() -> None:
    shot = trees.shoot((0, 0), size=(512, 512), fills=(trees.BOX[3] - trees.BOX[1]) / 512)
    five = five_points(shot.points[None]).reshape(5, 2)
    scale = (shot.box[2] - shot.box[0]) / (trees.BOX[2] - trees.BOX[0])
    expected = (trees.FIVE - trees.BOX[:2]) * scale + shot.box[:2]
    np.testing.assert_allclose(five, expected, atol=1e-3)


def test_the_box_around_points() -> None:
    points = np.array([[[3, 9], [5, 1], [-2, 4]]], np.float64)
    assert around(points).tolist() == [[-2, 1, 5, 9]]


@pytest.mark.parametrize(
    ("stem", "number"),
    [
        ("00012", 12),
        ("0", 0),
        ("²", None),
        ("٣", None),
        ("-1", None),
        ("a1", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_numbers_of_names(stem: str, number: int | None) -> None:
    assert number_of(stem) == number


def test_some_of_many() -> None:
    assert some(["a"]) == "a"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some([str(n) for n in range(2000)]) == "0, 1, 2 and 1,997 more"


def test_numbers_and_their_lines() -> None:
    values = pl.DataFrame({"valence": ["-1", " 1 ", "1e-1", "+.5", "-5"]})
    found = numbers_in(values, Path("f"), line_of=lambda row: row, sentinel=-5)
    assert found["valence"].to_list() == [-1, 1, 0.1, 0.5, -5]
    with pytest.raises(UsageError, match=r"f, line 14: valence is '-5'; .* from -1 to 1\."):
        numbers_in(values, Path("f"), line_of=lambda row: row + 10)


def test_labels_without_subjects() -> None:
    columns = {"video": ["b", "a"], "frame_index": 0, "valence": 0.0, "arousal": 0.0}
    labels = to_labels(columns)
    assert labels["video"].to_list() == ["a", "b"]
    dataset = Dataset("x", Path(), labels, "images", None, lambda rows, must_exist: rows)
    assert not dataset.has_subjects


def test_levels_are_few_and_hide_hidden_folders(tmp_path: Path) -> None:
    for folder in ("a/b/c/d/e", ".git/x", "__MACOSX/y"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [[str(f.relative_to(tmp_path)) for f in level] for level in levels(tmp_path)]
    assert found == [["."], ["a"], ["a/b", "a/loop"], ["a/b/c", "a/loop/a"]]


def test_the_highest_folder_of_a_name_counts(tmp_path: Path) -> None:
    for folder in ("x/set/in", "y/z/set/in", "y/set/empty", "set"):
        (tmp_path / folder).mkdir(parents=True)

    def is_it(folder: Path) -> bool:
        return (folder / "in").is_dir()

    assert one_folder(tmp_path, "set", is_it) == tmp_path / "x/set"
    assert one_folder(tmp_path / "x/set", "set", is_it) == tmp_path / "x/set"
    assert one_folder(tmp_path, "other", is_it) is None
    (tmp_path / "y/set/in").mkdir()
    with pytest.raises(UsageError, match=r"set more than once: .*x/set, .*y/set; .*--root"):
        one_folder(tmp_path, "set", is_it)
