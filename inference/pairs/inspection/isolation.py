"""Look at a pair without leaving a trace: random states, parameter store, flags and modules stay.

Modules are not copied but put back: a copy of what model and guide are would be torn from what
their code only refers to (a network in a closure, an attribute of a plain object).
"""

from __future__ import annotations

import functools
import inspect
import random
import types
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ...randomness import forked
from ...weights import no_validation

LIBRARIES = ("torch", "pyro", "numpy", "builtins", "functools", "inference")
DEPTH, MANY = 4, 5_000  # how far references are followed, and how many of them


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


def referred(*functions: Any) -> dict[str, nn.Module | Tensor]:
    """Name -> every module and tensor that the functions' code can reach.

    Follows closures, globals that the code names, attributes of the owner of a method, containers
    and the users' own helper functions.
    """
    found: dict[str, nn.Module | Tensor] = {}
    seen: set[int] = set()

    def visit(obj: Any, name: str, depth: int) -> None:
        if depth < 0 or id(obj) in seen or len(seen) > MANY:
            return
        if isinstance(obj, (types.ModuleType, type, str, int, float)):
            return
        seen.add(id(obj))
        if isinstance(obj, (nn.Module, Tensor)):
            found.setdefault(name, obj)
            if isinstance(obj, nn.Module) and not _of_a_library(type(obj)):
                visit(type(obj).forward, name, depth - 1)
        elif isinstance(obj, functools.partial):
            for part in (obj.func, *obj.args, *obj.keywords.values()):
                visit(part, name, depth)
        elif isinstance(obj, dict):
            for key, value in obj.items():
                visit(value, f"{name}[{key!r}]", depth - 1)
        elif isinstance(obj, (list, tuple, set)):
            for i, value in enumerate(obj):
                visit(value, f"{name}[{i}]", depth - 1)
        elif inspect.ismethod(obj):
            visit(obj.__self__, _name(obj.__self__), depth)
            visit(obj.__func__, name, depth)
        elif inspect.isfunction(obj):
            inner = getattr(obj, "__wrapped__", None)
            if inner is not None:
                visit(inner, name, depth)
            if not _of_a_library(obj):
                for key, value in _variables(obj).items():
                    visit(value, key, depth - 1)
        elif hasattr(obj, "func"):  # what Pyro's handlers make of a function
            visit(obj.func, name, depth)
        elif hasattr(obj, "__dict__") and not _of_a_library(type(obj)):
            for key, value in vars(obj).items():
                visit(value, f"{name}.{key}", depth - 1)

    for function in functions:
        visit(function, _name(function), DEPTH)
    return found


def _variables(function: Any) -> dict[str, Any]:
    """The globals and closure variables that a function's code names."""
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # a variable of the closure has no value yet
        return {}
    return {**found.globals, **found.nonlocals}


def _name(obj: Any) -> str:
    return getattr(obj, "__name__", None) or type(obj).__name__


def _of_a_library(obj: Any) -> bool:
    return (getattr(obj, "__module__", None) or "").partition(".")[0] in LIBRARIES
