"""Run a model or a guide without leaving a trace, and record its sites, up to the end or an error.

Random states, parameter store, flags and modules stay. Modules are not copied but put back: a copy
of what model and guide are would be torn from what their code only refers to (a network in a
closure, an attribute of a plain object).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ...randomness import forked
from ...weights import no_validation
from ...weights.sites import At, latents_only, log_prob, sample_sites
from ..pair import modules_of, referred
from .lines import asked_here, line_here


@dataclass
class Trial:
    """A pair, the arguments that it is tried with, and what will be done with it.

    Attributes:
        elbo: the estimator that will be used, where that is known.
        trains: whether it is to be fitted; a pair without parameters can be judged.
        errors_only: leave out what can only lead to notes and warnings.
        batched: it is about to be fitted in mini-batches, of which `args` is one.
        ordered: its rows were found to be a sequence.
    """

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]
    elbo: Any = None
    trains: bool = True
    errors_only: bool = False
    batched: bool = False
    ordered: bool = False

    @cached_property
    def own(self) -> list[nn.Module]:
        """The modules that the two halves are, or are methods of."""
        return [m for half in (self.model, self.guide) for m in modules_of(half)]

    @cached_property
    def references(self) -> dict[str, nn.Module | Tensor]:
        """Name -> module or tensor that the code of the two refers to."""
        return referred(self.model, self.guide)

    @cached_property
    def modules(self) -> list[nn.Module]:
        """All modules that the two are made of or refer to."""
        used = [m for m in self.references.values() if isinstance(m, nn.Module)]
        return list(dict.fromkeys([*self.own, *used]))

    def tensors(self, parameters: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return arguments and parameters under the names that findings call them by.

        The parameters are those given, or those of the modules.
        """
        if parameters is None:
            parameters = {}
            for module in self.own:
                parameters |= {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, used in self.references.items():
                if isinstance(used, nn.Module):
                    parameters |= {f"{name}.{n}": p for n, p in used.named_parameters()}
        out = {f"argument {i}": a for i, a in enumerate(self.args) if torch.is_tensor(a)}
        return out | {f"parameter {n}": p.detach() for n, p in parameters.items()}


@contextmanager
def untouched() -> Iterator[None]:
    """Run what is inside the block; afterwards everything global is as before."""
    dtype, of_numpy, of_python = torch.get_default_dtype(), np.random.get_state(), random.getstate()
    with forked(), no_validation(), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            np.random.set_state(of_numpy)
            random.setstate(of_python)


@contextmanager
def afresh(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run what is inside in an empty parameter store; afterwards store and modules are as before.

    A guide that is built anew inside finds nothing old.
    """
    with ExitStack() as afterwards, pyro.get_param_store().scope():
        for module in dict.fromkeys(part for root in modules for part in root.modules()):
            afterwards.callback(_restorer(module))
        yield


def _restorer(module: nn.Module) -> Callable[[], None]:
    """Return a function that gives a module the attributes and values back that it has now."""
    attributes = dict(module.__dict__)
    # the containers themselves stay: others may hold them
    held: list[tuple[Any, Any]] = [
        (v, dict(v) if isinstance(v, dict) else list(v))
        for v in attributes.values()
        if isinstance(v, (dict, list))
    ]
    own = [*module._parameters.values(), *module._buffers.values()]
    tensors = [(t, t.data, t.detach().clone()) for t in own if t is not None]

    def restore() -> None:
        for container, content in ((module.__dict__, attributes), *held):
            container.clear()
            (container.update if isinstance(container, dict) else container.extend)(content)
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
        lines: name -> the user's line of a sample site.
        starts: parameter name -> the tensors it was given to start from.
        asked: parameter name -> the users' lines at which it was given one, innermost first.
        reached: name -> distribution of a sample site, be it that its draw failed.
        given: plate -> the indices of a mini-batch that the code gave, or None.
        last: the sample site that was reached last.
        error: what stopped the run, or None.
        trace: Pyro's trace, for replaying.
    """

    def __init__(
        self,
        trial: Trial,
        half: str,
        replay: Any = None,
        seed: int = 0,
        held: Mapping[str, Tensor] | None = None,
        args: tuple | None = None,
    ):
        """Run a half once.

        Args:
            replay: a trace, at whose values it is run where it has them.
            held: site -> value of a latent, in place of a draw.
            args: in place of the trial's.
        """
        super().__init__()
        self.half = half
        self.lines: dict[str, str] = {}
        self.asked: dict[str, list[tuple[str, ...]]] = {}
        self.reached: dict[str, Any] = {}
        self.starts: dict[str, list[Any]] = {}
        self.given: dict[str, Any] = {}
        self.last: str | None = None
        self.error: Exception | None = None
        function = trial.model if half == "model" else latents_only(trial.guide)
        pyro.set_rng_seed(seed)
        at = At(held or {}) if replay is None else poutine.replay(trace=replay)
        with poutine.trace() as tracer, at, self:
            try:
                function(*(trial.args if args is None else args), **trial.kwargs)
            except Exception as error:  # whatever the user's code does becomes a finding
                self.error = error
        self.trace: Any = tracer.trace
        self.sites = {name: Site(**msg) for name, msg in sample_sites(self.trace).items()}
        self.latents = {n: s for n, s in self.sites.items() if not s.is_observed}
        self.observed = {n: s for n, s in self.sites.items() if s.is_observed}

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            self.starts.setdefault(msg["name"], []).extend(msg["args"][1:2])
            if msg["args"][1:2]:
                self.asked.setdefault(msg["name"], []).append(asked_here())
        elif type(msg["fn"]).__name__ == "_Subsample":
            self.given[msg["name"]] = msg["value"]
        elif msg["type"] == "sample":
            self.last = msg["name"]
            self.reached[msg["name"]] = msg["fn"]
            self.lines.setdefault(msg["name"], line_here() or "")


def base(fn: Any, *, through_transforms: bool = True) -> Any:
    """Return the distribution inside Independent, expanded, masked and transformed ones."""
    while hasattr(fn, "base_dist") and (through_transforms or not hasattr(fn, "transforms")):
        fn = fn.base_dist
    return fn
