"""Predictions against labels, and both in the plane of valence and arousal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vafer.metrics import DIMENSIONS
from vafer.plots.canvas import (
    BLACK,
    BLUE,
    MOST_COLUMNS,
    ORANGE,
    TEXT,
    TICKS,
    TITLE,
    count_bar,
    dress,
    in_digits,
    in_words,
    legend,
    legend_entry,
    literal,
    new_figure,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

MOST_DISTINCT = 12  # label values that are shown one by one
MOST_POINTS = 1000  # points that can still be seen as such
CELLS = 30  # of the density, along an axis
BINS = 80  # of the contours, along an axis
BLUR = 0.08  # of the contours, in units of valence and arousal
SHARES = (0.9, 0.5)  # of the faces, inside the contours


def plot_predictions(
    labels: np.ndarray, predicted: np.ndarray, path: Path, *, scores: dict, title: str
) -> None:
    """Draw predictions against labels, a dimension a panel, and both in the plane of the two.

    labels, predicted: (N, 2), columns valence and arousal, in [-1, 1]; predictions beyond are
    counted in words, rows that are not finite are left out. scores: as `vafer.metrics.scores`
    gives them. Raises OSError.
    """
    write(_predictions_figure(labels, predicted, scores, title), path)


def _predictions_figure(
    labels: np.ndarray, predicted: np.ndarray, scores: dict, title: str
) -> Figure:
    from matplotlib.colors import LogNorm

    labels, predicted = np.asarray(labels, np.float64), np.asarray(predicted, np.float64)
    known = np.isfinite(labels).all(axis=1) & np.isfinite(predicted).all(axis=1)
    left_out = f"; {np.sum(~known):,} without a value left out" if not known.all() else ""
    labels, predicted = labels[known], predicted[known]
    title = literal(title)
    if not len(labels):
        return in_words(f"{title}: no faces{left_out}")
    discrete = any(_is_discrete(column) for column in labels.T)
    figure = new_figure(9.5, 4.4 if discrete else 3.6)
    figure.suptitle(f"{title} ({len(labels):,} faces{left_out})", fontsize=TITLE + 1)
    axes = figure.subplots(1, 3)
    cells: list[tuple[Axes, QuadMesh, int]] = []
    for ax, dimension, x, y in zip(axes, DIMENSIONS, labels.T, predicted.T, strict=False):
        beyond = int(np.sum(np.abs(y) > 1))
        note = f"\n({beyond:,} beyond ±1 not shown)" if beyond else ""
        header = _in_two_lines(scores.get(dimension) or {})
        dress(ax, dimension.capitalize(), "label", f"prediction{note}", header=header)
        if _is_discrete(x):
            _violins(ax, x, y)
        else:
            if len(x) > MOST_POINTS:
                cells.append((ax, *_cells(ax, x, y)))
                ax.plot([-1, 1], [-1, 1], color="white", linewidth=1.8)  # against dark cells
            else:
                _points(ax, np.stack([x, y], axis=1), BLACK, "o")
            ax.plot([-1, 1], [-1, 1], color=BLACK, linewidth=0.8)
            ax.set(xlim=(-1, 1), xticks=TICKS)
        ax.set(ylim=(-1, 1), yticks=TICKS)
    if cells:
        ax, mesh, _ = cells[-1]
        norm = LogNorm(1, max(2, *(most for *_, most in cells)))
        for _, each, _ in cells:
            each.set_norm(norm)
        count_bar(ax, mesh)
    _plane(axes[2], labels, predicted)
    for ax in axes:
        ax.set_box_aspect(1)
    return figure


def _in_two_lines(scores: dict[str, float | None]) -> str:
    names = ("rmse", "sagr", "pcc", "ccc")
    shown = [f"{name.upper()} {in_digits(scores.get(name))}" for name in names]
    return f"{shown[0]}   {shown[1]}\n{shown[2]}   {shown[3]}"


def _is_discrete(values: np.ndarray) -> bool:
    """Whether (N,) labels take few values, each often enough to show a distribution for it."""
    distinct = len(np.unique(values, axis=0))
    return distinct <= MOST_DISTINCT and len(values) >= 5 * distinct


def _violins(ax: Axes, label: np.ndarray, predicted: np.ndarray) -> None:
    """A distribution for each distinct label, in order; lines where the prediction is the label.

    Boxes are quartiles, their whiskers the 5th and 95th percentile.
    """
    values = np.unique(label)
    groups = [predicted[label == value] for value in values]
    places = np.arange(len(values))
    violins: Any = ax.violinplot(groups, places, widths=0.85, showextrema=False)["bodies"]
    for body in violins:
        body.set(facecolor=ORANGE, alpha=0.3, edgecolor="none")
    line = {"color": ORANGE, "linewidth": 0.8}
    ax.boxplot(
        groups,
        positions=places,
        widths=0.2,
        whis=(5, 95),
        showfliers=False,
        showcaps=False,
        patch_artist=True,
        boxprops={"facecolor": "white", "edgecolor": ORANGE, "linewidth": 0.8},
        whiskerprops=line,
        medianprops=line | {"linewidth": 1.5},
        manage_ticks=False,
    )
    ax.hlines(
        values, places - 0.45, places + 0.45, color=BLUE, linewidth=1.2, zorder=4, clip_on=False
    )
    names = [f"{v:.2f} (n {len(g):,})" for v, g in zip(values, groups, strict=True)]
    ax.set_xticks(places, [name.replace("-", "−") for name in names], rotation=90)
    ax.set_xlim(-0.7, len(values) - 0.3)
    ax.set_xlabel("label (blue line: prediction = label)", fontsize=TEXT)


def _cells(ax: Axes, x: np.ndarray, y: np.ndarray) -> tuple[QuadMesh, int]:
    """How many faces lie in each cell, and the most; of rounded labels, each has its column."""
    edges = columns = np.linspace(-1, 1, CELLS + 1)
    values = np.unique(x)
    if len(values) <= MOST_COLUMNS:
        middles = (values[1:] + values[:-1]) / 2
        columns = np.r_[2 * values[0] - middles[0], middles, 2 * values[-1] - middles[-1]]
    counts, _, _, mesh = ax.hist2d(x, y, bins=[columns, edges], cmin=1, cmap="viridis_r")
    return mesh, int(np.nan_to_num(counts).max())


def _points(
    ax: Axes, points: np.ndarray, colour: str, marker: str, *, sizes: np.ndarray | None = None
) -> None:
    """Points (N, 2); those on the edge of the range are whole, those beyond it are not drawn."""
    inside = (np.abs(points) <= 1).all(axis=1)
    ax.scatter(
        points[inside, 0],
        points[inside, 1],
        s=12 if sizes is None else sizes[inside],
        c=colour,
        marker=marker,
        alpha=0.5 if sizes is None else 0.8,
        linewidths=0,
        clip_on=False,
        zorder=2,
    )


def _plane(ax: Axes, labels: np.ndarray, predicted: np.ndarray) -> None:
    """Where labels and predictions (N, 2) lie: points, or lines around shares of them."""
    dress(ax, "Valence and arousal", "valence", "arousal", header="\n")
    handles = []
    for points, colour, name, marker in (
        (predicted, ORANGE, "predictions", "^"),
        (labels, BLUE, "labels", "o"),
    ):
        if _is_discrete(points):
            spots, counts = np.unique(points, axis=0, return_counts=True)
            _points(ax, spots, colour, marker, sizes=600 * counts / counts.sum())
            handles.append(legend_entry(f"{name} (area: number of faces)", colour, marker))
        elif len(points) <= MOST_POINTS:
            _points(ax, points, colour, marker)
            handles.append(legend_entry(name, colour, marker))
        else:
            _contours(ax, points, colour)
            handles.append(legend_entry(f"{name} (lines around 50, 90 %)", colour))
    legend(ax, handles[::-1], above=1)
    ax.set(xlim=(-1, 1), ylim=(-1, 1), xticks=TICKS, yticks=TICKS)


def _contours(ax: Axes, points: np.ndarray, colour: str) -> None:
    """Lines around the densest 50 % and 90 % of points (N, 2)."""
    from scipy.ndimage import gaussian_filter

    edges = np.linspace(-1, 1, BINS + 1)
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=[edges, edges])[0]
    density = gaussian_filter(counts, BLUR * BINS / 2, mode="constant")
    densest = np.sort(density, axis=None)[::-1]
    if not densest[0]:
        return
    mass = np.cumsum(densest) / densest.sum()
    levels = np.unique(densest[np.searchsorted(mass, SHARES)])
    middles = (edges[:-1] + edges[1:]) / 2
    ax.contour(middles, middles, density.T, levels, colors=colour, linewidths=[0.9, 1.8])
