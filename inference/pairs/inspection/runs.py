"""Run a model or a guide without leaving a trace, and record its sites, up to the end or an error.

Random states, parameter store, flags and modules stay. Modules are not copied but put back: a copy
of what model and guide are would be torn from what their code only refers to (a network in a
closure, an attribute of a plain object).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ...randomness import forked
from ...weights import no_validation
from ...weights.sites import latents_only, log_prob, sample_sites
from ..pair import modules_of
from ..references import referred


class Trial(NamedTuple):
    """A model and a guide, and the arguments that they are tried with."""

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]

    def modules(self) -> list[nn.Module]:
        """Return what the two are made of, and what their code refers to."""
        own = [m for f in self[:2] for m in modules_of(f)]
        used = referred(self.model, self.guide).values()
        return list(dict.fromkeys([*own, *(m for m in used if isinstance(m, nn.Module))]))

    def tensors(self, parameters: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return arguments and parameters under the names that findings call them by.

        The parameters are those given, or those of the modules.
        """
        if parameters is None:
            parameters = {}
            for module in (m for f in self[:2] for m in modules_of(f)):
                parameters |= {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, obj in referred(self.model, self.guide).items():
                if isinstance(obj, nn.Module):
                    parameters |= {f"{name}.{n}": p for n, p in obj.named_parameters()}
        out = {f"argument {i}": a for i, a in enumerate(self.args) if torch.is_tensor(a)}
        return out | {f"parameter {n}": p.detach() for n, p in parameters.items()}


@contextmanager
def untouched() -> Iterator[None]:
    """Run what is inside the block; afterwards everything global is as before."""
    dtype, of_numpy, of_python = torch.get_default_dtype(), np.random.get_state(), random.getstate()
    with forked(), no_validation(), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with pyro.get_param_store().scope():
                yield
        finally:
            torch.set_default_dtype(dtype)
            np.random.set_state(of_numpy)
            random.setstate(of_python)


@contextmanager
def put_back(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run what is inside the block; afterwards these modules are as before."""
    with ExitStack() as afterwards:
        for module in dict.fromkeys(part for root in modules for part in root.modules()):
            afterwards.callback(_restorer(module))
        yield


@contextmanager
def afresh(modules: Iterable[nn.Module]) -> Iterator[None]:
    """As `put_back`, in an empty parameter store: a guide that is built anew finds nothing old."""
    with put_back(modules), pyro.get_param_store().scope():
        yield


def _restorer(module: nn.Module) -> Callable[[], None]:
    """Return a function that gives a module the attributes and values back that it has now."""
    attributes = dict(module.__dict__)
    # the containers themselves stay: others may hold them
    tables = [(v, dict(v)) for v in attributes.values() if isinstance(v, dict)]
    lists = [(v, list(v)) for v in attributes.values() if isinstance(v, list)]
    own = [*module._parameters.values(), *module._buffers.values()]
    tensors = [(t, t.data, t.detach().clone()) for t in own if t is not None]

    def restore() -> None:
        module.__dict__.clear()
        module.__dict__.update(attributes)
        for table, content in tables:
            table.clear()
            table.update(content)
        for items, kept in lists:
            items[:] = kept
        with torch.no_grad():
            for tensor, data, value in tensors:
                if tensor.device != data.device:  # it had been moved
                    tensor.data = data
                if not tensor.is_meta and not torch.equal(tensor, value):
                    tensor.copy_(value)

    return restore


class Site(SimpleNamespace):
    """A sample site as it was reached: the entries of Pyro's message, and what follows from them.

    Attributes:
        plates: name -> (dim, size) of the vectorised plates around it.
        auxiliary: the guide marked it as no latent of the model.
        family: the name of its distribution.
        point: it is a Delta, a value given and not drawn.
        finite: its latent can be summed out.
    """

    def __init__(self, **message: Any):
        super().__init__(**message)
        self.plates = {f.name: (f.dim, f.size) for f in self.cond_indep_stack if f.vectorized}
        self.auxiliary = bool(self.infer.get("is_auxiliary"))
        self.family = type(base(self.fn, through_transforms=False)).__name__
        self.point = type(base(self.fn)).__name__ == "Delta"
        self.finite = getattr(self.fn, "has_enumerate_support", False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the distribution's draws; an error of the pair's where its parameters do not fit."""
        return tuple(self.fn.shape())

    def log_prob(self) -> Tensor:
        """Return the log density, masked, not scaled."""
        return log_prob(vars(self))


class Recording(Messenger):
    """The sites and parameters that one run of a half reached.

    Innermost of the handlers, so that it sees what the code itself gave.

    Attributes:
        half: "model" or "guide".
        sites: name -> Site, in the order reached; `latents` and `observed` (with `pyro.factor`)
            are those that are drawn and those that are not.
        starts: parameter name -> the tensors it was given to start from.
        given: plate -> the indices of a mini-batch that the code gave, or None.
        last: the sample site that was reached last.
        error: what stopped the run, or None.
        trace: Pyro's trace, for replaying.
    """

    def __init__(self, trial: Trial, half: str, replay: Any = None, seed: int = 0):
        """Run a half once, at the values of the trace `replay` where it has them."""
        super().__init__()
        self.half = half
        self.starts: dict[str, list[Any]] = {}
        self.given: dict[str, Any] = {}
        self.last: str | None = None
        self.error: Exception | None = None
        function = trial.model if half == "model" else latents_only(trial.guide)
        torch.manual_seed(seed)
        at = nullcontext() if replay is None else poutine.replay(trace=replay)
        with poutine.trace() as tracer, at, self:
            try:
                function(*trial.args, **trial.kwargs)
            except Exception as error:  # whatever the user's code does becomes a finding
                self.error = error
        self.trace: Any = tracer.trace
        self.sites = {name: Site(**msg) for name, msg in sample_sites(self.trace).items()}
        self.latents = {n: s for n, s in self.sites.items() if not s.is_observed}
        self.observed = {n: s for n, s in self.sites.items() if s.is_observed}

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            self.starts.setdefault(msg["name"], []).extend(msg["args"][1:2])
        elif type(msg["fn"]).__name__ == "_Subsample":
            self.given[msg["name"]] = msg["value"]
        elif msg["type"] == "sample":
            self.last = msg["name"]


def base(fn: Any, *, through_transforms: bool = True) -> Any:
    """Return the distribution inside Independent, expanded, masked and transformed ones."""
    while hasattr(fn, "base_dist") and (through_transforms or not hasattr(fn, "transforms")):
        fn = fn.base_dist
    return fn
