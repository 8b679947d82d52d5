"""The figures of a model card: held-out scores with intervals, by expression, and by detector.

    python bench/model.py FACES DETECTOR.onnx [--model FILE] [--videos DIR --other DETECTOR.onnx]

FACES holds fer2013.parquet and lfw_expressions.parquet. Scores are on FER2013's test split and on
the identities of LFW that training leaves out; labels are the norms of the expressions. Intervals
are 95 %, from 1,000 bootstrap samples of faces. With --videos, the recordings are annotated with
both detectors, and the faces that both found (IoU of at least 0.5) are compared.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

import vafer
from train.augment import middle
from train.config import read_config
from train.data import FaceSet
from train.feed import Feed
from train.sets import load_split
from vafer.metrics import scores
from vafer.model import Model, load_model
from vafer.store import find_model

N_BOOTSTRAP = 1000


def predict(model: Model, faces: FaceSet) -> np.ndarray:
    batches = np.array_split(np.arange(len(faces)), len(faces) // 256 + 1)
    crops = Feed([faces], torch.device("cpu")).batches(batches)
    size = model.card.crop.size
    return torch.cat([model.predict(middle(c, size).expand(-1, 3, -1, -1)) for c in crops]).numpy()


def show_scores(faces: FaceSet, predicted: np.ndarray) -> None:
    found = scores(faces.labels, predicted)
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(N_BOOTSTRAP):
        chosen = rng.integers(0, len(faces), len(faces))
        samples.append(scores(faces.labels[chosen], predicted[chosen]))
    print(f"\n{faces.name}: {len(faces)} faces, {faces.counts()}")
    for dimension in ("valence", "arousal"):
        cells = []
        for name, value in found[dimension].items():
            low, high = np.quantile([s[dimension][name] for s in samples], [0.025, 0.975])
            cells.append(f"{name.upper()} {value:.3f} [{low:.3f}, {high:.3f}]")
        print(f"  {dimension}: " + "  ".join(cells))
    for name in np.unique(faces.expressions):
        of_name = faces.expressions == name
        label, mean, spread = (
            "{:5.2f} {:5.2f}".format(*values)
            for values in (
                faces.labels[of_name][0],
                predicted[of_name].mean(axis=0),
                predicted[of_name].std(axis=0),
            )
        )
        print(f"  {name:9} n {of_name.sum():5}  label {label}  mean {mean}  sd {spread}")


def show_detectors(videos: Path, first: Path, other: Path, model: str | None) -> None:
    tables = []
    for detector in (first, other):
        results = vafer.annotate(
            videos, model=model, detector=detector, sampling=vafer.Sampling(every=5)
        )
        tables.append(results.table.filter(pl.col("face_index").is_not_null()))
    pairs = tables[0].join(tables[1], on=["video", "frame_index"], suffix="_2")
    width = pl.min_horizontal("x2", "x2_2") - pl.max_horizontal("x1", "x1_2")
    height = pl.min_horizontal("y2", "y2_2") - pl.max_horizontal("y1", "y1_2")
    both = width.clip(0) * height.clip(0)
    area = (pl.col("x2") - pl.col("x1")) * (pl.col("y2") - pl.col("y1"))
    area_2 = (pl.col("x2_2") - pl.col("x1_2")) * (pl.col("y2_2") - pl.col("y1_2"))
    pairs = pairs.filter(both / (area + area_2 - both) >= 0.5)
    print(f"\n{first.stem} against {other.stem}: {len(pairs)} faces found by both")
    for name in ("valence", "arousal"):
        apart = (pairs[name] - pairs[f"{name}_2"]).abs()
        pcc = np.corrcoef(pairs[name], pairs[f"{name}_2"])[0, 1]
        print(
            f"  {name}: median |difference| {apart.median():.3f}, "
            f"95th percentile {apart.quantile(0.95):.3f}, PCC {pcc:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--cache", type=Path, help="where crops are kept, instead of data/crops")
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--other", type=Path, help="second detector, for --videos")
    arguments = parser.parse_args()

    model = load_model(find_model(arguments.model))
    config = read_config(
        "faces",
        [
            f"data.root={arguments.faces}",
            f"data.detector={arguments.detector}",
            *([f"data.cache={arguments.cache}"] if arguments.cache else []),
        ],
    )
    for faces in load_split(replace(config, crop=model.card.crop)).held_out:
        show_scores(faces, predict(model, faces))
    if arguments.videos:
        show_detectors(arguments.videos, arguments.detector, arguments.other, arguments.model)


if __name__ == "__main__":
    main()
