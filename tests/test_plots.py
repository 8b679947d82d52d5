"""The pictures: what they hold equals what was given, whatever is missing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from tests.figures import check_picture, legend, titles, words
from vafer.metrics import DIMENSIONS, scores
from vafer.plots import canvas, plot_error_plane, plot_features, plot_predictions, plot_traces
from vafer.plots import features as features_module
from vafer.plots import traces as traces_module
from vafer.plots.plane import _plane_figure
from vafer.plots.predictions import _predictions_figure
from vafer.plots.traces import _traces_figure

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(0)
NORMS = np.array([(0.81, 0.51), (0.4, 0.67), (-0.51, 0.59), (-0.64, 0.6), (-0.63, -0.27), (0, 0)])
AFEW_VA = np.arange(-10, 11) / 10


def faces(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.uniform(-1, 1, (n, 2))
    return labels, labels / 2 + 0.1 * RNG.normal(size=(n, 2))


def people(n: int, subjects: list[str | None]) -> dict[str, np.ndarray]:
    chosen = np.array([subjects[i % len(subjects)] for i in range(n)], dtype=object)
    return {"is_strong": np.arange(n) % 3 == 0, "subjects": chosen}


def groups_figure(
    features: dict[str, np.ndarray], is_strong: np.ndarray, subjects: np.ndarray, seed: int
) -> Figure:
    return features_module._features_figure(
        features, is_strong, subjects, seed, by="group", what="subject"
    )


def frames_of(
    video: str, index: Any, label: Any, predicted: Any, time_s: Any = None
) -> pl.DataFrame:
    """Frames whose arousal is the negative of their valence."""
    label, predicted = (pl.Series(values, dtype=pl.Float64) for values in (label, predicted))
    n = len(label)
    return pl.DataFrame(
        {
            "video": pl.Series([video] * n, dtype=pl.String),
            "frame_index": pl.Series(index, dtype=pl.Int64),
            "time_s": pl.Series([None] * n if time_s is None else time_s, dtype=pl.Float64),
            "valence_label": label,
            "arousal_label": -label,
            "valence": predicted,
            "arousal": -predicted,
        }
    )


def curves(table: pl.DataFrame, dimension: int = 0) -> list[np.ndarray]:
    """The curves of the prediction and the label: (K, 2) each, NaN where they break."""
    ax = _traces_figure({"a": table}, {}, "").axes[dimension]
    return [np.asarray(line.get_xydata()) for line in ax.lines]


def parts(curve: np.ndarray) -> list[list[list[float]]]:
    """The unbroken parts of a curve (K, 2)."""
    found: list[list[list[float]]] = [[]]
    for point in curve.tolist():
        if np.isnan(point).all():
            found.append([])
        else:
            found[-1].append(point)
    return found


def ccc_scores(**values: Any) -> dict[str, dict]:
    """Scores of videos by the CCC of their valence and arousal."""
    return {
        video: {
            dimension: {"rmse": 0.1, "sagr": 0.9, "pcc": ccc, "ccc": ccc}
            for dimension, ccc in zip(DIMENSIONS, both, strict=True)
        }
        for video, both in values.items()
    }


def drawn_pages(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that will be written, in place of their files."""
    found: list[Figure] = []
    monkeypatch.setattr(traces_module, "write", lambda figure, path: found.append(figure))
    return found


def test_pictures_replace_those_of_an_earlier_run(tmp_path: Path) -> None:
    labels, predicted = faces(1200)
    paths = [tmp_path / name / "plot.png" for name in "abcd"]
    paths.append(tmp_path / "e" / "traces-01.png")
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"of an earlier run")
        path.parent.with_suffix(".png").hardlink_to(path)
    features = {"h": RNG.normal(size=(40, 8))}
    subjects = people(40, ["a", "b", None])["subjects"]
    plot_predictions(
        labels, predicted, paths[0], scores=scores(labels, predicted), title="validation, $^$"
    )
    plot_features(features, paths[1], **people(40, ["a", "b", None]))
    plot_features(features, paths[2], labels=labels[:40], subjects=subjects, what="video")
    plot_error_plane(labels, predicted, paths[3])
    plot_traces(frames_of("a", range(9), [0.1] * 9, [0.2] * 9), paths[4].parent, scores={})
    for path in paths:
        check_picture(path, 1)
        # The file was replaced as a whole, not written over.
        assert path.parent.with_suffix(".png").read_bytes() == b"of an earlier run"


def test_a_failure_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def savefig(self: Figure, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    path = tmp_path / "plane.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="No space"):
        plot_error_plane(*faces(3), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_importing_is_light_and_drawing_needs_no_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np;"
        "from vafer.plots import plot_error_plane;"
        "print({'matplotlib', 'sklearn', 'scipy', 'polars', 'train'} & set(sys.modules));"
        f"plot_error_plane(np.ones((9, 2)), np.ones((9, 2)), Path({str(tmp_path / 'x.png')!r}));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\nFalse\n"


def test_few_predictions_are_points() -> None:
    labels, predicted = faces(300)
    predicted[0] = (1.5, 0)
    figure = _predictions_figure(labels, predicted, scores(labels, predicted), "toy")
    assert titles(figure) == ["Valence", "Arousal", "Valence and arousal"]
    for i, ax in enumerate(figure.axes[:2]):
        (points,) = [c for c in ax.collections if isinstance(c, PathCollection)]
        shown = np.abs(predicted[:, i]) <= 1
        expected = np.stack([labels[shown, i], predicted[shown, i]], axis=1)
        np.testing.assert_array_equal(np.asarray(points.get_offsets()), expected)
        assert [line.get_xydata().tolist() for line in ax.lines] == [[[-1, -1], [1, 1]]]
    assert "1 beyond" in figure.axes[0].get_ylabel()
    assert figure.axes[1].get_ylabel() == "prediction"
    below, above = (np.asarray(c.get_offsets()) for c in figure.axes[2].collections)
    np.testing.assert_array_equal(below, predicted[1:])
    np.testing.assert_array_equal(above, labels)
    for ax in figure.axes:
        assert (*ax.get_xlim(), *ax.get_ylim()) == (-1, 1, -1, 1)


@pytest.mark.parametrize("decimals", [1, 8], ids=["rounded", "continuous"])
def test_many_predictions_are_counted(decimals: int) -> None:
    labels, predicted = faces(3000)
    labels = np.round(labels, decimals)
    figure = _predictions_figure(labels, predicted, {}, "toy")
    for ax in figure.axes[:2]:
        (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
        counts = np.ma.filled(mesh.get_array(), np.nan)
        assert np.nansum(counts) == 3000
        assert np.nanmin(counts) >= 1
        assert mesh.norm.vmax >= np.nanmax(counts)
        if decimals == 1:  # one column for each of 21 labels, none of them empty
            assert counts.shape[1] == 21
            np.testing.assert_array_less(0, np.nansum(counts, axis=0))
        assert (*ax.get_xlim(), *ax.get_ylim()) == (-1, 1, -1, 1)


def test_contours_hold_their_share_of_the_points() -> None:
    labels = np.clip(RNG.normal(0, 0.3, (20_000, 2)), -1, 1)
    ax = _predictions_figure(labels, labels, {}, "toy").axes[2]
    outer, inner = ax.collections[-1].get_paths()
    for path, share in ((outer, 0.9), (inner, 0.5)):
        # Blurred by 0.08, the contours are that much wider: sqrt(0.3² + 0.08²) = 0.3105.
        radius = 0.3105 * np.sqrt(-2 * np.log(1 - share))
        np.testing.assert_allclose(np.hypot(*path.vertices.T), radius, rtol=0.15)


def test_few_label_values_get_a_distribution_each() -> None:
    labels = NORMS[RNG.integers(6, size=600)]
    predicted = labels / 2 + 0.1 * RNG.normal(size=labels.shape)
    figure = _predictions_figure(labels, predicted, {}, "toy")
    for i, ax in enumerate(figure.axes[:2]):
        values, counts = np.unique(labels[:, i], return_counts=True)
        names = [f"{v:.2f} (n {n})".replace("-", "−") for v, n in zip(values, counts, strict=True)]
        assert [text.get_text() for text in ax.get_xticklabels()] == names
        medians = sorted(
            {line.get_ydata()[0] for line in ax.lines if len({*line.get_ydata()}) == 1}
        )
        expected = sorted(np.median(predicted[labels[:, i] == v, i]) for v in values)
        np.testing.assert_allclose(medians, expected)
        (ideal,) = [c for c in ax.collections if isinstance(c, LineCollection)]
        assert [segment[0, 1] for segment in ideal.get_segments()] == list(values)
        assert ax.get_ylim() == (-1, 1)
    spots = figure.axes[2].collections[-1]
    assert len(spots.get_offsets()) == 6
    # A handful of faces does not make a distribution.
    few = _predictions_figure(*faces(8), {}, "toy")
    assert len(few.axes[0].collections[0].get_offsets()) == 8


def test_scores_are_shown_and_undefined_ones_in_words() -> None:
    labels, predicted = faces(20)
    given = {"valence": {"rmse": 0.1234, "sagr": -1e-17, "pcc": -0.5, "ccc": None}, "arousal": None}
    figure = _predictions_figure(labels, predicted, given, "fold 1")
    valence, arousal = (ax.texts[0].get_text() for ax in figure.axes[:2])
    assert valence == "RMSE 0.123   SAGR 0.000\nPCC −0.500   CCC undefined"
    assert arousal.count("undefined") == 4
    assert figure.get_suptitle() == "fold 1 (20 faces)"


def test_rows_without_a_value_are_left_out_and_counted() -> None:
    labels, predicted = faces(20)
    predicted[:3] = np.nan
    figure = _predictions_figure(labels, predicted, {}, "fold 1")
    assert figure.get_suptitle() == "fold 1 (17 faces; 3 without a value left out)"
    assert len(figure.axes[0].collections[0].get_offsets()) == 17
    assert "no faces" in words(_predictions_figure(labels[:3], predicted[:3], {}, "fold 1"))


def test_features_are_mapped_by_group_and_subject() -> None:
    n = 66
    centres = np.repeat(np.eye(3) * 50, n // 3, axis=0)
    values = centres + RNG.normal(size=(n, 3))
    subjects = np.repeat(np.array(["a", "b", None], dtype=object), n // 3)
    is_strong = np.arange(n) % 3 == 0
    figure = groups_figure({"h": values, "z": values[:, :2]}, is_strong, subjects, 0)
    assert titles(figure) == [
        f"{name}, by {what}" for name in "hz" for what in ("group", "subject")
    ]
    by_group, by_subject = figure.axes[:2]
    assert legend(by_group) == ["strong (22)", "weak (44)"]
    (points,) = by_group.collections
    colours = [to_hex(c).upper() for c in points.get_facecolors()]
    assert colours == [canvas.BLUE if strong else canvas.ORANGE for strong in is_strong]
    assert legend(by_subject) == ["a (22)", "b (22)", "others (22)"]
    places = np.asarray(points.get_offsets())
    for drawn, subject in zip(by_subject.collections, (None, "a", "b"), strict=True):
        np.testing.assert_array_equal(drawn.get_offsets(), places[subjects == subject])
    # Three far clusters of one subject each stay apart in the plane.
    middles = np.stack([places[subjects == s].mean(axis=0) for s in ("a", "b", None)])
    nearest = np.linalg.norm(places[:, None] - middles[None], axis=2).argmin(axis=1)
    assert list(nearest) == list(np.repeat([0, 1, 2], n // 3))
    again = groups_figure({"h": values}, is_strong, subjects, 0)
    np.testing.assert_array_equal(again.axes[0].collections[0].get_offsets(), places)


def test_subjects_that_tell_nothing() -> None:
    """Where none occurs twice, words say so; where none is known, they have no panel."""
    values = {"h": RNG.normal(size=(20, 4))}
    different = groups_figure(values, *people(20, [f"s{i}" for i in range(20)]).values(), 0)
    assert "no subject occurs twice" in words(different)
    assert len(different.axes[0].collections[0].get_offsets()) == 20
    assert not different.axes[1].collections
    unknown = groups_figure(values, *people(20, [None]).values(), 0)
    assert len(unknown.axes) == 1
    assert len(unknown.axes[0].collections[0].get_offsets()) == 20


def test_only_the_ten_most_frequent_subjects_have_colours() -> None:
    names = [f"_{i:02d} $^$ of a recording with a long name" for i in range(12)]
    subjects = np.array([name for i, name in enumerate(names) for _ in range(14 - i)], dtype=object)
    n = len(subjects)
    figure = groups_figure({"h": RNG.normal(size=(n, 4))}, np.ones(n, dtype=bool), subjects, 0)
    others, *often = figure.axes[1].collections
    assert [len(c.get_offsets()) for c in often] == list(range(14, 4, -1))
    assert len(others.get_offsets()) == 4 + 3
    assert len({to_hex(c.get_facecolors()[0]) for c in (others, *often)}) == 11
    assert len(legend(figure.axes[1])) == 11
    figure.draw_without_rendering()  # a dollar begins no formula


def test_many_faces_are_sampled_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vafer.plots.features.MOST_FACES", 30)
    values = RNG.normal(size=(200, 4))
    values[0, 0] = np.nan
    given = people(200, ["a", "b"]).values()
    first, same, other = (groups_figure({"h": values}, *given, seed) for seed in (1, 1, 2))
    offsets = [np.asarray(f.axes[0].collections[0].get_offsets()) for f in (first, same, other)]
    assert offsets[0].shape == (30, 2)
    np.testing.assert_array_equal(offsets[0], offsets[1])
    assert not np.allclose(offsets[0], offsets[2])
    assert first.get_suptitle().startswith("t-SNE of 30 of 199 faces")


def test_faces_whose_features_are_not_finite_are_left_out_everywhere() -> None:
    values = RNG.normal(size=(13, 4))
    subjects = np.array([None, *"aaaaaaabbbbb"], dtype=object)
    is_strong = subjects == "b"
    figure = groups_figure(
        {"h": np.where(np.arange(13)[:, None] == 0, np.inf, values), "z": values},
        is_strong,
        subjects,
        0,
    )
    for ax in figure.axes[::2]:
        assert legend(ax) == ["strong (5)", "weak (7)"]
    for ax in figure.axes[1::2]:
        assert legend(ax) == ["a (7)", "b (5)"]


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize("kind", ["one column", "rank one", "huge", "tiny", "float16"])
def test_odd_features_are_drawn(kind: str, n: int) -> None:
    values = {
        "one column": RNG.normal(size=(n, 1)),
        "rank one": RNG.normal(size=(n, 1)) @ np.ones((1, 4)),
        "huge": RNG.normal(size=(n, 4)) * 1e30,
        "tiny": RNG.normal(size=(n, 4)) * 1e-30,
        "float16": RNG.normal(size=(n, 4)).astype(np.float16),
    }[kind]
    figure = groups_figure({"h": values}, *people(n, ["a"]).values(), 0)
    (points,) = figure.axes[0].collections
    assert np.isfinite(points.get_offsets()).all()
    assert len(np.unique(points.get_offsets(), axis=0)) == n


def test_what_cannot_be_mapped_is_said_in_words(tmp_path: Path) -> None:
    constant = groups_figure({"h": np.full((9, 4), 0.1)}, *people(9, ["a"]).values(), 0)
    assert words(constant).count("all faces have the same features") == 2
    for features in ({"h": np.ones((4, 3))}, {"h": np.ones((0, 3))}, {}):
        assert "too few faces" in words(groups_figure(features, *people(4, ["a"]).values(), 0))
    plot_features({"h": np.ones((4, 3))}, tmp_path / "few.png", **people(4, ["a"]))
    with Image.open(tmp_path / "few.png") as picture:
        assert picture.format == "PNG"


def test_features_are_coloured_by_valence(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Figure] = []
    monkeypatch.setattr(features_module, "write", lambda figure, path: written.append(figure))
    labels = np.stack([np.linspace(-1, 0.5, 20), np.zeros(20)], axis=1)
    plot_features(
        {"h": RNG.normal(size=(20, 4))},
        Path("h.png"),
        labels=labels,
        subjects=np.array([f"clip {i % 2}" for i in range(20)], dtype=object),
        what="video",
    )
    (figure,) = written
    by_valence, by_video = figure.axes
    assert titles(figure) == ["h, by valence", "h, by video"]
    assert legend(by_video) == ["clip 0 (10)", "clip 1 (10)"]
    (points,) = by_valence.collections
    np.testing.assert_array_equal(points.get_array(), labels[:, 0])
    assert points.get_clim() == (-1, 1)  # of the bar too, whatever the labels reach
    (bar,) = by_valence.child_axes
    assert bar.get_ylim() == (-1, 1)
    assert bar.get_ylabel() == "valence of the label"


def test_videos_that_tell_nothing_are_said_in_words() -> None:
    given = np.array([f"{i}" for i in range(9)], dtype=object)
    figure = features_module._features_figure(
        {"h": RNG.normal(size=(9, 4))}, np.zeros(9), given, 0, by="valence", what="video"
    )
    assert "no video occurs twice" in words(figure)


@pytest.mark.parametrize("both", [True, False], ids=["both", "neither"])
def test_colours_come_from_groups_or_from_labels(both: bool, tmp_path: Path) -> None:
    given = {"is_strong": np.ones(9, dtype=bool), "labels": np.zeros((9, 2))} if both else {}
    with pytest.raises(ValueError, match="one of the two"):
        plot_features({"h": np.eye(9)}, tmp_path / "h.png", subjects=np.full(9, None), **given)
    assert not list(tmp_path.iterdir())


def test_traces_are_the_frames() -> None:
    label, predicted = faces(50)
    times = np.arange(50) / 25
    table = frames_of("a", range(50), label[:, 0], predicted[:, 0], times)
    given = ccc_scores(a=(0.25, None))
    figure = _traces_figure({"clips/a.mp4": table}, {"clips/a.mp4": given["a"]}, "which")
    valence, arousal = figure.axes
    for ax, sign, dimension in ((valence, 1, "valence"), (arousal, -1, "arousal")):
        prediction, labels = ax.lines
        np.testing.assert_array_equal(labels.get_xydata(), np.c_[times, sign * label[:, 0]])
        np.testing.assert_array_equal(prediction.get_xydata(), np.c_[times, sign * predicted[:, 0]])
        assert (labels.get_color(), prediction.get_color()) == (canvas.BLACK, canvas.ORANGE)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", dimension)
        low, high = ax.get_ylim()
        assert -1.1 < low <= -1 < 1 <= high < 1.1
    assert titles(figure) == ["clips/a.mp4", ""]
    assert valence.texts[0].get_text() == "CCC 0.250   PCC 0.250"
    assert arousal.texts[0].get_text() == "CCC undefined   PCC undefined"
    (key,) = figure.legends
    assert [text.get_text() for text in key.get_texts()] == ["label", "prediction"]
    assert figure.get_suptitle() == "which"


def test_without_times_frames_are_counted() -> None:
    table = frames_of("a", [4, 5, 6], [0.1, 0.2, 0.3], [0, 0, 0])
    figure = _traces_figure({"a": table}, {}, "")
    assert [ax.get_xlabel() for ax in figure.axes] == ["frame", "frame"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [4, 5, 6]


def test_traces_break_at_gaps_and_missing_predictions() -> None:
    # Every second frame is labelled, but 6 and 8; 10 has no prediction.
    index = [0, 2, 4, 10, 12, 14]
    table = frames_of("a", index, [0.1] * 6, [0.0, 0.1, 0.2, None, 0.4, 0.5], np.array(index) / 10)
    prediction, label = curves(table)
    assert parts(prediction) == [[[0, 0], [0.2, 0.1], [0.4, 0.2]], [[1.2, 0.4], [1.4, 0.5]]]
    assert [[x for x, _ in part] for part in parts(label)] == [[0, 0.2, 0.4], [1, 1.2, 1.4]]


def test_points_between_breaks_are_marked() -> None:
    table = frames_of("a", [0, 1, 2, 3, 4, 9], [0.1] * 6, [0.1, None, 0.2, None, 0.3, 0.4])
    prediction, label = _traces_figure({"a": table}, {}, "").axes[0].lines
    assert [len(part) for part in parts(prediction.get_xydata())] == [1, 1, 1, 1]
    marked = np.asarray(prediction.get_xydata())[prediction.get_markevery()]
    assert marked.tolist() == [[0, 0.1], [2, 0.2], [4, 0.3], [9, 0.4]]
    assert np.asarray(label.get_xydata())[label.get_markevery()].tolist() == [[9, 0.1]]
    assert prediction.get_marker() == label.get_marker() == "o"


@pytest.mark.parametrize(
    "table",
    [
        frames_of("a", [7], [0.5], [0.4], [0.28]),
        frames_of("a", [7], [0.5], [None]),
        frames_of("a", range(30), [0.5] * 30, [None] * 30),
        frames_of("a", range(30), [0.5] * 30, [0.5] * 30),
    ],
    ids=["one frame", "one frame without prediction", "no prediction", "constant"],
)
def test_odd_videos_are_drawn(table: pl.DataFrame, tmp_path: Path) -> None:
    (page,) = plot_traces(table, tmp_path, scores={})
    check_picture(page, 1)
    for values, curve in zip(
        (table["valence"], table["valence_label"]), curves(table), strict=True
    ):
        assert curve[:, 1].tolist() == values.drop_nulls().to_list()


def test_long_videos_keep_their_extremes_breaks_and_ends() -> None:
    n = 25_000
    index = np.r_[:10_000, 15_000:30_000]
    label = np.sin(index / 3000)
    predicted = 0.1 * RNG.normal(size=n)
    predicted[[17, 12_345]] = (0.97, -0.99)
    missing = (index >= 20_000) & (index < 20_100)
    table = frames_of("a", index, label, np.where(missing, None, predicted).tolist())
    for curve, y, known in zip(
        curves(table), (predicted, label), (~missing, index >= 0), strict=True
    ):
        assert 1000 < len(curve) <= 2100
        shown = curve[np.isfinite(curve[:, 1])]
        places = np.searchsorted(index, shown[:, 0])
        np.testing.assert_array_equal(shown, np.c_[index, y][places])
        assert (shown[:, 1].min(), shown[:, 1].max()) == (y[known].min(), y[known].max())
        # In each of a hundred stretches the extremes are those of a stretch hardly wider.
        for some in np.array_split(np.flatnonzero(known), 100):
            here = shown[(places >= some[0] - 50) & (places <= some[-1] + 50), 1]
            assert here.min() <= y[some].min()
            assert here.max() >= y[some].max()
    ends = [[part[0][0], part[-1][0]] for part in parts(curves(table)[0])]
    assert ends == [[0, 9999], [15_000, 19_999], [20_100, 29_999]]


def test_predictions_beyond_the_range_are_counted() -> None:
    table = frames_of("a", range(4), [0.1] * 4, [1.5, None, -1.01, 1])
    headers = [ax.texts[0].get_text() for ax in _traces_figure({"a": table}, {}, "").axes]
    assert headers == ["CCC undefined   PCC undefined   (2 predictions beyond ±1)"] * 2


def test_names_of_videos_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["_$^$_größe.mp4", "顔_$.avi", "a long folder/with a recording_12$.mp4"]
    frames = pl.concat(frames_of(name, range(5), [0.1] * 5, [0.2] * 5) for name in names)
    (page,) = plot_traces(frames, tmp_path, scores={})  # no formula begins, no glyph warns
    check_picture(page, 3)
    figure = _traces_figure(dict.fromkeys(names, frames), {}, "")
    shown = [title.strip().replace(r"\$", "$") for title in titles(figure)[::2]]
    assert shown == [*names[:2], "a long fold…ding_12$.mp4"]


def test_videos_are_in_the_order_of_their_ccc(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = drawn_pages(monkeypatch)
    given = ccc_scores(
        undefined=(None, 0.99),
        low=(-0.5, 0.2),
        high=(0.9, 0.8),
        middle=(1, 0),
        g=(0, 0),
        h=(0.1, 0),
    )
    frames = pl.concat(
        frames_of(name, range(5), [0.1] * 5, [0.2] * 5) for name in [*sorted(given), "unscored"]
    )
    plot_traces(frames, Path("nowhere"), scores=given)
    assert [titles(page)[::2] for page in pages] == [
        ["high", "middle", "h", "g", "low", "undefined"],
        ["unscored"],
    ]
    assert [page.get_suptitle() for page in pages] == [
        "videos 1 to 6 of 7, by CCC from high to low",
        "video 7 of 7, by CCC from high to low",
    ]


def test_of_many_videos_sixty_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pages = drawn_pages(monkeypatch)
    names = [f"{i:03d}" for i in range(600)]
    order = RNG.permutation(600)
    given = ccc_scores(**{names[i]: (1 - order[i] / 600,) * 2 for i in range(600)})
    frames = pl.concat(frames_of(name, [0, 1], [0.1, 0.2], [0.2, 0.1]) for name in names)
    paths = plot_traces(frames, tmp_path, scores=given)
    assert [path.name for path in paths] == [f"traces-{i:02d}.png" for i in range(1, 11)]
    assert pages[0].get_suptitle() == (
        "videos 1 to 6 of 60, of 600 in all, by CCC from high to low"
    )
    ranks = [order[int(name)] for page in pages for name in titles(page)[::2]]
    assert len(ranks) == 60
    assert (ranks[0], ranks[-1]) == (0, 599)
    assert set(np.diff(ranks)) == {10, 11}


def test_pages_of_an_earlier_run_go(tmp_path: Path) -> None:
    for name in ("traces-01.png", "traces-02.png", "traces-10.png", "traces-of-mine.png"):
        (tmp_path / name).write_bytes(b"old")
    frames = frames_of("a", range(5), [0.1] * 5, [0.2] * 5)
    (page,) = plot_traces(frames, tmp_path, scores={})
    assert {path.name for path in tmp_path.iterdir()} == {"traces-01.png", "traces-of-mine.png"}
    assert page.read_bytes() != b"old"
    assert plot_traces(frames.clear(), tmp_path, scores={}) == []
    assert [path.name for path in tmp_path.iterdir()] == ["traces-of-mine.png"]


@pytest.mark.parametrize(
    ("values", "n_cells", "first"),
    [(AFEW_VA, 21, -1.05), (AFEW_VA[[3, 4, 9]], 7, -0.75), (np.linspace(-1, 1, 9), 9, -1.125)],
    ids=["AFEW-VA", "some of its values", "nine steps"],
)
def test_values_of_a_scale_have_their_own_cells(
    values: np.ndarray, n_cells: int, first: float
) -> None:
    labels = RNG.choice(values, (5000, 2)).astype(np.float32)
    predicted = labels / 2 + 0.1 * RNG.normal(size=labels.shape)
    left, right = _plane_figure(labels, predicted).axes
    error, counts = (ax.collections[0] for ax in (left, right))
    assert error.get_array().shape == counts.get_array().shape == (n_cells, n_cells)
    assert error.get_coordinates()[0, 0].tolist() == pytest.approx([first, first])
    step = 2 * abs(first - values.min())
    for valence in np.unique(labels[:, 0]):
        for arousal in np.unique(labels[:, 1]):
            here = (labels == (valence, arousal)).all(axis=1)
            column, row = (round((v - values.min()) / step) for v in (valence, arousal))
            if not here.any():
                assert counts.get_array()[row, column] is np.ma.masked
                continue
            assert counts.get_array()[row, column] == here.sum()
            expected = np.sqrt(np.mean(np.sum((predicted[here] - labels[here]) ** 2, axis=1)))
            assert error.get_array()[row, column] == pytest.approx(expected)
    low, high = left.get_xlim()
    assert low <= min(-1, first)
    assert high >= 1


def test_cells_of_continuous_labels_hold_their_faces() -> None:
    labels, predicted = faces(3000)
    labels[0], labels[1] = (-1, -1), (1, 1)
    labels[:, 0] = np.abs(labels[:, 0])  # half of the plane is empty
    figure = _plane_figure(labels, predicted)
    left, right = figure.axes
    error, counts = (ax.collections[0] for ax in (left, right))
    assert counts.get_array().shape == (20, 20)
    assert counts.get_array().sum() == 3000
    assert np.ma.getmaskarray(error.get_array())[:, :10].all()
    cells = np.minimum(np.floor(10 * (labels + 1)), 19)
    for row, column in ((0, 10), (7, 15), (19, 19)):
        here = (cells == (column, row)).all(axis=1)
        assert counts.get_array()[row, column] == here.sum()
        expected = np.sqrt(np.mean(np.sum((predicted[here] - labels[here]) ** 2, axis=1)))
        assert error.get_array()[row, column] == pytest.approx(expected)
    assert figure.get_suptitle() == "Error over the plane of labels (3,000 faces)"
    errors, numbers = (ax.child_axes[0] for ax in (left, right))
    assert errors.get_ylim() == (0, error.get_array().max())
    assert numbers.get_ylim() == pytest.approx((1, counts.get_array().max()))
    assert (errors.get_yscale(), numbers.get_yscale()) == ("linear", "log")
    for ax in (left, right):
        assert (*ax.get_xlim(), *ax.get_ylim()) == (-1, 1, -1, 1)


def test_arrows_lead_to_the_mean_prediction() -> None:
    labels, predicted = RNG.choice(AFEW_VA, (2500, 2)), RNG.uniform(-1, 1, (2500, 2))
    (arrows,) = [
        c for c in _plane_figure(labels, predicted).axes[0].collections if isinstance(c, Quiver)
    ]
    in_cell = {
        (x, y): predicted[(labels == (x, y)).all(axis=1)]
        for x in AFEW_VA[1::3]
        for y in AFEW_VA[1::3]
    }
    enough = {start: here for start, here in in_cell.items() if len(here) >= 5}
    assert 10 < len(enough) < len(in_cell)
    np.testing.assert_allclose(np.c_[arrows.X, arrows.Y], [*enough], atol=1e-12)
    ends = np.c_[arrows.X + arrows.U, arrows.Y + arrows.V]
    np.testing.assert_allclose(ends, [here.mean(axis=0) for here in enough.values()])


@pytest.mark.parametrize("n", [0, 1, 30])
def test_planes_of_few_or_perfect_faces_are_drawn(n: int, tmp_path: Path) -> None:
    labels = np.full((n, 2), 0.25)
    plot_error_plane(labels, labels, tmp_path / "plane.png")
    with Image.open(tmp_path / "plane.png") as picture:
        assert picture.format == "PNG"
    figure = _plane_figure(labels, labels)
    if not n:
        assert "no faces" in words(figure)
        return
    error, counts = (ax.collections[0].get_array() for ax in figure.axes)
    assert error.compressed().tolist() == [0]
    assert counts.compressed().tolist() == [n]
    assert figure.axes[0].child_axes[0].get_ylim() == (0, 0.1)
