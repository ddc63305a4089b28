"""Run a model or a guide without leaving a trace, and record its sites, up to the end or an error.

Random states, parameter store, flags and modules stay. Modules are not copied but put back: a copy
of what model and guide are would be torn from what their code only refers to (a network in a
closure, an attribute of a plain object).
"""

from __future__ import annotations

import random
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ...randomness import forked
from ...results.finding import listed
from ...weights import no_validation
from ...weights.sites import latents_only, log_prob, sample_sites
from ..pair import modules_of, referred
from .findings import Finding, finding

_OURS = str(Path(__file__).resolve().parents[2])
_CAUSES = {  # finding -> what torch and Pyro say then
    "misfit": r"Shape mismatch inside plate\('(?P<plate>.+)'\) at site (?P<site>\S+) "
    r"dim (?P<dim>-?\d+), (?P<size>\d+) vs (?P<got>\d+)",
    "twice": r"Multiple (?:sample|observe) sites named '(?P<site>.+)'",
    "both-kinds": r"(?P<site>\S+) is already in the trace as a (?P<kind>\w+)",
    "devices": r"(?i)same device|expected device|device type",
    "dtypes": r"(?i)same dtype|expected scalar type|dtype .* but (?:got|expected|found)",
    "wrong-call": r"positional argument",
    "stops-at-shapes": r"(?i)shapes cannot be multiplied|must match the size of tensor|expand|"
    r"broadcast|size mismatch|invalid for input of size|Sizes of tensors",
    "stops": r"",
}


@dataclass
class Trial:
    """A pair, the arguments that it is tried with, and what will be done with it.

    Attributes:
        elbo: the estimator that will be used, where that is known.
        trains: whether it is to be fitted; a pair without parameters can be judged.
        errors_only: leave out what can only lead to notes and warnings.
        batched: it is about to be fitted in mini-batches, of which `args` is one.
    """

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]
    elbo: Any = None
    trains: bool = True
    errors_only: bool = False
    batched: bool = False

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
            for name, module in self.references.items():
                if isinstance(module, nn.Module):
                    parameters |= {f"{name}.{n}": p for n, p in module.named_parameters()}
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


def explain(
    error: Exception, half: str, last: str | None, tensors: Mapping[str, Tensor]
) -> Finding:
    """Make a finding of the exception that stopped `half` ("model", "guide") after site `last`.

    `tensors` are the arguments and parameters, named, for mixtures of devices and dtypes.
    """
    text = str(error).partition("\nTrace Shapes")[0].strip() or type(error).__name__
    lines = [  # of the user's own code, the innermost last
        f"{Path(f.filename).name}:{f.lineno}" + (f" ({f.line})" if f.line else "")
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(_OURS) and not re.search("/torch/|/pyro/|<", f.filename)
    ]
    at = f" at {lines[-1]}" if lines else ""
    reached = f"after reaching site {last!r}" if last else "before its first site"
    found = ((name, re.search(cause, text)) for name, cause in _CAUSES.items())
    name, match = next((name, match) for name, match in found if match)
    raised = f"{type(error).__name__}{at}: {text}"
    values = {"site": last, "half": half, "at": at, "raised": raised, "reached": reached}
    values |= {**_by_kind(tensors), **match.groupdict()}
    return finding(name, values.pop("site"), **values)


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of what it says, if it says anything."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160].removesuffix(": ")


def mixtures(tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    """Find more than one device, or more than one floating-point type."""
    if len({t.device for t in tensors.values()}) > 1:
        yield finding("devices", half="pair", raised="at the start", **_by_kind(tensors))
    sized = {n: t for n, t in tensors.items() if t.is_floating_point() and t.dim()}
    if len({t.dtype for t in sized.values()}) > 1:
        more = {"half": "pair", "raised": "at the start", **_by_kind(sized)}
        yield finding("dtypes", level="warning", **more)


def _by_kind(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of tensors in words, by device and by floating-point type."""
    out = {}
    for key, kind in (("devices", "device"), ("dtypes", "dtype")):
        named: dict[str, list[str]] = {}
        for name, t in tensors.items():
            if kind == "device" or t.is_floating_point():
                named.setdefault(str(getattr(t, kind)).removeprefix("torch."), []).append(name)
        groups = sorted(named.items(), key=lambda group: -len(group[1]))
        out[key] = "; ".join(f"{of}: {listed(names, 3)}" for of, names in groups)
    return out
