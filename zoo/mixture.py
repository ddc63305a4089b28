"""Gaussian mixtures: Bayesian, and by maximum likelihood. The assignment k is summed out exactly.

`GaussianMixture` has the conjugate prior of Bishop, Pattern Recognition and Machine Learning
(2006), ch. 10.2, so that stochastic and coordinate-ascent variational inference bound the same
evidence and can be put side by side (`inference.em.compare_mixtures`).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from .wishart import PrecisionNormal, WishartCholesky


class _Mixture(nn.Module):
    """What both mixtures share: the data plate, and what is read off the fitted components."""

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
        """The mixture, event shape (D,)."""
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


class GaussianMixture(_Mixture):
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
        """Standard deviations of S, (D,)."""
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
        """α, β, m, ν and S by the names of `inference.em.variational_bayes`."""
        return {
            "concentration": self.concentration,
            "mean_precision": self.mean_precision,
            "mean": self.prior_mean.clone(),
            "degrees": self.degrees,
            "scale": self.prior_scale.clone(),
        }

    @torch.no_grad()
    def posterior(self) -> dict[str, Tensor]:
        """Parameters of q, by the names of `inference.em.GaussWishart`."""
        concentration, mean_precision, mean, degrees, factor = self._q()
        return {
            "concentration": concentration,
            "mean_precision": mean_precision,
            "mean": mean,
            "degrees": degrees,
            "scale": 1 / factor.square() if not self.full else torch.cholesky_inverse(factor),
        }

    def distribution(self) -> TorchDistribution:
        """The mixture at the posterior mean of weights, means and precisions."""
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


class MaximumLikelihoodMixture(_Mixture):
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

    def distribution(self) -> TorchDistribution:
        """The mixture."""
        weights, means, precision = self._parts()
        return dist.MixtureSameFamily(dist.Categorical(weights), self._gaussian(means, precision))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw x, (n, D)."""
        return self.distribution().sample((n,))
