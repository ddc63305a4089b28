"""The mixture whose weights, means and precisions are parameters."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .components import Mixture


class MaximumLikelihoodMixture(Mixture):
    """Mixture of Gaussians whose weights, means and precisions are parameters.

        k_i       ~ Categorical(weights)                               (B,)
        x_i | k_i ~ N(μ_k, Λ_k⁻¹)                                      (B, D)
        guide: nothing to guess, k is summed out

    Sites: k (marked for exact enumeration), x. Plates: data. Truth: the ELBO is the log-likelihood,
    the objective of EM, and has EM's stationary points; it has no maximum (a component that closes
    in on one datum), so it is for data many times the components.

    Args:
        data_dim: D.
        components: C.
        covariance: `"full"` or `"diagonal"`.

    Raises:
        ValueError: C < 1, an unknown covariance.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, data_dim: int, components: int = 6, covariance: str = "full"):
        super().__init__(data_dim, components, covariance)
        self.register_buffer("centre", torch.zeros(data_dim))
        self.register_buffer("spread", torch.ones(data_dim))
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, data_dim))
        self.log_factor = nn.Parameter(torch.zeros(components, data_dim))
        square = torch.zeros(components, data_dim, data_dim)
        self.lower = nn.Parameter(square) if covariance == "full" else None

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (C,), means (C, D), and Cholesky factors (C, D, D) or precisions (C, D)."""
        means = self.centre + self.loc * self.spread
        root = self.log_factor.exp()
        if self.lower is None:
            return self.logits.softmax(-1), means, (root / self.spread).square()
        free = self.lower.tril(-1) + root.diag_embed()
        return self.logits.softmax(-1), means, free / self.spread.unsqueeze(-1)

    def model(self, x: Tensor, size: int | None = None) -> None:
        """Observe x (B, D)."""
        pyro.module("mixture", self)
        self._observe(x, size, *self._parts())

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """No latents but k."""
        pyro.module("mixture", self)

    @torch.no_grad()
    def initialise(self, x: Tensor, means: Tensor | None = None) -> MaximumLikelihoodMixture:
        """Take units from x and start at `means` (C, D), or at C rows of x; return self.

        Raises:
            ValueError: wrong shape, NaN, fewer rows than components, a constant column.
        """
        means = self._start(x, means)
        self.centre.copy_(x.mean(0))
        self.spread.copy_(x.std(0) / self.components ** (1 / self.data_dim))
        self.loc.copy_((means - self.centre) / self.spread)
        for free in (self.logits, self.log_factor, self.lower):
            if free is not None:
                free.zero_()
        return self

    @torch.no_grad()
    def assign(
        self, weights: Tensor, means: Tensor, covariances: Tensor
    ) -> MaximumLikelihoodMixture:
        """Set the mixture: (C,), (C, D), and (C, D, D), or variances (C, D); return self."""
        self.logits.copy_(weights.log())
        self.loc.copy_((means - self.centre) / self.spread)
        if self.lower is not None:
            factor = torch.linalg.cholesky(covariances.inverse()).to(self.loc.dtype)
            free = factor * self.spread.unsqueeze(-1)
            self.log_factor.copy_(free.diagonal(dim1=-2, dim2=-1).log())
            self.lower.copy_(free.tril(-1))
        else:
            self.log_factor.copy_((self.spread * covariances.rsqrt()).log())
        return self

    def distribution(self) -> TorchDistribution:
        """Return the mixture."""
        weights, means, precision = self._parts()
        return dist.MixtureSameFamily(dist.Categorical(weights), self._gaussian(means, precision))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw x, (n, D)."""
        return self.distribution().sample((n,))
