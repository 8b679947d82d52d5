"""What annotation found in a recording: some frames with their faces, and curves over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vafer.errors import UsageError, display_path
from vafer.metrics import DIMENSIONS
from vafer.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PINK,
    TEXT,
    TITLE,
    dress,
    legend,
    legend_entry,
    literal,
    new_figure,
    write,
)
from vafer.plots.traces import after_gaps, curve, is_lone
from vafer.probe import probe
from vafer.video import Frame, VideoReader

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_FRAMES = 4
COLOURS = (ORANGE, BLUE, GREEN, PINK)  # of the tracks with most faces; the others are grey


def plot_annotation(table: pl.DataFrame, recording: Path, path: Path) -> None:
    """Draw what was found as a PNG: four frames with boxes, valence and arousal over time.

    table: rows as `vafer.annotate` gives them; of several recordings, those of the one whose name
    in the column `video` is how `recording` ends. Tracks have a colour each. Raises UsageError
    where not one is called so, VideoError where the recording cannot be read, OSError.
    """
    write(_annotation_figure(_of_recording(table, recording), recording), path)


def _of_recording(table: pl.DataFrame, recording: Path) -> pl.DataFrame:
    names = table["video"].unique().sort().to_list()
    if len(names) < 2:
        return table
    own = [name for name in names if recording.parts[-len(Path(name).parts) :] == Path(name).parts]
    if len(own) != 1:
        some = f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        raise UsageError(
            f"{display_path(recording)}: the table has {len(names)} recordings, {some}, and "
            f"{len(own)} of them may be this one. Give the rows of one: "
            'table.filter(pl.col("video") == NAME)'
        )
    return table.filter(table["video"] == own[0])


def _annotation_figure(table: pl.DataFrame, recording: Path) -> Figure:
    indices = table["frame_index"].unique().sort()
    places = np.linspace(0, len(indices) - 1, min(N_FRAMES, len(indices))).round().astype(int)
    wanted = {indices[int(place)] for place in places}
    frames = [frame for frame in VideoReader(probe(recording)) if frame.index in wanted]
    tracks = table["track_id"].drop_nulls().value_counts(sort=True)["track_id"].to_list()
    colours = dict.fromkeys(tracks, GREY) | dict(zip(tracks, COLOURS, strict=False))

    figure = new_figure(11.0, 5.6)
    figure.suptitle(literal(recording.name), fontsize=TITLE + 1)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.3, 1.6))
    above, below = halves
    row = above.subplots(1, max(1, len(frames)), squeeze=False)[0]
    for ax, frame in zip(row, frames, strict=False):
        _draw_frame(ax, frame, table.filter(table["frame_index"] == frame.index), colours)
    for ax, dimension in zip(below.subplots(2, 1, sharex=True), DIMENSIONS, strict=True):
        is_timed = not table["time_s"].null_count()
        is_last = dimension == DIMENSIONS[-1]
        dress(ax, "", ("time (s)" if is_timed else "frame") if is_last else "", dimension)
        for track in reversed(tracks):
            faces = table.filter(table["track_id"] == track)
            _draw_track(ax, faces, dimension, colours[track], is_timed=is_timed)
        ax.set(ylim=(-1.04, 1.04), yticks=(-1, 0, 1))
        if len(table):  # to the last frame, though there may be no face in it
            ax.update_datalim([(x, 0) for x in _places(table, is_timed=is_timed)[[0, -1]]])
            ax.autoscale_view(scaley=False)
        ax.margins(x=0.01)
        ax.grid(axis="y", color=PALE, linewidth=0.5)
        if not is_last:
            entries = [legend_entry(f"track {t}", colours[t]) for t in tracks[: len(COLOURS)]]
            others = [legend_entry("others", GREY)] if len(tracks) > len(COLOURS) else []
            legend(ax, entries + others)
    return figure


def _draw_frame(ax: Axes, frame: Frame, faces: pl.DataFrame, colours: dict[int, str]) -> None:
    from matplotlib.patches import Rectangle

    ax.imshow(frame.image)
    ax.set_axis_off()
    at = f"frame {frame.index}" if frame.time_s is None else f"{frame.time_s:.2f} s"
    faces = faces.drop_nulls("face_index")
    ax.set_title(at if len(faces) else f"{at}: no face", fontsize=TEXT)
    for face in faces.iter_rows(named=True):
        size = (face["x2"] - face["x1"], face["y2"] - face["y1"])
        colour = colours.get(face["track_id"], GREY)
        ax.add_patch(Rectangle((face["x1"], face["y1"]), *size, fill=False, ec=colour, lw=1.0))
        points = np.reshape(face["landmarks"] or [], (-1, 2))
        ax.plot(*points.T, ls="", marker=".", ms=1, color=colour)


def _places(rows: pl.DataFrame, *, is_timed: bool) -> np.ndarray:
    """Of rows on the axis below, float64 (N,)."""
    return rows["time_s" if is_timed else "frame_index"].to_numpy().astype(np.float64)


def _draw_track(
    ax: Axes, faces: pl.DataFrame, dimension: str, colour: str, *, is_timed: bool
) -> None:
    index = faces["frame_index"].to_numpy()
    x = _places(faces, is_timed=is_timed)
    points = curve(x, faces[dimension].fill_null(np.nan).to_numpy(), after_gaps(index))
    ax.plot(*points.T, color=colour, lw=1.2, marker="o", ms=2, markevery=is_lone(points))
