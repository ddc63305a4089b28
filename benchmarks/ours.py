"""Our compiled and eager steps, and Pyro's own SVI, as contenders."""

from __future__ import annotations

import pyro
import torch
from pyro.infer import SVI

from inference import optim
from inference.pairs.pair import Pair
from inference.training.steps import CompiledStep, EagerStep
from inference.training.update import Update, Variables


def step(kind, model, guide, batch, estimator, *, lr=1e-3, divide=1.0, kwargs=None, **options):
    """A step of one kind, `EagerStep` or `CompiledStep`, with variables of its own."""
    kwargs = kwargs or {}
    pair = Pair(model, guide, batch, kwargs)
    update = Update(pair, estimator, optim.Adam(lr), divide=divide, kwargs=kwargs)
    return kind(update, Variables.start(pair, update.optimiser), torch.tensor(lr), **options)


def steps(model, guide, batch, estimator, *, repeats=1, **options):
    """(compiled contender, eager contender, compile seconds)."""
    eager = step(EagerStep, model, guide, batch, estimator, **options)
    compiled = step(CompiledStep, model, guide, batch, estimator, repeats=repeats, **options)
    compiled(batch)

    def run(n):
        for _ in range(max(1, n // repeats)):
            compiled(batch)
        return max(1, n // repeats) * repeats

    def run_eager(n):
        for _ in range(n):
            eager(batch)
        return n

    return run, run_eager, compiled.seconds


def pyro_svi(model, guide, batch, loss, *, lr=1e-3, kwargs=None):
    """`pyro.infer.SVI` with Adam, as a user writes it."""
    kwargs = kwargs or {}
    state = {"params": {}, "constraints": {}}
    store = pyro.get_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), loss)

    def run(n):
        with store.scope(state):
            for _ in range(n):
                svi.step(*batch, **kwargs)
        return n

    return run
