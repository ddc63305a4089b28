"""Recurrences along a sequence, without a loop where the state is an affine function of the last.

A loop over T steps is T times as many operations to run, to differentiate and to compile. Affine
maps compose to affine maps, so that all states follow in log T rounds of doubling (Blelloch 1990,
Prefix sums and their applications, section 1.4; Särkkä and García-Fernández 2021,
arXiv:1905.13002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def scan(step: Callable[..., Any], start: Any, *inputs: Tensor) -> Any:
    """Make a sequence of states, each by `step` from the one before and that time's inputs.

        state_t = step(state_(t-1), inputs_1[..., t], inputs_2[..., t], …)    t = 1 … T

    Where `step` is affine in the state (sums of states, times and over things that do not depend on
    it: ARMA, GARCH, exponential smoothing), all T states take O(log T) operations, so that a model
    of a long sequence is quick and compiles. Any other step is a loop over T.

    Time is the last axis and stays one: a step sees inputs (..., 1), and writes what would be right
    for all times at once. A latent outside a plate of times has that axis already; elsewhere give
    it one (`phi[..., None]`).

    Args:
        step: (state, *inputs) -> state. Elementwise in the last axis.
        start: the state before the first, a tensor or number, or a tuple of them.
        inputs: (..., T) each.

    Returns:
        The states (..., T), or a tuple of them.

    Raises:
        ValueError: no inputs, or such as differ in T or have no time; `step` returns another number
            of states.

    Example: the errors of an ARMA(1, 1), e_t = y_t - mu - phi y_(t-1) - theta e_(t-1):

        errors = scan(lambda e, r: r - theta * e, 0.0, y[1:] - mu - phi * y[:-1])
    """
    lengths = [x.shape[-1] if torch.is_tensor(x) and x.dim() else 0 for x in inputs]
    if len(set(lengths)) != 1 or 0 in lengths:
        raise ValueError(
            "scan: expected inputs with one number of times T >= 1 in their last axis, got "
            f"{[tuple(x.shape) if torch.is_tensor(x) else x for x in inputs]}. Pad ragged "
            "sequences and mask their ends (pyro.poutine.mask)."
        )
    several = isinstance(start, (tuple, list))
    before = [
        s if torch.is_tensor(s) and s.dim() else inputs[0].new_ones(1) * s
        for s in (start if several else [start])
    ]

    def made(state: Sequence[Any], *now: Any) -> list[Any]:
        after = step(tuple(state) if several else state[0], *now)
        after = list(after) if isinstance(after, (tuple, list)) else [after]
        if len(after) != len(before):
            raise ValueError(f"scan: the state has {len(before)} parts, step made {len(after)}.")
        return after

    try:
        states = _doubled(_maps(made, len(before), inputs), before)
    except _NotAffine:
        states = _looped(made, before, inputs)
    return tuple(states) if several else states[0]


def _looped(step: Callable, state: list[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    made = []
    for now in zip(*(x.split(1, -1) for x in inputs)):
        state = step(state, *now)
        made.append(torch.broadcast_tensors(*state))
    return [torch.cat(parts, -1) for parts in zip(*made)]


class _NotAffine(Exception):
    """A step does something else with its state than an affine map."""


class _Affine:
    """Σ_j slopes[j] · state_j + rest, by the operations under which that form is closed."""

    def __init__(self, slopes: list[Any], rest: Any):
        self.slopes, self.rest = slopes, rest

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _NAMES.get(func.__name__.strip("_"))
        if name is None or kwargs:
            raise _NotAffine(func.__name__)
        if isinstance(args[0], cls):
            return getattr(cls, f"__{name}__")(*args)
        swapped = name[1:] if name.startswith("r") else f"r{name}"
        return getattr(cls, f"__{swapped}__")(args[1], args[0])

    def __add__(self, other: Any) -> _Affine:
        if not isinstance(other, _Affine):
            return _Affine(self.slopes, self.rest + other)
        slopes = [a + b for a, b in zip(self.slopes, other.slopes)]
        return _Affine(slopes, self.rest + other.rest)

    def __mul__(self, other: Any) -> _Affine:
        if isinstance(other, _Affine):
            raise _NotAffine("a product of states")
        return _Affine([a * other for a in self.slopes], self.rest * other)

    def __truediv__(self, other: Any) -> _Affine:
        if isinstance(other, _Affine):
            raise _NotAffine("a ratio of states")
        return self * (1 / other)

    def __rtruediv__(self, other: Any) -> _Affine:
        raise _NotAffine("a division by a state")

    def __neg__(self) -> _Affine:
        return self * -1.0

    def __sub__(self, other: Any) -> _Affine:
        return self + -other

    def __rsub__(self, other: Any) -> _Affine:
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    def __getattr__(self, name: str) -> Any:
        if name not in _NAMES:
            raise _NotAffine(name)
        return getattr(self, f"__{_NAMES[name]}__")


_NAMES = {n: n for n in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg")}
_NAMES |= {"div": "truediv", "true_divide": "truediv", "rdiv": "rtruediv", "negative": "neg"}


def _maps(step: Callable, parts: int, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """For each part of the state, its slopes in all parts and its rest, (..., T) each.

    Raises:
        _NotAffine: they are no affine maps.
    """

    def at_one_time(*now: Tensor) -> list[Tensor]:
        zero = now[0].new_zeros(1)
        states = [_Affine([zero + float(i == j) for j in range(parts)], zero) for i in range(parts)]
        maps: list[Tensor] = []
        for new in step(states, *(x.unsqueeze(-1) for x in now)):
            made = new if isinstance(new, _Affine) else _Affine([zero] * parts, zero + new)
            maps += [*made.slopes, made.rest]
        return maps

    flat = [m.squeeze(-2) for m in torch.vmap(at_one_time, in_dims=-1, out_dims=-1)(*inputs)]
    return [flat[i : i + parts + 1] for i in range(0, len(flat), parts + 1)]


def _doubled(maps: list[list[Tensor]], start: list[Tensor]) -> list[Tensor]:
    """All states: each map is composed with the ones 1, 2, 4, … times before it."""
    lead = [t.shape[:-1] for row in maps for t in row] + [s.shape[:-1] for s in start]
    shape = torch.broadcast_shapes(*lead)
    wide = [torch.stack([t.expand(*shape, t.shape[-1]) for t in row]) for row in maps]
    slopes = torch.stack([row[:-1] for row in wide])  # (new, old, ..., T)
    states = torch.stack([row[-1] for row in wide])  # (new, ..., T), once they are composed
    first = torch.stack([s.expand(*shape, 1) for s in start])
    states = torch.cat([states[..., :1] + (slopes[..., :1] * first).sum(1), states[..., 1:]], -1)
    apart, time = 1, states.shape[-1]
    while apart < time:
        late, early = slopes[..., apart:], slopes[..., :-apart]
        more = states[..., apart:] + (late * states[..., :-apart]).sum(1)
        states = torch.cat([states[..., :apart], more], -1)
        composed = (late.unsqueeze(2) * early).sum(1)
        slopes = torch.cat([slopes[..., :apart], composed], -1)
        apart *= 2
    return list(states)
