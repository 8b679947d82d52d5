"""Which part of a dataset is scored, and which is left for training; no person is in both.

AFEW-VA is parted into folds by person, Aff-Wild by video, and the others come in official sets. An
assignment is written out with what was made of it, and can be read back.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vafer.datasets.labels import Dataset, number_of, shortened, some
from vafer.errors import UsageError, display_path
from vafer.options import SplitOptions
from vafer.store import sha256

ALL = "all"
NAMES = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Labelled frames that are chosen, and others that may be trained on.

    part: what was chosen, a fold, `train`, `validation` or `all`. described: how, in JSON.
    assignment: the whole, as `--assignment` reads it; None where the sets are the official ones.
    """

    chosen: pl.DataFrame
    others: pl.DataFrame
    part: int | str
    described: Mapping[str, Any]
    assignment: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """As in `fold 2` or `validation`."""
        return f"fold {self.part}" if isinstance(self.part, int) else self.part


def select(dataset: Dataset, options: SplitOptions) -> Selection:
    """Choose a part of a dataset.

    Raises UsageError where the dataset has no such part, where a person would be on two sides, and
    where nothing would be left to score.
    """
    assignment, described = _assign(dataset, options)
    where = display_path(options.assignment or dataset.root)
    parts = _parts(dataset, assignment, where)
    _refuse_leaks(dataset.labels["subject"], parts, where)
    wanted = _wanted(dataset, options, parts)
    is_chosen = pl.repeat(True, len(parts), eager=True) if wanted == ALL else parts == str(wanted)
    # Where a part is called `train`, no other is trained on: a third one is for a last test.
    is_other = ~is_chosen & (parts == "train") if "train" in parts else ~is_chosen
    chosen, others = dataset.labels.filter(is_chosen), dataset.labels.filter(is_other)
    if chosen.is_empty():
        raise UsageError(
            f"{where}: found no labelled frame in {wanted} of {dataset.name}; expected one or "
            "more. Finish the download"
        )
    described |= {"part": wanted, "n_videos": chosen["video"].n_unique()}
    if dataset.has_subjects:
        described["n_subjects"] = chosen["subject"].n_unique()
    return Selection(chosen, others, wanted, described, assignment)


def hash_name(name: str) -> str:
    """How a model file names a person or video it was trained on, without naming them."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _assign(
    dataset: Dataset, options: SplitOptions
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Where each person or video belongs, None in official sets; and how that came about."""
    if options.assignment is not None:
        assignment = _read_assignment(dataset, options.assignment)
        digest = sha256(options.assignment)
        return assignment, {"by": assignment["by"], "assignment_sha256": digest}
    if dataset.units == "subject":
        if options.fold is None and dataset.labels["subject"].n_unique() < options.n_folds:
            return None, {"by": "subject"}  # too few for folds, which nobody asked for
        how: dict[str, Any] = {"n_folds": options.n_folds}
        return _folds(dataset, options.n_folds), {"by": "subject", **how}
    if dataset.units == "video":
        how = {"seed": options.seed, "fraction": options.fraction}
        return _by_video(dataset, options.seed, options.fraction), {"by": "video", **how}
    return None, {"by": "official"}


def _folds(dataset: Dataset, n_folds: int) -> dict[str, Any]:
    """Persons into folds of about as many frames: the largest first, each into the smallest fold.

    Ties go by the hash of the name, so that every machine makes the same folds.
    """
    counts = dict(dataset.labels.group_by("subject").len().iter_rows())
    if len(counts) < n_folds:
        raise UsageError(
            f"{display_path(dataset.root)} has {len(counts)} subjects; expected at least "
            f"{n_folds}, one a fold. Finish the download, or ask for fewer folds"
        )
    sizes, parts = [0] * n_folds, {}
    for subject in sorted(counts, key=lambda s: (-counts[s], hash_name(s))):
        fold = sizes.index(min(sizes))
        sizes[fold] += counts[subject]
        parts[subject] = fold
    return _assignment(dataset, "subject", parts, n_folds=n_folds)


def _by_video(dataset: Dataset, seed: int, fraction: float) -> dict[str, Any]:
    """Videos into training and validation, in the order of the hash of seed and name."""
    videos = dataset.labels["video"].unique().to_list()
    if len(videos) < 2:
        raise UsageError(
            f"{display_path(dataset.root)} has {len(videos)} labelled videos; expected 2 or more, "
            "to train on and to score on"
        )
    n = min(max(1, round(fraction * len(videos))), len(videos) - 1)
    order = sorted(videos, key=lambda v: hashlib.sha256(f"{seed}:{v}".encode()).hexdigest())
    parts = {v: "validation" if i < n else "train" for i, v in enumerate(order)}
    return _assignment(dataset, "video", parts, seed=seed, fraction=fraction)


def _assignment(dataset: Dataset, by: str, parts: Mapping[str, int | str], **how: Any) -> dict:
    return {"dataset": dataset.name, "by": by, **how, "parts": dict(sorted(parts.items()))}


def _read_assignment(dataset: Dataset, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if values.setdefault(key, value) != value:
                raise UsageError(
                    f"{display_path(path)}: {key} is there twice, with "
                    f"{shortened(str(values[key]))} and {shortened(str(value))}; expected one part "
                    "a name, since scores on who was trained on are not person-independent. Keep "
                    "one"
                )
        return values

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{display_path(path)} cannot be read as JSON: {error}; expected the split.json that "
            "an evaluation or a run wrote"
        ) from error
    is_one = isinstance(values, dict) and values.get("by") in ("subject", "video")
    if not is_one or not isinstance(values.get("parts"), dict):
        raise UsageError(
            f'{display_path(path)} is no assignment: expected {{"dataset": …, "by": "subject" or '
            '"video", "parts": {name: fold or split}}, as the split.json of an evaluation or a run'
        )
    if values.get("dataset") != dataset.name:
        raise UsageError(
            f"{display_path(path)} is the assignment of {values.get('dataset')}; expected one of "
            f"{dataset.name}. Give that, or leave it out"
        )
    if values["by"] == "subject" and not dataset.has_subjects:
        raise UsageError(
            f"{display_path(path)} parts {dataset.name} by subject, and it names no subjects: "
            'expected "by": "video"'
        )
    for name, part in values["parts"].items():
        if not _is_part(part):
            raise UsageError(
                f"{display_path(path)}: the part of {name} is {shortened(json.dumps(part))}; "
                f"expected the number of a fold, or {', '.join(NAMES)}. Correct it"
            )
    if len({type(part) for part in values["parts"].values()}) > 1:
        raise UsageError(
            f"{display_path(path)}: found folds and named parts; expected either. Keep one kind"
        )
    return values


def _is_part(part: Any) -> bool:
    return part in NAMES if isinstance(part, str) else type(part) is int and part >= 0


def _parts(dataset: Dataset, assignment: Mapping[str, Any] | None, where: str) -> pl.Series:
    """The part of each labelled frame, as text."""
    if assignment is None:
        return dataset.labels["split"]
    units = dataset.labels[assignment["by"]]
    parts = {name: str(part) for name, part in assignment["parts"].items()}
    unknown = sorted(str(unit) for unit in {*units.unique()} - parts.keys())
    if unknown:
        raise UsageError(
            f"{where} does not say where {len(unknown)} {assignment['by']}s of {dataset.name} "
            f"belong: {some(unknown)}; expected a part for each. Add them, or give the split.json "
            "of the same copy of the dataset"
        )
    return units.replace_strict(parts, return_dtype=pl.String)


def _wanted(dataset: Dataset, options: SplitOptions, parts: pl.Series) -> int | str:
    """The part that is asked for, or the one to score where none is."""
    there = parts.unique().drop_nulls().to_list()
    folds = sorted(n for part in there if (n := number_of(part)) is not None)
    splits = sorted(part for part in there if number_of(part) is None)
    choices = [f"--fold {', '.join(map(str, folds))}"] if folds else []
    expected = " or ".join([*choices, f"--split {', '.join([*splits, ALL])}"])
    if options.fold is not None:
        if options.fold in folds:
            return options.fold
        reason = "" if folds else " parted by subject"
        if not folds and not dataset.has_subjects:
            reason = ", since it names no subjects: there are no subject-independent ones"
        raise UsageError(f"{dataset.name} has no fold {options.fold}{reason}; expected {expected}")
    default = "validation" if splits else ALL
    split = default if options.split is None else options.split
    if split in (*splits, ALL):
        return split
    raise UsageError(
        f"{display_path(dataset.root)}: {dataset.name} has no {split} here; expected {expected}. "
        f"Name one of these{'' if folds else ', or finish the download'}"
    )


def _refuse_leaks(subjects: pl.Series, parts: pl.Series, where: str) -> None:
    known = pl.DataFrame({"subject": subjects, "part": parts}).drop_nulls()
    n_parts = known.group_by("subject").agg(pl.col("part").n_unique())
    both = n_parts.filter(pl.col("part") > 1)["subject"].sort().to_list()
    if both:
        raise UsageError(
            f"{where} puts {len(both)} subjects into more than one part: {some(both)}; expected "
            "each in one, since scores on who was trained on are not person-independent. Part by "
            "subject"
        )
