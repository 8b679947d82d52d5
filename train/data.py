"""Data sets → faces to train on and faces to score on, with labels and persons.

Persons never cross over: a split that has one on both sides is refused.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from train.cache import CropStore, cached_crops
from train.config import TrainConfig
from train.synthetic import draw_faces
from vafer.errors import UsageError
from vafer.faces import Detector

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
LEFT_OUT = ("contempt",)  # of which there are nine pictures
NO_IDENTITY = "facial-expressions"  # of LFW: a file name that names nobody
SYNTHETIC_SUBJECTS = (60, 20)  # to train on, to score on
SYNTHETIC_EACH = 40


@dataclass(frozen=True, slots=True)
class FaceSet:
    """Crops with labels and persons, N of them.

    crops: uint8 (M, C, S, S), or a store of M. rows: which of them, int64 (N,). labels: float32
    (N, 2), valence and arousal. subjects: (N,), str or None where the data set names none.
    expressions: (N,), str or None.
    """

    name: str
    crops: np.ndarray | CropStore
    rows: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    expressions: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_aligned(self) -> np.ndarray:
        """Which crops landmarks were found for, bool (N,); drawn ones need none."""
        if isinstance(self.crops, CropStore):
            return self.crops.is_aligned[self.rows]
        return np.ones(len(self), bool)

    def where(self, chosen: np.ndarray, *, name: str) -> "FaceSet":
        """Those of `chosen`, bool (N,)."""
        return replace(
            self,
            name=name,
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            subjects=self.subjects[chosen],
            expressions=self.expressions[chosen],
        )


@dataclass(frozen=True, slots=True)
class Split:
    """What to train on, and what to score on; no person is in both.

    train: one or more sets, trained on together. facts: what a model card says of the data.
    """

    train: tuple[FaceSet, ...]
    held_out: tuple[FaceSet, ...]
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.held_out:
            raise UsageError("nothing is held out to score on: expected one set or more")
        for faces in (*self.train, *self.held_out):
            if not len(faces):
                raise UsageError(f"{faces.name} has no faces")
            if not np.isfinite(faces.labels).all():
                raise UsageError(f"{faces.name} has labels that are not finite")
        ours = {s for faces in self.train for s in faces.subjects if s is not None}
        for faces in self.held_out:
            both = sorted(ours & {s for s in faces.subjects if s is not None})
            if both:
                raise UsageError(
                    f"{len(both)} subjects of {faces.name} are trained on too: "
                    f"{', '.join(both[:5])}{', …' if len(both) > 5 else ''}. "
                    "Scores on them would not be person-independent: split by subject"
                )


def load_split(
    config: TrainConfig, on_progress: Callable[[str, int, int], None] = lambda name, done, n: None
) -> Split:
    """The faces of `config.data`. Raises UsageError where something is missing."""
    match config.data.dataset:
        case "synthetic":
            return _synthetic(config)
        case "faces":
            return _faces(config, on_progress)
        case other:
            raise UsageError(
                f"data.dataset is {other}: this version reads `faces` and `synthetic` only; "
                "the readers of the published data sets come next"
            )


def default_root(dataset: str) -> Path:
    """$VAFER_DATA/<dataset>; VAFER_DATA is `data` where it is not set."""
    return Path(os.environ.get("VAFER_DATA", "data")) / dataset


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


def _faces(config: TrainConfig, on_progress: Callable[[str, int, int], None]) -> Split:
    """FER2013 and LFW with expression labels: FER2013's own test split, and one fold of LFW."""
    data = config.data
    root = data.root or default_root("faces")
    if data.detector is None:
        raise UsageError("data.detector is not set: name an ONNX face detector with landmarks")
    if not data.detector.is_file():
        raise UsageError(
            f"{data.detector}: no such file, named by data.detector: expected an ONNX face detector"
        )
    detector = Detector(data.detector)
    tables = {
        "fer2013": _read(root / "fer2013.parquet", "split"),
        "lfw": _read(root / "lfw_expressions.parquet", "identity").filter(
            pl.col("identity") != NO_IDENTITY
        ),
    }
    every = {}
    for name, table in tables.items():
        store = cached_crops(
            name,
            table["jpeg"].to_list(),
            detector,
            config.crop.widened(data.border),
            data.cache or default_root("crops"),
            partial(on_progress, name),
        )
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
    held_out = (
        every["fer2013"].where(in_test, name="fer_test"),
        every["lfw"].where(fold == data.fold, name="lfw_test"),
    )
    facts = {
        "detector_sha256": detector.sha256,
        "labels": "norms of the expression (Russell & Mehrabian 1977), one point a class",
        "sets": {
            f.name: {"faces": len(f), "aligned": int(f.is_aligned.sum())}
            for f in (*train, *held_out)
        },
    }
    return Split(train, held_out, facts)


def _read(path: Path, column: str) -> pl.DataFrame:
    """Faces with `expression`, `jpeg` and a column that says how to split them."""
    if not path.is_file():
        raise UsageError(
            f"{path} is missing: data.root, or $VAFER_DATA/faces without it, is the folder that "
            "holds it"
        )
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"{path} cannot be read as a Parquet table: {error}") from error
    missing = sorted({"expression", "jpeg", column} - {*table.columns})
    if missing:
        raise UsageError(f"{path} lacks the columns {missing}: it has {table.columns}")
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
