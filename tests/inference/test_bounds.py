"""What each bound is, by closed form: orderings, limits, schedules, divergences, refusals."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from truths import linear_gaussian_posterior

from inference import elbo, fit
from inference.draws.measures import Moments
from inference.elbo.base import reach
from inference.judging.comparison.gradients import Gradients
from inference.pairs.pair import Pair
from inference.randomness import DrawnAnew
from inference.testing.estimators import gradient_bias
from inference.testing.toys import GlobalLocal, LinearGaussian, Switch, SwitchedGaussian
from inference.training.update import at_step
from inference.weights import log_weights, no_validation


def mean_value(estimator, toy, *args, draws=20_000, seed=0):
    sampler, values = (
        Gradients(Pair(toy.model, toy.guide, args), estimator, args, draws=draws),
        None,
    )
    values = Moments()
    while values.n < draws:
        seed += 1
        values.add(sampler(seed)[0])
    return float(values.mean), float((values.variance / values.n).sqrt())


def posterior(toy, x):
    return linear_gaussian_posterior(x, toy.p["w"].detach(), toy.p["b"].detach())


def guide_of(toy, x):
    g = toy.guide_
    mean = x @ g["a"].T + g["c"]
    return MultivariateNormal(mean, torch.diag((2 * g["log_scale"]).exp()))


# ---------------------------------------------------------------- values


def test_the_elbo_gap_is_the_divergence_from_the_posterior():
    toy = LinearGaussian()
    x = toy.data()
    gap = kl_divergence(guide_of(toy, x), posterior(toy, x)).sum()
    value, se = mean_value(elbo.Trace(), toy, x)
    assert abs(value - (toy.log_px(x) - gap)) < 5 * se


@pytest.mark.parametrize("kind", [LinearGaussian, GlobalLocal])
def test_bounds_tighten_with_k(kind):
    toy = kind()
    x = toy.data()
    levels = [mean_value(elbo.IWAE(k), toy, x, draws=3_000) for k in (1, 2, 8, 64)]
    levels.append((float(toy.log_px(x)), 0.0))
    for (low, se), (high, above) in itertools.pairwise(levels):
        assert high - low > 5 * math.hypot(se, above), levels


def test_limits_of_the_k_sample_bounds():
    toy = LinearGaussian()
    log_w = log_weights(toy.model, toy.guide, toy.data(), particles=6).log_weight()
    elbo_, iwae = log_w.mean(0), elbo.IWAE(6).per_datum(log_w)
    cases = {
        elbo.Renyi(0.0, 6): iwae,
        elbo.Renyi(1.0, 6): elbo_,
        elbo.Renyi(-math.inf, 6): log_w.max(0).values,
        elbo.Renyi(math.inf, 6): log_w.min(0).values,
        elbo.CIWAE(0.0, 6): iwae,
        elbo.CIWAE(1.0, 6): elbo_,
        elbo.MIWAE(1, 6): iwae,
        elbo.MIWAE(6, 1): elbo_,
        elbo.ThermodynamicVI(6, partitions=1): elbo_,
        elbo.VIMCO(6): iwae,
        elbo.DReG(6): iwae,
    }
    for estimator, expected in cases.items():
        assert torch.allclose(estimator.per_datum(log_w), expected, rtol=1e-13), estimator
    # α → 1 and α → -∞ are limits, and the bound falls with α
    assert torch.allclose(elbo.Renyi(1 - 1e-6, 6).per_datum(log_w), elbo_, atol=1e-3)
    assert torch.allclose(elbo.Renyi(-1e4, 6).per_datum(log_w), log_w.max(0).values, atol=1e-3)
    falling = [elbo.Renyi(a, 6).per_datum(log_w) for a in (-5.0, -1.0, 0.0, 0.5, 1.0, 3.0)]
    assert all((a > b).all() for a, b in itertools.pairwise(falling))
    # the thermodynamic sum is below its integral, IWAE, and rises to it with the partitions
    sums = [elbo.ThermodynamicVI(6, partitions=p).per_datum(log_w) for p in (1, 2, 10, 100)]
    assert all((a < b).all() for a, b in itertools.pairwise([*sums, iwae]))
    fine = elbo.ThermodynamicVI(6, partitions=2_000, first=1e-3).per_datum(log_w)
    assert torch.allclose(fine, iwae, atol=0.02)


def chi_upper_bound(toy, x):
    """log E_q[w²] / 2 over all rows, in closed form: log p(x) + ½ log ∫ p(z|x)² / q(z|x) dz."""
    q, p = guide_of(toy, x), posterior(toy, x)
    a = 2 * p.precision_matrix - q.precision_matrix  # must be positive definite
    b = 2 * (p.precision_matrix @ p.mean.unsqueeze(-1)) - q.precision_matrix @ q.mean.unsqueeze(-1)

    def quadratic(m, v):
        return (v.mT @ m @ v).squeeze((-2, -1))

    log_second = (
        torch.logdet(p.precision_matrix) - 0.5 * torch.logdet(q.precision_matrix)
        - 0.5 * torch.logdet(a) + 0.5 * quadratic(torch.linalg.inv(a), b)
        - quadratic(p.precision_matrix, p.mean.unsqueeze(-1))
        + 0.5 * quadratic(q.precision_matrix, q.mean.unsqueeze(-1))
    )  # fmt: skip
    return toy.log_px(x) + log_second.sum() / 2


def nearby():
    """A pair whose guide is a little wider than the posterior: weights have all their moments."""
    toy = LinearGaussian(exact=True)
    with torch.no_grad():
        toy.guide_["c"] += 0.1
        toy.guide_["log_scale"] += 0.1
    return toy


def limit(make, toy, x, particles=200, draws=1_000):
    """Mean and standard error of value and gradients as K → ∞: 2 m(2K) - m(K) has no 1/K left.

    Normalised weights have a bias a/K + b/K²; K is so large that b/K² is far below the noise.
    """
    pair = Pair(toy.model, toy.guide, (x,))
    means, variances = [], []
    for i, k in enumerate((particles, 2 * particles)):
        sampler, moments = Gradients(pair, make(k), (x,), replicates=100), Moments()
        while moments.n < draws:
            moments.add(torch.cat([c.reshape(100, -1) for c in sampler(1_000 * i + moments.n)], 1))
        means.append(moments.mean)
        variances.append(moments.variance / moments.n)
    mean, se = 2 * means[1] - means[0], (4 * variances[1] + variances[0]).sqrt()
    found = {k: (mean[1:][s], se[1:][s]) for k, s in sampler.slices.items()}
    return mean[0], se[0], found


def assert_gradients(found, objective, toy, names):
    """Within 5 standard errors of ∇ objective, in every entry of the parameters named."""
    params = dict(toy.named_parameters())
    truth = torch.autograd.grad(objective, [params[n] for n in names])
    for name, t in zip(names, truth):
        mean, se = found[name]
        assert ((mean - t.flatten()).abs() < 5 * se + 1e-9).all(), name


GUIDE = ["guide_.a", "guide_.c", "guide_.log_scale"]


def test_cubo_is_an_upper_bound_and_its_gradient_is_the_divergences():
    toy = nearby()
    x = toy.data()
    bound = chi_upper_bound(toy, x)
    assert bound > toy.log_px(x)
    value, se, found = limit(lambda k: elbo.CUBO(2.0, k), toy, x)
    assert abs(-value - bound.detach()) < 5 * se
    assert_gradients(found, -bound, toy, GUIDE)
    assert all((found[n][0] == 0).all() for n in ("p.w", "p.b"))  # the model stays


@pytest.mark.parametrize("kind", [elbo.ForwardKL, elbo.WakeSleep])
def test_the_wake_phase_follows_the_forward_divergence(kind):
    toy = nearby()
    x = toy.data()
    divergence = kl_divergence(posterior(toy, x), guide_of(toy, x)).sum()
    value, se, found = limit(kind, toy, x)
    assert_gradients(found, -divergence, toy, GUIDE)
    truth = {elbo.ForwardKL: -divergence, elbo.WakeSleep: toy.log_px(x)}[kind].detach()
    assert abs(value - truth) < 5 * se
    still = all((found[n][0] == 0).all() for n in ("p.w", "p.b"))
    assert still == (kind is elbo.ForwardKL)  # which leaves the model as it is


def test_the_thermodynamic_gradient_is_that_of_the_sum():
    """Σ Δβ E_π(β)[log w] over the two states of each row, differentiated exactly."""
    toy = Switch()
    x = toy.data()
    k = torch.tensor([[0.0], [1.0]]).double()
    joint = dist.Bernoulli(logits=toy.p["log_odds"]).log_prob(k)
    joint = joint + Normal(toy.p["m"] * k, 1.0).log_prob(x)
    log_q = dist.Bernoulli(logits=toy.guide_["s"] * x + toy.guide_["t"]).log_prob(k)
    betas, total = elbo.ThermodynamicVI(2).betas, 0.0
    for low, high in itertools.pairwise(betas):
        path = torch.softmax((1 - low) * log_q + low * joint, 0)
        total = total + (high - low) * (path * (joint - log_q)).sum()
    value, se, found = limit(elbo.ThermodynamicVI, toy, x, particles=100)
    assert abs(value - total.detach()) < 5 * se
    assert_gradients(found, total, toy, ["p.log_odds", "p.m", "guide_.s", "guide_.t"])


def test_wake_sleep_model_gradient_is_iwaes():
    toy = LinearGaussian()
    args = (toy.data(),)
    pair = Pair(toy.model, toy.guide, args)
    wake = Gradients(pair, elbo.WakeSleep(5), args, replicates=10)(0)[1]
    iwae = Gradients(pair, elbo.IWAE(5), args, replicates=10)
    model = [s for name, s in iwae.slices.items() if not name.startswith("guide")]
    assert len(model) == len(list(toy.p.parameters()))
    for s in model:
        assert torch.allclose(wake[:, s], iwae(0)[1][:, s], rtol=1e-10, atol=1e-12)


def test_a_site_is_scored_with_what_it_can_reach():
    """Rao-Blackwellisation over plates: row i of k sees row i of x, and all of what is global."""

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(w + k, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_zeros(()), 0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))

    x = torch.tensor([0.3, 0.7, -0.4]).double()
    weights = log_weights(model, guide, x, particles=2, full_sizes={"data": 12})
    local = [weights.model["k"], weights.model["x"]]
    own = sum(t.log_prob for t in local) - weights.guide["k"].log_prob
    shared = weights.model["w"].log_prob - weights.guide["w"].log_prob
    signal = reach(elbo.Trace(2).costs(weights), weights.guide["k"])
    assert torch.allclose(signal, 4 * own + shared, rtol=1e-13)
    signal = reach(elbo.Trace(2).costs(weights), weights.guide["w"])
    assert torch.allclose(signal, 4 * own.sum(1, keepdim=True) + shared, rtol=1e-13)


# ---------------------------------------------------------------- β, free bits


def test_beta_tempers_the_divergence_only():
    toy = LinearGaussian()
    x = toy.data()
    weights = log_weights(toy.model, toy.guide, x, 10, particles=3)
    kl = elbo.kl_by_site(weights)["z"]
    reconstruction = weights.model["x"].total()
    for beta in (0.0, 1.0, 4.0):
        expected = reconstruction - beta * kl
        assert torch.allclose(elbo.Beta(beta, 3).bound(weights), expected, rtol=1e-12)
    assert torch.allclose(elbo.Beta(1.0, 3).bound(weights), elbo.Trace(3).bound(weights))


def test_beta_schedules():
    constant, rise = elbo.Beta(2.0), elbo.Beta(2.0, warmup=10)
    cycles = elbo.Beta(2.0, warmup=10, cycles=2)
    seen = {}
    for name, e in {"constant": constant, "rise": rise, "cycles": cycles}.items():
        seen[name] = []
        for step in (0, 5, 10, 19, 20, 25, 30, 45, 1_000):
            e.step = step
            seen[name].append(float(e.weight()))
    assert seen["constant"] == [2.0] * 9
    assert seen["rise"] == [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert seen["cycles"] == [0.0, 1.0, 2.0, 2.0, 0.0, 1.0, 2.0, 2.0, 2.0]


def test_free_bits_stop_the_gradient_below_the_floor():
    toy = LinearGaussian()
    x = toy.data()
    weights = log_weights(toy.model, toy.guide, x, particles=8)
    kl = elbo.kl_by_site(weights)["z"].detach()
    reconstruction = weights.model["x"].total()
    floor = float(kl) / 5 + 0.1  # nats per datum, above the present divergence
    for free, counted in ((floor, 5 * floor), (floor / 2, float(kl))):
        estimator = elbo.Beta(2.0, 8, free_bits=free)
        assert torch.allclose(estimator.bound(weights), reconstruction - 2 * counted)
    params = list(toy.guide_.parameters())
    free = torch.autograd.grad(
        elbo.Beta(2.0, 8, free_bits=floor).surrogate(weights), params, retain_graph=True
    )
    alone = torch.autograd.grad(reconstruction, params, materialize_grads=True)
    for a, b in zip(free, alone):
        assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    "wrong", [{"beta": -1.0}, {"warmup": -1}, {"cycles": 2}, {"free_bits": -0.1}]
)
def test_beta_refuses(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        elbo.Beta(**wrong)


# ---------------------------------------------------------------- mean field


def test_mean_field_refuses_a_guide_in_another_order():
    def model(x):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        b = pyro.sample("b", dist.Normal(x, 1.0))
        pyro.sample("a", dist.Normal(b, 1.0))

    def forgets(x):
        pyro.sample("a", dist.Normal(x, 1.0))

    x = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"draws \['a', 'b'\] and the guide \['b', 'a'\]"):
        elbo.MeanField().loss(model, guide, x)
    with pytest.raises(ValueError, match="the guide forgets a latent"):
        elbo.MeanField().loss(model, forgets, x)


def test_mean_field_counts_the_jacobian_of_an_autoguide():
    """AutoNormal on a positive latent: a Delta has no divergence in closed form."""

    def model(x):
        scale = pyro.sample("scale", dist.Gamma(x.new_tensor(2.0), 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    x = torch.tensor([0.4, -1.0, 0.7]).double()
    guide = AutoNormal(model)
    guide(x)
    guide.double()
    pyro.set_rng_seed(1)
    trace = torch.tensor([elbo.Trace(100).loss(model, guide, x) for _ in range(50)])
    ours = torch.tensor([elbo.MeanField(100).loss(model, guide, x) for _ in range(50)])
    theirs = TraceMeanField_ELBO(100, max_plate_nesting=1, vectorize_particles=True)
    pyros = torch.tensor([theirs.loss(model, guide, x) for _ in range(50)])
    se = (trace.std() ** 2 / 50 + ours.std() ** 2 / 50).sqrt()
    assert abs(trace.mean() - ours.mean()) < 5 * se
    assert abs(pyros.mean() - ours.mean()) < 5 * se


def test_mean_field_with_masks_that_differ():
    keep = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", 3):
            with pyro.poutine.mask(mask=keep):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    x = torch.tensor([0.3, 0.7, -0.4]).double()
    weights = log_weights(model, guide, x, particles=5)
    q, p = weights.guide["z"], weights.model["z"]
    closed = kl_divergence(q.fn, p.fn)
    expected = torch.where(keep, closed, q.log_prob)
    likelihood = weights.model["x"].log_prob
    value = elbo.MeanField(5).bound(weights)
    assert torch.allclose(value, (likelihood - expected).sum(1).mean(), rtol=1e-12)


# ---------------------------------------------------------------- refusals


def test_joint_weights_of_a_mini_batch_are_refused():
    toy = GlobalLocal()
    x = toy.data()
    for estimator in (elbo.IWAE(4), elbo.DReG(4), elbo.MIWAE(2, 2), elbo.Renyi(0.5, 4),
                      elbo.VIMCO(4), elbo.CIWAE(0.5, 4), elbo.WakeSleep(4), elbo.ForwardKL(4),
                      elbo.CUBO(2.0, 4), elbo.ThermodynamicVI(4)):  # fmt: skip
        with pytest.raises(ValueError, match="w lies outside the subsampled plate 'data'"):
            estimator.value_and_surrogate(toy.model, toy.guide, x, 50)
    elbo.Trace().value_and_surrogate(toy.model, toy.guide, x, 50)


def test_k_sample_bounds_refuse_an_average_of_log_weights():
    toy = SwitchedGaussian()
    guide = pyro.infer.config_enumerate(toy.guide)
    for estimator in (elbo.IWAE(4), elbo.Score(4), elbo.WakeSleep(4)):
        with pytest.raises(ValueError, match="enumerated"):
            estimator.value_and_surrogate(toy.model, guide, toy.data())


def test_a_score_that_depends_on_an_enumerated_site_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.4)))
            n = pyro.sample("n", dist.Poisson(1 + k))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)),
                            infer={"enumerate": "parallel"})  # fmt: skip
            pyro.sample("n", dist.Poisson(1 + 2 * k))

    with pytest.raises(ValueError, match="'n' is not reparameterised and depends on an enumerated"):
        elbo.Trace().value_and_surrogate(model, guide, torch.ones(3).double())


def test_dreg_refuses_a_site_without_a_path():
    toy = Switch()
    with pytest.raises(ValueError, match=r"'k' \(Bernoulli\) is not reparameterised. Use VIMCO"):
        elbo.DReG(4).value_and_surrogate(toy.model, toy.guide, toy.data())


def test_dreg_under_an_outer_gradient_is_refused():
    toy = LinearGaussian().eval()  # or pyro.module warns of vmap's tensors
    x = toy.data()
    pair = Pair(toy.model, toy.guide, (x,))
    params = {k: p.expand(2, *p.shape).requires_grad_() for k, p in pair.params.items()}

    def loss(p):
        with no_validation(), pair.bind(p, {}):
            return elbo.DReG(2).value_and_surrogate(toy.model, toy.guide, x, nesting=1)[1]

    with DrawnAnew(), pytest.raises(ValueError, match=r"vmap\(torch.func.grad\(loss\)\)"):
        torch.vmap(loss, randomness="different")(params)


@pytest.mark.parametrize(
    "make",
    [
        lambda: elbo.IWAE(0), lambda: elbo.VIMCO(1), lambda: elbo.MIWAE(0, 2),
        lambda: elbo.CIWAE(1.5), lambda: elbo.Renyi(math.nan), lambda: elbo.CUBO(1.0),
        lambda: elbo.ThermodynamicVI(4, first=1.5), lambda: elbo.WakeSleep(4, sleep=2.0),
        lambda: elbo.MMD(-1.0), lambda: elbo.Score(4, baseline="moving"), lambda: elbo.Trace(2.5),
        lambda: elbo.Trace(True), lambda: elbo.WakeSleep(1), lambda: elbo.ForwardKL(1),
        lambda: elbo.CUBO(2.0, 1), lambda: elbo.ThermodynamicVI(1),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


# ---------------------------------------------------------------- DReG beyond one latent


class Ladder(nn.Module):
    """z_2 ~ N(0, 1), z_1 | z_2 ~ N(a z_2, 1), x | z_1 ~ N(z_1, 1); q(z_1 | x) q(z_2 | z_1)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7).double())
        self.guide_ = nn.Parameter(torch.tensor([0.6, -0.2, 0.3, -0.1]).double())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z_2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z_1", dist.Normal(self.a * z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(self, x):
        g = self.guide_
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z_1", dist.Normal(g[0] * x, g[1].exp()))
            pyro.sample("z_2", dist.Normal(g[2] * z1, g[3].exp()))


class Flow(nn.Module):
    """z ~ N(0, 1), x | z ~ N(z², 1); q(z) an affine map of a sinh of a normal."""

    def __init__(self):
        super().__init__()
        self.noise = nn.Parameter(torch.tensor(0.1).double())
        self.guide_ = nn.Parameter(torch.tensor([0.3, -0.2]).double())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + z**2 / 2, self.noise.exp()), obs=x)

    def guide(self, x):
        base = dist.Normal(x.new_zeros(len(x)), x.new_ones(len(x)))
        flow = [
            dist.transforms.TanhTransform(),
            dist.transforms.AffineTransform(self.guide_[0], 2 * self.guide_[1].exp()),
        ]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, flow))


@pytest.mark.parametrize("kind", [Ladder, Flow])
@pytest.mark.parametrize("estimator", [elbo.DReG(4), elbo.STL(2)], ids=repr)
def test_path_derivatives_of_hierarchies_and_flows(kind, estimator):
    pair = kind()
    x = torch.tensor([0.5, -1.0, 1.6]).double()
    held = Pair(pair.model, pair.guide, (x,))
    own = Gradients(held, estimator, (x,), draws=20_000)
    right = Gradients(held, estimator, (x,), draws=20_000, reference=True)
    for name, (bias, se) in gradient_bias(own, right, 20_000).items():
        assert abs(bias) < 5 * se + 1e-9, name
    spread = [g(1)[1].var(0) for g in (own, right)]
    assert not torch.allclose(*spread)  # another estimator, with the same mean


@pytest.mark.parametrize(
    "estimator",
    [elbo.IWAE(4), elbo.DReG(4), elbo.STL(2), elbo.Score(4), elbo.CIWAE(0.5, 4)],
    ids=repr,
)
def test_continuous_latents_beside_discrete_ones_that_are_summed_out(estimator):
    """The guide draws z of a mixture and leaves k to the sum."""

    class Marginal(SwitchedGaussian):
        def guide(self, x, size=None):
            pyro.module("toy", self)
            g = self.guide_
            with pyro.plate("data", size or len(x), subsample=x):
                mean = g["s"] * x + g["start"][0] + g["start"][1]
                pyro.sample("z", dist.Normal(mean, 1.3 * g["log_scale"][0].exp()))

    toy = Marginal()
    x = toy.data()
    value, se = mean_value(estimator, toy, x, draws=4_000)
    assert value < toy.log_px(x) + 5 * se
    pair = Pair(toy.model, toy.guide, (x,))
    own = Gradients(pair, estimator, (x,), draws=8_000)
    right = Gradients(pair, estimator, (x,), replicates=own.replicates, reference=True)
    for name, (bias, se) in gradient_bias(own, right, 8_000).items():
        assert abs(bias) < 5 * se + 1e-9, name


def test_dreg_with_an_autoguide():
    """A flow over all latents: the drawn site is auxiliary, and Deltas hand out its parts."""
    from pyro.infer.autoguide import AutoIAFNormal

    def model(x):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        s = pyro.sample("s", dist.LogNormal(x.new_zeros(()), 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, s), obs=x)

    x = torch.tensor([0.5, -1.0, 1.6])
    for kind in (AutoMultivariateNormal, AutoIAFNormal):
        guide = kind(model)
        guide(x)
        pair = Pair(model, guide, (x,))
        own = Gradients(pair, elbo.DReG(4), (x,), draws=4_000)
        right = Gradients(pair, elbo.DReG(4), (x,), draws=4_000, reference=True)
        for name, (bias, se) in gradient_bias(own, right, 4_000).items():
            assert abs(bias) < 5 * se + 1e-6, (kind.__name__, name)


# ---------------------------------------------------------------- penalties


class Codes(nn.Module):
    """q(z_i | x_i) = N(x_i, s² I): the aggregate posterior is the data, blurred."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale).double())

    def model(self, x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("z", dist.Normal(x, self.scale).to_event(1))


def test_total_correlation_of_a_gaussian():
    """Data of correlation ρ blurred by s: TC = -½ log(1 - ρ'²), ρ' = ρ / (1 + s²)."""
    torch.manual_seed(0)
    rho, s, n = 0.9, 0.3, 1_500
    x = (
        torch.randn(n, 2).double()
        @ torch.linalg.cholesky(torch.tensor([[1.0, rho], [rho, 1.0]]).double()).T
    )
    pair = Codes(s)
    with torch.no_grad():
        weights = elbo.TotalCorrelation(2.0).draw(pair.model, pair.guide, x)
    expected = -0.5 * math.log(1 - (rho / (1 + s**2)) ** 2)
    # n points in a plane, blurred by 0.3: sampling error of log densities of order 1/√n, and a
    # bias of the same data being centre and draw, about log(1 + 1/(n p s²)) / 2
    assert abs(float(weights.extras["total_correlation"]) - expected) < 0.1
    independent = Codes(1e3)
    with torch.no_grad():
        weights = elbo.TotalCorrelation(2.0).draw(independent.model, independent.guide, x)
    assert abs(float(weights.extras["total_correlation"])) < 1e-3


def test_total_correlation_of_batches_estimates_that_of_the_data():
    torch.manual_seed(0)
    x = torch.randn(400, 2).double() @ torch.tensor([[1.0, 0.9], [0.0, 0.45]]).double()
    pair, penalty = Codes(0.8), elbo.TotalCorrelation(2.0)

    def value(rows, size=None):
        with torch.no_grad():
            return float(penalty.draw(pair.model, pair.guide, rows, size).extras[penalty.name])

    full = sum(value(x) for _ in range(10)) / 10
    batches = torch.tensor([value(x[torch.randperm(400)[:100]], 400) for _ in range(60)])
    assert abs(batches.mean() - full) < 0.1 * full + 5 * batches.std() / math.sqrt(60)


def test_mmd_is_zero_for_the_prior_and_known_for_a_shift():
    """E k of Gaussians of variance s²: (h² / (h² + 2 s²))^(L/2) exp(-δ²/(2 (h² + 2 s²)))."""
    n, s, h2 = 400, 0.6, 2.0
    shift = torch.tensor([1.0, -0.5]).double()
    pair, penalty = Codes(s), elbo.MMD(1.0)
    x = shift.expand(n, 2)

    def overlap(variance, distance2):
        total = h2 + variance
        return h2 / total * math.exp(-distance2 / (2 * total))

    expected = overlap(2 * s**2, 0) + overlap(2.0, 0) - 2 * overlap(1 + s**2, 1.25)
    with torch.no_grad():
        draws = torch.tensor(
            [float(penalty.draw(pair.model, pair.guide, x).extras["mmd"]) for _ in range(40)]
        )
    assert abs(draws.mean() - expected) < 5 * draws.std() / math.sqrt(40)
    prior = Codes(1.0)
    with torch.no_grad():
        draws = torch.tensor(
            [float(penalty.draw(prior.model, prior.guide, 0 * x).extras["mmd"]) for _ in range(40)]
        )
    assert abs(draws.mean()) < 5 * draws.std() / math.sqrt(40)


def test_a_penalty_counts_once_per_datum():
    pair = Codes(0.6)
    x = torch.randn(8, 2).double()
    estimator = elbo.MMD(3.0, elbo.Beta(0.0))
    weights = estimator.draw(pair.model, pair.guide, x, 80)
    base = elbo.Beta(0.0).bound(weights)
    expected = base - 3.0 * 80 * weights.extras["mmd"]
    assert torch.allclose(estimator.bound(weights), expected, rtol=1e-12)
    assert not estimator.is_bound


class Chained(nn.Module):
    """q(z_1 | x) = N(x, 1), q(z_2 | z_1) = N(z_1, s²): their draws are close to each other."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale).double())

    def model(self, x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("z_1", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("z_2", dist.Normal(x.new_zeros(()), 1.0))

    def guide(self, x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z_1", dist.Normal(x, 1.0))
            pyro.sample("z_2", dist.Normal(z, self.scale))


@pytest.mark.parametrize(
    "base", [elbo.Trace(), elbo.Trace(2), elbo.Trace(2, vectorized=False)], ids=repr
)
@pytest.mark.parametrize("size", [None, 4_000])
def test_total_correlation_of_latents_that_depend_on_each_other(base, size):
    """x ~ N(0, 1): z_1 ~ N(0, 2), z_2 = z_1 + s ε, so TC = -½ log(1 - ρ²), ρ² = 2 / (2 + s²)."""
    rows, rounds, s = (30, 30, 0.3) if not base.vectorized else (400, 6, 0.3)
    expected = -0.5 * math.log(1 - 2 / (2 + s**2))
    assert expected > 1.5
    pair, penalty, found = Chained(s), elbo.TotalCorrelation(2.0, base), []
    for seed in range(rounds):
        torch.manual_seed(seed)
        x = torch.randn(rows).double()
        with torch.no_grad():
            weights = penalty.draw(pair.model, pair.guide, x, size)
        found.append(float(weights.extras[penalty.name]))
    error = torch.tensor(found).std() / math.sqrt(rounds)
    # the logarithm of a density estimate from n kernels of width s is biased by half its relative
    # variance, at most 1 / (4 √π n s p(z)), whose mean over z ~ p is the width of p, here about 8
    assert abs(sum(found) / rounds - expected) < 5 * error + 8 / (4 * math.sqrt(math.pi) * rows * s)


def test_a_penalty_drives_the_schedule_of_its_base():
    """β rises under the penalty as without it: in SVI, in an eager fit, in a compiled one."""
    x = torch.randn(6, 2)
    for penalised in (elbo.MMD(0.0, elbo.Beta(1.0, warmup=4)),
                      elbo.TotalCorrelation(1.0, elbo.Beta(1.0, warmup=4))):  # fmt: skip
        pair = Codes(0.7).float()
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), penalised)
        for expected in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0):
            assert float(penalised.base.weight()) == expected
            svi.step(x)
        with at_step(penalised, torch.tensor(3)):  # as the compiled step does
            assert float(penalised.base.weight()) == 0.75
        penalised.step = 0
        alone, beside = (
            fit(Codes(0.7).float(), x, elbo=e, steps=8, lr=0.05, seed=3, progress=False,
                compile=False).losses
            for e in (elbo.Beta(1.0, warmup=4), penalised)
        )  # fmt: skip
        constant = fit(Codes(0.7).float(), x, elbo=elbo.Beta(0.0), steps=8, lr=0.05, seed=3,
                       progress=False, compile=False).losses  # fmt: skip
        assert len(alone) == len(beside) == 8
        # the penalty of weight 0 draws from the prior too, so later noise differs: the first is one
        assert float(alone[0]) == pytest.approx(float(constant[0]))
        assert abs(float(beside[-1]) - float(constant[-1])) > 0.1


@pytest.mark.parametrize("penalty", [elbo.MMD(1.0), elbo.TotalCorrelation(2.0)], ids=repr)
def test_a_penalty_on_one_row_is_refused(penalty):
    pair = Codes(0.7)
    with pytest.raises(ValueError, match="compares the latents of different rows, and this batch"):
        penalty.loss(pair.model, pair.guide, torch.zeros(1, 2).double())


@pytest.mark.parametrize("base", [elbo.Trace(4), elbo.Trace(4, vectorized=False)], ids=repr)
def test_mmd_does_not_depend_on_the_number_of_particles(base):
    """Two rows far apart with little noise: pairs of one row would count as draws of q(z)."""
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double()
    pair = Codes(0.1)

    def mean(estimator, n):
        with torch.no_grad():
            draws = [estimator.draw(pair.model, pair.guide, x).extras["mmd"] for _ in range(n)]
        draws = torch.stack(draws)
        return float(draws.mean()), float(draws.std()) / math.sqrt(n)

    (one, se), (four, se4) = mean(elbo.MMD(1.0), 150), mean(elbo.MMD(1.0, base), 150)
    assert abs(one - four) < 5 * math.hypot(se, se4)


def test_beta_above_one_is_a_bound_that_is_not_tight():
    assert elbo.Beta(4.0).is_bound and not elbo.Beta(4.0).is_tight
    assert elbo.Beta(1.0).is_bound and elbo.Beta(1.0).is_tight
    for other in (elbo.Beta(0.5), elbo.Beta(4.0, warmup=10), elbo.Beta(1.0, free_bits=0.1)):
        assert not other.is_bound


def test_free_bits_of_a_joint_guide_are_refused():
    def model(x):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0).expand([3]).to_event(1), obs=x)

    x = torch.zeros(3)
    joint = AutoMultivariateNormal(model)
    with pytest.raises(ValueError, match="draws several of them jointly"):
        elbo.Beta(1.0, free_bits=0.5).loss(model, joint, x)
    assert math.isfinite(elbo.Beta(1.0).loss(model, joint, x))
    assert math.isfinite(elbo.Beta(1.0, free_bits=0.5).loss(model, AutoNormal(model), x))


# ---------------------------------------------------------------- impossible states


class Impossible(nn.Module):
    """k in {0, 1, 2}; x under k = 2 is impossible and the guide knows; l in {0, 1} given k."""

    def __init__(self, states):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.3, -0.2]).double())
        self.q = nn.Parameter(torch.tensor([0.5, 0.1]).double())
        self.states = states

    def padded(self, logits):
        return nn.functional.pad(logits, (0, self.states - 2), value=-math.inf)

    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.padded(self.p)))
            i = pyro.sample("l", dist.Bernoulli(logits=self.p[0] * k))
            mean = self.p[1] * k + i
            lp = torch.where(k < 2, dist.Normal(mean, 1.0).log_prob(x), -math.inf)
            pyro.factor("x", lp)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.padded(self.q)))
            pyro.sample("l", dist.Bernoulli(logits=self.q[1] * k))


def test_enum_with_an_impossible_state():
    """It counts nothing: value and gradient are those of the model without it."""
    x = torch.tensor([0.4, -1.0]).double()
    found = []
    for states in (2, 3):
        pair = Impossible(states)
        value, surrogate = elbo.Enum().value_and_surrogate(pair.model, pair.guide, x)
        found.append([value, *torch.autograd.grad(surrogate, list(pair.parameters()))])
        assert elbo.Enum().loss(pair.model, pair.guide, x) == pytest.approx(-float(value))
    for two, three in zip(*found):
        assert torch.isfinite(two).all()
        assert torch.allclose(two, three, rtol=1e-12)


def test_enum_is_minus_infinity_where_the_guide_believes_in_an_impossible_state():
    class Believes(Impossible):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Categorical(logits=x.new_zeros(3)))
                pyro.sample("l", dist.Bernoulli(logits=self.q[1] * k))

    pair = Believes(3)
    value, _ = elbo.Enum().value_and_surrogate(
        pair.model, pair.guide, torch.zeros(2).double(), nesting=1
    )
    assert value == -math.inf
