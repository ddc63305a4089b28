"""Estimators whose bound is a mean over particles of a sum over sites: the ELBO and its kin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor

from ..pairs.options import number, one_of, whole
from ..weights import LogWeights, Term
from ..weights.sites import is_discrete
from .base import (
    AtConstants,
    Estimator,
    analytic_kl,
    kl_by_site,
    latent_of,
    less_the_others,
    reach,
    score_function,
)

Costs = Iterator[tuple[float | Tensor, Term]]


class Trace(Estimator):
    """The evidence lower bound E_q[log p(x, z) - log q(z | x)].

    The base of estimators that are a sum of factor · E_q[term]: `costs` says which.

    For nearly everything: the cheapest gradient, and the one to beat. One run of K draws.

    Source: Kingma & Welling 2014, arXiv:1312.6114, eq. 3; for sites that are not reparameterised,
    Ranganath et al. 2014, arXiv:1401.0118, with plates as Rao-Blackwellisation and, for K > 1,
    the other particles' mean as baseline (Kool et al. 2019, Buy 4 REINFORCE samples).
    """

    baseline: str | None = "others"

    def costs(self, weights: LogWeights) -> Costs:
        """Factor and term of every summand; a term's `log_prob` is its value per draw."""
        yield from weights.terms()

    def bound(self, weights: LogWeights) -> Tensor:
        """The sum, averaged over particles."""
        return torch.as_tensor(sum(c * t.total() for c, t in self.costs(weights)))

    def score(self, weights: LogWeights) -> Tensor | float:
        """Each site's score times what it can influence, less a baseline of other draws."""

        def signal(site: Term) -> Tensor:
            data = tuple(p.dim for p in weights.plates)
            others = {"others": (0,), "data": data, None: ()}[self.baseline]
            return less_the_others(reach(self.costs(weights), site), others) / weights.particles

        return score_function(weights, signal)


class MeanField(Trace):
    """The ELBO with the divergence from the prior in closed form where there is one.

    E_q[log p(x | z)] - Σ_i E_q[KL(q(z_i | pa_i) || p(z_i | pa_i))]. Exact only where each
    latent's prior depends on latents that the guide draws before it; this is checked.

    For factorised guides whose priors have a closed-form divergence, early in training. One run.

    Source: Kingma & Welling 2014, arXiv:1312.6114, appendix B.

    Raises:
        ValueError: a latent of the model that the guide lacks, or drawn in an order that makes
            the closed form wrong.
    """

    closed_form = True

    def costs(self, weights: LogWeights) -> Costs:
        """Log likelihoods, and minus the divergences."""
        weights.refuse_unfactorised("MeanField")
        for name, p in weights.model.items():
            if name not in weights.guide or p.observed:
                yield 1, p
        for name, q in weights.guide.items():
            partner = weights.model.get(name)
            kl = None if partner is None else analytic_kl(q, partner)
            if kl is not None:
                yield -1, q.having(log_prob=kl)
            else:
                yield -1, q
                if partner is not None and not partner.observed:
                    yield 1, partner


class Beta(Trace):
    """E_q[log p(x | z)] - β KL(q(z | x) || p(z)): another point of the rate-distortion curve.

    Args:
        beta: the weight at the end; 0 is the deterministic limit's reconstruction term.
        warmup: steps over which β rises linearly from 0; 0 keeps it constant.
        cycles: repeat the warm-up so many times, each `warmup` steps long followed by `warmup`
            steps at `beta` (cyclical annealing).
        free_bits: nats per latent site and datum below which the divergence is not reduced.

    With a constant β >= 1 a lower bound on log p(x), below the ELBO by (β - 1) KL; with β < 1, a
    warm-up or free bits it is called none. The un-tempered ELBO is logged beside.

    For another trade between rate and distortion, not for a better log p(x). One run.

    Source: Higgins et al. 2017 (β-VAE); Bowman et al. 2016, arXiv:1511.06349 (warm-up);
    Fu et al. 2019, arXiv:1903.10145 (cycles); Kingma et al. 2016, arXiv:1606.04934 (free bits).

    Raises:
        ValueError: β < 0, or a negative number of steps, cycles or nats; the prior of a latent
            was summed out together with the likelihood; free bits of latents that the guide draws
            jointly.
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
        number("beta", beta, 0.0)
        number("free_bits", free_bits, 0.0)
        whole("warmup", warmup, 0)
        whole("cycles", cycles, 0)
        if cycles and not warmup:
            raise ValueError("cycles: give the length of a cycle's rise as warmup=STEPS.")
        self.beta, self.warmup, self.cycles, self.free_bits = beta, warmup, cycles, free_bits
        self.is_bound = beta >= 1 and free_bits == 0 and warmup == 0
        self.is_tight = beta == 1

    def weight(self) -> float | Tensor:
        """β at the present step."""
        if not self.warmup:
            return self.beta
        step = torch.as_tensor(self.step)
        if self.cycles:
            within = torch.remainder(step, 2 * self.warmup)
            step = torch.where(step < 2 * self.warmup * self.cycles, within, step)
        return self.beta * (step / self.warmup).clamp(max=1.0)

    def costs(self, weights: LogWeights) -> Costs:
        """Log likelihoods, and -β times the parts of the divergence (0 for those that are free)."""
        beta, paid = self.weight(), self._paid(weights)
        for p in weights.model.values():
            mixed = [n for n in p.sites if n in weights.guide]
            if mixed:
                raise ValueError(
                    f"{self!r}: the prior of {', '.join(mixed)} was summed out together with the "
                    "likelihood, so its divergence cannot be weighted. Draw the discrete latent in "
                    "the guide (and mark it for enumeration), or use Trace()."
                )
            yield (1, p) if p.observed else (beta * paid.get(p.name, 1), p)
        for name, q in weights.guide.items():
            yield -beta * paid.get(latent_of(name, paid) or "", 1), q

    def _paid(self, weights: LogWeights) -> dict[str, Tensor]:
        """1 for every latent whose divergence is above its free nats, else 0; none if none are."""
        if not self.free_bits:
            return {}
        latents = [n for n, p in weights.model.items() if not (p.observed or p.deterministic)]
        for name, q in weights.guide.items():
            if q.free and latent_of(name, latents) is None:
                raise ValueError(
                    f"{self!r}: guide site {name!r} is no latent of the model, so it draws several "
                    "of them jointly and none has a divergence of its own to leave free. Use a "
                    "guide with a site for each latent, or free_bits=0."
                )
        floor = self.free_bits * weights.data_size
        return {n: (kl > floor).to(kl.dtype).detach() for n, kl in kl_by_site(weights).items()}

    def score(self, weights: LogWeights) -> Tensor | float:
        """As for any sum; but the floor of free nats ties all rows and particles together."""
        return Estimator.score(self, weights) if self.free_bits else super().score(weights)

    def bound(self, weights: LogWeights) -> Tensor:
        """Expected log likelihood minus β times the divergence, free nats counted in full."""
        floor, paid = self.free_bits * weights.data_size, self._paid(weights)
        return super().bound(weights) - sum(self.weight() * floor * (1 - p) for p in paid.values())


class STL(Trace):
    """Sticking the landing: the ELBO with the guide's score taken out of its gradient.

    d/dφ E_q[log w] = E_q[∂ log w/∂z · ∂z/∂φ] for a reparameterised z(ε, φ), because the rest, minus
    the score ∂ log q_φ(z)/∂φ at a fixed z, has mean zero. What is left is zero where q is the
    posterior, draw by draw.

    For reparameterised guides that come near the posterior, where its noise vanishes. One run, and
    the guide's density once more.

    Source: Roeder et al. 2017, arXiv:1703.09194, eq. 5 and 6. Biased on multi-sample bounds
    (Tucker et al. 2019, arXiv:1810.04152, section 3); use `DReG` there.
    """

    def surrogate(self, weights: LogWeights) -> Tensor:
        """The total derivative plus the score that it holds with a minus."""
        constant = weights.fixed().guide.values()
        return self.bound(weights) + sum(q.total() for q in constant) + self.score(weights)


class Score(AtConstants, Trace):
    """The ELBO with the score-function gradient at every site, reparameterised or not.

    ∇_φ E_q[f] = E_q[(f - b) ∇_φ log q(z)], f = log p(x, z) - log q(z | x) summed over the site's
    own element of its plates and what lies outside them (Rao-Blackwellised).

    Args:
        baseline: b, "others": the mean over the other particles; "data": over the other elements
            of the shared plates; None.

    For guides that are not reparameterised, K of 4 and more. One run.

    Source: Ranganath et al. 2014, arXiv:1401.0118, eq. 4 and section 3.1; Mnih & Rezende 2016,
    arXiv:1602.06725, section 2.2 (other particles).

    Raises:
        ValueError: an unknown baseline; a guide without a density at a fixed value.
    """

    def __init__(
        self,
        particles: int = 8,
        *,
        baseline: Literal["others", "data"] | None = "others",
        vectorized: bool = True,
    ):
        super().__init__(particles, vectorized=vectorized)
        self.baseline = one_of("baseline", baseline, ("others", "data", None))


class Enum(Trace):
    """The ELBO with the guide's discrete sites averaged exactly, over nested plates too.

    E_q(k)[log p(x, k, ·) - log q(k) - ·] as a sum over the support of k; continuous sites are
    drawn, once per value of k where they depend on it. Discrete latents that the guide lacks are
    summed out of the model by every estimator.

    For discrete sites with few values: no noise of theirs is left. One run, as large as the product
    of the values that depend on each other.

    Source: Obermeyer et al. 2019, Tensor variable elimination, arXiv:1902.03210.

    Raises:
        ValueError: a discrete guide site cannot be enumerated.
    """

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The weights with every discrete guide site marked for enumeration."""
        return super().draw(model, poutine.infer_config(guide, _enumerate), *args, **kwargs)


def _enumerate(site: Any) -> Any:
    fn = site["fn"]
    if not is_discrete(site):
        return {}
    if fn.event_dim and getattr(fn, "reinterpreted_batch_ndims", 0):
        raise ValueError(
            f"Enum: guide site {site['name']!r} is a vector of discrete values in one site; give "
            "each its own site or a plate dimension, or use Score() or VIMCO()."
        )
    return {"enumerate": "parallel"}
