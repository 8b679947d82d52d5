"""Predictions in a file: what `vafer annotate` wrote, or another table of frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vafer.datasets.labels import BOX, reading
from vafer.errors import UsageError, display_path
from vafer.parts import whole_parts

_NEEDED = {
    "video": pl.String,
    "frame_index": pl.Int32,
    "valence": pl.Float32,
    "arousal": pl.Float32,
}
_OPTIONAL = {"time_s": pl.Float64, "face_index": pl.Int32, "track_id": pl.Int32,
             **dict.fromkeys(BOX, pl.Float32)}  # fmt: skip


def read_predictions(path: Path) -> pl.DataFrame:
    """A results table, or any Parquet or CSV file with the columns video, frame_index, valence,
    arousal: one row a face, or a frame.

    Where there is a column pts, as annotation writes it, that is null for all of a recording, the
    recording is a folder of pictures and its frame indices are places in it; else they are those of
    the labels. Values that are not finite count as none. Raises UsageError.
    """
    shown = display_path(path)
    try:
        lazy = _scan(path)
        columns = lazy.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        found = "no such file" if not path.exists() else str(error).splitlines()[0]
        raise UsageError(
            f"{shown} cannot be read: {found}; expected what `vafer annotate` wrote, or another "
            "Parquet or CSV file"
        ) from error
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise UsageError(
            f"{shown} lacks the columns {', '.join(missing)}; found "
            f"{', '.join(columns) or 'none'}. Expected at least {', '.join(_NEEDED)}: rename or "
            f"add them{', and part a CSV by commas' if len(columns) == 1 else ''}"
        )
    table = _typed(lazy, columns, shown)
    is_value = pl.col("valence").is_finite() & pl.col("arousal").is_finite()
    return table.with_columns(
        *(pl.when(is_value).then(pl.col(name)).alias(name) for name in ("valence", "arousal")),
        *(pl.lit(None, kind).alias(n) for n, kind in _OPTIONAL.items() if n not in columns),
    )


def prediction_files(path: Path) -> list[Path]:
    """The files of predictions at `path`: itself, or the tables in a folder of `vafer annotate`.

    Raises UsageError where there are none.
    """
    with reading():
        str(path).encode()  # polars takes no other names
        if path.is_file():
            return [path]
        files = [part for part, _ in whole_parts(path)]
    if not files:
        found = "a folder without a table of vafer in it" if path.exists() else "no such file"
        raise UsageError(
            f"{display_path(path)}: found {found}; expected the --out of `vafer annotate`, or "
            "another Parquet or CSV file. Name that"
        )
    return files


def _scan(path: Path) -> pl.LazyFrame:
    files = prediction_files(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        # Clips are called 001, which is no number.
        names = {"video": pl.String}
        return pl.scan_csv(path, infer_schema_length=None, schema_overrides=names, glob=False)
    return pl.scan_parquet(files, glob=False)


def _typed(lazy: pl.LazyFrame, columns: Sequence[str], shown: str) -> pl.DataFrame:
    """The columns that are known, as what they are. Raises UsageError."""
    known: dict[str, Any] = _NEEDED | {"pts": pl.Int64} | _OPTIONAL
    kinds = {name: kind for name, kind in known.items() if name in columns}
    kinds["frame_index"] = pl.Float64  # a cast to whole numbers would cut 3.7 to 3
    try:
        table = lazy.select(pl.col(name).cast(kind) for name, kind in kinds.items()).collect()
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            f"{shown}: {str(error).splitlines()[0]}; expected text in video, and numbers or "
            "nothing in the others. Correct them"
        ) from error
    index = pl.col("frame_index")
    is_index = index.is_between(0, pl.Int32.max()) & (index == index.floor())
    is_row = pl.col("video").is_not_null() & is_index.fill_null(False)
    unfit = table.filter(~is_row).head(1)
    if len(unfit):
        raise UsageError(
            f"{shown}: found a row with video {unfit['video'][0]!r} and frame_index "
            f"{unfit['frame_index'][0]}; expected a name, and a whole number from 0 on. Correct "
            "such rows, or leave them out"
        )
    return table.with_columns(index.cast(pl.Int32))
