"""Classical densities: a Gaussian by maximum likelihood, and the kernel density estimate.

Neither has latents. `Gaussian` is a pair (its guide is empty) whose optimum is known in closed
form, so it is the first thing to try and a truth for every trainer; `KernelDensity` is a Pyro
distribution, made from data and used like any other.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.distributions import constraints

Size = torch.Size | list[int] | tuple[int, ...]


def _check(x: Tensor, data_dim: int | str = "D") -> None:
    """Raise ValueError unless x is finite, (N, D), with at least two rows."""
    if x.ndim != 2 or data_dim not in ("D", x.shape[-1]):
        expected = f"(N, {data_dim})"
        raise ValueError(
            f"x: expected shape {expected}, got {tuple(x.shape)}. One row is one datum; "
            "turn a vector of numbers into a column with x[:, None]."
        )
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 rows, got {len(x)}. Give more data.")
    if not torch.isfinite(x).all():
        n = int((~torch.isfinite(x)).sum())
        raise ValueError(f"x: {n} values are NaN or infinite. Drop or impute them first.")


class Gaussian(nn.Module):
    """One multivariate normal distribution, by maximum likelihood.

        x_i ~ N(mean, L Lᵀ)                               (B, D)
        guide: nothing to guess

    Sites: x. Plates: data. Truth: the optimum is the sample mean and the sample covariance with
    divisor N, where the log-likelihood is -N/2 (D log 2π + log|S| + D) (Bishop, Pattern Recognition
    and Machine Learning, eq. 2.118-2.122). `fit_closed_form` goes straight to it.

    Args:
        data_dim: D.
        covariance: `"full"` or `"diagonal"`.
    """

    def __init__(self, data_dim: int, covariance: str = "full"):
        super().__init__()
        if covariance not in ("full", "diagonal"):
            raise ValueError(f"covariance: expected full or diagonal, got {covariance!r}.")
        self.data_dim = data_dim
        self.covariance = covariance
        self.mean = nn.Parameter(torch.zeros(data_dim))
        self.log_scale = nn.Parameter(torch.zeros(data_dim))
        # L = diag(scale) (I + strictly lower part): free numbers, always a Cholesky factor
        free = torch.zeros(data_dim, data_dim)
        self.lower = nn.Parameter(free) if covariance == "full" else None

    def distribution(self) -> TorchDistribution:
        """Return the density as it stands, event shape (D,)."""
        scale = self.log_scale.exp()
        if self.lower is None:
            return dist.Normal(self.mean, scale).to_event(1)
        unit = torch.eye(self.data_dim, dtype=scale.dtype, device=scale.device)
        scale_tril = scale.unsqueeze(-1) * (self.lower.tril(-1) + unit)
        return dist.MultivariateNormal(self.mean, scale_tril=scale_tril)

    def model(self, x: Tensor, size: int | None = None) -> None:
        """Observe x (B, D)."""
        pyro.module("gaussian", self)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("x", self.distribution(), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """No latents, no guide."""
        pyro.module("gaussian", self)

    @torch.no_grad()
    def fit_closed_form(self, x: Tensor) -> Gaussian:
        """Set the parameters to the maximum of the likelihood of x (N, D), and return self.

        Raises:
            ValueError: wrong shape, values that are not finite, or a sample covariance that is
                singular (a constant column, fewer than D + 1 rows), where the likelihood has no
                maximum.
        """
        _check(x, self.data_dim)
        mean = x.mean(0)
        centred = x - mean
        if self.lower is None:
            scale, singular = centred.square().mean(0).sqrt(), False
        else:
            tril, failed = torch.linalg.cholesky_ex(centred.mT @ centred / len(x))
            scale, singular = tril.diagonal(), bool(failed)
        # A column whose own share of the spread is rounding is as good as constant.
        rounding = 8 * math.sqrt(torch.finfo(x.dtype).eps) if self.lower is not None else 0.0
        if singular or bool((scale <= rounding * centred.square().mean(0).sqrt()).any()):
            raise ValueError(
                f"x: the {self.covariance} covariance of these {len(x)} rows is singular. Drop "
                "constant or linearly dependent columns, give more than D rows, or choose "
                "covariance='diagonal'."
            )
        self.mean.copy_(mean)
        self.log_scale.copy_(scale.log())
        if self.lower is not None:
            self.lower.copy_((tril / scale.unsqueeze(-1)).tril(-1))
        return self

    def sample(self, n: int) -> Tensor:
        """Draw x, (n, D)."""
        with torch.no_grad():
            return self.distribution().sample((n,))


class KernelDensity(TorchDistribution):
    """Gaussian kernel density estimate: an equal mixture of N Gaussians, one on each datum.

        p(x) = 1/N Σ_i N(x; x_i, h² S),    S the sample covariance with divisor N - 1

    so that p moves with the data under every affine map. Equal to `scipy.stats.gaussian_kde`.

    Args:
        data: (N, D), N > D.
        bandwidth: the factor h as a number, or how to find it: `"scott"`, N^(-1/(D + 4));
            `"silverman"`, (N (D + 2)/4)^(-1/(D + 4)); `"leave-one-out"`, the maximum of
            Σ_i log 1/(N-1) Σ_{j≠i} N(x_i; x_j, h² S), found to 1e-6 relative.

    Raises:
        ValueError: wrong shape, values that are not finite, a singular covariance, h <= 0, or
            leave-one-out on data in which each row has a copy (the likelihood then has no maximum).

    Source: Scott, Multivariate Density Estimation (1992), eq. 6.42 and 6.43; leave-one-out: Duin,
    On the choice of smoothing parameters for Parzen estimators (1976).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = False
    kernels_at_once: ClassVar[int] = 2**20  # 8 MiB of float64, about a cache

    def __init__(
        self,
        data: Tensor,
        bandwidth: str | float = "scott",
        validate_args: bool | None = None,
    ):
        _check(data)
        n, d = data.shape
        tril, failed = torch.linalg.cholesky_ex(torch.atleast_2d(torch.cov(data.mT)))
        if n <= d or bool(failed):
            raise ValueError(
                f"data: the covariance of {n} rows in {d} dimensions is singular. Drop constant "
                "or linearly dependent columns, or give more rows."
            )
        self.data = data
        self.tril = tril
        self.white = torch.linalg.solve_triangular(tril, data.mT, upper=False).mT  # (N, D)
        self.bandwidth = self._bandwidth(bandwidth)
        super().__init__(torch.Size(), torch.Size((d,)), validate_args=validate_args)

    def _bandwidth(self, rule: str | float) -> float:
        n, d = self.data.shape
        if rule == "scott":
            return n ** (-1 / (d + 4))
        if rule == "silverman":
            return (n * (d + 2) / 4) ** (-1 / (d + 4))
        if rule == "leave-one-out":
            return self._leave_one_out(n ** (-1 / (d + 4)))
        if isinstance(rule, str) or not 0 < float(rule) < math.inf:
            raise ValueError(
                "bandwidth: expected scott, silverman, leave-one-out or a positive number, "
                f"got {rule!r}."
            )
        return float(rule)

    def _leave_one_out(self, start: float) -> float:
        copies = torch.unique(self.data, dim=0, return_counts=True)[1]
        if int(copies.min()) > 1:
            raise ValueError(
                "bandwidth: every row of data has an exact copy, so the leave-one-out likelihood "
                "grows without bound as h goes to 0. Remove duplicates or choose 'scott'."
            )

        # Rows may be sorted, and the first look is at some of them.
        white = self.white[
            torch.randperm(len(self.data), generator=torch.Generator().manual_seed(0))
        ]

        def loss(log_h: float, rows: int | None = None) -> float:
            total = self._log_sum(white[:rows], math.exp(log_h), others=white).mean()
            return float(self.data.shape[1] * log_h - total)

        # A coarse look first: the likelihood can have more than one hill.
        coarse = [math.log(start) + 0.25 * i for i in range(-20, 11)]
        best = min(range(len(coarse)), key=[loss(h, 1_000) for h in coarse].__getitem__)
        low, high = coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)]
        near = minimize_scalar(
            loss, args=(1_000,), bounds=(low, high), method="bounded", options={"xatol": 1e-3}
        ).x
        return math.exp(minimize_scalar(loss, bracket=(near - 0.02, near + 0.02), tol=1e-7).x)

    def _log_sum(self, white: Tensor, h: float, others: Tensor | None = None) -> Tensor:
        """log Σ_j exp(-|white_i - white_j|² / 2h²) for each row i; (M, D) -> (M,).

        j runs over the data, or over `others`, of which row i is then left out.
        """
        centres = self.white if others is None else others
        rows = max(1, self.kernels_at_once // len(centres))
        parts = []
        for first in range(0, len(white), rows):
            block = white[first : first + rows]
            # The matrix-product form of the distance would lose half of the digits.
            distance = torch.cdist(
                block, centres, compute_mode="donot_use_mm_for_euclid_dist"
            )  # (rows, N)
            log_kernel = -0.5 * (distance / h).square()
            if others is not None:
                log_kernel.diagonal(first).fill_(-math.inf)
            parts.append(log_kernel.logsumexp(-1))
        return torch.cat(parts)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats: (..., D) -> (...)."""
        if self._validate_args:
            self._validate_sample(value)
        n, d = self.data.shape
        flat = value.reshape(-1, d)
        white = torch.linalg.solve_triangular(self.tril, flat.mT, upper=False).mT
        log_sum = self._log_sum(white, self.bandwidth).reshape(value.shape[:-1])
        log_scale = d * math.log(self.bandwidth * math.sqrt(2 * math.pi)) + math.log(n)
        log_p = log_sum - log_scale - self.tril.diagonal().log().sum()
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Return a datum at random plus kernel noise, (*sample_shape, *batch_shape, D)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            which = torch.randint(len(self.data), shape[:-1], device=self.data.device)
            noise = torch.randn(shape, dtype=self.data.dtype, device=self.data.device)
            return self.data[which] + self.bandwidth * (noise @ self.tril.mT)

    def expand(self, batch_shape: Size, _instance: KernelDensity | None = None):
        """Return the same density for every element of `batch_shape`."""
        new = self._get_checked_instance(KernelDensity, _instance)
        new.data, new.tril, new.white = self.data, self.tril, self.white
        new.bandwidth = self.bandwidth
        super(KernelDensity, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The sample mean, (*batch_shape, D)."""
        return self.data.mean(0).expand(self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Tensor:
        """(1 - 1/N + h²) S, (*batch_shape, D, D)."""
        shrink = 1 - 1 / len(self.data) + self.bandwidth**2
        full = shrink * self.tril @ self.tril.mT
        return full.expand(self.batch_shape + 2 * self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance, (*batch_shape, D)."""
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)
