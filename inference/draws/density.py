"""Latents on the real line, and whether log q at a guide's draws is the log of a density."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from ..weights import LogWeights, Term
from ..weights.supports import bounds_of, with_bounds

ROUNDED = 0.5  # nats of rounding, at which weights tell nothing


def unconstrained(term: Term) -> Term | None:
    """The site with its value on the real line; None where its support has no way there."""
    move = to_real(term)
    if move is None:
        return None
    value = move.inv(term.value)
    lost = term.value.dim() - value.dim()  # a matrix can become a vector
    return term.having(value=value, fn=SimpleNamespace(event_dim=term.fn.event_dim - lost))


def to_real(term: Term, ends: Mapping[str, Tensor] | None = None) -> Transform | None:
    """The bijection from the real line to the site's support, where there is one.

    Args:
        ends: of the support, in place of those that it has.
    """
    try:
        support = with_bounds(term.fn.support, ends or {})
        if isinstance(support, MixtureSameFamilyConstraint):
            support = support.base_constraint
        return biject_to(support)
    except NotImplementedError:
        return None


def support_ends(term: Term) -> dict[str, Tensor]:
    """The ends of a site's support that are numbers, of the shape of its value."""
    return {k: torch.broadcast_to(b, term.value.shape) for k, b in bounds_of(term.fn).items()}


def is_discrete(term: Term) -> bool:
    """Tell whether a site's values can be counted."""
    try:
        return bool(term.fn.support.is_discrete)
    except NotImplementedError:
        return False


def missing_density(weights: LogWeights) -> str | None:
    """Why the guide's draws have no density, in words; None where they have one.

    A latent that the guide draws has a density. One that it computes (a Delta) has one only where
    it is a function of at least as many numbers that the guide draws besides the model's latents,
    and where the Delta carries the logarithm of the change of volume: a point mass, or noise made
    outside of Pyro's sites, has none. (A discrete point mass is a distribution.)

    Args:
        weights: of two particles or more, so that what is drawn can be told from what is not.
    """
    latent = {n: t for n, t in weights.model.items() if t.is_latent}
    counted = {n: t for n, t in latent.items() if not _is_masked_out(t, weights.guide.get(n))}
    if latent and not counted:
        return f"the guide has no density for {_names(latent)}"
    made = {
        n: weights.guide[n]
        for n, t in counted.items()
        if n in weights.guide and not weights.guide[n].free and not is_discrete(t)
    }
    if made:
        noise = [
            _draws(t, weights)
            for n, t in weights.guide.items()
            if t.free and not t.observed and n not in latent
        ]
        values = {n: _draws(t, weights) for n, t in made.items()}
        needed = [_draws(unconstrained(latent[n]) or latent[n], weights) for n in made]
        still = [n for n, v in values.items() if _is_still(v)]
        if still:
            return f"the guide gives {_names(still)} as a point, which has no density"
        if sum(v.shape[1] for v in noise) < sum(v.shape[1] for v in needed):
            return f"the guide draws {_names(made)} by noise of its own, without a density"
        pool = torch.cat([v.flatten() for v in noise])
        handed_on = all(bool(torch.isin(v, pool).all()) for v in values.values())
        if not (handed_on or any(bool((t.log_prob != 0).any()) for t in made.values())):
            return f"the guide computes {_names(made)} without the log density of what comes out"
    for name, t in weights.guide.items():
        if not bool(torch.isfinite(t.log_prob).all()):
            return f"log q of site {name!r} is infinite or undefined at some draws"
    return None


def missing_spread(weights: LogWeights) -> str | None:
    """Why the weights cannot tell the guide from the posterior: its draws are all the same."""
    drawn = {
        n: t
        for n, t in weights.guide.items()
        if torch.is_tensor(t.value) and not (t.observed or t.enumerated or _is_masked_out(t))
    }
    if not drawn or any(not _is_still(_draws(t, weights)) for t in drawn.values()):
        return None
    return f"all draws of {_names(drawn)} are the same, so their weights tell nothing"


def lost_digits(weights: LogWeights) -> str | None:
    """Why rounding has eaten the weights, in words: log densities too large for their type."""
    log_p, log_q = weights.log_p(), weights.log_q()
    large = float(torch.stack([log_p.abs().max(), log_q.abs().max()]).nan_to_num(posinf=0.0).max())
    rounding = large * torch.finfo(log_p.dtype).eps
    if not rounding > ROUNDED:
        return None
    kind = str(log_p.dtype).removeprefix("torch.")
    return (
        f"log densities of {large:.1g} nats are rounded to {rounding:.1g} nats in {kind}: leave "
        "out constants, or compute in float64 (torch.set_default_dtype)"
    )


def _draws(term: Term, weights: LogWeights) -> Tensor:
    """A site's draws, flat: a row for each particle, or one where it has no axis of particles."""
    batch = term.value.dim() - getattr(term.fn, "event_dim", 0)
    own = batch > weights.nesting and len(term.value) == weights.particles
    return term.value.detach().reshape(weights.particles if own else 1, -1)


def _is_still(draws: Tensor) -> bool:
    """Tell whether every particle has the same value."""
    return bool((draws == draws[:1]).all())


def _is_masked_out(*terms: Term | None) -> bool:
    """Tell whether the site plays no part in the densities, by `poutine.mask` or `.mask(False)`."""
    return all(
        t is not None and (t.mask is False or getattr(t.fn, "_mask", None) is False) for t in terms
    )


def _names(sites: dict[str, Term] | list[str]) -> str:
    return ", ".join(map(repr, sites))
