"""Independent columns of data, each drawn by its inverse cumulative distribution function."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from zoo.networks import check_rows

from .derived import inverse_cdf


class Marginals(nn.Module):
    """Each column pushed forward from a uniform: x_d = Q_d(u_d) (Devroye 1986, ch. II.2).

        u_d ~ Uniform(0, 1)                                              (B, D)
        x_d = Q_d(u_d), through the quantiles of the data at i / bins

    Between neighbouring quantiles Q_d is a line, so that the density there is 1 / (bins · width);
    beyond the outermost ones it has an exponential tail, whose scale is the data's mean excess.

    Sites: x. Plates: data. Truth: every bin has mass 1 / bins, and given the quantiles the tails'
    scales have the most likelihood. Columns are independent: where those of the data are not, the
    likelihood lost is their total correlation.

    Args:
        data_dim: D.
        bins: pieces of Q_d, at least 3, the two tails among them.

    Raises:
        ValueError: fewer than 3 bins; in `fit_closed_form`, data whose quantiles coincide.
    """

    knots: Tensor  # the inner quantiles, (bins - 1, D)
    tails: Tensor  # scales of the lower and the upper tail, (2, D)

    def __init__(self, data_dim: int, bins: int = 40):
        super().__init__()
        if bins < 3:
            raise ValueError(f"bins: expected at least 3, one between two tails, got {bins}.")
        self.data_dim, self.bins = data_dim, bins
        inner = torch.arange(1, bins) / bins
        start = torch.special.ndtri(inner)[:, None].expand(-1, data_dim)  # about N(0, I)
        self.register_buffer("knots", start.clone())
        self.register_buffer("tails", torch.full((2, data_dim), 0.4))

    @torch.no_grad()
    def fit_closed_form(self, x: Tensor) -> Marginals:
        """Take quantiles and tails from x (N, D), and return self.

        Raises:
            ValueError: wrong shape, values that are not finite, or quantiles that coincide.
        """
        check_rows(x, self.data_dim)
        if not torch.isfinite(x).all():
            raise ValueError("x: values are NaN or infinite. Drop or impute them first.")
        inner = torch.arange(1, self.bins, dtype=x.dtype, device=x.device) / self.bins
        knots = torch.quantile(x, inner, dim=0)  # (bins - 1, D)
        low, high = (knots[0] - x).clamp_min(0), (x - knots[-1]).clamp_min(0)
        tails = torch.stack([t.sum(0) / (t > 0).sum(0).clamp_min(1) for t in (low, high)])
        tied = (knots.diff(dim=0) <= 0).any(0) | (tails <= 0).any(0)
        if tied.any():
            columns = tied.nonzero().flatten().tolist()
            raise ValueError(
                f"x: quantiles of columns {columns} coincide, so that no density is finite. Use "
                f"fewer than {self.bins} bins, or drop columns of repeated values."
            )
        self.knots.copy_(knots)
        self.tails.copy_(tails)
        return self

    def cdf(self, x: Tensor) -> Tensor:
        """F_d(x_d), (..., D) -> (..., D)."""
        knots, (low, high) = self.knots, self.tails
        below = (x.unsqueeze(-2) >= knots).sum(-2)  # knots at or below x: 0 .. bins - 1
        left, right = self._around(below)
        inside = (below + (x - left) / (right - left)) / self.bins
        lower = torch.exp((x.clamp(max=knots[0]) - knots[0]) / low) / self.bins
        upper = 1 - torch.exp((knots[-1] - x.clamp(min=knots[-1])) / high) / self.bins
        return torch.where(x < knots[0], lower, torch.where(x >= knots[-1], upper, inside))

    def icdf(self, u: Tensor) -> Tensor:
        """Q_d(u_d), (..., D) -> (..., D)."""
        knots, (low, high) = self.knots, self.tails
        place = u * self.bins
        below = place.long().clamp(0, self.bins - 1)
        left, right = self._around(below)
        inside = left + (place - below) * (right - left)
        lower = knots[0] + low * place.clamp(max=1).log()
        upper = knots[-1] - high * (self.bins - place).clamp(max=1).log()
        return torch.where(place < 1, lower, torch.where(place >= self.bins - 1, upper, inside))

    def _around(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Return the knots on either side, where there are `below` knots below: two of (..., D)."""
        index = (below - 1).clamp(0, self.bins - 3).reshape(-1, self.data_dim)
        left, right = self.knots.gather(0, index), self.knots.gather(0, index + 1)
        return left.reshape(below.shape), right.reshape(below.shape)

    def distribution(self) -> TorchDistribution:
        """p(x), event shape (D,)."""
        zeros = torch.zeros_like(self.knots[0])
        uniform = dist.Uniform(zeros, zeros + 1)
        return inverse_cdf(self.cdf, self.icdf, base=uniform).to_event(1)

    def model(self, x: Tensor, size: int | None = None) -> None:
        """Observe x (B, D)."""
        pyro.module("marginals", self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("x", self.distribution(), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Nothing to infer."""

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x: (n, D)."""
        return self.distribution().sample((n,))
