"""Latents on the real line."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributions import Transform, biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from ..weights import Term


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
