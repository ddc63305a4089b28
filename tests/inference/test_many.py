import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from inference import fit_many, log_weights


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_one_fit_per_data_set_finds_each_posterior():
    x = torch.randn(20, 8) + torch.linspace(-3, 3, 20)[:, None]
    many = fit_many(
        model, AutoNormal(model), (x,), stacked=[0], steps=800, lr=0.05, schedule="cosine",
        compile=False,
    )  # fmt: skip
    assert len(many) == 20
    exact = x.sum(1) / 9  # conjugate: N(Σx / (n + 1), 1 / (n + 1))
    found = torch.stack([run.params["AutoNormal.locs.mu"] for run in many])
    assert (found - exact).abs().max() < 0.1 * (1 / 9) ** 0.5 * 3
    run = many[3]
    weights = log_weights(run.model, run.guide, x[3], particles=500)
    truth = dist.MultivariateNormal(torch.zeros(8), torch.eye(8) + torch.ones(8, 8)).log_prob(x[3])
    assert abs((weights.elbo().mean() - truth).item()) < 0.1


def test_restarts_start_apart_and_share_the_data():
    x = torch.randn(8)
    many = fit_many(model, AutoNormal(model), (x,), fits=5, steps=3, compile=False)
    assert len({round(float(v), 6) for v in many.params["AutoNormal.locs.mu_unconstrained"]}) == 5
    assert np.shape(many.losses) == (3, 5) and np.isfinite(many.losses).all()
    assert repr(many).startswith("Runs(5 fits, 3 steps, eager") and len(repr(many)) < 150


def test_noise_differs_between_fits():
    x = torch.randn(8)
    many = fit_many(model, AutoNormal(model), (x,), fits=4, steps=1, jitter=0.0, compile=False)
    assert len(set(many.losses[0].tolist())) == 4


@pytest.mark.parametrize("kwargs", [{}, {"fits": 0}, {"fits": 3, "stacked": [0]}])
def test_bad_numbers_of_fits(kwargs):
    with pytest.raises(ValueError, match="fits"):
        fit_many(model, AutoNormal(model), (torch.randn(2, 8),), **kwargs)
