"""The referee beside Pyro's own NUTS: effective draws a second, on two posteriors."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from inference.draws.joint import LogJoint
from inference.guides.paths import pathfinder
from inference.judging.referee.verdict import refereed

from .pairs import S, Y, schools

LEAST = 5.0  # times as many, at least


def gaussian():
    """Ten dimensions, correlations from -0.5 to 0.6."""
    draw = torch.Generator().manual_seed(0)
    half = torch.randn(10, 20, generator=draw)
    pyro.sample("z", dist.MultivariateNormal(torch.zeros(10), half @ half.T / 20))


def ours(model, args) -> tuple[float, float]:
    """Effective draws of the worst coordinate, and CPU seconds, paths and warm-up included."""
    begin = time.process_time()
    joint = LogJoint(model, args)
    _, chains = refereed(joint, pathfinder(joint).draws, seconds=600.0)
    return float(chains.effective.min()), time.process_time() - begin


def pyros(model, args, draws: int = 200) -> tuple[float, float]:
    """The same of one chain of Pyro's, so many draws after as many to warm up."""
    begin = time.process_time()
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model), num_samples=draws, warmup_steps=draws, disable_progbar=True)
    mcmc.run(*args)
    seconds = time.process_time() - begin
    found = [v["n_eff"].min() for v in mcmc.diagnostics().values() if isinstance(v, dict)
             and torch.is_tensor(v.get("n_eff"))]  # fmt: skip
    return float(min(found)), seconds


def lines() -> Iterator[str]:
    """A line for each posterior."""
    for name, model, args in (("eight schools", schools, (Y, S)), ("10-d Gaussian", gaussian, ())):
        (mine, s1), (theirs, s2) = ours(model, args), pyros(model, args)
        ratio = (mine / s1) / (theirs / s2)
        mark = "reached" if ratio >= LEAST else "MISSED"
        yield (
            f"referee, {name}: {mine:,.0f} effective draws in {s1:.1f} s of CPU, pyro.infer.NUTS "
            f"{theirs:,.0f} in {s2:.1f} s: {ratio:.1f} x (at least {LEAST:g} x: {mark})"
        )
