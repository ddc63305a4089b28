"""Nobody writes particle axes: pairs as people write them, whatever way their draws are made."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

from inference import elbo, fit, make_guide
from inference.pairs.gate import admit
from inference.weights import log_weights, plate_nesting, simulate, way_of
from inference.weights.ways import Subsamples

X = torch.linspace(-1, 1, 7)
Y = 0.5 + 2 * X
M = torch.stack([X, X**2, X**3], -1)


def plain(x, y):
    """The truth of the ways: everything reduces from the right."""
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(beta[..., 0] + beta[..., 1] * x, 1.0), obs=y)


def indexed(x, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.deterministic("slope", beta[1])
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(beta[0] + beta[1] * x, 1.0), obs=y)


def square(x, y):
    """A coefficient for each datum, as an event."""
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(beta * x, 1.0), obs=y)


def product(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(M @ beta, scale), obs=y)


def looped(x, y):
    a, b = (pyro.sample(n, dist.Normal(0.0, 1.0)) for n in "ab")
    mean = [a]
    for t in range(1, len(y)):
        mean.append(a + b * y[t - 1])
    pyro.sample("y", dist.Normal(torch.stack(mean), 1.0).to_event(1), obs=y)


def one_hot(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(F.one_hot(k.long(), 2).float() @ w, 1.0), obs=y)


def share(x, y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    pyro.sample("y", dist.Normal(torch.stack([p] * len(y)), s).to_event(1), obs=y)


def on_the_host(x, y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(m if float(m) > 0 else 2 * m, 1.0), obs=y)


def subsampled(x, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=3) as i:
        pyro.sample("y", dist.Normal(beta[0] + beta[1] * x[i], 1.0), obs=y[i])


def beta_guide(x, y):
    a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
    pyro.sample("p", dist.Beta(a, 3.0))
    pyro.sample("s", dist.Gamma(a, 2.0))


def pair_of(model):
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = beta_guide if model is share else make_guide("mean-field", model, init_scale=0.5)
    nesting = plate_nesting(model, guide, X, Y)
    return model, guide, nesting


WAYS = {
    plain: "plate", indexed: "vmap", product: "vmap", looped: "vmap", one_hot: "vmap",
    share: "vmap", on_the_host: "loop", subsampled: "vmap", square: "vmap",
}  # fmt: skip


@pytest.mark.parametrize("model", WAYS, ids=lambda m: m.__name__)
def test_each_way_gives_the_densities_of_single_draws(model):
    model, guide, nesting = pair_of(model)
    way, why = way_of(model, guide, X, Y, nesting=nesting)
    assert way == WAYS[model] and (why is None) == (way != "loop")
    k = 5
    with torch.no_grad(), Subsamples():
        several = log_weights(model, guide, X, Y, particles=k, nesting=nesting)
        drawn = {n: t.value for n, t in several.guide.items() if t.free}
        told = {"nesting": nesting, "vectorized": "loop", "given": drawn}
        alone = log_weights(model, guide, X, Y, particles=k, **told)
    assert several.way == way and several.model.keys() == alone.model.keys()
    for mine, theirs in ((several.guide, alone.guide), (several.model, alone.model)):
        for n, t in mine.items():
            assert t.log_prob.dim() == nesting + 1
            densities = (w[n].pointwise(k, nesting)[0] for w in (mine, theirs))
            torch.testing.assert_close(*densities, rtol=1e-4, atol=1e-5)
    firsts = torch.stack([v.reshape(k, -1)[:, 0] for v in drawn.values()])
    assert (firsts.std(1) > 1e-3).all()  # each draw is its own


def test_a_pair_that_broadcasts_wrongly_is_seen():
    """Of two data, `beta[0]` of three draws fits a plate's shapes: nothing raises."""
    model, guide, _ = pair_of(indexed)
    log_weights(model, guide, X[:2], Y[:2], particles=3, nesting=1, vectorized="plate")
    assert way_of(model, guide, X[:2], Y[:2], nesting=1)[0] == "vmap"


def test_what_the_model_records_follows_its_draws():
    model, guide, nesting = pair_of(indexed)
    weights = log_weights(model, guide, X, Y, particles=4, nesting=nesting)
    slope = weights.model["slope"].values(4, nesting)[0]
    beta = weights.model["beta"].values(4, nesting)[0]
    assert torch.equal(slope, beta[:, 1])


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_values_densities_and_gradients_are_those_of_a_plate(way):
    """At the same draws: also of the guide at fixed values."""
    model, guide, nesting = pair_of(plain)
    first = log_weights(model, guide, X, Y, particles=3, nesting=nesting, vectorized="plate")
    drawn = {n: t.value.detach() for n, t in first.guide.items() if t.free}
    grads = []
    for how in ("plate", way):
        w = log_weights(
            model, guide, X, Y, particles=3, nesting=nesting, vectorized=how, given=drawn
        )
        loss = w.elbo().sum() + w.fixed().elbo().sum()
        grads.append(torch.autograd.grad(loss, list(guide.parameters())))
    for a, b in zip(*grads):
        assert torch.allclose(a, b, rtol=1e-4)


def test_the_predictive_distribution_follows_its_draws():
    values = {"beta": torch.tensor([[[10.0, 0.0]], [[-10.0, 0.0]]])}
    terms, observed = simulate(indexed, X, Y, values=values, particles=2, nesting=1, way="vmap")
    assert observed["y"] is Y and terms["y"].value.shape == (2, 7)
    assert (terms["y"].value[0] > 3).all() and (terms["y"].value[1] < -3).all()


def test_a_pair_that_takes_one_draw_at_a_time_is_said_once_and_where():
    guide = make_guide("mean-field", on_the_host)
    quiet = {"compile": False, "progress": False, "steps": 1}
    with pytest.warns(UserWarning, match=r"one by one.*test_ways.py:\d+ .*float\(m\)"):
        run = fit(on_the_host, guide, (X, Y), elbo=elbo.Trace(2), **quiet)
    assert admit(run, X, Y).way == "loop"  # without a second warning, which would be an error


@pytest.mark.parametrize("way", ["plate", "vmap", "loop"])
def test_divergences_in_closed_form_see_every_draw(way):
    """KL(N(a + loc, 1) || N(0, 1)) = (a + loc)² / 2, where a is drawn."""

    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * a, 1.0))

    def guide(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a + x, 1.0))

    w = log_weights(model, guide, X, particles=4, nesting=1, vectorized=way)
    kl = elbo.analytic_kl(w.guide["z"], w.model["z"])
    assert kl.shape == (4, 7)
    torch.testing.assert_close(kl, (w.model["a"].value.reshape(4, 1) + X) ** 2 / 2)


@pytest.mark.slow
def test_many_particles_compile_as_one_does():
    """The same noise: the proof of every compiled step holds it to the eager one."""
    run = fit(
        product, make_guide("mean-field", product), (X, Y), elbo=elbo.Trace(3), steps=40,
        compile=True, progress=False,
    )  # fmt: skip
    assert run.compiled and run.pair_.way == "vmap"
