"""Posteriors of posteriordb from a plain model to the verdict, beside `pyro.infer.SVI`.

Both take the same steps of the same estimator, one particle, with independent normals: SVI as the
tutorials write it (`AutoNormal`, Adam, lr = 0.01), and `fit` with `make_guide("mean-field", ...)`.
Errors are the worst over the parameters, against the reference draws: of a mean, in reference
standard deviations, and of a standard deviation, as a share; of the corrected draws where there are
any.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from inference import diagnose, evaluate, fit, make_guide, to_datatree
from inference.weights.sites import at_zero

from .posterior import errors
from .posteriors import NAMES, load

STEPS, DRAWS = 1_000, 4_000


def by_svi(model, args, steps):
    """The posterior's draws and the ELBO that plain SVI reaches, nats, 400 draws."""
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        pyro.set_rng_seed(0)
        guide = AutoNormal(model, init_loc_fn=at_zero)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        for _ in range(steps):
            svi.step(*args)
        with torch.no_grad():
            losses = [Trace_ELBO().loss(model, guide, *args) for _ in range(400)]
        tree = to_datatree(model, guide, *args, draws=DRAWS, groups=["posterior"])
    return tree, -sum(losses) / len(losses)


def lines(names=NAMES, steps=STEPS) -> Iterator[str]:
    """The table, line by line."""
    yield f"\nfrom a plain model to the verdict, {steps:,} steps; errors: mean in sd, sd in %"
    yield (
        f"  {'':<34} {'SVI, nats':>10} {'mean':>6} {'sd':>5}   {'fit, nats':>10} {'mean':>6} "
        f"{'sd':>5}  verdict"
    )
    for name in names:
        model, args, reference = load(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, their_bound = by_svi(model, args, steps)
            guide = make_guide("mean-field", model, *args)
            run = fit(model, guide, args, steps=steps, lr=0.01, progress=False)
            found = diagnose(run, *args)
            bound = evaluate(run, *args, particles=400).elbo
            tree = found.corrected
            if tree is None:
                tree = to_datatree(run, *args, draws=DRAWS, groups=["posterior"])
        (a, b), (c, d) = errors(theirs, reference), errors(tree, reference)
        yield (
            f"  {name:<34} {their_bound:10.1f} {a:6.2f} {100 * b:4.0f}%   {bound:10.1f} {c:6.2f} "
            f"{100 * d:4.0f}%  {found.verdict}"
        )
