"""AFEW-VA: 600 film clips as folders of pictures, each with labels and 68 landmarks in a JSON file.

Kossaifi et al., Image and Vision Computing 65, 2017. Labels are whole numbers from -10 to 10, and
come divided by 10. Persons are the actors, by whom the five folds are made.
"""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vafer.datasets.labels import (
    BOX,
    MOST_PIXELS,
    PICTURES,
    Dataset,
    around,
    fewer,
    five_points,
    incomplete,
    levels,
    not_found,
    number_of,
    reading,
    shortened,
    some,
    to_labels,
)
from vafer.errors import UsageError, display_path
from vafer.pictures import numbered_pictures

N_CLIPS = 600
SCALE = 10


def read(root: Path, on_notice: Callable[[str], None]) -> Dataset:
    """Read the clips under `root`, in parts `01` to `12` or flat. Raises UsageError."""
    clips = _find(root)
    tables = [_read_clip(root, video, clips[video]) for video in sorted(clips)]
    if len(clips) < N_CLIPS:
        text = f"{len(clips)} of AFEW-VA's {N_CLIPS} clips"
        on_notice(fewer(root, f"{text}: scores on them are not those of the whole"))
    frames = pl.concat(tables)
    pictures = frames.select("video", "frame_index", *PICTURES)

    @reading()
    def locate(rows: pl.DataFrame, *, must_exist: bool) -> pl.DataFrame:
        located = rows.join(
            pictures, on=["video", "frame_index"], how="left", maintain_order="left"
        )
        empty = located.filter(pl.col("path").is_null())["video"].unique().sort()
        if must_exist and len(empty):
            paths = [str(clips[v].relative_to(root)) for v in empty]
            raise incomplete(root, paths, rows["video"].n_unique(), "clips have no pictures")
        return located

    return Dataset(
        name="afew-va",
        root=root,
        labels=to_labels({n: frames[n] for n in frames.columns if n not in PICTURES}),
        frames_in="pictures",
        units="subject",
        locate=locate,
        recordings={video: folder.relative_to(root).as_posix() for video, folder in clips.items()},
        facts={"n_clips": len(clips)},
    )


def _find(root: Path) -> dict[str, Path]:
    """The folder of each clip, by its name."""
    clips: dict[str, Path] = {}
    without = []
    for folder in chain.from_iterable(levels(root)):
        name = folder.absolute().name
        if number_of(name) is None:
            continue
        if (folder / f"{name}.json").exists():
            other = clips.setdefault(name, folder)
            if other != folder:
                raise UsageError(
                    f"found clip {name} twice, {display_path(other)} and {display_path(folder)}; "
                    "expected one copy. Remove one, or name the copy to read with --root"
                )
        elif len(name) == 3 and numbered_pictures(folder):
            without.append(display_path(folder / f"{name}.json"))
    if without:
        raise UsageError(
            f"labels of {len(without)} clips are missing: {some(without)}; expected them beside "
            "the pictures. Finish the download, or unpack it again"
        )
    if not clips:
        raise not_found(root, "folders of clips such as 01/001/ with 00000.png, … and 001.json")
    return clips


def _read_clip(root: Path, video: str, folder: Path) -> pl.DataFrame:
    """One clip: labels, landmarks, and its pictures where there are any."""
    path = folder / f"{video}.json"
    values = _parse(path)
    found = values.get("video_id", video)
    if str(found).lstrip("0") != video.lstrip("0"):
        raise _error(path, f"video_id is {shortened(found)}", f"{video!r}, as its folder is called")
    actor = values.get("actor")
    if not isinstance(actor, str) or not actor.strip():
        raise _error(path, f"actor is {shortened(actor)}", "a name, since folds are made by actor")
    frames = values.get("frames")
    if not isinstance(frames, dict) or not frames:
        raise _error(path, f"frames is {type(frames).__name__}", "an object with a frame a key")
    numbers = _numbers(path, frames)
    keys = sorted(frames, key=numbers.__getitem__)
    points = [_points(path, key, frames[key]) for key in keys]
    is_marked = np.array([p is not None for p in points])
    marks = np.stack([np.zeros((68, 2)) if p is None else p for p in points])
    box, five = around(marks), five_points(marks)
    table = {
        "video": [video] * len(keys),
        "frame_index": np.arange(len(keys)),
        "valence": [_label(path, key, frames[key], "valence") for key in keys],
        "arousal": [_label(path, key, frames[key], "arousal") for key in keys],
        "subject": [actor.strip()] * len(keys),
        "path": _pictures(root, path, [numbers[key] for key in keys]),
        **{name: box[:, i] for i, name in enumerate(BOX)},
        "landmarks": five,
    }
    return pl.DataFrame(table, schema_overrides={**PICTURES, "frame_index": pl.Int32}).with_columns(
        pl.when(pl.Series(is_marked)).then(pl.col(name)) for name in PICTURES if name != "path"
    )


def _parse(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise _error(path, f"the key {shortened(twice)} twice", "each once")
        return values

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{display_path(path)}: found no JSON ({error}); expected the labels of a clip. Unpack "
            "it again"
        ) from error
    if not isinstance(values, dict):
        raise _error(path, type(values).__name__, "an object with actor, video_id and frames")
    return values


def _numbers(path: Path, frames: dict[str, Any]) -> dict[str, int]:
    """The number of each frame's key, since `10` sorts before `9` as text."""
    numbers: dict[int, str] = {}
    for key in frames:
        number = number_of(key)
        if number is None:
            raise _error(path, f"a frame called {shortened(key)}", "digits, as in 00012")
        other = numbers.setdefault(number, key)
        if other != key:
            raise _error(path, f"frames {other!r} and {key!r}", "each number once")
    return {key: number for number, key in numbers.items()}


def _label(path: Path, key: str, frame: Any, name: str) -> float:
    value: Any = frame.get(name) if isinstance(frame, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value % 1 or not abs(value) <= SCALE:
        raise _error(
            path,
            f"{name} of frame {key} is {shortened(value)}",
            f"a whole number from -{SCALE} to {SCALE}",
        )
    return value / SCALE


def _points(path: Path, key: str, frame: Any) -> np.ndarray | None:
    """Landmarks (68, 2) of a frame, None where it has none."""
    given = frame.get("landmarks") if isinstance(frame, dict) else None
    if not given:
        return None
    try:
        points = np.array(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.shape != (68, 2) or not (np.abs(points) < MOST_PIXELS).all():
        raise _error(
            path, f"landmarks of frame {key} are not (68, 2) numbers", "68 points in pixels"
        )
    return points if np.ptp(points, axis=0).all() else None  # as where all are 0, 0


def _pictures(root: Path, path: Path, numbers: list[int]) -> list[str | None]:
    """The picture of each labelled frame. Raises UsageError where the two do not match."""
    pictures = numbered_pictures(path.parent)
    if not pictures:
        return [None] * len(numbers)
    by_number = [number_of(picture.stem) for picture in pictures]
    if by_number != numbers:
        lone = sorted({n for n in by_number if n is not None} ^ {*numbers})
        example = f"; number {lone[0]} is in one of them only" if lone else ""
        raise UsageError(
            f"{display_path(path)} labels {len(numbers)} frames, {display_path(path.parent)} holds "
            f"{len(pictures)} pictures{example}; expected one picture, called by its number, for "
            "each. Unpack the clip again"
        )
    return [picture.relative_to(root).as_posix() for picture in pictures]


def _error(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(
        f"{display_path(path)}: found {found}; expected {expected}. Unpack the clip again, or "
        "correct it"
    )
