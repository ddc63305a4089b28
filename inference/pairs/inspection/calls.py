"""A pair called again: what it builds anew, changes in place, or replaces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ...randomness import forked
from ...weights import At, LogWeights, log_weights
from ..pair import STORE, Pair
from .findings import Finding, finding
from .lines import line_here
from .runs import Trial


def draw(
    pair: Pair,
    params: Mapping[str, Tensor],
    args: tuple,
    held: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> LogWeights:
    """Return log weights of the pair, at latents that are held; its buffers stay."""
    guide = At(held)(pair.guide) if held else pair.guide
    with pair.bind(params, {k: b.clone() for k, b in pair.buffers.items()}):
        return log_weights(pair.model, guide, *args, nesting=pair.nesting, **options)


def second(pair: Pair, trial: Trial) -> Iterable[Finding]:
    """Find what a call does to parameters when it is not the first one."""
    start = {k: p + 0.1 * torch.rand_like(p) for k, p in pair.params.items()}

    def call(watch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        leaves = {k: p.detach().clone().requires_grad_() for k, p in start.items()}
        buffers = {k: b.clone() for k, b in pair.buffers.items()}
        with forked(0), pair.bind(leaves, buffers), torch.no_grad(), watch(leaves):
            given = dict(STORE._params)
            log_weights(pair.model, pair.guide, *trial.args, nesting=pair.nesting, **trial.kwargs)
            return leaves, given, dict(STORE._params)

    built: list[tuple[str, str | None]] = []
    leaves, given, after = call(lambda _: _noted(built))
    if built:
        kind, line = built[0]
        yield finding("anew", kind=kind, at=f" at {line}" if line else "")
        return
    if new := [n for n in after if n not in given and "$$$" not in n]:
        yield finding("new-names", new=", ".join(new[:3]))
    if lost := [n for n, p in given.items() if after.get(n) is not p]:
        yield finding("replaced", name=lost[0])
    elif changed := [n for n, p in leaves.items() if not _same(p, start[n])]:
        lines: list[str] = []
        call(lambda leaves: _Writes(leaves[changed[0]], lines))
        yield finding("changed", name=changed[0], at=f" at {lines[0]}" if lines else "")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


@contextmanager
def _noted(found: list[tuple[str, str | None]]) -> Iterator[None]:
    """Note the modules that get parameters inside, and the users' lines that make them."""

    def note(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None:
            found.append((type(module).__name__, line_here()))

    handle = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        handle.remove()


class _Writes(TorchFunctionMode):
    """Notes the users' lines that change a tensor in place."""

    def __init__(self, tensor: Tensor, lines: list[str]):
        super().__init__()
        self.tensor, self.lines, self.value = tensor, lines, tensor.detach().clone()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.lines and not _same(self.tensor.detach(), self.value):
            self.lines.append(line_here() or "")
        return out
