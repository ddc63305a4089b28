"""Compare the support of a guide's distribution with that of the model's latent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from inspect import getattr_static
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import AffineTransform, ComposeTransform, constraints

from .findings import Finding, finding
from .runs import Site, base

# real numbers between two ends; open and closed ends differ by a set of measure zero
_RANGES = (
    *("_Real", "_GreaterThan", "_GreaterThanEq", "_SoftplusPositive"),
    *("_LessThan", "_Interval", "_HalfOpenInterval"),
)
_WHOLE = "_Simplex", "_LowerCholesky", "_PositiveDefinite"  # ranges of several numbers together
_WORDS = {
    ("-inf", "inf"): "real numbers",
    ("0", "inf"): "positive numbers",
    ("0", "1"): "the unit interval",
    "Simplex": "a simplex",
    "LowerCholesky": "lower triangular matrices (lower_cholesky)",
    "PositiveDefinite": "symmetric matrices that are positive definite",
    "Multinomial": "counts that sum to total_count at most",
    "Boolean": "0 or 1",
    "OneHot": "one-hot vectors",
}
_ADVICE = {
    "real numbers": "Normal or StudentT",
    "positive numbers": "LogNormal or Gamma, or a parameter with constraint=constraints.positive",
    "the unit interval": "Beta, or TransformedDistribution(Normal(...), SigmoidTransform()); "
    "for a parameter, constraint=constraints.unit_interval",
    "a simplex": "Dirichlet; for a parameter, constraint=constraints.simplex",
    "lower triangular matrices (lower_cholesky)": "LKJCholesky, or TransformedDistribution("
    "Normal(...).to_event(1), biject_to(support)); for a parameter, "
    "constraint=constraints.lower_cholesky",
}
_UNKNOWN = NotImplementedError, RuntimeError, IndexError, ValueError  # no support, or no shape


def described(constraint: Any) -> dict[str, str]:
    """Return a constraint in words, `mine`, and distributions and constraint for it, `advice`."""
    bounds = _bounds(constraint)
    if bounds is None:
        name = type(_innermost(constraint)).__name__.strip("_")
        words = _WORDS.get(name, name)
        use = "TransformedDistribution(Normal(...).to_event(...), biject_to(support))"
    else:
        low, high = map(_number_text, bounds)
        words = _WORDS.get((low, high), f"the interval ({low}, {high})")
        kind = "greater_than" if high == "inf" else "less_than" if low == "-inf" else "interval"
        ends = ", ".join(end for end in (low, high) if not end.endswith("inf"))
        name = f"constraints.{kind}({ends})"
        use = f"TransformedDistribution(Normal(...), biject_to({name})); for a parameter, {name}"
    return {"mine": words, "advice": _ADVICE.get(words, use)}


def compare(p: Site, q: Site) -> Iterable[Finding]:
    """Compare the supports of a latent in the model (p) and in the guide (q)."""
    try:
        mine, theirs = p.fn.support, q.fn.support
        outside = _outside(mine, q.value)
        discrete = mine.is_discrete, theirs.is_discrete
    except _UNKNOWN:
        return
    told = {"p": p, "q": q, **described(mine)}
    if q.point:
        free = _free_parameter(q.value)
        if outside:
            found = f"a point mass at {range_text(q.value)}"
            yield finding("unreachable", p.name, **told, found=found)
        elif free is not None and told["mine"] != "real numbers":
            yield finding("leaves-support", p.name, **told, name=free)
    elif discrete[0] != discrete[1]:
        whole, hint = "whole numbers", f"use {told['advice']}."
        theirs = whole if discrete[1] else described(theirs)["mine"]
        if discrete[0]:
            told["mine"] = whole
            hint = "draw it from a discrete distribution, or leave it out: it is then summed out "
            hint += "exactly."
        yield finding("other-kind", p.name, **told, theirs=theirs, hint=hint)
    else:
        theirs = _reach(q.fn)
        inside, words = _contains(mine, theirs), described(theirs)["mine"]
        if outside or inside is False:
            yield finding("unreachable", p.name, **told, found=f"{q.family}, over {words}")
        elif inside and _contains(theirs, mine) is False:
            yield finding("unreached", p.name, **told, theirs=words)


def _reach(fn: Any) -> Any:
    """Return the support of a distribution.

    torch takes the codomain of the last transform, which is all real numbers where it is affine.
    """
    fn, bounds = base(fn, through_transforms=False), None
    if hasattr(fn, "transforms"):
        bounds = _bounds(fn.base_dist.support)
    for step in _parts_of(ComposeTransform(list(getattr(fn, "transforms", ())))):
        if isinstance(step, AffineTransform) and bounds is not None:
            ends = [torch.as_tensor(b) * step.scale + step.loc for b in bounds]
            bounds = torch.minimum(*ends), torch.maximum(*ends)
        else:
            bounds = _bounds(step.codomain)
    return fn.support if bounds is None else constraints.interval(*bounds)


def out_of_support(site: Site) -> Iterable[Finding]:
    """Find an observed value that its distribution cannot have made."""
    try:
        support = site.fn.support
        if not _outside(support, site.value):
            return
    except _UNKNOWN:
        return
    told = {"p": site, "span": range_text(site.value), **described(support)}
    inner = _innermost(support)
    if type(inner).__name__ in ("_Boolean", "_IntegerInterval", "_IntegerGreaterThan"):
        boolean = type(inner).__name__ == "_Boolean"
        low = 0 if boolean else inner.lower_bound
        high = 1 if boolean else getattr(inner, "upper_bound", math.inf)
        if bool(((site.value >= low) & (site.value <= high)).all()):
            ends = {"low": _number_text(low), "high": _number_text(high)}
            yield finding("not-whole", site.name, **told, **ends)
            return
    yield finding("outside", site.name, **told)


def invalid_parameters(site: Site) -> Iterable[Finding]:
    """Find a distribution with a parameter out of range, as a negative scale: the first one."""
    for name, value, constraint in arguments_of(site.fn):
        if constraints.is_dependent(constraint):
            continue
        bad, nans = ~constraint.check(value), int((~torch.isfinite(value)).sum())
        if bad.any():
            told: dict[str, Any] = {"name": name, "family": site.family, **described(constraint)}
            told |= {"bad": int(bad.sum()), "all": bad.numel()}
            if nans:
                told["span"] = f"{nans} of them NaN or infinite"
                told["hint"] = "find where the NaN comes from: the data, a log of 0, 0 / 0."
            else:
                told["span"] = range_text(value)
                link = "torch.nn.functional.softplus or exp"
                if told["mine"] == "the unit interval":
                    link = "torch.sigmoid, or give logits="
                told["hint"] = f"pass it through {link}, or use {told['advice']}."
            yield finding("out-of-range", site.name, **told)
            return


def arguments_of(fn: Any) -> list[tuple[str, Tensor, Any]]:
    """List name, value and constraint of the tensors that a distribution is made of."""
    out, fn = [], base(fn)
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        value = vars(fn).get(name)
        if value is None and isinstance(getattr_static(type(fn), name, None), property):
            value = getattr(fn, name)  # Beta's are; a lazy one would be computed
        if torch.is_tensor(value) and not value.is_meta:
            out.append((name, value, constraint))
    return out


def is_interval(constraint: Any) -> bool:
    """Tell whether a set is an interval of the real numbers, element by element."""
    return _bounds(constraint) is not None


def beyond(value: Tensor, constraint: Any) -> bool:
    """Tell whether a finite value lies beyond the ends of an interval, more than rounding does."""
    try:
        bounds = None if constraints.is_dependent(constraint) else _bounds(constraint)
        if bounds is None:
            return False
        low, high = (torch.as_tensor(b).to(value) for b in bounds)
        far = (value < low - 1e-4 * (1 + low.abs())) | (value > high + 1e-4 * (1 + high.abs()))
    except _UNKNOWN:
        return False
    return bool((far & torch.isfinite(value)).any())


def bent(value: Tensor, constraint: Any) -> bool:
    """Tell whether a finite value is no longer a simplex, or a matrix of the kind it must be."""
    kind = type(_innermost(constraint)).__name__
    if kind not in _WHOLE or not bool(torch.isfinite(value).all()):
        return False
    if kind == "_Simplex":  # torch scales it to sum to 1
        return bool((value < -1e-4).any())
    value = value.detach().double()
    little = 1e-4 * float(value.abs().max())
    if kind == "_LowerCholesky":
        upper = value.triu(1).abs().max() > little
        return bool(upper | (value.diagonal(dim1=-2, dim2=-1) < -little).any())
    apart = (value - value.mT).abs().max() > little
    return bool(apart | (torch.linalg.eigvalsh(value) < -10 * little).any())


def varies(value: Any, size: int) -> bool:
    """Tell whether a tensor is not constant along some dimension of that size."""
    if not torch.is_tensor(value):
        return False
    dims = (d for d, n in enumerate(value.shape) if n == size and size > 1)
    return any(bool((value != value.narrow(d, 0, 1)).any()) for d in dims)


def range_text(value: Tensor) -> str:
    """Say between which ends values lie."""
    return f"values in [{float(value.min()):.4g}, {float(value.max()):.4g}]"


def _free_parameter(value: Any) -> str | None:
    """Return the name of the `pyro.param` without a constraint that a value is, if it is one."""
    if not torch.is_tensor(value) or value.is_meta:
        return None
    store, real = pyro.get_param_store(), constraints.real
    for name, tensor in store._params.items():
        if tensor.data_ptr() == value.data_ptr() and store._constraints.get(name, real) is real:
            return name
    return None


def _parts_of(transform: Any) -> Iterable[Any]:
    for part in getattr(transform, "parts", (transform,)):
        yield from _parts_of(part) if hasattr(part, "parts") else (part,)


def _innermost(constraint: Any) -> Any:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _bounds(constraint: Any) -> tuple[Any, Any] | None:
    """Return the ends of an interval; None for other sets."""
    inner = _innermost(constraint)
    if type(inner).__name__ not in _RANGES:
        return None
    return getattr(inner, "lower_bound", -math.inf), getattr(inner, "upper_bound", math.inf)


def _contains(outer: Any, inner: Any) -> bool | None:
    """Return whether one support holds the other; None where they cannot be compared."""
    a, b = _bounds(outer), _bounds(inner)
    if a is not None and b is not None:
        try:
            ends = _at_most(a[0], b[0]), _at_most(b[1], a[1])
            return all(bool(end.all()) for end in ends)
        except RuntimeError:
            return None
    if a is not None:
        return True if a == (-math.inf, math.inf) else None
    if b is not None:
        return False
    return True if type(_innermost(outer)) is type(_innermost(inner)) else None


def _at_most(a: Any, b: Any) -> Tensor:
    """Compare numbers, up to rounding."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return (a <= b) | torch.isclose(a, b.to(a.dtype), rtol=1e-5, atol=0.0)


def _outside(support: Any, value: Any) -> bool:
    if not torch.is_tensor(value) or value.is_meta or not torch.isfinite(value).all():
        return False
    return not bool(support.check(value).all())


def _number_text(bound: Any) -> str:
    bound = torch.as_tensor(bound)
    low, high = float(bound.min()), float(bound.max())
    return f"{low:g}" if low == high else f"{low:g}..{high:g}"
