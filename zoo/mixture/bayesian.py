"""The Bayesian mixture, with the conjugate prior of Bishop (2006).

Stochastic and coordinate-ascent variational inference then bound the same evidence and can be put
side by side (`zoo.em.compare_mixtures`). Equations: Bishop, Pattern Recognition and Machine
Learning, ch. 10.2.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .components import Mixture
from .wishart import WishartCholesky


class GaussianMixture(Mixture):
    """Bayesian mixture of Gaussians (Bishop 2006, eq. 10.36-10.40).

        weights     ~ Dirichlet(α, ..., α)                             (C,)
        Λ_c         ~ Wishart(ν, S⁻¹), as its Cholesky factor          (C, D, D)
        μ_c | Λ_c   ~ N(m, (β Λ_c)⁻¹)                                  (C, D)
        k_i         ~ Categorical(weights)                             (B,)
        x_i | k_i   ~ N(μ_k, Λ_k⁻¹)                                    (B, D)

        q = Dirichlet(weights) ∏_c Wishart(Λ_c) N(μ_c | Λ_c), the conjugate families

    Sites: weights, precision_tril (diagonal covariances: precision, (C, D), a Gamma per column),
    means, k (marked for exact enumeration, not in the guide), x. Plates: data. Truth: with one
    component q holds the posterior, so that the ELBO is the evidence; with more, summing k out
    makes the ELBO at least that of coordinate-ascent variational Bayes for the same q.

    Args:
        data_dim: D.
        components: C, the most that can be used; superfluous ones fall back to the prior.
        covariance: `"full"` or `"diagonal"`.
        concentration: α; 0 means 1/C.
        mean_precision: β.

    The rest of the prior suits standardised data: m = 0, ν = D + 2 (diagonal: 3), S = C^(-2/D) I.
    `initialise(x)` sets it for other units, after Fraley & Raftery, Bayesian regularization for
    normal mixture estimation and model-based clustering (J. Classification 24, 2007), sec. 3.2.

    Raises:
        ValueError: C < 1, an unknown covariance, α or β out of range.
    """

    prior_mean: Tensor  # m, (D,)
    prior_scale: Tensor  # S, (D, D); diagonal: (D,)
    prior_factor: Tensor  # T with T Tᵀ = S⁻¹; diagonal: (D,) with T² = 1/S

    def __init__(
        self,
        data_dim: int,
        components: int = 6,
        covariance: str = "full",
        concentration: float = 0.0,
        mean_precision: float = 0.01,
    ):
        super().__init__(data_dim, components, covariance)
        if concentration < 0 or mean_precision <= 0:
            raise ValueError(
                "concentration, mean_precision: expected numbers >= 0 and > 0, got "
                f"{concentration} and {mean_precision}."
            )
        self.concentration = concentration or 1 / components
        self.mean_precision = mean_precision
        full = self.full
        self.degrees = data_dim + 2.0 if full else 3.0
        scale = torch.ones(data_dim) * components ** (-2 / data_dim)
        self.register_buffer("prior_mean", torch.zeros(data_dim))
        self.register_buffer("prior_scale", scale.diag() if full else scale)
        self.register_buffer("prior_factor", scale.rsqrt().diag() if full else scale.rsqrt())

        # q in units of the prior: data added to α, β and ν; means in standard deviations of S;
        # U with E[Λ_c] = (T U)(T U)ᵀ.
        self.log_counts = nn.Parameter(torch.zeros(3, components))
        self.loc = nn.Parameter(torch.randn(components, data_dim) / scale.sqrt())
        self.log_factor = nn.Parameter(torch.zeros(components, data_dim))
        self.lower = nn.Parameter(torch.zeros(components, data_dim, data_dim)) if full else None
        self.precision_site = "precision_tril" if full else "precision"

    def model(self, x: Tensor, size: int | None = None) -> None:
        """Observe x (B, D)."""
        pyro.module("mixture", self)
        ones = torch.ones_like(self.prior_mean[:1]).expand(self.components)
        factor = self.prior_factor.expand(self.components, *self.prior_factor.shape)
        weights = pyro.sample("weights", dist.Dirichlet(self.concentration * ones))
        precision = pyro.sample(self.precision_site, self._wishart(self.degrees * ones, factor))
        scaled = self._scale(self.mean_precision * ones, precision)
        means = pyro.sample("means", self._gaussian(self.prior_mean, scaled).to_event(1))
        self._observe(x, size, weights, means, precision)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Guess weights, precisions and means; k is summed out."""
        pyro.module("mixture", self)
        concentration, mean_precision, mean, degrees, factor = self._q()
        pyro.sample("weights", dist.Dirichlet(concentration))
        precision = pyro.sample(self.precision_site, self._wishart(degrees, factor))
        pyro.sample(
            "means", self._gaussian(mean, self._scale(mean_precision, precision)).to_event(1)
        )

    def _q(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """α (C,), β (C,), m (C, D), ν (C,), and W's factor (C, D, D) or (C, D)."""
        counts = self.log_counts.exp()
        prior = (self.concentration, self.mean_precision, self.degrees)
        concentration, mean_precision, degrees = (a + n for a, n in zip(prior, counts))
        mean = self.prior_mean + self.loc * self._spread()
        free, shrink = self.log_factor.exp(), degrees.rsqrt().unsqueeze(-1)
        if self.lower is None:
            factor = self.prior_factor * free * shrink
        else:
            free = self.lower.tril(-1) + free.diag_embed()
            factor = self.prior_factor @ free * shrink.unsqueeze(-1)
        return concentration, mean_precision, mean, degrees, factor

    def _spread(self) -> Tensor:
        """Return the standard deviations of S, (D,)."""
        return (self.prior_scale if not self.full else self.prior_scale.diagonal()).sqrt()

    def _wishart(self, degrees: Tensor, factor: Tensor) -> TorchDistribution:
        """C independent precisions of mean degrees · factor factorᵀ."""
        if not self.full:
            return dist.Gamma(degrees.unsqueeze(-1) / 2, 0.5 / factor.square()).to_event(2)
        return WishartCholesky(degrees, factor).to_event(1)

    @torch.no_grad()
    def initialise(self, x: Tensor, means: Tensor | None = None) -> GaussianMixture:
        """Set the prior to the location and spread of x, start the guide at `means`; return self.

        Args:
            x: (N, D), in any units.
            means: (C, D); C rows of x drawn at random unless given.

        Raises:
            ValueError: wrong shape, NaN, fewer rows than components, or a singular covariance.
        """
        means = self._start(x, means)
        scale = torch.atleast_2d(torch.cov(x.mT)) / self.components ** (2 / self.data_dim)
        scale = scale if self.full else scale.diagonal().diag()
        if torch.linalg.cholesky_ex(scale).info:
            raise ValueError(
                f"x: the covariance of these {len(x)} rows is singular. Drop constant or dependent "
                "columns, give more rows, or choose covariance='diagonal'."
            )
        factor = torch.linalg.cholesky(scale.inverse())
        self.prior_mean.copy_(x.mean(0))
        self.prior_scale.copy_(scale.diagonal() if not self.full else scale)
        self.prior_factor.copy_(factor.diagonal() if not self.full else factor)
        self.loc.copy_((means - x.mean(0)) / self._spread())
        self.log_counts.fill_(len(x) / self.components).log_()
        for free in (self.log_factor, self.lower):
            if free is not None:
                free.zero_()
        return self

    def prior(self) -> dict[str, Tensor | float]:
        """α, β, m, ν and S by the names of `zoo.em.variational_bayes`."""
        return {
            "concentration": self.concentration,
            "mean_precision": self.mean_precision,
            "mean": self.prior_mean.clone(),
            "degrees": self.degrees,
            "scale": self.prior_scale.clone(),
        }

    @torch.no_grad()
    def posterior(self) -> dict[str, Tensor]:
        """Parameters of q, by the names of `zoo.em.GaussWishart`."""
        concentration, mean_precision, mean, degrees, factor = self._q()
        return {
            "concentration": concentration,
            "mean_precision": mean_precision,
            "mean": mean,
            "degrees": degrees,
            "scale": 1 / factor.square() if not self.full else torch.cholesky_inverse(factor),
        }

    @torch.no_grad()
    def assign(
        self,
        concentration: Tensor,
        mean_precision: Tensor,
        mean: Tensor,
        degrees: Tensor,
        scale: Tensor,
    ) -> GaussianMixture:
        """Set q to these parameters, named and shaped as in `posterior`; return self."""
        counts = (concentration - self.concentration, mean_precision - self.mean_precision,
                  degrees - self.degrees)  # fmt: skip
        floor = torch.finfo(self.log_counts.dtype).tiny  # a component without data
        self.log_counts.copy_(torch.stack(counts).clamp_min(floor).log())
        self.loc.copy_((mean - self.prior_mean) / self._spread())
        if self.lower is not None:
            factor = torch.linalg.cholesky(scale.double().inverse()).to(self.loc.dtype)
            free = torch.linalg.solve_triangular(self.prior_factor, factor, upper=False)
            free = free * degrees.to(free).sqrt()[:, None, None]
            self.log_factor.copy_(free.diagonal(dim1=-2, dim2=-1).log())
            self.lower.copy_(free.tril(-1))
        else:
            free = scale.rsqrt() / self.prior_factor * degrees.sqrt().unsqueeze(-1)
            self.log_factor.copy_(free.log())
        return self

    def distribution(self) -> TorchDistribution:
        """Return the mixture at the posterior mean of weights, means and precisions."""
        concentration, _, mean, degrees, factor = self._q()
        precision = self._scale(degrees, factor if self.full else factor.square())
        return dist.MixtureSameFamily(
            dist.Categorical(concentration), self._gaussian(mean, precision)
        )

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw x from the posterior predictive distribution, (n, D)."""
        concentration, mean_precision, mean, degrees, factor = self._q()
        k = dist.Categorical(dist.Dirichlet(concentration).sample((n,))).sample()
        precision = self._wishart(degrees[k], factor[k]).sample()
        mean = self._gaussian(mean[k], self._scale(mean_precision[k], precision)).sample()
        return self._gaussian(mean, precision).sample()
