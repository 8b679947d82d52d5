"""Every critic's losses against loops and NumPy; gradients; the critic's layers and size."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.train.reference import (
    plain_critic_loss,
    plain_deltas,
    plain_information,
    plain_partners,
)
from train.config import GameConfig, MarginConfig, TrainConfig
from train.critics import (
    Caf,
    Critic,
    Fisher,
    Gram,
    Objective,
    Sphere,
    gaussian_kernels,
    make_critic,
    pole_distances,
)
from vafer.model import AVNet

RHO = 1e-6
WIDTHS = (1, 2**0.5, 2, 2 * 2**0.5, 4)
SEEDS = st.integers(0, 2**32 - 1)
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "caf": lambda: Caf(GameConfig(), MarginConfig()),
    "caf detached": lambda: Caf(GameConfig(), MarginConfig(detach=True)),
    "caf matched": lambda: Caf(GameConfig(pairs="matched"), MarginConfig()),
    "caf random": lambda: Caf(GameConfig(), MarginConfig(pairing="random")),
    "caf constant": lambda: Caf(GameConfig(chi2_weight=0), MarginConfig(kind="constant")),
    "caf linear": lambda: Caf(GameConfig(), MarginConfig(kind="linear")),
    "fisher": Fisher,
    "sphere": Sphere,
    "gram": Gram,
}


@st.composite
def features(draw: st.DrawFn, d: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Strong and weak rows, float64: two clouds, from near enough for the margin to far apart."""
    sizes = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    d = d or draw(st.integers(2, 16))
    rng = np.random.default_rng(draw(SEEDS))
    scale = draw(st.sampled_from([0.05, 0.3, 1, 3]))
    apart = draw(st.sampled_from([0, 1, 3]))
    clouds = rng.normal(0, 1, (sizes[0], d)) + apart, rng.normal(0, 1, (sizes[1], d))
    return tuple(torch.tensor(cloud * scale, requires_grad=True) for cloud in clouds)


def critic_loss(
    objective: Objective, strong: torch.Tensor, weak: torch.Tensor, epoch: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return objective.critic_loss(strong, weak, epoch=epoch, generator=generator)


def assert_same_with_gradients(
    found: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)
    gradients = (torch.autograd.grad(loss, inputs) for loss in (found, expected))
    for f, e in zip(*gradients, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-7 * max(1, e.abs().max().item()))


@pytest.mark.parametrize("chi2_weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("pairs", ["all", "matched"])
@given(clouds=features(), detach=st.booleans())
@settings(max_examples=12, deadline=None)
def test_caf_equals_loops_over_samples_and_pairs(
    pairs: str, chi2_weight: float, clouds: tuple[torch.Tensor, torch.Tensor], detach: bool
) -> None:
    caf = Caf(GameConfig(pairs=pairs, chi2_weight=chi2_weight), MarginConfig(detach=detach))
    found = critic_loss(caf, *clouds)
    assert found.shape == ()
    plain = plain_critic_loss(*clouds, pairs=pairs, chi2_weight=chi2_weight, detach=detach)
    assert_same_with_gradients(found, plain, clouds)


@given(clouds=features(), kind=st.sampled_from(["constant", "linear"]), epoch=st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_caf_with_the_ablations_margins_equals_loops(
    clouds: tuple[torch.Tensor, torch.Tensor], kind: str, epoch: int
) -> None:
    caf = Caf(GameConfig(), MarginConfig(kind=kind))
    plain = plain_critic_loss(*clouds, kind=kind, epoch=epoch)
    assert_same_with_gradients(critic_loss(caf, *clouds, epoch), plain, clouds)


def test_caf_with_random_partners_equals_loops() -> None:
    torch.manual_seed(0)
    clouds = tuple(0.3 * torch.randn(n, 4, dtype=torch.float64) for n in (7, 5))
    clouds = tuple(cloud.requires_grad_() for cloud in clouds)
    partners = torch.randint(5, (7,), generator=torch.Generator().manual_seed(0)).tolist()
    found = critic_loss(Caf(GameConfig(), MarginConfig(pairing="random")), *clouds)
    assert_same_with_gradients(found, plain_critic_loss(*clouds, partners=partners), clouds)


def test_caf_by_hand() -> None:
    """Both strong samples are nearest to 0.2, and what has one value correlates with nothing."""
    strong, weak = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.2], [-0.8]])
    caf = Caf(GameConfig(), MarginConfig(kind="constant"))
    found = critic_loss(caf, strong, weak)
    assert caf.terms["margin_mi"] == 0
    # D² is 1 within; 0.04, 0.64, 0.64 and 3.24 across, of which the margin 0.2 reaches the first.
    chi2 = 0.5 * 1**2 + 0.5 * 0.16**2 / 4
    assert found.item() == pytest.approx(1 + 0.5 * 0.16 / 4 + 0.25 * chi2)


def test_caf_logs_both_terms_of_the_margin() -> None:
    torch.manual_seed(0)
    strong, weak = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 5))
    caf = OBJECTIVES["caf"]()
    critic_loss(caf, strong, weak)
    assert set(caf.terms) == {"margin_mi", "margin_delta"}
    assert not any(term.requires_grad for term in caf.terms.values())
    information = plain_information(strong, weak, plain_partners(strong, weak))
    assert caf.terms["margin_mi"].item() == pytest.approx(information.item())
    assert caf.terms["margin_delta"].item() == pytest.approx(np.mean(plain_deltas(strong, weak)))


@given(clouds=features())
@settings(max_examples=20, deadline=None)
def test_cafs_encoder_raises_the_mean_of_the_weak(
    clouds: tuple[torch.Tensor, torch.Tensor],
) -> None:
    loss = OBJECTIVES["caf"]().adversarial_loss(*clouds)
    rows = clouds[1].tolist()
    total = sum(value for row in rows for value in row)
    assert loss.item() == pytest.approx(-total / (len(rows) * len(rows[0])))
    (gradient,) = torch.autograd.grad(loss, clouds[1])
    assert gradient.flatten().tolist() == pytest.approx([-1 / clouds[1].numel()] * gradient.numel())


@given(batches=st.lists(features(d=1), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_fisher_equals_numpy_while_its_multiplier_moves(
    batches: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    fisher, multiplier = Fisher(), 0.3
    assert fisher.state()["multiplier"] == 0
    fisher.load_state({"multiplier": torch.tensor(multiplier, dtype=torch.float64)})
    for strong, weak in batches:
        p, q = strong.detach().numpy(), weak.detach().numpy()
        omega = 0.5 * np.mean(p**2) + 0.5 * np.mean(q**2)
        gain = p.mean() - q.mean() + multiplier * (1 - omega) - RHO / 2 * (1 - omega) ** 2
        loss = critic_loss(fisher, strong, weak)
        assert loss.item() == pytest.approx(-gain, rel=1e-12, abs=1e-12)
        loss.backward()
        slope = 1 / len(p) - multiplier * p / len(p) + RHO * (1 - omega) * p / len(p)
        np.testing.assert_allclose(strong.grad, -slope, rtol=1e-9, atol=1e-12)
        multiplier -= RHO * (1 - omega)
        assert fisher.state()["multiplier"].item() == pytest.approx(multiplier, rel=1e-12)
        assert not fisher.state()["multiplier"].requires_grad
        assert fisher.adversarial_loss(strong, weak).item() == pytest.approx(-q.mean())


def test_fishers_multiplier_rises_while_the_second_moment_is_too_large() -> None:
    for scale, sign in ((2.0, 1), (0.5, -1)):
        fisher = Fisher()
        for _ in range(3):
            critic_loss(fisher, torch.full((2, 1), scale), torch.full((3, 1), -scale))
        expected = sign * 3 * RHO * abs(1 - scale**2)
        assert fisher.state()["multiplier"].item() == pytest.approx(expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loaded_state_continues_exactly(name: str) -> None:
    torch.manual_seed(0)
    d = 1 if name == "fisher" else 4
    batches = [(torch.randn(5, d), torch.randn(4, d)) for _ in range(6)]
    whole, first, second = (OBJECTIVES[name]() for _ in range(3))
    expected = [critic_loss(whole, *batch) for batch in batches]
    found = [critic_loss(first, *batch) for batch in batches[:3]]
    kept = {key: value.clone() for key, value in first.state().items()}
    critic_loss(first, *batches[0])
    second.load_state(kept)
    found += [critic_loss(second, *batch) for batch in batches[3:]]
    assert found == expected
    assert whole.state() == second.state()


def distances_to_the_pole(z: np.ndarray) -> np.ndarray:
    """By the inverse stereographic projection of z (N, d) onto the sphere in d + 1 dimensions."""
    squared = (z**2).sum(axis=1, keepdims=True)
    points = np.concatenate([2 * z, squared - 1], axis=1) / (squared + 1)
    assert np.linalg.norm(points, axis=1) == pytest.approx(1)
    pole = np.append(np.zeros(z.shape[1]), 1)
    return np.arccos(np.clip(points @ pole, -1, 1))


@given(clouds=features(), scale=st.sampled_from([0.01, 1, 100]))
@settings(max_examples=50, deadline=None)
def test_sphere_equals_the_projection_and_its_arc_cosine(
    clouds: tuple[torch.Tensor, torch.Tensor], scale: float
) -> None:
    strong, weak = (cloud.detach() * scale for cloud in clouds)
    d_p, d_q = distances_to_the_pole(strong.numpy()), distances_to_the_pole(weak.numpy())
    np.testing.assert_allclose(pole_distances(strong), d_p, atol=1e-6)
    gain = sum((d_p**r).mean() - (d_q**r).mean() for r in (1, 2, 3))
    assert critic_loss(Sphere(), strong, weak).item() == pytest.approx(-gain, abs=1e-4)
    adversarial = -sum((d_q**r).mean() for r in (1, 2, 3))
    assert Sphere().adversarial_loss(strong, weak).item() == pytest.approx(adversarial, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_poles_of_the_sphere(dtype: torch.dtype) -> None:
    z = torch.tensor([[0.0, 0.0], [0.6, 0.8], [3e8, 4e8]], dtype=dtype, requires_grad=True)
    distances = pole_distances(z)
    assert distances.tolist() == pytest.approx([math.pi, math.pi / 2, 0], abs=3e-6)
    (gradient,) = torch.autograd.grad(distances.sum(), z)
    assert torch.isfinite(gradient).all()


def kernels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array(
        [[sum(np.exp(-((x - y) ** 2).sum() / (2 * w**2)) for w in WIDTHS) for y in b] for x in a]
    )


@given(clouds=features())
@settings(max_examples=50, deadline=None)
def test_gram_equals_the_inverse_and_the_discrepancy_loops(
    clouds: tuple[torch.Tensor, torch.Tensor],
) -> None:
    strong, weak = (cloud.detach().numpy() for cloud in clouds)
    ss, ws, ww = kernels(strong, strong), kernels(weak, strong), kernels(weak, weak)
    np.testing.assert_allclose(gaussian_kernels(clouds[1], clouds[0]).detach(), ws, rtol=1e-10)
    inverse = np.linalg.inv(ww + 1e-3 * np.eye(len(weak)))
    ratio = inverse @ ws @ np.ones(len(strong)) * len(weak) / len(strong)
    found = critic_loss(Gram(), *clouds)
    assert found.item() == pytest.approx(-np.mean((ratio - 1) ** 2), rel=1e-6)
    discrepancy = ss.mean() + ww.mean() - 2 * ws.mean()
    found = Gram().adversarial_loss(*clouds)
    assert found.item() == pytest.approx(discrepancy, abs=1e-12)
    assert found >= 0


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "caf detached"])
def test_gradients(name: str) -> None:
    torch.manual_seed(0)
    d = 1 if name == "fisher" else 3
    for scale in (0.3, 1.0):
        clouds = tuple(
            (scale * torch.randn(n, d, dtype=torch.float64)).requires_grad_() for n in (6, 5)
        )
        # A new objective each time: fisher's multiplier moves with every loss.
        assert torch.autograd.gradcheck(lambda s, w: critic_loss(OBJECTIVES[name](), s, w), clouds)
        assert torch.autograd.gradcheck(OBJECTIVES[name]().adversarial_loss, clouds)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_encoder_feels_the_strong_only_where_that_is_declared(name: str) -> None:
    torch.manual_seed(0)
    objective = OBJECTIVES[name]()
    strong, weak = torch.randn(6, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = objective.adversarial_loss(strong, weak)
    of_strong, of_weak = torch.autograd.grad(loss, (strong, weak), allow_unused=True)
    assert of_weak.abs().max() > 0
    assert (of_strong is not None) == objective.moves_strong == (name == "gram")


def degenerate(case: str, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    sizes = (2, 2) if case.startswith("two and two") else (30, 20)
    strong, weak = (torch.randn(n, d) for n in sizes)
    match case.split(", ")[-1]:
        case "identical":
            return torch.full_like(strong, 0.3), torch.full_like(weak, 0.3)
        case "each group at a point":
            return torch.full_like(strong, 0.3), torch.full_like(weak, -0.3)
        case "all at the origin":
            return torch.zeros_like(strong), torch.zeros_like(weak)
        case "huge":
            return 1e4 * strong, 1e4 * weak
        case "far from the origin":
            return 1e4 + strong, 1e4 + weak
        case "tiny":
            return 1e-6 * strong, 1e-6 * weak
    return strong, weak


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "case",
    [
        "two and two",
        "two and two, identical",
        "two and two, huge",
        "identical",
        "each group at a point",
        "all at the origin",
        "huge",
        "far from the origin",
        "tiny",
    ],
)
def test_degenerate_features_give_finite_losses_and_gradients(name: str, case: str) -> None:
    objective = OBJECTIVES[name]()
    strong, weak = (z.requires_grad_() for z in degenerate(case, 1 if name == "fisher" else 16))
    losses = (
        critic_loss(objective, strong, weak),
        critic_loss(objective, strong, weak),  # fisher's multiplier has moved
        objective.adversarial_loss(strong, weak),
    )
    for loss in losses:
        assert torch.isfinite(loss)
        for gradient in torch.autograd.grad(loss, (strong, weak), allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all()
    assert all(torch.isfinite(term) for term in objective.terms.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_single_precision_is_near_double(name: str) -> None:
    torch.manual_seed(0)
    d = 1 if name == "fisher" else 16
    strong, weak = 0.5 * torch.randn(60, d), 0.5 * torch.randn(68, d)
    found = critic_loss(OBJECTIVES[name](), strong, weak)
    expected = critic_loss(OBJECTIVES[name](), strong.double(), weak.double())
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["caf", "fisher", "sphere", "gram"])
def test_a_critic_learns_to_part_two_groups(name: str) -> None:
    torch.manual_seed(0)
    h_strong, h_weak = torch.randn(40, 6) + 1, torch.randn(30, 6) - 1
    critic = Critic(6, n_latent=1 if name == "fisher" else 16)
    critic.eval()
    objective = OBJECTIVES[name]()
    adam = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for _ in range(60):
        loss = critic_loss(objective, critic(h_strong), critic(h_weak))
        adam.zero_grad()
        loss.backward()
        adam.step()
    z_strong, z_weak = critic(h_strong).detach(), critic(h_weak).detach()
    match name:
        case "caf":
            across = torch.cdist(z_strong, z_weak).square().mean()
            assert across > 3 * torch.pdist(z_strong).square().mean()
        case "fisher":
            assert z_strong.mean() > z_weak.mean() + 1
        case "sphere":
            assert pole_distances(z_strong).mean() > pole_distances(z_weak).mean() + 0.5
        case "gram":
            assert Gram().adversarial_loss(z_strong, z_weak) > 0.5


def test_the_critics_layers() -> None:
    layers = list(Critic(9216).layers)
    assert [type(layer) for layer in layers] == [
        nn.Linear, nn.Linear, nn.Dropout, nn.ReLU, nn.Linear, nn.Identity,
    ]  # fmt: skip
    sizes = [(x.in_features, x.out_features) for x in layers if isinstance(x, nn.Linear)]
    assert sizes == [(9216, 64), (64, 32), (32, 16)]
    assert layers[2].p == 0.2


def test_the_critic_computes_what_its_layers_say() -> None:
    torch.manual_seed(0)
    critic = Critic(10, n_latent=3).eval()
    h = torch.randn(4, 10)
    weights = [parameter.detach().numpy() for parameter in critic.parameters()]
    x = h.numpy() @ weights[0].T + weights[1]
    x = np.maximum(x @ weights[2].T + weights[3], 0) @ weights[4].T + weights[5]
    np.testing.assert_allclose(critic(h).detach(), x, rtol=1e-5, atol=1e-6)
    sigmoid = Critic(10, n_latent=3, sigmoid=True).eval()
    sigmoid.load_state_dict(critic.state_dict())
    np.testing.assert_allclose(sigmoid(h).detach(), 1 / (1 + np.exp(-x)), rtol=1e-5)
    critic.train()
    assert not torch.equal(critic(h), critic(h))


@pytest.mark.parametrize(("kind", "d"), [("caf", 16), ("sphere", 16), ("gram", 16), ("fisher", 1)])
def test_the_adversary_that_a_config_names(kind: str, d: int) -> None:
    made = make_critic(TrainConfig(critic=kind), 512)
    assert made is not None
    critic, objective = made
    assert type(objective).__name__.lower() == kind
    h = 100 * torch.randn(7, 512, generator=torch.Generator().manual_seed(0))
    assert critic(h).shape == (7, d)
    assert critic(h).abs().max() > 1
    bounded, _ = make_critic(TrainConfig(critic=kind, game=GameConfig(sigmoid=True)), 512)
    assert bounded(h).shape == (7, d)
    assert 0 <= bounded(h).min() <= bounded(h).max() <= 1


def test_no_critic_and_its_latent_size() -> None:
    assert make_critic(TrainConfig(critic="none"), 512) is None
    critic, _ = make_critic(TrainConfig(game=GameConfig(n_latent=5)), 512)
    assert critic(torch.zeros(2, 512)).shape == (2, 5)


def count(*networks: nn.Module) -> float:
    return sum(p.numel() for network in networks for p in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("backbone", "pool", "without", "with_critic", "digits"),
    [("alexnet", 6, 3.06, 3.65, 2), ("resnet18", 1, 11.2, 11.2, 1)],
)
def test_parameter_counts_are_the_papers(
    backbone: str, pool: int, without: float, with_critic: float, digits: int
) -> None:
    net = AVNet(backbone, pool).eval()
    critic = Critic(net.n_features)
    assert round(count(net), digits) == without
    assert round(count(net, critic), digits) == with_critic
    with torch.no_grad():
        assert net.encoder(torch.zeros(1, 3, 224, 224)).shape == (1, net.n_features)
