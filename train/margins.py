"""The margin α̂ of the contrastive function: how hard the critic's task is (Eqs. (5), (8)).

α̂_i = I + Δ_i: the mutual information of the two groups, plus a bound on the confidence in sample i.
All statistics are of the batch: strong features (N_s, d), weak ones (N_w, d), N = N_s + N_w.
"""

import math

import torch

from train.config import MarginConfig

MAX_ETA_SQUARED = 1 - 1e-6
MAX_INFORMATION = 2.5  # nats
TINY = 1e-12


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """D² of all pairs: (N, d), (M, d) → (N, M).

    By differences, not by |a|² + |b|² − 2ab, which loses what separates near points.
    """
    return (a[:, None] - b[None]).square().sum(dim=2)


def margins(
    strong: torch.Tensor,
    weak: torch.Tensor,
    within: torch.Tensor,
    across: torch.Tensor,
    config: MarginConfig,
    *,
    epoch: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms of α̂: mutual information, a scalar, and Δ of each strong sample, (N_s,).

    within (N_s, N_s), across (N_s, N_w): their squared distances. epoch: finished passes over the
    data, for `linear`. generator: for `random` pairing. The gradient flows through the first term.
    """
    if config.pairing == "nearest":
        partner = across.detach().argmin(dim=1)
    else:
        drawn = torch.randint(len(weak), (len(strong),), generator=generator)
        partner = drawn.to(strong.device, non_blocking=True)
    information = mutual_information(strong, weak, partner, sigma=config.sigma)
    if config.detach:
        information = information.detach()
    if config.kind == "constant":
        return information, strong.new_full((len(strong),), config.constant)
    if config.kind == "linear":
        value = config.linear_start + epoch * config.linear_step
        return information, strong.new_full((len(strong),), value)
    k = neighbourhoods(within, across, k_max=config.k_max, margin=config.neighbour_margin)
    n = len(strong) + len(weak)
    return information, math.log(n / config.confidence) / (2 * k.to(strong.dtype))


def mutual_information(
    strong: torch.Tensor, weak: torch.Tensor, partner: torch.Tensor, *, sigma: float
) -> torch.Tensor:
    """−½ log(1 − η²), Eq. (5) → scalar, 0 to 2.5 nats.

    η: Pearson's correlation, over rows and dimensions, of g of the strong rows with g of their
    partners among the weak, partner (N_s,). g: Gaussian kernel of the features, standardised over
    the batch. Constant features give 0, with gradient 0.
    """
    both = torch.cat([strong, weak])
    centred = both - both.mean(dim=0)
    variance = centred.square().mean(dim=0)
    standard = centred / torch.where(variance > TINY, variance, 1.0).sqrt()
    kernel = torch.exp(-standard.square() / (2 * sigma**2))
    a = kernel[: len(strong)]
    b = kernel[len(strong) :][partner]
    a, b = a - a.mean(), b - b.mean()
    variance_a, variance_b = a.square().mean(), b.square().mean()
    defined = torch.minimum(variance_a, variance_b) > TINY
    squared = (a * b).mean().square() / torch.where(defined, variance_a * variance_b, 1.0)
    eta_squared = torch.where(defined, squared, 0.0).clamp_max(MAX_ETA_SQUARED)
    return (-0.5 * torch.log1p(-eta_squared)).clamp_max(MAX_INFORMATION)


def neighbourhoods(
    within: torch.Tensor, across: torch.Tensor, *, k_max: int, margin: float
) -> torch.Tensor:
    """K_i of each strong sample, by the rule of Balsubramani et al. (2019) → int64 (N_s,).

    The smallest k for which the share of one group among the k nearest others exceeds ½ by more
    than margin / √k; where there is none, the largest neighbourhood: k_max, or all others if fewer.
    """
    n_strong = len(within)
    itself = torch.eye(n_strong, dtype=torch.bool, device=within.device)
    others = torch.cat([within.detach().masked_fill(itself, torch.inf), across.detach()], dim=1)
    k_max = max(1, min(k_max, others.shape[1] - 1))
    nearest = others.topk(k_max, largest=False).indices
    k = torch.arange(1, k_max + 1, device=within.device)
    share = (nearest < n_strong).to(within.dtype).cumsum(dim=1) / k
    is_decided = torch.maximum(share, 1 - share) - 0.5 > margin / k.sqrt()
    first = is_decided.to(torch.int64).argmax(dim=1) + 1
    return torch.where(is_decided.any(dim=1), first, k_max)
