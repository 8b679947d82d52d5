"""Models at work on a dataset's labelled frames; what is done is kept, part by part."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from vafer.annotation import annotate
from vafer.crops import Patch, cut, warp
from vafer.datasets.labels import Dataset
from vafer.errors import UsageError
from vafer.faces import Detector
from vafer.labelled import FaceFinder, digest_of, hints, pictures, without_detector
from vafer.matching import KEY, predictions_for
from vafer.model import Model, load_model
from vafer.predictions import read_predictions
from vafer.store import find_detector, sha256
from vafer.table import output_errors

IMAGES_IN_A_PART = 2048
PARTS, ANNOTATED = "parts", "annotated"  # in the folder of an evaluation, what is kept
MOST_FEATURES = 1500  # faces whose features are kept, for a picture of them

_PREDICTED: dict[str, Any] = {
    "video": pl.String,
    "frame_index": pl.Int32,
    "time_s": pl.Float64,
    "valence": pl.Float32,
    "arousal": pl.Float32,
    "way": pl.String,  # how the face was found; null where there is none
    "features": pl.List(pl.Float32),  # of a sample
}


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """Labelled frames predicted so far, of all."""

    n_done: int
    n_frames: int


@dataclass(frozen=True, slots=True)
class Means:
    """How faces are found and predicted.

    crops: `labels`, by what the dataset gives of faces, or `detector`, as annotation does.
    detector: a name or a path, None for what is on this machine. batch_size: in faces. overwrite:
    whether annotations of something else may go.
    """

    crops: str
    detector: str | Path | None
    device: str
    batch_size: int
    overwrite: bool
    on_progress: Callable[[EvaluationProgress], None]
    on_notice: Callable[[str], None]


def predict(
    dataset: Dataset, shares: Sequence[tuple[Path, pl.DataFrame]], means: Means, folder: Path
) -> pl.DataFrame:
    """Predict located rows, each share by its model file.

    Gives video, frame_index, time_s, valence, arousal, one row a frame; and of faces that the
    dataset gives or that are in single pictures, `way` and the `features` of a sample. What is done
    is kept in `folder`. Raises UsageError, ModelError, OutputError.
    """
    if means.crops == "detector" and dataset.frames_in != "images":
        return _annotated(dataset, shares, means, folder)
    return _predicted(dataset, shares, means, folder)


def _predicted(
    dataset: Dataset, shares: Sequence[tuple[Path, pl.DataFrame]], means: Means, folder: Path
) -> pl.DataFrame:
    done, total = 0, sum(len(rows) for _, rows in shares)

    def count(n_frames: int) -> None:
        nonlocal done
        done += n_frames
        means.on_progress(EvaluationProgress(done, total))

    parts = []
    for path, rows in shares:
        model = load_model(path, device=means.device)
        finder = FaceFinder(
            model.card.crop, is_cropped=dataset.is_cropped, by_detector=means.crops == "detector"
        )
        if finder.needs_detector(rows):
            finder.detector = _detector(dataset, finder, means)
        count(0)
        predictor = Predictor(model, sha256(path), finder, means.batch_size)
        parts.append(predictor.predict(dataset, rows, folder / PARTS, count))
    return pl.concat(parts)


def _annotated(
    dataset: Dataset, shares: Sequence[tuple[Path, pl.DataFrame]], means: Means, folder: Path
) -> pl.DataFrame:
    """Recordings annotated as `vafer annotate` does it, and the faces that the labels mean."""
    total = sum(len(rows) for _, rows in shares)
    parts = []
    for number, (path, rows) in enumerate(shares):
        recordings = {dataset.recordings[name] for name in rows["video"].unique()}
        out = folder / f"{ANNOTATED}{f'-{number}' if len(shares) > 1 else ''}.parquet"
        results = annotate(
            [dataset.root / recording for recording in sorted(recordings)],
            out,
            model=path,
            detector=means.detector,
            device=means.device,
            batch_size=means.batch_size,
            overwrite=means.overwrite,
            on_progress=lambda p: means.on_progress(
                EvaluationProgress(round(p.share * total), total)
            ),
            on_notice=means.on_notice,
        )
        for row in results.videos.filter(pl.col("status") != "done").iter_rows(named=True):
            means.on_notice(f"{row['status']}: {row['error']}")
        parts.append(predictions_for(dataset, rows, read_predictions(out), means.on_notice))
    return pl.concat(parts)


def _detector(dataset: Dataset, finder: FaceFinder, means: Means) -> Detector | None:
    """The detector for faces without landmarks; None where none is named and none is at hand."""
    try:
        path = find_detector(means.detector, on_notice=means.on_notice)
    except UsageError:
        if finder.by_detector:
            raise
        means.on_notice(without_detector(dataset, "--detector"))
        return None
    return Detector(path, device=means.device)


@dataclass(frozen=True, slots=True)
class Predictor:
    """A model, and how it gets at faces. model_sha256: of its file. batch_size: in faces."""

    model: Model
    model_sha256: str
    finder: FaceFinder
    batch_size: int

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
        chosen = np.random.default_rng(0).permutation(len(rows))[:MOST_FEATURES]
        is_sampled[chosen] = True
        rows = rows.with_columns(is_sampled=pl.Series(is_sampled))
        detector = self.finder.detector.sha256 if self.finder.detector else None
        key = [self.model_sha256, detector, self.finder.by_detector, len(rows)]
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        parts = []
        for group in _parts(dataset, rows):
            digest = hashlib.sha256(json.dumps([key, digest_of(dataset, group)]).encode())
            path = folder / f"{digest.hexdigest()[:24]}.parquet"
            if not path.is_file():
                predicted = self._predict(dataset, group)
                with output_errors(path):
                    temporary = path.with_suffix(".tmp")
                    predicted.write_parquet(temporary)
                    temporary.replace(path)
            parts.append(pl.read_parquet(path))
            on_progress(len(group))
        return pl.concat(parts)

    def _predict(self, dataset: Dataset, rows: pl.DataFrame) -> pl.DataFrame:
        size = self.model.card.crop.size
        values = np.full((len(rows), 2), np.nan, np.float32)
        features: list[np.ndarray | None] = [None] * len(rows)
        ways: list[str | None] = [None] * len(rows)
        times: list[float | None] = []
        is_sampled = rows["is_sampled"].to_numpy()
        waiting: list[tuple[int, Patch]] = []

        def finish() -> None:
            crops = warp([patch for _, patch in waiting], size, self.model.device)
            predicted, read_from = self.model.predict_with_features(crops)
            for (row, _), value, feature in zip(waiting, predicted, read_from, strict=True):
                values[row] = value.numpy()
                features[row] = feature.float().cpu().numpy() if is_sampled[row] else None
            waiting.clear()

        seen = zip(pictures(dataset, rows), hints(rows), strict=True)
        for row, ((picture, time_s), (box, landmarks)) in enumerate(seen):
            times.append(time_s)
            found = None if picture is None else self.finder.find(picture, box, landmarks)
            if picture is not None and found is not None:
                ways[row] = found[1]
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


def _parts(dataset: Dataset, rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    if dataset.frames_in != "images":
        yield from rows.partition_by("video", maintain_order=True)
    else:
        for start in range(0, len(rows), IMAGES_IN_A_PART):
            yield rows[start : start + IMAGES_IN_A_PART]
