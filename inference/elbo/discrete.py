"""Estimators for discrete latents: antithetic pairs, relaxed control variates, a relaxed path."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Bernoulli, OneHotCategorical
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import one_hot, softmax

from ..pairs.options import number
from ..randomness import forked, is_transformed
from ..weights import LogWeights, Term, no_validation
from .additive import Trace
from .base import reach, score_function

TINY = 1e-6  # uniforms stay inside (0, 1)
_LOOKED_AT: weakref.WeakSet[Any] = weakref.WeakSet()  # estimators whose pair has been looked at


class DisARM(Trace):
    """The ELBO; Bernoulli sites follow differences between antithetic draws.

    With b = 1[u < σ(α)] and b' = 1[1 - u < σ(α)], the gradient along the logit α is
    ½ (f(b) - f(b')) (-1)^b' 1[b ≠ b'] σ(|α|), unbiased, where f is the rest of the pair. Each
    Bernoulli site costs one further run of the pair: its own b' beside the other sites' draws, so
    that sites may depend on each other. Reparameterised sites and the model follow all runs.

    For binary latents, at one particle or a few; it needs neither a baseline nor a second network.
    One run of the pair for each Bernoulli site, and one more.

    Source: Dong, Mnih & Tucker 2020, DisARM, arXiv:2006.10680, eq. 6 and algorithm 1; Yin et al.
    2020, Probabilistic best subset selection via gradient-based optimization (the same, U2G).

    Raises:
        ValueError: a drawn site that is neither reparameterised nor Bernoulli.
    """

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The weights, and beside them those of each site's antithetic draw."""
        known = dict(kwargs.pop("given", None) or {})
        weights = super().draw(model, guide, *args, given=known, **kwargs)
        before: dict[str, Tensor] = {}
        others: dict[str, LogWeights] = {}
        for name, site in weights.guide.items():
            if site.scored:
                _refuse_other_kinds(self, site, (Bernoulli,))
                p, v = _base(site).probs.detach(), _uniform(site.value)
                u = torch.where(site.value > 0.5, p * v, p + (1 - p) * v)  # given b
                other = (1 - u < p).to(site.value.dtype)
                given = {**before, name: other}
                others[name] = super().draw(model, guide, *args, given=given, **kwargs)
            if site.free and torch.is_tensor(site.value):
                before[name] = site.value  # whose path stays open
        weights.others = others
        return weights

    def bound(self, weights: LogWeights) -> Tensor:
        """The mean over all runs: every one of them draws from the guide."""
        runs = [weights, *weights.others.values()]
        return torch.stack([super(DisARM, self).bound(w) for w in runs]).mean(0)

    def score(self, weights: LogWeights) -> Tensor | float:
        """Along each site's logits."""
        total: Tensor | float = 0.0
        for name, other in weights.others.items():
            site, twin = weights.guide[name], other.guide[name]
            logits = _base(site).logits
            gap = reach(self.costs(weights), site) - reach(self.costs(other), twin)
            sign = (1 - 2 * twin.value) * (site.value != twin.value).to(logits.dtype)
            size = torch.sigmoid(logits.detach().abs())
            gap = gap.reshape(*gap.shape, *(1,) * site.fn.event_dim)
            total = total + (0.5 * gap * sign * size * logits).sum() / weights.particles
        return total


class Rebar(Trace):
    """The ELBO; the score function with a control variate on relaxed draws: REBAR and RELAX.

    With z = α + logit(u) and b = H(z), and z' drawn given b,
    (f(b) - c(z')) ∇ log q(b) + ∇ c(z) - ∇ c(z'), unbiased for any c, since b is a function of z.
    c(z) = η f(σ(z/τ)), the pair itself at relaxed values, and with RELAX the output of a network
    on z besides: `infer={"control": network}` of a guide's site, which takes z (K, *plates, *event)
    and gives (K, *plates); it is fitted to what is left of the signal by least squares (the paper
    follows the variance itself).

    For Bernoulli and one-hot sites whose model takes values between 0 and 1. Three runs of the
    pair; less noise than `Score` at K = 1, and far more time.

    Args:
        temperature: τ; scale: η.

    Source: Tucker et al. 2017, REBAR, arXiv:1703.07370, eq. 4 to 6; Grathwohl et al. 2018,
    Backpropagation through the void (RELAX), arXiv:1711.00123, eq. 8 and appendix B.

    Raises:
        ValueError: a drawn site that is neither reparameterised, nor Bernoulli, nor one-hot.
    """

    def __init__(
        self, particles: int = 1, *, temperature: float = 0.5, scale: float = 1.0,
        vectorized: bool = True,
    ):  # fmt: skip
        super().__init__(particles, vectorized=vectorized)
        self.temperature = number("temperature", temperature, 0.0, open=True)
        self.scale = number("scale", scale)

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The weights, and beside them those at relaxed values, free and given the draws."""
        known = dict(kwargs.pop("given", None) or {})
        weights = super().draw(model, guide, *args, given=known, **kwargs)
        scored = {n: t for n, t in weights.guide.items() if t.scored}
        for site in scored.values():
            _refuse_other_kinds(self, site, (Bernoulli, OneHotCategorical))
        self._refuse_dependent(weights, scored, model, guide, *args, **kwargs)
        relaxed = {n: _both_logistic(t) for n, t in scored.items()}
        for i, key in enumerate(("free", "given") if scored else ()):
            soft = {n: _squash(_base(scored[n]), z[i] / self.temperature)
                    for n, z in relaxed.items()}  # fmt: skip
            with no_validation():  # values between 0 and 1
                found = super().draw(model, guide, *args, given=soft, **kwargs)
            found.extras.update({n: z[i] for n, z in relaxed.items()})
            weights.others[key] = found
        return weights

    def _refuse_dependent(
        self, weights: LogWeights, scored: dict[str, Term], *pair: Any, **kwargs: Any
    ) -> None:
        """Raise ValueError where a site's logits depend on another's draw: H(z) jumps there."""
        if len(scored) < 2 or self in _LOOKED_AT or is_transformed():
            return
        _LOOKED_AT.add(self)
        with forked(), torch.no_grad():
            flipped = {n: 1 - t.value for n, t in scored.items() if isinstance(_base(t), Bernoulli)}
            flipped |= {n: t.value.roll(1, -1) for n, t in scored.items() if n not in flipped}
            again = super().draw(*pair, given=flipped, **kwargs)
        for name, site in scored.items():
            if not torch.allclose(_base(site).logits, _base(again.guide[name]).logits):
                raise ValueError(
                    f"{self!r}: guide site {name!r} depends on another discrete draw, so that its "
                    "relaxed draw has no path. Use DisARM() or Score(), or draw them in one site."
                )

    def score(self, weights: LogWeights) -> Tensor | float:
        """The score times what is left of f, and the relaxed path."""
        if not weights.others:
            return 0.0
        free, given = weights.others["free"], weights.others["given"]
        losses: list[Tensor] = []

        def signal(site: Term) -> Tensor:
            control = reach(self.costs(given), given.guide[site.name])
            left = reach(self.costs(weights), site) - self.scale * control
            if (network := _control(site)) is not None:
                guess = network(given.extras[site.name].detach())
                losses.append((left - guess).square().sum())
                left = left - guess.detach()
            return left / weights.particles

        total = score_function(weights, signal)
        total = total + self.scale * (super().bound(free) - super().bound(given))
        for name, site in weights.guide.items():
            if site.scored and (network := _control(site)) is not None:
                fixed = {k: p.detach() for k, p in network.named_parameters()}
                ends = [functional_call(network, fixed, w.extras[name]) for w in (free, given)]
                total = total + (ends[0] - ends[1]).sum() / weights.particles
        return total - sum(losses)


class GumbelSoftmax(Trace):
    """The ELBO at hard draws, whose gradient goes through relaxed ones: straight-through.

    b = one-hot(argmax(α + g)) forward and softmax((α + g)/τ) backward, g from Gumbel's law (a
    logistic for Bernoulli sites). Biased: towards the gradient of the relaxed objective, less so
    and noisier as τ falls. One run of the pair, the cheapest of all.

    For Bernoulli and one-hot sites, when a biased direction is good enough; `compare` and
    `check_estimator` measure how biased it is.

    Args:
        temperature: τ.

    Source: Jang, Gu & Poole 2017, arXiv:1611.01144, section 2.2; Maddison, Mnih & Teh 2017,
    arXiv:1611.00712; Bengio et al. 2013, arXiv:1308.3432 (straight-through).

    Raises:
        ValueError: a drawn site that is neither reparameterised, nor Bernoulli, nor one-hot.
    """

    is_unbiased = False

    def __init__(self, particles: int = 1, *, temperature: float = 0.5, vectorized: bool = True):
        super().__init__(particles, vectorized=vectorized)
        self.temperature = number("temperature", temperature, 0.0, open=True)

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """Draws that are hard, with a gradient that is soft."""
        with no_validation(), _StraightThrough(self.temperature):  # rounding: 1 - 1e-7
            weights = super().draw(model, guide, *args, **kwargs)
        for site in weights.guide.values():
            if site.scored:
                _refuse_other_kinds(self, site, (Bernoulli, OneHotCategorical))
        weights.guide = {
            n: t.having(reparameterized=True) if t.scored else t for n, t in weights.guide.items()
        }
        return weights


class _StraightThrough(Messenger):
    """Draws Bernoulli and one-hot latents by relaxed noise; a value that is there already stays."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or msg["infer"].get("enumerate"):
            return
        fn = msg["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if not isinstance(fn, (Bernoulli, OneHotCategorical)) or fn.has_rsample:
            return
        soft = _squash(fn, _logistic(fn) / self.temperature)
        hard = _hard(fn, soft.detach())
        msg["value"], msg["done"] = hard + soft - soft.detach(), True


def _control(site: Term) -> Any:
    return (site.infer or {}).get("control")


def _base(site: Term) -> Any:
    fn = site.fn
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _refuse_other_kinds(who: Trace, site: Term, kinds: tuple[type, ...]) -> None:
    if not isinstance(_base(site), kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise ValueError(
            f"{who!r}: guide site {site.name!r} is a {type(_base(site)).__name__}; expected "
            f"{names}. Use Score() or VIMCO(), or Enum() where its values are few."
        )


def _squash(fn: Any, z: Tensor) -> Tensor:
    return torch.sigmoid(z) if isinstance(fn, Bernoulli) else softmax(z, -1)


def _hard(fn: Any, soft: Tensor) -> Tensor:
    if isinstance(fn, Bernoulli):
        return (soft > 0.5).to(soft.dtype)
    return one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)


def _uniform(like: Tensor) -> Tensor:
    return torch.rand_like(like).clamp(TINY, 1 - TINY)


def _logistic(fn: Any) -> Tensor:
    """The logits with logistic or Gumbel noise, a function of the parameters."""
    u = _uniform(fn.logits)
    if isinstance(fn, Bernoulli):
        return fn.logits + u.log() - (-u).log1p()
    return fn.logits - (-u.log()).log()


def _both_logistic(site: Term) -> tuple[Tensor, Tensor]:
    """A relaxed draw that the site's draw is the hardened form of, and another one given it.

    Source: Tucker et al. 2017, arXiv:1703.07370, appendix C.
    """
    fn, b = _base(site), site.value.detach()
    first, second = (_given(fn, b, _uniform(b)) for _ in range(2))
    return fn.logits + (first - fn.logits).detach(), second  # the first at fixed noise


def _given(fn: Any, b: Tensor, v: Tensor) -> Tensor:
    """A relaxed draw given the hard one, a function of the parameters."""
    if isinstance(fn, Bernoulli):
        p = torch.sigmoid(fn.logits)
        u = torch.where(b > 0.5, (1 - p) + v * p, v * (1 - p))
        return fn.logits + u.log() - (-u).log1p()
    top = -(-v.log()).log()  # Gumbel of the largest, whose law does not depend on the logits
    most = (top * b).sum(-1, keepdim=True)
    rest = -((-v.log()) / softmax(fn.logits, -1) + (-most).exp()).log()
    return torch.where(b > 0.5, most, rest)
