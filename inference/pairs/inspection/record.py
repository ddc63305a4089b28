"""One run of a model or guide, site by site, whether or not it reaches its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ...weights.sites import log_prob, sample_sites


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

    def __init__(self, half: str):
        super().__init__()
        self.half = half
        self.starts: dict[str, list[Any]] = {}
        self.given: dict[str, Any] = {}
        self.last: str | None = None
        self.error: Exception | None = None
        self.trace: Any = None
        self.sites: dict[str, Site] = {}
        self.latents: dict[str, Site] = {}
        self.observed: dict[str, Site] = {}

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            self.starts.setdefault(msg["name"], []).extend(msg["args"][1:2])
        elif msg["type"] == "sample":
            if type(msg["fn"]).__name__ == "_Subsample":
                self.given[msg["name"]] = msg["value"]
            else:
                self.last = msg["name"]


def record(
    function: Callable, args: tuple, kwargs: dict, half: str, replay: Any = None, seed: int = 0
) -> Recording:
    """Run `function` once, at the values of the trace `replay` where it has them."""
    out = Recording(half)
    torch.manual_seed(seed)
    at = nullcontext() if replay is None else poutine.replay(trace=replay)
    with poutine.trace() as tracer, at, out:
        try:
            function(*args, **kwargs)
        except Exception as error:  # whatever the user's code does becomes a finding
            out.error = error
    out.trace = tracer.trace
    out.sites = {name: Site(**msg) for name, msg in sample_sites(out.trace).items()}
    out.latents = {n: s for n, s in out.sites.items() if not s.is_observed}
    out.observed = {n: s for n, s in out.sites.items() if s.is_observed}
    return out


def base(fn: Any, *, through_transforms: bool = True) -> Any:
    """Return the distribution inside Independent, expanded, masked and transformed ones."""
    while hasattr(fn, "base_dist") and (through_transforms or not hasattr(fn, "transforms")):
        fn = fn.base_dist
    return fn
