"""AffectNet: single pictures with labels, in its CSV release or in its npy release.

Mollahosseini et al., IEEE Transactions on Affective Computing 10, 2019, with the official training
and validation set. It names no persons. -2 marks a picture without valence and arousal.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl

from vafer.datasets.labels import (
    BOX,
    PICTURES,
    Dataset,
    around,
    five_points,
    folders,
    incomplete,
    not_found,
    numbers_in,
    one_folder,
    to_labels,
)
from vafer.errors import UsageError, display_path

INVALID = -2.0
LISTS = {"training.csv": "train", "validation.csv": "validation"}
SETS = {"train_set": "train", "val_set": "validation"}
IMAGES = "Manually_Annotated_Images"
PICTURE, POINTS = "subDirectory_filePath", "facial_landmarks"
FACE = ("face_x", "face_y", "face_width", "face_height")


def read(root: Path, on_notice: Callable[[str], None]) -> Dataset:
    """Read the labels of whichever release is under `root`. Raises UsageError."""
    lists = _lists(root)
    sets = {name: found for name in SETS if (found := one_folder(root, name, _has_annotations))}
    if lists and sets:
        raise UsageError(
            f"{display_path(root)} holds both releases, {display_path(lists[0])} and "
            f"{display_path(next(iter(sets.values())))}: name the folder of one with --root"
        )
    if lists:
        images = one_folder(root, IMAGES, lambda f: True) or root / IMAGES
        every = _without_copies(pl.concat([_read_list(path) for path in lists]))
        every = every.with_columns(path=images.relative_to(root).as_posix() + "/" + pl.col("video"))
    elif sets:
        every = pl.concat([_read_set(root, found, SETS[name]) for name, found in sets.items()])
    else:
        raise not_found(root, "training.csv and validation.csv, or train_set/ and val_set/")
    is_valid = (pl.col("valence") != INVALID) & (pl.col("arousal") != INVALID)
    valid = every.filter(is_valid)
    if len(every) > len(valid):
        on_notice(
            f"{len(every) - len(valid):,} of {len(every):,} pictures are marked as without valence "
            "and arousal (-2)"
        )
    pictures = valid.select("video", *PICTURES)

    def locate(rows: pl.DataFrame, *, must_exist: bool) -> pl.DataFrame:
        located = rows.join(pictures, on="video", how="left", maintain_order="left")
        is_there = pl.Series(
            [(root / path).is_file() for path in located["path"]], dtype=pl.Boolean
        )
        if must_exist and not is_there.all():
            missing = located.filter(~is_there)["path"].to_list()
            raise incomplete(root, missing, len(located), "pictures")
        return located.with_columns(path=pl.when(is_there).then("path"))

    return Dataset(
        name="affectnet",
        root=root,
        labels=to_labels({"frame_index": 0, **valid.drop(*PICTURES).to_dict()}),
        frames_in="images",
        units=None,
        locate=locate,
        facts={"n_invalid": len(every) - len(valid)},
    )


def _lists(root: Path) -> list[Path]:
    """The lists of the CSV release: those of the highest folder that has one."""
    for folder, names in folders(root):
        found = [folder / name for name in LISTS if name in names]
        if found:
            return found
    return []


def _has_annotations(folder: Path) -> bool:
    return (folder / "annotations").is_dir()


def _read_list(path: Path) -> pl.DataFrame:
    """One CSV file, by the names of its columns. A picture is called by its path in the release."""
    try:
        lazy = pl.scan_csv(path, infer_schema=False, encoding="utf8")
        columns = lazy.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"{display_path(path)} cannot be read as CSV: {error}") from error
    missing = [name for name in (PICTURE, "valence", "arousal") if name not in columns]
    if missing:
        raise UsageError(
            f"{display_path(path)} lacks the columns {', '.join(missing)}; found "
            f"{', '.join(columns)}"
        )
    has_face = all(name in columns for name in FACE)
    x, y, width, height = (pl.col(name).cast(pl.Float32, strict=False) for name in FACE)
    wanted = [
        pl.col(PICTURE).alias("video"),
        pl.col("valence", "arousal"),
        *([x.alias("x1"), y.alias("y1"), (x + width).alias("x2"), (y + height).alias("y2")]
          if has_face else [pl.lit(None, pl.Float32).alias(name) for name in BOX]),
        _some_points() if POINTS in columns else pl.lit(None).alias("points"),
    ]  # fmt: skip
    try:
        table = lazy.select(wanted).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"{display_path(path)} cannot be read as CSV: {error}") from error
    unnamed = table["video"].is_null().arg_true()
    if len(unnamed):
        raise UsageError(
            f"{display_path(path)}, line {int(unnamed[0]) + 2}: no {PICTURE}; expected the path of "
            "a picture"
        )
    values = numbers_in(table.select("valence", "arousal"), path, first_line=2, sentinel=INVALID)
    return table.select("video", *BOX).with_columns(
        values,
        split=pl.lit(LISTS[path.name]),
        landmarks=_five_of(table["points"]),
        line=pl.int_range(2, pl.len() + 2),
    )


# Of 68 points "x1;y1;x2;y2;…", what five are made of: both eyes, nose, mouth corners.
_USED = [*range(36, 48), 30, 48, 54]


def _some_points() -> pl.Expr:
    """The text of 68 points → the coordinates of those that are used; null where it is not such."""
    text = pl.col(POINTS).str.strip_chars("; ").str.split(";")
    at = [2 * point + axis for point in _USED for axis in (0, 1)]
    chosen = text.list.gather(at, null_on_oob=True).list.eval(
        pl.element().cast(pl.Float32, strict=False)
    )
    return pl.when(text.list.len() == 136).then(chosen).alias("points")


def _five_of(points: pl.Series) -> pl.Series:
    """Lists of the used points, or nulls → landmarks."""
    landmarks = np.full((len(points), 10), np.nan, np.float32)
    is_there = points.is_not_null().to_numpy()
    if is_there.any():
        used = np.array(points.drop_nulls().cast(pl.List(pl.Float32)).explode().to_numpy())
        every = np.full((is_there.sum(), 68, 2), np.nan, np.float32)
        every[:, _USED] = used.reshape(-1, len(_USED), 2)
        landmarks[is_there] = five_points(every)
    known = pl.Series(np.isfinite(landmarks).all(axis=1))
    series = pl.Series("landmarks", landmarks, dtype=PICTURES["landmarks"])
    return pl.select(pl.when(known).then(series).alias("landmarks")).to_series()


def _without_copies(table: pl.DataFrame) -> pl.DataFrame:
    """Each picture once. Raises UsageError where one has two labels, or is in both sets."""
    twice = table.filter(pl.col("video").is_duplicated())
    for name, group in twice.group_by("video", maintain_order=True):
        sets = group["split"].unique().to_list()
        if len(sets) > 1:
            raise UsageError(
                f"the picture {name[0]} is in training.csv and in validation.csv: scores on what "
                "was trained on say nothing. Remove it from one"
            )
        if len(group.unique(["valence", "arousal"])) > 1:
            lines = " and ".join(str(line) for line in group["line"][:2])
            raise UsageError(
                f"the picture {name[0]} has two labels, in lines {lines} of the list of {sets[0]}; "
                "expected each once. Remove one"
            )
    return table.unique("video", keep="first", maintain_order=True).drop("line")


def _read_set(root: Path, folder: Path, split: str) -> pl.DataFrame:
    """One set of the npy release; its pictures are called by their path, since IDs repeat."""
    images = {p.stem: p for p in (folder / "images").glob("*.jpg") if p.name[0] != "."}
    notes = folder / "annotations"
    stems = {p.stem for p in notes.glob("*.npy") if p.name[0] != "."}
    ids = sorted(stem.removesuffix("_val") for stem in stems if stem.endswith("_val"))
    if images and images.keys() != {*ids}:
        lone = sorted(images.keys() ^ {*ids})
        raise UsageError(
            f"{display_path(notes)} labels {len(ids):,} pictures, {folder.name}/images holds "
            f"{len(images):,}; {lone[0]} is in one of them only. Unpack both again"
        )
    arrays = _Arrays()
    columns = {
        "valence": [arrays.number(notes / f"{i}_val.npy", sentinel=INVALID) for i in ids],
        "arousal": [arrays.number(notes / f"{i}_aro.npy", sentinel=INVALID) for i in ids],
    }
    marked = [i for i, name in enumerate(ids) if f"{name}_lnd" in stems]
    box, landmarks = np.full((len(ids), 4), np.nan), np.full((len(ids), 10), np.nan)
    if marked:
        points = np.stack([arrays.points(notes / f"{ids[i]}_lnd.npy") for i in marked])
        box[marked], landmarks[marked] = around(points), five_points(points)
    is_marked = pl.Series(np.isin(np.arange(len(ids)), marked))
    prefix = (folder / "images").relative_to(root).as_posix()
    names = [f"{prefix}/{i}.jpg" for i in ids]
    table = pl.DataFrame(
        {
            "video": names,
            **columns,
            "split": [split] * len(ids),
            "path": names,
            **{name: box[:, i] for i, name in enumerate(BOX)},
            "landmarks": landmarks,
        },
        schema_overrides=PICTURES,
    )
    return table.with_columns(pl.when(is_marked).then(pl.col(*BOX, "landmarks")))


class _Arrays:
    """Reads small npy files; a header that was met before is not parsed again."""

    def __init__(self) -> None:
        self._layouts: dict[bytes, tuple[tuple[int, ...], np.dtype]] = {}

    def read(self, path: Path) -> np.ndarray:
        """The values as text or numbers, flat. Raises UsageError, also where code would be run."""
        try:
            data = path.read_bytes()
            if data[:6] != b"\x93NUMPY":
                raise ValueError("no npy file")
            wide = data[6] > 1
            start = 12 if wide else 10
            end = start + int.from_bytes(data[8:start], "little")
            shape, kind = self._layout(data[:end])
            return np.frombuffer(data, kind, int(np.prod(shape)), end)
        except (OSError, ValueError, IndexError) as error:
            raise UsageError(
                f"{display_path(path)} cannot be read as an npy file: {error}. Unpack it again"
            ) from error

    def _layout(self, header: bytes) -> tuple[tuple[int, ...], np.dtype]:
        if header not in self._layouts:
            file = BytesIO(header)
            version = np.lib.format.read_magic(file)
            reader = (np.lib.format.read_array_header_1_0 if version[0] == 1
                      else np.lib.format.read_array_header_2_0)  # fmt: skip
            shape, _, kind = reader(file)
            if kind.hasobject:
                raise ValueError("it holds Python objects, which are not loaded")
            self._layouts[header] = (shape, kind)
        return self._layouts[header]

    def number(self, path: Path, *, sentinel: float) -> float:
        """A label, which may be stored as text."""
        values = self.read(path)
        try:
            value = float(values[0]) if len(values) == 1 else float("nan")
        except ValueError:
            value = float("nan")
        if not (-1 <= value <= 1 or value == sentinel):
            raise UsageError(
                f"{display_path(path)} holds {values[:3].tolist()}; expected one number from -1 "
                f"to 1, or {sentinel:g} for a picture without a label"
            )
        return value

    def points(self, path: Path) -> np.ndarray:
        """68 landmarks (68, 2)."""
        values = self.read(path)
        try:
            return values.astype(np.float32).reshape(68, 2)
        except ValueError as error:
            raise UsageError(
                f"{display_path(path)} holds {len(values)} values; expected 68 points x, y"
            ) from error
