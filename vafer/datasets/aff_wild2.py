"""Aff-Wild2: labels a line a frame, and faces cropped and aligned as sparse folders of pictures.

Kollias & Zafeiriou, BMVC 2019, with the official training and validation set. Line 0 below the
header belongs to frame 0 of the video and to `00001.jpg`; -5 marks a frame without a label.
"""

import re
from collections import Counter
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
    number_of,
    numbers_in,
    one_folder,
    read_lines,
    reading,
    shortened,
    some,
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
    tables = {video: _read_video(video, split, path) for video, (split, path) in files.items()}
    n_lines = {video: len(table) for video, table in tables.items()}
    every = pl.concat(tables.values())
    is_valid = (pl.col("valence") != INVALID) & (pl.col("arousal") != INVALID)
    valid = every.filter(is_valid)
    if len(every) > len(valid):
        on_notice(f"{len(every) - len(valid):,} of {len(every):,} frames are marked invalid (-5)")
    for split in sorted({*SETS.values()} - {split for split, _ in files.values()}):
        on_notice(f"{display_path(labels_folder)} holds no labels of the {split} set")
    crops = _crop_folders(root, [*files])

    @reading()
    def locate(rows: pl.DataFrame, *, must_exist: bool) -> pl.DataFrame:
        names = rows["video"].unique().sort().to_list()
        found = {
            name: _pictures(root, name, files[name][1], crops[name], n_lines[name], on_notice)
            for name in names
            if name in crops
        }
        missing = [f"cropped_aligned/{n}" for n in names if n not in found or found[n].is_empty()]
        if must_exist and missing:
            what = "folders of pictures are missing or empty"
            raise incomplete(root, missing, len(names), what)
        users = Counter(crops[name] for name in found)
        if shared := [folder.name for folder, n in users.items() if n > 1]:
            on_notice(
                f"{len(shared)} folders of pictures belong to two label files, _left and _right: "
                f"{some(shared)}. Whom a picture shows is not known, so with --crops labels and in "
                "training both labels are given to it"
            )
        if found:
            pictures = pl.concat(found.values())
            on = ["video", "frame_index"]
            rows = rows.join(pictures, on=on, how="left", maintain_order="left")
        return no_faces(rows)

    @reading()
    def picture_numbers(video: str) -> np.ndarray | None:
        return np.array([*_by_number(crops[video])], np.int32) - 1 if video in crops else None

    return Dataset(
        name="aff-wild2",
        root=root,
        labels=to_labels(valid.to_dict()),
        frames_in="pictures",
        units=None,
        locate=locate,
        is_cropped=True,
        recordings={name: folder.relative_to(root).as_posix() for name, folder in crops.items()},
        picture_numbers=picture_numbers,
        facts={"n_videos": len(files), "n_invalid": len(every) - len(valid)},
    )


def _label_files(folder: Path) -> dict[str, tuple[str, Path]]:
    """The split and the file of each video. Raises UsageError where one is in both sets."""
    found: dict[str, tuple[str, Path]] = {}
    given = [name for name in SETS if (folder / name).is_dir()]
    for_training = [name for name in given if SETS[name] == "train"]
    if len(for_training) > 1:
        raise UsageError(
            f"{display_path(folder)}: found {' and '.join(for_training)}; expected one set for "
            "training. Remove one"
        )
    for name in given:
        for path in sorted((folder / name).iterdir()):
            if path.suffix != ".txt" or path.name.startswith("."):
                continue
            other = found.setdefault(path.stem, (SETS[name], path))
            if other[1] != path:
                raise UsageError(
                    f"found {path.stem} in both sets, {display_path(other[1])} and "
                    f"{display_path(path)}; expected it in one. Scores on what was trained on say "
                    "nothing: remove one"
                )
    if not found:
        raise not_found(folder / given[0], "a text file a video")
    return found


def _read_video(video: str, split: str, path: Path) -> pl.DataFrame:
    lines = read_lines(path)
    head = lines[0] if len(lines) else ""
    header = [name.strip().lower() for name in head.split(",")]
    if sorted(header) != ["arousal", "valence"]:
        raise UsageError(
            f"{display_path(path)}, line 1: found {shortened(head)}; expected valence,arousal. Get "
            "the file anew"
        )
    if len(lines) < 2:
        raise UsageError(
            f"{display_path(path)}: found a header alone; expected a line a frame below. Get the "
            "file anew"
        )
    parts = lines.slice(1).str.split(",")
    odd = (parts.list.len() != 2).arg_true()
    if len(odd):
        line = int(odd[0]) + 2
        raise UsageError(
            f"{display_path(path)}, line {line}: found {shortened(lines[line - 1])}; expected two "
            "numbers with a comma between them. Get the file anew, or correct the line"
        )
    text = pl.DataFrame(
        {name: parts.list.get(header.index(name)) for name in ("valence", "arousal")}
    )
    values = numbers_in(text, path, line_of=lambda row: row + 2, sentinel=INVALID)
    return values.with_columns(
        pl.Series("video", [video]).new_from_index(0, len(values)),
        pl.int_range(pl.len(), dtype=pl.Int32).alias("frame_index"),
        pl.lit(split).alias("split"),
    )


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
    numbers = _by_number(folder)
    if numbers and max(numbers) > n_lines:
        found = (
            f"{display_path(labels)} labels {n_lines:,} frames, {display_path(folder)} holds "
            f"pictures up to {max(numbers):,}"
        )
        if max(numbers) > n_lines + FRAMES_OFF:
            raise UsageError(
                f"{found}; expected no more than labels, or up to {FRAMES_OFF}. Check that the two "
                "belong together, or unpack both again"
            )
        on_notice(f"{found}: those beyond are left out")
    return pl.DataFrame(
        {
            "video": [video] * len(numbers),
            "frame_index": [number - 1 for number in numbers],
            "path": [p.relative_to(root).as_posix() for p in numbers.values()],
        },
        schema={"video": pl.String, "frame_index": pl.Int32, "path": pl.String},
    )


def _by_number(folder: Path) -> dict[int, Path]:
    """The pictures of a video by their number, ascending. Raises UsageError where one has none."""
    found: dict[int, Path] = {}
    for path in numbered_pictures(folder):
        number = number_of(path.stem)
        if not number:
            raise UsageError(
                f"{display_path(path)}: found a picture so called; expected numbers alone, from "
                "00001.jpg on, as in the cropped and aligned release. Get the pictures anew"
            )
        other = found.setdefault(number, path)
        if other != path:
            raise UsageError(
                f"{display_path(other)} and {path.name}: found two pictures of one number; "
                "expected one. Remove one"
            )
    return found
