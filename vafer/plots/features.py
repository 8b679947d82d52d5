"""t-SNE of features: by group or valence, and by person or video.

Colours of persons and videos: Tol's "muted" (SRON technical note 09-002).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vafer.plots.canvas import (
    BLUE,
    GREY,
    ORANGE,
    PALE,
    TITLE,
    colour_bar,
    dress,
    in_words,
    legend,
    legend_entry,
    new_figure,
    say,
    short,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUBJECT_COLOURS = (
    "#332288", "#DDCC77", "#CC6677", "#117733", "#88CCEE",
    "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip
SUBJECT_MARKERS = "os^Dv"
MOST_FACES = 1500  # t-SNE takes some 10 s for so many, on one core
FEWEST_FACES = 5
N_SUBJECTS = 10


def plot_features(
    features: dict[str, np.ndarray],
    path: Path,
    *,
    is_strong: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    subjects: np.ndarray,
    what: str = "subject",
    seed: int = 0,
) -> None:
    """Draw t-SNE maps of features: one row a name, by group or valence, and by subject.

    features: (N, d) each. is_strong: bool (N,), or instead of it labels: (N, 2), columns valence
    and arousal, in [-1, 1]. subjects: str or None (N,), and `what` they are. seed: of t-SNE, and
    of the sample that stands for more than 1,500 faces. Raises OSError.
    """
    if is_strong is not None and labels is None:
        by, values = "group", np.asarray(is_strong, dtype=bool)
    elif labels is not None and is_strong is None:
        by, values = "valence", np.asarray(labels, np.float64)[:, 0]
    else:
        raise ValueError("colours come from is_strong or from labels: one of the two")
    write(_features_figure(features, values, subjects, seed, by=by, what=what), path)


def _features_figure(
    features: dict[str, np.ndarray],
    values: np.ndarray,
    subjects: np.ndarray,
    seed: int,
    *,
    by: str,
    what: str,
) -> Figure:
    """by: what the values (N,) are, group (whether strong) or valence."""
    finite = [np.isfinite(each).all(axis=1) for each in features.values()]
    usable = np.flatnonzero(np.all(finite, axis=0)) if finite else np.empty(0, np.int64)
    rows = usable
    if len(rows) > MOST_FACES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_FACES, replace=False))
    if len(rows) < FEWEST_FACES:
        return in_words(f"too few faces for a map: {len(rows)}, expected {FEWEST_FACES} or more")
    values, subjects = values[rows], np.asarray(subjects)[rows]
    perplexity = min(30.0, (len(rows) - 1) / 3)
    kinds = (by, what) if any(subject is not None for subject in subjects) else (by,)
    figure = new_figure(4.0 * len(kinds), 3.5 * len(features) + 0.3)
    shown = f"{len(rows):,}" + (f" of {len(usable):,}" if len(rows) < len(usable) else "")
    figure.suptitle(f"t-SNE of {shown} faces, perplexity {perplexity:.3g}", fontsize=TITLE)
    grid = figure.subplots(len(features), len(kinds), squeeze=False)
    draw = {"group": _by_group, "valence": _by_valence}[by]
    for axes, (name, given) in zip(grid, features.items(), strict=True):
        for ax, kind in zip(axes, kinds, strict=True):
            dress(ax, f"{name}, by {kind}", "t-SNE 1", "t-SNE 2", header=" ")
            ax.set(xticks=[], yticks=[], box_aspect=1)
            ax.set_aspect("equal", adjustable="datalim")
        places = _embed(np.asarray(given[rows], np.float64), perplexity, seed)
        if places is None:
            for ax in axes:
                say(ax, "all faces have the same features")
            continue
        draw(axes[0], places, values)
        for ax in axes[1:]:
            _by_subject(ax, places, subjects, what)
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
        legend_entry(f"strong ({n_strong:,})", BLUE, "o"),
        legend_entry(f"weak ({len(is_strong) - n_strong:,})", ORANGE, "o"),
    ]
    legend(ax, handles, above=2)


def _by_valence(ax: Axes, places: np.ndarray, valence: np.ndarray) -> None:
    # Blue to red, which colour-blind readers tell apart; its middle is grey, not the paper's white.
    points = ax.scatter(
        places[:, 0],
        places[:, 1],
        s=10,
        c=valence,
        cmap="coolwarm",
        vmin=-1,
        vmax=1,
        edgecolors=GREY,
        linewidths=0.2,
    )
    colour_bar(ax, points, "valence of the label", ticks=(-1, -0.5, 0, 0.5, 1))


def _by_subject(ax: Axes, places: np.ndarray, subjects: np.ndarray, what: str) -> None:
    counts = Counter(str(s) for s in subjects if s is not None)
    often = [(name, n) for name, n in counts.most_common(N_SUBJECTS) if n > 1]
    if not often:
        say(ax, f"no {what} occurs twice")
        return
    names = np.array([None if s is None else str(s) for s in subjects], dtype=object)
    rest = ~np.isin(names, [name for name, _ in often])
    ax.scatter(places[rest, 0], places[rest, 1], s=8, c=PALE, linewidths=0)
    handles = []
    for i, (name, n) in enumerate(often):
        colour, marker = SUBJECT_COLOURS[i], SUBJECT_MARKERS[i % len(SUBJECT_MARKERS)]
        x, y = places[names == name].T
        ax.scatter(x, y, s=14, c=colour, marker=marker, alpha=0.8, linewidths=0)
        handles.append(legend_entry(f"{short(name)} ({n:,})", colour, marker))
    if rest.any():
        handles.append(legend_entry(f"others ({rest.sum():,})", PALE, "o"))
    legend(ax, handles)
