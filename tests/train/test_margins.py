"""The margin's two terms against loops, SciPy and NumPy; what is random repeats."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist

from tests.train.reference import (
    plain_deltas,
    plain_information,
    plain_neighbourhood,
    plain_partners,
)
from train.config import MarginConfig
from train.margins import margins, mutual_information, neighbourhoods, squared_distances

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def features(draw: st.DrawFn, most: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Strong and weak rows, float64, two clouds more or less apart."""
    n_strong, n_weak = draw(st.integers(2, most)), draw(st.integers(2, most))
    rng = np.random.default_rng(draw(SEEDS))
    apart, scale = draw(st.sampled_from([0, 0.5, 2, 8])), draw(st.sampled_from([1e-3, 1, 1e3]))
    d = draw(st.integers(2, 16))
    clouds = rng.normal(0, 1, (n_strong, d)) + apart, rng.normal(0, 1, (n_weak, d))
    return tuple(torch.tensor(cloud * scale) for cloud in clouds)


def pieces(
    strong: torch.Tensor, weak: torch.Tensor, config: MarginConfig, epoch: int = 0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    within, across = squared_distances(strong, strong), squared_distances(strong, weak)
    generator = torch.Generator().manual_seed(seed)
    return margins(strong, weak, within, across, config, epoch=epoch, generator=generator)


def sizes(strong: torch.Tensor, weak: torch.Tensor, k_max: int, margin: float) -> list[int]:
    within, across = squared_distances(strong, strong), squared_distances(strong, weak)
    return neighbourhoods(within, across, k_max=k_max, margin=margin).tolist()


@given(clouds=features())
@settings(max_examples=50, deadline=None)
def test_squared_distances_equal_scipys(clouds: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = cdist(*(cloud.numpy() for cloud in clouds), "sqeuclidean")
    np.testing.assert_allclose(squared_distances(*clouds), expected, rtol=1e-12)


def test_squared_distances_of_near_points_far_from_the_origin_keep_their_digits() -> None:
    points = 1e4 + torch.randn(20, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = squared_distances(points.double(), points.double())
    torch.testing.assert_close(
        squared_distances(points, points).double(), expected, rtol=1e-6, atol=0
    )


@given(clouds=features(), sigma=st.sampled_from([0.5, 1.0, 2.0]), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_mutual_information_is_pearsons_correlation_of_the_kernels(
    clouds: tuple[torch.Tensor, torch.Tensor], sigma: float, seed: int
) -> None:
    strong, weak = clouds
    partner = np.random.default_rng(seed).integers(0, len(weak), len(strong))
    both = np.concatenate([strong, weak])
    kernel = np.exp(-(stats.zscore(both, axis=0, ddof=0) ** 2) / (2 * sigma**2))
    a, b = kernel[: len(strong)].ravel(), kernel[len(strong) :][partner].ravel()
    assume(min(a.var(), b.var()) > 1e-11)  # kernels that hardly vary count as constant
    eta = stats.pearsonr(a, b).statistic
    assert eta == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
    expected = min(2.5, -0.5 * math.log(1 - min(eta**2, 1 - 1e-6)))
    found = mutual_information(strong, weak, torch.tensor(partner), sigma=sigma)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    plain = plain_information(strong, weak, partner.tolist(), sigma=sigma)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6, abs=1e-12)


def test_mutual_information_has_the_right_gradient() -> None:
    torch.manual_seed(0)
    strong, weak = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 5))
    partner = torch.tensor([0, 3, 3, 1, 4, 0])
    assert torch.autograd.gradcheck(
        lambda s, w: mutual_information(s, w, partner, sigma=1.0), (strong, weak)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0, 1e-4, 1e-2])
def test_equal_groups_reach_the_bound_with_a_finite_gradient(
    dtype: torch.dtype, noise: float
) -> None:
    for seed in range(20):  # some of them round η² to 1
        torch.manual_seed(seed)
        strong = torch.randn(8, 16, dtype=dtype)
        weak = (strong + noise * torch.randn(8, 16, dtype=dtype)).requires_grad_()
        strong.requires_grad_()
        information = mutual_information(strong, weak, torch.arange(8), sigma=1.0)
        assert information.item() == pytest.approx(2.5, abs=1e-6)
        for gradient in torch.autograd.grad(information, (strong, weak)):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("constant", ["all", "strong", "weak", "columns"])
def test_constant_features_stay_finite(constant: str, value: float) -> None:
    torch.manual_seed(0)
    strong, weak = torch.randn(6, 4) + value, torch.randn(5, 4) + value
    if constant == "columns":
        strong[:, 1:], weak[:, 1:] = value, value
    if constant in ("all", "strong"):
        strong[:] = value
    if constant in ("all", "weak"):
        weak[:] = value
    inputs = strong.requires_grad_(), weak.requires_grad_()
    information = mutual_information(*inputs, torch.zeros(6, dtype=torch.int64), sigma=1.0)
    gradients = torch.autograd.grad(information, inputs)
    assert torch.isfinite(torch.stack([g.abs().max() for g in gradients])).all()
    assert 0 <= information <= 2.5
    if constant == "all":
        assert information == 0
        assert not any(g.any() for g in gradients)


@given(clouds=features())
@settings(max_examples=50, deadline=None)
def test_each_strong_sample_is_paired_with_its_nearest_weak_one(
    clouds: tuple[torch.Tensor, torch.Tensor],
) -> None:
    strong, weak = (cloud.requires_grad_() for cloud in clouds)
    found, _ = pieces(strong, weak, MarginConfig())
    expected = plain_information(strong, weak, plain_partners(strong, weak))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    if found < 2.499:  # the index carries no gradient, the pair's features do
        for f, e in zip(
            torch.autograd.grad(found, (strong, weak)),
            torch.autograd.grad(expected, (strong, weak)),
            strict=True,
        ):
            torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-7 * e.abs().max().item())


def test_random_partners_repeat_by_their_generator() -> None:
    torch.manual_seed(0)
    strong, weak = torch.randn(30, 16), torch.randn(20, 16)
    config = MarginConfig(pairing="random")
    values = [pieces(strong, weak, config, seed=seed)[0].item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    nearest = [pieces(strong, weak, MarginConfig(), seed=seed)[0].item() for seed in (0, 1)]
    assert nearest[0] == nearest[1]
    torch.manual_seed(5)  # the global generator has no say
    assert pieces(strong, weak, config)[0].item() == values[0]


def test_only_nearest_partners_tell_how_far_apart_the_groups_are() -> None:
    rng = np.random.default_rng(0)
    found: dict[tuple[str, float], list[float]] = {}
    for apart in (0.0, 1.0):
        for seed in range(10):
            strong, weak = rng.normal(0, 1, (128, 16)) + apart, rng.normal(0, 1, (128, 16))
            for pairing in ("nearest", "random"):
                config = MarginConfig(pairing=pairing)
                tensors = torch.tensor(strong), torch.tensor(weak)
                information = pieces(*tensors, config, seed=seed)[0].item()
                eta_squared = 1 - math.exp(-2 * information)
                found.setdefault((pairing, apart), []).append(eta_squared)
    assert max(found["random", 0.0] + found["random", 1.0]) < 0.01
    assert min(found["nearest", 0.0]) > 0.03 > 0.02 > max(found["nearest", 1.0])


@given(
    clouds=features(), k_max=st.integers(1, 12), margin=st.sampled_from([0.1, 0.3, 0.61, 0.7, 0.9])
)
@settings(max_examples=100, deadline=None)
def test_neighbourhoods_equal_a_loop(
    clouds: tuple[torch.Tensor, torch.Tensor], k_max: int, margin: float
) -> None:
    expected = [
        plain_neighbourhood(i, *clouds, k_max=k_max, margin=margin) for i in range(len(clouds[0]))
    ]
    assert sizes(*clouds, k_max, margin) == expected


def test_neighbourhoods_by_hand() -> None:
    line = torch.arange(12, dtype=torch.float32)[:, None]
    far = line + 1000
    assert sizes(line, far, 10, 0.7) == [2] * 12  # ½ + .7/√1 > 1, ½ + .7/√2 < 1
    assert sizes(line[:1], far, 10, 0.7) == [2]  # itself does not count: the two nearest are weak
    # From 0 the neighbours alternate, so that none of its neighbourhoods is one-sided.
    alternating = torch.arange(0, 14, 2.0)[:, None], torch.arange(1, 14, 2.0)[:, None]
    assert sizes(*alternating, 10, 0.7)[0] == 10
    assert sizes(*alternating, 3, 0.7)[0] == 3
    assert sizes(line[:2], far[:1], 10, 0.7) == [2, 2]  # none decides, and there are but two others
    assert sizes(line[:2], far[:1], 1, 0.7) == [1, 1]


@given(clouds=features())
@settings(max_examples=50, deadline=None)
def test_the_adaptive_term_equals_a_loop(clouds: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, delta = pieces(*clouds, MarginConfig())
    assert delta.shape == (len(clouds[0]),)
    assert delta.tolist() == pytest.approx(plain_deltas(*clouds), rel=1e-12)


def test_constant_and_linear_replace_the_second_term_alone() -> None:
    torch.manual_seed(0)
    clouds = torch.randn(4, 3), torch.randn(5, 3)
    information, _ = pieces(*clouds, MarginConfig())
    for kind, epoch, expected in (
        ("constant", 0, 0.2),
        ("constant", 7, 0.2),
        ("linear", 0, 0.1),
        ("linear", 1, 0.105),
        ("linear", 40, 0.3),
    ):
        other, delta = pieces(*clouds, MarginConfig(kind=kind), epoch)
        assert other == information
        assert delta.tolist() == pytest.approx([expected] * 4)
        assert delta.tolist() == pytest.approx(plain_deltas(*clouds, kind=kind, epoch=epoch))


@pytest.mark.parametrize("pairing", ["nearest", "random"])
@pytest.mark.parametrize("kind", ["adaptive", "constant", "linear"])
def test_the_gradient_flows_through_the_information_alone(kind: str, pairing: str) -> None:
    torch.manual_seed(0)
    strong, weak = torch.randn(6, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    information, delta = pieces(strong, weak, MarginConfig(kind=kind, pairing=pairing))
    assert not delta.requires_grad
    for gradient in torch.autograd.grad(information, (strong, weak)):
        assert gradient.abs().max() > 0
    still, delta = pieces(strong, weak, MarginConfig(kind=kind, pairing=pairing, detach=True))
    assert still == information
    assert not still.requires_grad
    assert not delta.requires_grad
