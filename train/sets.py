"""Data sets → what a run trains on and what it is scored on."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from train.cache import CropStore, Part, cached_crops, parts_of_jpegs, parts_of_rows
from train.config import DataConfig, TrainConfig, read_config, shipped_configs
from train.data import FaceSet, Split
from train.posteriors import CrossFit, cross_fitted
from train.synthetic import draw_faces
from vafer.crops import CropSpec
from vafer.datasets import default_root, open_dataset
from vafer.datasets.labels import Dataset
from vafer.datasets.splits import ALL, Selection, hash_name, select
from vafer.errors import UsageError
from vafer.faces import Detector
from vafer.labelled import FaceFinder
from vafer.options import SplitOptions
from vafer.store import choose_detector

# Pleasure and arousal of the emotion words, Russell & Mehrabian 1977; neutral is 0 by definition.
EXPRESSION_NORMS = {
    "happy": (0.81, 0.51),
    "surprise": (0.40, 0.67),
    "angry": (-0.51, 0.59),
    "fear": (-0.64, 0.60),
    "disgust": (-0.60, 0.35),
    "sad": (-0.63, -0.27),
    "neutral": (0.0, 0.0),
}
# Raters of faces give a smile less than raters of words give "happy": AffectNet's, for one, chose
# from 0 to 1 and from −0.2 to 0.5 (Mollahosseini et al. 2017, section 3.3). This is half way from
# the word to the middle of what they could choose.
FACE_NORMS = EXPRESSION_NORMS | {"happy": (0.66, 0.33)}
LABELS = {
    "norms": "norms of the expression (Russell & Mehrabian 1977), one point a class",
    "graded": "norms (Russell & Mehrabian 1977; happy half way to AffectNet's ratings) averaged "
    "over the expressions in a face: half by its label, half by the posterior of a network that "
    "never saw the face",
}
LEFT_OUT = ("contempt",)  # of which there are nine pictures
NO_IDENTITY = "facial-expressions"  # of LFW: a file name that names nobody
SYNTHETIC_SUBJECTS = (60, 20)  # to train on, to score on
SYNTHETIC_EACH = 40


def load_split(
    config: TrainConfig,
    on_progress: Callable[[str, int, int], None] = lambda name, done, n: None,
    on_notice: Callable[[str], None] = lambda text: None,
    device: torch.device | None = None,
) -> Split:
    """The faces of `config.data`. Raises UsageError where something is missing.

    device: of the networks that grade labels; a GPU without, where config.device allows one.
    """
    if device is None:
        uses_cuda = config.device != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if uses_cuda else "cpu")
    match config.data.dataset:
        case "synthetic":
            return _synthetic(config)
        case "faces":
            return _faces(config, on_progress, on_notice, device)
        case name:
            return _published(name, config, on_progress, on_notice)


def fold_held_out(training: Mapping[str, Any]) -> tuple[int, int] | None:
    """The fold of LFW's persons, and of how many, that a training on the dataset `faces` held out.

    training: of a model's card; None where it tells of another dataset, or of none.
    """
    try:
        data = training["procedure"]["data"]
        return (int(data["fold"]), int(data["n_folds"])) if data["dataset"] == "faces" else None
    except (KeyError, TypeError, ValueError):
        return None


def split_by_name(
    crop: CropSpec,
    faces: Path,
    detector: Path,
    cache: Path | None = None,
    *,
    fold: int = 0,
    n_folds: int = SplitOptions.n_folds,
    on_notice: Callable[[str], None],
) -> Split:
    """The faces of the dataset `faces`, split as the training `faces` does; all labels are norms.

    crop: of the network that will see them. faces: folder of FER2013 and LFW. detector: whose
    landmarks cut the crops. cache: of these. fold: of LFW's persons, held out. Raises UsageError,
    ModelError.
    """
    config = read_config(shipped_configs() / "faces.yaml")
    data = replace(
        config.data,
        root=faces,
        detector=detector,
        cache=cache,
        fold=fold,
        n_folds=n_folds,
        labels="norms",
    )
    return load_split(replace(config, data=data, crop=crop), on_notice=on_notice)


def _published(
    name: str,
    config: TrainConfig,
    on_progress: Callable[[str, int, int], None],
    on_notice: Callable[[str], None],
) -> Split:
    """A data set of labelled frames, by its reader; one part held out, the rest trained on."""
    data = config.data
    dataset = open_dataset(name, data.root, on_notice=on_notice)
    options = SplitOptions(
        n_folds=data.n_folds,
        seed=data.split_seed,
        fraction=data.split_fraction,
        assignment=data.assignment,
    )
    selection = select(dataset, options)
    if selection.part == ALL and dataset.has_subjects:
        selection = select(dataset, replace(options, fold=data.fold))
    if selection.others.is_empty():
        raise UsageError(
            f"{dataset.root} has the labels of one set of {name} alone: expected those of a "
            "training set and of a validation set. Finish the download"
        )
    sets = {
        f"{name.replace('-', '_')}_{side}": dataset.locate(rows, must_exist=True)
        for side, rows in (
            ("train", selection.others),
            (selection.name.replace(" ", "_"), selection.chosen),
        )
    }
    finder = FaceFinder(config.crop, is_cropped=dataset.is_cropped, border=data.border)
    if any(finder.needs_detector(rows) for rows in sets.values()):
        finder.detector = _detector(data.detector, on_notice)
    train, held_out = (
        _labelled_faces(set_name, dataset, rows, finder, data, on_progress, on_notice)
        for set_name, rows in sets.items()
    )
    facts = _facts(dataset, selection, finder, (train, held_out))
    return Split((train,), (held_out,), facts, selection.assignment)


def _labelled_faces(
    name: str,
    dataset: Dataset,
    rows: pl.DataFrame,
    finder: FaceFinder,
    data: DataConfig,
    on_progress: Callable[[str, int, int], None],
    on_notice: Callable[[str], None],
) -> FaceSet:
    store = _crops(name, parts_of_rows(dataset, rows), finder, data, on_progress)
    faces = FaceSet(
        name,
        store,
        np.arange(len(rows)),
        rows.select("valence", "arousal").to_numpy().astype(np.float32),
        rows["subject"].to_numpy().astype(object),
        np.full(len(rows), None, object),
    )
    has_crop = np.array([way is not None for way in store.ways], bool)
    if not has_crop.all():
        on_notice(
            f"{name}: {int((~has_crop).sum()):,} of {len(rows):,} labelled frames are left out: no "
            "picture, one that cannot be read, or no face in it"
        )
    return faces.where(has_crop, name=name)


def _facts(
    dataset: Dataset, selection: Selection, finder: FaceFinder, sets: tuple[FaceSet, FaceSet]
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "held_out": dict(selection.described),
        "detector_sha256": finder.detector.sha256 if finder.detector else None,
        "sets": {faces.name: faces.counts() for faces in sets},
    }
    if dataset.frames_in != "images":
        trained_on = selection.others["video"].unique()
        facts["videos_sha256"] = sorted(hash_name(video) for video in trained_on)
    return facts


def _crops(
    name: str,
    parts: list[Part],
    finder: FaceFinder,
    data: DataConfig,
    on_progress: Callable[[str, int, int], None],
) -> CropStore:
    cache = data.cache or default_root("crops")
    return cached_crops(name, parts, finder, cache, partial(on_progress, name))


def _detector(named: Path | None, on_notice: Callable[[str], None]) -> Detector:
    """By a name that vafer knows, too. Raises ModelError."""
    is_name = named is not None and not named.is_file()
    choice = choose_detector(str(named) if is_name else named, on_notice=on_notice)
    on_notice(f"faces that have no landmarks are found by {choice}")
    return Detector(choice.path)


def _synthetic(config: TrainConfig) -> Split:
    sets = []
    for part, (name, n_subjects) in enumerate(
        zip(("synthetic_train", "synthetic_test"), SYNTHETIC_SUBJECTS, strict=True)
    ):
        size = config.crop.size + 2 * config.data.border
        drawn = draw_faces(n_subjects, SYNTHETIC_EACH, size=size, seed=part, prefix=name)
        sets.append(drawn_faces(name, drawn.crops, drawn.labels, drawn.subjects))
    return Split((sets[0],), (sets[1],), {"labels": "drawn"})


def drawn_faces(name: str, crops: np.ndarray, labels: np.ndarray, subjects: np.ndarray) -> FaceSet:
    """Crops (N, S, S, C) that are in memory already."""
    return FaceSet(
        name,
        crops.transpose(0, 3, 1, 2),
        np.arange(len(crops)),
        labels,
        subjects.astype(object),
        np.full(len(crops), None, object),
    )


def _faces(
    config: TrainConfig,
    on_progress: Callable[[str, int, int], None],
    on_notice: Callable[[str], None],
    device: torch.device,
) -> Split:
    """FER2013 and LFW with expression labels: FER2013's own test split, and one fold of LFW."""
    data = config.data
    root = data.root or default_root("faces")
    paths = {"fer2013": root / "fer2013.parquet", "lfw": root / "lfw_expressions.parquet"}
    tables = {
        "fer2013": _read(paths["fer2013"], "split"),
        "lfw": _read(paths["lfw"], "identity").filter(pl.col("identity") != NO_IDENTITY),
    }
    detector = _detector(data.detector, on_notice)
    finder = FaceFinder(config.crop, detector, is_cropped=True, border=data.border)
    every = {}
    for name, table in tables.items():
        parts = parts_of_jpegs(str(paths[name]), table["jpeg"].to_list())
        store = _crops(name, parts, finder, data, on_progress)
        subjects = table["identity"].to_numpy().astype(object) if name == "lfw" else None
        every[name] = FaceSet(
            name,
            store,
            np.arange(len(table)),
            np.array([EXPRESSION_NORMS[e] for e in table["expression"]], np.float32),
            np.full(len(table), None, object) if subjects is None else subjects,
            table["expression"].to_numpy().astype(object),
        )
    in_test = (tables["fer2013"]["split"] == "test").to_numpy()
    fold = np.array([fold_of(str(s), data.n_folds) for s in every["lfw"].subjects])
    train = (
        every["fer2013"].where(~in_test, name="fer_train"),
        every["lfw"].where(fold != data.fold, name="lfw_train"),
    )
    if data.labels == "graded":
        copies = np.array([hashlib.sha256(jpeg).hexdigest() for jpeg in tables["fer2013"]["jpeg"]])
        groups = np.concatenate([copies[~in_test], train[1].subjects.astype(str)])
        train = _graded(train, groups, finder, data, device, on_notice)
    held_out = (
        every["fer2013"].where(in_test, name="fer_test"),
        every["lfw"].where(fold == data.fold, name="lfw_test"),
    )
    facts = {
        "detector_sha256": detector.sha256,
        "labels": LABELS[data.labels],
        "sets": {faces.name: faces.counts() for faces in (*train, *held_out)},
    }
    return Split(train, held_out, facts)


def _graded(
    train: tuple[FaceSet, FaceSet],
    groups: np.ndarray,
    finder: FaceFinder,
    data: DataConfig,
    device: torch.device,
    on_notice: Callable[[str], None],
) -> tuple[FaceSet, FaceSet]:
    """Labels by what is in a face: its expression's name counts as much as its posterior."""
    names = list(EXPRESSION_NORMS)
    posteriors = cross_fitted(
        train,
        names,
        groups,
        data.cache or default_root("crops"),
        options=CrossFit(),
        key=finder.key,
        device=device,
        on_progress=lambda text: on_notice(f"posteriors: {text}"),
    )
    named = np.concatenate([[names.index(e) for e in faces.expressions] for faces in train])
    shares = (np.eye(len(names), dtype=np.float32)[named] + posteriors) / 2
    norms = np.array([*FACE_NORMS.values()], np.float32)
    parts = np.split(shares, [len(train[0])])
    first, second = (
        replace(faces, labels=part @ norms, posteriors=part)
        for faces, part in zip(train, parts, strict=True)
    )
    return first, second


def _read(path: Path, column: str) -> pl.DataFrame:
    """Faces with `expression`, `jpeg` and a column that says how to split them."""
    if not path.is_file():
        raise UsageError(
            f"{path} is missing: expected it in the folder of faces, which is data.root of a "
            "config, or else $VAFER_DATA/faces"
        )
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"{path} cannot be read as a Parquet table: {error}") from error
    missing = sorted({"expression", "jpeg", column} - {*table.columns})
    if missing:
        raise UsageError(f"{path} lacks the columns {missing}: it has {table.columns}")
    for name, kind in {"expression": pl.String, "jpeg": pl.Binary, column: pl.String}.items():
        if (found := table.schema[name]) != kind:
            raise UsageError(f"{path} has the column {name} of {found}: expected {kind}")
    if n_null := table["jpeg"].null_count():
        raise UsageError(f"{path} lacks the picture in {n_null:,} rows: expected a JPEG in each")
    unknown = sorted({*table["expression"]} - {*EXPRESSION_NORMS, *LEFT_OUT}, key=str)
    if unknown:
        raise UsageError(
            f"{path} has the expressions {unknown[:5]}: expected {[*EXPRESSION_NORMS]}, or "
            f"{[*LEFT_OUT]}, which are left out"
        )
    table = table.filter(pl.col("expression").is_in(list(EXPRESSION_NORMS)))
    if table.is_empty():
        raise UsageError(f"{path} has no face to use")
    return table


def fold_of(subject: str, n_folds: int) -> int:
    """A person's fold, by the name alone, whatever else is in the data set."""
    share = int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 1000 / 1000
    return int(share * n_folds)
