"""One run of a model or guide, site by site, whether or not it reaches its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor


@dataclass
class Site:
    """A sample site as it was reached: Pyro's distribution, value, plates, scale and mask."""

    name: str
    fn: Any
    value: Any
    observed: bool
    frames: tuple
    scale: Any
    mask: Any
    infer: Mapping[str, Any]

    @property
    def plates(self) -> dict[str, tuple[int, int]]:
        """Name -> (dim, size) of the vectorised plates around it."""
        return {f.name: (f.dim, f.size) for f in self.frames if f.vectorized}

    @property
    def auxiliary(self) -> bool:
        """Return whether the guide marked it as no latent of the model."""
        return bool(self.infer.get("is_auxiliary"))

    @property
    def point(self) -> bool:
        """Return whether it is a Delta: a value given, not drawn."""
        return type(base(self.fn)).__name__ == "Delta"

    @property
    def family(self) -> str:
        """The name of its distribution."""
        fn = self.fn
        while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
            fn = fn.base_dist
        return type(fn).__name__

    def log_prob(self) -> Tensor:
        """The log density, masked, not scaled."""
        out = self.fn.log_prob(self.value)
        if self.mask is None or self.mask is True:
            return out
        mask = torch.as_tensor(self.mask, device=out.device)
        return torch.where(mask, out, out.new_zeros(()))


@dataclass
class Recording:
    """The sites and parameters that one run of a half reached.

    Attributes:
        sites: name -> Site, in the order reached.
        starts: parameter name -> the tensors it was given to start from.
        indices: plate -> (indices that the code gave or None, indices that were used).
        last: the sample site that was reached last.
        error: what stopped the run, or None.
        trace: Pyro's trace, for replaying.
    """

    half: str
    sites: dict[str, Site] = field(default_factory=dict)
    starts: dict[str, list[Any]] = field(default_factory=dict)
    indices: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    last: str | None = None
    error: Exception | None = None
    trace: Any = None

    def latents(self) -> dict[str, Site]:
        """Sites that are drawn."""
        return {n: s for n, s in self.sites.items() if not s.observed}

    def observed(self) -> dict[str, Site]:
        """Sites that are observed, `pyro.factor` among them."""
        return {n: s for n, s in self.sites.items() if s.observed}


class _Recorder(Messenger):
    """Innermost of the handlers, so that it sees what the code itself gave."""

    def __init__(self, into: Recording):
        super().__init__()
        self.into = into
        self.given: dict[str, Any] = {}

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            start = msg["args"][1] if len(msg["args"]) > 1 else None
            self.into.starts.setdefault(msg["name"], []).append(start)
        elif msg["type"] == "sample":
            if type(msg["fn"]).__name__ == "_Subsample":
                self.given[msg["name"]] = msg["value"]
            else:
                self.into.last = msg["name"]

    def _pyro_post_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            self.into.indices[msg["name"]] = (self.given[msg["name"]], msg["value"])
            return
        self.into.sites[msg["name"]] = Site(
            msg["name"], msg["fn"], msg["value"], msg["is_observed"], msg["cond_indep_stack"],
            msg["scale"], msg["mask"], msg["infer"] or {},
        )  # fmt: skip


def record(
    function: Callable, args: tuple, kwargs: dict, half: str, replay: Any = None, seed: int = 0
) -> Recording:
    """Run `function` once, at the values of the trace `replay` where it has them."""
    out = Recording(half)
    torch.manual_seed(seed)
    at = nullcontext() if replay is None else poutine.replay(trace=replay)
    with poutine.trace() as tracer, at, _Recorder(out):
        try:
            function(*args, **kwargs)
        except Exception as error:  # whatever the user's code does becomes a finding
            out.error = error
        out.trace = tracer.trace
    return out


def base(fn: Any) -> Any:
    """The distribution inside Independent, expanded, masked and transformed ones."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def stored_shapes() -> dict[str, torch.Size]:
    """Parameter -> its shape in the present store."""
    return {n: p.shape for n, p in pyro.get_param_store()._params.items()}
