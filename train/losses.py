"""The regression loss of CAF: L_AV = L_RMSE + ½ (L_PCC + L_CCC), Kim & Song, AAAI 2021.

All statistics are over the batch in population form (ddof = 0). Where labels or predictions are
constant, PCC and CCC are 0 and their gradient is finite.
"""

import torch

TINY = 1e-12  # below it, a product of float32 variances is rounding


def rmse(predicted: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Per dimension: (N, 2), (N, 2) → (2,)."""
    return (predicted - label).square().mean(dim=0).clamp_min(TINY).sqrt()


def pcc(predicted: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Per dimension: (N, 2), (N, 2) → (2,)."""
    _, covariance, variance_p, variance_l = _moments(predicted, label)
    return _ratio(covariance, variance_p * variance_l, root=True)


def ccc(predicted: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Per dimension: (N, 2), (N, 2) → (2,)."""
    shift, covariance, variance_p, variance_l = _moments(predicted, label)
    return _ratio(2 * covariance, variance_p + variance_l + shift.square(), root=False)


def av_loss(predicted: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """L_AV: predictions and labels (N, 2), columns valence and arousal → scalar."""
    loss_pcc = 1 - pcc(predicted, label).mean()
    loss_ccc = 1 - ccc(predicted, label).mean()
    return rmse(predicted, label).sum() + 0.5 * (loss_pcc + loss_ccc)


def _ratio(numerator: torch.Tensor, below: torch.Tensor, *, root: bool) -> torch.Tensor:
    """numerator / below, or / its square root; 0 with gradient 0 where `below` vanishes."""
    defined = below > TINY
    safe = torch.where(defined, below, 1.0)
    return torch.where(defined, numerator / (safe.sqrt() if root else safe), 0.0)


def _moments(
    predicted: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Difference of means, covariance and both variances per dimension, each (2,)."""
    p, q = predicted - predicted.mean(dim=0), label - label.mean(dim=0)
    return (
        predicted.mean(dim=0) - label.mean(dim=0),
        (p * q).mean(dim=0),
        p.square().mean(dim=0),
        q.square().mean(dim=0),
    )
