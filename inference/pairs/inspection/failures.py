"""An exception of a model or a guide, as a finding instead of a traceback."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .findings import Finding

_OURS = str(Path(__file__).resolve().parents[2])
_PLATE = re.compile(
    r"Shape mismatch inside plate\('(.+)'\) at site (\S+) dim (-?\d+), (\d+) vs (\d+)"
)
_TWICE = re.compile(r"Multiple (?:sample|observe) sites named '(.+)'")
_BOTH = re.compile(r"(\S+) is already in the trace as a (\w+)")
_DTYPE = re.compile(r"same dtype|expected scalar type|dtype .* but (?:got|expected|found)", re.I)
_DEVICE = re.compile(r"same device|expected device|device type", re.I)
_SHAPES = re.compile(
    r"shapes cannot be multiplied|must match the size of tensor|expand|broadcast|size mismatch|"
    r"invalid for input of size|Sizes of tensors",
    re.I,
)


def explain(
    error: Exception, half: str, last: str | None, tensors: Mapping[str, Tensor]
) -> Finding:
    """Make a finding of the exception that stopped `half` ("model", "guide") after site `last`.

    `tensors` are the arguments and parameters, named, for mixtures of devices and dtypes.
    """
    text = str(error).partition("\nTrace Shapes")[0].strip() or type(error).__name__
    line = users_line(error)
    at = f"{line}: {text}" if line else text

    if m := _PLATE.search(text):
        plate, site, dim, size, got = m.groups()
        return Finding(
            "error", site, f"the {half} does not fit plate {plate!r}",
            f"size {size} (or 1) at dimension {dim}, or no batch dimension there",
            f"size {got} at dimension {dim} ({line})",
            f"give the distribution shape (..., {size}) at that dimension, or declare its own "
            f"dimensions with .to_event(1), or let the plate be of size {got}.",
        )  # fmt: skip
    if m := _TWICE.search(text):
        return Finding(
            "error", m[1], f"the {half} has two sites called {m[1]!r}",
            "a name of its own for each site (plates count: a plate is a site too)",
            f"a second {m[1]!r} at {line}",
            f"rename one; in a loop use an f-string, pyro.sample(f\"{m[1]}_{{i}}\", ...), or a "
            "vectorised plate.",
        )  # fmt: skip
    if m := _BOTH.search(text):
        return Finding(
            "error", m[1], f"the {half} uses {m[1]!r} both as a {m[2]} and as another kind of site",
            "different names for a parameter and a sample site",
            f"{text} ({line})",
            f"rename the parameter, for example pyro.param(\"{m[1]}_loc\", ...).",
        )  # fmt: skip
    if _DEVICE.search(text):
        return Finding(
            "error", last, f"the {half} mixes devices", "all tensors on one device",
            f"{where(tensors)} ({at})",
            "move the module and the data to one device (module.to(x.device)); make constants from "
            "the data (x.new_zeros(...)); an autoguide stays on the device it was first called on: "
            "make it, or call it first, after moving the data.",
        )  # fmt: skip
    if _DTYPE.search(text):
        return Finding(
            "error", last, f"the {half} mixes floating-point types", "one dtype throughout",
            f"{kinds(tensors)} ({at})",
            "x.float(), or module.double(); numpy makes float64 where torch makes float32.",
        )  # fmt: skip
    if "0 positional arguments but" in text or "positional argument" in text:
        return Finding(
            "error", last, f"the {half} is called with the wrong arguments",
            "model and guide take the same arguments", at,
            "give both one signature.",
        )  # fmt: skip
    reached = f"after reaching site {last!r}" if last else "before its first site"
    shapes = bool(_SHAPES.search(text))
    return Finding(
        "error", last, f"the {half} stops {reached}",
        "shapes that fit each other" if shapes else f"the {half} runs to its end",
        f"{type(error).__name__} at {at}" if line else f"{type(error).__name__}: {text}",
        "look at the line named; networks act on the last axis, and batch dimensions come first."
        if shapes else "mend the line named.",
    )  # fmt: skip


def users_line(error: Exception) -> str:
    """Return the innermost line of the user's own code: "file.py:12 (the line)"."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(_OURS)
        and not any(part in f.filename for part in ("/torch/", "/pyro/", "<"))
    ]
    if not frames:
        return ""
    f = frames[-1]
    return f"{Path(f.filename).name}:{f.lineno}" + (f" ({f.line})" if f.line else "")


def where(tensors: Mapping[str, Tensor]) -> str:
    """List the tensors on each device."""
    return _groups((name, str(t.device)) for name, t in tensors.items())


def kinds(tensors: Mapping[str, Tensor]) -> str:
    """List the tensors of each floating-point type."""
    return _groups(
        (name, str(t.dtype).removeprefix("torch."))
        for name, t in tensors.items()
        if t.is_floating_point()
    )


def _groups(pairs: Iterable[tuple[str, Any]]) -> str:
    names: dict[str, list[str]] = {}
    for name, key in pairs:
        names.setdefault(key, []).append(name)
    most = sorted(names.items(), key=lambda group: -len(group[1]))
    return "; ".join(
        f"{key}: {', '.join(of[:3])}{', ...' if len(of) > 3 else ''}" for key, of in most
    )


def mixture(tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    """Find more than one device, or more than one floating-point type."""
    if len({t.device for t in tensors.values()}) > 1:
        yield Finding(
            "error", None, "parameters and data are on different devices",
            "all tensors on one device", where(tensors),
            "move the module and the data to one device: module.to(x.device).",
        )  # fmt: skip
    sized = {n: t for n, t in tensors.items() if t.is_floating_point() and t.dim()}
    if len({t.dtype for t in sized.values()}) > 1:
        yield Finding(
            "warning", None, "parameters and data have different floating-point types",
            "one dtype throughout", kinds(sized),
            "x.float(), or module.double(); numpy makes float64 where torch makes float32.",
        )  # fmt: skip


def named_tensors(args: tuple, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arguments and parameters under the names that findings call them by."""
    out = {f"argument {i}": a for i, a in enumerate(args) if torch.is_tensor(a)}
    return out | {f"parameter {n}": p for n, p in parameters.items()}
