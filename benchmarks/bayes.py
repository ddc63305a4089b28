"""Small Bayesian models, where Python's call cost is all: eight schools, an enumerated mixture."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from inference import elbo
from inference.training.choosing import LOOP

from . import numpyro_peers, ours
from .pairs import S, Y, schools
from .timing import Row


def schools_row(autoguide):
    fast, eager, seconds = ours.steps(
        schools, autoguide(schools), (Y, S), elbo.Trace(), lr=0.01, repeats=LOOP
    )
    svi = ours.pyro_svi(schools, autoguide(schools), (Y, S), pyro.infer.Trace_ELBO(), lr=0.01)
    return Row(
        f"eight schools, {autoguide.__name__}",
        {
            "compiled pair": fast,
            "eager pair": eager,
            "pyro.infer.SVI": svi,
            **numpyro_peers.schools(Y, S, autoguide is AutoMultivariateNormal),
        },
        [(("pyro.infer.SVI",), 150.0), (("numpyro update",), 8.0), (("numpyro scan",), 1.0)],
        steps=2_000,
        compile_seconds=seconds,
        eager="eager pair",
    )


def mixture_row(n=2_000, components=6):
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(components, 2, generator=generator)
    which = torch.randint(components, (n,), generator=generator)
    x = centres[which] + torch.randn(n, 2, generator=generator)

    def mixture(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components)))
        with pyro.plate("components", components):
            means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
            scales = pyro.sample("scales", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(means[k], scales[k]).to_event(1), obs=x)

    def guide():
        return AutoNormal(pyro.poutine.block(mixture, hide=["k"]))

    fast, eager, seconds = ours.steps(mixture, guide(), (x,), elbo.Trace(), lr=0.01)
    enum = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    return Row(
        f"mixture with enumerated assignments, N = {n:,}, D = 2, K = {components}, AutoNormal",
        {
            "compiled pair": fast,
            "eager pair": eager,
            "pyro.infer.SVI TraceEnum_ELBO": ours.pyro_svi(mixture, guide(), (x,), enum, lr=0.01),
            **numpyro_peers.mixture(x, components),
        },
        [(("pyro.infer.SVI TraceEnum_ELBO",), 16.0), (("numpyro update",), 1.0)],
        compile_seconds=seconds,
        eager="eager pair",
    )


ROWS = {
    "schools": lambda: schools_row(AutoNormal),
    "schools-full-rank": lambda: schools_row(AutoMultivariateNormal),
    "mixture": mixture_row,
}
