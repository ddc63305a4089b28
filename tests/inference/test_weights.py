"""What log_weights says of plates, masks, scales, subsampling and enumeration, by hand."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import elbo
from inference.weights import dream, log_q_at, log_weights


def Normal(mean, sd):
    double = {"dtype": torch.float64}
    return torch.distributions.Normal(
        torch.as_tensor(mean, **double), torch.as_tensor(sd, **double)
    )


X = torch.tensor([[0.3, -1.0], [0.7, 0.2], [-0.4, 1.5]]).double()  # (outer 3, inner 2)


def nested(x, size=None):
    """w global, u in the outer plate, z and x in both."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("outer", size or len(x), subsample=x, dim=-2):
        u = pyro.sample("u", dist.Normal(w, 1.0))
        with pyro.plate("inner", x.shape[-1], dim=-1):
            z = pyro.sample("z", dist.Normal(u, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def nested_guide(x, size=None):
    w = pyro.sample("w", dist.Normal(x.new_tensor(0.1), 0.5))
    with pyro.plate("outer", size or len(x), subsample=x, dim=-2):
        pyro.sample("u", dist.Normal(w, 0.7))
        with pyro.plate("inner", x.shape[-1], dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.8))


@pytest.mark.parametrize("particles", [1, 3])
def test_shapes_with_nested_plates(particles):
    weights = log_weights(nested, nested_guide, X, particles=particles)
    assert weights.nesting == 2
    shapes = {n: tuple(t.log_prob.shape) for n, t in weights.model.items()}
    k = particles
    assert shapes == {"w": (k, 1, 1), "u": (k, 3, 1), "z": (k, 3, 2), "x": (k, 3, 2)}
    assert weights.plates == ()  # w is outside all of them
    assert weights.log_weight().shape == (k, 1, 1)
    assert weights.elbo().shape == (k,)
    by_hand = sum(t.log_prob.sum((1, 2)) for t in weights.model.values()) - sum(
        t.log_prob.sum((1, 2)) for t in weights.guide.values()
    )
    assert torch.allclose(weights.elbo(), by_hand, rtol=1e-14)


def test_density_by_hand():
    weights = log_weights(nested, nested_guide, X, particles=3)
    value = {n: t.value for n, t in weights.guide.items()}
    w, u, z = value["w"], value["u"], value["z"]
    log_p = (
        Normal(0.0, 1.0).log_prob(w).reshape(3)
        + Normal(w, 1.0).log_prob(u).sum((1, 2))
        + Normal(u, 1.0).log_prob(z).sum((1, 2))
        + Normal(z, 1.0).log_prob(X).sum((1, 2))
    )
    log_q = (
        Normal(0.1, 0.5).log_prob(w).reshape(3)
        + Normal(w, 0.7).log_prob(u).sum((1, 2))
        + Normal(X / 2, 0.8).log_prob(z).sum((1, 2))
    )
    assert torch.allclose(weights.elbo(), log_p - log_q, rtol=1e-13)


@pytest.mark.parametrize("how", ["size", "full_sizes"])
def test_subsampling_scales_outside_the_weights(how):
    def local(x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("z", dist.Normal(x / 2, 0.9))

    x = X.flatten()
    args = (x, 24) if how == "size" else (x,)
    sizes = {} if how == "size" else {"data": 24}
    pyro.set_rng_seed(1)
    scaled = log_weights(local, guide, *args, particles=3, full_sizes=sizes)
    pyro.set_rng_seed(1)
    plain = log_weights(local, guide, x, particles=3)
    assert scaled.scale == 4.0 and plain.scale == 1.0 and scaled.data_size == 24
    assert torch.equal(scaled.log_weight(), plain.log_weight())  # no N/B in a weight
    assert torch.allclose(scaled.elbo(), 4 * plain.elbo(), rtol=1e-14)
    scaled.refuse_subsampled_joint("IWAE(8)")  # every site is in the plate: nothing to refuse


def test_full_sizes_scale_the_data_plate_only():
    weights = log_weights(nested, nested_guide, X, full_sizes={"outer": 9})
    assert weights.model["w"].scale == 1.0 and weights.guide["w"].scale == 1.0
    assert weights.model["u"].scale == 3.0 and weights.model["x"].scale == 3.0
    parts = [s * t.log_prob.sum() * (1 if t.name == "w" else 3) for s, t in weights.terms()]
    assert torch.allclose(weights.elbo(), sum(parts), rtol=1e-14)
    with pytest.raises(ValueError, match="w lies outside the subsampled plate 'outer'"):
        weights.refuse_subsampled_joint("IWAE(8)")
    log_weights(nested, nested_guide, X).refuse_subsampled_joint("IWAE(8)")  # nor on all data


def test_masks_and_scales():
    keep = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", 3), pyro.poutine.mask(mask=keep), pyro.poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3), pyro.poutine.mask(mask=keep), pyro.poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    weights = log_weights(model, guide, X[:, 0], particles=3)
    z = weights.guide["z"].value
    expected = (Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(X[:, 0])
                - Normal(X[:, 0] / 2, 0.8).log_prob(z)) * 0.5 * keep  # fmt: skip
    assert torch.allclose(weights.log_weight(), expected, rtol=1e-13)
    assert weights.model["z"].user_scale == 0.5 and weights.scale == 1.0


def test_deterministic_sites_do_not_join_the_data():
    def model(x):
        pyro.deterministic("rate", x.new_tensor(2.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    weights = log_weights(model, guide, X[:, 0], particles=4)
    assert [p.name for p in weights.plates] == ["data"]
    assert weights.log_weight().shape == (4, 3)


def test_a_subsampled_loop_keeps_its_scale():
    def model(x):
        for i in pyro.plate("data", 6, subsample_size=3):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i % 3])

    def guide(x):
        for i in pyro.plate("data", 6, subsample_size=3):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    weights = log_weights(model, guide, X[:, 0].float())
    assert weights.elbo().shape == (1,)
    assert all(t.scale == 2.0 for _, t in weights.terms())
    with pytest.raises(ValueError, match="Python loop"):
        weights.refuse_subsampled_joint("IWAE(8)")


@pytest.mark.parametrize("particles", [1, 3])
def test_particles_one_by_one(particles):
    pyro.set_rng_seed(3)
    stacked = log_weights(nested, nested_guide, X, particles=particles, vectorized=False)
    pyro.set_rng_seed(3)
    single = [log_weights(nested, nested_guide, X).elbo() for _ in range(particles)]
    assert torch.equal(stacked.elbo(), torch.cat(single))
    assert torch.equal(stacked.fixed().elbo(), stacked.elbo())


def test_a_site_without_its_event_dimension_is_named():
    def model(x):
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("odd", dist.Normal(x.new_zeros(4, 3), 1.0), obs=x.new_zeros(4, 3))

    def guide(x):
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

    with pytest.raises(ValueError, match=r"'odd'.*to_event"):
        log_weights(model, guide, X)


# ---------------------------------------------------------------- enumeration

LOG_PI = torch.tensor([0.2, 0.5, 0.3]).double().log().log_softmax(0)
MEANS = torch.tensor([-2.0, 0.0, 3.0]).double()


def mixture(x, size=None):
    with pyro.plate("data", size or len(x), subsample=x):
        k = pyro.sample("k", dist.Categorical(logits=LOG_PI))
        pyro.sample("x", dist.Normal(MEANS[k], 1.0), obs=x)


def nothing(*args, **kwargs):
    pass


def test_mixture_is_summed_out():
    x = X.flatten()
    expected = torch.logsumexp(LOG_PI[:, None] + Normal(MEANS[:, None], 1.0).log_prob(x), 0)
    weights = log_weights(mixture, nothing, x, 12)
    assert torch.allclose(weights.log_weight()[0], expected, rtol=1e-14)
    assert torch.allclose(weights.elbo(), 2 * expected.sum(), rtol=1e-14)


@pytest.mark.parametrize("particles", [1, 3])
def test_nested_discrete_latents_are_summed_out(particles):
    """A class per group, a state per member given the class, beside a continuous global latent."""

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("groups", 3, dim=-2):
            g = pyro.sample("g", dist.Bernoulli(x.new_tensor(0.3)))
            with pyro.plate("members", 2, dim=-1):
                k = pyro.sample("k", dist.Bernoulli(torch.sigmoid(g - w)))
                pyro.sample("x", dist.Normal(w + 2 * k - g, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_tensor(0.2), 0.6))

    weights = log_weights(model, guide, X, particles=particles)
    w = weights.guide["w"].value.reshape(particles, 1, 1)
    by_group = []
    for g in (0.0, 1.0):
        inner = [
            dist.Bernoulli(torch.sigmoid(g - w)).log_prob(w.new_tensor(k))
            + Normal(w + 2 * k - g, 1.0).log_prob(X)
            for k in (0.0, 1.0)
        ]
        prior = dist.Bernoulli(w.new_tensor(0.3)).log_prob(w.new_tensor(g))
        by_group.append(prior + torch.logsumexp(torch.stack(inner), 0).sum(2))
    expected = torch.logsumexp(torch.stack(by_group), 0).sum(1)
    expected = expected + (Normal(0.0, 1.0).log_prob(w) - Normal(0.2, 0.6).log_prob(w)).reshape(-1)
    assert torch.allclose(weights.elbo(), expected, rtol=1e-13)


def test_guide_side_enumeration_is_the_exact_average():
    """k in the guide, z | k drawn once per value of k: the mean over k of log p - log q."""
    logits = torch.tensor([0.3, -0.2, 0.1]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=LOG_PI))
            z = pyro.sample("z", dist.Normal(MEANS[k], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal((MEANS[k] + x) / 2, 0.9))

    x = X.flatten()
    weights = log_weights(model, guide, x, particles=2)
    q = torch.softmax(logits, 0)
    z = weights.guide["z"].value.reshape(3, 2, 6)  # one draw per value of k
    expected = 0.0
    for k in range(3):
        log_w = (
            LOG_PI[k] + Normal(MEANS[k], 1.0).log_prob(z[k]) + Normal(z[k], 1.0).log_prob(x)
            - q[k].log() - Normal((MEANS[k] + x) / 2, 0.9).log_prob(z[k])
        )  # fmt: skip
        expected = expected + q[k] * log_w
    assert torch.allclose(weights.log_weight(), expected, rtol=1e-13)
    again = weights.fixed()
    assert torch.allclose(again.log_weight(), weights.log_weight(), rtol=1e-13)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_drawn_latent_with_a_summed_out_parent(particles):
    """The guide draws z only; p(z) = Σ_k p(k) p(z | k) is a mixture."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=LOG_PI))
            z = pyro.sample("z", dist.Normal(MEANS[k], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.9))

    x = X.flatten()
    weights = log_weights(model, guide, x, particles=particles)
    z = weights.guide["z"].value.reshape(particles, 6)
    prior = torch.logsumexp(LOG_PI + Normal(MEANS, 1.0).log_prob(z[..., None]), -1)
    expected = prior + Normal(z, 1.0).log_prob(x) - Normal(x / 2, 0.9).log_prob(z)
    assert torch.allclose(weights.log_weight(), expected, rtol=1e-13)
    assert weights.model["marginal:k,z"].sites == ("k", "z")
    with pytest.raises(ValueError, match="the prior of z was summed out"):
        elbo.Beta(2.0).bound(weights)
    assert elbo.kl_by_site(weights) == {}


def test_enumeration_beyond_a_subsampled_plate_is_refused():
    def model(x, size=None):
        k = pyro.sample("k", dist.Categorical(logits=LOG_PI))
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("x", dist.Normal(MEANS[k], 1.0), obs=x)

    x = X.flatten()
    full = log_weights(model, nothing, x)
    expected = torch.logsumexp(LOG_PI + Normal(MEANS[:, None], 1.0).log_prob(x).sum(1), 0)
    assert torch.allclose(full.elbo(), expected.reshape(1), rtol=1e-13)
    with pytest.raises(ValueError, match="'k' is summed out over all data at once"):
        log_weights(model, nothing, x, 60)
    with pytest.raises(ValueError, match="'k' is summed out over all data at once"):
        log_weights(model, nothing, x, full_sizes={"data": 60})


def test_an_average_over_every_combination_is_refused():
    """g is outside the plate of the enumerated guide site k that its factor depends on."""

    def model(x):
        g = pyro.sample("g", dist.Bernoulli(x.new_tensor(0.3)))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))
            pyro.sample("x", dist.Normal(2 * k - g, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(x.new_tensor(0.4)), infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match="'k' is enumerated inside plate data"):
        log_weights(model, guide, X.flatten())


def test_scales_that_differ_within_a_sum_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=LOG_PI))
            with pyro.poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(MEANS[k], 1.0), obs=x)

    with pytest.raises(ValueError, match=r"one poutine\.scale"):
        log_weights(model, nothing, X.flatten())


def test_impossible_states_have_no_gradient():
    odds = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    edge = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(logits=odds))
            low = torch.where(k > 0, edge[1], edge[0])
            pyro.sample("x", dist.Uniform(low, low + 1, validate_args=False), obs=x)

    x = torch.tensor([0.5, 1.5, 1.7]).double()
    total = log_weights(model, nothing, x).elbo().sum()
    prior = dist.Bernoulli(logits=odds).log_prob(torch.tensor([0.0, 1.0, 1.0]).double()).sum()
    assert torch.allclose(total, prior, rtol=1e-12)
    (found,) = torch.autograd.grad(total, odds, retain_graph=True)
    assert torch.allclose(found, torch.autograd.grad(prior, odds)[0], rtol=1e-12)


def test_sums_that_underflow_factor_by_factor():
    """The likely state of one factor is impossible in the other: exp of each alone is zero."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=x.new_tensor([0.0, -800.0])))
            pyro.sample("x", dist.Normal(k * 60.0, 1.0), obs=x)

    x = torch.tensor([60.0]).double()  # log p: -1,800 through k = 0, -800 through k = 1
    expected = -800 + Normal(60.0, 1.0).log_prob(x)
    assert torch.allclose(log_weights(model, nothing, x).log_weight()[0], expected, rtol=1e-12)


def test_two_to_the_ten_states():
    """Ten binary latents per datum: the sum over 1,024 states, against an explicit loop."""
    prior = torch.linspace(-1, 1, 10).double()
    effect = torch.linspace(-0.9, 1.1, 10).double()

    def model(x):
        with pyro.plate("data", len(x)):
            mean = x.new_zeros(())
            for j in range(10):
                k = pyro.sample(f"k_{j}", dist.Bernoulli(logits=prior[j]))
                mean = mean + effect[j] * k
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = X.flatten()[:2]
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=10))).double()
    log_prior = dist.Bernoulli(logits=prior).log_prob(states).sum(1)
    expected = torch.logsumexp(
        log_prior[:, None] + Normal((states @ effect)[:, None], 1.0).log_prob(x), 0
    )
    weights = log_weights(model, nothing, x)
    assert torch.allclose(weights.log_weight()[0], expected, rtol=1e-12)


# ---------------------------------------------------------------- the guide again


def test_fixed_has_the_score_as_its_gradient():
    mean = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, 0.5))

    weights = log_weights(model, guide, X[:, 0], particles=4)
    z = weights.guide["z"].value.detach()
    (score,) = torch.autograd.grad(weights.fixed().log_q().sum(), mean)
    assert torch.allclose(score, ((z - mean) / 0.25).sum(), rtol=1e-12)


def test_a_guide_without_a_density_at_fixed_values_is_refused():
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        noise = pyro.sample("noise", dist.Normal(x.new_zeros(()), 1.0),
                            infer={"is_auxiliary": True})  # fmt: skip
        pyro.sample("z", dist.Delta(noise + shift))

    weights = log_weights(model, guide, X[:, 0])
    with pytest.raises(ValueError, match="Score: guide site 'z' is a Delta"):
        weights.at_constants("Score")


def test_log_q_at_given_values():
    z = torch.zeros(2, 3, 2).double()
    w, u = torch.full((2, 1, 1), 0.4).double(), torch.full((2, 3, 1), -0.2).double()
    terms = log_q_at(nested_guide, {"w": w, "u": u, "z": z}, X, particles=2, nesting=2)
    assert torch.allclose(terms["u"].log_prob, Normal(0.4, 0.7).log_prob(u))
    assert torch.allclose(terms["z"].log_prob[1], Normal(X / 2, 0.8).log_prob(z[1]))


def test_a_dream_replaces_the_observed_argument():
    x = X.flatten()
    latents, (dreamed, size) = dream(mixture, x, 12)
    assert set(latents) == {"k"} and dreamed.shape == x.shape and size == 12
    assert not torch.equal(dreamed, x)
    residual = (dreamed - MEANS[latents["k"]]).abs()
    assert residual.max() < 6  # unit noise around the means

    def hidden(x):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([6]).to_event(1), obs=x * 2)

    with pytest.raises(ValueError, match="'x' observes something that is not an argument"):
        dream(hidden, x)


def test_several_observed_sites():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Bernoulli(logits=z), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    x, y = X[:, 0], torch.tensor([1.0, 0.0, 1.0]).double()
    weights = log_weights(model, guide, x, y, particles=2)
    z = weights.guide["z"].value
    likelihood = Normal(z, 1.0).log_prob(x) + dist.Bernoulli(logits=z).log_prob(y)
    kl = Normal(x / 2, 0.8).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    assert torch.allclose(weights.log_weight(), likelihood - kl, rtol=1e-13)
    assert math.isclose(sum(t.observed for t in weights.model.values()), 2)
