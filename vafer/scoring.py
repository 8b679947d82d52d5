"""A table of labels and predictions → the scores of all frames, of every video, of every subject.

Intervals are percentile intervals of a bootstrap that draws whole subjects (or videos, or single
pictures): frames of one subject are alike, and to draw frames would promise too much.
Source: Davison & Hinkley, Bootstrap Methods and their Application, 1997, sections 3.8 and 5.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import polars as pl

from vafer.metrics import DIMENSIONS, Moments, or_none

LEVEL = 0.95
MOST_BLOCKS = 10_000  # bounds the time of the bootstrap
ROWS_AT_ONCE = 1 << 16  # these two bound the memory; bench/scoring.py
DRAWS_AT_ONCE = 1 << 16


def score(
    frames: pl.DataFrame,
    *,
    by: Literal["subject", "video", "frame"],
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a table of labelled frames, with 95 % intervals from resamples of whole units.

    `frames` has one row a labelled frame: `video`, `subject` (null where unknown), `valence_label`
    and `arousal_label` float64, `valence` and `arousal` float32 (null where there is no
    prediction). The result is ready for JSON, what is undefined None: `overall` with `*_ci` [low,
    high], `per_video` and `per_subject` in order of name (empty by frame), and `bootstrap`.

    A unit is a subject, a video or a frame that has predictions; without a subject, frames are a
    unit a video. Where there are more than 10,000 units, they are bunched at random into 10,000
    blocks of equally many and blocks are drawn (`n_blocks`, else None), which moves the width of
    an interval by some 0.7 %. Resamples that leave a score undefined are left out of its interval;
    it is None where they are more than half, or where there are fewer than two units.
    """
    rng = np.random.default_rng(seed)
    per_video: list[dict[str, Any]] = []
    per_subject: list[dict[str, Any]] = []
    if by == "frame":
        groups = _gather(frames, _frame_blocks(frames, rng), MOST_BLOCKS)
    else:
        videos, in_video = _coded(frames["video"])
        subjects, in_subject = _coded(frames["subject"])
        in_unit = np.where(in_subject < len(subjects), in_subject, len(subjects) + in_video)
        by_video = _gather(frames, in_video, len(videos))
        by_subject = _gather(frames, in_unit, len(subjects) + len(videos))
        per_video = _named("video", videos, by_video)
        per_subject = _named("subject", subjects, by_subject)
        groups = by_subject if by == "subject" else by_video

    (overall,) = groups.pool(np.zeros(len(groups), np.intp), 1).scores()
    units = groups.scored()
    n_units = overall["n_scored"] if by == "frame" else len(units)
    units = units.pool(_bunched(len(units), rng), min(len(units), MOST_BLOCKS))
    for dimension, intervals in _intervals(units, n_resamples, rng).items():
        overall[dimension] |= intervals
    return {
        "overall": overall,
        "per_video": per_video,
        "per_subject": per_subject,
        "bootstrap": {
            "by": by,
            "n_units": n_units,
            "n_blocks": MOST_BLOCKS if n_units > MOST_BLOCKS else None,
            "n_resamples": n_resamples,
            "seed": seed,
            "level": LEVEL,
        },
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """G groups of frames: how many are labelled (G,), and the moments of the scored ones."""

    n_labelled: np.ndarray
    moments: dict[str, Moments]  # by dimension

    @classmethod
    def join(cls, parts: Sequence["_Groups"]) -> "_Groups":
        n_labelled = np.concatenate([part.n_labelled for part in parts])
        return cls(n_labelled, {d: Moments.join(p.moments[d] for p in parts) for d in DIMENSIONS})

    def __len__(self) -> int:
        return len(self.n_labelled)

    def take(self, chosen: np.ndarray) -> "_Groups":
        moments = {dimension: m.take(chosen) for dimension, m in self.moments.items()}
        return _Groups(self.n_labelled[chosen], moments)

    def scored(self) -> "_Groups":
        return self.take(np.flatnonzero(self.moments["valence"].n))

    def pool(self, into: np.ndarray, n_pools: int) -> "_Groups":
        moments = {dimension: m.pool(into, n_pools) for dimension, m in self.moments.items()}
        return _Groups(np.bincount(into, self.n_labelled, n_pools), moments)

    def merge(self, other: "_Groups") -> "_Groups":
        """The same groups, with the frames of both."""
        return _Groups.join([self, other]).pool(np.tile(np.arange(len(self)), 2), len(self))

    def scores(self) -> list[dict[str, Any]]:
        """One a group."""
        by_dimension = {dimension: m.scores() for dimension, m in self.moments.items()}
        return [
            {
                "n_labelled": int(self.n_labelled[i]),
                "n_scored": int(self.moments["valence"].n[i]),
            }
            | {
                dimension: {name: or_none(values[i]) for name, values in by_name.items()}
                for dimension, by_name in by_dimension.items()
            }
            for i in range(len(self))
        ]


def _gather(frames: pl.DataFrame, group: np.ndarray, n_groups: int) -> _Groups:
    """Frames by their group (N,), a slice of the table at a time."""

    def gather_slice(start: int) -> _Groups:
        rows, into = frames[start : start + ROWS_AT_ONCE], group[start : start + ROWS_AT_ONCE]
        is_scored = _is_scored(rows)
        moments = {
            dimension: Moments.of_frames(
                rows[f"{dimension}_label"].to_numpy()[is_scored],
                rows[dimension].to_numpy()[is_scored],
            ).pool(into[is_scored], n_groups)
            for dimension in DIMENSIONS
        }
        return _Groups(np.bincount(into, minlength=n_groups), moments)

    return reduce(_Groups.merge, map(gather_slice, range(0, max(len(frames), 1), ROWS_AT_ONCE)))


def _is_scored(frames: pl.DataFrame) -> np.ndarray:
    return frames.select(pl.all_horizontal(pl.col(DIMENSIONS).is_not_null()).alias("is_scored"))[
        "is_scored"
    ].to_numpy()


def _coded(column: pl.Series) -> tuple[list[str], np.ndarray]:
    """A column's names in order, and every row's place among them: one behind the last for null."""
    names = column.drop_nulls().unique().sort()
    places = column.cast(pl.Enum(names)).to_physical().cast(pl.Int32).fill_null(len(names))
    return names.to_list(), places.to_numpy()


def _named(kind: str, names: list[str], groups: _Groups) -> list[dict[str, Any]]:
    rows = groups.take(np.arange(len(names))).scores()
    return [{kind: name, **row} for name, row in zip(names, rows, strict=True)]


def _bunched(n_units: int, rng: np.random.Generator) -> np.ndarray:
    """The block of every unit (n_units,): its own, or one at random where there are too many."""
    if n_units <= MOST_BLOCKS:
        return np.arange(n_units)
    return rng.permutation(n_units) % MOST_BLOCKS


def _frame_blocks(frames: pl.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """The block of every frame (N,); one without predictions adds to none, wherever it is."""
    is_scored = _is_scored(frames)
    blocks = np.zeros(len(frames), np.intp)
    blocks[is_scored] = _bunched(int(is_scored.sum()), rng)
    return blocks


def _intervals(
    units: _Groups, n_resamples: int, rng: np.random.Generator
) -> dict[str, dict[str, list[float] | None]]:
    resampled = _resampled(units, n_resamples if len(units) > 1 else 0, rng)
    return {
        dimension: {
            f"{name}_ci": _interval(values, n_resamples) for name, values in m.scores().items()
        }
        for dimension, m in resampled.moments.items()
    }


def _resampled(units: _Groups, n_resamples: int, rng: np.random.Generator) -> _Groups:
    """As many units as there are, drawn with replacement and pooled: one group a resample."""
    at_once = max(1, DRAWS_AT_ONCE // max(1, len(units)))
    resamples = [units.take(np.arange(0))]
    for start in range(0, n_resamples, at_once):
        draws = rng.integers(len(units), size=(min(at_once, n_resamples - start), len(units)))
        into = np.repeat(np.arange(len(draws)), len(units))
        resamples.append(units.take(draws.ravel()).pool(into, len(draws)))
    return _Groups.join(resamples)


def _interval(scores: np.ndarray, n_resamples: int) -> list[float] | None:
    defined = scores[~np.isnan(scores)]
    if 2 * len(defined) < max(1, n_resamples):
        return None
    return np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
