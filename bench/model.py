"""The figures of a model card, as Markdown tables and as JSON.

    python bench/model.py FACES DETECTOR.onnx [--model FILE] [--cache DIR] [--json FILE]
                          [--videos DIR [--other DETECTOR.onnx]]

FACES holds fer2013.parquet and lfw_expressions.parquet. Scored are FER2013's test split and the
identities of LFW that training leaves out, against the norms of the expressions: as a whole, by
expression, by groups (colour, copies of training pictures, size of the face), and again with the
crops made worse. With --videos, recordings are annotated, with faces looked for in whole frames: a
contrast that is known, the level of every track, jitter. With --other too, the faces that both
detectors found (IoU of at least 0.5) are compared.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

import vafer
from train.augment import middle
from train.data import FaceSet
from train.evaluation import Change, predict_faces
from train.sets import EXPRESSION_NORMS, NO_IDENTITY, fold_held_out, split_by_name
from vafer.crops import GREY_WEIGHTS
from vafer.faces import Detector
from vafer.labelled import detect_near
from vafer.metrics import DIMENSIONS, scores
from vafer.model import Model, load_model, read_weights, weights_sha256
from vafer.onnx_file import onnx_weights_sha256
from vafer.options import SplitOptions
from vafer.scoring import score
from vafer.store import find_model

Row = dict[str, Any]  # of a table; a list in it is a score and its interval: [value, low, high]
Figures = tuple[str, str, list[Row]]  # name, heading, rows

MOST_WORSENED = 2000  # faces of FER2013, drawn at random; of LFW all
FACE_SIZES = (32, 40, 64, 96)  # pixels of the picture, between the bins
FEWEST = 20  # faces of a group that are scored; of fewer only the number is told
BLURRED_AT = 112  # side of the crop that blur is given for, in pixels
EVERY = 3  # frames of a recording that are analysed
SHORTEST_TRACK = 10  # of those
CRYING = "smile_cry_smile.mp4"
WINDOWS = {"cries": (0, 5.5), "distressed": (6.5, 8.8), "smiles": (10, 19)}  # seconds, by eye
SPEECH = ("expressive_talk.mp4", "portrait_hevc_1080x1920.mp4")
SHOWS = {  # by eye
    CRYING: "cries, then smiles",
    "single_face.mp4": "neutral, then smiles",
    "expressive_talk.mp4": "talks, lively",
    "expressive_33s.mp4": "strong expressions",
    "portrait_hevc_1080x1920.mp4": "talks, friendly",
    "turning_head.mp4": "turns, smiles",
}


def pictures_of(faces: FaceSet, folder: Path) -> pl.DataFrame:
    """The rows that a set was made of: `jpeg`, and `greyscale` or `is_copy` where it is known.

    is_copy: whether FER2013 has the very same picture in its training split.
    """
    name = "lfw_expressions" if faces.name.startswith("lfw") else "fer2013"
    table = pl.read_parquet(folder / f"{name}.parquet")
    table = table.filter(pl.col("expression").is_in(list(EXPRESSION_NORMS)))
    if "identity" in table.columns:
        table = table.filter(pl.col("identity") != NO_IDENTITY)
    else:
        trained_on = table.filter(pl.col("split") == "train")["jpeg"].unique()
        table = table.with_columns(is_copy=pl.col("jpeg").is_in(trained_on.implode()))
    table = table[faces.rows]
    if table["expression"].to_list() != faces.expressions.tolist():
        raise SystemExit(f"{faces.name}: other faces than in {name}.parquet: see train/sets.py")
    return table


def whole(faces: FaceSet, predicted: np.ndarray) -> list[Row]:
    counts, by_dimension = scored(faces, predicted, np.full(len(faces), True))
    return [{"set": faces.name, **counts, "": d, **row} for d, row in by_dimension.items()]


def scored(faces: FaceSet, predicted: np.ndarray, chosen: np.ndarray) -> tuple[Row, dict[str, Row]]:
    """How many faces and persons, and the scores by dimension; intervals over persons if known."""
    frames = pl.DataFrame(
        {
            "video": faces.rows[chosen].astype(str),
            "subject": pl.Series(faces.subjects[chosen].tolist(), dtype=pl.String),
            **{f"{d}_label": faces.labels[chosen, i] for i, d in enumerate(DIMENSIONS)},
            **{d: predicted[chosen, i] for i, d in enumerate(DIMENSIONS)},
        }
    ).with_columns(pl.col("^.*_label$").cast(pl.Float64))
    has_persons = frames["subject"].null_count() == 0
    overall = score(frames, by="subject" if has_persons else "frame")["overall"]
    n_persons = frames["subject"].n_unique() if has_persons else None
    return {"faces": len(frames), "persons": n_persons}, {
        dimension: {
            **{
                name.upper(): [overall[dimension][name], *(overall[dimension][f"{name}_ci"] or [])]
                for name in ("rmse", "sagr", "pcc", "ccc")
            },
            "bias": float((predicted[chosen, i] - faces.labels[chosen, i]).mean()),
        }
        for i, dimension in enumerate(DIMENSIONS)
    }


def by_expression(faces: FaceSet, predicted: np.ndarray) -> list[Row]:
    rows = []
    for name, norm in EXPRESSION_NORMS.items():
        of_name = predicted[faces.expressions == name]
        row: Row = {"set": faces.name, "expression": name, "faces": len(of_name)}
        for i, dimension in enumerate(DIMENSIONS if len(of_name) else ()):
            row |= {
                f"{dimension}: label": norm[i],
                f"{dimension}: mean": float(of_name[:, i].mean()),
                f"{dimension}: sd": float(of_name[:, i].std()),
            }
        rows.append(row)
    return rows


def by_group(
    faces: FaceSet, predicted: np.ndarray, pictures: pl.DataFrame, detector: Path
) -> list[Row]:
    """By colour, by copies of training pictures, by the shorter side of the box that is found."""
    groups = {}
    if "is_copy" in pictures.columns:
        is_copy = pictures["is_copy"].to_numpy()
        groups = {"copies of training pictures": is_copy, "no copies": ~is_copy}
    if "greyscale" in pictures.columns:
        is_grey = pictures["greyscale"].to_numpy()
        groups = {"grey": is_grey, "colour": ~is_grey}
    sides = face_sizes(pictures["jpeg"], Detector(detector))
    bounds = (0, *FACE_SIZES, np.inf)
    for low, high in pairwise(bounds):
        name = f"face from {low} px" if high == np.inf else f"face {low} to {high} px"
        groups[name] = (sides >= low) & (sides < high)
    groups["no face found"] = np.isnan(sides)
    rows = []
    for name, chosen in groups.items():
        if chosen.any():
            counts, by_dimension = scored(faces, predicted, chosen)
            row = {"set": faces.name, "group": name, **counts}
            rows.append(row | (flat(by_dimension, "bias") if chosen.sum() >= FEWEST else {}))
    return rows


def face_sizes(jpegs: pl.Series, detector: Detector) -> np.ndarray:
    """Shorter side of the best-scored face in each picture's pixels (N,), NaN where none is."""
    sides = np.full(len(jpegs), np.nan)
    for i, jpeg in enumerate(jpegs):
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        boxes = detect_near(np.asarray(picture), None, detector).boxes
        if len(boxes):
            sides[i] = (boxes[0, 2:] - boxes[0, :2]).min()
    return sides


def flat(by_dimension: dict[str, Row], *others: str) -> Row:
    """PCC, CCC and other columns of both dimensions in one row."""
    return {
        f"{dimension}: {name}": row[name]
        for dimension, row in by_dimension.items()
        for name in ("PCC", "CCC", *others)
    }


def worsened(model: Model, faces: FaceSet) -> list[Row]:
    """Scores again; `moved` is how far the mean prediction went from that of the same faces."""
    if len(faces) > MOST_WORSENED and faces.name.startswith("fer"):
        drawn = np.random.default_rng(0).permutation(len(faces)) < MOST_WORSENED
        faces = faces.where(drawn, name=faces.name)
    clean = predict_faces(model, faces)
    rows = []
    for name, change in changes(sees_colour=not model.card.crop.grey).items():
        predicted = predict_faces(model, faces, change)
        found = scores(faces.labels, predicted)
        moved = (predicted - clean).mean(axis=0)
        by_dimension = {
            d: {k.upper(): v for k, v in found[d].items()} | {"moved": float(moved[i])}
            for i, d in enumerate(DIMENSIONS)
        }
        row = {"set": faces.name, "crop": name, "faces": len(faces)}
        rows.append(row | flat(by_dimension, "moved"))
    return rows


def changes(*, sees_colour: bool) -> dict[str, Change]:
    return {
        "as it is": middle,
        **({"grey": greyed} if sees_colour else {}),
        **{f"blur, σ {sigma} px": partial(blurred, sigma=sigma) for sigma in (1, 2)},
        **{f"shrunk to {side} px": partial(shrunk, side=side) for side in (32, 24, 16)},
        **{f"turned {angle}°": partial(turned, degrees=angle) for angle in (-15, 15, -30, 30)},
        "gamma 2": partial(darkened, gamma=2, gain=1, noise=0),
        "× 0.4, noise of sd 5": partial(darkened, gamma=1, gain=0.4, noise=5),
        "gamma 2, × 0.4, noise of sd 5": partial(darkened, gamma=2, gain=0.4, noise=5),
        "JPEG of quality 20": partial(compressed, quality=20),
    }


def greyed(crops: torch.Tensor, size: int) -> torch.Tensor:
    weights = crops.new_tensor(GREY_WEIGHTS).view(1, 3, 1, 1)
    return (middle(crops, size) * weights).sum(dim=1, keepdim=True)


def blurred(crops: torch.Tensor, size: int, *, sigma: float) -> torch.Tensor:
    in_pixels = sigma * size / BLURRED_AT
    return middle(one_by_one(crops, lambda crop: cv2.GaussianBlur(crop, (0, 0), in_pixels)), size)


def shrunk(crops: torch.Tensor, size: int, *, side: int) -> torch.Tensor:
    small = F.interpolate(middle(crops, size), size=side, mode="area").round()
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)


def turned(crops: torch.Tensor, size: int, *, degrees: float) -> torch.Tensor:
    """About the centre; what lies beyond the widened crop repeats its edge."""
    angle = np.radians(degrees)
    zoom = size / crops.shape[-1]
    theta = zoom * crops.new_tensor(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]
    )
    shape = [len(crops), crops.shape[1], size, size]
    grid = F.affine_grid(theta.expand(len(crops), -1, -1), shape, align_corners=False)
    return F.grid_sample(crops, grid, padding_mode="border", align_corners=False)


def darkened(
    crops: torch.Tensor, size: int, *, gamma: float, gain: float, noise: float
) -> torch.Tensor:
    dark = 255 * gain * (middle(crops, size) / 255) ** gamma
    return dark + noise * torch.randn(dark.shape, generator=torch.Generator().manual_seed(0))


def compressed(crops: torch.Tensor, size: int, *, quality: int) -> torch.Tensor:
    def through_jpeg(crop: np.ndarray) -> np.ndarray:
        jpeg = cv2.imencode(
            ".jpg", crop[..., ::-1].astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )[1]
        picture = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_UNCHANGED))
        return picture.reshape(crop.shape)[..., ::-1]

    return one_by_one(middle(crops, size), through_jpeg)


def one_by_one(crops: torch.Tensor, change: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    """What OpenCV does to each crop alone, as (S, S, C)."""
    images = crops.permute(0, 2, 3, 1).numpy()
    changed = np.stack([change(image).reshape(image.shape) for image in images])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).float()


def annotated(videos: Path, detector: Path, model: str | None) -> pl.DataFrame:
    sampling = vafer.Sampling(every=EVERY)
    results = vafer.annotate(
        videos, model=model, detector=detector, detect="full", sampling=sampling
    )
    return results.table.filter(pl.col("face_index").is_not_null())


def contrast(faces: pl.DataFrame) -> list[Row]:
    """Mean valence of one woman as she cries, looks distressed and smiles."""
    faces = faces.filter(pl.col("video") == CRYING)
    within = {
        shows: faces.filter(pl.col("time_s").is_between(*window)).select(DIMENSIONS)
        for shows, window in WINDOWS.items()
    }
    smile = within["smiles"]["valence"].mean()
    return [
        {
            "she": shows,
            "seconds": "{} to {}".format(*WINDOWS[shows]),
            "faces": len(values),
            "valence": values["valence"].mean(),
            "arousal": values["arousal"].mean(),
            "smile minus it": smile - values["valence"].mean() if shows != "smiles" else None,
        }
        for shows, values in within.items()
        if smile is not None and len(values)
    ]


def tracks(faces: pl.DataFrame) -> list[Row]:
    """Every track's level, spread and jitter: median |Δ| from an analysed frame to the next."""
    rows = []
    by_track = faces.sort("frame_index").group_by("video", "track_id", maintain_order=True)
    for (video, track), of_track in sorted(by_track, key=lambda item: item[0]):
        if len(of_track) >= SHORTEST_TRACK:
            row: Row = {"recording": video, "shows": SHOWS.get(video), "track": track}
            row["faces"] = len(of_track)
            is_next = of_track["frame_index"].diff() == EVERY
            for d in DIMENSIONS:
                values = of_track[d]
                row |= {f"{d}: mean": values.mean(), f"{d}: sd": values.std(ddof=0)}
                row[f"{d}: jitter"] = values.diff().filter(is_next).abs().median()
            rows.append(row)
    return rows


def speech(faces: pl.DataFrame) -> list[Row]:
    """Where talking faces lie: by quantile, for smiles among the talk move the mean."""
    rows = []
    for video in SPEECH:
        talks = faces.filter(pl.col("video") == video)
        if len(talks):
            row: Row = {"recording": video, "shows": SHOWS[video], "faces": len(talks)}
            for d in DIMENSIONS:
                row |= {
                    f"{d}: {name}": float(np.quantile(talks[d], share))
                    for name, share in (("10 %", 0.1), ("median", 0.5), ("90 %", 0.9))
                }
            rows.append(row)
    return rows


def agreement(first: pl.DataFrame, other: pl.DataFrame) -> list[Row]:
    pairs = first.join(other, on=["video", "frame_index"], suffix="_2")
    width = pl.min_horizontal("x2", "x2_2") - pl.max_horizontal("x1", "x1_2")
    height = pl.min_horizontal("y2", "y2_2") - pl.max_horizontal("y1", "y1_2")
    both = width.clip(0) * height.clip(0)
    area = (pl.col("x2") - pl.col("x1")) * (pl.col("y2") - pl.col("y1"))
    area_2 = (pl.col("x2_2") - pl.col("x1_2")) * (pl.col("y2_2") - pl.col("y1_2"))
    pairs = pairs.filter(both / (area + area_2 - both) >= 0.5)
    values = pairs.select(DIMENSIONS).to_numpy()
    values_2 = pairs.select(f"{dimension}_2" for dimension in DIMENSIONS).to_numpy()
    found, apart = scores(values, values_2), np.abs(values - values_2)
    return [
        {
            "": dimension,
            "faces": len(pairs),
            "median difference": float(np.median(apart[:, i])),
            "95th percentile": float(np.quantile(apart[:, i], 0.95)),
            "PCC": found[dimension]["pcc"],
        }
        for i, dimension in enumerate(DIMENSIONS)
    ]


def tell(text: str) -> None:
    print(text, file=sys.stderr)


def all_figures(arguments: argparse.Namespace, model: Model) -> Iterator[Figures]:
    detector = arguments.detector
    fold, n_folds = fold_held_out(model.card.training) or (0, SplitOptions.n_folds)
    split = split_by_name(
        model.card.crop, arguments.faces, detector, arguments.cache, fold=fold, n_folds=n_folds,
        on_notice=tell,
    )  # fmt: skip
    found = [(faces, predict_faces(model, faces)) for faces in split.held_out]
    yield "scores", "Scores", [row for pair in found for row in whole(*pair)]
    yield "expressions", "By expression", [row for pair in found for row in by_expression(*pair)]
    groups = [
        row
        for faces, predicted in found
        for row in by_group(faces, predicted, pictures_of(faces, arguments.faces), detector)
    ]
    yield "groups", "By colour, copies and size of the face", groups
    yield (
        "worsened",
        "Crops made worse",
        [row for faces in split.held_out for row in worsened(model, faces)],
    )
    if arguments.videos:
        faces = annotated(arguments.videos, detector, arguments.model)
        yield "contrast", f"{CRYING}: at least 0.4 is wanted", contrast(faces)
        yield "speech", "Talking faces", speech(faces)
        yield "tracks", f"Tracks, one frame in {EVERY}", tracks(faces)
        if arguments.other:
            other = annotated(arguments.videos, arguments.other, arguments.model)
            heading = f"{detector.stem} against {arguments.other.stem}"
            yield "detectors", heading, agreement(faces, other)


def markdown(rows: list[Row]) -> str:
    if not rows:
        return "Nothing to show."
    columns = list({column: None for row in rows for column in row})
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    match value:
        case None | [None, *_]:
            return "–"
        case [value, low, high]:
            return f"{value:.3f} [{low:.3f}, {high:.3f}]"
        case [value]:  # no interval: too few persons
            return f"{value:.3f}"
        case float():
            return f"{value:.3f}"
        case int():
            return f"{value:,}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--model", help="instead of the embedded one")
    parser.add_argument(
        "--cache", type=Path, help="where crops are kept, instead of $VAFER_DATA/crops"
    )
    parser.add_argument("--json", type=Path, help="where the figures are written, too")
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--other", type=Path, help="second detector, for --videos")
    arguments = parser.parse_args()
    if arguments.other and not arguments.videos:
        parser.error("--other compares on recordings: name their folder with --videos")

    path = find_model(arguments.model)
    model = load_model(path)
    print(f"# {model.card.name}\n\nFaces by {arguments.detector.stem}.")
    figures: dict[str, Any] = {
        "model": {"name": model.card.name, "weights_sha256": weights_sha256(read_weights(path))},
        "detector": {
            "name": arguments.detector.stem,
            "weights_sha256": onnx_weights_sha256(arguments.detector),
        },
    }
    for name, heading, rows in all_figures(arguments, model):
        print(f"\n## {heading}\n\n{markdown(rows)}", flush=True)
        figures[name] = rows
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
