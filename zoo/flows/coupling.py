"""Coupling layers: one part of x is transformed given the other, in one pass each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inference.networks import MLP, FlowTransform, Univariate, start_at_identity


class Coupling(FlowTransform):
    """One part of x stays, and gives the parameters by which the other part is transformed.

        x = (a, b),   y = (a, u(b; net(a)))

    Both directions are one pass. a is the first half of the variables, or with `swap` the second.

    Args:
        dim: dimension D, at least 2.
        univariate: `Affine()` (Real NVP) or `RationalQuadratic()` (neural spline flow).
        hidden: widths of the network's hidden layers.
        act: its activation.
        swap: condition on the second half instead of the first.
        context_dim: width C of the context, 0 for none.
        dropout: probability with which a step leaves out a hidden unit.

    Raises:
        ValueError: one dimension, where there is nothing to condition on.

    Source: Density estimation using Real NVP, arXiv:1605.08803, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        univariate: Univariate,
        hidden: Sequence[int] = (64, 64),
        act: str = "relu",
        swap: bool = False,
        context_dim: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if dim < 2:
            raise ValueError(
                f"a coupling flow needs at least 2 dimensions, got {dim}: one part of x conditions "
                "the other. In one dimension use NeuralSplineFlow(1, transform='autoregressive')."
            )
        self.univariate = univariate
        self.swap = swap
        self.sizes = [dim // 2, dim - dim // 2]
        known, moved = reversed(self.sizes) if swap else self.sizes
        self.context_dim = context_dim
        self.net = MLP(known + context_dim, hidden, univariate.outputs * moved, act, dropout)
        start_at_identity(self.net[-1])

    def call_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (..., D) and log |det dy/dx| (...)."""
        return self._move(self.univariate.forward, x, context)

    def inv_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (..., D) and log |det dy/dx| (...)."""
        return self._move(self.univariate.inverse, y, context)

    def _move(self, function: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, dim=-1)
        a, b = (second, first) if self.swap else (first, second)
        seen = a
        if self.context_dim:
            assert context is not None
            seen = torch.cat([a, context.expand(*a.shape[:-1], -1)], -1)
        h = self.net(seen).unflatten(-1, (self.univariate.outputs, b.shape[-1]))
        b, ladj = function(b, h)
        return torch.cat([b, a] if self.swap else [a, b], dim=-1), ladj.sum(-1)
