"""Splits: no person on two sides, the same everywhere, written and read back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vafer.datasets.labels import Dataset, no_faces, to_labels
from vafer.datasets.splits import hash_name, select
from vafer.errors import UsageError
from vafer.options import SplitOptions
from vafer.store import sha256


def dataset(
    clips: Mapping[str, tuple[str | None, int]],
    *,
    name: str = "afew-va",
    units: Any = "subject",
    split: Mapping[str, str] | None = None,
) -> Dataset:
    """clips: the actor and the number of frames of each."""
    rows = [(v, i, actor) for v, (actor, n) in clips.items() for i in range(n)]
    labels = to_labels(
        {
            "video": [video for video, _, _ in rows],
            "frame_index": [i for _, i, _ in rows],
            "valence": [0.1] * len(rows),
            "arousal": [0.2] * len(rows),
            "subject": pl.Series([actor for _, _, actor in rows], dtype=pl.String),
            "split": pl.Series(
                [split[video] if split else None for video, _, _ in rows], dtype=pl.String
            ),
        }
    )
    return Dataset(
        name, Path("/data"), labels, "pictures", units, lambda rows, must_exist: no_faces(rows)
    )


CLIPS = {f"{i:03d}": (f"actor {i % 17}", 3 + i * 7 % 20) for i in range(60)}
VIDEOS = {f"{i}": (None, 2) for i in range(100, 140)}


def aff_wild(videos: Mapping[str, tuple[None, int]] = VIDEOS) -> Dataset:
    return dataset(videos, name="aff-wild", units="video")


def official() -> Dataset:
    split = {f"v{i}": "train" if i < 4 else "validation" for i in range(6)}
    return dataset(dict.fromkeys(split, (None, 3)), name="aff-wild2", units=None, split=split)


def write(path: Path, **changes: Any) -> Path:
    values = {"dataset": "afew-va", "by": "subject", "parts": {}, **changes}
    path.write_text(json.dumps(values))
    return path


def keys(rows: pl.DataFrame) -> list[tuple[str, int]]:
    return sorted(rows.select("video", "frame_index").iter_rows())


def refused(wanted: Dataset, *parts: str, **options: Any) -> None:
    with pytest.raises(UsageError) as error:
        select(wanted, SplitOptions(**options))
    for part in parts:
        assert part in str(error.value)


def greedy(frames: Mapping[str, int], n_folds: int) -> dict[str, int]:
    """Largest first, each into the smallest fold, as one would do it by hand."""
    digests = {s: hashlib.sha256(s.encode()).hexdigest()[:16] for s in frames}
    folds: list[list[str]] = [[] for _ in range(n_folds)]
    left = set(frames)
    while left:
        largest = max(frames[s] for s in left)
        subject = min((s for s in left if frames[s] == largest), key=digests.__getitem__)
        sums = [sum(frames[s] for s in fold) for fold in folds]
        folds[sums.index(min(sums))].append(subject)
        left.remove(subject)
    return {subject: i for i, fold in enumerate(folds) for subject in fold}


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 9)), min_size=3, max_size=40),
    st.integers(2, 6),
)
def test_folds_part_people_evenly(clips: list[tuple[int, int]], n_folds: int) -> None:
    named = {f"{i:03d}": (f"s{actor}", n) for i, (actor, n) in enumerate(clips)}
    frames: dict[str, int] = {}
    for actor, n in named.values():
        frames[actor] = frames.get(actor, 0) + n
    afew = dataset(named)
    if len(frames) < n_folds:
        refused(afew, f"{len(frames)} subjects", n_folds=n_folds, fold=0)
        return
    folds = [select(afew, SplitOptions(fold=k, n_folds=n_folds)) for k in range(n_folds)]
    people = [{*fold.chosen["subject"]} for fold in folds]
    assert sum(map(len, people)) == len(set().union(*people)) == len(frames)
    assert sorted(key for fold in folds for key in keys(fold.chosen)) == keys(afew.labels)
    for fold, of_fold in zip(folds, people, strict=True):
        assert not {*fold.others["subject"]} & of_fold
        assert keys(pl.concat([fold.chosen, fold.others])) == keys(afew.labels)
        assert fold.described["n_subjects"] == len(of_fold)
    sizes = [len(fold.chosen) for fold in folds]
    assert max(sizes) - min(sizes) <= max(frames.values())
    assert folds[0].assignment is not None
    assert folds[0].assignment["parts"] == greedy(frames, n_folds)


@pytest.mark.parametrize("wanted", [dataset(CLIPS), aff_wild()], ids=lambda d: d.name)
def test_the_order_of_rows_is_no_matter(wanted: Dataset) -> None:
    expected = select(wanted, SplitOptions()).assignment
    for seed in range(4):
        shuffled = replace(wanted, labels=wanted.labels.sample(fraction=1, shuffle=True, seed=seed))
        assert select(shuffled, SplitOptions()).assignment == expected


def test_equal_persons_go_by_the_hash_of_their_names() -> None:
    """By `sha256sum` they come p0 p2 p3 p5 p4 p1, and go in turn into the two folds."""
    equal = select(dataset({f"{i}": (f"p{i}", 5) for i in range(6)}), SplitOptions(n_folds=2))
    assert equal.assignment == {
        "dataset": "afew-va",
        "by": "subject",
        "n_folds": 2,
        "parts": {"p0": 0, "p1": 1, "p2": 1, "p3": 0, "p4": 0, "p5": 1},
    }


def test_a_fold_is_scored_and_the_others_are_left() -> None:
    fold = select(dataset(CLIPS), SplitOptions(fold=2))
    assert (fold.part, fold.name) == (2, "fold 2")
    assert fold.described["by"] == "subject"
    assert fold.described["n_folds"] == 5
    assert fold.described["n_videos"] == fold.chosen["video"].n_unique()


@pytest.mark.parametrize("split", [None, "all"])
def test_without_a_fold_all_of_them_are_scored(split: str | None) -> None:
    every = select(dataset(CLIPS), SplitOptions(split=split))
    assert every.part == every.name == "all"
    assert len(every.chosen) == sum(n for _, n in CLIPS.values())
    assert every.others.is_empty()
    assert every.assignment is not None
    assert {*every.assignment["parts"].values()} == {0, 1, 2, 3, 4}


@given(st.integers(2, 30), st.integers(0, 9), st.floats(0.01, 0.99))
def test_videos_are_parted_by_seed_and_fraction(n: int, seed: int, fraction: float) -> None:
    wild = aff_wild({f"{i}": (None, 1 + i % 3) for i in range(n)})
    options: dict[str, Any] = {"seed": seed, "fraction": fraction}
    chosen = select(wild, SplitOptions(**options))
    train = select(wild, SplitOptions(split="train", **options))
    sides = [{*side.chosen["video"]} for side in (chosen, train)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == n
    assert len(sides[0]) == min(max(1, round(fraction * n)), n - 1)
    assert keys(chosen.others) == keys(train.chosen)
    assert train.others.is_empty()  # the validation videos are not to be trained on
    assert chosen.name == "validation"
    assert chosen.described == {
        "by": "video",
        **options,
        "part": "validation",
        "n_videos": len(sides[0]),
    }


def test_a_seed_is_one_choice_of_videos() -> None:
    found = {
        seed: {*select(aff_wild(), SplitOptions(seed=seed)).chosen["video"]} for seed in range(5)
    }
    assert {*select(aff_wild(), SplitOptions(seed=3)).chosen["video"]} == found[3]
    assert len({tuple(sorted(videos)) for videos in found.values()}) == 5
    assert {len(videos) for videos in found.values()} == {8}


def test_more_videos_are_added_to_those_that_were_chosen() -> None:
    small = select(aff_wild(), SplitOptions(fraction=0.1)).chosen
    large = select(aff_wild(), SplitOptions(fraction=0.3)).chosen
    assert {*small["video"]} < {*large["video"]}


@pytest.mark.parametrize(
    ("split", "part", "videos"),
    [
        (None, "validation", {"v4", "v5"}),
        ("validation", "validation", {"v4", "v5"}),
        ("train", "train", {"v0", "v1", "v2", "v3"}),
        ("all", "all", {"v0", "v1", "v2", "v3", "v4", "v5"}),
    ],
)
def test_official_sets(split: str | None, part: str, videos: set[str]) -> None:
    found = select(official(), SplitOptions(split=split))
    assert {*found.chosen["video"]} == videos
    others = {"v0", "v1", "v2", "v3"} if part == "validation" else set()
    assert {*found.others["video"]} == others
    assert found.assignment is None
    assert found.described == {"by": "official", "part": part, "n_videos": len(videos)}


def test_what_is_not_there_names_what_is() -> None:
    afew = dataset(CLIPS)
    refused(afew, "no fold 5", "--fold 0, 1, 2, 3, 4", fold=5)
    refused(afew, "no fold 12", "2, 3, 4, 5, 6, 7, 8, 9, 10", fold=12, n_folds=12)
    refused(afew, "no validation", "--fold 0, 1, 2, 3, 4", "--split all", split="validation")
    refused(afew, "no 2", "--fold 0, 1, 2, 3, 4", split="2")
    refused(aff_wild(), "no test", "--split train, validation, all", split="test")
    refused(official(), "no test", "--split train, validation, all", split="test")


@pytest.mark.parametrize("wanted", [aff_wild(), official()], ids=lambda d: d.name)
def test_a_fold_of_what_names_no_subjects_is_refused(wanted: Dataset) -> None:
    refused(wanted, wanted.name, "names no subjects", "train, validation", fold=0)


def test_training_data_alone_is_not_scored_unasked() -> None:
    only = dataset({"a": (None, 2)}, name="affectnet", units=None, split={"a": "train"})
    refused(only, "no validation", "--split train, all", "finish the download")
    assert len(select(only, SplitOptions(split="train")).chosen) == 2


def test_too_little_to_part() -> None:
    few = dataset({"a": ("x", 3), "b": ("y", 3)})
    refused(few, "2 subjects", "at least 5", fold=0)
    assert len(select(few, SplitOptions()).chosen) == 6  # which takes no folds
    refused(aff_wild({"1": (None, 3)}), "1 labelled videos", "2 or more")
    refused(dataset({}, units=None, name="affectnet"), "no labelled frame", "Finish the download")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"split": "train", "fold": 1}, "both a split and a fold"),
        ({"n_folds": 1}, "1 folds"),
        ({"fraction": 0.0}, "0.0"),
        ({"fraction": 1.0}, "1.0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        SplitOptions(**options)


@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        (dataset(CLIPS), {"fold": 3}),
        (dataset(CLIPS), {"split": "all"}),
        (aff_wild(), {"seed": 4, "fraction": 0.35}),
        (aff_wild(), {"split": "train"}),
    ],
)
def test_an_assignment_read_back_selects_the_same(
    tmp_path: Path, wanted: Dataset, options: dict[str, Any]
) -> None:
    written = select(wanted, SplitOptions(**options))
    path = tmp_path / "split.json"
    path.write_text(json.dumps(written.assignment))
    asked = {k: v for k, v in options.items() if k in ("fold", "split")}
    read = select(wanted, SplitOptions(assignment=path, seed=99, n_folds=2, **asked))
    assert read.chosen.equals(written.chosen)
    assert read.others.equals(written.others)
    assert (read.part, read.name) == (written.part, written.name)
    assert read.assignment == written.assignment
    assert read.described["assignment_sha256"] == sha256(path)


def test_an_assignment_of_ones_own(tmp_path: Path) -> None:
    """Official sets can be parted anew; names that this copy lacks are no matter."""
    parts = {f"v{i}": i % 3 for i in range(6)} | {"of another copy": 0}
    path = write(tmp_path / "mine.json", dataset="aff-wild2", by="video", parts=parts)
    fold = select(official(), SplitOptions(assignment=path, fold=1))
    assert {*fold.chosen["video"]} == {"v1", "v4"}
    refused(official(), "no fold 7; expected --fold 0, 1, 2", assignment=path, fold=7)


def test_an_assignment_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    afew = dataset(CLIPS)
    parts = {f"actor {i}": i % 5 for i in range(17)}

    write(path, dataset="aff-wild", parts=parts)
    refused(afew, "split.json", "aff-wild", "afew-va", assignment=path)

    del parts["actor 3"], parts["actor 11"]
    write(path, parts=parts)
    refused(afew, "split.json", "2 subjects", "actor 11, actor 3", assignment=path)

    write(path, dataset="aff-wild", parts=dict.fromkeys(VIDEOS, "train"))
    refused(aff_wild(), "split.json", "names no subjects", '"by": "video"', assignment=path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"dataset": "afew-va", "by": "subject", "parts": {"a": 0',
        "[" * 100_000,
        b"\xff\xfe\x00",
        "[]",
        "3",
        '{"dataset": "afew-va", "by": "clip", "parts": {}}',
        '{"dataset": "afew-va", "by": ["subject"], "parts": {}}',
        '{"dataset": "afew-va", "by": "subject", "parts": [0, 1]}',
        '{"dataset": "afew-va", "by": "subject"}',
    ],
)
def test_a_damaged_assignment_says_what_it_should_be(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(dataset(CLIPS), "split.json", "evaluation or a run", assignment=path)


def test_a_missing_assignment(tmp_path: Path) -> None:
    refused(dataset(CLIPS), "gone.json", "No such file", assignment=tmp_path / "gone.json")
    refused(dataset(CLIPS), str(tmp_path), "irectory", assignment=tmp_path)


@pytest.mark.parametrize("part", [None, True, 1.0, -1, "0", "", "all", [1], {"a": 1}])
def test_a_part_is_a_fold_or_a_split(tmp_path: Path, part: Any) -> None:
    path = write(tmp_path / "split.json", parts={"x": 0, "y": part})
    refused(dataset({"1": ("x", 2), "2": ("y", 2)}), "part of y", assignment=path)


def test_a_subject_under_two_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(
        '{"dataset": "afew-va", "by": "subject", "parts": {"Ann Lee": 0, "Bo": 1, "Ann Lee": 1}}'
    )
    wanted = dataset({"1": ("Ann Lee", 2), "2": ("Bo", 2)})
    refused(wanted, "split.json", "Ann Lee", "'0'", "'1'", "person-independent", assignment=path)
    path.write_text(path.read_text().replace('"Ann Lee": 1', '"Ann Lee": 0'))
    assert select(wanted, SplitOptions(assignment=path, fold=0)).chosen["subject"].n_unique() == 1


@pytest.mark.parametrize("options", [{"fold": 0}, {"fold": 1}, {"split": "all"}])
def test_clips_of_one_actor_on_two_sides_are_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    wanted = dataset({"1": ("Ann Lee", 2), "2": ("Bo", 2), "3": ("Ann Lee", 2), "4": ("Cy", 1)})
    path = write(tmp_path / "split.json", by="video", parts={"1": 0, "2": 0, "3": 1, "4": 1})
    refused(
        wanted, "split.json", "1 subjects", "Ann Lee", "person-independent",
        assignment=path, **options,
    )  # fmt: skip
    write(path, by="video", parts={"1": 0, "2": 1, "3": 0, "4": 1})
    select(wanted, SplitOptions(assignment=path, **options))


def test_leaks_of_official_sets_are_refused_too() -> None:
    split = {"1": "train", "2": "validation", "3": "validation"}
    clips = {"1": ("Ann", 1), "2": ("Ann", 1), "3": (None, 1)}
    refused(dataset(clips, name="new", units=None, split=split), "/data", "Ann", split="all")


def test_a_hashed_name_names_nobody() -> None:
    assert hash_name("Ann Lee") == hashlib.sha256(b"Ann Lee").hexdigest()[:16]
    assert hash_name("Ann Lee") != hash_name("ann lee")


def test_of_three_parts_one_is_trained_on(tmp_path: Path) -> None:
    """A test set is for later: it is neither trained on nor scored unasked."""
    afew = dataset(CLIPS)
    subjects = sorted({*afew.labels["subject"]})
    parts = {s: ("train", "validation", "test")[min(i, 2)] for i, s in enumerate(subjects)}
    path = tmp_path / "split.json"
    values = {"dataset": "afew-va", "by": "subject", "parts": parts}
    path.write_text(json.dumps(values))
    found = select(afew, SplitOptions(assignment=path))
    assert {*found.others["subject"]} == {subjects[0]}
    assert {*found.chosen["subject"]} == {subjects[1]}
    for odd, message in (
        ("Validation", "expected the number of a fold, or train, validation, test"),
        (0, "found folds and named parts"),
    ):
        path.write_text(json.dumps(values | {"parts": parts | {subjects[2]: odd}}))
        with pytest.raises(UsageError, match=message):
            select(afew, SplitOptions(assignment=path))
