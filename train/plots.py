"""The pictures in a run folder: losses, predictions, features, each a PNG.

Matplotlib's object interface throughout: nothing global changes and no display is needed. Its and
scikit-learn's imports are slow, so they happen inside. Colours that colour-blind readers can tell
apart: Okabe & Ito 2008 for a few, Tol's "muted" (SRON technical note 09-002) for subjects.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BLACK, BLUE, ORANGE, GREEN, PINK = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SUBJECT_COLOURS = (
    "#332288", "#DDCC77", "#CC6677", "#117733", "#88CCEE",
    "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip
SUBJECT_MARKERS = "os^Dv"
GREY, PALE = "#666666", "#D5D5D5"
TITLE, TEXT = 9.0, 8.0  # points
DPI = 200
DIMENSIONS = ("valence", "arousal")
TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of both

MOST_RAW = 200  # points of a curve that need no running median
MEDIAN_WINDOWS = 40  # about so many of them in a log
GAP = 20  # logged steps without a value that break a curve
MANY_MARKERS = 30
WIDE = 1e3  # largest over small values, from where on a linear axis hides the small ones

MOST_DISTINCT = 12  # label values that are shown one by one
MOST_COLUMNS = 50  # label values that get a column each: AFEW-VA has 21
MOST_POINTS = 1000  # points that can still be seen as such
CELLS = 30  # of the density, along an axis
BINS = 80  # of the contours, along an axis
BLUR = 0.08  # of the contours, in units of valence and arousal
SHARES = (0.9, 0.5)  # of the faces, inside the contours

MOST_FACES = 1500  # t-SNE takes some 10 s for so many, on one core
FEWEST_FACES = 5
N_SUBJECTS = 10
LONGEST_NAME = 24


def plot_losses(
    log: list[dict[str, Any]], path: Path, *, evaluations: list[dict[str, Any]]
) -> None:
    """Draw losses, margin, groups and held-out scores over the iterations of a run.

    log: the objects of log.jsonl; a value that is null, absent or not finite is not drawn, and a
    panel without any is left out. Groups in faces, skipped steps in % of those so far; the rest has
    no unit. evaluations: {"step", "set", "scores": {dimension: {"pcc", "ccc", …}}}, None where
    undefined. Raises OSError.
    """
    _write(_losses_figure(log, evaluations), path)


def plot_predictions(
    labels: np.ndarray, predicted: np.ndarray, path: Path, *, scores: dict, title: str
) -> None:
    """Draw predictions against labels, a dimension a panel, and both in the plane of the two.

    labels, predicted: (N, 2), columns valence and arousal, in [-1, 1]; predictions beyond are
    counted in words, rows that are not finite are left out. scores: as `vafer.metrics.scores`
    gives them. Raises OSError.
    """
    _write(_predictions_figure(labels, predicted, scores, title), path)


def plot_features(
    features: dict[str, np.ndarray],
    path: Path,
    *,
    is_strong: np.ndarray,
    subjects: np.ndarray,
    seed: int = 0,
) -> None:
    """Draw t-SNE maps of features: one row a name, coloured by group and by subject.

    features: (N, d) each. is_strong: bool (N,). subjects: str or None (N,). seed: of t-SNE, and of
    the sample that stands for more than 1,500 faces. Raises OSError.
    """
    _write(_features_figure(features, is_strong, subjects, seed), path)


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
        return _in_words("nothing was logged")
    window = max(5, len(log) // MEDIAN_WINDOWS) | 1
    # A legend stands to the right of its panel, and the panel is as tall as its legend needs.
    heights = [max(1.1, 0.17 * len(p.lines)) for p in panels]
    figure = _new_figure(7.5, sum(heights) + 0.28 * len(heights) + 0.4)
    grid = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    smoothed = any(len(line.x) > MOST_RAW for p in panels for line in p.lines if line.smooth)
    how = [_sign("each logged step", GREY, width=0.5), _sign(f"median of {window}", GREY)]
    for ax, panel in zip(grid[:, 0], panels, strict=True):
        _dress(ax, panel.title, y_label=panel.y_label)
        for line in panel.lines:
            _draw(ax, line, window)
        _fit(ax, panel)
        handles, _ = ax.get_legend_handles_labels()
        _legend(ax, handles + (how if smoothed and panel is panels[0] else []))
    if [p.y_label for p in panels[-2:]] == ["CCC", "PCC"]:
        ax.sharey(grid[-2, 0])
    figure.align_ylabels()
    ax.set_xlabel("iteration", fontsize=TEXT)
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
                label = f"{_short(name)}, {dimension}"
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


def _predictions_figure(
    labels: np.ndarray, predicted: np.ndarray, scores: dict, title: str
) -> Figure:
    from matplotlib.colors import LogNorm

    labels, predicted = np.asarray(labels, np.float64), np.asarray(predicted, np.float64)
    known = np.isfinite(labels).all(axis=1) & np.isfinite(predicted).all(axis=1)
    left_out = f"; {np.sum(~known):,} without a value left out" if not known.all() else ""
    labels, predicted = labels[known], predicted[known]
    title = _literal(title)
    if not len(labels):
        return _in_words(f"{title}: no faces{left_out}")
    discrete = any(_is_discrete(column) for column in labels.T)
    figure = _new_figure(9.5, 4.4 if discrete else 3.6)
    figure.suptitle(f"{title} ({len(labels):,} faces{left_out})", fontsize=TITLE + 1)
    axes = figure.subplots(1, 3)
    cells: list[tuple[Axes, QuadMesh, int]] = []
    for ax, dimension, x, y in zip(axes, DIMENSIONS, labels.T, predicted.T, strict=False):
        beyond = int(np.sum(np.abs(y) > 1))
        note = f"\n({beyond:,} beyond ±1 not shown)" if beyond else ""
        header = _in_two_lines(scores.get(dimension) or {})
        _dress(ax, dimension.capitalize(), "label", f"prediction{note}", header=header)
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
        bar = figure.colorbar(mesh, cax=ax.inset_axes((1.05, 0, 0.05, 1)), format="{x:,.0f}")
        bar.set_label("faces in a cell", fontsize=TEXT)
        bar.ax.tick_params(labelsize=TEXT)
    _plane(axes[2], labels, predicted)
    for ax in axes:
        ax.set_box_aspect(1)
    return figure


def _in_two_lines(scores: dict[str, float | None]) -> str:
    shown = [
        f"{name.upper()} {'undefined' if scores.get(name) is None else f'{scores[name]:z.3f}'}"
        for name in ("rmse", "sagr", "pcc", "ccc")
    ]
    return f"{shown[0]}   {shown[1]}\n{shown[2]}   {shown[3]}".replace("-", "−")


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
    _dress(ax, "Valence and arousal", "valence", "arousal", header="\n")
    handles = []
    for points, colour, name, marker in (
        (predicted, ORANGE, "predictions", "^"),
        (labels, BLUE, "labels", "o"),
    ):
        if _is_discrete(points):
            spots, counts = np.unique(points, axis=0, return_counts=True)
            _points(ax, spots, colour, marker, sizes=600 * counts / counts.sum())
            handles.append(_sign(f"{name} (area: number of faces)", colour, marker))
        elif len(points) <= MOST_POINTS:
            _points(ax, points, colour, marker)
            handles.append(_sign(name, colour, marker))
        else:
            _contours(ax, points, colour)
            handles.append(_sign(f"{name} (lines around 50, 90 %)", colour))
    _legend(ax, handles[::-1], above=1)
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


def _features_figure(
    features: dict[str, np.ndarray], is_strong: np.ndarray, subjects: np.ndarray, seed: int
) -> Figure:
    finite = [np.isfinite(values).all(axis=1) for values in features.values()]
    usable = np.flatnonzero(np.all(finite, axis=0)) if finite else np.empty(0, np.int64)
    rows = usable
    if len(rows) > MOST_FACES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_FACES, replace=False))
    if len(rows) < FEWEST_FACES:
        return _in_words(f"too few faces for a map: {len(rows)}, expected {FEWEST_FACES} or more")
    is_strong, subjects = np.asarray(is_strong, dtype=bool)[rows], np.asarray(subjects)[rows]
    perplexity = min(30.0, (len(rows) - 1) / 3)
    figure = _new_figure(8.0, 3.5 * len(features) + 0.3)
    shown = f"{len(rows):,}" + (f" of {len(usable):,}" if len(rows) < len(usable) else "")
    figure.suptitle(f"t-SNE of {shown} faces, perplexity {perplexity:.3g}", fontsize=TITLE)
    grid = figure.subplots(len(features), 2, squeeze=False)
    for (by_group, by_subject), (name, values) in zip(grid, features.items(), strict=True):
        for ax, what in ((by_group, "group"), (by_subject, "subject")):
            _dress(ax, f"{name}, by {what}", "t-SNE 1", "t-SNE 2", header=" ")
            ax.set(xticks=[], yticks=[], box_aspect=1)
            ax.set_aspect("equal", adjustable="datalim")
        places = _embed(np.asarray(values[rows], np.float64), perplexity, seed)
        if places is None:
            for ax in (by_group, by_subject):
                _say(ax, "all faces have the same features")
            continue
        _by_group(by_group, places, is_strong)
        _by_subject(by_subject, places, subjects)
    return figure


def _embed(values: np.ndarray, perplexity: float, seed: int) -> np.ndarray | None:
    """t-SNE of (N, d) → (N, 2); None when all rows are the same."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    centred = values - values.mean(axis=0)
    scale = np.abs(centred).max()
    if scale <= 1e-9 * np.abs(values).max():
        return None
    # The principal components of one column are one, and t-SNE needs two to start from.
    init = "pca" if values.shape[1] > 1 else "random"
    tsne = TSNE(init=init, perplexity=perplexity, random_state=seed)
    # Its threads wait for each other in busy loops: beside other work on two cores, 600 faces took
    # 46 s, and 4 s with one thread.
    with threadpool_limits(1):
        return tsne.fit_transform(centred / scale)


def _by_group(ax: Axes, places: np.ndarray, is_strong: np.ndarray) -> None:
    colours = np.where(is_strong, BLUE, ORANGE)
    # One collection in the order of the rows, so that neither group lies on top of the other.
    ax.scatter(
        places[:, 0], places[:, 1], s=10, c=list(colours), edgecolors="white", linewidths=0.2
    )
    n_strong = int(is_strong.sum())
    handles = [
        _sign(f"strong ({n_strong:,})", BLUE, "o"),
        _sign(f"weak ({len(is_strong) - n_strong:,})", ORANGE, "o"),
    ]
    _legend(ax, handles, above=2)


def _by_subject(ax: Axes, places: np.ndarray, subjects: np.ndarray) -> None:
    counts = Counter(str(s) for s in subjects if s is not None)
    often = [(name, n) for name, n in counts.most_common(N_SUBJECTS) if n > 1]
    if not often:
        _say(ax, "no subject occurs twice" if counts else "no subject is known")
        return
    names = np.array([None if s is None else str(s) for s in subjects], dtype=object)
    rest = ~np.isin(names, [name for name, _ in often])
    ax.scatter(places[rest, 0], places[rest, 1], s=8, c=PALE, linewidths=0)
    handles = []
    for i, (name, n) in enumerate(often):
        colour, marker = SUBJECT_COLOURS[i], SUBJECT_MARKERS[i % len(SUBJECT_MARKERS)]
        x, y = places[names == name].T
        ax.scatter(x, y, s=14, c=colour, marker=marker, alpha=0.8, linewidths=0)
        handles.append(_sign(f"{_short(name)} ({n:,})", colour, marker))
    if rest.any():
        handles.append(_sign(f"others ({rest.sum():,})", PALE, "o"))
    _legend(ax, handles)


def _sign(label: str, colour: str, marker: str = "", *, width: float = 1.5) -> Line2D:
    """An entry of a legend: a marker, or without one a line of a width in points."""
    from matplotlib.lines import Line2D

    style = "" if marker else "-"
    return Line2D(
        [], [], color=colour, marker=marker, ls=style, lw=width, markersize=4, label=label
    )


def _short(name: str) -> str:
    """A long name without its middle: its end is what tells recordings apart."""
    half = LONGEST_NAME // 2
    if len(name) > LONGEST_NAME:
        name = f"{name[: half - 1]}…{name[-half:]}"
    return _literal(f" {name}" if name.startswith("_") else name)  # legends leave out what has _


def _literal(text: str) -> str:
    """Text in which no formula begins."""
    return text.replace("$", r"\$")


def _new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(
        figsize=(width, height),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, compress=True),
    )


def _dress(ax: Axes, title: str, x_label: str = "", y_label: str = "", *, header: str = "") -> None:
    """Title, labels and quiet spines. header: lines between the title and the axes."""
    pad = 4 + (header.count("\n") + 1) * 1.3 * TEXT if header else 4
    ax.set_title(title, loc="left", fontsize=TITLE, weight="bold", pad=pad)
    ax.text(0, 1.015, header, transform=ax.transAxes, va="bottom", fontsize=TEXT, linespacing=1.25)
    ax.set_xlabel(x_label, fontsize=TEXT)
    ax.set_ylabel(y_label, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT, width=0.6, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.6)


def _legend(ax: Axes, handles: list[Any], *, above: int = 0) -> None:
    """A legend beside the axes, or `above` them in so many columns; never on the data."""
    if not handles:
        return
    looks: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    if above:
        looks = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": above}
    ax.legend(
        handles=handles,
        frameon=False,
        fontsize=TEXT,
        labelspacing=0.3,
        handletextpad=0.5,
        columnspacing=1.2,
        borderpad=0.2,
        borderaxespad=0.0 if above else 0.5,
        **looks,
    )


def _say(ax: Axes, text: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=TITLE)


def _in_words(text: str) -> Figure:
    """A small figure for what cannot be drawn."""
    figure = _new_figure(5.0, 1.0)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=TITLE)
    return figure


def _write(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.08)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
