"""Our compiled and eager steps, and Pyro's own SVI, as contenders."""

from __future__ import annotations

import pyro
import torch
from pyro.infer import SVI

from inference import optim
from inference.pair import Pair
from inference.step import CompiledStep, EagerStep, Update, Variables


def steps(model, guide, batch, estimator, *, lr=1e-3, divide=1.0, repeats=1, kwargs=None):
    """(compiled contender, eager contender, compile seconds)."""
    kwargs = kwargs or {}
    pair = Pair(model, guide, batch, kwargs)
    update = Update(pair, estimator, optim.Adam(lr), divide=divide, kwargs=kwargs)
    rate = torch.tensor(lr)
    eager = EagerStep(update, Variables.start(pair, update.optimiser), rate)
    compiled = CompiledStep(update, Variables.start(pair, update.optimiser), rate, repeats)
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
