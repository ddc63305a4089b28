"""Wishart and Gaussian distributions by the Cholesky factor of the precision.

Both are reparameterised, broadcast, and factorise nothing, so that they can be traced and compiled.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform

Size = torch.Size | list[int] | tuple[int, ...]


class CholeskyFactor(constraints.Constraint):
    """Lower triangular matrices with a positive diagonal, with a bijection for autoguides and HMC.

    torch's own `lower_cholesky` has a map from square matrices, which is not one to one.
    """

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Return whether each matrix is such a factor, (..., D, D) -> (...)."""
        return constraints.lower_cholesky.check(value)


cholesky_factor = CholeskyFactor()


class CholeskyTransform(Transform):
    """Vectors of D(D+1)/2 numbers to lower triangular matrices: log of the diagonal, row by row."""

    domain = constraints.real_vector
    codomain = cholesky_factor
    bijective = True

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """(..., D(D+1)/2) -> (..., D, D)."""
        d = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return torch.Size((*shape[:-1], d, d))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """(..., D, D) -> (..., D(D+1)/2)."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))

    def _call(self, x: Tensor) -> Tensor:
        shape = self.forward_shape(x.shape)
        rows, columns = torch.tril_indices(*shape[-2:], device=x.device)
        square = x.new_zeros(shape)
        square[..., rows, columns] = x
        return square.tril(-1) + square.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        rows, columns = torch.tril_indices(*y.shape[-2:], device=y.device)
        square = y.tril(-1) + y.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        return square[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of the logarithms of the diagonal."""
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@biject_to.register(CholeskyFactor)
@transform_to.register(CholeskyFactor)
def _to_cholesky_factor(constraint: CholeskyFactor) -> Transform:
    return CholeskyTransform()


class WishartCholesky(TorchDistribution):
    """L lower triangular with L Lᵀ = Λ ~ Wishart(df, T Tᵀ), by Bartlett's decomposition.

        L = T A,    A_ii² ~ χ²(df - i + 1),    A_ij ~ N(0, 1) for i > j,    i = 1 .. D

    Differentiable in df and T, and traceable: nothing is factorised.

    Args:
        df: degrees of freedom, more than D - 1, (*batch).
        scale_tril: T, (*batch, D, D).

    Source: Bartlett, On the theory of statistical regression (1933).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "df": constraints.positive,
        "scale_tril": constraints.lower_cholesky,
    }
    support = cholesky_factor
    has_rsample = True

    def __init__(self, df: Tensor, scale_tril: Tensor, validate_args: bool | None = None):
        batch = torch.broadcast_shapes(df.shape, scale_tril.shape[:-2])
        self.df = df.expand(batch)
        self.scale_tril = scale_tril.expand(batch + scale_tril.shape[-2:])
        super().__init__(batch, scale_tril.shape[-2:], validate_args=validate_args)

    def _half_df(self) -> Tensor:
        """(df - i + 1)/2 for the rows i, (*batch, D)."""
        rows = torch.arange(self.event_shape[0], dtype=self.df.dtype, device=self.df.device)
        return (self.df.unsqueeze(-1) - rows) / 2

    def rsample(self, sample_shape: Size = ()) -> Tensor:
        """Draw L, (*sample_shape, *batch, D, D)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        half = self._half_df().expand(shape[:-1])
        chi2 = 2 * torch._standard_gamma(half).clamp_min(torch.finfo(half.dtype).tiny)
        noise = torch.randn(shape, dtype=half.dtype, device=half.device)
        return self.scale_tril @ (noise.tril(-1) + chi2.sqrt().diag_embed())

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(L), nats: (..., D, D) -> (...)."""
        if self._validate_args:
            self._validate_sample(value)
        a = torch.linalg.solve_triangular(self.scale_tril, value, upper=False)
        half = self._half_df()
        diagonal = a.diagonal(dim1=-2, dim2=-1)
        below = a.tril(-1).square().sum((-2, -1))
        d = self.event_shape[0]
        # a_i = √c_i with c_i ~ χ²(2 half): log 2 a_i more than log χ²
        log_chi = (
            (2 * half - 1) * diagonal.log()
            - 0.5 * diagonal.square()
            - torch.lgamma(half)
            - (half - 1) * math.log(2)
        ).sum(-1)
        log_normal = -0.5 * (below + 0.5 * d * (d - 1) * math.log(2 * math.pi))
        # row i of L is T_ii times row i of A, and more of the rows above: |dL/dA| = ∏ T_ii^i
        rows = torch.arange(1, d + 1, dtype=half.dtype, device=half.device)
        scale = self.scale_tril.diagonal(dim1=-2, dim2=-1)
        return log_chi + log_normal - (rows * scale.log()).sum(-1)

    def expand(self, batch_shape: Size, _instance: WishartCholesky | None = None):
        """Return the same with a larger batch shape."""
        new = self._get_checked_instance(WishartCholesky, _instance)
        batch_shape = torch.Size(batch_shape)
        new.df = self.df.expand(batch_shape)
        new.scale_tril = self.scale_tril.expand(batch_shape + self.event_shape)
        super(WishartCholesky, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


class PrecisionNormal(TorchDistribution):
    """N(loc, (L Lᵀ)⁻¹), given the Cholesky factor L of the precision.

    Its density needs products only, where the Cholesky factor of the covariance needs a
    triangular solve for each datum.

    Args:
        loc: (*batch, D).
        precision_tril: L, (*batch, D, D).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "precision_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, precision_tril: Tensor, validate_args: bool | None = None):
        batch = torch.broadcast_shapes(loc.shape[:-1], precision_tril.shape[:-2])
        self.loc, self.precision_tril = loc, precision_tril  # broadcast in use, never copied
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """(*batch, D)."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance, (*batch, D)."""
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)

    @property
    def covariance_matrix(self) -> Tensor:
        """Λ⁻¹, (..., D, D)."""
        covariance = torch.cholesky_inverse(self.precision_tril)
        return covariance.expand(self.batch_shape + self.event_shape + self.event_shape)

    def rsample(self, sample_shape: Size = ()) -> Tensor:
        """Draw x = loc + L⁻ᵀ noise, (*sample_shape, *batch, D)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device).unsqueeze(-1)
        white = torch.linalg.solve_triangular(self.precision_tril.mT, noise, upper=True)
        return self.loc + white.squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats: (..., D) -> (...)."""
        if self._validate_args:
            self._validate_sample(value)
        apart, tril = value - self.loc, self.precision_tril
        if tril.ndim > 2 and tril.shape[-3] == 1 and apart.ndim > 1:  # one L for a row of data
            white = apart @ tril.squeeze(-3)
        else:
            white = (apart.unsqueeze(-1) * tril).sum(-2)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        d = self.event_shape[0]
        log_p = log_det - 0.5 * (white.square().sum(-1) + d * math.log(2 * math.pi))
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def expand(self, batch_shape: Size, _instance: PrecisionNormal | None = None):
        """Return the same with a larger batch shape."""
        new = self._get_checked_instance(PrecisionNormal, _instance)
        new.loc, new.precision_tril = self.loc, self.precision_tril
        super(PrecisionNormal, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new
