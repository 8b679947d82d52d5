"""The picture of an annotation shows the frames, boxes and curves of the table."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.patches import Rectangle

import vafer
from tests.figures import legend
from vafer.errors import UsageError
from vafer.plots import plot_annotation
from vafer.plots.annotated import _annotation_figure, _of_recording

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def table(sample: Path, untrained: Path, yunet: Path) -> pl.DataFrame:
    return vafer.annotate(sample, model=untrained, detector=yunet).table


def test_frames_boxes_and_curves_are_those_of_the_table(table: pl.DataFrame, sample: Path) -> None:
    *frames, valence, arousal = _annotation_figure(table, sample).axes
    assert [ax.get_title() for ax in frames] == ["0.00 s", "0.64 s", "1.32 s", "1.96 s: no face"]
    for ax, index in zip(frames, (0, 16, 33, 49), strict=True):
        boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        found = table.filter(pl.col("frame_index") == index).drop_nulls("face_index")
        assert len(boxes) == len(found)
        if len(found):
            corner = (boxes[0].get_x(), boxes[0].get_y())
            assert corner == pytest.approx(found.select("x1", "y1").row(0))
    for ax, name in ((valence, "valence"), (arousal, "arousal")):
        [line] = ax.lines
        faces = table.drop_nulls("face_index")
        np.testing.assert_allclose(line.get_ydata(), faces[name])
        np.testing.assert_allclose(line.get_xdata(), faces["time_s"])
        assert faces["time_s"].max() < 1.7
        assert ax.get_xlim()[0] <= 0
        assert 1.96 <= ax.get_xlim()[1] < 2.1  # though the last frames have no face
    assert legend(valence) == ["track 0"]


def test_a_recording_without_a_face_and_one_of_a_single_frame(
    table: pl.DataFrame, sample: Path, tmp_path: Path
) -> None:
    nothing = table.filter(pl.col("face_index").is_null())
    assert nothing.height > 0
    assert not _annotation_figure(nothing, sample).axes[-1].lines
    plot_annotation(table.head(1), sample, tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_tracks_with_most_faces_have_colours(table: pl.DataFrame, sample: Path) -> None:
    many = pl.concat(
        table.drop_nulls("face_index").head(30 - i).with_columns(track_id=pl.lit(i, pl.Int32))
        for i in range(6)
    ).sort("frame_index")
    valence = _annotation_figure(many, sample).axes[-2]
    assert legend(valence) == ["track 0", "track 1", "track 2", "track 3", "others"]
    assert len(valence.lines) == 6


def test_of_several_recordings_the_rows_of_its_own_are_drawn(
    table: pl.DataFrame, sample: Path, tmp_path: Path
) -> None:
    other = table.with_columns(video=pl.lit("deep/other.mp4"), x1=pl.lit(3.0, pl.Float32))
    both = pl.concat([other.cast(table.schema), table])
    alone, together = (_annotation_figure(_of_recording(t, sample), sample) for t in (table, both))
    for a, b in zip(alone.axes, together.axes, strict=True):
        assert len(a.patches) == len(b.patches)
        for line, same in zip(a.lines, b.lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), same.get_ydata())
    with pytest.raises(UsageError, match=r"has 2 recordings, .*deep/other.mp4, and 0 of them"):
        plot_annotation(both, tmp_path / "third.mp4", tmp_path / "a.png")
