"""The parts that the mixtures share: the data plate, and what is read off the fitted components."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from .wishart import PrecisionNormal


class Mixture(nn.Module):
    """A mixture of C Gaussians in D dimensions, without its parameters.

    Raises:
        ValueError: C < 1 or D < 1, an unknown covariance.
    """

    def __init__(self, data_dim: int, components: int, covariance: str):
        super().__init__()
        if data_dim < 1 or components < 1:
            raise ValueError(
                "data_dim, components: expected at least 1 of each, got "
                f"{data_dim} and {components}."
            )
        if covariance not in ("full", "diagonal"):
            raise ValueError(f"covariance: expected full or diagonal, got {covariance!r}.")
        self.data_dim, self.components, self.covariance = data_dim, components, covariance
        self.full = covariance == "full"

    def distribution(self) -> TorchDistribution:
        """Return the mixture, event shape (D,)."""
        raise NotImplementedError

    @torch.no_grad()
    def responsibilities(self, x: Tensor) -> Tensor:
        """p(k | x) under `distribution()`, (..., D) -> (..., C)."""
        mixture = self.distribution()
        log_joint = mixture.component_distribution.log_prob(x.unsqueeze(-2))
        return (log_joint + mixture.mixture_distribution.logits).softmax(-1)

    def _gaussian(self, loc: Tensor, precision: Tensor) -> TorchDistribution:
        """N(loc, Λ⁻¹), from Λ's Cholesky factor (..., D, D) or its diagonal (..., D)."""
        if self.full:
            return PrecisionNormal(loc, precision)
        return dist.Normal(loc, precision.rsqrt()).to_event(1)

    def _scale(self, by: Tensor, precision: Tensor) -> Tensor:
        """by (C,) times Λ, in the same form."""
        return by.sqrt()[:, None, None] * precision if self.full else by.unsqueeze(-1) * precision

    def _observe(
        self, x: Tensor, size: int | None, weights: Tensor, means: Tensor, precision: Tensor
    ) -> None:
        """k ~ Categorical(weights), x ~ N(means[k], precision[k]⁻¹) for each row of x (B, D)."""
        size = size or x.shape[-2]
        if x.shape[-1] != self.data_dim:
            raise ValueError(
                f"x: expected {self.data_dim} columns (data_dim), got shape {tuple(x.shape)}."
            )
        if size < self.components:
            raise ValueError(
                f"components: expected at most one per datum, got {self.components} for {size} "
                "rows. Ask for fewer components or give more data."
            )
        matrix = (slice(None),) * (2 if self.full else 1)
        with pyro.plate("data", size, subsample=x):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            mine = self._gaussian(Vindex(means)[..., k, :], Vindex(precision)[(..., k, *matrix)])
            pyro.sample("x", mine, obs=x)

    def _start(self, x: Tensor, means: Tensor | None) -> Tensor:
        """`means` (C, D), or C rows of x (N, D) at random; x is checked."""
        if x.ndim != 2 or x.shape[-1] != self.data_dim:
            raise ValueError(f"x: expected shape (N, {self.data_dim}), got {tuple(x.shape)}.")
        if not torch.isfinite(x).all():
            n = int((~torch.isfinite(x)).sum())
            raise ValueError(f"x: {n} values are NaN or infinite. Drop or impute them first.")
        if len(x) < max(2, self.components):
            raise ValueError(
                f"components: expected at most one per datum, got {self.components} for {len(x)} "
                "rows. Ask for fewer components or give more data."
            )
        constant = (x == x[0]).all(0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(f"x: columns {constant} are constant. Drop them.")
        if means is None:
            return x[torch.randperm(len(x), device=x.device)[: self.components]]
        if means.shape != (self.components, self.data_dim):
            raise ValueError(
                f"means: expected shape {(self.components, self.data_dim)}, got "
                f"{tuple(means.shape)}."
            )
        return means
