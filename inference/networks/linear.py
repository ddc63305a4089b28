"""Linear layers of flows: activation norm, permutation, and a matrix kept as its LU factors.

Each starts at the identity; `initialise(x)` sets it so that x comes out with mean 0 and variance 1
in each column, and of the LU layer uncorrelated too. Parameters are differences from there, kept in
buffers, so that weight decay draws a flow to the Gaussian of best fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .transforms import FlowTransform


class ActivationNorm(FlowTransform):
    """A shift and a scale for each variable.

        y = (x + shift) exp(log_scale)

    Args:
        dim: dimension D.

    Source: Glow, arXiv:1807.03039, section 3.1.
    """

    start_shift: Tensor
    start_log_scale: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("start_shift", torch.zeros(dim))
        self.register_buffer("start_log_scale", torch.zeros(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Give x (N, D) mean 0 and variance 1."""
        self.start_shift.copy_(-x.mean(0))
        self.start_log_scale.copy_(-x.std(0, correction=0).clamp_min(1e-6).log())
        for p in self.parameters():
            p.zero_()

    def call_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (..., D) and log |det dy/dx| (...)."""
        log_scale = self.start_log_scale + self.log_scale
        y = (x + self.start_shift + self.shift) * log_scale.exp()
        return y, log_scale.sum().expand(x.shape[:-1])

    def inv_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (..., D) and log |det dy/dx| (...)."""
        log_scale = self.start_log_scale + self.log_scale
        x = y * (-log_scale).exp() - (self.start_shift + self.shift)
        return x, log_scale.sum().expand(y.shape[:-1])


class Permutation(FlowTransform):
    """The variables in another order, drawn from a seed.

    Args:
        dim: dimension D.
        seed: of the order.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, dim: int, seed: int = 0):
        super().__init__()
        order = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())

    def call_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (..., D) and log |det dy/dx| = 0 (...)."""
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def inv_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (..., D) and log |det dy/dx| = 0 (...)."""
        return y.index_select(-1, self.inverse_order), y.new_zeros(y.shape[:-1])


class LULinear(FlowTransform):
    """An invertible matrix and a shift: y = L U W (x + shift), L of unit diagonal, U's positive.

    W is the identity, or what `initialise` found: lower triangular, and fixed.

    Args:
        dim: dimension D.

    Source: Glow, arXiv:1807.03039, section 3.2; Neural spline flows, arXiv:1906.04032, section 3.1.
    """

    start_shift: Tensor
    start: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("start_shift", torch.zeros(dim))
        self.register_buffer("start", torch.eye(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.zeros(dim, dim))
        self.upper = nn.Parameter(torch.zeros(dim, dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Give x (N, D) mean 0 and covariance I: with a normal base, the Gaussian of best fit."""
        self.start_shift.copy_(-x.mean(0))
        covariance = torch.cov(x.double().mT, correction=0).reshape(x.shape[-1], -1)
        ridge = 1e-6 * covariance.diagonal().mean().clamp_min(1e-12)
        one = torch.eye(len(covariance)).to(covariance)
        low = torch.linalg.cholesky(covariance + ridge * one)
        self.start.copy_(torch.linalg.solve_triangular(low, one, upper=False))
        for p in self.parameters():
            p.zero_()

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U, (D, D) each."""
        one = torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + one, self.upper.triu(1) + one * self.log_diagonal.exp()

    def _log_det(self) -> Tensor:
        return (self.log_diagonal + self.start.diagonal().log()).sum()

    def call_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (..., D) and log |det dy/dx| (...)."""
        low, up = self.factors()
        y = (x + self.start_shift + self.shift) @ (low @ up @ self.start).mT
        return y, self._log_det().expand(x.shape[:-1])

    def inv_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (..., D) and log |det dy/dx| (...)."""
        low, up = self.factors()
        x = torch.linalg.solve_triangular(low, y.unsqueeze(-1), upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(up, x, upper=True)
        x = torch.linalg.solve_triangular(self.start, x, upper=False).squeeze(-1)
        return x - (self.start_shift + self.shift), self._log_det().expand(y.shape[:-1])


LINEAR = ("none", "norm", "permutation", "lu")


def with_linear(kind: str, dim: int, layers: list[FlowTransform]) -> list[FlowTransform]:
    """Put linear layers before each layer of a flow.

    Args:
        kind: `"none"`; `"norm"`, an activation norm; `"permutation"`, one with a random order; or
            `"lu"`, a matrix.
        dim: D.
        layers: of the flow, from data to noise.

    Raises:
        ValueError: another kind.
    """
    if kind not in LINEAR:
        raise ValueError(f"linear: expected {', '.join(LINEAR)}, got {kind!r}.")
    out: list[FlowTransform] = []
    for i, layer in enumerate(layers):
        if kind in ("norm", "permutation"):
            out.append(ActivationNorm(dim))
        if kind == "permutation" and i:
            out.append(Permutation(dim, seed=i))
        if kind == "lu":
            out.append(LULinear(dim))
        out.append(layer)
    return out
