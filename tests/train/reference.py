"""CAF's grouping, margin and critic loss as ../shared/spec/caf.md writes them, sample by sample.

Nothing here is fast or shares code with train/: it is what the vectorised functions are compared
with, and the plain version that bench/train_step.py times. Labels and statistics are NumPy; the
margin and the critic loss are PyTorch, so that they have a gradient.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import torch


def otsu_candidates(values: np.ndarray) -> list[tuple[float, Fraction]]:
    """Each gap between two distinct values: its midpoint, and N² times the variance between."""
    distinct = sorted(set(values.tolist()))
    found = []
    for low, high in pairwise(distinct):
        below = [Fraction(x) for x in values.tolist() if x <= low]
        above = [Fraction(x) for x in values.tolist() if x >= high]
        apart = sum(below) / len(below) - sum(above) / len(above)
        found.append(((low + high) / 2, len(below) * len(above) * apart**2))
    return found


def inertia(values: np.ndarray, centres: np.ndarray) -> float:
    """Sum of the squared distances to the nearest centre."""
    return sum(min((x - c) ** 2 for c in centres.tolist()) for x in values.tolist())


def kmeans_by_trial(values: np.ndarray, k: int) -> tuple[float, np.ndarray]:
    """The least inertia over all cuts of the sorted values into k runs, and its centres."""
    ordered = np.sort(values)
    best, centres = math.inf, np.empty(0)
    for cuts in combinations(range(1, len(ordered)), k - 1):
        runs = np.split(ordered, cuts)
        cost = sum(((run - run.mean()) ** 2).sum() for run in runs)
        if cost < best:
            best, centres = cost, np.array([run.mean() for run in runs])
    return best, centres


def plain_partners(strong: torch.Tensor, weak: torch.Tensor) -> list[int]:
    """Of each strong row, the nearest weak row."""
    return [int(((row - weak) ** 2).sum(dim=1).argmin()) for row in strong.detach()]


def plain_neighbourhood(
    i: int, strong: torch.Tensor, weak: torch.Tensor, *, k_max: int = 10, margin: float = 0.7
) -> int:
    """K_i by the rule of Balsubramani et al.; with fewer than k_max others, all are the most."""
    to_strong, to_weak = (((strong[i] - z) ** 2).sum(dim=1).tolist() for z in (strong, weak))
    others = [(distance, True) for j, distance in enumerate(to_strong) if j != i]
    others += [(distance, False) for distance in to_weak]
    others.sort(key=lambda other: other[0])
    k_max = min(k_max, len(others))
    n_strong = 0
    for k, (_, is_strong) in enumerate(others[:k_max], start=1):
        n_strong += is_strong
        share = max(n_strong, k - n_strong) / k
        if share - 0.5 > margin / math.sqrt(k):
            return k
    return k_max


def plain_information(
    strong: torch.Tensor, weak: torch.Tensor, partners: list[int], *, sigma: float = 1.0
) -> torch.Tensor:
    """The first term of α̂: −½ log(1 − η²), at most 2.5."""
    columns = []
    for column in torch.cat([strong, weak]).T:
        mean = column.sum() / len(column)
        deviation = ((column - mean) ** 2).sum().div(len(column)).sqrt()
        standard = (column - mean) / deviation
        columns.append(torch.exp(-(standard**2) / (2 * sigma**2)))
    kernel = torch.stack(columns, dim=1)
    a = torch.cat([kernel[i] for i in range(len(strong))])
    b = torch.cat([kernel[len(strong) + j] for j in partners])
    a, b = a - a.mean(), b - b.mean()
    eta = (a * b).mean() / ((a**2).mean().sqrt() * (b**2).mean().sqrt())
    return (-0.5 * torch.log(1 - (eta**2).clamp(max=1 - 1e-6))).clamp(max=2.5)


def plain_deltas(
    strong: torch.Tensor, weak: torch.Tensor, *, kind: str = "adaptive", epoch: int = 0
) -> list[float]:
    """The second term of α̂ of each strong sample."""
    if kind == "constant":
        return [0.2] * len(strong)
    if kind == "linear":
        return [0.1 + epoch * 5e-3] * len(strong)
    n = len(strong) + len(weak)
    strong, weak = strong.detach(), weak.detach()
    sizes = [plain_neighbourhood(i, strong, weak) for i in range(len(strong))]
    return [math.log(n / 0.05) / (2 * size) for size in sizes]


def plain_critic_loss(
    strong: torch.Tensor,
    weak: torch.Tensor,
    *,
    pairs: str = "all",
    chi2_weight: float = 1.0,
    kind: str = "adaptive",
    epoch: int = 0,
    partners: list[int] | None = None,
    detach: bool = False,
) -> torch.Tensor:
    """L_c of strong (N_s, d) and weak (N_w, d) features, pair by pair, with the paper's constants.

    partners: of each strong row, for the mutual information; the nearest weak rows if None.
    """
    information = plain_information(strong, weak, partners or plain_partners(strong, weak))
    if detach:
        information = information.detach()
    alphas = [information + d for d in plain_deltas(strong, weak, kind=kind, epoch=epoch)]
    p, q = list(strong), list(weak)
    within, across = [], []
    for i, j in _pairs_within(len(p), pairs):
        within.append(((p[i] - p[j]) ** 2).sum())
    for i, j in _pairs_across(len(p), len(q), pairs):
        across.append((alphas[i] - ((p[i] - q[j]) ** 2).sum()).clamp(min=0))
    f_within, f_across = torch.stack(within), torch.stack(across)
    chi2 = 0.5 * (f_within**2).mean() + 0.5 * (f_across**2).mean()
    return f_within.mean() + 0.5 * f_across.mean() + 0.25 * chi2_weight * chi2


def _pairs_within(n: int, pairs: str) -> Iterator[tuple[int, int]]:
    if pairs == "matched":  # with the strong before it; the spec asks for one partner, any
        yield from ((i, i - 1) for i in range(n))
    else:
        yield from ((i, j) for i in range(n) for j in range(n) if i != j)


def _pairs_across(n_strong: int, n_weak: int, pairs: str) -> Iterator[tuple[int, int]]:
    if pairs == "matched":
        yield from ((i, i % n_weak) for i in range(n_strong))
    else:
        yield from ((i, j) for i in range(n_strong) for j in range(n_weak))
