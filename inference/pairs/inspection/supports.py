"""Compare the support of a guide's distribution with that of the model's latent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import AffineTransform, ComposeTransform, constraints

from .findings import Finding
from .record import Site, base

_RANGES = {  # open and closed ends differ by a set of measure zero
    "_Real": lambda c: (-math.inf, math.inf),
    "_GreaterThan": lambda c: (c.lower_bound, math.inf),
    "_GreaterThanEq": lambda c: (c.lower_bound, math.inf),
    "_SoftplusPositive": lambda c: (0.0, math.inf),
    "_LessThan": lambda c: (-math.inf, c.upper_bound),
    "_Interval": lambda c: (c.lower_bound, c.upper_bound),
    "_UnitInterval": lambda c: (0.0, 1.0),
    "_HalfOpenInterval": lambda c: (c.lower_bound, c.upper_bound),
}
_ADVICE = {
    "positive": "LogNormal or Gamma, or a parameter with constraint=constraints.positive",
    "unit interval": "Beta, or TransformedDistribution(Normal(...), SigmoidTransform()); "
    "for a parameter, constraint=constraints.unit_interval",
    "simplex": "Dirichlet; for a parameter, constraint=constraints.simplex",
    "lower Cholesky": "LKJCholesky, or TransformedDistribution(Normal(...).to_event(1), "
    "biject_to(support)); for a parameter, constraint=constraints.lower_cholesky",
}


def describe(constraint: Any) -> str:
    """Say a constraint in words."""
    bounds = _bounds(constraint)
    if bounds is not None:
        low, high = (_number_text(b) for b in bounds)
        if (low, high) == ("-inf", "inf"):
            return "real numbers"
        if (low, high) == ("0", "inf"):
            return "positive numbers"
        if (low, high) == ("0", "1"):
            return "the unit interval"
        return f"the interval ({low}, {high})"
    name = type(_innermost(constraint)).__name__.strip("_")
    words = {"Simplex": "a simplex", "Boolean": "0 or 1", "OneHot": "one-hot vectors"}
    return words.get(name, name)


def compare(p: Site, q: Site) -> Iterable[Finding]:
    """Compare the supports of a latent in the model (p) and in the guide (q)."""
    try:
        mine, theirs = p.fn.support, q.fn.support
        outside = _outside(mine, q.value)
        kinds = mine.is_discrete, theirs.is_discrete
    except (NotImplementedError, RuntimeError, IndexError, ValueError):
        return  # no support is declared, or the shapes already differ
    if q.point:
        if outside:
            yield _unreachable(p, q, mine, f"a point mass at {_range_text(q.value)}")
        return
    if kinds[0] != kinds[1]:
        yield Finding(
            "error", p.name, "the guide draws from another kind of set than the model",
            f"{p.family}, over {'whole numbers' if kinds[0] else describe(mine)}",
            f"{q.family}, over {'whole numbers' if kinds[1] else describe(theirs)}",
            "draw it from a discrete distribution, or leave it out: it is then summed out exactly."
            if kinds[0] else f"use {advice(mine)}.",
        )  # fmt: skip
        return
    theirs = reach(q.fn)
    inside = _contains(mine, theirs)
    if outside or inside is False:
        yield _unreachable(p, q, mine, f"{q.family}, over {describe(theirs)}")
    elif inside and _contains(theirs, mine) is False:
        yield Finding(
            "warning", p.name, "the guide cannot reach all that the model allows",
            f"{p.family}, over {describe(mine)}", f"{q.family}, over {describe(theirs)}",
            f"if the posterior may lie outside, use {advice(mine)}.",
        )  # fmt: skip


def reach(fn: Any) -> Any:
    """Return the support of a distribution.

    torch takes the codomain of the last transform, which is all real numbers where it is affine.
    """
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    steps = ComposeTransform(list(getattr(fn, "transforms", ())))
    bounds = None
    for step in _parts_of(steps):
        if isinstance(step, AffineTransform) and bounds is not None:
            ends = [torch.as_tensor(b) * step.scale + step.loc for b in bounds]
            bounds = torch.minimum(*ends), torch.maximum(*ends)
        else:
            bounds = _bounds(step.codomain)
    return fn.support if bounds is None else constraints.interval(*bounds)


def _parts_of(transform: Any) -> Iterable[Any]:
    for part in getattr(transform, "parts", (transform,)):
        yield from _parts_of(part) if hasattr(part, "parts") else (part,)


def advice(constraint: Any) -> str:
    """Name distributions and the constraint for a support."""
    text = describe(constraint)
    for key, value in _ADVICE.items():
        if key.replace(" ", "").lower() in text.replace(" ", "").lower():
            return value
    bounds = _bounds(constraint)
    if text == "real numbers":
        return "Normal or StudentT"
    if bounds is not None:
        low, high = (_number_text(b) for b in bounds)
        name = f"constraints.interval({low}, {high})"
        name = f"constraints.greater_than({low})" if high == "inf" else name
        name = f"constraints.less_than({high})" if low == "-inf" else name
        return f"TransformedDistribution(Normal(...), biject_to({name})); for a parameter, {name}"
    return "TransformedDistribution(Normal(...).to_event(...), biject_to(support))"


def out_of_support(site: Site) -> Iterable[Finding]:
    """Find an observed value that its distribution cannot have made."""
    try:
        support = site.fn.support
        outside = _outside(support, site.value)
    except (NotImplementedError, RuntimeError, IndexError, ValueError):
        return
    if not outside:
        return
    span = _whole_span(support)
    value = site.value
    if span and bool(((value >= span[0]) & (value <= span[1])).all()):
        yield Finding(
            "warning", site.name, "the data are not whole numbers",
            f"{site.family}, over whole numbers from {_number_text(span[0])} to "
            f"{_number_text(span[1])}",
            _range_text(value),
            "the value is then a loss, not a log density: binarise or round the data for nats.",
        )  # fmt: skip
        return
    yield Finding(
        "error", site.name, "the data lie outside what the model can make",
        f"{site.family}, over {describe(support)}", _range_text(value),
        "rescale or clean the data, or choose another likelihood.",
    )  # fmt: skip


def unconstrained_points(p: Site, q: Site, free: dict[int, str]) -> Iterable[Finding]:
    """Find a point mass at an unconstrained parameter, for a latent that is constrained.

    `free` maps the storage of every unconstrained `pyro.param` of the guide to its name.
    """
    if (
        not q.point
        or not torch.is_tensor(q.value)
        or q.value.is_meta
        or describe(p.fn.support) == "real numbers"
    ):
        return
    name = free.get(q.value.data_ptr())
    if name is not None and _bounds(p.fn.support) != (-math.inf, math.inf):
        yield Finding(
            "warning", p.name, f"the point mass at parameter {name!r} may leave the support",
            f"a parameter that stays in {describe(p.fn.support)}", "a parameter without constraint",
            f"use {advice(p.fn.support)}.",
        )  # fmt: skip


def _unreachable(p: Site, q: Site, mine: Any, found: str) -> Finding:
    return Finding(
        "error", p.name, "the guide draws values that the model cannot have",
        f"{p.family}, over {describe(mine)}", found, f"use {advice(mine)}.",
    )  # fmt: skip


def _innermost(constraint: Any) -> Any:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _bounds(constraint: Any) -> tuple[Any, Any] | None:
    inner = _innermost(constraint)
    get = _RANGES.get(type(inner).__name__)
    return None if get is None else get(inner)


def _contains(outer: Any, inner: Any) -> bool | None:
    """Return whether one support holds the other; None where they cannot be compared."""
    a, b = _bounds(outer), _bounds(inner)
    if a is not None and b is not None:
        try:
            low = torch.as_tensor(a[0]) <= torch.as_tensor(b[0])
            high = torch.as_tensor(b[1]) <= torch.as_tensor(a[1])
            return bool(low.all() and high.all())
        except RuntimeError:
            return None
    if a is not None:
        return True if a == (-math.inf, math.inf) else None
    if b is not None:
        return False
    return True if type(_innermost(outer)) is type(_innermost(inner)) else None


def _outside(support: Any, value: Any) -> bool:
    if not torch.is_tensor(value) or value.is_meta or not torch.isfinite(value).all():
        return False
    return not bool(support.check(value).all())


def _whole_span(support: Any) -> tuple[Any, Any] | None:
    """Return smallest and largest value of a set of whole numbers."""
    inner = _innermost(support)
    if type(inner).__name__ == "_Boolean":
        return 0.0, 1.0
    if type(inner).__name__ == "_IntegerInterval":
        return inner.lower_bound, inner.upper_bound
    if type(inner).__name__ == "_IntegerGreaterThan":
        return inner.lower_bound, math.inf
    return None


def _number_text(bound: Any) -> str:
    if isinstance(bound, Tensor):
        if bound.numel() > 1 and not bool((bound == bound.flatten()[0]).all()):
            return f"{float(bound.min()):g}..{float(bound.max()):g}"
        bound = float(bound.flatten()[0])
    return f"{bound:g}"


def _range_text(value: Tensor) -> str:
    return f"values in [{float(value.min()):.4g}, {float(value.max()):.4g}]"


def invalid_parameters(site: Site) -> Iterable[Finding]:
    """Find distributions whose parameters are out of range, as a negative scale."""
    fn = base(site.fn)
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        if constraints.is_dependent(constraint) or name not in fn.__dict__:
            continue
        value = fn.__dict__[name]
        if not torch.is_tensor(value) or value.is_meta:
            continue
        bad = ~constraint.check(value)
        if not bad.any():
            continue
        spread = value.detach()
        nans = int((~torch.isfinite(spread)).sum())
        found = f"{int(bad.sum())} of {bad.numel()} out of range, "
        found += f"{nans} of them NaN or infinite" if nans else f"{_range_text(spread)}"
        yield Finding(
            "error", site.name, f"{name} of {site.family} is out of range",
            describe(constraint), found,
            f"pass it through torch.nn.functional.softplus or exp, or use {advice(constraint)}."
            if not nans else "find where the NaN comes from: the data, a log of 0, 0 / 0.",
        )  # fmt: skip
        return
