"""Each kind of guide, with 0, 1 and 2 plates, on each kind of model: from fit to `.corrected`."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import biject_to, constraints

from inference import diagnose, evaluate, fit, make_guide, to_datatree

KINDS = (
    "mean-field", "low-rank", "full-rank", "structured", "mixture", "iaf", "spline", "pathfinder",
    "laplace", "pyro", "hand",
)  # fmt: skip
FORMS = "flat", "dependent", "discrete", "sequence"
COVERING = ("full-rank", 1, "discrete"), ("structured", 2, "flat")  # the others are slow
TIMES, SHAPES = 4, ((), (3,), (2, 3))
REAL = constraints.real


def sites(form, plates):
    """Name, number of plates and prior, given the latents before, of each latent; then the mean."""
    if form == "dependent":
        yield "a", 0, lambda v: dist.Uniform(0.0, 1.0)
        yield "b", 0, lambda v: dist.Uniform(0.0, 1 - v["a"])
        for n in range(1, plates + 1):
            yield f"w_{n}", n, lambda v: dist.Uniform(-1.0, v["b"])
        return
    flat = form == "flat"
    yield "m", 0, lambda v: dist.ImproperUniform(REAL, (), ()) if flat else dist.Normal(0.0, 1.0)
    for n in range(1, plates + 1):
        above = "m" if n == 1 else f"w_{n - 1}"
        yield f"w_{n}", n, lambda v, above=above: dist.Normal(v[above], 0.5)
    if form == "discrete":
        yield "k", plates, lambda v: dist.Categorical(torch.tensor([0.3, 0.7]))
    for t in range(TIMES if form == "sequence" else 0):
        yield f"z_{t}", plates, lambda v, t=t: dist.Normal(0.7 * v.get(f"z_{t - 1}", 0.0), 1.0)


def run_through(form, plates, draw):
    """Call draw(name, prior) at each latent, inside its plates; return values and plates."""
    values = {}
    opened = [pyro.plate(f"axis_{n}", SHAPES[plates][-n], dim=-n) for n in range(1, plates + 1)]

    def within(n, function):
        if n == 0:
            return function()
        with opened[n - 1]:
            return within(n - 1, function)

    for name, n, prior in sites(form, plates):
        values[name] = within(n, lambda name=name, prior=prior: draw(name, prior(values)))
    return values, within


def data(form, plates):
    shape = SHAPES[plates] + ((TIMES,) if form == "sequence" else ())
    return 0.5 + 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(plates))


def make_model(form, plates):
    def model(y):
        v, within = run_through(form, plates, pyro.sample)
        mean = sum(v[n] for n in ("a", "b", "m", f"w_{plates}") if n in v)
        if form == "sequence":
            for t in range(TIMES):
                seen = dist.Normal(mean + v[f"z_{t}"], 0.5)
                within(plates, lambda t=t, seen=seen: pyro.sample(f"y_{t}", seen, obs=y[..., t]))
            return
        mean = mean + v.get("k", 0.0)
        within(plates, lambda: pyro.sample("y", dist.Normal(mean, 0.5), obs=y))

    return model


def make_hand_written(form, plates):
    def draw(name, prior):
        if name == "k":  # summed out
            return torch.zeros(())
        shape = SHAPES[plates][-int(name[2:]) :] if name.startswith("w_") else ()
        shape = SHAPES[plates] if name.startswith("z_") else shape
        loc = pyro.param(f"{name}_loc", torch.zeros(shape))
        scale = pyro.param(f"{name}_scale", torch.full(shape, 0.3), constraint=constraints.positive)
        support = REAL if name == "m" else prior.support
        normal = dist.Normal(loc, scale)
        return pyro.sample(name, dist.TransformedDistribution(normal, [biject_to(support)]))

    return lambda y: run_through(form, plates, draw)


def make(kind, form, plates):
    model, y = make_model(form, plates), data(form, plates)
    if kind == "hand":
        return model, make_hand_written(form, plates), y
    if kind == "pyro":
        start = pyro.infer.autoguide.initialization.init_to_feasible
        return model, AutoNormal(pyro.poutine.block(model, hide=["k"]), init_loc_fn=start), y
    return model, make_guide(kind, model, y), y


TABLE = [(k, n, f) for k in KINDS for n in (0, 1, 2) for f in FORMS]
# what check says: Pyro's autoguides neither follow a support, nor draw a flat prior
TABLE = [row for row in TABLE if row[0] != "pyro" or row[2] in ("discrete", "sequence")]


@pytest.mark.parametrize(
    "kind, plates, form",
    [pytest.param(*r, marks=[] if r in COVERING else pytest.mark.slow) for r in TABLE],
)
def test_from_fit_to_the_corrected_tree(kind, plates, form):
    model, guide, y = make(kind, form, plates)
    latents = {name for name, _, _ in sites(form, plates)}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", "no prior groups|Estimated shape|The point-wise LOO")
        run = fit(model, guide, y, steps=60, lr=0.02, compile=False, progress=False)
        found = diagnose(run, y, draws=200)
        tree = to_datatree(run, y, draws=200)
        bound = evaluate(run, y, particles=200).elbo
    assert run.steps == 60 and np.isfinite(bound)
    assert set(tree["posterior"].data_vars) == latents
    assert (found.verdict == "trust the corrected posterior") <= (found.corrected is not None)
    assert bool(found.reasons) == (found.verdict != "trust")
    for each in (tree, tree if found.corrected is None else found.corrected):
        draws = {n: v.values for n, v in each["posterior"].data_vars.items()}
        assert set(draws) >= latents - {"k"}
        for name, n, _ in sites(form, plates):
            value = draws.get(name, np.zeros(SHAPES[n]))
            assert np.isfinite(value).all()
            assert value.shape[value.ndim - n :] == SHAPES[plates][plates - n :]
        total = np.asarray(draws.get("a", 0.0)) + draws.get("b", 0.0)
        assert total.max() < 1.001
