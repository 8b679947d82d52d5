"""The losses of a run: what their picture holds equals what was logged, whatever is missing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.figures import check_picture, legend, titles, words
from train.plots import _losses_figure, plot_losses

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(0)
LOSSES = ["Regression loss", "Critic loss", "Adversarial loss", "Margin of the critic"]
GROUPS = ["Groups in a batch", "Critic steps skipped so far"]
HELD_OUT = ["Held-out CCC", "Held-out PCC"]


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


def panel(figure: Figure, title: str) -> Any:
    return figure.axes[titles(figure).index(title)]


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


def test_losses_become_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "losses.png"
    plot_losses(log(300), path, evaluations=[evaluation(500, "val", 0.4, None)])
    check_picture(path, 7)
