"""The ELBO's decompositions against closed forms, and as identities."""

import math
from dataclasses import astuple
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from truths import linear_gaussian_posterior

from inference import evaluate, fit, make_guide
from inference.draws.sampler import sample
from inference.judging.surgery import operate
from inference.pairs.gate import admit
from inference.testing.toys import GlobalLocal, LinearGaussian, SwitchedGaussian
from zoo.hierarchical import HierarchicalVAE
from zoo.vae import VAE


def guide_of(toy, x):
    g = {k: v.detach() for k, v in toy.guide_.items()}
    return Normal(x @ g["a"].T + g["c"], g["log_scale"].exp())


def test_reconstruction_and_kl():
    toy = LinearGaussian()
    x = toy.data()
    parts = evaluate(toy, x, particles=20_000)
    q, w, b = guide_of(toy, x), toy.p["w"].detach(), toy.p["b"].detach()
    kl = kl_divergence(q, Normal(torch.zeros(2).double(), 1.0)).sum(1).mean()
    residual = x - q.mean @ w.T - b
    spread = (q.variance @ w.square().T).sum(1)
    reconstruction = (
        -1.5 * math.log(2 * math.pi) - 0.5 * (residual.square().sum(1) + spread)
    ).mean()
    noise = 5 * 4 / math.sqrt(20_000 * 5)  # 5 standard errors; log densities have sd below 4
    assert abs(parts.kl["z"] - kl) < noise and abs(parts.reconstruction - reconstruction) < noise
    assert math.isclose(parts.elbo, parts.reconstruction - parts.kl["z"], rel_tol=1e-12)


def test_one_divergence_per_latent():
    pair = HierarchicalVAE(6, (3, 2), hidden=((5,), (4,)))
    x = torch.bernoulli(torch.full((8, 6), 0.5))
    parts = evaluate(pair, x, particles=10)
    assert set(parts.kl) == {"z_1", "z_2"}
    assert math.isclose(parts.elbo, parts.reconstruction - sum(parts.kl.values()), rel_tol=1e-5)


@pytest.mark.parametrize("kind", ["mean-field", "full-rank"])
def test_latents_drawn_jointly_have_one_divergence(kind):
    toy = GlobalLocal()
    x = toy.data()
    guide = make_guide(kind, toy.model)
    guide(x)
    parts = evaluate(toy.model, guide, x, particles=50)
    assert ("latents" in parts.kl) == (kind == "full-rank")
    assert math.isclose(parts.elbo, parts.reconstruction - sum(parts.kl.values()), rel_tol=1e-9)


def test_evidence_and_gap():
    toy = LinearGaussian()
    x = toy.data()
    parts = evaluate(toy, x, particles=50_000)
    posterior = linear_gaussian_posterior(x, toy.p["w"].detach(), toy.p["b"].detach())
    exact = Normal(posterior.mean, posterior.variance.sqrt())
    gap = kl_divergence(guide_of(toy, x), exact).sum(1).mean()
    assert math.isclose(parts.elbo, parts.log_px - parts.gap, rel_tol=1e-12)
    assert abs(parts.log_px - toy.log_px(x).item() / 5) < 0.05
    assert abs(parts.gap - gap) < 0.06
    tight = evaluate(LinearGaussian(exact=True), x, particles=10)
    assert abs(tight.gap) < 1e-12 and tight.gap_se < 1e-12


def test_global_latents_are_joint():
    toy = GlobalLocal(exact=True)
    x = toy.data()
    parts = evaluate(toy.model, toy.guide, x, particles=50)
    assert parts.unit == "nats" and math.isclose(parts.log_px, toy.log_px(x), rel_tol=1e-12)
    assert parts.log_px_se < 1e-12 and parts.gap_se < 1e-12
    assert parts.surgery is None


def test_a_prior_that_was_summed_out_has_no_divergence():
    toy = SwitchedGaussian()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    parts = evaluate(toy.model, guide, toy.data(), particles=30)
    assert parts.surgery is None


class Coder(nn.Module):
    """q(z_i | x_i) = N(c x_i, s²), the prior N(0, I)."""

    def __init__(self, slope, scale):
        super().__init__()
        self.slope, self.scale = slope, scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean = self.slope * x
            pyro.sample("z", dist.Normal(mean, self.scale).to_event(1))


def test_surgery_by_hand():
    x = torch.randn(30, 2).double()
    pair = Coder(0.9, 0.5)
    drawn = sample(admit(pair, x), 1, lambda chunk: (chunk.weights, operate(chunk, rows=10_000)))
    weights, parts = next(drawn)
    z = weights.guide["z"].value.detach()
    pairs = Normal(0.9 * x, torch.tensor(0.5).double()).log_prob(z[:, None]).sum(2)  # (z, x)
    aggregate = torch.logsumexp(pairs, 1) - math.log(30)
    prior = Normal(torch.zeros(2).double(), 1.0).log_prob(z).sum(1)
    information, marginal = parts.mutual_information.value, parts.marginal_kl.value
    assert math.isclose(information, (pairs.diagonal() - aggregate).mean())
    assert math.isclose(marginal, (aggregate - prior).mean(), rel_tol=1e-9)
    assert math.isclose(parts.kl.value, information + marginal, rel_tol=1e-12)
    assert parts.n == 30 and "30 rows" in str(evaluate(pair, x, particles=2))


def test_mutual_information_has_its_limits():
    x = torch.randn(40, 2).double()
    ignored = evaluate(Coder(0.0, 1.0), x, particles=2).surgery  # z ignores x and is the prior
    assert abs(ignored.mutual_information.value) < 1e-12
    assert abs(ignored.marginal_kl.value) < 1e-12
    apart = evaluate(Coder(1e4, 1e-3), x, particles=2).surgery  # z names its row
    assert math.isclose(apart.mutual_information.value, math.log(40), rel_tol=1e-12)
    assert evaluate(Coder(1e4, 1e-3), x, particles=2, surgery=7).surgery.n == 7


def test_surgery_of_hierarchies_and_runs():
    x = torch.bernoulli(torch.full((12, 6), 0.5))
    pair = HierarchicalVAE(6, (3, 2), hidden=((5,), (4,)))
    checked = admit(pair, x)
    whole = next(sample(checked, 1, partial(operate, rows=10_000)))
    chunked = next(sample(checked, 1, partial(operate, rows=24)))  # two shifts at a time
    for a, b in zip(astuple(whole)[:3], astuple(chunked)[:3]):
        assert np.allclose(a[:2], b[:2], rtol=1e-5)
    run = fit(VAE(6, latent_dim=2, hidden=(5,)), x, steps=20, batch_size=6, progress=False)
    parts = evaluate(run, x, particles=20)
    assert parts.surgery.mutual_information.value < math.log(
        12
    )  # each row's own term is in the mean
    assert {"gap", "mutual_information", "marginal_kl"} <= set(parts.to_dict())
