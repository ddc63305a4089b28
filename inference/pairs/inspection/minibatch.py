"""Measure the bias of a mini-batch's bound for the bound on all data."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ...weights import LogWeights, log_weights
from ..arguments import rows_of, take_rows, takes
from ..pair import Pair
from .failures import first_line
from .findings import Finding, finding
from .runs import Trial, put_back

ROWS = 64  # of the data are enough to see a wrong scale
DRAWS = 16  # of the latents for a first look; eight times as many for a second one
FIRST, SECOND = 4.0, 6.0  # |z| that asks for a second look, and that counts


def biases(trial: Trial, modules: list[nn.Module], minibatch: bool) -> Iterable[Finding]:
    """Compare the bound on some rows with the mean bound of their two halves.

    The halves are told the size of the whole, as mini-batches are. Over a partition, the mean
    is unbiased whatever the rows are, so that only the noise of the draws is left.

    Args:
        modules: what the pair is made of.
        minibatch: whether the pair is about to be fitted in mini-batches, of which `args` is one.
    """
    model, guide, args, kwargs = trial
    sized, n = takes("size", model, guide), 2 * min(rows_of(args) // 2, ROWS // 2)
    if n < 4:
        return
    whole, half = take_rows(args, slice(n)), take_rows(args, slice(n // 2))
    told = {**kwargs, "size": n} if sized else kwargs
    try:
        with put_back(modules):
            shapes = {k: v.shape for k, v in Pair(model, guide, half, told).params.items()}
        pair = Pair(model, guide, whole, told)
        for name, p in pair.params.items():
            if shapes.get(name, p.shape) != p.shape:
                key = "rows-of-batch" if minibatch else "rows-of-data"
                yield finding(key, name=name, shape=tuple(p.shape), n=n)
                return
        plates = {} if sized else _size_to_tell(pair, (whole, half), kwargs)
        if plates is None:
            return
        measured = _compared(pair, whole, told, plates, DRAWS)
        if abs(measured["z"]) > FIRST:
            measured = _compared(pair, whole, told, plates, 8 * DRAWS)
    except Exception as error:  # the pair only takes the rows that it was made for
        if not minibatch:
            yield finding("all-at-once", raised=first_line(error))
        return
    if abs(measured["z"]) > SECOND:  # not where it is not a number: a density is infinite
        layers = [m for root in modules for m in root.modules() if m.training]
        coupled = [m for m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        level = "error" if minibatch and not coupled else "warning"
        layer = type(coupled[0]).__name__ if coupled else ""
        yield finding("coupled" if coupled else "biased", level=level, layer=layer, **measured)


def _size_to_tell(pair: Pair, parts: tuple[tuple, tuple], kwargs: dict) -> dict[str, int] | None:
    """Return the size that `fit` would tell a plate of half the rows that is not told one.

    None where the model draws its own mini-batch, or no plate has as many rows.
    """
    for part in parts:
        weights = _draw(pair, part, kwargs, {}, 1, True)
        plates = [p for _, t in weights.terms() if t.observed for p in t.plates]
        if any(p.scale != 1 for p in plates):
            return None
    data = [p for p in plates if p.size == rows_of(parts[1])]
    return {min(data, key=lambda p: p.dim != -1).name: rows_of(parts[0])} if data else None


def _compared(
    pair: Pair, whole: tuple, kwargs: dict, plates: dict[str, int], draws: int
) -> dict[str, float]:
    """Return mean bounds over draws, nats, their standard errors, and z of their difference."""
    n = rows_of(whole)

    def elbo(part: tuple) -> tuple[float, float]:
        try:
            weights = _draw(pair, part, kwargs, plates, draws, True)
        except Exception:  # it does not broadcast over particles, which is found elsewhere
            weights = _draw(pair, part, kwargs, plates, draws, False)
        bounds = weights.elbo().detach().double()
        return float(bounds.mean()), float(bounds.std() / math.sqrt(draws))

    full, full_se = elbo(whole)
    first, second = (elbo(take_rows(whole, slice(i, i + n // 2))) for i in (0, n // 2))
    halves, halves_se = (first[0] + second[0]) / 2, math.hypot(first[1], second[1]) / 2
    z = (halves - full) / math.hypot(full_se, halves_se, 1e-4 * abs(full))  # rounding counts too
    return dict(n=n, full=full, full_se=full_se, halves=halves, halves_se=halves_se, z=z)


def _draw(
    pair: Pair, args: tuple, kwargs: dict, sizes: dict, draws: int, vectorized: bool
) -> LogWeights:
    options = {"particles": draws, "nesting": pair.nesting, "full_sizes": sizes, **kwargs}
    buffers = {k: b.clone() for k, b in pair.buffers.items()}
    with torch.no_grad(), pair.bind(pair.params, buffers):
        return log_weights(pair.model, pair.guide, *args, vectorized=vectorized, **options)
