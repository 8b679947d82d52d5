"""Thresholds against exhaustive search and scikit-learn; groups against a loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.filters import threshold_otsu
from sklearn.cluster import KMeans

from tests.train.reference import inertia, kmeans_by_trial, otsu_candidates
from train.config import GroupingConfig
from train.groups import MOST_DISTINCT, group, kmeans_centres, otsu, threshold_radius

SMOOTH = arrays(np.float64, st.integers(1, 40), elements=st.floats(-1, 1, width=32))
COARSE = arrays(np.float64, st.integers(1, 40), elements=st.integers(-8, 8).map(lambda i: i / 8))
VALUES = SMOOTH | COARSE
DECIMALS = st.integers(-(10**6), 10**6).map(lambda i: i / 10**6)
LABELS = arrays(np.float64, st.tuples(st.integers(2, 30), st.just(2)), elements=st.floats(-1, 1))
SEEDS = st.integers(0, 2**32 - 1)


@given(values=VALUES)
@settings(max_examples=150, deadline=None)
def test_otsu_is_the_best_midpoint_of_all(values: np.ndarray) -> None:
    candidates = otsu_candidates(values)
    found = otsu(values)
    if not candidates:
        assert found == values[0]
        return
    best = max(variance for _, variance in candidates)
    reached = [variance for midpoint, variance in candidates if midpoint == found]
    assert len(reached) == 1
    assert reached[0] >= best * (1 - 1e-6)


@given(half=arrays(np.float64, st.integers(1, 8), elements=st.integers(1, 8).map(lambda i: i / 8)))
@settings(max_examples=50, deadline=None)
def test_of_equal_maxima_otsu_takes_the_lowest(half: np.ndarray) -> None:
    values = np.concatenate([half, -half, [0.0]])  # each cut has its mirror image
    candidates = otsu_candidates(values)
    best = max(variance for _, variance in candidates)
    assert otsu(values) == min(midpoint for midpoint, variance in candidates if variance == best)


def test_otsu_by_hand() -> None:
    assert otsu(np.array([0.1, 0.1, 0.2, 0.9])) == pytest.approx(0.55)
    assert otsu(np.array([-1.0, 0.0, 1.0])) == -0.5  # as good as 0.5
    assert otsu(np.full(3, 0.1)) == 0.1
    assert otsu(np.array([0.25, 0.75])) == 0.5


def test_otsu_agrees_with_scikit_images_within_a_bin() -> None:
    for seed in range(5):
        values = np.random.default_rng(seed).beta(2, 1 + seed, 5000)
        width = np.ptp(values) / 256
        binned = threshold_otsu(values, nbins=256) + width / 2  # upper edge of the last bin below
        assert otsu(values) == pytest.approx(binned, abs=width)


@given(values=VALUES.filter(lambda v: len(np.unique(v)) > 1))
@settings(max_examples=50, deadline=None)
def test_otsu_parts_as_two_means_do(values: np.ndarray) -> None:
    parts = values[values < otsu(values)], values[values >= otsu(values)]
    spread = sum(((part - part.mean()) ** 2).sum() for part in parts)
    assert inertia(values, kmeans_centres(values, 2)) == pytest.approx(spread, abs=1e-9)


@given(values=arrays(np.float64, st.integers(2, 9), elements=DECIMALS), data=st.data())
@settings(max_examples=50, deadline=None)
def test_no_cut_into_runs_beats_kmeans(values: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.sampled_from([k for k in (2, 3, 5) if k <= len(values)]))
    least, _ = kmeans_by_trial(values, k)
    found = kmeans_centres(values, k)
    assert len(found) == min(k, len(np.unique(values)))
    assert (np.diff(found) > 0).all()
    assert inertia(values, found) == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 5])
@given(n=st.integers(5, 300), seed=SEEDS, decimals=st.sampled_from([1, 2, 15]))
@settings(max_examples=15, deadline=None)
def test_kmeans_is_never_worse_than_scikit_learn(k: int, n: int, seed: int, decimals: int) -> None:
    values = np.random.default_rng(seed).uniform(-1, 1, n).round(decimals)
    k = min(k, len(np.unique(values)))
    found = kmeans_centres(values, k)
    theirs = KMeans(k, n_init=10, tol=0, random_state=0).fit(values[:, None])
    assert inertia(values, found) <= theirs.inertia_ + 1e-9
    if decimals == 15 and theirs.inertia_ <= inertia(values, found) + 1e-12:  # one optimum
        np.testing.assert_allclose(np.sort(theirs.cluster_centers_[:, 0]), found, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("n", [MOST_DISTINCT, MOST_DISTINCT + 1, 3 * MOST_DISTINCT // 2, 6000])
def test_kmeans_of_many_values_is_near_scikit_learns(k: int, n: int) -> None:
    values = np.random.default_rng(n).beta(2, 3, n) * 2 - 1
    found = kmeans_centres(values, k)
    theirs = KMeans(k, n_init=2, tol=0, random_state=0).fit(values[:, None])
    reached = ((values[:, None] - found) ** 2).min(axis=1).sum()
    assert reached <= theirs.inertia_ * (1 + 1e-5)
    assert np.sort(theirs.cluster_centers_[:, 0]) == pytest.approx(found, abs=0.02)


def test_merging_keeps_the_mean() -> None:
    values = np.random.default_rng(0).normal(0, 0.3, 5000)
    assert kmeans_centres(values, 1) == pytest.approx([values.mean()], abs=1e-12)


def test_fewer_values_than_clusters_are_their_own_centres() -> None:
    assert kmeans_centres(np.array([0.5, -0.5, 0.5]), 5).tolist() == [-0.5, 0.5]
    assert kmeans_centres(np.array([0.25]), 2).tolist() == [0.25]


@given(labels=LABELS, radius=st.floats(0, 1.5))
@settings(max_examples=100, deadline=None)
def test_groups_equal_a_loop(labels: np.ndarray, radius: float) -> None:
    found = group(labels, radius)
    strong = [i for i, (v, a) in enumerate(labels.tolist()) if math.sqrt(v * v + a * a) >= radius]
    weak = [i for i in range(len(labels)) if i not in strong]
    assert (found.strong.tolist(), found.weak.tolist()) == (strong, weak)
    assert (found.n_strong, found.n_weak) == (len(strong), len(weak))
    assert found.are_usable == (len(strong) >= 2 and len(weak) >= 2)
    assert found.radius == radius


def test_the_boundary_and_the_corners_are_strong() -> None:
    labels = np.array([[0.6, -0.8], [0.6, np.nextafter(0.8, 0)], [-1, 1], [1, 1], [0, 0]])
    assert group(labels, 1.0).is_strong.tolist() == [True, False, True, True, False]
    assert group(labels, 1.42).n_strong == 0


@pytest.mark.parametrize("values", ["magnitude", "signed"])
@given(labels=LABELS)
@settings(max_examples=50, deadline=None)
def test_the_radius_joins_both_thresholds(values: str, labels: np.ndarray) -> None:
    valence, arousal = (abs(labels) if values == "magnitude" else labels).T
    otsus = [otsu(valence), otsu(arousal)]
    config = GroupingConfig(values=values)
    assert threshold_radius(labels, config) == pytest.approx(math.hypot(*otsus), abs=1e-12)
    for k in (2, 3, 5):
        config = GroupingConfig(values=values, method="kmeans", k=k)
        means = [sum(c) / len(c) for c in (kmeans_centres(valence, k), kmeans_centres(arousal, k))]
        assert threshold_radius(labels, config) == pytest.approx(math.hypot(*means), abs=1e-12)


def test_signed_thresholds_near_zero_leave_the_weak_group_nearly_empty() -> None:
    rng = np.random.default_rng(0)
    n_weak = {"signed": [], "magnitude": []}
    for _ in range(50):
        labels = rng.uniform(-1, 1, (256, 2))
        for values, found in n_weak.items():
            found.append(group(labels, threshold_radius(labels, GroupingConfig(values=values))))
    means = {values: np.mean([g.n_weak for g in found]) for values, found in n_weak.items()}
    assert means["signed"] <= 2
    assert 64 <= means["magnitude"] <= 192


def test_an_empty_weak_group_is_not_usable() -> None:
    labels = np.array([[0.5, 0.5], [-0.5, -0.5], [0.5, 0.5], [-0.5, -0.5]])
    groups = group(labels, threshold_radius(labels, GroupingConfig(values="signed")))
    assert groups.radius == 0
    assert (groups.n_strong, groups.n_weak, groups.are_usable) == (4, 0, False)


def test_two_samples_part_into_one_and_one() -> None:
    labels = np.array([[0.75, 0.75], [0.25, -0.25]], np.float32)
    for method in ("otsu", "kmeans"):
        groups = group(labels, threshold_radius(labels, GroupingConfig(method=method)))
        assert groups.radius == pytest.approx(math.sqrt(0.5))
        assert groups.is_strong.tolist() == [True, False]
        assert not groups.are_usable


@pytest.mark.parametrize("values", ["magnitude", "signed"])
@given(label=st.tuples(st.floats(-1, 1), st.floats(-1, 1)), n=st.integers(2, 20))
@settings(max_examples=100, deadline=None)
def test_equal_labels_are_all_strong(values: str, label: tuple[float, float], n: int) -> None:
    labels = np.tile(label, (n, 1))
    groups = group(labels, threshold_radius(labels, GroupingConfig(values=values)))
    assert groups.n_strong == n
    assert not groups.are_usable


def test_equal_labels_are_all_strong_by_kmeans_too() -> None:
    labels = np.full((3, 2), 0.1716326530612245)
    assert group(labels, threshold_radius(labels, GroupingConfig(method="kmeans"))).n_strong == 3
