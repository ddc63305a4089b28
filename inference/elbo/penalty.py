"""Another estimator's bound less a named penalty on the aggregate posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..pairs.options import number
from ..weights import LogWeights, Term, dream, log_q_at
from .additive import Trace
from .base import Estimator, OverBase, of_the_pair

Rerun = Callable[..., Mapping[str, Term]]  # (values, particles) -> the guide's terms at them


class Penalised(OverBase):
    """`base` minus a penalty that `draw` puts into `weights.extras` under a name.

    The penalty is in nats and counts once per datum, like a divergence: its factor includes N.

    Raises:
        ValueError: latents outside one data plate, or not reparameterised; fewer than 2 rows.
    """

    is_bound = False
    name = "penalty"

    def __init__(self, base: Estimator | None, factor: float):
        self.base, self.factor = Trace() if base is None else base, factor
        super().__init__(self.base.particles, vectorized=self.base.vectorized)
        self.follows_bound, self.closed_form = self.base.follows_bound, self.base.closed_form

    def penalty(self, weights: LogWeights, prior: dict[str, Tensor], rerun: Rerun) -> Tensor:
        """The penalty, a scalar in nats per datum, to be made small.

        Args:
            weights: the base's.
            prior: latent -> a draw from the prior for each row.
            rerun: runs the guide on the same rows at given values of its latents.
        """
        raise NotImplementedError

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The base's weights, with the penalty beside them."""
        return self._penalised(self.base.draw, model, guide, *args, **kwargs)

    def reference(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The base's reference minus the penalty: its latents are reparameterised."""
        return self.bound(self._penalised(super().draw, model, guide, *args, **kwargs))

    def _penalised(
        self, draw: Callable, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> LogWeights:
        weights = draw(model, guide, *args, **kwargs)
        self._refuse_unpaired(weights)
        plain = of_the_pair(kwargs)
        prior, _ = dream(model, *args, **plain)

        def rerun(values: Mapping[str, Tensor], particles: int) -> Mapping[str, Term]:
            return log_q_at(
                guide, values, *args, particles=particles, nesting=1, way=weights.way, **plain
            )

        weights.extras[self.name] = self.penalty(weights, prior, rerun)
        return weights

    def bound(self, weights: LogWeights) -> Tensor:
        """The base's bound minus the penalty over all data."""
        return self.base.bound(weights) - self._total(weights)

    def surrogate(self, weights: LogWeights) -> Tensor:
        """The base's surrogate minus the penalty, which the latents' path differentiates."""
        return self.base.surrogate(weights) - self._total(weights)

    def _total(self, weights: LogWeights) -> Tensor:
        return self.factor * weights.data_size * weights.extras[self.name]

    def _refuse_unpaired(self, weights: LogWeights) -> None:
        """Raise ValueError where the rows' latents cannot be compared with each other."""
        if len(weights.plates) != 1 or weights.nesting != 1:
            raise ValueError(
                f"{self!r}: expected every latent in one data plate, to compare their aggregate "
                "over data with the prior; the sites share "
                f"{[p.name for p in weights.plates]}."
            )
        if (rows := weights.plates[0].size) < 2:
            raise ValueError(
                f"{self!r}: compares the latents of different rows, and this batch has {rows}. Use "
                "a larger batch_size, of which no last batch of one row is left."
            )
        for term in weights.guide.values():
            if term.scored or term.enumerated:
                raise ValueError(
                    f"{self!r}: guide site {term.name!r} is discrete or not reparameterised; the "
                    "penalty needs a path from the latents to the parameters."
                )


class MMD(Penalised):
    """A bound minus λ N MMD²(q(z), p(z)): the aggregate posterior is held to the prior.

    MMD² = E k(z, z') + E k(u, u') - 2 E k(z, u), z from q(z) = E_x q(z | x) and u from the prior,
    k a Gaussian kernel; the U-statistic over the rows of the mini-batch, so it may be negative.
    Particles of one row are no independent draws of q(z): only pairs of different rows count.
    InfoVAE's objective with α = 1 is `MMD(λ, base=Beta(0))`.

    Args:
        weight: λ.
        base: the estimator it is taken from.
        bandwidth: of the kernel exp(-|z - u|² / (2 h²)); None is √(dimensions of z).

    For codes that follow the prior together; not for a better log p(x). One draw of the prior more.

    Source: Zhao et al. 2019, InfoVAE, arXiv:1706.02262, section 3.2; Gretton et al. 2012, A kernel
    two-sample test, eq. 3.

    Raises:
        ValueError: λ < 0; a latent outside the data plate, or one that is not reparameterised.
    """

    name = "mmd"

    def __init__(
        self, weight: float = 10.0, base: Estimator | None = None, *, bandwidth: float | None = None
    ):
        self.weight, self.bandwidth = number("weight", weight, 0.0), bandwidth
        super().__init__(base, factor=self.weight)

    def penalty(self, weights: LogWeights, prior: dict[str, Tensor], rerun: Rerun) -> Tensor:
        """MMD² between the drawn latents of all particles and rows, and one prior draw per row."""
        terms = [weights.guide[n] for n in prior if n in weights.guide]
        draws = [_value(t) for t in terms]  # (K, B, *event) each
        z = torch.cat([v.reshape(*v.shape[:2], -1) for v in draws], -1)  # (K, B, L)
        u = torch.cat([prior[t.name].reshape(1, z.shape[1], -1) for t in terms], -1)  # (1, B, L)
        h2 = z.shape[-1] if self.bandwidth is None else self.bandwidth**2

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp(-(a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1) / (2 * h2))

        def within(a: Tensor) -> Tensor:
            row = torch.arange(a.shape[1], device=a.device).repeat(len(a))
            apart = (row.unsqueeze(-1) != row).to(a.dtype)
            a = a.flatten(0, 1)
            return (apart * kernel(a, a)).sum() / apart.sum()

        return within(z) + within(u) - 2 * kernel(z.flatten(0, 1), u.flatten(0, 1)).mean()


class TotalCorrelation(Penalised):
    """A bound minus (β - 1) N KL(q(z) || Π_j q(z_j)): β-TCVAE.

    log q(z_i) of the aggregate posterior over N data comes from the mini-batch,
    1/N q(z_i | x_i) + (N - 1)/N · mean over j ≠ i of q(z_i | x_j), exact on the full data. Where
    the guide draws several latents, q(z_i | x_j) is its density at all of row i's latents, and that
    of a single dimension z_i,l given x_j is taken at row j's draw of the latents above it, which
    estimates the integral over them.

    Args:
        beta: β > 1 penalises; 1 leaves the base as it is.
        base: the estimator it is taken from.

    For codes whose dimensions are independent; not for a better log p(x). All pairs of rows.

    Source: Chen et al. 2018, Isolating sources of disentanglement in VAEs, arXiv:1802.04942, eq. 4
    and appendix C.

    Raises:
        ValueError: a latent outside the data plate, or without independent dimensions.
    """

    name = "total_correlation"

    def __init__(self, beta: float = 6.0, base: Estimator | None = None):
        self.beta = beta
        super().__init__(base, factor=beta - 1)

    def penalty(self, weights: LogWeights, prior: dict[str, Tensor], rerun: Rerun) -> Tensor:
        """E[log q(z) - Σ_l log q(z_l)]."""
        terms = [weights.guide[n] for n in prior if n in weights.guide]
        pairs = torch.cat([_pairs(t, repr(self)) for t in terms], -1)  # (i, K, j, L)
        whole = pairs.sum(-1) if len(terms) == 1 else self._whole(terms, rerun)  # (i, K, j)
        n, b = weights.data_size, pairs.shape[0]
        own = torch.eye(b, dtype=torch.bool, device=pairs.device).reshape(b, 1, b, 1)
        inside, outside = pairs.new_tensor(1 / n), pairs.new_tensor((n - 1) / (n * (b - 1)))
        log_share = torch.where(own, inside, outside).log()
        joint = torch.logsumexp(whole + log_share.squeeze(-1), 2)  # (i, K)
        single = torch.logsumexp(pairs + log_share, 2)  # (i, K, L)
        return (joint - single.sum(-1)).mean()

    def _whole(self, terms: list[Term], rerun: Rerun) -> Tensor:
        """log q(z_i | x_j) of all latents together, each given row i's own: (i, K, j)."""

        def at(draws: dict[str, Tensor], particles: int) -> Tensor:
            found = rerun(draws, particles)
            return torch.stack([found[name].log_prob for name in draws]).sum(0)

        draws = {t.name: _value(t) for t in terms}  # (K, B, *event)
        k, b = next(iter(draws.values())).shape[:2]
        each = {  # row i's draws at every row j: (i K, j, *event)
            n: v.movedim(1, 0).flatten(0, 1).unsqueeze(1).expand(-1, b, *v.shape[2:])
            for n, v in draws.items()
        }
        return at(each, b * k).reshape(b, k, b)


def _value(term: Term) -> Tensor:
    """All draws of a latent: (K, B, *event)."""
    value = term.value
    lead = 2 - (value.dim() - term.fn.event_dim)
    return value.reshape((1,) * lead + value.shape)


def _pairs(term: Term, who: str) -> Tensor:
    """log q(z_i,l | x_j, row j's other latents) of all pairs of rows: (i, K, j, L)."""
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
