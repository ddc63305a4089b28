"""The sampler: a checked pair is run again and again, so many draws of so many rows at a time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..pairs.arguments import signature_of
from ..pairs.gate import CheckedPair
from ..randomness import DrawnAnew, forked
from ..weights import LogWeights

NUMBERS = 2**22  # values of sites that one run of a pair may hold
TOGETHER = 100  # draws of a row in one run, before its rows are parted

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """One run of a pair.

    Attributes:
        pair: on these rows.
        weights: its log densities and values.
        draws, rows: which of all.
    """

    pair: CheckedPair
    weights: LogWeights
    draws: slice
    rows: slice


def sample(
    pair: CheckedPair,
    draws: int,
    reduce: Callable[[Chunk], T],
    *,
    seed: int | Sequence[int] = 0,
    by_rows: bool = False,
    chunk: int | None = None,
    most: int | None = None,
    numbers: int = NUMBERS,
    given: Mapping[str, Tensor] | None = None,
) -> Iterator[T]:
    """Draw from a pair and reduce each chunk of draws, so that memory holds one of them.

    Args:
        pair: what to draw from.
        draws: K, of every row.
        reduce: is called with each chunk while the pair has its parameters, without gradients.
        seed: of the draws; nothing outside is changed.
        by_rows: part the rows of the data too, where they are independent given the parameters.
            All draws of some rows come before the next rows.
        chunk: draws in one run; by default as many as hold 2^22 numbers, in parts of one size.
        most: most draws times rows in one run, besides.
        numbers: most values of sites in one run, where no chunk is given.
        given: site -> (draws, ...) values of the latents, in place of the guide's draws.

    Yields:
        What `reduce` returned for each chunk.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    parts, per_run = [slice(0, pair.rows or 1)], draws
    if chunk is None or by_rows:
        each, local = extent(pair, seeds[0])
        room = max(1, numbers * (pair.rows if local else 1) // each)  # draws times rows
        room = min(room, most or room)
        if by_rows and local:
            parts = even(pair.rows, max(1, room // min(draws, TOGETHER)))
        rows = max(p.stop - p.start for p in parts) if local else 1
        per_run = max(1, room // rows)
    steps = even(draws, per_run) if chunk is None else strides(draws, chunk)
    for rows_ in parts:
        part = pair if len(parts) == 1 else pair.take(rows_)
        for step in steps:
            values = None if given is None else {n: v[step] for n, v in given.items()}
            if values is not None and step.stop - step.start == 1:  # no particle plate
                values = {n: v[0] for n, v in values.items()}
            state = np.random.SeedSequence([*seeds, rows_.start, step.start])
            with part.ready(int(state.generate_state(1)[0])):
                weights = part.weights(step.stop - step.start, values)
                reduced = reduce(Chunk(part, weights, step, rows_))
            yield reduced


def sample_each(
    pair: CheckedPair,
    pairs: int,
    draws: int,
    reduce: Callable[[LogWeights], dict[str, Tensor]],
    *,
    axes: tuple[int | None, int | None, tuple[int | None, ...]],
    seed: int,
) -> dict[str, Tensor]:
    """Draw from many pairs at once that differ in parameters or arguments, by `torch.vmap`.

    Args:
        pair: parameters, buffers and arguments; where the pairs differ in them, those of all.
        pairs: R, how many.
        draws: K, from each.
        reduce: log weights of k draws of one pair -> name -> (k, ...).
        axes: 0 where the pairs differ in parameters, in buffers and in each argument, else None.
        seed: of the draws; nothing outside is changed.

    Returns:
        Name -> (R, K, ...).
    """

    def some(rows: slice | int) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple]:
        def cut(value: Any, axis: int | None) -> Any:
            return value if axis is None else value[rows]

        return (
            {k: cut(v, axes[0]) for k, v in pair.params.items()},
            {k: cut(v, axes[1]) for k, v in pair.buffers.items()},
            tuple(map(cut, pair.args, axes[2])),
        )

    def one(*own: Any) -> CheckedPair:
        return dataclasses.replace(pair, **dict(zip(("params", "buffers", "args"), own)))

    def drawn(k: int, *own: Any) -> dict[str, Tensor]:
        with one(*own).bound():
            return reduce(one(*own).weights(k))

    numbers = extent(one(*some(0)), seed)[0] * min(draws, TOGETHER)
    whole = []
    with forked(seed), torch.no_grad(), DrawnAnew(), warnings.catch_warnings():
        # no tensor requires a gradient under `vmap`, which Pyro takes for a frozen parameter
        warnings.filterwarnings("ignore", ".*was not registered in the param store")
        for rows in even(pairs, NUMBERS // numbers):
            parts = [
                torch.vmap(partial(drawn, s.stop - s.start), axes, randomness="different")(
                    *some(rows)
                )
                for s in even(draws, TOGETHER)
            ]
            whole.append({n: torch.cat([p[n] for p in parts], 1) for n in parts[0]})
    return {n: torch.cat([w[n] for w in whole]) for n in whole[0]}


def joint_log_weights(pair: CheckedPair, draws: int, seed: int | Sequence[int] = 0) -> Tensor:
    """log p(x, z) - log q(z) over all data, for K draws of all latents: (K,), float64."""
    parts = sample(pair, draws, lambda chunk: chunk.weights.elbo().double(), seed=seed)
    return torch.cat(list(parts))


def extent(pair: CheckedPair, seed: int = 0) -> tuple[int, bool]:
    """Make one draw: how many values and log densities its sites hold, and whether it has rows.

    It has where the rows of the data are independent given the parameters, so that they can be
    taken in parts.
    """
    with pair.ready(seed):
        weights = pair.weights(1)
    values = [t.value for _, t in weights.terms() if torch.is_tensor(t.value)]
    tensors = [*values, *(t.log_prob for _, t in weights.terms())]
    return max(1, sum(t.numel() for t in tensors)), data_plate(weights, pair.rows) is not None


def data_plate(weights: LogWeights, rows: int) -> int | None:
    """The dimension of the plate that all sites share and whose elements are the rows, or None."""
    return next((p.dim for p in weights.plates if p.size == rows), None)


def even(total: int, most: int) -> list[slice]:
    """Parts of one size or one less, none larger than `most`, none of one alone unless all are.

    The whole is parted in ⌈total / most⌉, whatever its divisors are.
    """
    parts = max(1, min(math.ceil(total / max(1, most)), total // 2))
    edges = [round(i * total / parts) for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def strides(total: int, size: int) -> list[slice]:
    """Parts of a given size; the last may be smaller."""
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def conditions(pair: CheckedPair, weights: LogWeights) -> tuple[dict[str, Tensor], list[str]]:
    """Return what the model observes, and the arguments that it is told: site -> value, and names.

    The names are those of the tensors among the pair's arguments that no site observes, as they
    are or in another shape or type; none where nothing observed is an argument. Call it inside
    `pair.ready(seed)`.
    """
    observed = {
        n: t.value for n, t in weights.model.items() if t.observed and t.free and t.fn is not None
    }
    if any(t.fn is None for t in weights.model.values()):  # those under summed-out latents too
        observed |= pair.once()[1]
    observed = {n: v for n, v in observed.items() if torch.is_tensor(v) and v.numel()}

    def is_data(a: Tensor) -> bool:
        same_size = (v for v in observed.values() if v.numel() == a.numel())
        return any(bool((a.reshape(-1) == v.reshape(-1)).all()) for v in same_size)

    arguments = tensor_arguments(pair)
    told = [n for n, a in arguments.items() if not is_data(a)]
    return observed, told if len(told) < len(arguments) else []


def label_of(observed: Mapping[str, Tensor], told: Sequence[str]) -> str:
    """Name the evidence: `log p(x)`, or `log p(x | y)` of a model that is told y."""
    what = ", ".join(observed) if 0 < len(observed) < 4 else "data"
    return f"log p({what} | {', '.join(told)})" if told else f"log p({what})"


def tensor_arguments(pair: CheckedPair) -> dict[str, Tensor]:
    """The tensors among the pair's arguments, by the model's names for them."""
    signature = signature_of(pair.model)
    names = signature.parameters if signature else [f"argument {i}" for i in range(len(pair.args))]
    return {n: a for n, a in zip(names, pair.args) if torch.is_tensor(a)}
