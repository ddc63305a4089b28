"""Flows, D = 8, B = 256: ours compiled, Pyro's own transforms, zuko under torch.compile."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pt
import pyro.infer
import torch
from torch import nn

from inference import elbo
from zoo.flows import MAF, NeuralSplineFlow, RealNVP

from . import ours
from .timing import Row

D, B = 8, 256


class PyroFlow(nn.Module):
    """Maximum likelihood of a stack of Pyro's transforms."""

    def __init__(self, parts):
        super().__init__()
        modules = [p if isinstance(p, nn.Module) else getattr(p, "inv", None) for p in parts]
        self.parts = nn.ModuleList([m for m in modules if isinstance(m, nn.Module)])
        self.all = parts

    def model(self, x):
        pyro.module("flow", self)
        base = dist.Normal(x.new_zeros(D), 1.0).to_event(1)
        flow = dist.TransformedDistribution(base, self.all)
        with pyro.plate("data", len(x)):
            pyro.sample("x", flow, obs=x)
        flow.clear_cache()  # Pyro's transforms keep what they saw across optimiser steps

    def guide(self, x):
        pass


def pyro_flow(kind):
    flip = pt.Permute(torch.arange(D).flip(0), cache_size=0)
    if kind == "RealNVP":
        parts = [p for _ in range(8) for p in (pt.affine_coupling(D, [64, 64]), flip)]
    elif kind == "MAF":  # inverted, so that the density is the direction of one pass
        parts = [p for _ in range(4) for p in (pt.affine_autoregressive(D, [64, 64]).inv, flip)]
    else:
        parts = [
            pt.spline_autoregressive(D, [64, 64], count_bins=8, order="linear") for _ in range(3)
        ]
    return PyroFlow(parts)


def zuko_flow(kind, x):
    try:
        flag = torch.distributions.Distribution._validate_args
        import zuko

        torch.distributions.Distribution.set_default_validate_args(flag)
    except ImportError:
        return {}
    if kind == "RealNVP":
        flow = zuko.flows.RealNVP(D, 0, transforms=8, hidden_features=(64, 64))
    elif kind == "MAF":
        flow = zuko.flows.MAF(D, 0, transforms=4, hidden_features=(64, 64))
    else:
        flow = zuko.flows.NSF(D, 0, bins=8, transforms=3, hidden_features=(64, 64))
    optimiser = torch.optim.Adam(flow.parameters(), 1e-3, fused=True)
    loss = torch.compile(lambda x: -flow().log_prob(x).mean())

    def run(n):
        for _ in range(n):
            optimiser.zero_grad()
            loss(x).backward()
            optimiser.step()
        return n

    return {"zuko, torch.compile": run}


def row(kind, make, against_pyro, against_zuko):
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    flow = make()
    fast, eager, seconds = ours.steps(flow.model, flow.guide, (x,), elbo.Trace(), divide=B)
    theirs = pyro_flow(kind)
    return Row(
        f"{kind}, D = {D}, B = {B}",
        {
            "compiled pair": fast,
            "eager pair": eager,
            "Pyro's transforms, eager": ours.pyro_svi(
                theirs.model, theirs.guide, (x,), pyro.infer.Trace_ELBO()
            ),
            **zuko_flow(kind, x),
        },
        [(("Pyro's transforms, eager",), against_pyro), (("zuko, torch.compile",), against_zuko)],
        compile_seconds=seconds,
        eager="eager pair",
    )


ROWS = {
    "realnvp": lambda: row("RealNVP", lambda: RealNVP(D, layers=8, hidden=(64, 64)), 5.0, 1.5),
    "maf": lambda: row("MAF", lambda: MAF(D, layers=4, hidden=(64, 64)), 2.0, 1.2),
    "spline": lambda: row(
        "neural spline flow",
        lambda: NeuralSplineFlow(D, layers=3, hidden=(64, 64), bins=8),
        3.5,
        1.2,
    ),
}
