"""Every estimator against closed forms, exact sums over all draws, and Pyro where Pyro is right."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.optim import Adam
from refusals import refusal
from torch import nn
from wrong_estimators import IWAEWithoutScore

from inference import elbo
from inference.testing.estimators import check_estimator
from inference.testing.toys import (
    GlobalLocal,
    LinearGaussian,
    Nested,
    Switch,
    SwitchedGaussian,
)
from inference.weights import log_weights
from inference.weights.sites import At

ESTIMATORS = [
    elbo.Trace(),
    elbo.Trace(3),
    elbo.MeanField(),
    elbo.MeanField(3),
    elbo.Beta(1.0),
    elbo.Beta(4.0, 3),
    elbo.Beta(2.0, 3, free_bits=0.1),
    elbo.STL(),
    elbo.STL(3),
    elbo.Score(1, baseline="data"),
    elbo.Score(3),
    elbo.Score(3, baseline=None),
    elbo.Enum(),
    elbo.Enum(3),
    elbo.IWAE(1),
    elbo.IWAE(3),
    elbo.MIWAE(2, 3),
    elbo.CIWAE(0.3, 3),
    elbo.Renyi(0.5, 3),
    elbo.Renyi(-1.0, 3),
    elbo.Renyi(-math.inf, 3),
    elbo.DReG(1),
    elbo.DReG(3),
    elbo.VIMCO(3),
    elbo.WakeSleep(3),
    elbo.WakeSleep(3, sleep=0.5),
    elbo.ForwardKL(8),
    elbo.CUBO(2.0, 8),
    elbo.ThermodynamicVI(4),
    elbo.MMD(1.0),
    elbo.TotalCorrelation(2.0, elbo.STL()),
    elbo.OVIS(3, auxiliary=2),
    elbo.DisARM(3),
    elbo.Rebar(),
    elbo.GumbelSoftmax(),
    elbo.GDReG(3),
    elbo.Taylor(3),
    elbo.Sobol(elbo.IWAE(4)),
    elbo.DReG(3, vectorized=False),
    elbo.MeanField(3, vectorized=False),
]


def test_sticking_the_landing_on_iwae_is_biased():
    with pytest.raises(AssertionError, match=r"is biased: on LinearGaussian .* standard errors"):
        check_estimator(IWAEWithoutScore(4), draws=2_000)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_against_the_truths(estimator):
    check_estimator(estimator, draws=500)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_against_the_truths_closely(estimator):
    check_estimator(estimator, draws=100_000, seed=1)


# ---------------------------------------------------------------- at the posterior


def grads(estimator, toy, *args):
    """(value, {parameter: gradient}) of one draw."""
    params = dict(toy.named_parameters())
    value, surrogate = estimator.value_and_surrogate(toy.model, toy.guide, *args)
    found = torch.autograd.grad(surrogate, list(params.values()), materialize_grads=True)
    return value, dict(zip(params, found))


KINDS = [LinearGaussian, GlobalLocal, Nested, Switch, SwitchedGaussian]
BOTH = list(itertools.product(ESTIMATORS, KINDS))
named = {"ids": lambda v: repr(v) if isinstance(v, elbo.Estimator) else v.__name__}


@pytest.mark.parametrize("estimator, kind", [b for b in BOTH if refusal(*b)], **named)
def test_what_an_estimator_cannot_treat_it_refuses(estimator, kind):
    toy = kind()
    with pytest.raises(ValueError, match=refusal(estimator, kind)):
        grads(estimator, toy, toy.data())


@pytest.mark.parametrize(
    "estimator, kind",
    [
        (e, k) for e, k in BOTH
        if e.is_tight and e.is_bound and not isinstance(e, elbo.MeanField) and not refusal(e, k)
    ],
    **named,
)  # fmt: skip
def test_every_draw_of_every_bound_is_log_px(kind, estimator):
    toy = kind(exact=True)
    x = toy.data()
    value, _ = grads(estimator, toy, x)
    assert abs(value - toy.log_px(x)) < 1e-9 * abs(toy.log_px(x))


@pytest.mark.parametrize("estimator", [elbo.STL(), elbo.STL(3), elbo.DReG(3)], ids=repr)
@pytest.mark.parametrize("kind", [LinearGaussian, GlobalLocal, Nested])
def test_the_path_derivative_is_zero_at_the_posterior(kind, estimator):
    toy = kind(exact=True)
    _, found = grads(estimator, toy, toy.data())
    _, plain = grads(elbo.Trace(3), toy, toy.data())
    guide = [name for name in found if name.startswith("guide")]
    assert guide
    for name in guide:
        # sums of 5 rows of terms of order 1, cancelling
        assert found[name].abs().max() < 1e-12, name
        assert plain[name].abs().max() > 1e-3, name


# ---------------------------------------------------------------- exact sums over all draws


class Pairwise(nn.Module):
    """k_i, l_i binary, x_i | k_i, l_i ~ N(k_i + 2 l_i - k_i l_i, 1); guides draw l given k."""

    def __init__(self):
        super().__init__()
        self.odds = nn.Parameter(torch.tensor([0.3, -0.5]).double())
        self.guide_ = nn.Parameter(torch.tensor([0.4, -0.2, 0.7, 0.1]).double())

    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(logits=self.odds[0]))
            i = pyro.sample("l", dist.Bernoulli(logits=self.odds[1]))
            pyro.sample("x", dist.Normal(k + 2 * i - k * i, 1.0), obs=x)

    def guide(self, x):
        g = self.guide_
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(logits=g[0] * x + g[1]))
            pyro.sample("l", dist.Bernoulli(logits=g[2] * x + g[3] * k))


def every_draw(pair, x, particles):
    """All values of the latents, (K, B) each."""
    n = particles * len(x)
    shape = (particles, len(x)) if particles > 1 else (len(x),)
    for bits in itertools.product([0.0, 1.0], repeat=2 * n):
        values = torch.tensor(bits, dtype=torch.float64)
        yield {"k": values[:n].reshape(shape), "l": values[n:].reshape(shape)}


@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "estimator",
    [
        elbo.Trace(2), elbo.STL(2), elbo.Score(2), elbo.Score(2, baseline=None),
        elbo.Score(2, baseline="data"), elbo.Beta(0.5, 2), elbo.MeanField(2), elbo.IWAE(2),
        elbo.VIMCO(2), elbo.MIWAE(2, 1),
        elbo.MIWAE(1, 2), elbo.CIWAE(0.4, 2), elbo.Renyi(0.5, 2), elbo.Renyi(-math.inf, 2),
    ],
    ids=repr,
)  # fmt: skip
def test_score_gradients_of_particles(estimator, rows):
    expectation_is_exact(estimator, rows)


@pytest.mark.parametrize(
    "estimator",
    [elbo.Trace(), elbo.STL(), elbo.Score(1, baseline=None), elbo.Score(1, baseline="data"),
     elbo.Beta(3.0), elbo.MeanField(), elbo.IWAE(1), elbo.Renyi(0.5, 1)],
    ids=repr,
)  # fmt: skip
def test_score_gradients_over_a_plate(estimator):
    expectation_is_exact(estimator, rows=2)


def expectation_is_exact(estimator, rows):
    """Σ_draws P(draw) ∇surrogate(draw) = ∇ Σ_draws P(draw) bound(draw), over all draws."""
    pair = Pairwise()
    x = torch.tensor([0.8, -0.4]).double()[:rows]
    params = list(pair.parameters())
    bound, mean_gradient = 0.0, [torch.zeros_like(p) for p in params]
    for draw in every_draw(pair, x, estimator.particles):
        with At(draw):
            weights = estimator.draw(pair.model, pair.guide, x, vectorized="plate")
            plain = log_weights(
                pair.model, pair.guide, x, particles=estimator.particles, vectorized="plate"
            )
            surrogate = estimator.surrogate(weights)
            probability = plain.log_q().sum().exp()
            bound = bound + probability * estimator.bound(plain)
        found = torch.autograd.grad(surrogate, params, materialize_grads=True)
        for total, g in zip(mean_gradient, found):
            total += probability.detach() * g
    truth = torch.autograd.grad(bound, params)
    for g, t in zip(mean_gradient, truth):
        assert torch.allclose(g, t, rtol=1e-10, atol=1e-12)


def test_enum_is_the_exact_sum():
    pair = Pairwise()
    x = torch.tensor([0.8, -0.4, 2.0]).double()
    params = list(pair.parameters())
    exact = 0.0
    for draw in every_draw(pair, x[:1], 1):
        for row in range(3):
            with At(draw):
                weights = log_weights(pair.model, pair.guide, x[row : row + 1])
            exact = exact + weights.log_q().sum().exp() * weights.elbo()[0]
    value, surrogate = elbo.Enum().value_and_surrogate(pair.model, pair.guide, x)
    assert torch.allclose(value, exact, rtol=1e-13)
    for a, b in zip(torch.autograd.grad(surrogate, params), torch.autograd.grad(exact, params)):
        assert torch.allclose(a, b, rtol=1e-11)


# ---------------------------------------------------------------- Pyro, where it is right


def pyro_grads(loss, model, guide, args, module):
    pyro.set_rng_seed(5)
    module.zero_grad()
    value = loss.loss_and_grads(model, guide, *args)
    found = {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
    return value, found


def agree(ours, theirs, module, *args, model=None, guide=None):
    model, guide = model or module.model, guide or module.guide
    value, found = pyro_grads(ours, model, guide, args, module)
    expected, right = pyro_grads(theirs, model, guide, args, module)
    assert math.isclose(value, expected, rel_tol=1e-12)
    assert found.keys() == right.keys()
    for name, g in right.items():
        assert torch.allclose(found[name], g, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("kind", [LinearGaussian, GlobalLocal])
def test_trace_is_pyros(kind, particles):
    toy = kind()
    theirs = Trace_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
    agree(elbo.Trace(particles), theirs, toy, toy.data())
    agree(elbo.Trace(particles), theirs, toy, toy.data(), 15)  # N/B = 3


@pytest.mark.parametrize("particles", [1, 3])
def test_trace_is_pyros_particle_by_particle(particles):
    toy = LinearGaussian()
    ours = elbo.Trace(particles, vectorized=False)
    agree(ours, Trace_ELBO(particles), toy, toy.data(), 15)


@pytest.mark.parametrize("particles", [1, 3])
def test_mean_field_is_pyros(particles):
    toy = LinearGaussian()
    theirs = TraceMeanField_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
    agree(elbo.MeanField(particles), theirs, toy, toy.data(), 15)


@pytest.mark.parametrize("particles", [1, 3])
def test_enum_is_pyros(particles):
    for toy in (Switch(), SwitchedGaussian()):
        theirs = TraceEnum_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
        x = toy.data()
        value, _ = pyro_grads(elbo.Enum(particles), toy.model, toy.guide, (x, 15), toy)
        guide = config_enumerate(toy.guide)
        expected, _ = pyro_grads(theirs, toy.model, guide, (x, 15), toy)
        assert math.isclose(value, expected, rel_tol=1e-12)
    agree(elbo.Enum(particles), theirs, toy, x, guide=config_enumerate(toy.guide))


@pytest.mark.parametrize("particles", [1, 3])
def test_marginalised_mixture_is_pyros(particles):
    """A discrete latent that the guide lacks, beside a continuous global one, in nested plates."""

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.odds = nn.Parameter(torch.tensor([0.1, -0.3, 0.4]).double())
            self.q = nn.Parameter(torch.tensor([0.2, -0.5]).double())

        def model(self, x):
            pyro.module("nested", self)
            w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("groups", 3, dim=-2):
                g = pyro.sample("g", dist.Bernoulli(logits=self.odds[0]),
                                infer={"enumerate": "parallel"})  # fmt: skip
                with pyro.plate("members", 2, dim=-1):
                    k = pyro.sample("k", dist.Bernoulli(logits=self.odds[1] + g * w),
                                    infer={"enumerate": "parallel"})  # fmt: skip
                    pyro.sample("x", dist.Normal(w + 2 * k - self.odds[2] * g, 1.0), obs=x)

        def guide(self, x):
            pyro.sample("w", dist.Normal(self.q[0], self.q[1].exp()))

    x = torch.tensor([[0.3, -1.0], [0.7, 0.2], [-0.4, 1.5]]).double()
    theirs = TraceEnum_ELBO(particles, max_plate_nesting=2, vectorize_particles=particles > 1)
    agree(elbo.Trace(particles), theirs, Nested(), x)


def test_iwae_is_pyros_on_all_data():
    toy = LinearGaussian()
    x = toy.data()[:1]  # one row: Pyro mixes rows that share no plate otherwise
    theirs = RenyiELBO(alpha=0, num_particles=3, max_plate_nesting=1, vectorize_particles=True)
    agree(elbo.IWAE(3), theirs, toy, x)
    theirs = RenyiELBO(alpha=0.5, num_particles=3, max_plate_nesting=1, vectorize_particles=True)
    agree(elbo.Renyi(0.5, 3), theirs, toy, x)


@pytest.mark.slow
def test_pyros_iwae_is_biased_on_mini_batches():
    """Rows in all six batches of 2 of 4: its mean is not that of all four (see check_estimator)."""
    toy = LinearGaussian(exact=False)
    x = toy.data()[:4]
    loss = RenyiELBO(alpha=0, num_particles=8, max_plate_nesting=1, vectorize_particles=True)

    def values(rows, draws):
        found = [-loss.loss(toy.model, toy.guide, x[rows], 4) for _ in range(draws)]
        return torch.tensor(found, dtype=torch.float64)

    full = values([0, 1, 2, 3], 2_000)
    batches = [values(list(rows), 300) for rows in itertools.combinations(range(4), 2)]
    gap = sum(b.mean() for b in batches) / 6 - full.mean()
    se = (sum(b.var() / 300 for b in batches) / 36 + full.var() / 2_000).sqrt()
    assert abs(gap) > 10 * se


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_svi_accepts_it(estimator):
    toy = LinearGaussian()
    svi = SVI(toy.model, toy.guide, Adam({"lr": 1e-3}), estimator)
    for p in toy.parameters():
        pyro.param(f"p{id(p)}", p)
    assert math.isfinite(svi.step(toy.data()))
    assert math.isfinite(svi.evaluate_loss(toy.data()))
