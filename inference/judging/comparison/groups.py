"""Groups of parameters: those of the model, of the guide, and of each module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...pairs.gate import CheckedPair
from ...randomness import forked


@dataclass(frozen=True)
class Group:
    """Some columns of a gradient: a half ("model", "guide", "shared"), or a module of one."""

    name: str
    half: str
    columns: Tensor


def halves_of(pair: CheckedPair) -> dict[str, str]:
    """Parameter -> "model", "guide" or "shared"; those that change nothing are left out.

    A parameter belongs to the half that its value changes: the guide's draws and densities, or
    the model's densities at fixed draws. Those that change both are "shared".
    """
    leaves = {k: p.detach().requires_grad_() for k, p in pair.params.items()}
    with forked(), torch.enable_grad(), replace(pair, params=leaves).bound():
        drawn = pair.weights(vectorized=True, model_values=lambda _, value: value.detach())
    in_model = _touched(list(drawn.model.values()), leaves, values=False)
    in_guide = _touched(list(drawn.guide.values()), leaves, values=True)
    half = dict.fromkeys(in_model, "model") | dict.fromkeys(in_guide, "guide")
    half |= dict.fromkeys(in_model & in_guide, "shared")
    return {k: half[k] for k in pair.params if k in half}


def groups_of(pair: CheckedPair) -> list[Group]:
    """The halves first, then every module of each half, in the order of the parameters."""
    half_of = halves_of(pair)
    columns, end = {}, 0
    for name, p in pair.params.items():
        columns[name] = torch.arange(end, end + p.numel())
        end += p.numel()
    members: dict[tuple[str, str], list[Tensor]] = {}  # (half, module), the half as the first
    halves = [h for h in ("model", "guide", "shared") if h in half_of.values()]
    for half in halves:
        members[half, half] = [columns[n] for n, h in half_of.items() if h == half]
    for name, half in half_of.items():
        module = name.rpartition(".")[0] or name
        if module != half:  # such a module is the half, and has its columns already
            members.setdefault((half, module), []).append(columns[name])
    modules = [module for half, module in members if half != module]
    return [
        Group(f"{module} ({half})" if modules.count(module) > 1 else module, half, torch.cat(parts))
        for (half, module), parts in members.items()
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
