"""Groups of parameters: those of the model, of the guide, and of each module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...weights import LogWeights


@dataclass(frozen=True)
class Group:
    """Some columns of a gradient: a half ("model", "guide", "shared"), or a module of one."""

    name: str
    half: str
    columns: Tensor


def groups_of(weights: Callable[..., LogWeights], params: Mapping[str, Tensor]) -> list[Group]:
    """The halves first, then every module of each half, in the order of the parameters.

    A parameter belongs to the half that its value changes: the guide's draws and densities, or
    the model's densities at fixed draws. Those that change both are "shared", and those that
    change neither are left out.

    Args:
        weights: log weights of a batch at given parameters.
        params: the parameters, by name.
    """
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    drawn = weights(leaves, model_values=lambda name, value: value.detach())
    in_model = _touched(list(drawn.model.values()), leaves, values=False)
    in_guide = _touched(list(drawn.guide.values()), leaves, values=True)

    members: dict[tuple[str, str], list[str]] = {}
    for name in params:
        if name in in_model and name in in_guide:
            half = "shared"
        elif name in in_model or name in in_guide:
            half = "model" if name in in_model else "guide"
        else:
            continue
        members.setdefault((half, half), []).append(name)
        module = name.rpartition(".")[0] or name
        members.setdefault((half, module), []).append(name)
    halves = {k: v for k, v in members.items() if k[0] == k[1]}
    order = ("model", "guide", "shared")
    first = sorted(halves, key=lambda k: order.index(k[0]))
    rest = [k for k in members if k not in halves]
    columns, end = {}, 0
    for name, p in params.items():
        columns[name] = torch.arange(end, end + p.numel())
        end += p.numel()
    names = [k[1] for k in rest]
    return [
        Group(
            name if names.count(name) == 1 or half == name else f"{name} ({half})",
            half,
            torch.cat([columns[n] for n in members[half, name]]),
        )
        for half, name in (*first, *rest)
    ]


def _touched(terms: list, leaves: Mapping[str, Tensor], values: bool) -> set[str]:
    """Names of the parameters that some log density (and value) depends on."""
    outputs = [t.log_prob.sum() for t in terms]
    if values:
        outputs += [
            t.value.sum() for t in terms
            if torch.is_tensor(t.value) and t.value.is_floating_point()
        ]  # fmt: skip
    outputs = [o for o in outputs if o.requires_grad]
    if not outputs:
        return set()
    grads = torch.autograd.grad(
        torch.stack(outputs).sum(), list(leaves.values()), allow_unused=True
    )
    return {name for name, g in zip(leaves, grads) if g is not None}
