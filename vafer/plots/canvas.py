"""What the pictures share: colours, axes, legends, scales, and how a figure becomes a file.

Matplotlib's object interface throughout: nothing global changes and no display is needed. Its
imports are slow, so they happen inside. Colours that colour-blind readers can tell apart: Okabe &
Ito 2008.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vafer.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import QuadMesh
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BLACK, BLUE, ORANGE, GREEN, PINK = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY, PALE = "#666666", "#D5D5D5"
TITLE, TEXT = 9.0, 8.0  # points
DPI = 200
TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of both
MOST_COLUMNS = 50  # label values that get a column each: AFEW-VA has 21
LONGEST_NAME = 24


def legend_entry(label: str, colour: str, marker: str = "", *, width: float = 1.5) -> Line2D:
    """An entry of a legend: a marker, or without one a line of a width in points."""
    from matplotlib.lines import Line2D

    style = "" if marker else "-"
    return Line2D(
        [], [], color=colour, marker=marker, ls=style, lw=width, markersize=4, label=label
    )


def short(name: str) -> str:
    """A long name without its middle: its end is what tells recordings apart."""
    half = LONGEST_NAME // 2
    if len(name) > LONGEST_NAME:
        name = f"{name[: half - 1]}…{name[-half:]}"
    return literal(f" {name}" if name.startswith("_") else name)  # legends leave out what has _


def literal(text: str) -> str:
    """Text in which no formula begins."""
    return text.replace("$", r"\$")


def in_digits(score: float | None) -> str:
    return "undefined" if score is None else f"{score:z.3f}".replace("-", "−")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(
        figsize=(width, height),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, compress=True),
    )


def dress(ax: Axes, title: str, x_label: str = "", y_label: str = "", *, header: str = "") -> None:
    """Title, labels and quiet spines. header: lines between the title and the axes."""
    pad = 4 + (header.count("\n") + 1) * 1.3 * TEXT if header else 4
    ax.set_title(title, loc="left", fontsize=TITLE, weight="bold", pad=pad)
    ax.text(0, 1.015, header, transform=ax.transAxes, va="bottom", fontsize=TEXT, linespacing=1.25)
    ax.set_xlabel(x_label, fontsize=TEXT)
    ax.set_ylabel(y_label, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT, width=0.6, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.6)


def legend(ax: Axes, handles: list[Any], *, above: int = 0) -> None:
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


def colour_bar(ax: Axes, what: ScalarMappable, label: str, **looks: Any) -> Colorbar:
    """A bar beside the axes, as high as they are."""
    bar = ax.figure.colorbar(what, cax=ax.inset_axes((1.05, 0, 0.05, 1)), **looks)
    bar.set_label(label, fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT)
    return bar


def count_bar(ax: Axes, cells: QuadMesh) -> None:
    """A colour bar of how many faces lie in a cell, on a logarithmic scale."""
    from matplotlib.ticker import LogLocator

    ticks = LogLocator(subs=(1, 2, 5))
    colour_bar(ax, cells, "faces in a cell", ticks=ticks, format="{x:,.0f}").minorticks_off()


def say(ax: Axes, text: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=TITLE)


def in_words(text: str) -> Figure:
    """A small figure for what cannot be drawn."""
    figure = new_figure(5.0, 1.0)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=TITLE)
    return figure


def write(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        looks: dict[str, Any] = {"format": "png", "bbox_inches": "tight", "pad_inches": 0.08}
        write_whole(path, lambda file: figure.savefig(file, **looks))
