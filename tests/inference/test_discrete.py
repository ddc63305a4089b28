"""Estimators for discrete latents on a model of 2^10 states, against sums over all of them."""

import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal

from inference import compare, elbo
from inference.draws.measures import Moments
from inference.judging.comparison.gradients import Gradients
from inference.pairs.pair import Pair

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "discrete_estimators.py"))
STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=10))).double()
X = torch.tensor([-1.0, 1.6]).double()


def densities(pair, x):
    """log p(x, k) and log q(k | x) of all states, (1024, rows)."""
    prior = Bernoulli(logits=pair.log_odds).log_prob(STATES).sum(1, keepdim=True)
    log_p = prior + Normal((STATES @ pair.effect)[:, None], 0.5**0.5).log_prob(x)
    logits = pair.offset + pair.slope * x[:, None]
    log_q = Bernoulli(logits=logits).log_prob(STATES[:, None]).sum(2)
    return log_p, log_q


def exact(pair, x, particles):
    """E_q of the K-sample bound, K = 1 or 2, over all states or pairs of states: a scalar."""
    log_p, log_q = densities(pair, x)
    log_w = log_p - log_q
    if particles == 1:
        return (log_q.exp() * log_w).sum()
    both = torch.logaddexp(log_w[:, None], log_w[None]) - np.log(2)
    return ((log_q[:, None] + log_q[None]).exp() * both).sum()


def flat(pair, value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(pair.parameters()))])


def test_enum_is_the_sum_over_all_states():
    pair = EXAMPLE["Causes"]()
    value, surrogate = elbo.Enum().value_and_surrogate(pair.model, pair.guide, X)
    truth = exact(pair, X, 1)
    assert torch.allclose(value, truth, rtol=1e-12)
    assert torch.allclose(flat(pair, surrogate), flat(pair, truth), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "estimator, particles",
    [
        (elbo.Trace(2), 1),
        (elbo.Score(2), 1),
        (elbo.Score(1, baseline="data"), 1),
        (elbo.Score(2, baseline=None), 1),
        (elbo.VIMCO(2), 2),
        (elbo.IWAE(2), 2),
    ],
    ids=lambda v: repr(v) if isinstance(v, elbo.Estimator) else "",
)
def test_drawn_gradients_have_the_exact_mean(estimator, particles):
    pair = EXAMPLE["Causes"]()
    truth = exact(pair, X, particles)
    gradient = flat(pair, truth)
    sampler = Gradients(Pair(pair.model, pair.guide, (X,)), estimator, (X,), replicates=4_000)
    values, rows = sampler(0)
    order = torch.cat([torch.arange(s.start, s.stop) for n, s in sampler.slices.items()])
    assert list(sampler.slices) == [n for n, _ in pair.named_parameters()] and len(order) == 40
    moments = Moments()
    moments.add(rows)
    se = (moments.variance / moments.n).sqrt()
    assert ((moments.mean - gradient).abs() < 5 * se + 1e-9).all()
    assert abs(values.mean() - truth.detach()) < 5 * values.std() / 4_000**0.5


@pytest.mark.slow
def test_variances_are_in_the_known_order():
    """Enum < Score with a baseline < Score without; VIMCO < IWAE's plain score."""
    pair = EXAMPLE["Causes"]()
    listed = [elbo.Enum(), elbo.Score(4), elbo.Score(4, baseline=None), elbo.VIMCO(4), elbo.IWAE(4)]
    found = compare(pair, X, listed, draws=400, compile=False)
    variance = dict(zip(found.estimator.values, found.variance.sel(group="guide").values))
    assert variance["Enum(1)"] == 0
    assert variance["Score(4)"] < 0.7 * variance["Score(4, baseline=None)"]
    assert variance["VIMCO(4)"] < 0.7 * variance["IWAE(4)"]
    log_p, _ = densities(pair, X)
    assert abs(2 * found.attrs["log_px"] - torch.logsumexp(log_p, 0).sum().item()) < 1e-10


@pytest.mark.slow
def test_the_example(tmp_path):
    found = EXAMPLE["main"](out=tmp_path / "discrete.png", particles=(2, 4), draws=20)
    assert (tmp_path / "discrete.png").stat().st_size > 10_000
    assert found.recommendation == "Enum(1)"
