"""Who a model was trained on, against who is scored; and of several models, which held out whom."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vafer.datasets.labels import Dataset, some
from vafer.datasets.splits import Selection, hash_name
from vafer.errors import ModelError, UsageError, display_path
from vafer.model import ModelCard, read_card
from vafer.store import OF_A_RUN, Choice, choose_model, is_model_name


def choose_models(
    model: str | Path | None, *, on_notice: Callable[[str], None] = lambda text: None
) -> tuple[Choice, ...]:
    """A model; or those of a folder of runs, `*/model.safetensors`.

    A name that vafer knows means that model, whatever folder is so called. Raises ModelError where
    there is none.
    """
    is_name = isinstance(model, str) and is_model_name(model)
    if model is None or is_name or not _is_folder(Path(model)):
        return (choose_model(model, on_notice=on_notice),)
    one = Path(model) / OF_A_RUN
    several = sorted(Path(model).glob(f"*/{OF_A_RUN}"))
    if one.is_file() and several:
        raise ModelError(
            f"{display_path(Path(model))} holds a model, and {len(several)} more in the folders "
            f"below: found {display_path(one)} and {display_path(several[0])}; expected one, or "
            "one a fold. Name the file, or move the runs into a folder of their own"
        )
    if one.is_file():
        return (choose_model(model, on_notice=on_notice),)
    if not several:
        raise ModelError(
            f"{display_path(Path(model))}: no model.safetensors in this folder or in one below; "
            "expected a run of vafer train, or a folder of such runs, one a fold. Name one"
        )
    return tuple(Choice(path.stem, path, "file") for path in several)


def shares(
    models: Sequence[Path], dataset: Dataset, selection: Selection, rows: pl.DataFrame
) -> list[tuple[Path, pl.DataFrame]]:
    """Which model predicts which rows: one all, several each those of the fold that it held out.

    Raises ModelError where a file does not say its fold, UsageError where folds do not fit.
    """
    if len(models) == 1:
        return [(models[0], rows)]
    by_fold: dict[int, Path] = {}
    for path in models:
        fold = _held_out_fold(path, dataset, selection)
        other = by_fold.setdefault(fold, path)
        if other != path:
            raise UsageError(
                f"{display_path(other)} and {display_path(path)} both held out fold {fold} of "
                f"{dataset.name}; expected one model a fold. Remove one, or name one alone"
            )
    found = [(path, _of_fold(selection, rows, fold)) for fold, path in sorted(by_fold.items())]
    n_shared = sum(len(own) for _, own in found)
    if n_shared < len(rows):
        raise UsageError(
            f"the models held out folds {', '.join(map(str, sorted(by_fold)))} of {dataset.name}, "
            f"which are {n_shared:,} of the {len(rows):,} frames to score; expected one model a "
            "fold. Train the others, or score one of these folds with --fold"
        )
    return [(path, own) for path, own in found if len(own)]


def trained_on(
    card: ModelCard, dataset: Dataset, selection: Selection, rows: pl.DataFrame
) -> str | None:
    """What of the rows a model was trained on, in words; None where nothing is known to be."""
    if dataset.name in (card.training.get("datasets") or ()):
        return (
            f"{card.name} was trained on {dataset.name}, and does not say on which part. These "
            "scores are not of people or videos that it never saw"
        )
    is_same = card.training.get("dataset") == dataset.name
    for column, blame in (("subject", "person-independent"), ("video", "of unseen videos")):
        seen = {*card.training.get(f"{column}s_sha256", ())}
        # People have one name everywhere; videos of other datasets are called 001 too.
        if not seen or (column == "video" and not is_same):
            continue
        names = rows[column].drop_nulls().unique().sort().to_list()
        both = [name for name in names if hash_name(name) in seen]
        if both:
            return (
                f"{card.name} was trained on {len(both)} of the {len(names)} {column}s scored: "
                f"{some(both)}. These scores are not {blame}"
            )
    held_out = card.training.get("held_out", {})
    if is_same and dataset.frames_in == "images" and _how(held_out) != _how(selection.described):
        return (
            f"{card.name} was trained on all of {dataset.name} but {_in_words(held_out)}, and "
            f"{_in_words(selection.described)} is scored. These scores are not of unseen pictures"
        )
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # as of a name that is too long; what cannot be a folder may be told as a file
        return False


def _how(described: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(described.get(key) for key in ("part", "assignment_sha256"))


def _in_words(described: Mapping[str, Any]) -> str:
    part, digest = _how(described)
    return f"{part}{f' of the assignment {digest[:8]}' if digest else ''}"


def _held_out_fold(path: Path, dataset: Dataset, selection: Selection) -> int:
    training = read_card(path).training
    held_out = training.get("held_out", {})
    fold = held_out.get("part")
    if training.get("dataset") != dataset.name or not isinstance(fold, int):
        raise ModelError(
            f"{display_path(path)} is one of several models, and does not say which fold of "
            f"{dataset.name} it held out; expected one model a fold, as `vafer train` makes them "
            "with data.fold. Name one model alone, or a folder of such"
        )
    for key, option in (("n_folds", "--n-folds"), ("assignment_sha256", "--assignment")):
        if held_out.get(key) != selection.described.get(key):
            raise ModelError(
                f"{display_path(path)} held out a fold of another assignment: its {key} is "
                f"{held_out.get(key)}, here it is {selection.described.get(key)}. Give {option} as "
                "in its training"
            )
    return fold


def _of_fold(selection: Selection, rows: pl.DataFrame, fold: int) -> pl.DataFrame:
    assignment = selection.assignment or {"by": "subject", "parts": {}}
    units = [name for name, part in assignment["parts"].items() if part == fold]
    return rows.filter(pl.col(assignment["by"]).is_in(units))
