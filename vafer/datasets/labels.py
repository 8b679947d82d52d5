"""What every reader yields: labelled frames, and where their pictures and faces are."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl

from vafer.errors import UsageError, display_path

LABELS: dict[str, Any] = {
    "video": pl.String,  # the recording's name; of single pictures the path
    "frame_index": pl.Int32,  # 0-based, presentation order
    "valence": pl.Float64,
    "arousal": pl.Float64,
    "subject": pl.String,  # null where the dataset names none
    "split": pl.String,  # `train` or `validation`; null where the dataset makes no split
}
PICTURES: dict[str, Any] = {
    "path": pl.String,  # of the picture, or of the video; null where a picture is missing
    "x1": pl.Float32,
    "y1": pl.Float32,
    "x2": pl.Float32,
    "y2": pl.Float32,
    "landmarks": pl.Array(pl.Float32, 10),  # as in the results table
}
BOX = ("x1", "y1", "x2", "y2")
FRAMES_OFF = 3  # by so many frames labels and pictures may differ at the end of a recording
MOST_DEPTH = 3  # of folders below the root, down to which a dataset's own are looked for
MOST_FOLDERS = 20_000  # that are looked into before giving up
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"}


class Locate(Protocol):
    """Rows of labels → the same rows with the columns of PICTURES, and none that has no frame.

    must_exist: whether pictures are needed; otherwise those that are not there have no path. Raises
    UsageError where pictures are missing, or do not fit the labels.
    """

    def __call__(self, rows: pl.DataFrame, *, must_exist: bool) -> pl.DataFrame: ...


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A dataset on disk.

    labels: one row a labelled frame, with the columns of LABELS, ordered by video and frame.
    frames_in: where its frames are: `videos`, folders of numbered `pictures`, or single `images`.
    units: what a split parts: `subject` (into folds) or `video`; None where the dataset comes in
    official sets alone. recordings: path under the root of each video, where it is there.
    picture_numbers: of a recording, the frame index of each picture in its folder, in numeric
    order; needed where pictures are missing. facts: what a report says of the labels.
    """

    name: str
    root: Path
    labels: pl.DataFrame
    frames_in: Literal["videos", "pictures", "images"]
    units: Literal["subject", "video"] | None
    locate: Locate
    recordings: Mapping[str, str] = field(default_factory=dict)
    picture_numbers: Callable[[str], np.ndarray | None] = lambda video: None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_subjects(self) -> bool:
        return not self.labels["subject"].is_null().all()


def to_labels(columns: Mapping[str, Any]) -> pl.DataFrame:
    """Columns → labels; those that are not given are null. Ordered by video and frame."""
    table = pl.DataFrame(columns)
    missing = [pl.lit(None).alias(name) for name in LABELS if name not in table.columns]
    table = table.with_columns(missing).select(*LABELS).cast(LABELS)
    return table.sort("video", "frame_index", maintain_order=True)


def no_faces(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with what PICTURES has and they lack, null."""
    return rows.with_columns(
        pl.lit(None, kind).alias(name)
        for name, kind in PICTURES.items()
        if name not in rows.columns
    )


def numbers_in(
    values: pl.DataFrame, path: Path, *, first_line: int, sentinel: float | None = None
) -> pl.DataFrame:
    """Text columns `valence` and `arousal` → Float64; checks that they lie in [-1, 1].

    sentinel: the one other value, of a frame without a label. Raises UsageError naming the line.
    """
    parsed = values.with_columns(
        pl.col("valence", "arousal").str.strip_chars().cast(pl.Float64, strict=False)
    )
    for name in ("valence", "arousal"):
        is_good = parsed[name].is_between(-1, 1) | (
            parsed[name] == sentinel if sentinel is not None else False
        )
        bad = (~is_good.fill_null(False)).arg_true()
        if len(bad):
            line, found = int(bad[0]), values[name][int(bad[0])]
            also = "" if sentinel is None else f", or {sentinel:g} for a frame without a label"
            raise UsageError(
                f"{display_path(path)}, line {first_line + line}: {name} is {found!r}; expected a "
                f"number from -1 to 1{also}"
            )
    return parsed


def read_lines(path: Path) -> pl.Series:
    """The lines of a text file, without blank ones at its end. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{display_path(path)} cannot be read as text: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return pl.Series(lines, dtype=pl.String)


def five_points(points: np.ndarray) -> np.ndarray:
    """68 landmarks (N, 68, 2) → left eye, right eye, nose, left and right mouth corner (N, 10)."""
    return np.concatenate(
        [
            points[:, 36:42].mean(axis=1),
            points[:, 42:48].mean(axis=1),
            points[:, 30],
            points[:, 48],
            points[:, 54],
        ],
        axis=1,
    ).astype(np.float32)


def around(points: np.ndarray) -> np.ndarray:
    """The box around points (N, K, 2): (N, 4)."""
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float32)


def folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """`root` and what lies below it to a depth, level by level, each with the names in it.

    Hidden folders are left out, and so is all beyond a number that no dataset has.
    """
    level, n_seen = [root], 0
    for _ in range(MOST_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            n_seen += 1
            if n_seen > MOST_FOLDERS:
                return
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda e: e.name)
            yield folder, [e.name for e in inside]
            below += [folder / e.name for e in inside if e.name[0] not in "._" and e.is_dir()]
        level = below


def one_folder(root: Path, name: str, is_it: Callable[[Path], bool]) -> Path | None:
    """The one folder called `name` in or under `root` for which `is_it` holds, or None.

    The highest counts. Raises UsageError where there are several at one height.
    """
    if root.name == name and is_it(root):
        return root
    found: list[Path] = []
    for folder, names in folders(root):
        depth = len(folder.relative_to(root).parts)
        if depth >= MOST_DEPTH or (found and depth >= len(found[0].relative_to(root).parts)):
            break
        if name in names and (folder / name).is_dir() and is_it(folder / name):
            found.append(folder / name)
    if len(found) > 1:
        raise UsageError(
            f"{display_path(root)} holds {name} more than once: "
            f"{', '.join(display_path(f) for f in found[:3])}. Name the copy to read with --root"
        )
    return found[0] if found else None


def not_found(root: Path, expected: str) -> UsageError:
    """The error of a root in which the dataset is not."""
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in root.iterdir())
    archives = [name for name in names if Path(name).suffix in ARCHIVES]
    advice = "Name the folder that holds it with --root; docs/datasets.md shows the layout"
    if archives:
        advice = f"Unpack {', '.join(archives[:3])}{', …' if len(archives) > 3 else ''} there first"
    shown = f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''}" if names else "nothing"
    return UsageError(f"{display_path(root)}: found {shown}; expected {expected}. {advice}")


def incomplete(root: Path, missing: list[str], n: int, what: str) -> UsageError:
    """The error of pictures or videos that are not there: of n, the `missing`, by path."""
    return UsageError(
        f"{display_path(root)}: {len(missing):,} of {n:,} {what} are missing: "
        f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}. Finish the download, or "
        "unpack it again"
    )
