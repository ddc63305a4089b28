"""Check that every parameter is registered with Pyro and gets a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...weights import LogWeights, log_weights
from ..pair import Pair
from ..references import referred
from .findings import Finding
from .record import Recording

SHOWN = 4  # names written out before "and n more"


def gradients(
    pair: Pair, args: tuple, kwargs: dict, particles: int
) -> tuple[LogWeights, dict[str, Tensor | None], list[Tensor]]:
    """Return log weights of one draw, gradients by parameter, and leaves that Pyro does not know.

    The gradient is that of the sum of all log densities: what it reaches, any bound can.
    """
    leaves = {k: v.detach().clone().requires_grad_() for k, v in pair.params.items()}
    with pair.bind(leaves, {k: b.clone() for k, b in pair.buffers.items()}):
        weights = log_weights(
            pair.model, pair.guide, *args, particles=particles, nesting=pair.nesting, **kwargs
        )
        loss = sum((t.log_prob.sum() for _, t in weights.terms()), start=torch.zeros(()))
    known = {id(t) for t in (*leaves.values(), *args, *kwargs.values())}
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
        n: q for n, q in weights.guide.items() if not q.observed and not q.auxiliary
        and not _is_factor(q)
    }  # fmt: skip
    fixed = [
        n for n, q in latents.items()
        if not _has_gradient(q.value) and not _has_gradient(q.log_prob) and not q.enumerated
    ]  # fmt: skip
    if latents and not grads:
        yield Finding(
            "error" if trains else "note", None, "the pair has no parameters", "something to learn",
            "neither a pyro.param nor a registered module",
            "use pyro.param, or pyro.module(\"name\", net) for a network; a bare "
            "torch.tensor(..., requires_grad=True) is not seen by Pyro.",
        )  # fmt: skip
        return
    if latents and len(fixed) == len(latents):
        cut = bool(lost)
        yield Finding(
            "error" if cut else "note", fixed[0],
            "the guide learns nothing" if cut else "the guide has nothing to learn",
            "draws that depend on the guide's parameters" if cut else "",
            f"no gradient reaches {_first_names(lost)}" if cut else
            "no parameter in its distributions",
            "remove detach(), .data, torch.no_grad() and torch.tensor(...) copies between the "
            "parameters and the distribution." if cut else "nothing to do if that is meant.",
        )  # fmt: skip
        if cut:
            return
    if lost:
        yield Finding(
            "warning", fixed[0] if fixed else None, "parameters that get no gradient",
            "a gradient for every parameter", f"none for {_first_names(lost)}",
            "remove what is not used (or freeze it with requires_grad_(False)); if it should be "
            "used, look for detach(), .data or torch.no_grad() on the way.",
        )  # fmt: skip


def unregistered(strangers: list[Tensor], model: Callable, guide: Callable) -> Iterable[Finding]:
    """Find tensors that the loss depends on and that Pyro was never told of."""
    if not strangers:
        return
    wanted = {id(t): t for t in strangers}
    for name, obj in referred(model, guide).items():
        if isinstance(obj, nn.Module):
            mine = [n for n, p in obj.named_parameters() if id(p) in wanted]
            if mine:
                for _, p in obj.named_parameters():
                    wanted.pop(id(p), None)
                yield Finding(
                    "error", None, f"module {name!r} is used but not registered",
                    f"pyro.module({name!r}, {name}) in the model or guide that uses it",
                    f"its {len(mine)} parameters ({_first_names(mine)}) never reach Pyro and would "
                    "keep their random starting values",
                    f"add pyro.module({name!r}, {name}), or make it an attribute of the pair's "
                    f"module; if it is meant to stay as it is, {name}.requires_grad_(False).",
                )  # fmt: skip
        elif id(obj) in wanted:
            wanted.pop(id(obj))
            yield _unregistered_tensor(f"tensor {name!r}", obj)
    for tensor in wanted.values():
        yield _unregistered_tensor("a tensor", tensor)


def collisions(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Find different modules, or parameters of different shape, under one name."""
    seen: dict[str, bool] = {}
    for name in {**guide.starts, **model.starts}:
        starts = [s for r in (guide, model) for s in r.starts.get(name, []) if torch.is_tensor(s)]
        if "$$$" in name:
            module = name.split("$$$")[0]
            if len({id(s) for s in starts}) > 1 and module not in seen:
                seen[module] = True
                yield Finding(
                    "error", None, f"two modules are registered as {module!r}",
                    "one name for each module", f"pyro.module({module!r}, ...) with different "
                    "modules; only the first would be fitted",
                    f"name them apart, for example {module}_model and {module}_guide.",
                )  # fmt: skip
        elif len({tuple(s.shape) for s in starts}) > 1:
            shapes = sorted({tuple(s.shape) for s in starts})
            yield Finding(
                "error", None, f"two parameters are called {name!r}", "one name for each parameter",
                f"shapes {' and '.join(map(str, shapes))}; only the first is made",
                "rename one of them.",
            )  # fmt: skip


def cached(modules: Iterable[nn.Module]) -> Iterable[Finding]:
    """Find tensors computed from parameters once, outside of model and guide."""
    for module in modules:
        for path, sub in module.named_modules():
            for key, value in vars(sub).items():
                if torch.is_tensor(value) and value.grad_fn is not None:
                    name = ".".join(p for p in (path, key) if p)
                    yield Finding(
                        "error", None, f"attribute {name!r} is computed from a parameter only once",
                        "computed in model or guide, at each step",
                        f"a tensor in a graph ({type(value.grad_fn).__name__}), made when "
                        f"{type(sub).__name__} was, which later steps would not update",
                        f"keep the parameter in __init__ and compute {key!r} where it is used.",
                    )  # fmt: skip


def _unregistered_tensor(name: str, tensor: Tensor) -> Finding:
    return Finding(
        "error", None, f"{name} asks for a gradient, but is not a parameter",
        "pyro.param(name, start), or an nn.Parameter of a registered module",
        f"shape {tuple(tensor.shape)}, requires_grad=True, unknown to Pyro: it would not be fitted",
        "make it a pyro.param; a constant needs no requires_grad.",
    )  # fmt: skip


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaf tensors that a graph was made from."""
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


def _has_gradient(value: Any) -> bool:
    return torch.is_tensor(value) and value.requires_grad


def _is_factor(term: Any) -> bool:
    return type(term.fn).__name__ == "Unit"


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
