"""Aff-Wild: videos of people who watch something, labelled frame by frame.

Zafeiriou et al., CVPR Workshops 2017. Labels of the test set were never released, so scores are
those of a declared part of the training videos. Numbers of the `.pts` files: docs/datasets.md.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vafer.datasets.labels import (
    BOX,
    FRAMES_OFF,
    MOST_PIXELS,
    PICTURES,
    Dataset,
    around,
    fewer,
    five_points,
    incomplete,
    no_faces,
    not_found,
    number_of,
    numbers_in,
    one_folder,
    read_lines,
    reading,
    some,
    to_labels,
)
from vafer.errors import UsageError, VideoError, display_path
from vafer.probe import VIDEO_SUFFIXES, count_frames

N_VIDEOS = 252
BOX_FOLDERS = ("bboxes", "bboxs")
_POINTS = re.compile(rb"n_points:\s*\d+\s*\{([^}]*)\}")


def read(root: Path, on_notice: Callable[[str], None]) -> Dataset:
    """Read the annotations under `root`, however deep they are nested. Raises UsageError."""
    annotations = one_folder(root, "annotations", lambda f: (_train(f) / "valence").is_dir())
    if annotations is None:
        raise not_found(root, "annotations/train/valence/ with a text file a video")
    sides = {name: _train(annotations) / name for name in ("valence", "arousal")}
    files = {name: {p.stem: p for p in _texts(side)} for name, side in sides.items()}
    lone = sorted(files["valence"].keys() ^ files["arousal"].keys())
    if lone:
        gone = {v: sides["arousal" if v in files["valence"] else "valence"] for v in lone}
        raise UsageError(
            f"{len(lone)} annotations are missing: "
            f"{some([display_path(side / f'{v}.txt') for v, side in gone.items()])}; expected each "
            "video in valence/ and in arousal/. Unpack them again"
        )
    if not files["valence"]:
        raise not_found(sides["valence"], "a text file a video, such as 105.txt")
    videos = _videos(root)
    tables = [
        _read_video(video, files["valence"][video], files["arousal"][video], on_notice)
        for video in sorted(files["valence"])
    ]
    lengths = {str(table["video"][0]): len(table) for table in tables}
    if len(tables) < N_VIDEOS:
        on_notice(fewer(root, f"the labels of {len(tables)} of {N_VIDEOS} videos"))

    @reading()
    def locate(rows: pl.DataFrame, *, must_exist: bool) -> pl.DataFrame:
        names = rows["video"].unique().sort().to_list()
        missing = [f"videos/train/{name}.mp4 or .avi" for name in names if name not in videos]
        if must_exist and missing:
            raise incomplete(root, missing, len(names), "videos are missing")
        ends, unreadable = {}, []
        for name in sorted({*names} & videos.keys()):
            try:
                n_frames = count_frames(videos[name], expected=lengths[name])
            except VideoError as error:
                unreadable.append(str(error))
                continue
            labels = files["valence"][name]
            ends[name] = _common(labels, lengths[name], videos[name], n_frames, on_notice)
        if unreadable and must_exist:
            raise incomplete(root, sorted(unreadable), len(names), "videos cannot be read")
        paths = {v: videos[v].relative_to(root).as_posix() for v in ends}
        rows = rows.with_columns(
            path=pl.col("video").replace_strict(paths, default=None, return_dtype=pl.String),
            end=pl.col("video").replace_strict(ends, default=None, return_dtype=pl.Int32),
        )
        rows = rows.filter((pl.col("frame_index") < pl.col("end")).fill_null(True)).drop("end")
        return _with_faces(root, rows, lengths, on_notice)

    return Dataset(
        name="aff-wild",
        root=root,
        labels=to_labels(pl.concat(tables).to_dict()),
        frames_in="videos",
        units="video",
        locate=locate,
        recordings={name: path.relative_to(root).as_posix() for name, path in videos.items()},
        facts={"n_videos": len(tables)},
    )


def _train(folder: Path) -> Path:
    """`train/` of a folder; some copies have it twice, `train/train/`."""
    inner = folder / "train" / "train"
    return inner if inner.is_dir() else folder / "train"


def _texts(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix == ".txt" and p.name[0] != ".")


def _videos(root: Path) -> dict[str, Path]:
    folder = one_folder(root, "videos", lambda f: (f / "train").is_dir())
    if folder is None:
        return {}
    found: dict[str, Path] = {}
    for path in sorted(_train(folder).iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != ".":
            other = found.setdefault(path.stem, path)
            if other != path:
                raise UsageError(
                    f"{display_path(other)} and {path.name}: found two videos for the labels of "
                    f"{path.stem}; expected one. Remove one"
                )
    return found


def _read_video(
    video: str, valence: Path, arousal: Path, on_notice: Callable[[str], None]
) -> pl.DataFrame:
    sides = {}
    for name, path in (("valence", valence), ("arousal", arousal)):
        lines = read_lines(path)
        if lines.is_empty():
            raise UsageError(
                f"{display_path(path)}: found an empty file; expected {name}, a line a frame. "
                "Unpack it again"
            )
        sides[name] = numbers_in(lines.to_frame(name), path, line_of=lambda row: row + 1)[name]
    n_valence, n_arousal = len(sides["valence"]), len(sides["arousal"])
    n = min(n_valence, n_arousal)
    if n_valence != n_arousal:
        _differ(
            f"{display_path(valence)} has {n_valence:,} lines, that of arousal {n_arousal:,}",
            abs(n_valence - n_arousal),
            on_notice,
        )
    return pl.DataFrame(
        {
            "video": [video] * n,
            "frame_index": np.arange(n, dtype=np.int32),
            "valence": sides["valence"].head(n),
            "arousal": sides["arousal"].head(n),
        }
    )


def _common(
    labels: Path, n_labels: int, path: Path, n_frames: int, on_notice: Callable[[str], None]
) -> int:
    """How many frames of a video have a label. Raises UsageError where the two do not fit."""
    if n_frames != n_labels:
        _differ(
            f"{display_path(labels)} has {n_labels:,} lines, {path.name} {n_frames:,} frames",
            abs(n_labels - n_frames),
            on_notice,
        )
    return min(n_labels, n_frames)


def _differ(found: str, by: int, on_notice: Callable[[str], None]) -> None:
    if by > FRAMES_OFF:
        raise UsageError(
            f"{found}; expected as many, or up to {FRAMES_OFF} more or less. Frames and labels are "
            "never matched by guess: check that the two belong together and neither is cut off"
        )
    on_notice(f"{found}: cut to the shorter")


def _with_faces(
    root: Path, rows: pl.DataFrame, lengths: Mapping[str, int], on_notice: Callable[[str], None]
) -> pl.DataFrame:
    """Boxes and landmarks where there are `.pts` files of them; a box given goes before one drawn
    around landmarks. lengths: lines of each video's labels.
    """
    rows = no_faces(rows)
    videos = rows["video"].unique().sort().to_list()
    for name, n_points in (("landmarks", 68), *((name, 4) for name in BOX_FOLDERS)):
        folder = one_folder(root, name, lambda f: (f / "train").is_dir())
        if folder is None:
            continue
        files = {video: _numbered(_train(folder) / video) for video in videos}
        tables = [_read_faces(video, found, n_points) for video, found in files.items() if found]
        if not tables:
            continue
        first = _first_number(_train(folder), lengths)
        if first is None:
            first = 1
            on_notice(
                f"{display_path(folder)}: no file is called 0, and none by the number of frames of "
                "its video, so they may count from either; they are taken to count from 1"
            )
        found = pl.concat(tables).with_columns(pl.col("frame_index") - first)
        on = ["video", "frame_index"]
        rows = rows.update(found, on=on, how="left", maintain_order="left")
    return rows


def _first_number(folder: Path, lengths: Mapping[str, int]) -> int | None:
    """0 or 1, whichever the files of some video can only be meant to count from; else None."""
    first = None
    for video, length in lengths.items():
        names = (p.name for p in (folder / video).iterdir()) if (folder / video).is_dir() else ()
        numbers = [number_of(n.removesuffix(".pts")) for n in names if n.endswith(".pts")]
        if 0 in numbers:
            return 0
        if max((n for n in numbers if n), default=0) >= length:
            first = 1
    return first


def _numbered(folder: Path) -> dict[int, Path]:
    """The `.pts` files of a video by their number; none where there is no folder."""
    found: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        number = number_of(path.stem)
        if path.suffix == ".pts" and number is not None:
            other = found.setdefault(number, path)
            if other != path:
                raise UsageError(
                    f"{display_path(other)} and {path.name}: found two files of one frame; "
                    "expected one. Remove one"
                )
    return found


def _read_faces(video: str, files: dict[int, Path], n_points: int) -> pl.DataFrame:
    """The `.pts` files of a video: four corners of a box, or 68 landmarks."""
    points = np.stack([_read_pts(path, n_points) for path in files.values()])
    box = around(points)
    columns: dict[str, Any] = {
        "video": [video] * len(files),
        "frame_index": list(files),
        **{name: box[:, i] for i, name in enumerate(BOX)},
    }
    if n_points == 68:
        columns["landmarks"] = five_points(points)
    kinds = {"frame_index": pl.Int32, "landmarks": PICTURES["landmarks"]}
    return pl.DataFrame(columns, schema_overrides={n: kinds[n] for n in kinds if n in columns})


def _read_pts(path: Path, n_points: int) -> np.ndarray:
    match = _POINTS.search(path.read_bytes())
    try:
        values = np.array(match[1].split(), np.float64) if match else np.empty(0)
    except ValueError:
        values = np.empty(0)
    is_whole = len(values) == 2 * n_points
    if not is_whole or not (np.abs(values) < MOST_PIXELS).all():
        found = "a point that is no number of pixels" if is_whole else f"{len(values) / 2:g} points"
        raise UsageError(
            f"{display_path(path)}: found {found}; expected `n_points: {n_points}` and as many "
            "lines of x and y in braces. Unpack it again"
        )
    return values.reshape(n_points, 2)
