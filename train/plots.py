"""Losses, margin, groups and held-out scores over the iterations of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vafer.metrics import DIMENSIONS
from vafer.plots.canvas import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    TEXT,
    dress,
    in_words,
    legend,
    legend_entry,
    new_figure,
    short,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_RAW = 200  # points of a curve that need no running median
MEDIAN_WINDOWS = 40  # about so many of them in a log
GAP = 20  # logged steps without a value that break a curve
MANY_MARKERS = 30
WIDE = 1e3  # largest over small values, from where on a linear axis hides the small ones


def plot_losses(
    log: list[dict[str, Any]], path: Path, *, evaluations: list[dict[str, Any]]
) -> None:
    """Draw losses, margin, groups and held-out scores over the iterations of a run.

    log: the objects of log.jsonl; a value that is null, absent or not finite is not drawn, and a
    panel without any is left out. Groups in faces, skipped steps in % of those so far; the rest has
    no unit. evaluations: {"step", "set", "scores": {dimension: {"pcc", "ccc", …}}}, None where
    undefined. Raises OSError.
    """
    write(_losses_figure(log, evaluations), path)


class _Line(NamedTuple):
    """x in iterations (K,), y (K,), both finite. smooth: many noisy values, as the log holds."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    style: str = "-"
    smooth: bool = True


class _Panel(NamedTuple):
    title: str
    y_label: str
    lines: list[_Line]


def _losses_figure(log: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> Figure:
    panels = [
        panel._replace(lines=lines)
        for panel in (*_log_panels(log), *_score_panels(evaluations))
        if (lines := [line for line in panel.lines if len(line.x)])
    ]
    if not panels:
        return in_words("nothing was logged")
    window = max(5, len(log) // MEDIAN_WINDOWS) | 1
    # A legend stands to the right of its panel, and the panel is as tall as its legend needs.
    heights = [max(1.1, 0.17 * len(p.lines)) for p in panels]
    figure = new_figure(7.5, sum(heights) + 0.28 * len(heights) + 0.4)
    grid = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    smoothed = any(len(line.x) > MOST_RAW for p in panels for line in p.lines if line.smooth)
    how = [
        legend_entry("each logged step", GREY, width=0.5),
        legend_entry(f"median of {window}", GREY),
    ]
    for ax, panel in zip(grid[:, 0], panels, strict=True):
        dress(ax, panel.title, y_label=panel.y_label)
        for line in panel.lines:
            _draw(ax, line, window)
        _fit(ax, panel)
        handles, _ = ax.get_legend_handles_labels()
        legend(ax, handles + (how if smoothed and panel is panels[0] else []))
    if [p.y_label for p in panels[-2:]] == ["CCC", "PCC"]:
        ax.sharey(grid[-2, 0])
    figure.align_ylabels()
    ax.set_xlabel("iteration", fontsize=TEXT)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def _log_panels(log: list[dict[str, Any]]) -> list[_Panel]:
    def lines(**looks: tuple[str, str]) -> list[_Line]:
        return [_line(label, log, key, colour) for key, (label, colour) in looks.items()]

    step, terms = _series(log, "margin_mi", "margin_delta")
    margin = [
        _Line("margin, I + Δ", step, terms.sum(axis=1), BLACK),
        _Line("I, information", step, terms[:, 0], BLUE),
        _Line("Δ, confidence", step, terms[:, 1], ORANGE),
    ]
    step, counts = _series(log, "skipped_steps", "critic_steps")
    some = counts.sum(axis=1) > 0
    share = 100 * counts[some, 0] / counts[some].sum(axis=1)
    return [
        _Panel("Regression loss", r"$L_\mathrm{AV}$", lines(loss_av=("", BLACK))),
        _Panel("Loss of the expressions", "cross entropy", lines(loss_expressions=("", BLACK))),
        _Panel("Critic loss", "$L_c$", lines(loss_critic=("", BLACK))),
        _Panel("Adversarial loss", r"$L_\mathrm{adv}$", lines(loss_adv=("", BLACK))),
        _Panel("Margin of the critic", "margin", margin),
        _Panel(
            "Groups in a batch", "faces", lines(n_strong=("strong", BLUE), n_weak=("weak", ORANGE))
        ),
        _Panel(
            "Critic steps skipped so far", "%", [_Line("", step[some], share, BLACK, smooth=False)]
        ),
    ]


def _score_panels(evaluations: list[dict[str, Any]]) -> list[_Panel]:
    panels = []
    for score in ("ccc", "pcc"):
        lines = []
        for i, name in enumerate(dict.fromkeys(e["set"] for e in evaluations)):
            colour = (BLUE, ORANGE, GREEN, PINK, BLACK)[i % 5]
            for dimension, style in zip(DIMENSIONS, ("-", "--"), strict=True):
                log = [
                    {"step": e["step"], **((e["scores"] or {}).get(dimension) or {})}
                    for e in evaluations
                    if e["set"] == name
                ]
                label = f"{short(name)}, {dimension}"
                lines.append(_line(label, log, score, colour, style)._replace(smooth=False))
        panels.append(_Panel(f"Held-out {score.upper()}", score.upper(), lines))
    return panels


def _line(label: str, log: list[dict[str, Any]], key: str, colour: str, style: str = "-") -> _Line:
    step, values = _series(log, key)
    return _Line(label, step, values[:, 0], colour, style)


def _series(log: list[dict[str, Any]], *keys: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (K,), ascending, and the values of n keys (K, n), where all of these are finite.

    Of entries with the same step, which a resumed run may leave, the last one counts.
    """
    entries = sorted({e["step"]: e for e in log}.items())
    rows = [[step, *(e.get(key) for key in keys)] for step, e in entries]
    rows = [row for row in rows if all(v is not None and math.isfinite(v) for v in row)]
    table = np.array(rows, dtype=np.float64).reshape(-1, 1 + len(keys))
    return table[:, 0], table[:, 1:]


def _draw(ax: Axes, line: _Line, window: int) -> None:
    """One curve, broken where values are missing for long; raw and smoothed when it is long."""
    looks: list[tuple[np.ndarray, dict[str, Any]]] = [(line.y, {"lw": 1.5, "label": line.label})]
    if line.smooth and len(line.x) > MOST_RAW:
        median = _running_median(line.y, window)
        looks = [(line.y, {"lw": 0.5, "alpha": 0.4}), (median, looks[0][1])]
    strides = np.diff(line.x)
    breaks = np.flatnonzero(strides > GAP * np.median(strides)) + 1 if len(strides) else ()
    few = not line.smooth and len(line.x) <= MANY_MARKERS
    for y, look in looks:
        for x_part, y_part in zip(np.split(line.x, breaks), np.split(y, breaks), strict=True):
            marker = ("o" if line.style == "-" else "^") if few or len(x_part) == 1 else ""
            ax.plot(x_part, y_part, line.style, color=line.colour, marker=marker, ms=4, **look)
            look = look | {"label": "_"}  # one entry of the legend is enough


def _running_median(y: np.ndarray, window: int) -> np.ndarray:
    """Median of the `window` (odd) values around each of y (K,), of fewer at the ends."""
    padded = np.pad(y, window // 2, constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def _fit(ax: Axes, panel: _Panel) -> None:
    """Choose the y axis: from 0 for shares and faces, logarithmic where values differ too much."""
    from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

    y = np.concatenate([line.y for line in panel.lines])
    size = np.abs(y[y != 0])
    small = np.percentile(size, 2) if len(size) else 1.0
    if len(size) and size.max() > WIDE * small:
        if y.min() < 0 < y.max():  # both signs share the height
            small = max(small, size.max() / WIDE)
        linear = 10.0 ** math.floor(math.log10(small))
        ax.set_yscale("symlog", linthresh=linear)
        ticks = SymmetricalLogLocator(base=10, linthresh=linear)
        ticks.set_params(numticks=5)
        ax.yaxis.set_major_locator(ticks)
        ax.set_ylabel(f"{panel.y_label}\n(log scale)")
        return
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if panel.y_label in ("faces", "%"):
        top = max(1.0, 1.1 * float(y.max()))
        ax.set_ylim(-0.03 * top, top)  # a curve at 0 stands clear of the axis
