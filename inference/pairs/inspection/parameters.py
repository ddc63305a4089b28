"""Parameters without a gradient or unknown to Pyro, and bounds that are biased."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...results.finding import listed
from ...weights import LogWeights
from ..arguments import rows_of, take_rows, takes
from ..pair import Pair
from .calls import draw
from .findings import Finding, finding
from .runs import Recording, Trial, afresh

ROWS = 64  # of the data are enough to see a wrong scale
DRAWS = 16  # of the latents for a first look; eight times as many for a second one
FIRST, SECOND = 4.0, 6.0  # |z| that asks for a second look, and that counts


def gradients(
    pair: Pair, trial: Trial, particles: int
) -> tuple[LogWeights, dict[str, Tensor | None], list[Tensor]]:
    """Return log weights of one draw, gradients by parameter, and leaves that Pyro does not know.

    The gradient is that of the sum of all log densities: what it reaches, any bound can.
    """
    leaves = {k: v.detach().clone().requires_grad_() for k, v in pair.params.items()}
    weights = draw(pair, leaves, trial.args, particles=particles, **trial.kwargs)
    loss = sum((t.log_prob.sum() for _, t in weights.terms()), start=torch.zeros(()))
    known = {id(t) for t in (*leaves.values(), *trial.args, *trial.kwargs.values())}
    strangers = [t for t in _leaves(loss) if id(t) not in known]
    grads: dict[str, Tensor | None] = dict.fromkeys(leaves)
    if loss.requires_grad and leaves:
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = dict(zip(leaves, found))
    return weights, grads, strangers


def reached(
    weights: LogWeights, grads: Mapping[str, Tensor | None], trains: bool
) -> Iterable[Finding]:
    """Find parameters without a gradient, and guides that learn nothing."""
    lost = [n for n, g in grads.items() if g is None]
    latents = {
        name: any(torch.is_tensor(a) and a.requires_grad for a in (q.value, q.log_prob))
        for name, q in weights.guide.items()
        if not (q.observed or q.auxiliary or type(q.fn).__name__ == "Unit")
    }
    fixed = [n for n, learns in latents.items() if not learns and not weights.guide[n].enumerated]
    nothing = bool(latents) and len(fixed) == len(latents)
    if latents and not grads:
        yield finding("no-parameters", level="error" if trains else "note")
    elif nothing and not lost:
        yield finding("fixed", fixed[0])
    elif lost:
        # a guide without parameters may judge a model whose module holds some that it does not use
        cut = nothing and (trains or any(not n.startswith("model.") for n in lost))
        yield finding("cut" if cut else "unused", fixed[0] if fixed else None, lost=listed(lost, 4))


def unregistered(strangers: list[Tensor], trial: Trial) -> Iterable[Finding]:
    """Find tensors that the loss depends on and that Pyro was never told of."""
    wanted = {id(t): t for t in strangers}
    tensors: list[tuple[str, Tensor]] = []
    for name, obj in trial.references.items() if strangers else ():
        if isinstance(obj, nn.Module):
            mine = [n for n, p in obj.named_parameters() if id(p) in wanted]
            for p in obj.parameters():
                wanted.pop(id(p), None)
            if mine:
                yield finding("module", name=name, number=len(mine), shown=listed(mine, 4))
        elif id(obj) in wanted:
            tensors.append((f"tensor {name!r}", wanted.pop(id(obj))))
    for name, tensor in (*tensors, *(("a tensor", t) for t in wanted.values())):
        yield finding("tensor", name=name, shape=tuple(tensor.shape))


def collisions(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Find different modules, or parameters of different shape, under one name."""
    for name in {**guide.starts, **model.starts}:
        starts = [s for r in (guide, model) for s in r.starts.get(name, []) if torch.is_tensor(s)]
        shapes = sorted({tuple(s.shape) for s in starts})
        if "$$$" in name:
            if len({id(s) for s in starts}) > 1:
                yield finding("two-modules", name=name.split("$$$")[0])
        elif len(shapes) > 1:
            yield finding("two-parameters", name=name, shapes=" and ".join(map(str, shapes)))
        else:
            for r in (guide, model):
                places = list(dict.fromkeys(r.asked.get(name, ())))
                if len(places) > 1 and all(places):
                    two = next((pair for pair in zip(*places[:2]) if pair[0] != pair[1]), places[0])
                    yield finding("tied", name=name, half=r.half, lines=" and ".join(two))


def cached(modules: Iterable[nn.Module]) -> Iterable[Finding]:
    """Find tensors computed from parameters once, outside of model and guide."""
    for path, sub in (named for module in modules for named in module.named_modules()):
        for key, value in vars(sub).items():
            if torch.is_tensor(value) and value.grad_fn is not None:
                name = f"{path}.{key}" if path else key
                made = {"node": type(value.grad_fn).__name__, "owner": type(sub).__name__}
                yield finding("cached", name=name, key=key, **made)


def biases(trial: Trial) -> Iterable[Finding]:
    """Compare the bound on some rows with the mean bound of their two halves.

    The halves are told the size of the whole, as mini-batches are. Over a partition, the mean
    is unbiased whatever the rows are, so that only the noise of the draws is left.
    """
    sized = takes("size", trial.model, trial.guide)
    n = 2 * min(rows_of(trial.args) // 2, ROWS // 2)
    if n < 4 or (trial.ordered and not trial.batched):  # a sequence is fitted whole
        return
    whole, half = (take_rows(trial.args, slice(rows)) for rows in (n, n // 2))
    told = {**trial.kwargs, "size": n} if sized else trial.kwargs
    try:
        with afresh(trial.modules):
            of_half = Pair(trial.model, trial.guide, half, told).params
        pair = Pair(trial.model, trial.guide, whole, told)
        for name, p in pair.params.items():
            if of_half.get(name, p).shape != p.shape:
                if trial.batched:
                    yield finding("rows", name=name, shape=tuple(p.shape), n=n)
                return
        plates = {} if sized else _size_to_tell(pair, (whole, half), trial.kwargs)
        if plates is None:
            return
        measured = _compared(pair, whole, {**told, "full_sizes": plates}, DRAWS)
        if abs(measured["z"]) > FIRST:
            measured = _compared(pair, whole, {**told, "full_sizes": plates}, 8 * DRAWS)
    except Exception:  # the pair only takes the rows that it was made for
        return
    if abs(measured["z"]) > SECOND:  # not where it is not a number: a density is infinite
        parts = (m for root in trial.modules for m in root.modules() if m.training)
        batchnorm = nn.modules.batchnorm._BatchNorm
        coupled = [type(m).__name__ for m in parts if isinstance(m, batchnorm)]
        plated = (
            "put every site of a datum in pyro.plate('data', size, subsample=x) with the full "
            "size, global sites outside it, and nothing scaled by hand"
        )
        layered = f"{coupled[0]} couples the rows of a batch: use LayerNorm" if coupled else ""
        level = "error" if trial.batched and not coupled else "warning"
        yield finding("biased", level=level, hint=layered or plated, **measured)


def _size_to_tell(pair: Pair, parts: tuple[tuple, tuple], kwargs: dict) -> dict[str, int] | None:
    """Return the size that `fit` would tell a plate of half the rows that is not told one.

    None where the model draws its own mini-batch, or no plate has as many rows.
    """
    for part in parts:
        with torch.no_grad():
            weights = draw(pair, pair.params, part, **kwargs)
        plates = [p for _, t in weights.terms() if t.observed for p in t.plates]
        if any(p.scale != 1 for p in plates):
            return None
    data = [p for p in plates if p.size == rows_of(parts[1])]
    return {min(data, key=lambda p: p.dim != -1).name: rows_of(parts[0])} if data else None


def _compared(pair: Pair, whole: tuple, told: dict, draws: int) -> dict[str, float]:
    """Return mean bounds over draws, nats, their standard errors, and z of their difference."""
    n = rows_of(whole)

    @torch.no_grad()
    def elbo(rows: slice) -> tuple[float, float]:
        part = take_rows(whole, rows)
        try:
            weights = draw(pair, pair.params, part, particles=draws, **told)
        except Exception:  # it does not broadcast over particles, which is found elsewhere
            weights = draw(pair, pair.params, part, particles=draws, vectorized=False, **told)
        bounds = weights.elbo().double()
        return float(bounds.mean()), float(bounds.std() / math.sqrt(draws))

    full, full_se = elbo(slice(n))
    first, second = elbo(slice(n // 2)), elbo(slice(n // 2, n))
    halves, halves_se = (first[0] + second[0]) / 2, math.hypot(first[1], second[1]) / 2
    z = (halves - full) / math.hypot(full_se, halves_se, 1e-4 * abs(full))  # rounding counts too
    return dict(n=n, full=full, full_se=full_se, halves=halves, halves_se=halves_se, z=z)


def _leaves(loss: Tensor) -> list[Tensor]:
    """Return the leaf tensors that a graph was made from."""
    found, seen, stack = {}, set(), [loss.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        stack.extend(n for n, _ in node.next_functions)
    return list(found.values())
