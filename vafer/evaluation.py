"""A dataset's labels against a model, or against predictions that are there: scores and pictures.

scores.json  frames.parquet  split.json  traces-<nn>.png  predictions.png  error_plane.png
features.png
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from vafer import __version__
from vafer.annotation import choose_device
from vafer.datasets import open_dataset
from vafer.datasets.labels import Dataset
from vafer.datasets.published import PUBLISHED
from vafer.datasets.splits import Selection, select
from vafer.errors import UsageError, counted, display_path
from vafer.files import write_json, write_whole
from vafer.folds import choose_models, shares, trained_on
from vafer.lock import own_folder
from vafer.matching import MISSING, join, predictions_for, scored_values
from vafer.model import read_card
from vafer.options import BATCH_SIZE, SplitOptions
from vafer.output import differences
from vafer.plots import plot_error_plane, plot_features, plot_predictions, plot_traces
from vafer.predicting import EvaluationProgress, Means, Predicted, detector_for, predict
from vafer.predictions import prediction_files, read_predictions
from vafer.scoring import score
from vafer.store import describe_choice, sha256
from vafer.table import output_errors

CROPS = ("labels", "detector")
SCORES, FRAMES, SPLIT = "scores.json", "frames.parquet", "split.json"
PICTURES = ("predictions.png", "error_plane.png", "features.png")
PARTS = "parts"  # what is predicted so far, until the scores are there


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    scores: as scores.json has them. frames: as frames.parquet. out: the folder of both.
    """

    scores: dict[str, Any]
    frames: pl.DataFrame
    out: Path


def evaluate(
    dataset: str,
    *,
    root: str | Path | None = None,
    split: SplitOptions | None = None,
    predictions: str | Path | None = None,
    model: str | Path | None = None,
    crops: str = "labels",
    missing: str = "drop",
    detector: str | Path | None = None,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    out: str | Path | None = None,
    overwrite: bool = False,
    on_progress: Callable[[EvaluationProgress], None] = lambda progress: None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Score a model, or predictions that are there, against a dataset's labels.

    dataset: `afew-va`, `aff-wild`, `aff-wild2` or `affectnet`, under root. model: a name or a file,
    the embedded one without; or a folder of runs with one model a fold, each of which predicts the
    fold that it held out. crops: faces by the dataset's landmarks and boxes, or by the detector as
    annotation does. missing: how labelled frames without a prediction are scored. out: a folder;
    `evaluations/…` without. A run that was cut off goes on where it was.

    Raises UsageError (nothing was done), ModelError, OutputError.
    """
    if predictions is not None and model is not None:
        raise UsageError("both --predictions and --model: give what is to be scored, one of them")
    _check_choice("--crops", crops, CROPS)
    _check_choice("--missing", missing, MISSING)
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: expected 1 or more")
    options = split or SplitOptions()
    given = None if predictions is None else Path(predictions)
    chosen = () if given is not None else choose_models(model, on_notice=on_notice)
    models = [choice.path for choice in chosen]
    files = () if given is None else prediction_files(given)
    torch_device = choose_device(device)

    opened = open_dataset(dataset, None if root is None else Path(root), on_notice=on_notice)
    selection = select(opened, options)
    for notice in _unused(opened, options, given, crops, detector):
        on_notice(notice)
    rows = opened.locate(selection.chosen, must_exist=given is None)
    inputs = _inputs(opened, selection, missing)
    leaks: list[str] = []
    if given is not None:
        inputs["predictions"] = {"name": given.name, "sha256": [sha256(file) for file in files]}
    else:
        work = shares(models, opened, selection, rows)
        found = (trained_on(read_card(path), opened, selection, own) for path, own in work)
        leaks = [leak for leak in found if leak is not None]
        chosen_detector = detector_for(opened, work, crops, detector, on_notice)
        detector_file = chosen_detector.path if chosen_detector else None
        if any(choice and choice.is_default for choice in (*chosen, chosen_detector)):
            on_notice(describe_choice(chosen, chosen_detector))
        inputs |= {
            "models": [{"name": read_card(p).name, "sha256": sha256(p)} for p, _ in work],
            "crops": crops,
            "detector_sha256": detector_file and sha256(detector_file),
            "origin": {
                "models": [choice.origin for choice in chosen],
                "detector": chosen_detector.origin if chosen_detector else None,
            },
        }
    folder = Path(
        out or _default_out(opened, selection, given, models, crops=crops, missing=missing)
    )
    with own_folder(folder):
        differing = _difference(folder, inputs)
        if differing and not overwrite:
            raise UsageError(
                f"{display_path(folder)} holds scores already: {differing}. Give another --out, or "
                "--overwrite"
            )
        if given is not None:
            on_progress(EvaluationProgress(0, len(rows)))  # from here on an interrupt costs scores
            table = predictions_for(opened, rows, read_predictions(given), on_notice)
            predicted = Predicted(table, [])
            on_progress(EvaluationProgress(len(rows), len(rows)))
        else:
            means = Means(crops, detector_file, torch_device, batch_size, on_progress, on_notice)
            predicted = predict(opened, work, means, folder / PARTS)
        frames = join(rows, predicted.table)
        n_beyond = frames.filter(pl.any_horizontal(pl.col("valence", "arousal").abs() > 1)).height
        if n_beyond:
            on_notice(f"{counted(n_beyond, 'prediction')} outside −1 to 1, scored unchanged")
        scored = scored_values(frames, predicted.table, missing)
        scores = _scores(opened, selection, frames, scored, missing)
        scores["provenance"] = {
            "vafer": __version__,
            "inputs": inputs,
            "dataset": {"name": opened.name, **opened.facts},
            "faces": _ways(predicted.table),
            "trained_on": leaks,
            "problems": predicted.problems,
        }
        written = frames.drop("subject")
        with output_errors(folder):
            _clear(folder)
            _draw(folder, opened, scored, predicted.table, scores)
            if selection.assignment is not None:
                write_json(folder / SPLIT, selection.assignment)
            write_whole(
                folder / FRAMES, lambda file: written.write_parquet(file, compression="zstd")
            )
            write_json(folder / SCORES, scores)  # last: where it is, all is
            shutil.rmtree(folder / PARTS, ignore_errors=True)
    return Evaluation(scores, written, folder)


def _scores(
    dataset: Dataset,
    selection: Selection,
    frames: pl.DataFrame,
    scored: pl.DataFrame,
    missing: str,
) -> dict[str, Any]:
    """All of scores.json but where it comes from."""
    by: Literal["subject", "video", "frame"] = (
        "frame" if dataset.frames_in == "images" else "subject" if dataset.has_subjects else "video"
    )
    scores = score(scored, by=by)
    n_predicted = int(frames["valence"].is_not_null().sum())
    scores["overall"] |= {
        "n_predicted": n_predicted,
        "n_missing": len(frames) - n_predicted,
        "missing": missing,
    }
    return scores | {"split": dict(selection.described), "published": PUBLISHED[dataset.name]}


def _unused(
    dataset: Dataset, options: SplitOptions, predictions: Path | None, crops: str, detector: object
) -> Iterator[str]:
    """What was asked for and does nothing."""
    if predictions is not None and (crops != "labels" or detector is not None):
        yield "--crops and --detector do nothing with --predictions: no face is cropped"
    default = SplitOptions()
    by = "--assignment" if options.assignment else f"dataset {dataset.name}"
    if options.n_folds != default.n_folds and (options.assignment or dataset.units != "subject"):
        yield f"--n-folds does nothing with {by}"
    is_other = (options.seed, options.fraction) != (default.seed, default.fraction)
    if is_other and (options.assignment or dataset.units != "video"):
        yield f"--split-seed and --split-fraction do nothing with {by}"


def _check_choice(option: str, found: str, expected: Sequence[str]) -> None:
    if found not in expected:
        raise UsageError(f"{option} {found}: expected {' or '.join(expected)}")


def _inputs(dataset: Dataset, selection: Selection, missing: str) -> dict[str, Any]:
    """All that decides on the scores, but for what predicts."""
    labels = hashlib.sha256()
    for part in selection.chosen.iter_slices(1 << 16):
        labels.update("\n".join(part["video"]).encode())
        labels.update(part.select("frame_index", "valence", "arousal").to_numpy().tobytes())
    return {
        "dataset": dataset.name,
        "split": dict(selection.described),
        "labels_sha256": labels.hexdigest(),
        "missing": missing,
    }


def _default_out(
    dataset: Dataset,
    selection: Selection,
    predictions: Path | None,
    models: Sequence[Path],
    *,
    crops: str,
    missing: str,
) -> Path:
    if predictions is not None:
        by = predictions.stem
    elif len(models) == 1:
        by = Path(read_card(models[0]).name).name  # a file may call itself anything
    else:
        by = models[0].absolute().parent.parent.name
    how = [text for text, default in ((crops, "labels"), (missing, "drop")) if text != default]
    name = "-".join([dataset.name, selection.name.replace(" ", "-"), by, *how])
    return Path("evaluations", name)


def _difference(folder: Path, inputs: Mapping[str, Any]) -> str:
    """In words, that a folder holds the scores of something else; empty where it does not."""
    path = folder / SCORES
    if not path.is_file():
        return ""
    try:
        return differences(json.loads(path.read_text())["provenance"]["inputs"], inputs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {SCORES} was not written by vafer evaluate"


def _clear(folder: Path) -> None:
    """Delete what an earlier evaluation wrote, first the scores, without which all else is none."""
    (folder / SCORES).unlink(missing_ok=True)
    for name in (FRAMES, SPLIT, *PICTURES):
        (folder / name).unlink(missing_ok=True)
    for page in folder.glob("traces-[0-9][0-9].png"):
        page.unlink()


def _ways(predicted: pl.DataFrame) -> dict[str, int]:
    """How many faces were found in which way, or why not; empty where that is not known."""
    if "way" not in predicted.columns:
        return {}
    return dict(predicted["way"].value_counts(sort=True, name="n").iter_rows())


def _draw(
    folder: Path,
    dataset: Dataset,
    scored: pl.DataFrame,
    predicted: pl.DataFrame,
    scores: Mapping[str, Any],
) -> None:
    whole = scored.drop_nulls(["valence", "arousal"])
    labels = whole.select("valence_label", "arousal_label").to_numpy()
    values = whole.select("valence", "arousal").to_numpy().astype(np.float64)
    part = scores["split"]["part"]
    title = f"{dataset.name}, {f'fold {part}' if isinstance(part, int) else part}"
    plot_predictions(labels, values, folder / PICTURES[0], scores=scores["overall"], title=title)
    plot_error_plane(labels, values, folder / PICTURES[1])
    if dataset.frames_in != "images":
        by_video = {entry["video"]: entry for entry in scores["per_video"]}
        plot_traces(scored, folder, scores=by_video)
    if "features" in predicted.columns:
        _draw_features(folder, dataset, scored, predicted)


def _draw_features(
    folder: Path, dataset: Dataset, frames: pl.DataFrame, predicted: pl.DataFrame
) -> None:
    """t-SNE of a sample's features, by subject, or by video where no subjects are named."""
    sample = predicted.drop_nulls("features").select("video", "frame_index", "features")
    sample = sample.join(frames, on=["video", "frame_index"], how="left")
    if sample.is_empty():
        return
    what: Literal["subject", "video"] = "subject" if dataset.has_subjects else "video"
    names: Sequence[str | None] = sample[what].to_list()
    if dataset.frames_in == "images":
        names = [None] * len(sample)
    plot_features(
        {"encoder features h": np.stack(sample["features"].to_list()).astype(np.float32)},
        folder / PICTURES[2],
        labels=sample.select("valence_label", "arousal_label").to_numpy(),
        subjects=np.array(names, object),
        what=what,
    )
