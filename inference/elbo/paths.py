"""Less noise for reparameterised guides: priors that are too, Taylor control variates, Sobol."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..randomness import forked, is_transformed
from ..weights import LogWeights, Term
from .additive import STL, Trace
from .base import Estimator, OverBase
from .multisample import DReG


class GDReG(DReG):
    """IWAE, doubly reparameterised in the priors of a hierarchy too.

    A normal prior N(m, s) of latent l is no longer followed by its score, Σ_k w̄_k ∂ log p(z_l):
    with z_l = m + s ε at fixed ε = (z_l - m)/s, its parameters follow
    Σ_k (w̄_k ∂_l [log p(x, z) - log p(z_l)] - w̄_k² ∂_l log w_k) · ∂(m + s ε), with partial
    derivatives ∂_l at fixed other latents. The guide and the rest of the model follow `DReG`.

    For learned priors of hierarchies. One further run and two further gradients; on models whose
    priors are fixed it is DReG, and no measurement of ours favours it.

    Source: Bauer & Mnih 2021, Generalized doubly reparameterized gradient estimators,
    arXiv:2101.11046, eq. 9 and 10.

    Raises:
        ValueError: a guide site is not reparameterised.
    """

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """DReG's weights, and beside them the same at constants."""
        weights = super().draw(model, guide, *args, **kwargs)
        drawn = {n: t.value.detach() for n, t in weights.guide.items() if _is_drawn(t)}
        again = {**kwargs, "vectorized": weights.way}

        def at(z: dict[str, Tensor]) -> LogWeights:
            return Estimator.draw(self, model, guide, *args, given=z, **again)

        weights.others["fixed"] = fixed = at(drawn)
        w = self.normalised(weights) * weights.scale
        squares = self.normalised(weights).square() * weights.scale

        def joint(z: dict[str, Tensor]) -> Tensor:
            found = at(z)
            return (w * found.log_p() - squares * found.log_weight()).sum()

        def own(z: dict[str, Tensor]) -> Tensor:
            terms = [fixed.model[n].having(value=v) for n, v in z.items() if n in priors]
            parts = [t.having(log_prob=_density(t)).sum_to(weights.plates) for t in terms]
            return sum((w * p).sum() for p in parts)  # type: ignore[return-value]

        priors = [n for n in drawn if n in fixed.model and _is_normal(fixed.model[n])]
        pull = torch.func.grad(joint)(drawn)
        if priors:
            apart = torch.func.grad(own)({n: drawn[n] for n in priors})
            pull = {n: (pull[n] - apart[n]).detach() for n in priors}
        weights.extras |= {f"pull:{n}": pull[n] for n in priors}
        return weights

    def surrogate(self, weights: LogWeights) -> Tensor:
        """DReG's, with the scores of normal priors replaced by their paths."""
        total, fixed = super().surrogate(weights), weights.others["fixed"]
        w = self.normalised(weights)
        for name, term in fixed.model.items():
            if (pull := weights.extras.get(f"pull:{name}")) is not None:
                fn, value = _normal(term), term.value.detach()
                noise = ((value - fn.loc) / fn.scale).detach()
                score = weights.total((w * term.sum_to(weights.plates)).sum(0))
                total = total - score + (pull * (fn.loc + fn.scale * noise)).sum()
        return total


class Taylor(Trace):
    """The ELBO; what its gradient is to first order about the guide's mean is taken out as noise.

    With z = μ + s ε, the gradient of log p along z is g + H (z - μ) + ..., g and H at μ. Along μ
    H (z - μ) is left out and along s, g ε: both have mean zero, and only what is curved remains.

    For guides of independent normals whose model is nearly Gaussian at their width. One further run
    and a product with its Hessian, about four times the time of `Trace`.

    Source: Miller et al. 2017, Reducing reparameterization gradient variance, arXiv:1705.07880,
    section 3.

    Raises:
        ValueError: a guide site is not normal, or depends on another's draw.
    """

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The weights, with the two parts that have mean zero beside them."""
        weights = super().draw(model, guide, *args, **kwargs)
        sites = {n: t for n, t in weights.guide.items() if _is_drawn(t)}
        for name, t in weights.guide.items():
            if name not in sites or not _is_normal(t):
                raise ValueError(
                    f"{self!r}: guide site {name!r} is a {type(t.fn).__name__}; expected "
                    "independent normals. Use Trace() or STL()."
                )
        again = {**kwargs, "vectorized": weights.way}

        def log_p(z: dict[str, Tensor]) -> Tensor:
            found = Estimator.draw(self, model, guide, *args, given=z, **again)
            return torch.stack([t.total() for t in found.model.values()]).sum() * weights.particles

        def slope(z: dict[str, Tensor]) -> Tensor:
            g = torch.func.grad(log_p)(z)
            return sum((g[n] * d).sum() for n, d in apart.items())  # type: ignore[return-value]

        values = {n: t.value.detach() for n, t in sites.items()}
        means = {n: _normal(t).loc.detach().expand_as(values[n]) for n, t in sites.items()}
        apart = {n: values[n] - means[n] for n in sites}
        self._refuse_dependent(weights, values, means, model, guide, *args, **kwargs)
        bent, straight = torch.func.grad(slope)(means), torch.func.grad(log_p)(means)
        for n, t in sites.items():
            loc, scale = (p.expand_as(values[n]) for p in (_normal(t).loc, _normal(t).scale))
            noise = loc * bent[n].detach()
            noise = noise + scale * (straight[n] * apart[n] / scale).detach()
            weights.extras[f"noise:{n}"] = noise.sum() / weights.particles
        return weights

    def _refuse_dependent(
        self, weights: LogWeights, values: dict, means: dict, *pair: Any, **kwargs: Any
    ) -> None:
        if len(values) < 2 or is_transformed():
            return
        with forked(), torch.no_grad():
            other = Estimator.draw(
                self, *pair, given={n: v + 1 for n, v in values.items()}, **kwargs
            )
        for name, mean in means.items():
            if not torch.allclose(_normal(other.guide[name]).loc.expand_as(mean), mean):
                raise ValueError(
                    f"{self!r}: guide site {name!r} depends on another's draw; expected "
                    "independent normals. Use Trace() or STL()."
                )

    def surrogate(self, weights: LogWeights) -> Tensor:
        """The total derivative less what has mean zero."""
        noise = [v for n, v in weights.extras.items() if n.startswith("noise:")]
        return self.bound(weights) - sum(v - v.detach() for v in noise)


class Sobol(OverBase):
    """Another estimator whose K draws are spread out: quasi-Monte Carlo, randomised by shifts.

    The normal noise of a latent is Φ⁻¹ of the first K points of Sobol's sequence, shifted by one
    uniform vector for each datum (modulo 1): each draw has the guide's law, but together they fill
    it evenly. The value of a mean such as the ELBO stays as it is; that of a K-sample bound rises,
    and is a lower bound still.

    For K of 8 and more and few latent dimensions; it costs next to nothing. Noise that is not
    normal, or has no axis of particles, stays as it is.

    Args:
        base: whose gradient is the path of its own bound: Trace, MeanField, Beta, STL, IWAE, ...

    Source: Buchholz, Wenzel & Mandt 2018, Quasi-Monte Carlo variational inference,
    arXiv:1807.01604; Cranley & Patterson 1976 (shifts).

    Raises:
        ValueError: the base needs independent draws, or a guide site is not reparameterised.
    """

    def __init__(self, base: Estimator | None = None):
        self.base = Trace(8) if base is None else base
        own = type(self.base).surrogate is Estimator.surrogate or isinstance(self.base, STL)
        if not own or self.base.particles < 2 or self.base.draws != self.base.particles:
            raise ValueError(
                f"Sobol: expected an estimator of K >= 2 draws that follows the path of its own "
                f"bound, such as Trace(8), STL(8) or IWAE(8); got {self.base!r}, which needs "
                "independent draws."
            )
        super().__init__(self.base.particles, vectorized=self.base.vectorized)
        for name in ("is_bound", "is_tight", "follows_bound", "closed_form"):
            setattr(self, name, getattr(self.base, name))

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The base's weights at draws that are spread out."""
        with _Spread(self.particles):
            weights = self.base.draw(model, guide, *args, **kwargs)
        for term in weights.guide.values():
            if term.scored:
                raise ValueError(
                    f"{self!r}: guide site {term.name!r} is not reparameterised, and its score "
                    "function needs independent draws. Use the base alone."
                )
        return weights

    def bound(self, weights: LogWeights) -> Tensor:
        """The base's."""
        return self.base.bound(weights)

    def surrogate(self, weights: LogWeights) -> Tensor:
        """The base's."""
        return self.base.surrogate(weights)

    def reference(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The bound at spread out draws, whose path is its gradient."""
        return self.bound(self.draw(model, guide, *args, **kwargs))


class _Spread(TorchFunctionMode):
    """Standard normals with a first axis of K become Sobol points, shifted at random."""

    def __init__(self, particles: int):
        super().__init__()
        self.particles = particles

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_ and len(args) == 1 and not kwargs:
            like = args[0]
            if like.dim() and len(like) == self.particles:
                shape = like.shape if like.dim() > 1 else (*like.shape, 1)
                points = torch.tensor(
                    _points(self.particles, shape[-1]), dtype=like.dtype, device=like.device
                )
                points = points.reshape(self.particles, *(1,) * (len(shape) - 2), -1)
                shift = torch.rand_like(like.reshape(shape)[0])
                u = (points + shift).remainder(1.0)
                tiny = torch.finfo(like.dtype).eps
                z = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(tiny - 1, 1 - tiny))
                return z.reshape(like.shape)
        return func(*args, **kwargs)


@functools.cache
def _points(k: int, dim: int) -> Any:
    """The first K points of Sobol's sequence, (K, dim): an array, which no transform wraps."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*balance properties")
        from scipy.stats import qmc  # slow to load

        found = qmc.Sobol(min(dim, qmc.Sobol.MAXDIM), scramble=False).random(k)
    return found[:, [i % found.shape[1] for i in range(dim)]]


def _is_drawn(term: Term) -> bool:
    return term.free and not term.observed and torch.is_tensor(term.value)


def _normal(term: Term) -> Any:
    fn = term.fn
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _is_normal(term: Term) -> bool:
    fn, kinds = term.fn, ("Independent", "MaskedDistribution", "ExpandedDistribution")
    while type(fn).__name__ in kinds and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn) is Normal and not (torch.is_tensor(term.mask) or term.mask is False)


def _density(term: Term) -> Tensor:
    """log p of a term at its value, (K, *plates)."""
    found = term.fn.log_prob(term.value)
    return found.reshape(term.log_prob.shape) if found.numel() == term.log_prob.numel() else found
