"""Latents on the real line, and whether log q at a guide's draws is the log of a density."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from ..weights import LogWeights, Term
from ..weights.simulation import is_latent


@dataclass
class _Line:
    event_dim: int


def unconstrained(term: Term) -> Term | None:
    """The site with its value on the real line; None where its support has no way there."""
    move = to_real(term)
    if move is None:
        return None
    value = move.inv(term.value)
    lost = term.value.dim() - value.dim()  # a matrix can become a vector
    return term.having(value=value, fn=_Line(term.fn.event_dim - lost))


def to_real(term: Term) -> Transform | None:
    """The bijection from the real line to the site's support, where there is one."""
    try:
        support = term.fn.support
        if isinstance(support, MixtureSameFamilyConstraint):
            support = support.base_constraint
        return biject_to(support)
    except NotImplementedError:
        return None


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
    latent = {n: t for n, t in weights.model.items() if is_latent(t)}
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
            t for n, t in weights.guide.items() if t.free and not t.observed and n not in latent
        ]
        drawn, needed = sum(_size(t, weights) for t in noise), 0
        for n in made:
            line = unconstrained(latent[n])
            needed += _size(latent[n] if line is None else line, weights)
        still = [n for n, t in made.items() if _is_still(t, weights.particles)]
        if still:
            return f"the guide gives {_names(still)} as a point, which has no density"
        if drawn < needed:
            return f"the guide draws {_names(made)} by noise of its own, without a density"
        if not _carries_volume(made, noise):
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
    if not drawn or any(not _is_still(t, weights.particles) for t in drawn.values()):
        return None
    return f"all draws of {_names(drawn)} are the same, so their weights tell nothing"


def _is_still(term: Term, particles: int) -> bool:
    """Tell whether every particle has the same value."""
    if term.parts:
        first = term.parts[0].value
        return all(torch.equal(p.value, first) for p in term.parts[1:])
    value = term.value
    event = getattr(term.fn, "event_dim", 0)
    if value.dim() - event < term.log_prob.dim() or len(value) != particles:
        return True  # it has no axis of particles
    return bool((value == value[:1]).all())


def _is_masked_out(*terms: Term | None) -> bool:
    """Tell whether the site plays no part in the densities, by `poutine.mask` or `.mask(False)`."""
    return all(
        t is not None and (t.mask is False or getattr(t.fn, "_mask", None) is False) for t in terms
    )


def _size(term: Term, weights: LogWeights) -> int:
    """Count the numbers in one draw of a site."""
    if term.parts:
        return int(term.parts[0].value.numel())
    event = getattr(term.fn, "event_dim", 0)
    whole = term.value.dim() - event >= 1 + weights.nesting and len(term.value) > 1
    return int(term.value.numel()) // (weights.particles if whole else 1)


def _carries_volume(made: dict[str, Term], noise: list[Term]) -> bool:
    """Tell whether the Deltas have log densities, or hand on the noise as it is."""
    if any(bool((t.log_prob != 0).any()) for t in made.values()):
        return True
    pool = torch.cat([_value(t) for t in noise])
    return all(bool(torch.isin(_value(t), pool).all()) for t in made.values())


def _value(term: Term) -> Tensor:
    return (term.parts[0] if term.parts else term).value.detach().reshape(-1)


def _names(sites: dict[str, Term] | list[str]) -> str:
    return ", ".join(map(repr, sites))
