"""AffectNet: single pictures with labels, in its CSV release or in its npy release.

Mollahosseini et al., IEEE Transactions on Affective Computing 10, 2019, with the official training
and validation set. It names no persons. -2 marks a picture without valence and arousal.
"""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import chain, islice
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv

from vafer.datasets.affectnet_npy import read_set
from vafer.datasets.labels import (
    BOX,
    MOST_DEPTH,
    MOST_PIXELS,
    PICTURES,
    Dataset,
    five_points,
    incomplete,
    levels,
    not_found,
    numbers_in,
    one_folder,
    reading,
    some,
    to_labels,
)
from vafer.errors import UsageError, display_path

INVALID = -2.0
LISTS = {"training.csv": "train", "validation.csv": "validation"}
SETS = {"train_set": "train", "val_set": "validation"}
IMAGES = "Manually_Annotated_Images"
PICTURE, POINTS = "subDirectory_filePath", "facial_landmarks"
FACE = ("face_x", "face_y", "face_width", "face_height")
BLOCK_BYTES = 2**20
"""Of a list that are parsed at a time, so that memory holds the labels and little else. polars' own
reader of CSV is faster, but of a million lines took 0.6 GB with 2 threads and 1.5 GB with 16, where
all of this takes 0.6 GB (bench/labels.py); nor does it say which line has a field too many.
"""
_ODD_ROW = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")  # in pyarrow's words


def read(root: Path, on_notice: Callable[[str], None]) -> Dataset:
    """Read the labels of whichever release is under `root`. Raises UsageError."""
    lists = _lists(root)
    sets = {name: found for name in SETS if (found := one_folder(root, name, _has_annotations))}
    if lists and sets:
        raise UsageError(
            f"{display_path(root)}: found both releases, {display_path(lists[0])} and "
            f"{display_path(next(iter(sets.values())))}; expected one. Name its folder with --root"
        )
    if lists:
        images = one_folder(root, IMAGES, lambda f: True) or root / IMAGES
        tables = [_read_list(path) for path in lists]
        _refuse_shared(tables)
        prefix = images.relative_to(root).as_posix()
        prefix.encode()  # polars would replace what is no UTF-8
        every = pl.concat(tables).with_columns(path=prefix + "/" + pl.col("video"))
    elif sets:
        every = pl.concat(
            [read_set(root, found, SETS[name], sentinel=INVALID) for name, found in sets.items()]
        )
    else:
        raise not_found(root, "training.csv and validation.csv, or train_set/ and val_set/")
    for split in sorted({*SETS.values()} - {*every["split"].unique()}):
        on_notice(f"{display_path(root)} holds no labels of the {split} set")
    is_valid = (pl.col("valence") != INVALID) & (pl.col("arousal") != INVALID)
    valid = every.filter(is_valid)
    if len(every) > len(valid):
        on_notice(
            f"{len(every) - len(valid):,} of {len(every):,} pictures are marked as without valence "
            "and arousal (-2)"
        )
    pictures = valid.select("video", *PICTURES)

    @reading()
    def locate(rows: pl.DataFrame, *, must_exist: bool) -> pl.DataFrame:
        located = rows.join(pictures, on="video", how="left", maintain_order="left")
        is_there = pl.Series(
            [(root / path).is_file() for path in located["path"]], dtype=pl.Boolean
        )
        if must_exist and not is_there.all():
            missing = located.filter(~is_there)["path"].to_list()
            raise incomplete(root, missing, len(located), "pictures are missing")
        return located.with_columns(path=pl.when(is_there).then("path"))

    return Dataset(
        name="affectnet",
        root=root,
        labels=to_labels({"frame_index": 0, **valid.drop(*PICTURES).to_dict()}),
        frames_in="images",
        units=None,
        locate=locate,
        is_cropped=True,
        facts={"n_invalid": len(every) - len(valid)},
    )


def _lists(root: Path) -> list[Path]:
    """The lists of the CSV release: those of the highest folder that has one."""
    for folder in chain.from_iterable(islice(levels(root), MOST_DEPTH)):
        found = [folder / name for name in LISTS if (folder / name).is_file()]
        if found:
            return found
    return []


def _has_annotations(folder: Path) -> bool:
    return (folder / "annotations").is_dir()


def _read_list(path: Path) -> pl.DataFrame:
    """One CSV file, by the names of its columns. A picture is called by its path in the release."""
    tables = [_parsed(block) for block in _blocks(path)]
    if not tables:
        raise UsageError(
            f"{display_path(path)}: found a header alone; expected a line a picture below. Get the "
            "file anew"
        )
    table = pl.concat(tables)
    unnamed = (table["video"] == "").arg_true()
    if len(unnamed):
        raise UsageError(
            f"{display_path(path)}, line {_line(path, int(unnamed[0]) + 1)}: {PICTURE} is empty; "
            "expected the path of a picture. Get the file anew, or remove the line"
        )
    values = numbers_in(
        table.select("valence", "arousal"),
        path,
        line_of=lambda row: _line(path, row + 1),
        sentinel=INVALID,
    )
    table = table.with_columns(values, split=pl.lit(LISTS[path.name]))
    return _without_copies(table, path)


def _blocks(path: Path) -> Iterator[pl.DataFrame]:
    """The columns that are used, as text, a block of lines at a time. Raises UsageError."""
    read = csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
    try:
        # Of its own: a reader that is let go in the middle leaves a thread that aborts at exit.
        with path.open("rb") as file:
            header = next((line for line in file if line.strip()), b"")
        names = _columns(path, csv.read_csv(BytesIO(header), read).column_names)
        convert = csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string())
        )
        with path.open("rb") as file, csv.open_csv(file, read, None, convert) as reader:
            for batch in reader:
                block = pl.from_arrow(batch)
                assert isinstance(block, pl.DataFrame)
                yield block
    except ValueError as error:
        if odd := _ODD_ROW.search(str(error)):
            line = _line(path, int(odd[1]) - 1)
            raise UsageError(
                f"{display_path(path)}, line {line}: found {odd[3]} fields; expected {odd[2]}, as "
                "in the header. Get the file anew, or correct the line"
            ) from error
        raise UsageError(
            f"{display_path(path)}: found no CSV in UTF-8 ({str(error).splitlines()[0][:200]}); "
            "expected a header, a line a picture. Get the file anew"
        ) from error


def _columns(path: Path, names: list[str]) -> list[str]:
    """Those of the names that are used. Raises UsageError where they are not there, or twice."""
    used = [name for name in (PICTURE, "valence", "arousal", *FACE, POINTS) if name in names]
    missing = [name for name in (PICTURE, "valence", "arousal") if name not in names]
    twice = [name for name in used if names.count(name) > 1]
    if missing or twice:
        found = f"{', '.join(twice)} twice" if twice else f"the columns {', '.join(names)[:300]}"
        expected = f"{', '.join(missing)} too" if missing else "each column once"
        raise UsageError(
            f"{display_path(path)}, line 1: found {found}; expected {expected}, with commas "
            "between. Get the file anew"
        )
    return used


def _line(path: Path, record: int) -> int:
    """The line of the file that holds a record; that of the header is 0, blank lines are none."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        numbers = (number for number, text in enumerate(file, 1) if text.strip("\n"))
        return next(islice(numbers, record, None), record + 1)


def _parsed(block: pl.DataFrame) -> pl.DataFrame:
    """Columns of text → video, valence and arousal as they are, box and landmarks as numbers."""
    box: list[pl.Expr] = [pl.lit(None, pl.Float32).alias(name) for name in BOX]
    if all(name in block.columns for name in FACE):
        x, y, width, height = (pl.col(name).cast(pl.Float32, strict=False) for name in FACE)
        box = [e.alias(n) for n, e in zip(BOX, (x, y, x + width, y + height), strict=True)]
    table = block.select(pl.col(PICTURE).alias("video"), "valence", "arousal", *box)
    if POINTS in block.columns:
        return table.with_columns(_landmarks(block[POINTS]))
    return table.with_columns(pl.lit(None, PICTURES["landmarks"]).alias("landmarks"))


# Of 68 points "x1;y1;x2;y2;…", what five are made of: both eyes, nose, mouth corners.
_USED = [*range(36, 48), 30, 48, 54]
_PLACES = [2 * point + axis for point in _USED for axis in (0, 1)]


def _landmarks(text: pl.Series) -> pl.Series:
    """The text of 68 points each → landmarks; null where it is not such."""
    parts = text.str.strip_chars("; ").str.split(";")
    chosen = parts.list.gather(_PLACES, null_on_oob=True).explode()
    used = chosen.str.strip_chars().cast(pl.Float32, strict=False).to_numpy()
    every = np.zeros((len(text), 68, 2), np.float32)
    every[:, _USED] = used.reshape(-1, len(_USED), 2)
    landmarks = five_points(every)
    known = (np.abs(landmarks) < MOST_PIXELS).all(axis=1) & (parts.list.len() == 136).to_numpy()
    series = pl.Series("landmarks", landmarks, dtype=PICTURES["landmarks"])
    return pl.select(pl.when(pl.Series(known)).then(series).alias("landmarks")).to_series()


def _without_copies(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Each picture once. Raises UsageError where one has two labels."""
    twice = table.select("video", "valence", "arousal", pl.int_range(pl.len()).alias("row")).filter(
        pl.col("video").is_duplicated()
    )
    if twice.is_empty():
        return table
    labels = pl.struct("valence", "arousal")
    odd = twice.filter(labels.n_unique().over("video") > 1)
    if len(odd):
        rows = odd.filter(pl.col("video") == odd["video"][0])["row"]
        lines = " and ".join(str(_line(path, row + 1)) for row in rows[:2])
        raise UsageError(
            f"{display_path(path)}, lines {lines}: found {odd['video'][0]} with two labels; "
            "expected each picture once. Remove one"
        )
    return table.unique("video", keep="first", maintain_order=True)


def _refuse_shared(tables: list[pl.DataFrame]) -> None:
    """Raises UsageError where a picture is in both lists."""
    both = tables[0].join(tables[-1], on="video", how="semi") if len(tables) > 1 else None
    if both is not None and len(both):
        raise UsageError(
            f"{len(both):,} pictures are both in training.csv and in validation.csv: "
            f"{some(both['video'].to_list())}; expected each in one. Scores on what was trained on "
            "say nothing: remove them from one"
        )
