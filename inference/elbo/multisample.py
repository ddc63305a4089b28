"""Estimators of K-sample bounds: one logarithm of an average weight per datum, then N/B."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..pairs.options import number, whole
from ..weights import LogWeights
from .base import Estimator, less_the_others, log_mean, score_function


class IWAE(Estimator):
    """E[log 1/K Σ_k p(x, z_k) / q(z_k | x)]: rises to log p(x) with K.

    The base of estimators that are a function of the K log weights of each datum, summed over data:
    `per_datum` says which.

    For models whose guide is too simple; its own guide's signal fades with K. K draws a step.

    Source: Burda et al. 2016, Importance weighted autoencoders, arXiv:1509.00519, eq. 8.

    Raises:
        ValueError: a latent lies outside a subsampled plate; a guide site is enumerated.
    """

    def __init__(self, particles: int = 8, *, vectorized: bool = True):
        super().__init__(particles, vectorized=vectorized)

    def per_datum(self, log_w: Tensor) -> Tensor:
        """The bound of each datum, (*shared), from its log weights (K, *shared)."""
        return log_mean(log_w)

    def signal(self, log_w: Tensor) -> Tensor:
        """The factor of each particle's score, broadcastable to (K, *shared)."""
        return self.per_datum(log_w).unsqueeze(0)

    def bound(self, weights: LogWeights) -> Tensor:
        """Summed over data."""
        return weights.total(self.per_datum(self.log_w(weights)))

    def score(self, weights: LogWeights) -> Tensor | float:
        """Every particle's score times its datum's signal."""
        return score_function(
            weights, lambda site: self.signal(self.log_w(weights)) * weights.scale
        )

    def log_w(self, weights: LogWeights) -> Tensor:
        """(K, *shared), joint over all sites that are not in the shared plates."""
        weights.refuse_subsampled_joint(repr(self))
        averaged = [t.name for t in weights.guide.values() if t.enumerated]
        if averaged:
            raise ValueError(
                f"{self!r}: guide site {', '.join(averaged)} is enumerated; a bound on the average "
                "weight cannot use its average log weight. Take the site out of the guide (it is "
                "then summed out exactly), or use Enum()."
            )
        return weights.log_weight()

    def normalised(self, weights: LogWeights, power: float = 1.0) -> Tensor:
        """w_k^power / Σ_j w_j^power as constants: (K, *shared)."""
        return torch.softmax(power * self.log_w(weights), 0).detach()


class MIWAE(IWAE):
    """E[1/M Σ_m log 1/K Σ_k w_mk]: the mean of M independent IWAE bounds of K particles.

    Its value is IWAE's with K; the guide's signal-to-noise rises with √M.

    Args:
        groups: M.
        per_group: K.

    Between Trace and IWAE. M K draws; no measurement of ours favours it over DReG.

    Source: Rainforth et al. 2018, Tighter variational bounds are not necessarily better,
    arXiv:1802.04537, section 5.
    """

    def __init__(self, groups: int = 4, per_group: int = 4, *, vectorized: bool = True):
        self.groups = whole("groups", groups)
        self.per_group = whole("per_group", per_group)
        super().__init__(groups * per_group, vectorized=vectorized)

    def by_group(self, log_w: Tensor) -> Tensor:
        """The bound of each group: (M, *shared)."""
        grouped = log_w.reshape(self.groups, self.per_group, *log_w.shape[1:])
        return log_mean(grouped, 1)

    def per_datum(self, log_w: Tensor) -> Tensor:
        """The mean of the groups' bounds."""
        return self.by_group(log_w).mean(0)

    def signal(self, log_w: Tensor) -> Tensor:
        """Its own group's bound, less the other groups' mean: they do not depend on the draw."""
        own = less_the_others(self.by_group(log_w)) / self.groups
        return own.repeat_interleave(self.per_group, 0)


class CIWAE(IWAE):
    """β · ELBO + (1 - β) · IWAE of the same K particles.

    Args:
        beta: between 0 (IWAE) and 1 (the ELBO).

    Between Trace and IWAE. K draws; no measurement of ours favours it over DReG.

    Source: Rainforth et al. 2018, arXiv:1802.04537, section 5.
    """

    def __init__(self, beta: float = 0.5, particles: int = 8, *, vectorized: bool = True):
        super().__init__(particles, vectorized=vectorized)
        self.beta = number("beta", beta, 0.0, 1.0)

    def per_datum(self, log_w: Tensor) -> Tensor:
        """The mix of the mean log weight and the log of the mean weight."""
        return self.beta * log_w.mean(0) + (1 - self.beta) * log_mean(log_w)


class Renyi(IWAE):
    """1/(1 - α) · log 1/K Σ_k w_k^(1 - α): between the ELBO (α = 1) and IWAE (α = 0) and beyond.

    Args:
        alpha: any number; -inf is VR-max, log max_k w_k. A lower bound on log p(x) for α >= 0.

    For guides that should cover more (α < 1) or less (α > 1). K draws; no measurement of ours
    favours it by held-out log p(x).

    Source: Li & Turner 2016, Rényi divergence variational inference, arXiv:1602.02311, section 4
    (VR-max: section 4.2).
    """

    def __init__(self, alpha: float = 0.5, particles: int = 8, *, vectorized: bool = True):
        if math.isnan(alpha):
            raise ValueError("alpha: expected a number, -inf or inf, got nan.")
        super().__init__(particles, vectorized=vectorized)
        self.alpha = float(alpha)
        self.is_bound = alpha >= 0

    def per_datum(self, log_w: Tensor) -> Tensor:
        """The power mean of the weights, in logarithms."""
        if self.alpha == 1:
            return log_w.mean(0)
        if math.isinf(self.alpha):
            return log_w.amin(0) if self.alpha > 0 else log_w.amax(0)
        power = 1 - self.alpha
        return log_mean(power * log_w) / power


class VIMCO(IWAE):
    """IWAE for guides that are not reparameterised, each particle with a baseline of the others.

    The signal of particle k is L - L_-k, where L_-k has w_k replaced by the geometric mean of the
    other weights. Reparameterised sites get their path derivative.

    For guides that are not reparameterised, where the K-sample bound is wanted. K draws.

    Source: Mnih & Rezende 2016, Variational inference for Monte Carlo objectives,
    arXiv:1602.06725, eq. 10.

    Raises:
        ValueError: K < 2.
    """

    def __init__(self, particles: int = 8, *, vectorized: bool = True):
        whole("particles", particles, 2)  # to compare
        super().__init__(particles, vectorized=vectorized)

    def signal(self, log_w: Tensor) -> Tensor:
        """L - L_-k: (K, *shared)."""
        k = len(log_w)
        others = (log_w.sum(0, keepdim=True) - log_w) / (k - 1)
        own = torch.eye(k, dtype=torch.bool, device=log_w.device)
        own = own.reshape(k, k, *(1,) * (log_w.dim() - 1))
        without = torch.where(own, others.unsqueeze(0), log_w.unsqueeze(0))  # (k left out, K, ...)
        return self.per_datum(log_w) - log_mean(without, 1)


class OVIS(IWAE):
    """IWAE for guides that are not reparameterised, each particle with nearly the best baseline.

    g = Σ_k (L - v_k - c_k) ∇ log q(z_k), v_k = w_k / Σ w, where c_k = E[L - v_k | the others] is
    estimated by S further draws put in place of z_k. Its guide's signal-to-noise rises as √K.

    For discrete guides and many particles, beside VIMCO; S more draws, that move nothing else.

    Args:
        particles: K.
        auxiliary: S.

    Source: Liévin et al. 2020, Optimal variance control of the score function gradient estimator
    for importance weighted bounds, arXiv:2008.01998, eq. 12.
    """

    def __init__(self, particles: int = 8, *, auxiliary: int = 1, vectorized: bool = True):
        self.auxiliary = whole("auxiliary", auxiliary)
        super().__init__(particles, vectorized=vectorized)

    @property
    def draws(self) -> int:
        """K + S."""
        return self.particles + self.auxiliary

    def per_datum(self, log_w: Tensor) -> Tensor:
        """IWAE's, of the first K."""
        return log_mean(log_w[: self.particles])

    def signal(self, log_w: Tensor) -> Tensor:
        """L - c_k: (K + S, *shared), zero for the further draws."""
        own, more = log_w[: self.particles], log_w[self.particles :]
        k = len(own)
        left = torch.eye(k, dtype=torch.bool, device=own.device)
        left = left.reshape(k, k, *(1,) * (own.dim() - 1))
        others = own.unsqueeze(0).masked_fill(left, -math.inf).logsumexp(1)  # (K, *shared)
        total = torch.logaddexp(others.unsqueeze(1), more.unsqueeze(0))  # (K, S, *shared)
        control = (total - math.log(k) - (more.unsqueeze(0) - total).exp()).mean(1)
        return torch.cat([log_mean(own) - control, torch.zeros_like(more)])


class DReG(IWAE):
    """IWAE with the doubly reparameterised gradient: its guide's signal does not fade with K.

    With normalised weights w̄_k, the model's parameters follow Σ_k w̄_k ∂ log p(x, z_k)/∂θ as under
    IWAE, and the guide's follow Σ_k w̄_k² ∂ log w_k/∂z_k · ∂z_k/∂φ, the path derivative only.
    For hierarchies and flows the path runs through all latents: z_k is every latent of the guide.

    For IWAE's bound with a reparameterised guide and K of 8 and more. K draws, and the guide's
    density once more.

    Source: Tucker et al. 2019, Doubly reparameterized gradient estimators, arXiv:1810.04152,
    eq. 7 and algorithm 1.

    Raises:
        ValueError: a guide site is not reparameterised.
    """

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """Weights whose model saw the latents through a copy that multiplies gradients by w̄."""
        if kwargs.setdefault("vectorized", True) == "vmap":
            kwargs["vectorized"] = "loop"  # its hooks do not see gradients taken around torch.vmap
        late: list[tuple[LogWeights, Tensor]] = []  # known when gradients flow back
        runs: Counter = Counter()

        def share(name: str, value: Tensor, run: int) -> Tensor:
            """w̄ with the batch dimensions of a latent's value, and ones for its event."""
            ((weights, w),) = late
            event = weights.guide[name].fn.event_dim
            w = w if weights.way == "plate" else w[run]
            batch = w.shape[max(0, w.dim() - (value.dim() - event)) :]
            return w.reshape((*batch, *(1,) * event))

        def reweighted(name: str, value: Tensor) -> Tensor:
            seen, run = value.view_as(value), runs[name]
            runs[name] += 1
            if torch.is_grad_enabled() and seen.requires_grad:
                seen.register_hook(lambda g: g * share(name, value, run))
            elif torch.is_grad_enabled() and torch._C._functorch.is_batchedtensor(seen):
                raise ValueError(  # hooks see gradients taken inside torch.vmap, not around it
                    "DReG: under torch.vmap its gradient must be taken inside, "
                    "vmap(torch.func.grad(loss))."
                )
            return seen

        weights = super().draw(model, guide, *args, model_values=reweighted, **kwargs)
        for term in weights.guide.values():
            if term.scored:
                raise ValueError(
                    f"{self!r}: guide site {term.name!r} ({type(term.fn).__name__}) is not "
                    "reparameterised. Use VIMCO()."
                )
        late.append((weights, self.normalised(weights)))
        return weights

    def surrogate(self, weights: LogWeights) -> Tensor:
        """w̄ on log p (whose latents carry another w̄), w̄² on the guide without its score."""
        w = self.normalised(weights)
        path = weights.fixed().log_q() - weights.log_q()
        return weights.total((w * weights.log_p() + w.square() * path).sum(0))
