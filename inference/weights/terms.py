"""The log densities of one run of guide and model, site by site, and their sums."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .sequences import log_prob_in_time

Axes = list[str | None]  # the plate that an axis belongs to, if any


@dataclass(frozen=True)
class Plate:
    """An independence of a site: `dim` counts from the right, `scale` is N/B when subsampled."""

    name: str
    dim: int
    size: int
    scale: float


@dataclass
class Term:
    """One site's log density in one half of the pair.

    Attributes:
        log_prob: (K, *plates), masked but not scaled.
        plates: the plates that the site is in; they carry N/B.
        user_scale: what `poutine.scale` asked for (and N/B of plates that are loops).
        observed: whether the value is data; also true of a factor that enumeration left.
        auxiliary: whether the site exists in the guide only.
        fn, value, mask: Pyro's.
        enumerated: a guide site that is averaged over its support, not drawn.
        averaged: its log density was averaged over an enumerated guide site.
        free: its value is drawn, and not computed from other sites as a Delta's is.
        reparameterized: a gradient reaches the parameters of its distribution through its value.
        deterministic: a value that the model only records; its density is one.
        sites: for a factor that enumeration left, the sites that went into it.
        looped: N/B of the enclosing plates that are Python loops.
        infer: Pyro's options of the site, `infer={...}`.
    """

    name: str
    log_prob: Tensor
    plates: tuple[Plate, ...] = ()
    user_scale: float | Tensor = 1.0
    observed: bool = False
    auxiliary: bool = False
    fn: Any = None
    value: Any = None
    mask: Any = None
    enumerated: bool = False
    averaged: bool = False
    free: bool = True
    reparameterized: bool = True
    deterministic: bool = False
    sites: tuple[str, ...] = ()
    looped: float = 1.0
    infer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> float | Tensor:
        """The user's scale times N/B of every plate."""
        return self.user_scale * math.prod(p.scale for p in self.plates)

    @property
    def scored(self) -> bool:
        """True where the gradient needs the score function: drawn, but not differentiably."""
        return self.free and not (self.observed or self.enumerated or self.reparameterized)

    @property
    def is_latent(self) -> bool:
        """True for a model's site that is a drawn latent: not data, computed or summed out."""
        return not (self.observed or self.enumerated or self.fn is None)

    @property
    def is_data(self) -> bool:
        """True for an observation, and for a factor of summed-out latents and data."""
        return self.observed and (self.free or self.fn is None)

    @property
    def is_computed(self) -> bool:
        """True for a `pyro.deterministic`."""
        return self.observed and not self.free and type(self.fn).__name__ != "Unit"

    def values(self, particles: int, nesting: int) -> tuple[Tensor, Axes]:
        """The value as (K, *plates, *event), and the plate's name for each axis after K."""
        value = torch.as_tensor(self.value)
        event = getattr(self.fn, "event_dim", 0)
        if self.is_computed:  # pyro.deterministic calls all of its axes event
            drawn = particles > 1 and value.dim() > nesting and len(value) == particles
            batch = nesting + 1 if drawn else max((-p.dim for p in self.plates), default=0)
            event = max(0, value.dim() - batch)
        return by_plate(value, event, self.plates, particles, nesting)

    def pointwise(self, particles: int, nesting: int) -> tuple[Tensor, Axes]:
        """`log_prob` as (K, *plates), and the plate's name for each axis after K.

        With one more axis for the times of a hidden Markov model, each given those before it.
        """
        in_time = log_prob_in_time(self.fn, self.value) if self.mask is None else None
        if in_time is None:
            return by_plate(self.log_prob, 0, self.plates, particles, nesting)
        tensor, axes = by_plate(in_time, 1, self.plates, particles, nesting)
        if self.fn.event_dim > 1:
            axes[-1] = f"{self.name}_dim_0"  # as in the other groups
        return tensor, axes

    def sum_to(self, plates: Iterable[Plate]) -> Tensor:
        """`user_scale * log_prob`, summed (with N/B) over all plates but these: (K, *plates)."""
        keep = {p.name for p in plates}
        out = self.log_prob * self.user_scale
        for p in self.plates:
            if p.name not in keep:
                out = out.sum(p.dim, keepdim=True) * p.scale
        return out

    def total(self) -> Tensor:
        """Summed over all plates, scaled, averaged over particles: a scalar."""
        return (self.log_prob * self.scale).sum() / len(self.log_prob)

    def having(self, **changes: Any) -> Term:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)


@dataclass
class LogWeights:
    """The log densities of one run of guide and model, site by site.

    Attributes:
        model: name -> Term, log p of every sample site (marginalised discrete ones are gone, their
            factor is called "marginal:" and their names).
        guide: name -> Term, log q of every sample site.
        particles: K.
        nesting: number of plate dimensions, so that every `log_prob` has 1 + nesting dimensions.
        resample: runs the guide again at the drawn values; its terms, `fixed`.
        extras: name -> a named term that an estimator adds to its bound, nats, a scalar.
        way: how the draws were made together.
        averages: running means of baselines, where no pair is bound that holds them.
        others: further runs of the pair that an estimator needs beside this one.
    """

    model: dict[str, Term]
    guide: dict[str, Term]
    particles: int
    nesting: int
    resample: Callable[[], dict[str, Term]] = field(repr=False)
    extras: dict[str, Tensor] = field(default_factory=dict)
    way: str = "plate"
    averages: dict[str, Tensor] = field(default_factory=dict, repr=False)
    others: dict[str, LogWeights] = field(default_factory=dict, repr=False)

    def terms(self) -> Iterator[tuple[int, Term]]:
        """Every term with its sign: + for the model, - for the guide."""
        for t in self.model.values():
            yield 1, t
        for t in self.guide.values():
            yield -1, t

    @property
    def plates(self) -> tuple[Plate, ...]:
        """The plates that every site shares: between their elements, weights are independent."""
        sites = [t.plates for _, t in self.terms() if not t.deterministic]
        shared = set.intersection(*({p.name for p in plates} for plates in sites or [()]))
        return tuple(p for p in (sites or [()])[0] if p.name in shared)

    @property
    def scale(self) -> float:
        """N/B of the shared plates."""
        return math.prod(p.scale for p in self.plates)

    @property
    def data_size(self) -> float:
        """N: the number of elements of the shared plates, those not in the batch included."""
        return math.prod(p.size * p.scale for p in self.plates)

    def log_p(self) -> Tensor:
        """log p(x, z) per particle and element of the shared plates: (K, *shared), unscaled."""
        return self.shared_sum(self.model)

    def log_q(self) -> Tensor:
        """log q(z | x) per particle and element of the shared plates: (K, *shared), unscaled."""
        return self.shared_sum(self.guide)

    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z | x): (K, *shared), unscaled by N/B of the shared plates."""
        return self.log_p() - self.log_q()

    def total(self, per_datum: Tensor) -> Tensor:
        """Sum over the shared plates, times N/B: (K, *shared) -> (K,), (*shared) -> ()."""
        lead = per_datum.dim() - self.nesting
        return per_datum.flatten(lead).sum(-1) * self.scale if self.nesting else per_datum

    def elbo(self) -> Tensor:
        """log p - log q per particle, summed over data and scaled: (K,)."""
        return self.total(self.log_weight())

    def shared_sum(self, terms: Mapping[str, Term]) -> Tensor:
        """Sum terms over the plates that not all sites share, scaled: (K, *shared)."""
        shared = self.plates
        parts = [t.sum_to(shared) for t in terms.values()]
        whole = (self.particles, *(1,) * self.nesting)
        shape = torch.broadcast_shapes(whole, *(p.shape for p in parts))
        if not parts:
            return next((t.log_prob for _, t in self.terms()), torch.zeros(())).new_zeros(shape)
        return functools.reduce(torch.add, parts).expand(shape)

    def refuse_subsampled_joint(self, who: str) -> None:
        """Raise ValueError where a multi-sample bound would put N/B inside its logarithm."""
        shared = {p.name for p in self.plates}
        for _, t in self.terms():
            if t.looped != 1:
                raise ValueError(
                    f"{who}: site {t.name!r} lies in a subsampled plate that is a Python loop, so "
                    "the weights are joint over its elements and the bound of a mini-batch is "
                    "biased. Write the plate as `with pyro.plate(...)`, or use Trace()."
                )
            for p in t.plates:
                if p.scale != 1 and p.name not in shared:
                    around = {s.name: {q.name for q in s.plates} for _, s in self.terms()}
                    outside = [name for name in sorted(around) if p.name not in around[name]]
                    raise ValueError(
                        f"{who}: {', '.join(outside)} lies outside the subsampled "
                        f"plate {p.name!r}, so the weights are joint over all data and the bound "
                        "of a mini-batch is biased. Use the full data (batch_size=None) or Trace()."
                    )

    def refuse_unfactorised(self, who: str) -> None:
        """Raise ValueError where KL(q(z_i | .) || p(z_i | .)) in closed form would be wrong.

        p(z_i | .) must depend on nothing that the guide draws after z_i.
        """
        latents = [n for n, t in self.model.items() if not t.observed]
        missing = [n for n in latents if n not in self.guide]
        if missing:
            raise ValueError(
                f"{who}: the guide has no site {', '.join(missing)}; give it one, or use Trace()."
            )
        order = [n for n in self.guide if n in latents]
        if order != latents:
            raise ValueError(
                f"{who}: the model draws {latents} and the guide {order}; the closed-form "
                "divergence needs one order (the prior of a latent must not depend on a latent "
                "that the guide draws later). Use Trace()."
            )

    def fixed(self) -> LogWeights:
        """The same weights with log q taken at the drawn values as constants.

        Its gradient is the score of the guide: subtracting it from the total derivative leaves
        the path derivative (Roeder et al. 2017, arXiv:1703.09194, eq. 5). Sites that are computed
        from others, or averaged exactly, have no score: their terms are constants.
        """
        return dataclasses.replace(self, guide=self.resample())

    def at_constants(self, who: str) -> LogWeights:
        """`fixed`, for estimators that need log q(z) as a function of the parameters at a fixed z.

        No site of the result counts as reparameterised: all need the score function.

        Raises:
            ValueError: a guide site is computed from parameters, so that its density at a fixed
                value cannot be had; or it was averaged exactly.
        """
        weights = self.fixed()
        for term in weights.guide.values():
            if term.enumerated or term.averaged:
                raise ValueError(
                    f"{who}: guide site {term.name!r} is averaged exactly (enumerated), and this "
                    "estimator needs draws. Remove its infer={'enumerate': ...}, or take the site "
                    "out of the guide, and it is summed out of the model."
                )
            if not term.free and torch.is_tensor(term.value) and term.value.requires_grad:
                raise ValueError(
                    f"{who}: guide site {term.name!r} is a Delta whose value depends on parameters "
                    "directly, so the guide has no density at a fixed value. Draw the site itself "
                    "(a TransformedDistribution), or use Trace() or IWAE()."
                )
        guide = {n: t.having(reparameterized=False) for n, t in weights.guide.items()}
        return dataclasses.replace(weights, guide=guide)


def by_plate(
    tensor: Tensor, event: int, plates: Iterable[Plate], particles: int, nesting: int
) -> tuple[Tensor, Axes]:
    """A site's tensor with one axis for each plate that the site is in, and their names.

    Args:
        tensor: batch axes that broadcast to (K, *nesting), then `event` event axes.

    Returns:
        (K, *plates, *event), and a name or None for each axis after K, outermost plate first.
    """
    tensor = tensor[(None,) * (nesting + 1 + event - tensor.dim())]
    plate = {nesting + 1 + p.dim: p for p in plates}
    target, names, drop = list(tensor.shape), [], []
    target[0] = particles
    for axis in range(1, nesting + 1):
        if axis in plate:
            target[axis] = plate[axis].size
        elif target[axis] == 1:
            drop.append(axis)
            continue
        names.append(plate[axis].name if axis in plate else None)
    return tensor.expand(target).squeeze(drop), names + [None] * event
