import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference import evaluate, fit
from zoo.data import load
from zoo.vae import VAE


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x ~ N(Wz, I): posterior N(Vx, C), C = (I + W'W)^(-1), V = CW'."""

    def __init__(self, spread=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = torch.randn(5, 2, generator=generator, dtype=torch.float64)
        self.cov = torch.linalg.inv(torch.eye(2) + self.w.T @ self.w)
        self.spread = spread

    def log_px(self, x):
        cov = torch.eye(5, dtype=x.dtype) + self.w @ self.w.T
        return dist.MultivariateNormal(torch.zeros(5, dtype=x.dtype), cov).log_prob(x)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w.T, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            cov = self.cov * self.spread
            pyro.sample("z", dist.MultivariateNormal(x @ self.w @ self.cov, cov))


X = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_exact_posterior_gives_log_px_exactly():
    pair = LinearGaussian()
    e = evaluate(pair, X, particles=30)
    truth = float(pair.log_px(X).mean())
    assert e.log_px == pytest.approx(truth, abs=1e-9)
    assert e.elbo == pytest.approx(truth, abs=1e-9)
    assert e.log_px_mc_se == pytest.approx(0, abs=1e-9)
    assert e.unit == "nats per datum" and e.n == 40


def test_wide_guide_is_below_by_its_divergence_and_importance_sampling_mends_it():
    pair = LinearGaussian(spread=1.5)
    e = evaluate(pair, X, particles=4_000, rows=7_000)  # many chunks
    truth = float(pair.log_px(X).mean())
    kl = 0.5 * 2 * (1.5 - 1 - torch.tensor(1.5).log())  # KL(N(m, 1.5 C) || N(m, C))
    assert e.elbo == pytest.approx(truth - float(kl), abs=0.02)
    assert abs(e.log_px - truth) < 4 * e.log_px_mc_se + 1e-4
    assert e.khat_above == 0
    assert e.reconstruction - e.kl["z"] == pytest.approx(e.elbo, abs=1e-9)


def test_chunks_do_not_change_the_law_and_kl_per_dim_sums():
    digits = load("digits", pixels="dynamic")
    run = fit(VAE(64, 3, hidden=(16,)), digits, steps=40, compile=False, progress=False)
    e = evaluate(run, digits.test, particles=200)
    small = evaluate(run, digits.test, particles=200, rows=2_000, seed=1)
    assert abs(e.log_px - small.log_px) < 5 * (e.log_px_mc_se + small.log_px_mc_se)
    # the closed form against its Monte Carlo estimate
    assert float(e.kl_per_dim["z"].sum()) == pytest.approx(e.kl["z"], abs=0.05)
    assert 0 <= e.active_units["z"] <= 3
    assert e.bits_per_dim == pytest.approx(-e.log_px / (64 * 0.6931471805599453))
    assert "ELBO" in str(e) and set(e.to_dict()) >= {
        "elbo",
        "log_px",
        "log_px_se",
        "khat_above_0.7",
    }


def test_global_latents_are_judged_jointly():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(x.sum() / (len(x) + 1), (len(x) + 1) ** -0.5))

    x = X[:, 0]
    e = evaluate(model, guide, x, particles=50)
    truth = dist.MultivariateNormal(
        torch.zeros(40, dtype=x.dtype), torch.eye(40, dtype=x.dtype) + 1
    ).log_prob(x)
    assert e.unit == "nats"
    assert e.log_px == pytest.approx(float(truth), abs=1e-9)


@pytest.mark.parametrize("particles", [0, -3])
def test_particles_must_be_positive(particles):
    with pytest.raises(ValueError, match="particles: expected a whole number"):
        evaluate(LinearGaussian(), X, particles=particles)


def test_no_importance_sampling_over_a_subsampled_plate():
    from zoo.diffusion import Diffusion

    e = evaluate(Diffusion(2, 16), torch.randn(20, 2), particles=30)
    assert e.log_px is None and "log_px" not in e.to_dict()
    assert "no estimate, because a subsampled plate lies inside the weights" in str(e)


def test_reconstruction_and_divergence_have_standard_errors():
    """Over twenty seeds, for one datum of joint weights, the errors are those that are reported."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])

    def guide(x):
        pyro.sample("z", dist.Normal(0.3, 0.8))

    x = torch.tensor([0.7])
    got = [evaluate(model, guide, x, particles=400, seed=s) for s in range(20)]
    for values, errors in (
        ([e.reconstruction for e in got], [e.reconstruction_se for e in got]),
        ([e.kl["z"] for e in got], [e.kl_se["z"] for e in got]),
    ):
        spread = torch.tensor(values).std()
        assert 0.5 < spread / torch.tensor(errors).mean() < 1.7  # twenty draws of a deviation
    assert {"reconstruction_se", "kl_z_se"} <= got[0].to_dict().keys()
