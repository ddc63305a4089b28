"""Measure the bias of a mini-batch's bound for the bound on all data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...weights import LogWeights, log_weights
from ..arguments import rows_of, take_rows, takes_size
from ..pair import Pair
from .findings import Finding
from .isolation import put_back

ROWS = 64  # of the data are enough to see a wrong scale
DRAWS = 16  # of the latents for a first look; eight times as many for a second one
FIRST, SECOND = 4.0, 6.0  # |z| that asks for a second look, and that counts


@dataclass
class BoundsCompared:
    """Mean bounds over draws, nats, and their standard errors."""

    full: float
    full_se: float
    halves: float
    halves_se: float

    @property
    def z(self) -> float:
        """The difference in standard errors, those of rounding among them."""
        rounding = 1e-4 * abs(self.full)
        return (self.halves - self.full) / math.hypot(self.full_se, self.halves_se, rounding)


def findings(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, modules: list[nn.Module],
    minibatch: bool,
) -> Iterable[Finding]:  # fmt: skip
    """Compare the bound on some rows with the mean bound of their two halves.

    The halves are told the size of the whole, as mini-batches are. Over a partition, the mean
    is unbiased whatever the rows are, so that only the noise of the draws is left.

    Args:
        modules: what the pair is made of.
        minibatch: whether the pair is about to be fitted in mini-batches, of which `args` is one.
    """
    rows, sized = rows_of(args), takes_size(model, guide)
    n = 2 * min(rows // 2, ROWS // 2)
    if n < 4:
        return
    whole, half = take_rows(args, slice(n)), take_rows(args, slice(n // 2))
    told = {**kwargs, "size": n} if sized else kwargs
    try:
        with put_back(modules):
            shapes = {k: v.shape for k, v in Pair(model, guide, half, told).params.items()}
        pair = Pair(model, guide, whole, told)
        grown = [k for k, v in pair.params.items() if shapes.get(k, v.shape) != v.shape]
        if grown:
            yield _per_datum(grown[0], tuple(pair.params[grown[0]].shape), n, minibatch)
            return
        plates = {} if sized else _size_to_tell(pair, whole, half, kwargs, n)
        if plates is None:
            return
        measured = _measure(pair, whole, told, n, plates)
    except Exception as error:  # the pair only takes the rows that it was made for
        if not minibatch:
            yield Finding(
                "note", None, "the pair only takes all data at once", "",
                f"half of the rows: {type(error).__name__}: {str(error).splitlines()[0][:120]}",
                "fit it with batch_size=None.",
            )  # fmt: skip
        return
    if not abs(measured.z) > SECOND:  # or not a number, where a density is infinite
        return
    coupled = [type(m).__name__ for root in modules for m in root.modules() if _couples(m)]
    yield Finding(
        "error" if minibatch and not coupled else "warning",
        None, "the bound of a mini-batch is biased", "the mean bound of two halves of the "
        "data, scaled to all, equals the bound on all",
        f"{measured.halves:.2f} ± {measured.halves_se:.2f} nats against {measured.full:.2f} ± "
        f"{measured.full_se:.2f} on {n} rows: z = {measured.z:.1f}",
        f"{coupled[0]} couples the rows of a batch: use LayerNorm, or fit on all data."
        if coupled else "put every site of a datum in pyro.plate('data', size, subsample=x) with "
        "the full size, global sites outside it, and nothing scaled by hand; or fit on all data.",
    )  # fmt: skip


def _per_datum(name: str, shape: tuple, n: int, minibatch: bool) -> Finding:
    return Finding(
        "error" if minibatch else "note", None,
        "parameters with a row for each datum of a mini-batch" if minibatch
        else "the guide has parameters for each datum",
        "parameters for all data, or an amortised guide" if minibatch else "",
        f"parameter {name!r} has shape {shape} on {n} rows, and follows their number",
        "fit on all data (batch_size=None), or compute them from the data: "
        "make_guide(..., amortized=True).",
    )  # fmt: skip


def _size_to_tell(
    pair: Pair, whole: tuple, half: tuple, kwargs: dict, n: int
) -> dict[str, int] | None:
    """Return the size that `fit` would tell a plate of n/2 rows that is not told one.

    None where the model draws its own mini-batch, or no plate has as many rows.
    """
    for rows in (whole, half):
        weights = _draw(pair, rows, kwargs, {}, 1, True)
        plates = {p.name: p for _, t in weights.terms() if t.observed for p in t.plates}
        if any(p.scale != 1 for p in plates.values()):
            return None  # the model draws its own mini-batch
    data = [p for p in plates.values() if p.size == n // 2 and p.dim == -1] or [
        p for p in plates.values() if p.size == n // 2
    ]
    return {data[0].name: n} if data else None


def _measure(pair: Pair, whole: tuple, kwargs: dict, n: int, plates: dict) -> BoundsCompared:
    measured = _bounds(pair, whole, kwargs, n, plates, DRAWS)
    if abs(measured.z) > FIRST:
        measured = _bounds(pair, whole, kwargs, n, plates, 8 * DRAWS)
    return measured


def _bounds(
    pair: Pair, whole: tuple, kwargs: dict, n: int, plates: dict, draws: int
) -> BoundsCompared:
    def elbo(part: tuple) -> Tensor:
        try:
            weights = _draw(pair, part, kwargs, plates, draws, True)
        except Exception:  # it does not broadcast over particles, which is found elsewhere
            weights = _draw(pair, part, kwargs, plates, draws, False)
        return weights.elbo().detach().double()

    full = elbo(whole)
    first, second = (elbo(take_rows(whole, slice(i, i + n // 2))) for i in (0, n // 2))
    se = [float(e.std() / math.sqrt(draws)) for e in (full, first, second)]
    return BoundsCompared(
        float(full.mean()), se[0],
        float((first.mean() + second.mean()) / 2), math.hypot(se[1], se[2]) / 2,
    )  # fmt: skip


def _draw(
    pair: Pair, args: tuple, kwargs: dict, sizes: dict, draws: int, vectorized: bool
) -> LogWeights:
    buffers = {k: b.clone() for k, b in pair.buffers.items()}
    with torch.no_grad(), pair.bind(pair.params, buffers):
        return log_weights(
            pair.model, pair.guide, *args, particles=draws, nesting=pair.nesting,
            full_sizes=sizes, vectorized=vectorized, **kwargs,
        )  # fmt: skip


def _couples(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
