"""Estimators that move the guide by another divergence: log q(z) at drawn values, weighted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..pairs.options import number, whole
from ..weights import LogWeights, dream, log_q_at
from .base import AtConstants, log_mean, of_the_pair
from .multisample import IWAE


class _Weighted(AtConstants, IWAE):
    """K-sample estimators whose guide follows weighted log densities at fixed draws."""

    follows_bound = False

    def __init__(self, particles: int = 8, *, vectorized: bool = True):
        super().__init__(particles, vectorized=vectorized)
        if self.particles < 2 and not getattr(self, "sleep", 0):
            raise ValueError(
                f"{type(self).__name__}: expected K >= 2 particles, got {particles}: the weight of "
                "a single one is 1 whatever it is, so the guide would follow noise alone."
            )

    def averaged(self, weights: LogWeights, log_density: Tensor, power: float = 1.0) -> Tensor:
        """Σ_k w_k^power log_density_k / Σ_j w_j^power, the weights as constants: a scalar."""
        return weights.total((self.normalised(weights, power) * log_density).sum(0))


class WakeSleep(_Weighted):
    """Reweighted wake-sleep: the model follows IWAE, the guide follows KL(p(z | x) || q).

    With normalised weights w̄_k: θ along Σ_k w̄_k ∂ log p(x, z_k), φ along Σ_k w̄_k ∂ log q(z_k | x)
    (wake), or along ∂ log q(z | x) for z, x drawn from the model (sleep). Needs no
    reparameterisation. The value is IWAE's bound.

    Args:
        sleep: the share of the guide's gradient that comes from dreams, 0 to 1.

    For guides that are not reparameterised, and branches that a score function would starve. K
    draws, and a dream where it sleeps.

    Source: Bornschein & Bengio 2015, Reweighted wake-sleep, arXiv:1406.2751, section 2; Le et al.
    2018, Revisiting reweighted wake-sleep, arXiv:1805.10469 (the wake phase alone is best).

    Raises:
        ValueError: `sleep` outside [0, 1]; K < 2 without sleep; a model that cannot dream its
            arguments.
    """

    def __init__(self, particles: int = 8, *, sleep: float = 0.0, vectorized: bool = True):
        self.sleep = number("sleep", sleep, 0.0, 1.0)
        super().__init__(particles, vectorized=vectorized)

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """Weights at constants; with `sleep`, log q of dreamed latents given dreamed data too."""
        weights = super().draw(model, guide, *args, **kwargs)
        if not self.sleep:
            return weights
        plain = of_the_pair(kwargs)
        latents, dreamed = dream(model, *args, **plain)
        shared = {p.name for p in weights.plates}
        for name, q in weights.guide.items():
            if q.free and (name not in latents or not shared & {p.name for p in q.plates}):
                raise ValueError(
                    f"{self!r}: guide site {name!r} is no latent of the model, or is one for "
                    "all data at once, so dreams of other data say nothing about it. Use "
                    "WakeSleep(sleep=0)."
                )
        terms = log_q_at(guide, latents, *dreamed, nesting=weights.nesting, **plain)
        parts = [(q.log_prob * weights.guide[n].scale).sum() for n, q in terms.items()]
        weights.extras["dream"] = torch.stack(parts).sum()
        return weights

    def surrogate(self, weights: LogWeights) -> Tensor:
        """One scalar: latents are constants, so log p moves only θ and log q only φ."""
        wake = (1 - self.sleep) * weights.log_q()
        out = self.averaged(weights, weights.log_p() + wake)
        return out + self.sleep * weights.extras["dream"] if self.sleep else out


class ForwardKL(_Weighted):
    """-KL(p(z | x) || q(z | x)) by self-normalised importance sampling; the model stays as it is.

    Σ_k w̄_k log w_k - log 1/K Σ_k w_k estimates the divergence, and Σ_k w̄_k ∂ log q(z_k | x) minus
    its gradient. A guide that covers the posterior, where the ELBO's seeks a mode.

    For guides that are to propose for importance sampling; the model stays. K draws.

    Source: Bornschein & Bengio 2015, arXiv:1406.2751, section 2.2 (its guide's gradient); Naesseth
    et al. 2020, Markovian score climbing, arXiv:2003.10374, section 2 (its bias, O(1/K)).
    """

    is_bound = False

    def per_datum(self, log_w: Tensor) -> Tensor:
        """Minus the divergence."""
        return log_mean(log_w) - (torch.softmax(log_w, 0) * log_w).sum(0)

    def surrogate(self, weights: LogWeights) -> Tensor:
        """Moves the guide only."""
        return self.averaged(weights, weights.log_q())


class CUBO(_Weighted):
    """Minus the χ upper bound, -1/n log E_q[w^n]; minimising the loss minimises the χ divergence.

    log p(x) <= 1/n log E_q[w^n], which K draws estimate from below. The guide follows
    (n - 1)/n Σ_k w_k^n ∂ log q(z_k | x) / Σ_j w_j^n; the model stays as it is (lowering an upper
    bound would not fit it).

    Args:
        order: n > 1.

    For an upper bound beside the lower one; its noise is large. K draws, and no measurement of ours
    favours a guide trained by it.

    Source: Dieng et al. 2017, Variational inference via χ upper bound minimization,
    arXiv:1611.00328, eq. 2 and section 2.3.
    """

    is_bound = False

    def __init__(self, order: float = 2.0, particles: int = 8, *, vectorized: bool = True):
        super().__init__(particles, vectorized=vectorized)
        self.order = number("order", order, 1.0, open=True)

    def per_datum(self, log_w: Tensor) -> Tensor:
        """Minus the upper bound."""
        return -log_mean(self.order * log_w) / self.order

    def surrogate(self, weights: LogWeights) -> Tensor:
        """Moves the guide only."""
        factor = (self.order - 1) / self.order
        return factor * self.averaged(weights, weights.log_q(), self.order)


class ThermodynamicVI(_Weighted):
    """The thermodynamic variational objective: log p(x) = ∫₀¹ E_π(β)[log w] dβ as a left sum.

    Σ_s (β_s+1 - β_s) E_π(β_s)[log w], π(β) ∝ q^(1-β) p^β, each mean by weights w_k^β. Since the
    integral over the K draws themselves is IWAE's value and its integrand rises with β, the sum is
    a lower bound draw by draw. Model and guide follow ∇ E_π[f] = E_π[∇f] + Cov_π(∇ log π̃, f).

    Args:
        partitions: how many intervals; 1 is the ELBO.
        first: β_1; the others are spaced evenly in log β up to 1.

    For bounds tighter than the ELBO without reparameterisation. K draws; no measurement of ours
    favours it.

    Source: Masrani et al. 2019, The thermodynamic variational objective, arXiv:1907.00031,
    sections 3 to 5.
    """

    def __init__(
        self, particles: int = 8, *, partitions: int = 5, first: float = 0.1,
        vectorized: bool = True,
    ):  # fmt: skip
        super().__init__(particles, vectorized=vectorized)
        self.partitions = whole("partitions", partitions)
        self.first = number("first", first, 0.0, 1.0, open=True)
        ends = [first ** (1 - s / (partitions - 1)) for s in range(partitions - 1)]
        self.betas = [0.0, *ends, 1.0]

    def per_datum(self, log_w: Tensor) -> Tensor:
        """The sum over intervals of length times mean at the left end."""
        means = [
            (b - a) * (torch.softmax(a * log_w, 0) * log_w).sum(0)
            for a, b in zip(self.betas, self.betas[1:])
        ]
        return torch.stack(means).sum(0)

    def surrogate(self, weights: LogWeights) -> Tensor:
        """Per interval: the mean's gradient at fixed draws, and the covariance with its density."""
        log_w, log_q = self.log_w(weights), weights.log_q()
        out = torch.zeros_like(log_w[0])
        for a, b in zip(self.betas, self.betas[1:]):
            w = torch.softmax(a * log_w, 0).detach()
            centred = (log_w - (w * log_w).sum(0)).detach()
            unbiased = len(log_w) / max(1, len(log_w) - 1) if a == 0 else 1.0
            follow = log_w + unbiased * centred * (log_q + a * log_w)
            out = out + (b - a) * (w * follow).sum(0)
        return weights.total(out)
