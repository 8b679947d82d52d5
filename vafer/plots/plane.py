"""The error over the plane of valence and arousal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vafer.plots.canvas import (
    BLACK,
    MOST_COLUMNS,
    TICKS,
    TITLE,
    colour_bar,
    count_bar,
    dress,
    in_words,
    new_figure,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELLS = 20  # along an axis
ENOUGH = 5  # faces in a cell that an arrow starts from
MOST_ARROWS = 8  # along an axis
ARROWS = f"arrows: from some cells of {ENOUGH} faces or more\nto their mean prediction"


def plot_error_plane(labels: np.ndarray, predicted: np.ndarray, path: Path) -> None:
    """Draw the error of each cell of the plane, and how many faces lie in it.

    labels, predicted: (N, 2), columns valence and arousal, finite; labels in [-1, 1]. The error of
    a cell is the root mean square of the distances between its labels and their predictions.
    Raises OSError.
    """
    write(_plane_figure(labels, predicted), path)


def _plane_figure(labels: np.ndarray, predicted: np.ndarray) -> Figure:
    from matplotlib.colors import LogNorm

    labels, predicted = np.asarray(labels, np.float64), np.asarray(predicted, np.float64)
    if not len(labels):
        return in_words("error over the plane: no faces")
    edges = [_edges(column) for column in labels.T]
    counts = np.ma.masked_equal(_sums(labels, edges), 0)
    squared = _sums(labels, edges, ((predicted - labels) ** 2).sum(axis=1))
    means = [_sums(labels, edges, column) / counts for column in predicted.T]
    figure = new_figure(8.5, 3.9)
    figure.suptitle(f"Error over the plane of labels ({len(labels):,} faces)", fontsize=TITLE + 1)
    left, right = figure.subplots(1, 2)
    dress(left, "Error", "valence", "arousal", header=ARROWS)
    rms = np.ma.sqrt(squared / counts)
    highest = max(0.1, rms.max())  # a scale even where nothing is wrong
    errors = left.pcolormesh(*edges, rms.T, cmap="YlOrBr", vmin=0, vmax=highest)
    colour_bar(left, errors, "RMS of the Euclidean error")
    _arrows(left, edges, counts.filled(0), means)
    dress(right, "Faces", "valence", "arousal", header="\n")
    norm = LogNorm(1, max(2, counts.max()))
    faces = right.pcolormesh(*edges, counts.T, cmap="viridis_r", norm=norm)
    count_bar(right, faces)
    for ax in (left, right):
        low, high = min(-1, *(e[0] for e in edges)), max(1, *(e[-1] for e in edges))
        ax.set(xlim=(low, high), ylim=(low, high), xticks=TICKS, yticks=TICKS, box_aspect=1)
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of cells along an axis: of labels (N,) on a scale of even steps, each has its own."""
    distinct = np.unique(values.round(6))
    steps = np.diff(distinct)
    n = round(np.ptp(distinct) / steps.min()) if len(steps) else MOST_COLUMNS
    if n < MOST_COLUMNS:
        step = np.ptp(distinct) / n
        places = (distinct - distinct[0]) / step
        if np.allclose(places, places.round(), rtol=0, atol=0.01):
            return distinct[0] + step * (np.arange(n + 2) - 0.5)
    return np.linspace(-1, 1, CELLS + 1)


def _sums(
    labels: np.ndarray, edges: list[np.ndarray], values: np.ndarray | None = None
) -> np.ndarray:
    """Sum of values (N,), or how many, of the labels (N, 2) in each cell: (valence, arousal)."""
    return np.histogram2d(labels[:, 0], labels[:, 1], bins=edges, weights=values)[0]


def _arrows(ax: Axes, edges: list[np.ndarray], counts: np.ndarray, means: list[np.ndarray]) -> None:
    """From the middles of cells with enough faces to their mean predictions, evenly thinned."""
    few = [_evenly(n) for n in counts.shape]
    i, j = np.nonzero((counts >= ENOUGH) & few[0][:, None] & few[1])
    x, y = ((e[1:] + e[:-1])[k] / 2 for e, k in zip(edges, (i, j), strict=True))
    ax.quiver(
        x,
        y,
        means[0][i, j] - x,
        means[1][i, j] - y,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.006,
        color=BLACK,
        edgecolor="white",
        linewidth=0.4,
    )
    ax.scatter(x, y, s=7, c=BLACK, edgecolors="white", linewidths=0.4)


def _evenly(n: int) -> np.ndarray:
    """Which of n cells along an axis have arrows, bool (n,)."""
    stride = -(-n // MOST_ARROWS)
    return np.arange(n) % stride == (n - 1) % stride // 2
