"""A dataset's labels against a model, or against predictions that are there: scores and pictures.

scores.json  frames.parquet  split.json  traces-<nn>.png  predictions.png  error_plane.png
features.png
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from vafer.datasets.splits import Selection, SplitOptions, select
from vafer.errors import UsageError, display_path
from vafer.folds import model_files, shares, trained_on
from vafer.matching import MISSING, join, predictions_for, scored_values
from vafer.model import read_card
from vafer.options import BATCH_SIZE
from vafer.plots import plot_error_plane, plot_features, plot_predictions, plot_traces
from vafer.predicting import PARTS, EvaluationProgress, Means, predict
from vafer.predictions import read_predictions
from vafer.scoring import score
from vafer.store import sha256
from vafer.table import output_errors

CROPS = ("labels", "detector")
SCORES, FRAMES, SPLIT = "scores.json", "frames.parquet", "split.json"


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
    opened = open_dataset(dataset, None if root is None else Path(root), on_notice=on_notice)
    selection = select(opened, split or SplitOptions())
    given = None if predictions is None else Path(predictions)
    models = () if given is not None else model_files(model)
    inputs = _inputs(opened, selection, given, models, crops, missing)
    folder = Path(out) if out is not None else _default_out(opened, selection, given, models)
    differing = _difference(folder, inputs)
    if differing and not overwrite:
        raise UsageError(f"{display_path(folder)}: {differing}. Give another --out, or --overwrite")

    rows = opened.locate(selection.chosen, must_exist=given is None)
    leaks: list[str] = []
    if given is not None:
        predicted = predictions_for(opened, rows, read_predictions(given), on_notice)
    else:
        work = shares(models, opened, selection, rows)
        found = (trained_on(read_card(path), opened, selection, own) for path, own in work)
        leaks = [leak for leak in found if leak is not None]
        means = Means(
            crops,
            detector,
            choose_device(device),
            batch_size,
            overwrite=bool(differing),
            on_progress=on_progress,
            on_notice=on_notice,
        )
        predicted = predict(opened, work, means, folder)
    frames = join(rows, predicted)
    beyond = frames.filter((pl.col("valence").abs() > 1) | (pl.col("arousal").abs() > 1))
    if len(beyond):
        on_notice(f"{len(beyond):,} predictions lie beyond ±1 and are scored as they are")

    scored = scored_values(frames, predicted, missing)
    by: Literal["subject", "video", "frame"] = (
        "frame" if opened.frames_in == "images" else "subject" if opened.has_subjects else "video"
    )
    scores = score(scored, by=by)
    n_predicted = int(frames["valence"].is_not_null().sum())
    scores["overall"] |= {
        "n_predicted": n_predicted,
        "n_missing": len(frames) - n_predicted,
        "missing": missing,
    }
    scores |= {
        "split": dict(selection.described),
        "published": PUBLISHED[opened.name],
        "provenance": {
            "vafer": __version__,
            "inputs": inputs,
            "dataset": {"name": opened.name, **opened.facts},
            "faces": _ways(predicted),
            "trained_on": leaks,
        },
    }
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _draw(folder, opened, scored, frames, predicted, scores)
        if selection.assignment is not None:
            _write_json(folder / SPLIT, selection.assignment)
        _write_frames(folder / FRAMES, frames.drop("subject"))
        _write_json(folder / SCORES, scores)  # last: where it is, all is
        shutil.rmtree(folder / PARTS, ignore_errors=True)
    return Evaluation(scores, frames, folder)


def _check_choice(option: str, found: str, expected: Sequence[str]) -> None:
    if found not in expected:
        raise UsageError(f"{option} {found}: expected {' or '.join(expected)}")


def _inputs(
    dataset: Dataset,
    selection: Selection,
    predictions: Path | None,
    models: Sequence[Path],
    crops: str,
    missing: str,
) -> dict[str, Any]:
    """All that decides on the scores."""
    values = selection.chosen.select("frame_index", "valence", "arousal").to_numpy()
    labels = hashlib.sha256("\n".join(selection.chosen["video"]).encode() + values.tobytes())
    inputs: dict[str, Any] = {
        "dataset": dataset.name,
        "split": dict(selection.described),
        "labels_sha256": labels.hexdigest(),
        "missing": missing,
    }
    if predictions is None:
        inputs["models"] = [{"name": read_card(p).name, "sha256": sha256(p)} for p in models]
        inputs["crops"] = crops
        return inputs
    if not predictions.exists():
        raise UsageError(
            f"{display_path(predictions)}: no such file; expected the predictions that `vafer "
            "annotate` wrote"
        )
    digest = sha256(predictions) if predictions.is_file() else None
    inputs["predictions"] = {"name": predictions.name, "sha256": digest}
    return inputs


def _default_out(
    dataset: Dataset, selection: Selection, predictions: Path | None, models: Sequence[Path]
) -> Path:
    if predictions is not None:
        by = predictions.stem
    elif len(models) == 1:
        by = read_card(models[0]).name
    else:
        by = models[0].parent.parent.name
    return Path("evaluations", f"{dataset.name}-{selection.name.replace(' ', '-')}-{by}")


def _difference(folder: Path, inputs: Mapping[str, Any]) -> str:
    """In words, that a folder holds the scores of something else; empty where it does not."""
    path = folder / SCORES
    if not path.is_file():
        return ""
    try:
        there = json.loads(path.read_text())["provenance"]["inputs"]
        return "; ".join(
            f"its scores are of {key} {there.get(key)}, not {inputs.get(key)}"
            for key in sorted({*there, *inputs})
            if there.get(key) != inputs.get(key)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {SCORES} was not written by vafer evaluate"


def _ways(predicted: pl.DataFrame) -> dict[str, int]:
    """How many faces were found in which way; empty where that is not known."""
    if "way" not in predicted.columns:
        return {}
    return dict(sorted(Counter(predicted["way"].fill_null("none").to_list()).items()))


def _draw(
    folder: Path,
    dataset: Dataset,
    scored: pl.DataFrame,
    frames: pl.DataFrame,
    predicted: pl.DataFrame,
    scores: Mapping[str, Any],
) -> None:
    whole = scored.drop_nulls(["valence", "arousal"])
    labels = whole.select("valence_label", "arousal_label").to_numpy()
    values = whole.select("valence", "arousal").to_numpy().astype(np.float64)
    title = f"{dataset.name}, {scores['split']['part']}"
    plot_predictions(
        labels, values, folder / "predictions.png", scores=scores["overall"], title=title
    )
    plot_error_plane(labels, values, folder / "error_plane.png")
    if dataset.frames_in != "images":
        by_video = {entry["video"]: entry for entry in scores["per_video"]}
        plot_traces(frames, folder, scores=by_video)
    if "features" in predicted.columns:
        _draw_features(folder, dataset, frames, predicted)


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
        folder / "features.png",
        labels=sample.select("valence_label", "arousal_label").to_numpy(),
        subjects=np.array(names, object),
        what=what,
    )


def _write_frames(path: Path, frames: pl.DataFrame) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        frames.write_parquet(temporary, compression="zstd")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
