"""L_AV against SciPy and by gradcheck; constant batches stay finite."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from train.losses import av_loss, ccc, pcc, rmse
from vafer import metrics


@given(n=st.integers(3, 60), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_statistics_equal_scipy_and_the_metrics(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, y = rng.uniform(-1, 1, (2, n, 2))
    tensors = torch.tensor(p), torch.tensor(y)
    for i in range(2):
        expected = stats.pearsonr(y[:, i], p[:, i]).statistic
        assert pcc(*tensors)[i].item() == pytest.approx(expected, abs=1e-5)
        assert ccc(*tensors)[i].item() == pytest.approx(metrics.ccc(y[:, i], p[:, i]), abs=1e-5)
        assert rmse(*tensors)[i].item() == pytest.approx(metrics.rmse(y[:, i], p[:, i]), abs=1e-9)


def test_the_loss_is_the_papers_sum() -> None:
    rng = np.random.default_rng(0)
    p, y = (torch.tensor(a) for a in rng.uniform(-1, 1, (2, 20, 2)))
    l_pcc = 1 - (pcc(p, y)[0] + pcc(p, y)[1]) / 2
    l_ccc = 1 - (ccc(p, y)[0] + ccc(p, y)[1]) / 2
    expected = rmse(p, y)[0] + rmse(p, y)[1] + 0.5 * (l_pcc + l_ccc)
    assert av_loss(p, y).item() == pytest.approx(expected.item(), abs=1e-12)
    assert av_loss(y, y).item() == pytest.approx(0, abs=1e-3)


def test_gradients() -> None:
    torch.manual_seed(0)
    p = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    y = torch.rand(6, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: av_loss(x, y), p)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_constant_batches_give_zero_correlation_and_finite_gradients(n: int) -> None:
    varied = torch.linspace(-1, 1, n)[:, None].repeat(1, 2)
    flat = torch.full((n, 2), 0.3)
    for p, y in ((flat, varied), (varied, flat), (flat, flat)):
        p = p.clone().requires_grad_()
        assert pcc(p, y).abs().max() < 1e-3
        assert ccc(p, y).abs().max() < 1e-3
        av_loss(p, y).backward()
        assert torch.isfinite(p.grad).all()
