"""What a fitted pair says in a chunk of draws, as arrays with named axes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from ..pairs.gate import CheckedPair
from ..weights import LogWeights, Term
from ..weights.simulate import (
    by_plate,
    is_computed,
    is_data,
    is_latent,
    pointwise,
    values,
)

GROUPS = (
    "posterior", "unconstrained_posterior", "log_likelihood", "log_prior", "posterior_predictive",
    "prior", "prior_predictive", "sample_stats",
)  # fmt: skip
DENSITIES = ("log_likelihood", "log_prior", "sample_stats")  # in float64: they are exponentiated
RESERVED = ("chain", "draw", "sample")  # axes that mean something to ArviZ


@dataclass
class Variable:
    """An array, the names of its axes, and labels along some of them."""

    array: np.ndarray
    dims: tuple[str, ...]
    labels: dict[str, np.ndarray] = field(default_factory=dict)


Block = dict[str, dict[str, Variable]]  # group -> name -> variable, axes (draw, *plates, *event)


def block(
    chain: CheckedPair,
    draws: int,
    groups: Sequence[str] = GROUPS,
    given: Mapping[str, Tensor] | None = None,
) -> Block:
    """Draws from the guide (or the `given` values) and all that the pair says about them.

    To be called inside `chain.ready(seed)`.
    """
    if chain.vectorized or draws == 1:
        return _said(chain, chain.weights(draws, given), groups)
    one_by_one = replace(chain, vectorized=True)
    parts = [
        block(one_by_one, 1, groups, given and {n: v[i] for n, v in given.items()})
        for i in range(draws)
    ]
    return {
        g: {
            n: Variable(np.concatenate([p[g][n].array for p in parts]), v.dims)
            for n, v in parts[0][g].items()
        }
        for g in groups
    }


def _said(chain: CheckedPair, weights: LogWeights, groups: Sequence[str]) -> Block:
    k, nesting = weights.particles, weights.nesting
    latent = {n: t for n, t in weights.model.items() if is_latent(t)}
    computed = {n: t for n, t in weights.model.items() if is_computed(t)}
    out: Block = {g: {} for g in groups}

    def put(group: str, name: str, tensor: Tensor, axes: Sequence[str | None]) -> None:
        if group in out:
            if group in DENSITIES:
                tensor = tensor.double()
            out[group][name] = Variable(_numpy(tensor), _dims(name, axes))

    for name, term in {**latent, **computed}.items():
        put("posterior", name, *values(term, k, nesting))
    for name, term in latent.items():
        put("log_prior", name, *pointwise(term, k, nesting))
        if "unconstrained_posterior" in out and (free := unconstrained(term)) is not None:
            put("unconstrained_posterior", name, *values(free, k, nesting))
    for name, term in _likelihood(chain, weights).items():
        put("log_likelihood", name, *pointwise(term, k, nesting))
    put("sample_stats", "log_p", weights.total(weights.log_p()), [])
    put("sample_stats", "log_q", weights.total(weights.log_q()), [])
    log_weight = by_plate(weights.log_weight(), 0, weights.plates, k, nesting)
    put("sample_stats", "log_weight", *log_weight)
    if "posterior_predictive" in out:
        terms, data = chain.simulate(k, {n: t.value for n, t in latent.items()})
        for name in data:
            put("posterior_predictive", name, *values(_counted(terms[name]), k, nesting))
    if "prior" in out or "prior_predictive" in out:
        terms, data = chain.simulate(k)
        for name in data:
            put("prior_predictive", name, *values(_counted(terms[name]), k, nesting))
        for name in (*latent, *computed):
            put("prior", name, *values(terms[name], k, nesting))
    return out


def _likelihood(chain: CheckedPair, weights: LogWeights) -> dict[str, Term]:
    """log p of the observations, those summed over discrete latents under their own names."""
    out = {n: t for n, t in weights.model.items() if is_data(t)}
    summed = {n: t for n, t in out.items() if t.fn is None}
    if summed:
        data = chain.simulate(1)[1]
        for label, term in summed.items():
            names = [n for n in term.sites if n in data]
            if len(names) == 1 and names[0] not in out:
                out[names[0]] = out.pop(label)
    return out


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


@dataclass
class _Line:
    event_dim: int


def observations(chain: CheckedPair) -> tuple[dict[str, Variable], dict[str, Variable]]:
    """What the pair observes, and the other tensors among its arguments, by name."""
    terms, data = chain.simulate(1)
    observed = {}
    for name, value in data.items():
        tensor, axes = values(_counted(terms[name].having(value=value)), 1, chain.nesting)
        observed[name] = Variable(_numpy(tensor)[0], _dims(name, axes))
    plates = {p.size: p.name for t in terms.values() for p in t.plates}
    constant = {}
    for name, a in zip(inspect.signature(chain.model).parameters, chain.args):
        if torch.is_tensor(a) and not any(_same(a, v) for v in data.values()):
            axes = [plates.get(n) if i == 0 else None for i, n in enumerate(a.shape)]
            constant[name] = Variable(_numpy(a), _dims(name, axes))
    return observed, constant


def _same(a: Tensor, b: Any) -> bool:
    return torch.is_tensor(b) and a.data_ptr() == b.data_ptr() and a.shape == b.shape


def is_discrete(term: Term) -> bool:
    """Whether a site's values can be counted."""
    try:
        return bool(term.fn.support.is_discrete)
    except NotImplementedError:
        return False


def _counted(term: Term) -> Term:
    """Whole numbers as integers, so that what reads them knows that they are counts."""
    value = torch.as_tensor(term.value)
    if not is_discrete(term) or not value.is_floating_point() or not (value == value.round()).all():
        return term
    return term.having(value=value.to(torch.int64))


def _dims(name: str, axes: Sequence[str | None]) -> tuple[str, ...]:
    """Plate names, and for the other axes the site's: `z_dim`, or `z_dim_0`, `z_dim_1`, …"""
    unnamed = sum(a is None for a in axes)
    own = iter([f"{name}_dim"] if unnamed == 1 else [f"{name}_dim_{i}" for i in range(unnamed)])
    names = [next(own) if a is None else a for a in axes]
    return tuple(f"{n}_plate" if n in RESERVED else n for n in names)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
