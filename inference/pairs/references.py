"""Follow what the code of a function refers to: closures, globals, owners of methods."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

from torch import Tensor, nn

LIBRARIES = ("torch", "pyro", "numpy", "builtins", "functools", "inference")
DEPTH, MANY = 4, 5_000  # how far references are followed, and how many of them


def referred(*functions: Any) -> dict[str, nn.Module | Tensor]:
    """Return name -> every module and tensor that the functions' code can reach.

    Follows closures, globals that the code names, attributes of the owner of a method, containers
    and the users' own helper functions.
    """
    found: dict[str, nn.Module | Tensor] = {}
    seen: set[int] = set()

    def visit(obj: Any, name: str, depth: int) -> None:
        if depth < 0 or id(obj) in seen or len(seen) > MANY:
            return
        if isinstance(obj, (types.ModuleType, type, str, int, float)):
            return
        seen.add(id(obj))
        if isinstance(obj, (nn.Module, Tensor)):
            found.setdefault(name, obj)
            if isinstance(obj, nn.Module) and not _of_a_library(type(obj)):
                visit(type(obj).forward, name, depth - 1)
        elif isinstance(obj, functools.partial):
            for part in (obj.func, *obj.args, *obj.keywords.values()):
                visit(part, name, depth)
        elif isinstance(obj, dict):
            for key, value in obj.items():
                visit(value, f"{name}[{key!r}]", depth - 1)
        elif isinstance(obj, (list, tuple, set)):
            for i, value in enumerate(obj):
                visit(value, f"{name}[{i}]", depth - 1)
        elif inspect.ismethod(obj):
            visit(obj.__self__, _name(obj.__self__), depth)
            visit(obj.__func__, name, depth)
        elif inspect.isfunction(obj):
            inner = getattr(obj, "__wrapped__", None)
            if inner is not None:
                visit(inner, name, depth)
            if not _of_a_library(obj):
                for key, value in _variables(obj).items():
                    visit(value, key, depth - 1)
        elif hasattr(obj, "func"):  # what Pyro's handlers make of a function
            visit(obj.func, name, depth)
        elif hasattr(obj, "__dict__") and not _of_a_library(type(obj)):
            for key, value in vars(obj).items():
                visit(value, f"{name}.{key}", depth - 1)

    for function in functions:
        visit(function, _name(function), DEPTH)
    return found


def _variables(function: Any) -> dict[str, Any]:
    """Return the globals and closure variables that a function's code names."""
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # a variable of the closure has no value yet
        return {}
    return {**found.globals, **found.nonlocals}


def _name(obj: Any) -> str:
    return getattr(obj, "__name__", None) or type(obj).__name__


def _of_a_library(obj: Any) -> bool:
    return (getattr(obj, "__module__", None) or "").partition(".")[0] in LIBRARIES
