"""Many draws of a pair: under a plate, by `torch.vmap`, or one after another.

A pair that indexes and reduces from the right takes a plate of particles. Any other is run for one
draw, as its author wrote it, under `torch.vmap`; one that `vmap` cannot batch, K times.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint
from torch.nn import Module

from ..randomness import ALONE, DrawnAnew
from .terms import Term, by_plate

WAYS = ("plate", "vmap", "loop")
Given = Mapping[str, Tensor]
Halves = dict[str, dict[str, Term]]


@contextmanager
def no_validation() -> Iterator[None]:
    """Distribution and trace checks off inside the block, as they were after it."""
    with ALONE:
        torch_flag = torch.distributions.Distribution._validate_args
        try:
            with pyro.validation_enabled(False):
                yield
        finally:
            torch.distributions.Distribution.set_default_validate_args(torch_flag)


class Subsamples(Messenger):
    """Draws each plate's subsample once: all runs and all draws inside see the same rows."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample" or msg["value"] is not None:
            return
        if msg["name"] not in self.drawn:
            with ExitStack() as outside:
                if torch._C._functorch.peek_interpreter_stack() is not None:
                    outside.enter_context(temporarily_pop_interpreter_stack())
                self.drawn[msg["name"]] = msg["fn"]()
        msg["value"], msg["done"] = self.drawn[msg["name"]], True


def over_draws(
    one: Callable[[Given], Halves], given: Given, particles: int, nesting: int, way: str
) -> Halves:
    """Terms of K runs of one draw each, as one run under a plate of particles would give them.

    Args:
        one: values of a draw's latents -> half -> site -> Term.
        given: site -> (K, ...), in place of the guide's draws.
        way: "vmap" or "loop".
    """
    runs: list[tuple[Halves, list[Tensor]]] = []

    def run(_: Tensor, values: Given) -> list[Tensor]:
        halves = one(values)
        tensors: list[Tensor] = []

        def collect(t: Tensor, pad: int) -> Tensor:
            tensors.append(t[(None,) * pad])
            return t

        for half in halves.values():
            for term in half.values():
                _with_tensors(term, nesting, collect)
        runs.append((halves, tensors))
        # what does not vary between draws stays as it is
        return [t for t in tensors if is_batchedtensor(t)]

    shared = not any(isinstance(m, Subsamples) for m in _PYRO_STACK)
    with no_validation(), Subsamples() if shared else ExitStack(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was not registered in the param store|.*performance")
        index = torch.zeros(particles)
        if way == "vmap":
            with DrawnAnew():
                stacked = iter(torch.vmap(run, randomness="different")(index, dict(given)))
            halves, tensors = runs[0]
            whole = [(next(stacked) if is_batchedtensor(t) else None) for t in tensors]
        else:
            for k in range(particles):
                run(index, {name: value[k] for name, value in given.items()})
            halves, _ = runs[0]
            columns = zip(*(tensors for _, tensors in runs), strict=True)
            whole = [None if all(t is c[0] for t in c) else torch.stack(c) for c in columns]
    left = iter(whole)
    return {
        name: {
            n: _with_tensors(t, nesting, lambda own, _: _or(next(left), own), particles)
            for n, t in half.items()
        }
        for name, half in halves.items()
    }


def _or(stacked: Tensor | None, own: Tensor) -> Tensor:
    return own if stacked is None else stacked


Replace = Callable[[Tensor, int], Any]  # a tensor, and how many axes it lacks in front -> another


def _with_tensors(term: Term, nesting: int, new: Replace, particles: int = 0) -> Term:
    """A term with each of its tensors replaced, in a fixed order."""
    event = getattr(term.fn, "event_dim", 0)
    changes: dict[str, Any] = {}
    lp = new(term.log_prob[0] if not particles else term.log_prob, 0)
    changes["log_prob"] = lp if lp.dim() > nesting else lp[None]
    value = term.value
    if torch.is_tensor(value):
        batch = value.dim() - event
        if term.is_computed:  # pyro.deterministic calls all of its axes event
            batch = min(value.dim(), max((-p.dim for p in term.plates), default=0))
        pad = max(0, nesting - batch)
        changes["value"] = new(value, pad)
        if particles and changes["value"] is value:  # the same for all draws
            changes["value"] = value[(None,) * (1 + pad)].expand(
                particles, *(1,) * pad, *value.shape
            )
    for name in ("mask", "user_scale"):
        if torch.is_tensor(tensor := getattr(term, name)):
            changes[name] = new(tensor, max(0, nesting - tensor.dim()))
    if isinstance(term.fn, Distribution):
        batch = len(term.fn.batch_shape)
        front = max(0, nesting - batch)

        def padded(t: Tensor) -> Any:
            return new(t, front + max(0, batch + event - t.dim()))

        changes["fn"] = _copied(term.fn, padded, (particles, *(1,) * front))
    return term.having(**changes) if particles else term


def _copied(obj: Any, new: Callable[[Tensor], Any], front: tuple[int, ...]) -> Any:
    """A distribution, transform or constraint with its tensors replaced."""
    if torch.is_tensor(obj):
        return new(obj)
    if isinstance(obj, (list, tuple)):
        parts = [_copied(part, new, front) for part in obj]
        return obj if all(a is b for a, b in zip(parts, obj)) else type(obj)(parts)
    if isinstance(obj, Module) or not isinstance(obj, (Distribution, Transform, Constraint)):
        return obj
    there = {"_cached_x_y", "_batch_shape", "_event_shape"}
    if type(obj).__name__ != "_InverseTransform":
        there.add("_inv")  # the way back, which knows this one
    own = {k: v for k, v in vars(obj).items() if k not in there}
    found = {k: _copied(v, new, front) for k, v in own.items()}
    if all(found[k] is own[k] for k in own):
        return obj
    out: Any = copy.copy(obj)
    vars(out).update(found)
    if isinstance(obj, Transform):
        out._cached_x_y = None, None
    if isinstance(obj, Distribution):
        out._batch_shape = torch.Size(front) + obj.batch_shape
    return out


def agree(a: Sequence[Mapping[str, Term]], b: Sequence[Mapping[str, Term]], k: int) -> bool:
    """Tell whether the terms of two runs at the same values are the same, up to rounding."""
    return all(
        mine.keys() == theirs.keys() and all(_same(mine[n], theirs[n], k) for n in mine)
        for mine, theirs in zip(a, b)
    )


def _same(a: Term, b: Term, k: int) -> bool:
    nesting = a.log_prob.dim() - 1
    pairs = [(by_plate(t.log_prob, 0, t.plates, k, nesting)[0] for t in (a, b))]
    if a.is_computed and torch.is_tensor(a.value) and torch.is_tensor(b.value):
        pairs.append(t.values(k, nesting)[0] for t in (a, b))
    return all(_close(*pair) for pair in pairs)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    finite = b[torch.isfinite(b)].abs()
    tiny = 1e-5 * float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-4, atol=tiny + 1e-6, equal_nan=True)
