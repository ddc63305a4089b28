"""Look at a pair without leaving a trace: random states, parameter store, flags and modules stay.

Modules are not copied but put back: a copy of what model and guide are would be torn from what
their code only refers to (a network in a closure, an attribute of a plain object).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch
from torch import nn

from ...randomness import forked
from ...weights import no_validation


@contextmanager
def untouched() -> Iterator[None]:
    """Run what is inside the block; afterwards everything global is as before."""
    dtype, numpy_state, python_state = (
        torch.get_default_dtype(), np.random.get_state(), random.getstate()
    )  # fmt: skip
    with (
        forked(), pyro.get_param_store().scope(), no_validation(), torch.enable_grad(),
        warnings.catch_warnings(),
    ):  # fmt: skip
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def put_back(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run what is inside the block; afterwards these modules are as before."""
    kept = [_Kept(m) for m in dict.fromkeys(m for module in modules for m in module.modules())]
    try:
        yield
    finally:
        for module in kept:
            module.restore()


@contextmanager
def afresh(modules: Iterable[nn.Module]) -> Iterator[None]:
    """As `put_back`, in an empty parameter store: a guide that is built anew finds nothing old."""
    with put_back(modules), pyro.get_param_store().scope():
        yield


class _Kept:
    """A module's attributes, and the values of its own tensors."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.attributes = dict(module.__dict__)
        # the containers themselves stay: others may hold them
        self.tables = {k: dict(v) for k, v in module.__dict__.items() if isinstance(v, dict)}
        self.lists = {k: list(v) for k, v in module.__dict__.items() if isinstance(v, list)}
        own = [*module._parameters.values(), *module._buffers.values()]
        self.values = [(t, t.data, t.detach().clone()) for t in own if t is not None]

    def restore(self) -> None:
        here = self.module.__dict__
        here.clear()
        here.update(self.attributes)
        for name, table in self.tables.items():
            here[name].clear()
            here[name].update(table)
        for name, items in self.lists.items():
            here[name][:] = items
        with torch.no_grad():
            for tensor, data, value in self.values:
                if tensor.device != data.device:  # it had been moved
                    tensor.data = data
                if not tensor.is_meta and not torch.equal(tensor, value):
                    tensor.copy_(value)
