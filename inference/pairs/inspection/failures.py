"""An exception of a model or a guide, as a finding instead of a traceback."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from .findings import Finding, finding

_OURS = str(Path(__file__).resolve().parents[2])
_CAUSES = {  # finding -> what torch and Pyro say then
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
    error: Exception, half: str, last: str | None, tensors: Mapping[str, Tensor]
) -> Finding:
    """Make a finding of the exception that stopped `half` ("model", "guide") after site `last`.

    `tensors` are the arguments and parameters, named, for mixtures of devices and dtypes.
    """
    text = str(error).partition("\nTrace Shapes")[0].strip() or type(error).__name__
    line = _users_line(error)
    told = {
        "half": half,
        "text": text,
        "line": line,
        "at": f"{line}: {text}" if line else text,
        "raised": f"{type(error).__name__}{f' at {line}' if line else ''}: {text}",
        "reached": f"after reaching site {last!r}" if last else "before its first site",
        **_by_kind(tensors),
    }
    found = ((name, re.search(cause, text)) for name, cause in _CAUSES.items())
    name, match = next((name, match) for name, match in found if match)
    values = {"site": last, **told, **match.groupdict()}
    return finding(name, values.pop("site"), **values)


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of what it says, if it says anything."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160].removesuffix(": ")


def mixtures(tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    """Find more than one device, or more than one floating-point type."""
    if len({t.device for t in tensors.values()}) > 1:
        yield finding("all-devices", **_by_kind(tensors))
    sized = {n: t for n, t in tensors.items() if t.is_floating_point() and t.dim()}
    if len({t.dtype for t in sized.values()}) > 1:
        yield finding("all-dtypes", **_by_kind(sized))


def _users_line(error: Exception) -> str:
    """Return the innermost line of the user's own code: "file.py:12 (the line)"."""
    for f in reversed(traceback.extract_tb(error.__traceback__)):
        if not f.filename.startswith(_OURS) and not re.search("/torch/|/pyro/|<", f.filename):
            return f"{Path(f.filename).name}:{f.lineno}" + (f" ({f.line})" if f.line else "")
    return ""


def _by_kind(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of tensors in words, by device and by floating-point type."""
    of: dict[str, dict[str, list[str]]] = {"devices": {}, "dtypes": {}}
    for name, t in tensors.items():
        of["devices"].setdefault(str(t.device), []).append(name)
        if t.is_floating_point():
            of["dtypes"].setdefault(str(t.dtype).removeprefix("torch."), []).append(name)
    return {
        key: "; ".join(
            f"{kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for kind, names in sorted(kinds.items(), key=lambda group: -len(group[1]))
        )
        for key, kinds in of.items()
    }
