"""What every reader yields: labelled frames, and where their pictures and faces are."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
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
MOST_FOLDERS = 20_000  # that are looked into
MOST_PIXELS = 1e6  # no point of a face lies farther out
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
    is_cropped: whether they show one face and little else.
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
    is_cropped: bool = False
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
    table = table.with_columns(missing).select(*LABELS).cast(pl.Schema(LABELS))
    return table.sort("video", "frame_index", maintain_order=True)


def no_faces(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with what PICTURES has and they lack, null."""
    return rows.with_columns(
        pl.lit(None, kind).alias(name)
        for name, kind in PICTURES.items()
        if name not in rows.columns
    )


def numbers_in(
    values: pl.DataFrame,
    path: Path,
    *,
    line_of: Callable[[int], int],
    sentinel: float | None = None,
) -> pl.DataFrame:
    """Columns of text → Float64; checks that all lie in [-1, 1].

    line_of: the line of the file in which a row is. sentinel: the one other value, of a frame
    without a label. Raises UsageError naming the line.
    """
    parsed = values.select(pl.all().str.strip_chars().cast(pl.Float64, strict=False))
    for name in parsed.columns:
        is_good = parsed[name].is_between(-1, 1)
        if sentinel is not None:
            is_good |= parsed[name] == sentinel
        bad = (~is_good.fill_null(False)).arg_true()
        if len(bad):
            row = int(bad[0])
            also = "" if sentinel is None else f", or {sentinel:g} for one without a label"
            raise UsageError(
                f"{display_path(path)}, line {line_of(row)}: {name} is "
                f"{shortened(values[name][row])}; expected a number from -1 to 1{also}. Get the "
                "file anew, or correct the line"
            )
    return parsed


def read_lines(path: Path) -> pl.Series:
    """The lines of a text file, without blank ones at its end. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{display_path(path)}: found bytes that are no UTF-8, from byte {error.start} on; "
            "expected text with a line a frame. Get the file anew, or save it as UTF-8"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    return pl.Series(lines, dtype=pl.String)


def number_of(stem: str) -> int | None:
    """The number that a file or frame is called by; None where it is called otherwise."""
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) < 10 else None


def shortened(found: object) -> str:
    """A value from a file for a message: not too long."""
    text = "empty" if found is None or found == "" else repr(found)
    return text if len(text) <= 60 else f"{text[:60]}…"


def some(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


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


@contextmanager
def reading() -> Iterator[None]:
    """Files and folders that cannot be read, or be named in a table, raise UsageError."""
    try:
        yield
    except OSError as error:
        named = "" if error.filename is None else f"{display_path(Path(error.filename))}: "
        raise UsageError(
            f"{named}found {(error.strerror or str(error)).lower()}; expected what can be read. "
            "Check its permissions and the disk, or name the dataset's own folder with --root"
        ) from error
    except UnicodeEncodeError as error:
        name = error.object.encode(errors="backslashreplace").decode()
        raise UsageError(
            f"{name}: found a name that is no UTF-8; expected one that a table can hold. Rename it"
        ) from error


def levels(root: Path) -> Iterator[list[Path]]:
    """`root`, the folders in it, those in these, and so on to a depth; hidden ones left out.

    Raises UsageError where there are more than any dataset has.
    """
    level, n = [root], 1
    yield level
    for _ in range(MOST_DEPTH):
        below: list[Path] = []
        for folder in level:
            with os.scandir(folder) as entries:
                below += sorted(
                    folder / e.name for e in entries if e.name[0] not in "._" and e.is_dir()
                )
            if n + len(below) > MOST_FOLDERS:
                raise UsageError(
                    f"{display_path(root)}: found more than {MOST_FOLDERS:,} folders in it; "
                    "expected those of one dataset. Name the dataset's own folder with --root"
                )
        n += len(below)
        level = below
        yield level


def one_folder(root: Path, name: str, is_it: Callable[[Path], bool]) -> Path | None:
    """The one folder called `name` in or under `root` for which `is_it` holds, or None.

    The highest counts. Raises UsageError where there are several at one height.
    """
    if root.absolute().name == name and is_it(root):
        return root
    for level in islice(levels(root), MOST_DEPTH):
        found = [f for folder in level if (f := folder / name).is_dir() and is_it(f)]
        if len(found) > 1:
            raise UsageError(
                f"{display_path(root)}: found {name} more than once: "
                f"{some([display_path(f) for f in found])}; expected one copy. Name it with --root"
            )
        if found:
            return found[0]
    return None


def not_found(root: Path, expected: str) -> UsageError:
    """The error of a root in which the dataset is not."""
    names = sorted(
        display_path(Path(p.name)) + ("/" if p.is_dir() else "")
        for p in root.iterdir()
        if p.name[0] != "."
    )
    advice = _unpack(root) or (
        "Name the folder that holds it with --root; docs/datasets.md shows the layout"
    )
    return UsageError(
        f"{display_path(root)}: found {some(names) if names else 'nothing'}; expected {expected}. "
        f"{advice}"
    )


def incomplete(root: Path, missing: Sequence[str], n: int, what: str) -> UsageError:
    """The error of pictures or videos that are not there: of n, the `missing`, by path."""
    advice = _unpack(root) or "Finish the download, or unpack it again"
    if len(missing) == n:
        advice += "; if they lie beside this folder, name the one above with --root"
    names = [display_path(Path(name)) for name in missing]
    return UsageError(
        f"{display_path(root)}: {len(names):,} of {n:,} {what}: {some(names)}. {advice}"
    )


def fewer(root: Path, text: str) -> str:
    """A notice that a dataset is not there as a whole, and what may be done."""
    advice = _unpack(root)
    return f"{display_path(root)} holds {text}{f'. {advice}' if advice else ''}"


def _unpack(root: Path) -> str | None:
    """What to do with the archives in `root` or one folder below; None where there are none."""
    found = [
        path.relative_to(root)
        for folder in chain(*islice(levels(root), 2))
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in ARCHIVES and path.name[0] != "."
    ]
    return f"Unpack {some([display_path(path) for path in found])} there first" if found else None
