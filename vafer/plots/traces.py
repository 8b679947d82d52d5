"""Labels and predictions over time, video by video.

Source: Kim & Song, AAAI 2021, Figure 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vafer.metrics import DIMENSIONS
from vafer.plots.canvas import (
    BLACK,
    ORANGE,
    PALE,
    TEXT,
    TITLE,
    dress,
    in_digits,
    legend_entry,
    new_figure,
    short,
    write,
)

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 6  # videos on a page
MOST_PAGES = 10
MOST_POINTS = 2000  # of a curve without breaks: more than it has pixels
GAP = 1.5  # median steps between frames, from where on a curve breaks


def plot_traces(frames: pl.DataFrame, folder: Path, *, scores: dict[str, dict]) -> list[Path]:
    """Draw label and prediction over time, six videos on each page traces-<nn>.png of a folder.

    frames: video, frame_index, time_s (s; where a video has none, its frames are counted),
    valence_label, arousal_label, valence, arousal (null where there was no prediction), in the
    order of video and frame_index. scores: {video: scores as `vafer.metrics.scores` gives them}.
    Videos are in the order of their mean CCC, undefined last; of more than 60, 60 evenly spaced in
    it are drawn. Pages of an earlier run go. Returns the pages. Raises OSError.
    """
    videos = sorted(
        frames["video"].unique(maintain_order=True),
        key=lambda v: _mean_ccc(scores, v),
        reverse=True,
    )
    n_drawn = min(len(videos), ROWS * MOST_PAGES)
    drawn = [videos[i] for i in np.linspace(0, len(videos) - 1, n_drawn).round().astype(int)]
    of = f"{n_drawn}, of {len(videos):,} in all" if n_drawn < len(videos) else f"{n_drawn}"
    pages: list[Path] = []
    for start in range(0, n_drawn, ROWS):
        tables = {v: frames.filter(frames["video"] == v) for v in drawn[start : start + ROWS]}
        end = start + len(tables)
        which = f"videos {start + 1} to {end}" if len(tables) > 1 else f"video {end}"
        figure = _traces_figure(tables, scores, f"{which} of {of}, by CCC from high to low")
        pages.append(folder / f"traces-{len(pages) + 1:02d}.png")
        write(figure, pages[-1])
    for stale in {*folder.glob("traces-[0-9][0-9].png")} - {*pages}:
        stale.unlink()
    return pages


def _score(scores: dict[str, dict], video: str, dimension: str, name: str) -> float | None:
    return ((scores.get(video) or {}).get(dimension) or {}).get(name)


def _mean_ccc(scores: dict[str, dict], video: str) -> float:
    """Of valence and arousal; below all others where either is undefined."""
    both = [_score(scores, video, dimension, "ccc") for dimension in DIMENSIONS]
    return float(np.mean([-np.inf if ccc is None else ccc for ccc in both]))


def _traces_figure(tables: dict[str, pl.DataFrame], scores: dict[str, dict], title: str) -> Figure:
    figure = new_figure(9.0, 1.6 * len(tables) + 0.4)
    figure.suptitle(title, fontsize=TITLE + 1)
    figure.legend(
        handles=[legend_entry("label", BLACK), legend_entry("prediction", ORANGE)],
        loc="outside upper right",
        ncols=2,
        frameon=False,
        fontsize=TEXT,
        borderaxespad=0.7,
    )
    grid = figure.subplots(len(tables), 2, squeeze=False)
    for row, (video, table) in zip(grid, tables.items(), strict=True):
        for ax, dimension, name in zip(row, DIMENSIONS, (short(video), ""), strict=True):
            found = {s: _score(scores, video, dimension, s) for s in ("ccc", "pcc")}
            header = "   ".join(f"{s.upper()} {in_digits(found[s])}" for s in found)
            _draw(ax, table, dimension, name, header)
    return figure


def _draw(ax: Axes, table: pl.DataFrame, dimension: str, name: str, header: str) -> None:
    """One dimension of one video."""
    from matplotlib.ticker import MaxNLocator

    index = table["frame_index"].to_numpy()
    is_timed = not table["time_s"].null_count()
    x = table["time_s"].to_numpy() if is_timed else index.astype(np.float64)
    is_after_gap = after_gaps(index)
    label, predicted = (
        table[column].fill_null(np.nan).to_numpy() for column in (f"{dimension}_label", dimension)
    )
    beyond = int(np.sum(np.abs(predicted) > 1))
    header += f"   ({beyond:,} predictions beyond ±1)" if beyond else ""
    dress(ax, name, "time (s)" if is_timed else "frame", dimension, header=header)
    for y, colour, width in ((predicted, ORANGE, 0.9), (label, BLACK, 1.2)):
        points = curve(x, y, is_after_gap)
        lone = is_lone(points)
        ax.plot(*points.T, color=colour, lw=width, marker="o", ms=2 * width, markevery=lone)
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=not is_timed))
    ax.margins(x=0.01)
    ax.set(ylim=(-1.04, 1.04), yticks=(-1, 0, 1))  # a curve at 1 is as wide as elsewhere
    ax.grid(axis="y", color=PALE, linewidth=0.5)


def after_gaps(index: np.ndarray) -> np.ndarray:
    """Which frames, by index (N,), come after more than the usual step: bool (N,)."""
    steps = np.diff(index, prepend=index[0])
    return steps > GAP * np.median(steps[1:]) if len(steps) > 1 else steps > 0


def curve(x: np.ndarray, y: np.ndarray, is_after_gap: np.ndarray) -> np.ndarray:
    """Points (K, 2) of the curve through y (N,), in parts with a row of NaN between them.

    A part ends at a gap and where y is NaN. Of many frames, the ends of the parts stay, and the
    lowest and the highest of every few.
    """
    known = np.flatnonzero(np.isfinite(y))
    if not len(known):
        return np.empty((0, 2))
    x, y, stretch = x[known], y[known], np.cumsum(is_after_gap)[known]
    opens_part = np.r_[True, (np.diff(known) > 1) | (np.diff(stretch) > 0)]
    part = np.cumsum(opens_part) - 1
    first, last = _ends(opens_part)
    few = -(-2 * len(y) // MOST_POINTS)
    opens_few = (np.arange(len(y)) - first[part]) % few == 0
    upwards = np.lexsort((y, np.cumsum(opens_few)))  # within every few
    lowest, highest = (upwards[places] for places in _ends(opens_few))
    kept = np.unique(np.concatenate([first, last, lowest, highest]))
    breaks = np.flatnonzero(np.diff(part[kept])) + 1
    return np.insert(np.stack([x, y], axis=1)[kept], breaks, np.nan, axis=0)


def _ends(opens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last places of the pieces that open where bool (N,) is true."""
    first = np.flatnonzero(opens)
    return first, np.r_[first[1:], len(opens)] - 1


def is_lone(curve: np.ndarray) -> np.ndarray:
    """Which points (K, 2) of a curve have none beside them, so that no line shows them."""
    missing = np.r_[True, np.isnan(curve[:, 1]), True]
    return ~missing[1:-1] & missing[:-2] & missing[2:]
