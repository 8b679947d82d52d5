"""Models at work on a dataset's labelled frames; what is done is kept, part by part."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from vafer.annotation import Progress, annotate
from vafer.crops import Patch, cut, warp
from vafer.datasets.labels import Dataset, some
from vafer.errors import ModelError, UsageError, counted, display_path
from vafer.faces import Detector
from vafer.files import write_whole
from vafer.labelled import FaceFinder, digest_of, hints, pictures
from vafer.matching import KEY, predictions_for
from vafer.model import Model, load_model, read_card
from vafer.pipeline import NO_ROOM_FOR_ONE
from vafer.predictions import read_predictions
from vafer.store import Choice, choose_detector, sha256
from vafer.table import output_errors

IMAGES_IN_A_PART = 2048
MOST_FEATURES = 1500  # faces whose features are kept, for a picture of them

_PREDICTED: dict[str, Any] = {
    "video": pl.String,
    "frame_index": pl.Int32,
    "time_s": pl.Float64,
    "valence": pl.Float32,
    "arousal": pl.Float32,
    "way": pl.String,  # how the face was found, or why there is none
    "features": pl.List(pl.Float32),  # of a sample
}
NO_FACE, NO_PICTURE, UNREADABLE = "no face", "no picture", "unreadable"

Shares = Sequence[tuple[Path, pl.DataFrame]]  # which model file predicts which located rows


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """Labelled frames predicted so far, of all."""

    n_done: int
    n_frames: int


@dataclass(frozen=True, slots=True)
class Means:
    """How faces are found and predicted.

    crops: `labels`, by what the dataset gives of faces, or `detector`, as annotation does.
    detector: its file, None without one. batch_size: in faces.
    """

    crops: str
    detector: Path | None
    device: str
    batch_size: int
    on_progress: Callable[[EvaluationProgress], None]
    on_notice: Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """What models made of labelled frames.

    table: video, frame_index, time_s, valence, arousal, one row a frame; and of faces that the
    dataset gives or that are in single pictures, `way` and the `features` of a sample, all by one
    model. problems: what could not be read, in words.
    """

    table: pl.DataFrame
    problems: list[str]


def detector_for(
    dataset: Dataset,
    shares: Shares,
    crops: str,
    named: str | Path | None,
    on_notice: Callable[[str], None],
) -> Choice | None:
    """The detector where some face can only be told by one; None without need.

    Raises ModelError where the one named is none.
    """
    finders = [
        (FaceFinder(read_card(path).crop, is_cropped=dataset.is_cropped), rows)
        for path, rows in shares
    ]
    if crops != "detector" and not any(finder.needs_detector(rows) for finder, rows in finders):
        return None
    return choose_detector(named, on_notice=on_notice)


def predict(dataset: Dataset, shares: Shares, means: Means, folder: Path) -> Predicted:
    """Predict located rows, each share by its model.

    What is done is kept in `folder`. Raises UsageError, ModelError, OutputError.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if means.crops == "detector" and dataset.frames_in != "images":
        return _annotated(dataset, shares, means, folder)
    return _predicted(dataset, shares, means, folder)


def _predicted(dataset: Dataset, shares: Shares, means: Means, folder: Path) -> Predicted:
    done, total = 0, sum(len(rows) for _, rows in shares)

    def count(n_frames: int) -> None:
        nonlocal done
        done += n_frames
        means.on_progress(EvaluationProgress(done, total))

    file = means.detector
    detector = None if file is None else Detector(file, device=means.device)
    parts: list[pl.DataFrame] = []
    for path, rows in shares:
        model = load_model(path, device=means.device)
        finder = FaceFinder(
            model.card.crop,
            detector,
            is_cropped=dataset.is_cropped,
            by_detector=means.crops == "detector",
        )
        count(0)
        n_features = 0 if parts else MOST_FEATURES  # those of two encoders are not to be compared
        predictor = Predictor(model, sha256(path), finder, means.batch_size, n_features)
        parts.append(predictor.predict(dataset, rows, folder, count))
    table = pl.concat(parts)
    broken = table.filter(pl.col("way") == UNREADABLE)
    if dataset.frames_in == "images" and len(broken):
        names = broken["video"].to_list()
        return Predicted(table, [f"{counted(len(names), 'picture')} cannot be read: {some(names)}"])
    counts = broken.group_by("video").len().sort("video")
    problems = [
        f"{display_path(dataset.root / dataset.recordings[video])}: {counted(n, 'labelled frame')}"
        " cannot be read: damaged, or missing where the file is cut off"
        for video, n in counts.iter_rows()
    ]
    return Predicted(table, problems)


def _annotated(dataset: Dataset, shares: Shares, means: Means, folder: Path) -> Predicted:
    """Recordings annotated as `vafer annotate` does it, and the faces that the labels mean."""
    done, total = 0, sum(len(rows) for _, rows in shares)

    def tell(before: int, n_own: int, progress: Progress) -> None:
        means.on_progress(EvaluationProgress(before + round(progress.share * n_own), total))

    parts, problems = [], []
    for path, rows in shares:
        recordings = sorted({dataset.recordings[name] for name in rows["video"].unique()})
        key = json.dumps([sha256(path), means.detector and sha256(means.detector), recordings])
        table = folder / f"annotated-{hashlib.sha256(key.encode()).hexdigest()[:24]}.parquet"
        results = annotate(
            [dataset.root / recording for recording in recordings],
            table,
            model=path,
            detector=means.detector,
            device=means.device,
            batch_size=means.batch_size,
            on_progress=partial(tell, done, len(rows)),
            on_notice=means.on_notice,
        )
        done += len(rows)
        odd = results.videos.filter(pl.col("status") != "done")
        for row in odd.iter_rows(named=True):  # what failed is named by its error
            name = "" if row["status"] == "failed" else f"{row['video']}: "
            problems.append(f"{row['status']}: {name}{row['error']}")
        if (odd["status"] == "failed").sum() == len(recordings):
            raise UsageError(f"no recording could be read. {problems[-1]}")
        parts.append(predictions_for(dataset, rows, read_predictions(table), means.on_notice))
    return Predicted(pl.concat(parts), problems)


@dataclass(frozen=True, slots=True)
class Predictor:
    """A model, and how it gets at faces. model_sha256: of its file. batch_size: in faces.

    n_features: of how many faces features are kept.
    """

    model: Model
    model_sha256: str
    finder: FaceFinder
    batch_size: int
    n_features: int

    def predict(
        self,
        dataset: Dataset,
        rows: pl.DataFrame,
        folder: Path,
        on_progress: Callable[[int], None] = lambda n_frames: None,
    ) -> pl.DataFrame:
        """Predict located rows, in parts kept in `folder`; those that are there are not redone.

        A part is a recording, or some of the single images. Raises OutputError.
        """
        is_sampled = np.zeros(len(rows), bool)
        is_sampled[np.random.default_rng(0).permutation(len(rows))[: self.n_features]] = True
        rows = rows.with_columns(is_sampled=pl.Series(is_sampled))
        key = [self.model_sha256, self.finder.key, len(rows), self.n_features]
        parts = []
        for group in _parts(dataset, rows):
            digest = hashlib.sha256(json.dumps([key, digest_of(dataset, group)]).encode())
            path = folder / f"{digest.hexdigest()[:24]}.parquet"
            if not path.is_file():
                predicted = self._predict(dataset, group)
                with output_errors(path):
                    write_whole(path, predicted.write_parquet)
            parts.append(pl.read_parquet(path))
            on_progress(len(group))
        return pl.concat(parts)

    def _predict(self, dataset: Dataset, rows: pl.DataFrame) -> pl.DataFrame:
        size = self.model.card.crop.size
        values = np.full((len(rows), 2), np.nan, np.float32)
        features: list[np.ndarray | None] = [None] * len(rows)
        ways: list[str] = []
        times: list[float | None] = []
        is_sampled = rows["is_sampled"].to_numpy()
        has_picture = rows["path"].is_not_null().to_numpy()
        waiting: list[tuple[int, Patch]] = []

        def finish() -> None:
            predicted, read_from = self._values([patch for _, patch in waiting])
            for (row, _), value, feature in zip(waiting, predicted, read_from, strict=True):
                values[row] = value.numpy()
                features[row] = feature.float().cpu().numpy() if is_sampled[row] else None
            waiting.clear()

        seen = zip(pictures(dataset, rows), hints(rows), strict=True)
        for row, ((picture, time_s), (box, landmarks)) in enumerate(seen):
            times.append(time_s)
            if picture is None:
                ways.append(UNREADABLE if has_picture[row] else NO_PICTURE)
                continue
            found = self.finder.find(picture, box, landmarks)
            ways.append(found[1] if found else NO_FACE)
            if found:
                waiting.append((row, cut(picture, found[0], size)))
            if len(waiting) == self.batch_size:
                finish()
        finish()
        columns: dict[str, Any] = {
            "time_s": times,
            "valence": values[:, 0],
            "arousal": values[:, 1],
            "way": ways,
        }
        table = rows.select(KEY).with_columns(
            pl.Series(name, column, _PREDICTED[name], nan_to_null=True)
            for name, column in columns.items()
        )
        kept = pa.array(features, pa.list_(pa.float32()))  # polars takes no arrays beside nulls
        return table.with_columns(pl.Series("features", kept)).select(*_PREDICTED)

    def _values(self, patches: list[Patch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (N, 2) and features of faces; half by half where they do not fit into a GPU."""
        model = self.model
        try:
            return model.predict_with_features(warp(patches, model.card.crop.size, model.device))
        except torch.OutOfMemoryError:
            if len(patches) == 1:
                raise ModelError(NO_ROOM_FOR_ONE) from None
        half = len(patches) // 2  # once the error is gone, and what it held
        (first, first_read), (rest, rest_read) = map(self._values, (patches[:half], patches[half:]))
        return torch.cat([first, rest]), torch.cat([first_read, rest_read])


def _parts(dataset: Dataset, rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    if dataset.frames_in != "images":
        yield from rows.partition_by("video", maintain_order=True)
    else:
        for start in range(0, len(rows), IMAGES_IN_A_PART):
            yield rows[start : start + IMAGES_IN_A_PART]
