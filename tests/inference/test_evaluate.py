import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference import evaluate, fit
from inference.draws.measures import active_variance, elbo, evidence
from inference.draws.sampler import even, sample
from inference.pairs.gate import admit
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
    with pytest.raises(ValueError, match="particles: expected a whole number of at least 1"):
        evaluate(LinearGaussian(), X, particles=particles)


def test_no_importance_sampling_over_a_subsampled_plate():
    from zoo.diffusion import Diffusion

    e = evaluate(Diffusion(2, 16), torch.randn(20, 2), particles=30)
    assert e.log_px is None and "log_px" not in e.to_dict()
    assert "no estimate, because a subsampled plate lies inside the weights" in " ".join(
        str(e).split()
    )


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


class Scalar(nn.Module):
    """z_i ~ N(0, 1), x_i ~ N(z_i, 1), scalar: posterior N(x / 2, 1 / 2)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def test_scalar_latents_over_unequal_chunks():
    x = torch.randn(1_501, dtype=torch.float64)
    e = evaluate(Scalar(), x, particles=100, rows=100_000)  # 1,501 rows in parts of 1,000 at most
    truth = dist.Normal(torch.zeros(()).double(), 2**0.5).log_prob(x)
    assert e.log_px_per_datum.shape == (1_501,)
    assert torch.allclose(e.log_px_per_datum, truth, atol=1e-9)
    assert e.active_units == {"z": 1}


def test_few_draws_do_not_make_a_dead_latent_active():
    """The prior as guide: a mean of 25 draws has a variance of 1/25 over data, above 0.01."""

    class Dead(Scalar):
        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))

    e = evaluate(Dead(), torch.randn(2_000), particles=25)
    # Var of the estimate: two variances of 1/25 over 2,000 data, each known to sqrt(2 / 2,000)
    assert e.active_units == {"z": 0}
    mean, variance = torch.zeros(4, 1), torch.full((4, 1), 25.0)
    assert float(active_variance(mean, variance, 25)) == -1.0


def test_khat_of_few_draws_is_no_estimate():
    e = evaluate(LinearGaussian(spread=1.5), X, particles=24)
    assert e.khat is None and e.khat_above is None
    assert "k-hat takes at least 25 draws, and there are 24" in " ".join(str(e).split())
    assert "% above" not in str(e) and "khat_above_0.7" not in e.to_dict()
    assert evaluate(LinearGaussian(spread=1.5), X, particles=25).khat.shape == (40,)


def test_bits_per_dimension_of_a_mixture_that_is_summed_out():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            loc = torch.where(k[..., None] == 0, -x.new_ones(()), x.new_ones(()))
            pyro.sample("x", dist.Normal(loc.expand(*k.shape, 5), 1.0).to_event(1), obs=x)

    e = evaluate(model, lambda x: None, X, particles=2)
    parts = torch.stack([dist.Normal(m, 1.0).log_prob(X).sum(1) for m in (-1.0, 1.0)])
    truth = float((parts.logsumexp(0) - math.log(2)).mean())
    assert e.log_px == pytest.approx(truth, abs=1e-6)
    assert e.bits_per_dim == pytest.approx(-truth / (5 * math.log(2)), abs=1e-6)
    assert e.exact and "exact" in str(e) and e.khat is None


def test_a_conditional_model_is_said_to_be_one():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))

    x, y = torch.randn(2, 30)
    e = evaluate(model, guide, x, y, particles=30)
    assert e.label == "log p(x | y)" and "log p(x | y) ≥" in str(e) and "log p(x)" not in str(e)
    assert evaluate(Scalar(), x, particles=2).label == "log p(x)"


def normal(x):
    pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


GUIDES = {
    "a point": lambda x: pyro.sample("z", dist.Delta(x / 2)),
    "noise of its own": lambda x: pyro.sample("z", dist.Delta(x / 2 + 0.7 * torch.randn(x.shape))),
    "noise without its volume": lambda x: pyro.sample(
        "z", dist.Delta(0.7 * pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True}))
    ),
}


@pytest.mark.parametrize("kind", GUIDES)
def test_a_guide_without_a_density_has_no_bound(kind):
    e = evaluate(normal, GUIDES[kind], torch.tensor(0.7), particles=100)
    assert e.elbo is None and e.log_px is None and e.gap is None and e.khat is None
    assert "'z'" in e.to_dict()["unknown"]["elbo"] and "no estimate, because" in str(e)
    assert "nan" not in str(e)


def test_a_change_of_volume_that_is_told_is_a_density():
    """The posterior N(0.35, 1/2) as an affine map of noise, with its log density."""
    scale = 0.5**0.5

    def guide(x):
        e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(x / 2 + scale * e, log_density=-math.log(scale)))

    e = evaluate(normal, guide, torch.tensor(0.7), particles=100)
    truth = float(dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.7)))
    assert e.log_px == pytest.approx(truth, abs=1e-5) and e.khat is not None


def test_one_effective_draw_is_no_evidence():
    log_w = torch.cat([torch.zeros(999, 1), torch.full((1, 1), 100.0)]).double()
    found = evidence(log_w)
    assert found.value is None and found.because == "1.0 of 1,000 draws are effective"
    far = evaluate(normal, lambda x: pyro.sample("z", dist.Normal(x + 40, 0.05)), torch.tensor(0.7))
    assert far.log_px is None and far.log_px_se is None and far.elbo is not None
    # 13 of 40,000 draws can be effective, and all of them far from the posterior
    wide = (2.0 * torch.distributions.Exponential(1.0).sample((1_000, 1))).double()
    assert evidence(wide).value is None


def test_numbers_that_are_not_numbers_are_no_estimate():
    assert elbo(torch.tensor([[math.nan], [0.0]])).value is None
    assert elbo(torch.zeros(1, 1)).se is None  # one draw has no error


@pytest.mark.parametrize("total", [1, 2, 3, 7, 1_009, 1_499, 1_500])
@pytest.mark.parametrize("most", [1, 2, 10, 1_000, 5_000])
def test_parts_of_a_whole_are_of_one_size(total, most):
    """A prime number of rows is parted as any other: no part of one, where there are two."""
    parts = even(total, most)
    sizes = [p.stop - p.start for p in parts]
    assert sum(sizes) == total and [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= min(2, total)
    assert max(sizes) <= max(3, most)  # parts of two, and one of three of an odd whole


def test_memory_is_bounded_by_chunks():
    seen = []
    pair = admit(Scalar(), torch.randn(1_009))

    def size(chunk):
        k, n = chunk.weights.log_weight().shape
        seen.append(k * n)
        return k * n

    whole = sum(sample(pair, 300, size, by_rows=True, most=5_000))
    assert whole == 300 * 1_009 and max(seen) <= 1.1 * 5_000 and len(seen) >= 60
    seen.clear()
    assert sum(sample(pair, 300, size, numbers=40_000)) == 300 * 1_009
    assert max(seen) <= 10_100  # four numbers for each draw of a row


def test_chunks_hold_draws_of_their_own():
    pair = admit(Scalar(), torch.zeros(10))
    draws = list(sample(pair, 6, lambda c: c.weights.guide["z"].value, by_rows=True, most=10))
    assert len(torch.cat([d.flatten() for d in draws]).unique()) == 60
