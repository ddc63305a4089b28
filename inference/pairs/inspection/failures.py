"""Findings made of the exceptions that stop a pair, with the user's line they come from."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ...results.finding import listed
from .findings import Finding, finding
from .lines import line_of

_MATRIX = r"(?i)linalg\.\w*chol|linalg\.inv|not positive[- ]definite|PositiveDefinite\("
_CAUSES = {  # finding -> what torch and Pyro say then
    "plate-sizes": r"subsample_size does not match len\(subsample\), (?P<p>\d+) vs (?P<q>\d+)",
    "matrix": _MATRIX,
    "ragged": r"stack expects each tensor to be equal size|inhomogeneous shape",
    "index": r"(?i)index (?P<index>-?\d+) is out of bounds.* with size (?P<size>\d+)|"
    r"index out of range|indices should be",
    "as-number": r"(?i)cannot be converted to Scalar|only one element tensors|only integer tensors "
    r"of a single element|Boolean value of Tensor with more than one|only length-1 arrays",
    "torch-distribution": r"'(?P<family>\w+)' object has no attribute '(?:has_enumerate_support|"
    r"shape|__call__|mask|expand_by|to_event)'|'(?P<called>\w+)' object is not callable",
    "autoguide-discrete": r"(?i)cannot transform (?:integer|discrete|boolean|\w*) ?constraints|"
    r"No transform registered|biject_to.*(?:integer|boolean)",
    "misfit": r"Shape mismatch inside plate\('(?P<plate>.+)'\) at site (?P<site>\S+) "
    r"dim (?P<dim>-?\d+), (?P<size>\d+) vs (?P<got>\d+)",
    "twice": r"Multiple (?:sample|observe) sites named '(?P<site>.+)'",
    "both-kinds": r"(?P<site>\S+) is already in the trace as a (?P<kind>\w+)",
    "devices": r"(?i)same device|expected device|device type",
    "dtypes": r"(?i)same dtype|expected scalar type|dtype .* but (?:got|expected|found)",
    "wrong-call": r"positional argument",
    "stops-at-shapes": r"(?i)shapes cannot be multiplied|must match the size of tensor|expand|"
    r"broadcast|size mismatch|invalid for input of size|Sizes of tensors",
    "stops": r"",
}


def explain(
    error: Exception,
    half: str,
    last: str | None,
    tensors: Mapping[str, Tensor],
    line: str | None = None,
    plates: Container[str] = (),
) -> Finding:
    """Make a finding of the exception that stopped `half` ("model", "guide") after site `last`.

    `tensors` are the arguments and parameters, named, for mixtures of devices and dtypes; `line`
    is that of the site, for an exception that went through none of the user's; `plates` are those
    that it made.
    """
    text = str(error).partition("Trace Shapes:")[0].strip() or type(error).__name__
    line = line_of(error) or line
    reached = f"after reaching site {last!r}" if last else "before its first site"
    at = f" at {line}" if line else ""
    mend = f"mend {line}." if line else f"look at what the {half} does {reached}."
    found = ((name, re.search(cause, text)) for name, cause in _CAUSES.items())
    name, match = next((name, match) for name, match in found if match)
    if name == "twice" and match and match["site"] in plates:
        name = "plate-twice"
    raised = f"{type(error).__name__}{at}: {text}"
    values = {"site": last, "half": half, "at": at, "raised": raised, "reached": reached}
    values["mend"] = mend
    if name == "matrix":
        values["raised"] = f"{text.splitlines()[0][:160]}{at}"
        values |= {"dtype": _kind(), "finer": _finer()}
    values |= {**_by_kind(tensors), **match.groupdict()}
    if name == "index" and match["index"] is not None and match["index"] == match["size"]:
        values["mend"] = f"count from 0: subtract 1 where groups are 1 to {match['size']}."
    return finding(name, values.pop("site"), **values)


def unfactorised(error: BaseException) -> str | None:
    """Say which matrix has no Cholesky factor and what helps; None for any other error."""
    if not isinstance(error, RuntimeError | ValueError) or not re.search(_MATRIX, str(error)):
        return None
    line = line_of(error)
    return (
        f"a matrix is not positive definite in {_kind()}{f' at {line}' if line else ''}: expected "
        f"one that has a Cholesky factor, got {str(error).splitlines()[0][:100]}. Mend: {_finer()}"
    )


@contextmanager
def factorising(who: str) -> Iterator[None]:
    """Raise ValueError, in words, where a matrix has no Cholesky factor inside."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if (words := unfactorised(error)) is None:
            raise
        raise ValueError(f"{who}: {words}") from error


def _kind() -> str:
    return str(torch.get_default_dtype()).removeprefix("torch.")


def _finer() -> str:
    """Say what gives a matrix a Cholesky factor."""
    ridge = "add a little to its diagonal, 1e-6 * torch.eye(n)"
    if torch.get_default_dtype() == torch.float64:
        return f"{ridge}, or look for rows of the data that are the same."
    return (
        "use float64, torch.set_default_dtype(torch.float64) and y.double() for the data; if that "
        f"is not enough, {ridge}."
    )


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of what it says, if it says anything."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160].removesuffix(": ")


def mixtures(tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    """Find more than one device, or more than one floating-point type."""
    if len({t.device for t in tensors.values()}) > 1:
        yield finding("devices", half="pair", raised="at the start", **_by_kind(tensors))
    sized = {n: t for n, t in tensors.items() if t.is_floating_point() and t.dim()}
    if len({t.dtype for t in sized.values()}) > 1:
        more = {"half": "pair", "raised": "at the start", **_by_kind(sized)}
        yield finding("dtypes", level="warning", **more)


def _by_kind(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of tensors in words, by device and by floating-point type."""
    out = {}
    for key, kind in (("devices", "device"), ("dtypes", "dtype")):
        named: dict[str, list[str]] = {}
        for name, t in tensors.items():
            if kind == "device" or t.is_floating_point():
                named.setdefault(str(getattr(t, kind)).removeprefix("torch."), []).append(name)
        groups = sorted(named.items(), key=lambda group: -len(group[1]))
        out[key] = "; ".join(f"{of}: {listed(names, 3)}" for of, names in groups)
    return out
