import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from inference.draws.psis import ess, khat, psis


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("draws", [30, 400, 4_000])
def test_equals_arviz(spread, draws):
    log_w = spread * torch.randn(draws, 5, dtype=torch.float64)
    smooth, k = psis(log_w)
    theirs, their_k = array_stats.psislw(-log_w.T.numpy(), axis=-1)  # takes minus log weights
    np.testing.assert_allclose(k, their_k, rtol=1e-10)
    np.testing.assert_allclose(smooth.T, theirs, atol=1e-10)


def test_recovers_the_shape_of_a_pareto_tail():
    # u^(-k) has a generalised Pareto tail of shape k; 200 repetitions give a standard error
    k = 0.6
    estimates = khat(-k * torch.log(torch.rand(20_000, 200, dtype=torch.float64)))
    error = estimates.std() / 200**0.5
    assert (
        abs(estimates.mean() - k) < 4 * error + 0.01
    )  # the prior pulls by 10 / 434 of 0.1, and the tail is finite


def test_equal_weights_have_no_tail():
    log_w = torch.zeros(100, 2)
    assert (khat(log_w) == -math.inf).all()
    assert khat(torch.cat([torch.zeros(1, 1), torch.full((99, 1), -800.0)])) == math.inf
    torch.testing.assert_close(ess(log_w), torch.full((2,), 100.0))


def test_too_few_draws():
    with pytest.raises(ValueError, match="at least 25"):
        psis(torch.zeros(10))
