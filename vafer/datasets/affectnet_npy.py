"""AffectNet's npy release: pictures, and for each label a small npy file of its own."""

import math
import re
from pathlib import Path

import numpy as np
import polars as pl

from vafer.datasets.labels import (
    BOX,
    MOST_PIXELS,
    PICTURES,
    around,
    five_points,
    incomplete,
    not_found,
    shortened,
)
from vafer.errors import UsageError, display_path

_ARRAY = re.compile(  # numpy's header of an array of numbers or text
    rb"\{'descr': '([<>|=]?[iufSU][0-9]{1,6})', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]{0,60})\), \}"
)


def read_set(root: Path, folder: Path, split: str, *, sentinel: float) -> pl.DataFrame:
    """One set; its pictures are called by their set too, since IDs repeat.

    sentinel: the label of a picture without one. Raises UsageError.
    """
    images = _stems(folder / "images", ".jpg")
    notes = folder / "annotations"
    stems = _stems(notes, ".npy")
    valued, aroused = ({s[:-4] for s in stems if s.endswith(end)} for end in ("_val", "_aro"))
    if not valued | aroused:
        raise not_found(notes, "files called ID_val.npy and ID_aro.npy")
    if lone := sorted(valued ^ aroused):
        names = [f"{i}_{'aro' if i in valued else 'val'}.npy" for i in lone]
        raise incomplete(notes, names, len(valued | aroused), "pictures lack a label")
    if images and images != valued:
        lone = sorted(images ^ valued)
        raise UsageError(
            f"{display_path(notes)} labels {len(valued):,} pictures, {folder.name}/images holds "
            f"{len(images):,}; {lone[0]} is in one of them only; expected the same in both. Unpack "
            "both again"
        )
    ids = sorted(valued)
    arrays = _Arrays()
    columns = {
        "valence": [arrays.number(notes / f"{i}_val.npy", sentinel=sentinel) for i in ids],
        "arousal": [arrays.number(notes / f"{i}_aro.npy", sentinel=sentinel) for i in ids],
    }
    marked = [i for i, name in enumerate(ids) if f"{name}_lnd" in stems]
    box, landmarks = np.full((len(ids), 4), np.nan), np.full((len(ids), 10), np.nan)
    points = np.empty((len(marked), 68, 2), np.float32)
    for row, i in enumerate(marked):
        points[row] = arrays.points(notes / f"{ids[i]}_lnd.npy")
    if marked:
        box[marked], landmarks[marked] = around(points), five_points(points)
    is_marked = pl.Series(np.isin(np.arange(len(ids)), marked))
    prefix = (folder / "images").relative_to(root).as_posix()
    table = pl.DataFrame(
        {
            "video": [f"{folder.name}/images/{i}.jpg" for i in ids],
            **columns,
            "split": [split] * len(ids),
            "path": [f"{prefix}/{i}.jpg" for i in ids],
            **{name: box[:, i] for i, name in enumerate(BOX)},
            "landmarks": landmarks,
        },
        schema_overrides=PICTURES,
    )
    return table.with_columns(pl.when(is_marked).then(pl.col(*BOX, "landmarks")))


def _stems(folder: Path, suffix: str) -> set[str]:
    """What the files in a folder that end so are called; none where there is no folder."""
    names = (p.name for p in folder.iterdir()) if folder.is_dir() else iter(())
    return {name.removesuffix(suffix) for name in names if name.endswith(suffix) and name[0] != "."}


class _Arrays:
    """Reads small npy files; a header that was met before is not parsed again."""

    def __init__(self) -> None:
        self._layouts: dict[bytes, tuple[tuple[int, ...], bool, np.dtype]] = {}

    def read(self, path: Path) -> np.ndarray:
        """The values as text or numbers, flat. Raises UsageError, also where code would be run."""
        try:
            data = path.read_bytes()
            if data[:6] != b"\x93NUMPY":
                raise ValueError("no npy file")
            start = 12 if data[6] > 1 else 10
            end = start + int.from_bytes(data[8:start], "little")
            shape, is_transposed, kind = self._layout(data[start:end])
            if math.prod(shape) * kind.itemsize != len(data) - end:
                raise ValueError(f"{len(data):,} bytes, not what its header says")
            values = np.frombuffer(data, kind, offset=end)
            return values.reshape(shape, order="F").ravel() if is_transposed else values
        except (ValueError, IndexError, TypeError) as error:
            raise UsageError(
                f"{display_path(path)}: found no array of numbers or text ({error}); expected one "
                "in an npy file. Get the release's own file anew"
            ) from error

    def _layout(self, header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
        if header not in self._layouts:
            match = _ARRAY.fullmatch(header.strip())
            if match is None:
                is_pickled = b"O'" in header
                what = "Python objects, which are not loaded" if is_pickled else "another header"
                raise ValueError(what)
            shape = tuple(int(n) for n in match[3].split(b",") if n.strip())
            self._layouts[header] = (shape, match[2] == b"True", np.dtype(match[1].decode()))
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
                f"{display_path(path)}: found {shortened(values.tolist())}; expected one "
                f"number from -1 to 1, or {sentinel:g} for a picture without a label. Get the "
                "release's own file anew"
            )
        return value

    def points(self, path: Path) -> np.ndarray:
        """68 landmarks (68, 2)."""
        values = self.read(path)
        try:
            points = values.astype(np.float64).reshape(68, 2)
        except ValueError:
            points = np.full((68, 2), np.nan)
        if not (np.abs(points) < MOST_PIXELS).all():
            raise UsageError(
                f"{display_path(path)}: found {len(values)} values; expected 68 points x, y as "
                "numbers. Get the release's own file anew"
            )
        return points
