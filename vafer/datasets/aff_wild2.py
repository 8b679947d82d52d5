"""Aff-Wild2: labels a line a frame, and faces cropped and aligned as sparse folders of pictures.

Kollias & Zafeiriou, BMVC 2019, with the official training and validation set. Line 0 below the
header belongs to frame 0 of the video and to `00001.jpg`; -5 marks a frame without a label.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from vafer.datasets.labels import (
    FRAMES_OFF,
    Dataset,
    incomplete,
    no_faces,
    not_found,
    numbers_in,
    one_folder,
    read_lines,
    to_labels,
)
from vafer.errors import UsageError, display_path
from vafer.pictures import numbered_pictures

INVALID = -5.0
SETS = {"Train_Set": "train", "Training_Set": "train", "Validation_Set": "validation"}
SIDE = re.compile(r"_(left|right)$")  # of two people in one video, whom a label file means


def read(root: Path, on_notice: Callable[[str], None]) -> Dataset:
    """Read the label files under `VA_Set/`. Raises UsageError."""
    labels_folder = one_folder(root, "VA_Set", lambda f: any((f / name).is_dir() for name in SETS))
    if labels_folder is None:
        raise not_found(root, f"VA_Set/ with one of {', '.join(SETS)}")
    files = _label_files(labels_folder)
    tables = {video: _read_video(path) for video, (_, path) in files.items()}
    n_lines = {video: len(table) for video, table in tables.items()}
    every = pl.concat(
        table.with_columns(video=pl.lit(video), split=pl.lit(files[video][0]))
        for video, table in tables.items()
    )
    is_valid = (pl.col("valence") != INVALID) & (pl.col("arousal") != INVALID)
    valid = every.filter(is_valid)
    if len(every) > len(valid):
        on_notice(f"{len(every) - len(valid):,} of {len(every):,} frames are marked invalid (-5)")
    crops = _crop_folders(root, [*files])

    def locate(rows: pl.DataFrame, *, must_exist: bool) -> pl.DataFrame:
        names = rows["video"].unique().sort().to_list()
        missing = [f"cropped_aligned/{name}/" for name in names if name not in crops]
        if must_exist and missing:
            raise incomplete(root, missing, len(names), "folders of pictures")
        found = [
            _pictures(root, name, files[name][1], crops[name], n_lines[name], on_notice)
            for name in names
            if name in crops
        ]
        if found:
            rows = rows.join(
                pl.concat(found), on=["video", "frame_index"], how="left", maintain_order="left"
            )
        return no_faces(rows)

    def picture_numbers(video: str) -> np.ndarray | None:
        if video not in crops:
            return None
        return np.array([int(p.stem) - 1 for p in numbered_pictures(crops[video])], np.int32)

    return Dataset(
        name="aff-wild2",
        root=root,
        labels=to_labels(valid.to_dict()),
        frames_in="pictures",
        units=None,
        locate=locate,
        recordings={name: folder.relative_to(root).as_posix() for name, folder in crops.items()},
        picture_numbers=picture_numbers,
        facts={"n_videos": len(files), "n_invalid": len(every) - len(valid)},
    )


def _label_files(folder: Path) -> dict[str, tuple[str, Path]]:
    """The split and the file of each video. Raises UsageError where one is in both sets."""
    found: dict[str, tuple[str, Path]] = {}
    given = [name for name in SETS if (folder / name).is_dir()]
    if len({SETS[name] for name in given}) < len(given):
        raise UsageError(
            f"{display_path(folder)} holds {' and '.join(given)}: expected one of the first two"
        )
    for name in given:
        for path in sorted((folder / name).iterdir()):
            if path.suffix != ".txt" or path.name.startswith("."):
                continue
            other = found.setdefault(path.stem, (SETS[name], path))
            if other[1] != path:
                raise UsageError(
                    f"{path.stem} is in both sets: {display_path(other[1])} and "
                    f"{display_path(path)}. Scores on what was trained on say nothing: remove one"
                )
    if not found:
        raise not_found(folder / given[0], "a text file a video")
    return found


def _read_video(path: Path) -> pl.DataFrame:
    lines = read_lines(path)
    header = [name.strip().lower() for name in lines[0].split(",")] if len(lines) else []
    if sorted(header) != ["arousal", "valence"]:
        found = repr(lines[0]) if len(lines) else "an empty file"
        raise UsageError(f"{display_path(path)}, line 1: found {found}; expected valence,arousal")
    parts = lines.slice(1).str.split(",")
    odd = (parts.list.len() != 2).arg_true()
    if len(odd):
        raise UsageError(
            f"{display_path(path)}, line {int(odd[0]) + 2}: found {lines[int(odd[0]) + 1]!r}; "
            "expected two numbers with a comma between them"
        )
    text = pl.DataFrame(
        {name: parts.list.get(header.index(name)) for name in ("valence", "arousal")}
    )
    values = numbers_in(text, path, first_line=2, sentinel=INVALID)
    return values.with_columns(frame_index=pl.int_range(pl.len(), dtype=pl.Int32))


def _crop_folders(root: Path, videos: list[str]) -> dict[str, Path]:
    """The folder of each video's pictures; `_left` and `_right` files may share the video's."""
    top = one_folder(root, "cropped_aligned", lambda f: True)
    if top is None:
        return {}
    there = {folder.name for folder in top.iterdir() if folder.is_dir()}
    found = {}
    for video in videos:
        for name in (video, SIDE.sub("", video)):
            if name in there:
                found[video] = top / name
                break
    return found


def _pictures(
    root: Path,
    video: str,
    labels: Path,
    folder: Path,
    n_lines: int,
    on_notice: Callable[[str], None],
) -> pl.DataFrame:
    """The pictures of a video by frame index. Raises UsageError where they do not fit."""
    pictures = numbered_pictures(folder)
    numbers = [int(p.stem) if p.stem.isdigit() else -1 for p in pictures]
    if len({*numbers}) < len(numbers):
        raise UsageError(f"{display_path(folder)} holds two pictures of one number: remove one")
    if numbers and min(numbers) < 1:
        raise UsageError(
            f"{display_path(folder)} holds {pictures[0].name}; expected pictures that count from "
            "00001.jpg, as in the cropped and aligned release"
        )
    if numbers and max(numbers) > n_lines:
        found = (
            f"{display_path(labels)} labels {n_lines:,} frames, {display_path(folder)} holds "
            f"pictures up to {max(numbers):,}"
        )
        if max(numbers) > n_lines + FRAMES_OFF:
            raise UsageError(f"{found}: expected as many at most. Unpack both again")
        on_notice(f"{found}: those beyond are left out")
    return pl.DataFrame(
        {
            "video": [video] * len(pictures),
            "frame_index": np.array(numbers, np.int32) - 1,
            "path": [p.relative_to(root).as_posix() for p in pictures],
        },
        schema={"video": pl.String, "frame_index": pl.Int32, "path": pl.String},
    )
