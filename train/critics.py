"""The critic and what it plays for: CAF's contrastive function, and its rivals of Table 4.

An objective gives two losses of the latent features of a batch, strong (N_s, d) and weak (N_w, d):
the one that the critic minimises, and the one that the encoder minimises. Both groups have at least
two members; all losses are scalars.
"""

import math
from typing import Protocol

import torch
from torch import nn

from train.config import CriticKind, GameConfig, MarginConfig, TrainConfig
from train.margins import margins, squared_distances

FISHER_RHO = 1e-6
SPHERE_MOMENTS = (1, 2, 3)
GRAM_BANDWIDTHS = (1.0, math.sqrt(2), 2.0, 2 * math.sqrt(2), 4.0)
GRAM_RIDGE = 1e-3
TINY = 1e-12


class Critic(nn.Module):
    """f_c: encoder features h (N, n_features) → latent features z (N, n_latent).

    sigmoid: a bound of the output, which the paper does not have.
    """

    def __init__(self, n_features: int, *, n_latent: int = 16, sigmoid: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features, 64),
            nn.Linear(64, 32),
            nn.Dropout(0.2),
            nn.ReLU(),
            nn.Linear(32, n_latent),
            nn.Sigmoid() if sigmoid else nn.Identity(),
        )

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.layers(h)


class Objective(Protocol):
    """What critic and encoder play for.

    terms: of the last critic loss, detached, for the log. moves_strong: whether the adversarial
    loss has a gradient for the strong too.
    """

    terms: dict[str, torch.Tensor]
    moves_strong: bool

    def critic_loss(
        self, strong: torch.Tensor, weak: torch.Tensor, *, epoch: int, generator: torch.Generator
    ) -> torch.Tensor: ...

    def adversarial_loss(self, strong: torch.Tensor, weak: torch.Tensor) -> torch.Tensor: ...

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to keep."""
        ...

    def load_state(self, state: dict[str, torch.Tensor]) -> None: ...


def make_critic(config: TrainConfig, n_features: int) -> tuple[Critic, Objective] | None:
    """The adversary that a config names, on the CPU; None for `none`."""
    kind: CriticKind = config.critic
    if kind == "none":
        return None
    objective: Objective
    match kind:
        case "caf":
            objective = Caf(config.game, config.margin)
        case "fisher":
            objective = Fisher()
        case "sphere":
            objective = Sphere()
        case "gram":
            objective = Gram()
    n_latent = 1 if kind == "fisher" else config.game.n_latent
    return Critic(n_features, n_latent=n_latent, sigmoid=config.game.sigmoid), objective


class _Stateless:
    moves_strong = False

    def __init__(self) -> None:
        self.terms: dict[str, torch.Tensor] = {}

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        pass


class Caf(_Stateless):
    """Kim & Song 2021: strong samples draw together and push the weak ones beyond a margin."""

    def __init__(self, game: GameConfig, margin: MarginConfig) -> None:
        super().__init__()
        self.game, self.margin = game, margin

    def critic_loss(
        self, strong: torch.Tensor, weak: torch.Tensor, *, epoch: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Eqs. (3), (6), (7): attraction + ½ repulsion + ¼ λ (½ E_PP f² + ½ E_PQ f²).

        Within the strong f = −D², across f = max{0, α̂ − D²}, Eq. (4).
        """
        within = squared_distances(strong, strong)
        across = squared_distances(strong, weak)
        information, delta = margins(
            strong, weak, within, across, self.margin, epoch=epoch, generator=generator
        )
        self.terms = {"margin_mi": information.detach(), "margin_delta": delta.mean()}
        hinge = ((information + delta)[:, None] - across).clamp_min(0)
        if self.game.pairs == "matched":  # batches are drawn in random order, so places are random
            i = torch.arange(len(strong), device=strong.device)
            attraction, hinge = within[i, i.roll(1)], hinge[i, i % len(weak)]
            e_within, e_within_squared = attraction.mean(), attraction.square().mean()
        else:
            n_pairs = len(strong) * (len(strong) - 1)  # the diagonal is 0
            e_within, e_within_squared = within.sum() / n_pairs, within.square().sum() / n_pairs
        chi2 = 0.5 * e_within_squared + 0.5 * hinge.square().mean()
        return e_within + 0.5 * hinge.mean() + 0.25 * self.game.chi2_weight * chi2

    def adversarial_loss(self, strong: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
        """−E_Q z over samples and dimensions (Algorithm 1, line 7), or E_Q D² to the mean of P.

        The critic loss knows distances alone: it is the same for z and for −z + c, so a larger z
        need not be a stronger one, and −E_Q z falls without end. The second has the paper's aim,
        and a floor.
        """
        if self.game.adv_loss == "distance":
            return (weak - strong.mean(dim=0).detach()).square().sum(dim=1).mean()
        return -weak.mean()


class Fisher:
    """Fisher IPM (Mroueh & Sercu 2017): a scalar critic whose second moment is held at 1.

    Its multiplier Λ starts at 0 and moves with each critic loss.
    """

    moves_strong = False

    def __init__(self) -> None:
        self.terms: dict[str, torch.Tensor] = {}
        self.multiplier = torch.zeros(())

    def critic_loss(
        self, strong: torch.Tensor, weak: torch.Tensor, *, epoch: int, generator: torch.Generator
    ) -> torch.Tensor:
        """−[E_P f − E_Q f + Λ(1 − Ω) − (ρ/2)(1 − Ω)²], Ω = ½ E_P f² + ½ E_Q f²; Λ −= ρ(1 − Ω)."""
        excess = 1 - 0.5 * (strong.square().mean() + weak.square().mean())
        multiplier = self.multiplier.to(strong.device)
        gain = strong.mean() - weak.mean() + multiplier * excess
        self.multiplier = multiplier - FISHER_RHO * excess.detach()
        return -(gain - 0.5 * FISHER_RHO * excess.square())

    def adversarial_loss(self, strong: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
        """−E_Q f."""
        return -weak.mean()

    def state(self) -> dict[str, torch.Tensor]:
        return {"multiplier": self.multiplier}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.multiplier = state["multiplier"]


class Sphere(_Stateless):
    """SphereGAN (Park & Kwon 2020): moments of the geodesic distance to the hypersphere's pole."""

    def critic_loss(
        self, strong: torch.Tensor, weak: torch.Tensor, *, epoch: int, generator: torch.Generator
    ) -> torch.Tensor:
        """−Σ_r (E_P d^r − E_Q d^r), r = 1, 2, 3."""
        return _moments(weak) - _moments(strong)

    def adversarial_loss(self, strong: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
        """−Σ_r E_Q d^r."""
        return -_moments(weak)


def pole_distances(z: torch.Tensor) -> torch.Tensor:
    """Geodesic distance to the north pole: z (N, d) → (N,), 0 to π; the origin is the south pole.

    Inverse stereographic projection puts z at height (|z|² − 1) / (|z|² + 1), whose arc cosine is
    2 arctan(1 / |z|).
    """
    length = (z.square().sum(dim=1) + TINY).sqrt()
    return 2 * torch.atan2(torch.ones_like(length), length)


def _moments(z: torch.Tensor) -> torch.Tensor:
    distance = pole_distances(z)
    return torch.stack([(distance**r).mean() for r in SPHERE_MOMENTS]).sum()


class Gram(_Stateless):
    """GramNet (Srivastava et al. 2019): the groups' density ratio, matched by Gram matrices."""

    moves_strong = True

    def critic_loss(
        self, strong: torch.Tensor, weak: torch.Tensor, *, epoch: int, generator: torch.Generator
    ) -> torch.Tensor:
        """−E_Q (r̂ − 1)², r̂ = (K_ww + εI)⁻¹ K_ws 1 · N_w / N_s: Pearson's divergence.

        In float64: near-equal features make K_ww all but singular, and its float32 solution noise.
        """
        dtype = strong.dtype
        strong, weak = strong.double(), weak.double()
        ridge = GRAM_RIDGE * torch.eye(len(weak), device=weak.device, dtype=weak.dtype)
        towards = gaussian_kernels(weak, strong).sum(dim=1) * (len(weak) / len(strong))
        # `solve` would wait for the device, to see whether the matrix is singular; it is not.
        ratio, _ = torch.linalg.solve_ex(gaussian_kernels(weak, weak) + ridge, towards)
        return -(ratio - 1).square().mean().to(dtype)

    def adversarial_loss(self, strong: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
        """The squared maximum mean discrepancy of the groups, over all pairs."""
        return (
            gaussian_kernels(strong, strong).mean()
            + gaussian_kernels(weak, weak).mean()
            - 2 * gaussian_kernels(strong, weak).mean()
        )


def gaussian_kernels(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of the Gaussian kernels of all bandwidths: (N, d), (M, d) → (N, M)."""
    distances = squared_distances(a, b)
    kernels = [torch.exp(-distances / (2 * width**2)) for width in GRAM_BANDWIDTHS]
    return torch.stack(kernels).sum(dim=0)
