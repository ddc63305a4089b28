"""Standard normals and uniforms of a graph, drawn outside of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

NORMAL = (
    aten.normal_.default, aten.randn.default, aten.randn.generator, aten.randn_like.default,
)  # fmt: skip
UNIFORM = (
    aten.uniform_.default, aten.rand.default, aten.rand.generator, aten.rand_like.default,
)  # fmt: skip
IN_PLACE = (aten.normal_.default, aten.uniform_.default)


class Noise:
    """Random numbers of a graph as an input: standard normals and uniforms, one after another.

    Attributes:
        parts: (normal or else uniform, how many).
        example: (total,), zeros.
    """

    def __init__(self, parts: list[tuple[bool, int]], example: Tensor):
        self.parts, self.example = parts, example
        self._made: dict[Any, tuple[Tensor, list[tuple[bool, Tensor]]]] = {}

    def draw(self, updates: int = 1, singly: bool = False) -> Tensor:
        """Draw anew: (total,), as the graph itself would, or (updates, total) for several.

        Args:
            updates: for how many updates.
            singly: draw for one update after another, as so many graphs would: the same numbers,
                in a microsecond for each draw. Else each kind is drawn for all updates at once.
        """
        key = updates, singly
        if key not in self._made:
            values = self.example.repeat(updates, 1) if updates > 1 else self.example
            rows = list(values) if singly and updates > 1 else [values]
            sizes, kinds = [n for _, n in self.parts], [normal for normal, _ in self.parts]
            views = [(k, v) for row in rows for k, v in zip(kinds, row.split(sizes, -1))]
            plain = updates > 1 and not singly and all(kinds)
            self._made[key] = values, [(True, values)] if plain else views
        values, views = self._made[key]
        for normal, view in views:
            view.normal_() if normal else view.uniform_()
        return values


def is_standard(func: Any, args: tuple, kwargs: dict) -> bool:
    """True for an operation that draws standard normals or uniforms from torch's own generator."""
    if func not in NORMAL + UNIFORM or kwargs.get("generator") is not None:
        return False
    if func in (aten.randn.generator, aten.rand.generator) and any(a is not None for a in args[1:]):
        return False
    if func not in IN_PLACE:
        return kwargs.get("memory_format") in (None, torch.contiguous_format) or (
            isinstance(args[0], Tensor) and args[0].is_contiguous()
        )
    return tuple(args[1:]) in ((), (0, 1)) and args[0].is_contiguous()  # else in another order
