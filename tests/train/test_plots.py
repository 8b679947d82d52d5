"""The pictures of a run: what they hold equals what was given, whatever is missing."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from train.plots import canvas
from train.plots.features import _features_figure, plot_features
from train.plots.losses import _losses_figure, plot_losses
from train.plots.predictions import _predictions_figure, plot_predictions
from vafer.metrics import scores

RNG = np.random.default_rng(0)
LOSSES = ["Regression loss", "Critic loss", "Adversarial loss", "Margin of the critic"]
GROUPS = ["Groups in a batch", "Critic steps skipped so far"]
HELD_OUT = ["Held-out CCC", "Held-out PCC"]
NORMS = np.array([(0.81, 0.51), (0.4, 0.67), (-0.51, 0.59), (-0.64, 0.6), (-0.63, -0.27), (0, 0)])


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def log(n: int, **changes: Any) -> list[dict[str, Any]]:
    """n logged steps, 50 iterations apart, of a run with the critic of the paper."""
    return [
        {
            "step": 50 * (i + 1),
            "loss_critic": 1 + 0.1 * RNG.normal(),
            "loss_adv": 0.1 * RNG.normal(),
            "loss_av": float(np.exp(-i / n) + 0.1 * RNG.normal()),
            "margin_mi": 0.1,
            "margin_delta": 1.2,
            "n_strong": 130 - i % 3,
            "n_weak": 126 + i % 3,
            "critic_steps": 40 * (i + 1),
            "skipped_steps": 10 * (i + 1),
            "lr": 1e-4,
            "images_per_s": 900.0,
        }
        | changes
        for i in range(n)
    ]


def evaluation(step: int, name: str, ccc: float | None, pcc: float | None) -> dict[str, Any]:
    result = {"rmse": 0.4, "sagr": 0.7, "pcc": pcc, "ccc": ccc}
    return {"step": step, "set": name, "scores": {"valence": result, "arousal": result}}


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def panel(figure: Figure, title: str) -> Any:
    return figure.axes[titles(figure).index(title)]


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def words(figure: Figure) -> str:
    found = [*figure.texts, *(text for ax in figure.axes for text in ax.texts)]
    return "\n".join(text.get_text() for text in found)


def faces(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.uniform(-1, 1, (n, 2))
    return labels, labels / 2 + 0.1 * RNG.normal(size=(n, 2))


def people(n: int, subjects: list[str | None]) -> dict[str, np.ndarray]:
    chosen = np.array([subjects[i % len(subjects)] for i in range(n)], dtype=object)
    return {"is_strong": np.arange(n) % 3 == 0, "subjects": chosen}


def check_picture(path: Path, n_panels_high: int) -> None:
    with Image.open(path) as picture:
        picture.verify()
        assert picture.format == "PNG"
        width, height = picture.size
    assert 1200 <= width <= 2000
    assert 200 * n_panels_high <= height <= 800 * n_panels_high
    assert list(path.parent.iterdir()) == [path]


def test_a_run_leaves_three_pictures_and_nothing_else(tmp_path: Path) -> None:
    labels, predicted = faces(1200)
    paths = [tmp_path / name / "plot.png" for name in "abc"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"of an earlier run")
        path.parent.with_suffix(".png").hardlink_to(path)
    plot_losses(log(300), paths[0], evaluations=[evaluation(500, "val", 0.4, None)])
    plot_predictions(
        labels, predicted, paths[1], scores=scores(labels, predicted), title="validation, $^$"
    )
    plot_features({"h": RNG.normal(size=(40, 8))}, paths[2], **people(40, ["a", "b", None]))
    for path, n_panels_high in zip(paths, (7, 1, 1), strict=True):
        check_picture(path, n_panels_high)
        # The file was replaced as a whole, not written over.
        assert path.parent.with_suffix(".png").read_bytes() == b"of an earlier run"


def test_a_failure_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def savefig(self: Figure, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    path = tmp_path / "losses.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="No space"):
        plot_losses(log(3), path, evaluations=[])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_importing_is_light_and_drawing_needs_no_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from train.plots import plot_losses;"
        "print({'matplotlib', 'sklearn', 'scipy'} & set(sys.modules));"
        f"plot_losses([], Path({str(tmp_path / 'x.png')!r}), evaluations=[]);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\nFalse\n"


def test_curves_are_the_log() -> None:
    entries = log(30)
    evaluations = [
        evaluation(1000, "fer", 0.2, None),
        evaluation(500, "fer", 0.1, 0.3),
        evaluation(500, "lfw", None, 0.5),
    ]
    figure = _losses_figure(entries, evaluations)
    assert titles(figure) == LOSSES + GROUPS + HELD_OUT
    assert {ax.get_shared_x_axes().joined(ax, figure.axes[0]) for ax in figure.axes} == {True}
    for title, keys in {
        "Regression loss": ["loss_av"],
        "Critic loss": ["loss_critic"],
        "Adversarial loss": ["loss_adv"],
        "Groups in a batch": ["n_strong", "n_weak"],
    }.items():
        lines = panel(figure, title).lines
        assert [list(line.get_xdata()) for line in lines] == [[e["step"] for e in entries]] * len(
            keys
        )
        assert [list(line.get_ydata()) for line in lines] == [[e[k] for e in entries] for k in keys]
    total, information, delta = panel(figure, "Margin of the critic").lines
    np.testing.assert_allclose(total.get_ydata(), 1.3)
    assert {*information.get_ydata(), *delta.get_ydata()} == {0.1, 1.2}
    (share,) = panel(figure, "Critic steps skipped so far").lines
    np.testing.assert_allclose(share.get_ydata(), 20)
    ccc, pcc = panel(figure, "Held-out CCC"), panel(figure, "Held-out PCC")
    assert legend(ccc) == ["fer, valence", "fer, arousal"]
    assert legend(pcc) == ["fer, valence", "fer, arousal", "lfw, valence", "lfw, arousal"]
    assert [line.get_xydata().tolist() for line in ccc.lines] == [[[500, 0.1], [1000, 0.2]]] * 2
    assert [line.get_xydata().tolist() for line in pcc.lines] == [[[500, 0.3]]] * 2 + [
        [[500, 0.5]]
    ] * 2
    for ax in (ccc, pcc):  # one scale for both, which holds all values
        low, high = ax.get_ylim()
        assert (low, high) == ccc.get_ylim()
        assert low <= 0.1
        assert high >= 0.5


def test_without_a_critic_its_panels_are_left_out() -> None:
    nothing = dict.fromkeys(("loss_critic", "loss_adv", "margin_mi", "margin_delta", "n_strong"))
    entries = log(5, **nothing, n_weak=None, critic_steps=0, skipped_steps=0)
    for entry in entries:
        del entry["loss_critic"]
    assert titles(_losses_figure(entries, [])) == ["Regression loss"]
    assert titles(_losses_figure(entries, [evaluation(5, "a", None, None)])) == ["Regression loss"]
    no_scores = {"step": 5, "set": "a", "scores": None}
    assert titles(_losses_figure([], [no_scores, evaluation(9, "a", 0.1, None)])) == [
        "Held-out CCC"
    ]
    assert "nothing was logged" in words(_losses_figure([], []))


def test_names_of_sets_are_shown_as_they_are() -> None:
    figure = _losses_figure([], [evaluation(5, "_$^$", 0.1, 0.2)])
    figure.draw_without_rendering()
    assert [name.strip() for name in legend(figure.axes[0])] == [
        r"_\$^\$, valence",
        r"_\$^\$, arousal",
    ]


def test_long_logs_get_a_running_median() -> None:
    entries = log(1000)
    figure = _losses_figure(entries, [])
    raw, median = panel(figure, "Regression loss").lines
    values = [e["loss_av"] for e in entries]
    assert list(raw.get_ydata()) == values
    assert raw.get_linewidth() < median.get_linewidth()
    expected = [np.median(values[max(0, i - 12) : i + 13]) for i in range(1000)]
    np.testing.assert_allclose(median.get_ydata(), expected)
    assert legend(panel(figure, "Regression loss")) == ["each logged step", "median of 25"]


def test_missing_values_are_not_drawn_and_long_gaps_stay_open() -> None:
    entries = log(100)
    for i in (3, 5, *range(40, 70)):
        entries[i]["loss_critic"] = None if i % 2 else float("nan")
    resumed = [entries[-1] | {"loss_critic": 7.0}]
    before, after = panel(_losses_figure(entries + resumed, []), "Critic loss").lines
    steps = [50 * (i + 1) for i in range(100) if i not in (3, 5)]
    assert list(before.get_xdata()) == [s for s in steps if s <= 2000]
    assert list(after.get_xdata()) == [s for s in steps if s > 3500]
    assert after.get_ydata()[-1] == 7
    for line in (before, after):
        assert np.isfinite(line.get_xydata()).all()


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (-np.geomspace(0.01, 1e5, 400), "symlog"),
        (-np.geomspace(0.01, 1, 400), "linear"),
        (np.sin(np.arange(400.0)), "linear"),
        (np.zeros(400), "linear"),
    ],
    ids=["runs away", "two orders", "crosses zero", "all zero"],
)
def test_a_loss_that_runs_away_gets_a_logarithmic_axis(values: np.ndarray, scale: str) -> None:
    entries = [e | {"loss_adv": float(v)} for e, v in zip(log(400), values, strict=True)]
    ax = panel(_losses_figure(entries, []), "Adversarial loss")
    assert ax.get_yscale() == scale
    low, high = sorted(ax.get_ylim())
    assert low <= values.min()
    assert high >= values.max()


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
    figure = _features_figure({"h": values, "z": values[:, :2]}, is_strong, subjects, 0)
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
    again = _features_figure({"h": values}, is_strong, subjects, 0)
    np.testing.assert_array_equal(again.axes[0].collections[0].get_offsets(), places)


@pytest.mark.parametrize(
    ("subjects", "said"),
    [([None], "no subject is known"), ([f"s{i}" for i in range(20)], "no subject occurs twice")],
    ids=["unknown", "all different"],
)
def test_subjects_that_tell_nothing_are_said_in_words(
    subjects: list[str | None], said: str
) -> None:
    given = people(20, subjects)
    figure = _features_figure({"h": RNG.normal(size=(20, 4))}, *given.values(), 0)
    assert said in words(figure)
    assert len(figure.axes[0].collections[0].get_offsets()) == 20
    assert not figure.axes[1].collections


def test_only_the_ten_most_frequent_subjects_have_colours() -> None:
    names = [f"_{i:02d} $^$ of a recording with a long name" for i in range(12)]
    subjects = np.array([name for i, name in enumerate(names) for _ in range(14 - i)], dtype=object)
    n = len(subjects)
    figure = _features_figure({"h": RNG.normal(size=(n, 4))}, np.ones(n, dtype=bool), subjects, 0)
    others, *often = figure.axes[1].collections
    assert [len(c.get_offsets()) for c in often] == list(range(14, 4, -1))
    assert len(others.get_offsets()) == 4 + 3
    assert len({to_hex(c.get_facecolors()[0]) for c in (others, *often)}) == 11
    assert len(legend(figure.axes[1])) == 11
    figure.draw_without_rendering()  # a dollar begins no formula


def test_many_faces_are_sampled_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.plots.features.MOST_FACES", 30)
    values = RNG.normal(size=(200, 4))
    values[0, 0] = np.nan
    given = people(200, ["a", "b"]).values()
    first, same, other = (_features_figure({"h": values}, *given, seed) for seed in (1, 1, 2))
    offsets = [np.asarray(f.axes[0].collections[0].get_offsets()) for f in (first, same, other)]
    assert offsets[0].shape == (30, 2)
    np.testing.assert_array_equal(offsets[0], offsets[1])
    assert not np.allclose(offsets[0], offsets[2])
    assert first.get_suptitle().startswith("t-SNE of 30 of 199 faces")


def test_faces_whose_features_are_not_finite_are_left_out_everywhere() -> None:
    values = RNG.normal(size=(13, 4))
    subjects = np.array([None, *"aaaaaaabbbbb"], dtype=object)
    is_strong = subjects == "b"
    figure = _features_figure(
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
    figure = _features_figure({"h": values}, *people(n, ["a"]).values(), 0)
    (points,) = figure.axes[0].collections
    assert np.isfinite(points.get_offsets()).all()
    assert len(np.unique(points.get_offsets(), axis=0)) == n


def test_what_cannot_be_mapped_is_said_in_words(tmp_path: Path) -> None:
    constant = _features_figure({"h": np.full((9, 4), 0.1)}, *people(9, ["a"]).values(), 0)
    assert words(constant).count("all faces have the same features") == 2
    for features in ({"h": np.ones((4, 3))}, {"h": np.ones((0, 3))}, {}):
        assert "too few faces" in words(_features_figure(features, *people(4, ["a"]).values(), 0))
    plot_features({"h": np.ones((4, 3))}, tmp_path / "few.png", **people(4, ["a"]))
    with Image.open(tmp_path / "few.png") as picture:
        assert picture.format == "PNG"
