"""The four scores against independent computations."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from vafer.metrics import Moments, ccc, pcc, rmse, sagr, scores

SERIES = arrays(np.float64, st.integers(2, 40), elements=st.floats(-1, 1, width=32))


@given(label=SERIES, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_scores_equal_independent_ones(label: np.ndarray, seed: int) -> None:
    predicted = np.random.default_rng(seed).uniform(-1, 1, len(label))
    n = len(label)
    expected = (sum((p - y) ** 2 for p, y in zip(predicted, label, strict=True)) / n) ** 0.5
    assert rmse(label, predicted) == pytest.approx(expected, abs=1e-9)
    agree = sum(np.sign(y) == np.sign(p) for p, y in zip(predicted, label, strict=True))
    assert sagr(label, predicted) == pytest.approx(agree / n, abs=1e-12)
    if np.std(label) > 1e-6:  # SciPy's own limit
        correlation = stats.pearsonr(label, predicted).statistic
        assert pcc(label, predicted) == pytest.approx(correlation, abs=1e-9)
        bias = np.std(label) / np.std(predicted)
        shift = (np.mean(label) - np.mean(predicted)) ** 2 / (np.std(label) * np.std(predicted))
        lin = correlation * 2 / (bias + 1 / bias + shift)  # Lin 1989, as accuracy times precision
        assert ccc(label, predicted) == pytest.approx(lin, abs=1e-9)


def test_a_sign_of_zero_agrees_only_with_zero() -> None:
    assert sagr(np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.1, 0.5])) == pytest.approx(2 / 3)


def test_what_is_undefined_is_none() -> None:
    none, one, flat = np.array([]), np.array([0.3]), np.full(5, 0.2)
    varied = np.linspace(-1, 1, 5)
    assert rmse(none, none) is None
    assert sagr(none, none) is None
    for f in (pcc, ccc):
        assert f(none, none) is None
        assert f(one, one) is None
        assert f(flat, varied) is None
        assert f(varied, flat) is None


def test_columns_are_valence_then_arousal() -> None:
    label = np.array([[0.5, -1.0], [-0.5, 1.0], [0.0, 0.5]])
    found = scores(label, label * [1, -1])
    assert found["valence"]["ccc"] == pytest.approx(1)
    assert found["arousal"]["pcc"] == pytest.approx(-1)


def exact(label: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    """The scores in rational numbers, rounded once at the end."""
    y, p = ([Fraction(float(v)) for v in series] for series in (label, predicted))
    n = len(y)
    undefined = dict.fromkeys(["rmse", "sagr", "pcc", "ccc"])
    if not n:
        return undefined
    square = sum((a - b) ** 2 for a, b in zip(y, p, strict=True))
    agree = sum((a > 0) - (a < 0) == (b > 0) - (b < 0) for a, b in zip(y, p, strict=True))
    found = undefined | {"rmse": float(square / n) ** 0.5, "sagr": agree / n}
    mean_y, mean_p = sum(y) / n, sum(p) / n
    var_y, var_p = sum((v - mean_y) ** 2 for v in y), sum((v - mean_p) ** 2 for v in p)
    if not (var_y and var_p):
        return found
    cross = sum((a - mean_y) * (b - mean_p) for a, b in zip(y, p, strict=True))
    return found | {
        "pcc": float(cross**2 / (var_y * var_p)) ** 0.5 * (1 if cross > 0 else -1),
        "ccc": float(2 * cross / (var_y + var_p + n * (mean_y - mean_p) ** 2)),
    }


def assert_scores(moments: Moments, expected: list[dict[str, float | None]]) -> None:
    for name, values in moments.scores().items():
        wanted = [np.nan if e[name] is None else e[name] for e in expected]
        assert values == pytest.approx(wanted, abs=1e-9, rel=1e-9, nan_ok=True), name


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 60),
    centre=st.sampled_from([0.0, 0.9, -1e6]),
    spread=st.sampled_from([1.0, 1e-4, 1e-9]),
    apart=st.sampled_from([0.0, 1e-9, 1.0]),
    single=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_groups_and_their_pool_are_exact_also_at_a_tiny_spread(
    seed: int, n: int, centre: float, spread: float, apart: float, single: bool
) -> None:
    """Some groups are empty, of one frame, or constant after rounding to 32 bits."""
    rng = np.random.default_rng(seed)
    group = rng.choice(4, n, p=[0.5, 0.3, 0.19, 0.01])
    label = centre + apart * group + spread * rng.integers(-2, 3, n)
    predicted = centre - apart * group + spread * rng.normal(size=n)
    predicted = predicted.astype(np.float32) if single else predicted
    each = Moments.of_frames(label, predicted).pool(group, 4)
    assert_scores(each, [exact(label[group == g], predicted[group == g]) for g in range(4)])
    assert_scores(each.pool(np.zeros(4, int), 1), [exact(label, predicted)])
    assert_scores(each.pool(np.array([1, 0, 1, 0]), 2), [
        exact(label[group % 2 == odd], predicted[group % 2 == odd]) for odd in (1, 0)
    ])  # fmt: skip


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_groups_taken_twice_count_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, 5, 30))
    label, predicted = rng.integers(-1, 2, 30) / 2, rng.normal(size=30)
    chosen = rng.integers(0, 5, 5)
    taken = Moments.of_frames(label, predicted).pool(group, 5).take(chosen)
    frames = np.concatenate([np.flatnonzero(group == g) for g in chosen])
    pooled = taken.pool(np.zeros(5, int), 1)
    assert_scores(pooled, [exact(label[frames], predicted[frames])])


def test_joined_groups_stay_apart() -> None:
    a = Moments.of_frames(np.array([0.1, 0.2]), np.array([0.3, -0.1]))
    b = Moments.of_frames(np.array([0.5]), np.array([0.5]))
    assert Moments.join([a, b]).rmse() == pytest.approx([0.2, 0.3, 0])


def test_scores_are_those_of_the_pool_not_the_mean_of_batches() -> None:
    """Two clips, each at its own level: no clip is followed within, but the level is."""
    label = np.array([0.5, 0.6, 0.5, 0.6, -0.5, -0.6, -0.5, -0.6])
    predicted = np.array([0.6, 0.5, 0.6, 0.5, -0.6, -0.5, -0.6, -0.5])
    batches = np.mean([ccc(label[:4], predicted[:4]), ccc(label[4:], predicted[4:])])
    assert batches == pytest.approx(-1)
    assert ccc(label, predicted) == pytest.approx(stats.pearsonr(label, predicted).statistic)
    assert ccc(label, predicted) > 0.9


def test_a_constant_is_known_by_its_range() -> None:
    """The mean of ten times 0.1 is not 0.1, and neither is that of groups of it."""
    label, flat = np.linspace(-1, 1, 10), np.full(10, 0.1)
    assert pcc(label, flat) is None
    pooled = Moments.of_frames(label, flat).pool(np.arange(10) // 4, 3).pool(np.zeros(3, int), 1)
    assert np.isnan(pooled.pcc()).all()
    assert np.isnan(pooled.ccc()).all()
