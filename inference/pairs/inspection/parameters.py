"""Check that every parameter is registered with Pyro and gets a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...weights import LogWeights, log_weights
from ..pair import Pair
from ..references import referred
from .findings import Finding, finding
from .runs import Recording, Trial

SHOWN = 4  # names written out before "and n more"


def gradients(
    pair: Pair, trial: Trial, particles: int
) -> tuple[LogWeights, dict[str, Tensor | None], list[Tensor]]:
    """Return log weights of one draw, gradients by parameter, and leaves that Pyro does not know.

    The gradient is that of the sum of all log densities: what it reaches, any bound can.
    """
    leaves = {k: v.detach().clone().requires_grad_() for k, v in pair.params.items()}
    options = {"particles": particles, "nesting": pair.nesting, **trial.kwargs}
    with pair.bind(leaves, {k: b.clone() for k, b in pair.buffers.items()}):
        weights = log_weights(pair.model, pair.guide, *trial.args, **options)
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
        at = fixed[0] if fixed else None
        # a guide without parameters may judge a model whose module holds some that it does not use
        cut = nothing and (trains or any(not n.startswith("model.") for n in lost))
        yield finding("cut" if cut else "unused", at, lost=_first_names(lost))


def unregistered(strangers: list[Tensor], trial: Trial) -> Iterable[Finding]:
    """Find tensors that the loss depends on and that Pyro was never told of."""
    wanted = {id(t): t for t in strangers}
    tensors: list[tuple[str, Tensor]] = []
    for name, obj in referred(*trial[:2]).items() if strangers else ():
        if isinstance(obj, nn.Module):
            mine = [n for n, p in obj.named_parameters() if id(p) in wanted]
            for p in obj.parameters():
                wanted.pop(id(p), None)
            if mine:
                yield finding("module", name=name, number=len(mine), shown=_first_names(mine))
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


def cached(modules: Iterable[nn.Module]) -> Iterable[Finding]:
    """Find tensors computed from parameters once, outside of model and guide."""
    for path, sub in (named for module in modules for named in module.named_modules()):
        for key, value in vars(sub).items():
            if torch.is_tensor(value) and value.grad_fn is not None:
                name = ".".join(p for p in (path, key) if p)
                made = {"node": type(value.grad_fn).__name__, "owner": type(sub).__name__}
                yield finding("cached", name=name, key=key, **made)


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


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
