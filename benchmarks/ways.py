"""Compiled steps of models that do not broadcast, beside the same models written to broadcast.

Both take K particles: the first by `torch.vmap`, the second under a plate.
"""

from __future__ import annotations

import statistics

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

from inference import elbo
from inference.training.steps import CompiledStep

from . import ours
from .timing import Row, measure

K, ROUNDS, MOST = 8, 7, 2.0
N = 500
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 5, generator=GENERATOR)
YS = X @ torch.arange(5.0) + torch.randn(N, generator=GENERATOR)
GROUP = torch.arange(N) % 8
SEEN = (YS > 0).float()


def coefficients(shape):
    return pyro.sample("b", dist.Normal(torch.zeros(shape), 1.0).to_event(1))


def observed(mean, y=YS):
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def indexed():
    """`beta[0] + beta[1] * x`."""

    def plain():
        b = coefficients(2)
        observed(b[0] + b[1] * X[:, 0])

    def broadcast():
        b = coefficients(2)
        observed(b[..., 0] + b[..., 1] * X[:, 0])

    return plain, broadcast


def product():
    """`x @ b`."""

    def plain():
        observed(X @ coefficients(5))

    def broadcast():
        observed((X * coefficients(5)).sum(-1))

    return plain, broadcast


def loop():
    """A loop over groups, with `torch.stack`."""

    def plain():
        b = coefficients(8)
        observed(torch.stack([b[g].tanh() for g in range(8)])[GROUP])

    def broadcast():
        observed(Vindex(coefficients(8).tanh())[..., GROUP])

    return plain, broadcast


def one_hot():
    """`F.one_hot(k)`, the assignments enumerated."""

    def model(pick):
        b = coefficients(4)
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Categorical(torch.ones(4)), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(pick(b, k), 1.0), obs=YS)

    def plain(b, k):
        return F.one_hot(k, 4).to(b) @ b

    def broadcast(b, k):
        return (F.one_hot(k, 4).to(b) * b).sum(-1)

    return lambda: model(plain), lambda: model(broadcast)


def beta():
    """A Beta guide."""

    def plain():
        p = pyro.sample("p", dist.Beta(torch.ones(2), 1.0).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Bernoulli(p[0] * p[1]), obs=SEEN)

    def broadcast():
        p = pyro.sample("p", dist.Beta(torch.ones(2), 1.0).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Bernoulli(p[..., 0] * p[..., 1]), obs=SEEN)

    return plain, broadcast


def beta_guide():
    c = pyro.param("c", torch.full((2, 2), 2.0), constraint=constraints.positive)
    pyro.sample("p", dist.Beta(c[0], c[1]).to_event(1))


MODELS = {f.__name__: f for f in (indexed, product, loop, one_hot, beta)}


def row(name):
    contenders, seconds = {}, 0.0
    for way, model in zip(("vmap", "plate"), MODELS[name]()):
        guide = beta_guide if name == "beta" else AutoNormal(pyro.poutine.block(model, hide=["k"]))
        step = ours.step(CompiledStep, model, guide, (), elbo.Trace(K), lr=1e-3)
        pair = step.update.pair
        assert pair.find_way(pair.params, pair.buffers, (), {}) == way, (name, way)
        step(())
        seconds += step.seconds

        def run(n, step=step):
            for _ in range(n):
                step(())
            return n

        contenders[way] = run
    return Row(name, contenders, [], steps=400, compile_seconds=seconds)


def lines(rounds=ROUNDS):
    """The table, line by line: medians of interleaved rounds, and their ratio."""
    yield f"\nvmap beside a plate, compiled, {K} particles; at most {MOST:g} times as long"
    yield f"  {'model':<12} {'vmap, ms':>10} {'plate, ms':>10} {'ratio':>7}"
    for name in MODELS:
        made = row(name)
        measure(made, rounds)
        ms = {k: statistics.median(v) for k, v in made.milliseconds.items()}
        ratio = statistics.median(
            a / b for a, b in zip(made.milliseconds["vmap"], made.milliseconds["plate"])
        )
        yield f"  {name:<12} {ms['vmap']:10.4f} {ms['plate']:10.4f} {ratio:7.2f}"
