"""The four scores against independent computations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from vafer.metrics import ccc, pcc, rmse, sagr, scores

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
    if np.std(label) > 1e-6:
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
