"""Derived distributions: the density of x = f(z) when the density of z is known.

    one to one      p(x) = p_z(f⁻¹(x)) |det df⁻¹/dx|        `negative_log`, `linear`, `inverse_cdf`
    several to one  p(x) = Σ_b p_z(f_b⁻¹(x)) |df_b⁻¹/dx|    `square`, `absolute`, `Folded`

with f_b the map on branch b, where it is one to one. Everything here returns a Pyro
`TransformedDistribution` (or a `MultivariateNormal` where that is exact), for `pyro.sample` like
any other. Source: Bishop, Pattern Recognition and Machine Learning, eq. 1.27 and 11.5-11.9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform


class NegativeLog(Transform):
    """-log, from positive numbers to real ones. (In transforms, as in torch, y = f(x).)"""

    domain = constraints.positive
    codomain = constraints.real
    bijective = True
    sign = -1

    def _call(self, x: Tensor) -> Tensor:
        # torch draws uniforms from [0, 1): without a floor one in 2^24 draws would be infinite
        return -x.clamp_min(torch.finfo(x.dtype).tiny).log()

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.exp(-y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |dy/dx| = -log x = y."""
        return y


def negative_log(base: TorchDistribution) -> dist.TransformedDistribution:
    """Return the distribution of x = -log z for positive z.

        p(x) = p_z(e^-x) e^-x

    With z uniform on (0, 1), x is exponential with rate 1.

    Raises:
        ValueError: z is discrete or can be negative.
    """
    _check_density(base)
    support: Any = base.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if not torch.all(torch.as_tensor(getattr(support, "lower_bound", -torch.inf)) >= 0):
        raise ValueError(
            f"base: expected positive numbers, got support {base.support}: a negative number has "
            "no logarithm. Take absolute(base) or exponentiate it first."
        )
    return dist.TransformedDistribution(base, [NegativeLog()])


def _check_density(base: TorchDistribution) -> None:
    support: Any = base.support
    if support.is_discrete:
        raise ValueError(
            f"base: expected a continuous distribution, got {type(base).__name__}: no volume is "
            "stretched where z is discrete. Use its own log_prob at the preimages."
        )


class Square(Transform):
    """x², two to one on the whole line; one to one on the half lines (`side` 1 or -1)."""

    domain = constraints.real
    codomain = constraints.nonnegative

    def __init__(self, side: int = 0):
        super().__init__()
        self.side = side
        self.bijective = side != 0

    def _call(self, x: Tensor) -> Tensor:
        return x.square()

    def _inverse(self, y: Tensor) -> Tensor:
        return self.side * y.sqrt()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |dy/dx| = log |2x|."""
        return (2 * x).abs().log()


class Absolute(Transform):
    """|x|, two to one on the whole line."""

    domain = constraints.real
    codomain = constraints.nonnegative

    def _call(self, x: Tensor) -> Tensor:
        return x.abs()


class Folded(dist.TransformedDistribution):
    """The distribution of x = f(z) for an f that is one to one on each of several branches.

        p(x) = Σ_b p_z(z_b) / |f'(z_b)|,    z_b = f_b⁻¹(x)

    A preimage outside the support of z counts nothing.

    Args:
        base: distribution of z, over single numbers; make vectors afterwards with `.to_event(1)`.
        fold: f, as a transform; need not be bijective.
        branches: f restricted to each branch, as bijective transforms.

    Raises:
        ValueError: z is a vector, or there is no branch.
    """

    def __init__(self, base: TorchDistribution, fold: Transform, branches: Sequence[Transform]):
        if base.event_dim:
            raise ValueError(
                f"base: expected a distribution over numbers, got event shape {base.event_shape}. "
                "Fold first and call .to_event afterwards."
            )
        _check_density(base)
        if not branches:
            raise ValueError("branches: expected at least one transform, got none.")
        super().__init__(base, [fold])
        self.branches = tuple(branches)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats: (...) -> (...)."""
        if self._validate_args:
            self._validate_sample(value)
        # A point inside the support stands in for a preimage outside, so that neither the density
        # nor its gradient is asked for there.
        support = self.base_dist.support
        stand_in = td.transform_to(support)(torch.zeros_like(value))
        terms = []
        for branch in self.branches:
            z = branch.inv(value)
            inside = support.check(z)
            z = torch.where(inside, z, stand_in)
            term = self.base_dist.log_prob(z) - branch.log_abs_det_jacobian(z, value)
            terms.append(torch.where(inside, term, -torch.inf))
        return torch.stack(terms).logsumexp(0)

    def expand(self, batch_shape: torch.Size, _instance: Folded | None = None) -> Folded:
        """Return the same fold of an expanded base."""
        new = self._get_checked_instance(Folded, _instance)
        new.branches = self.branches
        return super().expand(batch_shape, _instance=new)


def square(base: TorchDistribution) -> Folded:
    """Return the distribution of x = z².

        p(x) = [p_z(√x) + p_z(-√x)] / 2√x

    With z standard normal, x is chi-squared with one degree of freedom.
    """
    return Folded(base, Square(), [Square(1), Square(-1)])


def absolute(base: TorchDistribution) -> Folded:
    """Return the distribution of x = |z|.

        p(x) = p_z(x) + p_z(-x)

    With z standard normal, x is half-normal.
    """
    return Folded(base, Absolute(), [AffineTransform(0.0, 1.0), AffineTransform(0.0, -1.0)])


def _slope(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """df/dx, elementwise, with a graph where `at` or a parameter of f wants one."""
    graph = f(at).requires_grad
    with torch.enable_grad():
        at = at if at.requires_grad else at.detach().requires_grad_()
        return torch.autograd.grad(f(at).sum(), at, create_graph=graph)[0]


def _solve(f: Callable[[Tensor], Tensor], y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """s in (low, high) with f(s) = y, for an increasing f, elementwise, by bisection."""
    with torch.no_grad():
        low, high = low.expand_as(y), high.expand_as(y)
        for _ in range(80):  # 2^-80 of the bracket: below rounding in float64
            middle = (low + high) / 2
            below = f(middle) < y
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        s = (low + high) / 2
        slope = _slope(f, s).clamp_min(torch.finfo(y.dtype).tiny)
    # Implicit differentiation of f(s) = y: adds zero, and ds = (dy - df)/f'.
    residual = (y - y.detach()) - (f(s) - f(s).detach())
    return s + residual / slope


class Quantile(Transform):
    """Q, the inverse of a cumulative distribution function F, from (0, 1) to `support`.

    Args:
        cdf: F, increasing on `support`, elementwise, in torch operations.
        icdf: Q. One of the two may be left out and is then found by bisection, with implicit
            gradients; a density from Q alone loses digits as F nears 1.
        support: where the values of Q lie.
    """

    domain = constraints.unit_interval
    bijective = True
    sign = 1

    def __init__(
        self,
        cdf: Callable[[Tensor], Tensor] | None = None,
        icdf: Callable[[Tensor], Tensor] | None = None,
        support: constraints.Constraint = constraints.real,
    ):
        if cdf is None and icdf is None:
            raise ValueError("inverse_cdf: expected cdf, icdf or both, got neither.")
        super().__init__()
        self.cdf, self.icdf, self.codomain = cdf, icdf, support

    @staticmethod
    def _inside(u: Tensor) -> Tensor:
        """u kept off 0 and 1, where x would be infinite and rounding would end the support."""
        finfo = torch.finfo(u.dtype)
        return u.clamp(finfo.tiny, 1 - finfo.eps / 2)

    def _call(self, x: Tensor) -> Tensor:
        u = self._inside(x)
        if self.icdf is not None:
            return self.icdf(u)
        cdf = self.cdf
        assert cdf is not None
        # y = sinh(s) runs through every float while s runs through a short interval
        end = u.new_tensor(torch.finfo(u.dtype).max / 4).asinh()
        s = _solve(lambda s: cdf(self._within(s.sinh())), u, -end, end)
        return self._within(s.sinh())

    def _within(self, y: Tensor) -> Tensor:
        return y.clamp(
            getattr(self.codomain, "lower_bound", -torch.inf),
            getattr(self.codomain, "upper_bound", torch.inf),
        )

    def _inverse(self, y: Tensor) -> Tensor:
        if self.cdf is not None:
            return self._inside(self.cdf(y))
        assert self.icdf is not None
        return self._inside(_solve(self.icdf, y, y.new_zeros(()), y.new_ones(())))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |dy/dx| = -log F'(y) = log Q'(x)."""
        if self.cdf is not None:
            return -_slope(self.cdf, y).log()
        assert self.icdf is not None
        return _slope(self.icdf, x).log()


def inverse_cdf(
    cdf: Callable[[Tensor], Tensor] | None = None,
    icdf: Callable[[Tensor], Tensor] | None = None,
    support: constraints.Constraint = constraints.real,
    base: TorchDistribution | None = None,
) -> dist.TransformedDistribution:
    """Return the distribution whose cumulative distribution function is F, sampled as x = F⁻¹(u).

        u ~ Uniform(0, 1),    p(x) = F'(x)

    Draws are differentiable in the parameters of F.

    Args:
        cdf: F, elementwise, in torch operations.
        icdf: its inverse Q; give one of the two or both.
        support: where x lives, for validation and for the search where `icdf` is left out.
        base: distribution of u, for its dtype, device and batch shape; Uniform(0, 1) in torch's
            default dtype unless given.

    Raises:
        ValueError: neither function was given.

    Source: Devroye, Non-Uniform Random Variate Generation (1986), ch. II.2; gradients: Figurnov,
    Mohamed & Mnih 2018, arXiv:1805.08498, eq. 5.
    """
    transform = Quantile(cdf, icdf, support)
    return dist.TransformedDistribution(base or dist.Uniform(0.0, 1.0), [transform])


class Linear(Transform):
    """A x + b on vectors, A (D, D) invertible, b (D,)."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, matrix: Tensor, bias: Tensor):
        super().__init__()
        self.matrix, self.bias = matrix, bias

    def _call(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT + self.bias

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, (y - self.bias).unsqueeze(-1)).squeeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det A|, (...)."""
        return torch.linalg.slogdet(self.matrix).logabsdet.expand(y.shape[:-1])


def linear(
    base: TorchDistribution, matrix: Tensor, bias: Tensor | float = 0.0
) -> TorchDistribution:
    """Return the distribution of x = A z + b.

        p(x) = p_z(A⁻¹ (x - b)) / |det A|,    a Gaussian z: N(A m + b, A S Aᵀ)

    Args:
        base: distribution of z, event shape (D,).
        matrix: A, (D, D) invertible; for a Gaussian base also (M, D) of rank M.
        bias: b, a number or (M,).

    Returns:
        `MultivariateNormal` for a Gaussian base, else a `TransformedDistribution`.

    Raises:
        ValueError: shapes that do not fit, or a matrix under which x has no density.
    """
    if base.event_dim != 1:
        raise ValueError(
            f"base: expected a distribution over vectors, got event shape {base.event_shape}. "
            "Call .to_event(1) on independent numbers first."
        )
    d = base.event_shape[0]
    if matrix.ndim != 2 or matrix.shape[1] != d:
        raise ValueError(f"matrix: expected shape (M, {d}), got {tuple(matrix.shape)}.")
    rows = len(matrix)
    bias = torch.as_tensor(bias, dtype=matrix.dtype, device=matrix.device).expand(rows)
    if int(torch.linalg.matrix_rank(matrix.detach())) < rows:
        raise ValueError(
            f"matrix: expected rank {rows} (its number of rows), got less. x then lies in a "
            "subspace and has no density; drop dependent rows."
        )
    if isinstance(base, td.MultivariateNormal | td.LowRankMultivariateNormal):
        covariance = base.covariance_matrix
    elif isinstance(base, td.Independent) and isinstance(base.base_dist, td.Normal):
        covariance = base.variance.diag_embed()
    elif rows < d:
        raise ValueError(
            f"matrix: expected ({d}, {d}) for a base that is not Gaussian, got ({rows}, {d}): the "
            "density would be an integral. Add rows, or use a Gaussian base."
        )
    else:
        return dist.TransformedDistribution(base, [Linear(matrix, bias)])
    return dist.MultivariateNormal(base.mean @ matrix.mT + bias, matrix @ covariance @ matrix.mT)
