"""The conjugate family of Gaussian mixtures: Dirichlet weights, Gauss-Wishart means and precisions.

    w         ~ Dirichlet(concentration)                       (C,)
    Λ_c       ~ Wishart(degrees, scale⁻¹)                      (C, D, D)
    m_c | Λ_c ~ N(mean, (mean_precision Λ_c)⁻¹)                (C, D)

Prior and posterior of `variational_bayes` are of this family. Equation numbers are those of Bishop,
Pattern Recognition and Machine Learning (2006), ch. 10.2. Diagonal covariances have a
one-dimensional Wishart (a Gamma) per column.

Blocks let one set of formulas serve both: a full covariance is G = 1 block of P = D dimensions, a
diagonal one is G = D independent blocks of P = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from .maximum_likelihood import MixtureDensity


def blocks(x: Tensor, covariance: str) -> Tensor:
    """(..., N, D) -> (..., G, N, P)."""
    return x.unsqueeze(-3) if covariance == "full" else x.mT.unsqueeze(-1)


@dataclass
class GaussWishart:
    """A distribution over the weights, means and precisions of C Gaussians.

    Attributes (a leading batch dimension is allowed in front of each):
        concentration: (C,), of the Dirichlet over weights.
        mean_precision: (C,), β.
        mean: (C, D), m.
        degrees: (C,), ν > D - 1 (> 0 for diagonal covariances).
        scale: (C, D, D), W⁻¹, or (C, D) for diagonal covariances: about degrees · covariance.
    """

    concentration: Tensor
    mean_precision: Tensor
    mean: Tensor
    degrees: Tensor
    scale: Tensor

    @property
    def covariance(self) -> str:
        """`"full"` or `"diagonal"`."""
        return "full" if self.scale.ndim == self.mean.ndim + 1 else "diagonal"

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """mean (..., C, G, P) and the Cholesky factor of scale (..., C, G, P, P)."""
        if self.covariance == "full":
            return self.mean.unsqueeze(-2), torch.linalg.cholesky(self.scale.unsqueeze(-3))
        return self.mean.unsqueeze(-1), self.scale.sqrt()[..., None, None]

    def _square(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x - m)ᵀ W (x - m) (..., C, G, N) and log|W| (..., C, G), for every block."""
        mean, factor = self._blocks()
        apart = blocks(x, self.covariance) - mean.unsqueeze(-2)  # (..., C, G, N, P)
        white = torch.linalg.solve_triangular(factor, apart.mT, upper=False)
        log_det = -2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return white.square().sum(-2), log_det

    @property
    def _p(self) -> int:
        return self.mean.shape[-1] if self.covariance == "full" else 1

    def expected_log_joint(self, x: Tensor) -> Tensor:
        """E[log p(x_n, k | w, m, Λ)], nats: (N, D) -> (..., C, N). Eq. 10.46, 10.64-10.66."""
        square, log_det = self._square(x)
        distance = self.degrees.unsqueeze(-1) * square.sum(-2)
        return self._expected_constant(log_det).unsqueeze(-1) - 0.5 * distance

    def expected_scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, Q) of the same as a + bᵀx + xᵀQx: (..., C), (..., C, D), (..., C, D, D).

        Q is (..., C, D) where covariances are diagonal.
        """
        mean, factor = self._blocks()
        log_det = -2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        quadratic = -0.5 * self.degrees[..., None, None, None] * torch.cholesky_inverse(factor)
        linear = -2 * (quadratic @ mean.unsqueeze(-1)).squeeze(-1)  # (..., C, G, P)
        constant = self._expected_constant(log_det) - 0.5 * (linear * mean).sum((-2, -1))
        linear, full = linear.flatten(-2), self.covariance == "full"
        return constant, linear, quadratic.squeeze(-3) if full else quadratic.flatten(-3)

    def _expected_constant(self, log_det: Tensor) -> Tensor:
        """E[log p(x, k)] without the square: log|W| (..., C, G) -> (..., C)."""
        p, d = self._p, self.mean.shape[-1]
        dims = torch.arange(p, dtype=self.mean.dtype, device=self.mean.device)
        digamma = torch.digamma((self.degrees.unsqueeze(-1) - dims) / 2).sum(-1)  # (..., C)
        log_precision = (digamma.unsqueeze(-1) + p * math.log(2) + log_det).sum(-1)
        total = self.concentration.sum(-1, keepdim=True)
        log_weight = torch.digamma(self.concentration) - torch.digamma(total)
        return log_weight + 0.5 * (
            log_precision - d * math.log(2 * math.pi) - d / self.mean_precision
        )

    def kl(self, prior: GaussWishart) -> Tensor:
        """KL(self || prior), nats: (...). Eq. 10.73, 10.74, 10.76 and 10.77."""
        p, d = self._p, self.mean.shape[-1]
        mean, factor = self._blocks()
        prior_mean, prior_factor = prior._blocks()
        nu, nu0 = self.degrees, prior.degrees
        beta, beta0 = self.mean_precision, prior.mean_precision
        inverse = torch.linalg.solve_triangular(factor, torch.eye(p).to(factor), upper=False)
        # KL of the means, averaged over the precisions
        shift = (inverse @ (mean - prior_mean).unsqueeze(-1)).square().sum((-3, -2, -1))
        means = 0.5 * (d * (beta0 / beta - 1 + (beta / beta0).log()) + beta0 * nu * shift)
        # KL of the precisions: tr(W0⁻¹ W) = |inverse · prior_factor|²
        trace = (inverse @ prior_factor).square().sum((-3, -2, -1))
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        log_det0 = 2 * prior_factor.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        dims = torch.arange(p, dtype=nu.dtype, device=nu.device)
        digamma = torch.digamma((nu.unsqueeze(-1) - dims) / 2).sum(-1)
        gammas = torch.special.multigammaln(nu0 / 2, p) - torch.special.multigammaln(nu / 2, p)
        precisions = (
            0.5 * nu0 * (log_det - log_det0)
            + (d // p) * (gammas + 0.5 * (nu - nu0) * digamma)
            + 0.5 * nu * (trace - d)
        )
        weights = kl_divergence(Dirichlet(self.concentration), Dirichlet(prior.concentration))
        return weights + (means + precisions).sum(-1)

    def mixture(self) -> MixtureDensity:
        """Return the mixture at the mean of weights, means and precisions."""
        nu = self.degrees[..., None, None] if self.covariance == "full" else self.degrees[..., None]
        weights = self.concentration / self.concentration.sum(-1, keepdim=True)
        return MixtureDensity(weights, self.mean, self.scale / nu)

    def log_prob(self, x: Tensor) -> Tensor:
        """log ∫ p(x | w, m, Λ) dq, nats: (N, D) -> (..., N). Eq. 10.81, Student's t."""
        square, log_det = self._square(torch.as_tensor(x, dtype=self.mean.dtype))
        p = self._p
        df = (self.degrees + 1 - p)[..., None, None]  # (..., C, 1, 1)
        ratio = (self.mean_precision / (1 + self.mean_precision))[..., None, None]
        # L = df β/(1 + β) W, of which df cancels in the square
        log_t = (
            torch.lgamma((df + p) / 2)
            - torch.lgamma(df / 2)
            + 0.5 * (log_det.unsqueeze(-1) + p * (ratio.log() - math.log(math.pi)))
            - 0.5 * (df + p) * torch.log1p(ratio * square)
        ).sum(-2)  # (..., C, N)
        weights = self.concentration / self.concentration.sum(-1, keepdim=True)
        return (weights.log().unsqueeze(-1) + log_t).logsumexp(-2)
