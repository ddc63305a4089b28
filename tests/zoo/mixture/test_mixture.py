"""The mixture pairs against conjugate evidence, coordinate ascent, EM, and brute enumeration."""

import copy
import functools
import math

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import tensor
from torch.fx.experimental.proxy_tensor import make_fx

from inference import elbo, fit, log_weights
from inference.pairs.pair import Pair
from inference.weights import no_validation
from zoo.em import GaussWishart, expectation_maximization, kmeans_plus_plus, variational_bayes
from zoo.mixture import GaussianMixture, MaximumLikelihoodMixture

f64 = {"dtype": torch.float64}
KINDS = ["full", "diagonal"]


def clusters(n=120, d=2, apart=3.0):
    """Three clusters, by default overlapping, in columns of different units."""
    centres = torch.eye(3, **f64)[:, :d] * apart
    x = centres[torch.randint(3, (n,))] + torch.randn(n, d, **f64)
    return x * torch.logspace(0, 1, d, **f64) + 4


def bayesian(x, components, covariance="full"):
    return GaussianMixture(x.shape[1], components, covariance).double().initialise(x)


@pytest.mark.parametrize("covariance", KINDS)
def test_assigned_is_read_back(covariance):
    x = clusters()
    q = variational_bayes(x, 3, covariance=covariance).posterior
    pair = bayesian(x, 3, covariance).assign(**vars(q))
    for name, got in pair.posterior().items():
        assert torch.allclose(got, getattr(q, name), rtol=1e-8, atol=1e-8), name
    em = expectation_maximization(x, 3, covariance=covariance)
    pair = MaximumLikelihoodMixture(2, 3, covariance).double().initialise(x)
    pair.assign(em.weights, em.means, em.covariances)
    with torch.no_grad():
        assert torch.allclose(pair.distribution().log_prob(x), em.log_prob(x), rtol=1e-10)


@pytest.mark.parametrize("covariance", KINDS)
def test_with_one_component_every_weight_is_the_evidence(covariance):
    x = clusters()
    pair = bayesian(x, 1, covariance)
    truth = variational_bayes(x, 1, covariance=covariance, **pair.prior())
    pair.assign(**vars(truth.posterior))
    weights = log_weights(pair.model, pair.guide, x, particles=5).elbo()
    assert torch.allclose(weights, tensor(truth.elbo, **f64), rtol=1e-10)


@pytest.mark.parametrize("covariance", KINDS)
def test_summing_k_out_beats_factorising_it(covariance):
    x = clusters()
    pair = bayesian(x, 3, covariance)
    vb = variational_bayes(x, 3, covariance=covariance, **pair.prior())
    pair.assign(**vars(vb.posterior))
    with torch.no_grad():
        draws = log_weights(pair.model, pair.guide, x, particles=4_000).elbo()
    error = draws.std() / math.sqrt(len(draws))
    assert draws.mean() - 4 * error > vb.elbo
    # and no more than q(k) could lose: the entropy of the best q(k), H[k | x] >= the gap
    assert draws.mean() + 4 * error < vb.elbo + len(x) * math.log(3)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", KINDS)
def test_svi_with_enumeration_ends_above_coordinate_ascent(covariance):
    x = clusters()
    pair = bayesian(x, 2, covariance)
    vb = variational_bayes(x, 2, covariance=covariance, **pair.prior())
    pair.initialise(x, vb.means)  # the same hill; the rest of the guide is far off
    run = fit(
        pair, x, elbo=elbo.Trace(4), steps=400, lr=0.05, schedule="cosine",
        compile=False, progress=False, check=False,
    )  # fmt: skip
    with torch.no_grad():
        draws = log_weights(run.model, run.guide, x, particles=4_000).elbo()
    assert draws.mean() - 4 * draws.std() / math.sqrt(4_000) > vb.elbo


@pytest.mark.parametrize("covariance", KINDS)
def test_maximum_likelihood_pair_is_its_density(covariance):
    x = clusters()
    pair = MaximumLikelihoodMixture(2, 3, covariance).double().initialise(x)
    with torch.no_grad():
        truth = float(pair.distribution().log_prob(x).sum())
        ours = float(log_weights(pair.model, pair.guide, x).elbo())
        half = float(log_weights(pair.model, pair.guide, x[:60], len(x)).elbo())
        rest = float(log_weights(pair.model, pair.guide, x[60:], len(x)).elbo())
    assert ours == pytest.approx(truth, rel=1e-12)
    assert (half + rest) / 2 == pytest.approx(truth, rel=1e-12)
    pyros = -TraceEnum_ELBO(max_plate_nesting=1).loss(pair.model, pair.guide, x)
    assert pyros == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("covariance", KINDS)
def test_where_em_ends_the_likelihood_has_no_slope(covariance):
    x = clusters()
    em = expectation_maximization(x, 3, covariance=covariance, tol=1e-15, max_iter=10_000)
    pair = MaximumLikelihoodMixture(2, 3, covariance).double().initialise(x)
    pair.assign(em.weights, em.means, em.covariances)
    objective = log_weights(pair.model, pair.guide, x).elbo()
    assert objective.item() == pytest.approx(em.log_likelihood, rel=1e-12)
    slopes = torch.autograd.grad(objective.sum(), list(pair.parameters()))
    # EM stops where a step gains 1e-15 nats per datum, a gain that is quadratic in the slope
    assert all(s.abs().max() < 1e-5 * len(x) for s in slopes)


def test_gradient_ascent_reaches_em():
    x = clusters(apart=6.0)
    seeds = kmeans_plus_plus(x / x.std(0), 3, 1)[0] * x.std(0)
    pair = MaximumLikelihoodMixture(2, 3).double().initialise(x, seeds)
    em = expectation_maximization(x, 3, start=pair.responsibilities(x))
    run = fit(
        pair, x, steps=400, lr=0.05, schedule="cosine", compile=False, progress=False, check=False
    )
    with torch.no_grad():
        reached = float(run.pair.distribution().log_prob(x).sum())
    assert reached == pytest.approx(em.log_likelihood, abs=0.01)


@pytest.mark.parametrize("covariance", KINDS)
def test_traced_is_eager(covariance):
    x = clusters(30)
    module = bayesian(x, 3, covariance)
    pair = Pair(module.model, module.guide, (x,))

    def run(values, x):
        values = [v.detach().requires_grad_() for v in values]
        with pair.bind(dict(zip(pair.params, values)), pair.buffers):
            loss = -log_weights(module.model, module.guide, x, particles=2, nesting=1).elbo().mean()
        return loss, *torch.autograd.grad(loss, values)

    values = list(pair.params.values())
    with no_validation():
        traced = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(values, x)
        outcomes = []
        for function in (traced, run):
            pyro.set_rng_seed(3)
            outcomes.append(function(values, x))
    for one, other in zip(*outcomes):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GaussianMixture, MaximumLikelihoodMixture])
@pytest.mark.parametrize("covariance", KINDS)
def test_trains_through_the_compiled_step(kind, covariance):
    x = clusters().float()
    pair = kind(2, 3, covariance).initialise(x)
    run = fit(pair, x, steps=60, lr=0.05, compile=True, progress=False)
    assert run.compiled and run.eager_because is None
    assert np.mean(run.losses[-10:]) < run.losses[0]


@pytest.mark.parametrize("covariance", KINDS)
def test_plain_pyro_trains_it_with_its_own_guide_too(covariance):
    x = clusters(60).float()
    pair = GaussianMixture(2, 2, covariance).initialise(x)
    for guide in (pair.guide, AutoNormal(pyro.poutine.block(pair.model, hide=["k"]))):
        svi = SVI(pair.model, guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO())
        losses = [svi.step(x) for _ in range(30)]
        assert math.isfinite(losses[-1]) and losses[-1] < losses[0]


def test_every_parameter_gets_a_gradient_in_float32():
    x = clusters().float()
    pair = GaussianMixture(2, 4).initialise(x)
    pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(pair.model, pair.guide, x)
    for name, parameter in pair.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("covariance", KINDS)
def test_reading_off_agrees_with_the_inference_layer(covariance):
    x = clusters()
    pair = bayesian(x, 3, covariance)
    mixture = GaussWishart(**pair.posterior()).mixture()
    with torch.no_grad():
        assert torch.allclose(pair.distribution().log_prob(x), mixture.log_prob(x), rtol=1e-10)
    assert torch.allclose(pair.responsibilities(x), mixture.assign(x), atol=1e-10)


@pytest.mark.parametrize("covariance", KINDS)
def test_draws_follow_the_predictive_density(covariance):
    x = clusters(d=1)
    pair = bayesian(x, 3, covariance)
    q = GaussWishart(**pair.posterior())
    # Student's t has long tails: integrate on x = centre + sinh(s)
    s = torch.linspace(-14, 14, 40_001, **f64)
    grid = x.mean() + s.sinh()
    density = q.log_prob(grid.unsqueeze(-1)).exp() * s.cosh()
    cdf = torch.cumulative_trapezoid(density, s)
    assert float(cdf[-1]) == pytest.approx(1, abs=1e-4)
    draws = pair.sample(4_000).squeeze(-1).numpy()
    law = functools.partial(np.interp, xp=grid[1:].numpy(), fp=cdf.numpy())
    assert scipy.stats.kstest(draws, law).pvalue > 1e-4


def test_maximum_likelihood_draws():
    x = clusters()
    pair = MaximumLikelihoodMixture(2, 3).double().initialise(x)
    draws = pair.sample(20_000)
    law = pair.distribution()
    with torch.no_grad():
        error = law.variance.sqrt() / math.sqrt(20_000)
        assert ((draws.mean(0) - law.mean).abs() < 4 * error).all()


def test_prior_moves_with_the_data():
    x = clusters()
    pair = bayesian(x, 4)
    assert torch.allclose(pair.prior()["mean"], x.mean(0))
    assert torch.allclose(pair.prior()["scale"], torch.cov(x.T) / 4)
    inverse = pair.prior_factor @ pair.prior_factor.T
    assert torch.allclose(inverse @ pair.prior_scale, torch.eye(2, **f64), atol=1e-10)
    means = torch.zeros(4, 2, **f64)
    assert torch.allclose(copy.deepcopy(pair).initialise(x, means).posterior()["mean"], means)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: GaussianMixture(2, 0), "at least 1"),
        (lambda: GaussianMixture(0), "at least 1"),
        (lambda: GaussianMixture(2, covariance="tied"), "'tied'"),
        (lambda: GaussianMixture(2, concentration=-1.0), "concentration"),
        (lambda: GaussianMixture(2, mean_precision=0.0), "mean_precision"),
        (lambda: GaussianMixture(2, 9).initialise(torch.randn(5, 2)), "9 for 5 rows"),
        (lambda: GaussianMixture(2).initialise(torch.randn(9, 3)), r"shape \(N, 2\)"),
        (lambda: GaussianMixture(2).initialise(torch.full((9, 2), math.nan)), "NaN"),
        (lambda: GaussianMixture(1).initialise(torch.ones(9, 1)), "constant"),
        (lambda: GaussianMixture(2).initialise(torch.randn(9, 1).expand(9, 2)), "singular"),
        (lambda: GaussianMixture(2).initialise(torch.randn(9, 2), torch.ones(3, 2)), "means"),
        (lambda: GaussianMixture(2, 9).model(torch.randn(5, 2)), "9 for 5 rows"),
        (lambda: GaussianMixture(2, 2).model(torch.randn(5, 3)), "2 columns"),
        (lambda: MaximumLikelihoodMixture(2, 0), "at least 1"),
        (lambda: MaximumLikelihoodMixture(2).initialise(torch.ones(9, 2)), "constant"),
    ],
)
def test_refuses(make, words):
    with pytest.raises(ValueError, match=words):
        make()
