"""ELBO estimators: each turns log weights into a bound in nats and a gradient.

Every class here is a `pyro.infer.ELBO`: `pyro.infer.SVI(model, guide, optim, loss=elbo.IWAE(8))`
works, and so does `inference.fit(..., elbo=elbo.IWAE(8))`. To add one, write `bound`, and
`surrogate` where the gradient is not the bound's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.infer
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from .weights import LogWeights, Term, log_weights


class Estimator(pyro.infer.ELBO):
    """A bound on log p(x) and its gradient.

    Args:
        particles: K, draws of the latents per datum.
        vectorized: draw them in one run of the pair (which must broadcast), or one by one.

    Attributes:
        is_bound: whether the value is a lower bound on log p(x) in expectation.
        step: number of updates made so far (an int, or a tensor inside a compiled step).
    """

    is_bound: bool = True

    def __init__(self, particles: int = 1, *, vectorized: bool = True):
        if not isinstance(particles, int) or particles < 1:
            raise ValueError(f"particles: expected a whole number K >= 1, got {particles!r}.")
        super().__init__(num_particles=particles, vectorize_particles=vectorized)
        self.particles = particles
        self.vectorized = vectorized
        self.step: int | Tensor = 0

    def bound(self, weights: LogWeights) -> Tensor:
        """The bound in nats, summed over data and scaled by N/B: a scalar."""
        raise NotImplementedError

    def surrogate(self, weights: LogWeights) -> Tensor:
        """A scalar whose gradient estimates the bound's. Its value means nothing."""
        return self.bound(weights) + self.score(weights)

    def score(self, weights: LogWeights) -> Tensor | float:
        """The score-function part, for guide sites that are not reparameterised."""
        return score_function(weights, lambda term: downstream(weights, term) / self.particles)

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The log weights that this estimator needs."""
        return log_weights(
            model, guide, *args, particles=self.particles, vectorized=self.vectorized, **kwargs
        )

    def value_and_surrogate(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The bound (detached) and the surrogate from one draw."""
        weights = self.draw(model, guide, *args, **kwargs)
        surrogate = self.surrogate(weights)
        with torch.no_grad():
            return self.bound(weights), surrogate

    # Pyro's names

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """-bound, as a float."""
        with torch.no_grad():
            return -float(self.bound(self.draw(model, guide, *args, **kwargs)))

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """-bound, as a tensor whose gradient is the estimator's."""
        value, surrogate = self.value_and_surrogate(model, guide, *args, **kwargs)
        return -(surrogate + (value - surrogate).detach())

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """-bound, as a float, after adding its gradient to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        if not isinstance(self.step, Tensor):
            self.step += 1
        return float(loss)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("these estimators work on log weights: see `draw`.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(particles={self.particles})"


class Trace(Estimator):
    """The evidence lower bound E_q[log p(x, z) - log q(z | x)].

    Source: Kingma & Welling 2014, arXiv:1312.6114, eq. 3; for sites that are not reparameterised,
    Ranganath et al. 2014, arXiv:1401.0118, with plates as Rao-Blackwellisation.
    """

    def bound(self, weights: LogWeights) -> Tensor:
        """The mean over particles of the summed log weights."""
        return weights.elbo().mean()


class MeanField(Estimator):
    """The ELBO with the divergence from the prior in closed form where there is one.

    E_q[log p(x | z)] - sum_i E_q[KL(q(z_i | pa_i) || p(z_i | pa_i))]. Exact only where each
    latent's prior depends on latents that the guide draws before it; `draw` checks that.

    Source: Kingma & Welling 2014, arXiv:1312.6114, eq. 7.

    Raises:
        ValueError: a latent of the model that the guide lacks, or drawn in an order that makes
            the closed form wrong.
    """

    def bound(self, weights: LogWeights) -> Tensor:
        """Expected log likelihood minus closed-form divergences."""
        _refuse_unfactorised(weights)
        total: Tensor | float = 0.0
        for name, term in weights.model.items():
            q = weights.guide.get(name)
            if q is None or term.observed:
                total = total + _scaled(term, term.log_prob)
        for name, q in weights.guide.items():
            p = weights.model.get(name)
            if p is None:  # an auxiliary site
                total = total - _scaled(q, q.log_prob)
                continue
            kl = analytic_kl(q, p)
            total = total - _scaled(q, q.log_prob - p.log_prob if kl is None else kl)
        assert isinstance(total, Tensor)
        return total


class Beta(Estimator):
    """E_q[log p(x | z)] - β KL(q(z | x) || p(z)): another point of the rate-distortion curve.

    Args:
        beta: the weight at the end; 0 is the deterministic limit's reconstruction term.
        warmup: steps over which β rises linearly from 0; 0 keeps it constant.
        cycles: repeat the warm-up so many times, each `warmup` steps long followed by `warmup`
            steps at `beta` (cyclical annealing).
        free_bits: nats per latent site and datum below which the divergence is not reduced.

    Not a bound on log p(x) unless β = 1 and `free_bits` = 0; the un-tempered ELBO is logged beside.

    Source: Higgins et al. 2017 (β-VAE); Bowman et al. 2016, arXiv:1511.06349 (warm-up);
    Fu et al. 2019, arXiv:1903.10145 (cycles); Kingma et al. 2016, arXiv:1606.04934 (free bits).

    Raises:
        ValueError: β < 0, or a negative number of steps, cycles or nats.
    """

    def __init__(
        self,
        beta: float = 4.0,
        particles: int = 1,
        *,
        warmup: int = 0,
        cycles: int = 0,
        free_bits: float = 0.0,
        vectorized: bool = True,
    ):
        super().__init__(particles, vectorized=vectorized)
        for name, number in (
            ("beta", beta), ("warmup", warmup), ("cycles", cycles), ("free_bits", free_bits)
        ):  # fmt: skip
            if number < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {number}.")
        if cycles and not warmup:
            raise ValueError("cycles: give the length of a cycle's rise as warmup=STEPS.")
        self.beta, self.warmup, self.cycles, self.free_bits = beta, warmup, cycles, free_bits
        self.is_bound = beta == 1 and free_bits == 0 and warmup == 0

    def weight(self) -> float | Tensor:
        """β at the present step."""
        if not self.warmup:
            return self.beta
        step = torch.as_tensor(self.step)
        if self.cycles:
            within = torch.remainder(step, 2 * self.warmup)
            step = torch.where(step < 2 * self.warmup * self.cycles, within, step)
        return self.beta * (step / self.warmup).clamp(max=1.0)

    def bound(self, weights: LogWeights) -> Tensor:
        """Expected log likelihood minus β times the divergence."""
        beta = self.weight()
        total = sum(_scaled(t, t.log_prob) for t in weights.model.values() if t.observed)
        for kl in kl_by_site(weights).values():
            if self.free_bits:
                data = weights.scale * math.prod(p.size for p in weights.plates)
                kl = kl.clamp(min=self.free_bits * data)
            total = total - beta * kl
        assert isinstance(total, Tensor)
        return total

    def score(self, weights: LogWeights) -> Tensor | float:
        """The score-function part, with the tempered costs as the learning signal."""
        beta = self.weight()

        def cost(sign: int, term: Term) -> Tensor | float:
            return 1.0 if term.observed else beta

        return score_function(
            weights, lambda term: downstream(weights, term, cost) / self.particles
        )

    def __repr__(self) -> str:
        return f"Beta(beta={self.beta}, particles={self.particles})"


class IWAE(Estimator):
    """E[log 1/K sum_k p(x, z_k) / q(z_k | x)], one logarithm per datum, then N/B.

    Source: Burda et al. 2016, arXiv:1509.00519, eq. 8.

    Raises:
        ValueError: a latent lies outside a subsampled plate.
    """

    def __init__(self, particles: int = 8, *, vectorized: bool = True):
        super().__init__(particles, vectorized=vectorized)

    def per_datum(self, weights: LogWeights) -> Tensor:
        """log of the mean weight per element of the shared plates: (*shared)."""
        weights.refuse_subsampled_joint(repr(self))
        return torch.logsumexp(weights.log_weight(), 0) - math.log(self.particles)

    def bound(self, weights: LogWeights) -> Tensor:
        """Summed over data."""
        return weights.total(self.per_datum(weights))

    def score(self, weights: LogWeights) -> Tensor | float:
        """Every particle's score times its datum's bound."""
        signal = self.per_datum(weights).detach() * weights.scale
        return score_function(weights, lambda term: signal.unsqueeze(0))


# ---------------------------------------------------------------- pieces of a bound


def kl_by_site(weights: LogWeights) -> dict[str, Tensor]:
    """E_q[log q - log p] per latent of the model, summed over data and scaled: scalars, nats.

    An auxiliary guide site `<name>_...` is counted with the latent that it makes.
    """
    out: dict[str, Tensor] = {}
    for name, p in weights.model.items():
        if not p.observed:
            out[name] = -_scaled(p, p.log_prob)
    for name, q in weights.guide.items():
        target = name
        if name not in out:
            near = [n for n in out if name.startswith(n)]
            target = max(near, key=len) if near else name
        out[target] = out.get(target, 0.0) + _scaled(q, q.log_prob)
    return out


def analytic_kl(q: Term, p: Term) -> Tensor | None:
    """KL(q || p) of two Pyro sites, masked, (K, *plates); None where there is no closed form."""
    try:
        kl = kl_divergence(q.fn, p.fn)
    except NotImplementedError:
        return None
    kl = kl.reshape((1,) * (q.log_prob.dim() - kl.dim()) + kl.shape)
    if torch.is_tensor(q.mask):
        kl = torch.where(q.mask, kl, kl.new_zeros(()))
    return kl


def downstream(
    weights: LogWeights,
    term: Term,
    cost: Callable[[int, Term], float | Tensor] = lambda sign, term: 1.0,
) -> Tensor:
    """What a guide site can influence: scaled costs, summed to the site's own plates (K, *plates).

    Elements of a plate are independent, so the cost of element i is the score's only signal at i
    (Rao-Blackwellisation over plates).
    """
    mine = {p.name for p in term.plates}
    total: Tensor | float = 0.0
    for sign, other in weights.terms():
        c = other.log_prob.detach() * other.scale * sign * cost(sign, other)
        for p in other.plates:
            if p.name not in mine:
                c = c.sum(p.dim, keepdim=True)
        total = total + c
    assert isinstance(total, Tensor)
    return total


def score_function(weights: LogWeights, signal: Callable[[Term], Tensor]) -> Tensor | float:
    """Sum over guide sites without a reparameterisation of log q(z) * (signal - baseline).

    The baseline is the mean over the other particles; with one particle there is none.
    """
    total: Tensor | float = 0.0
    for term in weights.guide.values():
        if term.observed or term.enumerated or term.reparameterized:
            continue
        s = signal(term).detach()
        if weights.particles > 1 and s.shape[0] == weights.particles:
            s = s - (s.sum(0, keepdim=True) - s) / (weights.particles - 1)
        total = total + (term.log_prob * s).sum()
    return total


def _scaled(term: Term, value: Tensor) -> Tensor:
    """Summed over plates and scaled, averaged over particles."""
    k = value.shape[0]
    return (value * term.scale).sum() / k


def _refuse_unfactorised(weights: LogWeights) -> None:
    """The closed form needs p(z_i | .) to depend on nothing that the guide draws after z_i."""
    latents = [n for n, t in weights.model.items() if not t.observed]
    missing = [n for n in latents if n not in weights.guide]
    if missing:
        raise ValueError(
            f"MeanField: the guide has no site {', '.join(missing)}; give it one, or use Trace()."
        )
    order = [n for n in weights.guide if n in latents]
    if order != latents:
        raise ValueError(
            f"MeanField: the model draws {latents} and the guide {order}; the closed-form "
            "divergence needs one order (the prior of a latent must not depend on a latent that "
            "the guide draws later). Use Trace()."
        )
