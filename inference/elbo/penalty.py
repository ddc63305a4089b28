"""Another estimator's bound less a named penalty on the aggregate posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..weights import LogWeights, Term, dream
from .additive import Trace
from .base import Estimator


class Penalised(Estimator):
    """`base` minus a penalty that `draw` puts into `weights.extras` under a name.

    The penalty is in nats and counts once per datum, like a divergence: its factor includes N.
    """

    is_bound = False
    name = "penalty"

    def __init__(self, base: Estimator | None = None):
        self.base = Trace() if base is None else base
        super().__init__(self.base.particles, vectorized=self.base.vectorized)
        self.follows_bound = self.base.follows_bound

    def penalty(self, weights: LogWeights, prior: dict[str, Tensor]) -> Tensor:
        """The penalty, a scalar in nats per datum, to be made small."""
        raise NotImplementedError

    def factor(self) -> float:
        """What it is multiplied by."""
        raise NotImplementedError

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The base's weights, with the penalty beside them."""
        weights = self.base.draw(model, guide, *args, **kwargs)
        return self._with_penalty(weights, model, args, kwargs)

    def _with_penalty(
        self, weights: LogWeights, model: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> LogWeights:
        _refuse_global(weights, repr(self))
        plain = {k: v for k, v in kwargs.items() if k not in ("nesting", "full_sizes")}
        prior, _ = dream(model, *args, **plain)
        weights.extras[self.name] = self.penalty(weights, prior)
        return weights

    def bound(self, weights: LogWeights) -> Tensor:
        """The base's bound minus the penalty over all data."""
        return self.base.bound(weights) - self._total(weights)

    def surrogate(self, weights: LogWeights) -> Tensor:
        """The base's surrogate minus the penalty, which the latents' path differentiates."""
        return self.base.surrogate(weights) - self._total(weights)

    def reference(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The base's reference minus the penalty: its latents are reparameterised."""
        weights = Estimator.draw(self, model, guide, *args, **kwargs)
        return self.bound(self._with_penalty(weights, model, args, kwargs))

    def _total(self, weights: LogWeights) -> Tensor:
        return self.factor() * weights.data_size * weights.extras[self.name]


class MMD(Penalised):
    """A bound minus λ N MMD²(q(z), p(z)): the aggregate posterior is held to the prior.

    MMD² = E k(z, z') + E k(u, u') - 2 E k(z, u), z from q(z) = E_x q(z | x) and u from the prior,
    k a Gaussian kernel; the U-statistic over the mini-batch, so it may be negative.
    InfoVAE's objective with α = 1 is `MMD(λ, base=Beta(0))`.

    Args:
        weight: λ.
        base: the estimator it is taken from.
        bandwidth: of the kernel exp(-|z - u|² / (2 h²)); None is √(dimensions of z).

    Source: Zhao et al. 2019, InfoVAE, arXiv:1706.02262, section 3.2; Gretton et al. 2012, A kernel
    two-sample test, eq. 3.

    Raises:
        ValueError: λ < 0; a latent outside the data plate, or one that is not reparameterised.
    """

    name = "mmd"

    def __init__(
        self, weight: float = 10.0, base: Estimator | None = None, *, bandwidth: float | None = None
    ):
        if weight < 0:
            raise ValueError(f"weight: expected λ >= 0, got {weight}.")
        super().__init__(base)
        self.weight, self.bandwidth = weight, bandwidth

    def factor(self) -> float:
        """λ."""
        return self.weight

    def penalty(self, weights: LogWeights, prior: dict[str, Tensor]) -> Tensor:
        """MMD² between the drawn latents of all particles and rows, and as many prior rows."""
        names = [n for n in prior if n in weights.guide]
        z = torch.cat([_rows(weights.guide[n], weights.guide[n].value) for n in names], -1)
        u = torch.cat([_rows(weights.guide[n], prior[n]) for n in names], -1)
        h2 = z.shape[-1] if self.bandwidth is None else self.bandwidth**2

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp(-(a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1) / (2 * h2))

        def within(a: Tensor) -> Tensor:
            n = len(a)
            return (kernel(a, a).sum() - n) / (n * (n - 1))

        return within(z) + within(u) - 2 * kernel(z, u).mean()


class TotalCorrelation(Penalised):
    """A bound minus (β - 1) N KL(q(z) || Π_j q(z_j)): β-TCVAE.

    log q(z_i) of the aggregate posterior over N data comes from the mini-batch,
    1/N q(z_i | x_i) + (N - 1)/N · mean over j ≠ i of q(z_i | x_j), exact on the full data.

    Args:
        beta: β > 1 penalises; 1 leaves the base as it is.
        base: the estimator it is taken from.

    Source: Chen et al. 2018, Isolating sources of disentanglement in VAEs, arXiv:1802.04942, eq. 4
    and appendix C.

    Raises:
        ValueError: a latent outside the data plate, or without independent dimensions.
    """

    name = "total_correlation"

    def __init__(self, beta: float = 6.0, base: Estimator | None = None):
        super().__init__(base)
        self.beta = beta

    def factor(self) -> float:
        """β - 1."""
        return self.beta - 1

    def penalty(self, weights: LogWeights, prior: dict[str, Tensor]) -> Tensor:
        """E[log q(z) - Σ_j log q(z_j)]."""
        terms = [weights.guide[n] for n in prior if n in weights.guide]
        pairs = torch.cat([_pairs(t, repr(self)) for t in terms], -1)  # (i, K, j, L)
        n, b = weights.data_size, pairs.shape[0]
        if b < 2:
            raise ValueError(f"{self!r}: expected a mini-batch of at least 2 rows, got {b}.")
        own = torch.eye(b, dtype=torch.bool, device=pairs.device).reshape(b, 1, b, 1)
        inside, outside = pairs.new_tensor(1 / n), pairs.new_tensor((n - 1) / (n * (b - 1)))
        log_share = torch.where(own, inside, outside).log()
        joint = torch.logsumexp(pairs.sum(-1, keepdim=True) + log_share, 2)  # (i, K, 1)
        single = torch.logsumexp(pairs + log_share, 2)  # (i, K, L)
        return (joint.squeeze(-1) - single.sum(-1)).mean()


def _rows(term: Term, value: Tensor) -> Tensor:
    """All draws of a latent as rows: (K * B, L)."""
    event = term.fn.event_dim
    return value.reshape(-1, *value.shape[value.dim() - event :]).flatten(1) if event else (
        value.reshape(-1, 1)
    )  # fmt: skip


def _pairs(term: Term, who: str) -> Tensor:
    """log q(z_i,l | x_j) of every pair of rows and every dimension l: (i, K, j, L)."""
    fn, value = term.fn, term.value
    if fn.event_dim == 0:
        value = value.unsqueeze(-1)

        def density(z: Tensor) -> Tensor:
            return fn.log_prob(z.squeeze(-1)).unsqueeze(-1)

    elif fn.event_dim == 1 and getattr(fn, "reinterpreted_batch_ndims", 0) == 1:
        density = fn.base_dist.log_prob
    else:
        raise ValueError(
            f"{who}: guide site {term.name!r} is a {type(fn).__name__}; total correlation needs a "
            "guide with independent dimensions, such as Normal(...).to_event(1)."
        )
    value = value.reshape((1,) * (3 - value.dim()) + value.shape)  # (K, i, L)
    pairs = density(value.movedim(1, 0).unsqueeze(2))  # (i, K, 1, L) against (K, j, L)
    return pairs.reshape((len(pairs), -1, *pairs.shape[-2:]))


def _refuse_global(weights: LogWeights, who: str) -> None:
    if len(weights.plates) != 1 or weights.nesting != 1:
        raise ValueError(
            f"{who}: expected every latent in one data plate, to compare their aggregate over "
            f"data with the prior; the sites share {[p.name for p in weights.plates]}."
        )
    for term in weights.guide.values():
        if term.scored or term.enumerated:
            raise ValueError(
                f"{who}: guide site {term.name!r} is discrete or not reparameterised; the penalty "
                "needs a path from the latents to the parameters."
            )
