"""The halves of a pair, and its arguments: tensors of values that can be used, cut by rows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import _context_wrap
from torch import Tensor, nn


def halves(given: Any, rest: tuple = (), who: str = "") -> tuple[Callable, Callable, tuple, Any]:
    """Return a model, its guide, what follows them, and the run they are of or None.

    Of a run, model and guide are its own modules, without its parameters.

    Raises:
        TypeError: neither a run, nor a pair, nor a model followed by its guide.
    """
    if hasattr(given, "pair_"):
        return given.pair_.model, given.pair_.guide, rest, given
    if callable(getattr(given, "model", None)) and callable(getattr(given, "guide", None)):
        return given.model, given.guide, rest, None
    if callable(given) and rest and callable(rest[0]):
        run = getattr(given, "run", given)  # `run.model` and `run.guide` know their run
        same = getattr(rest[0], "run", None) is run
        if same and hasattr(run, "pair_"):
            return run.pair_.model, run.pair_.guide, rest[1:], run
        return given, rest[0], rest[1:], None
    say = f"{who}: " if who else ""
    if callable(getattr(given, "model", None)) and not hasattr(given, "guide"):
        raise TypeError(
            f"{say}{type(given).__name__} has no guide. A generator without a density is fitted "
            "against a critic, by inference.ratios.fit_adversarial; for a guide made from the "
            "model, see inference.make_guide."
        )
    raise TypeError(
        f"{say}expected a run, a pair with methods `model` and `guide`, or a model followed by "
        f"its guide; got {type(given).__name__}."
    )


def checked_arguments(model: Callable, data: Any, name: str = "data") -> tuple:
    """Return one tuple of arguments that hold values and that the model can be called with.

    Raises:
        TypeError: too few or too many of them (the message shows the signature); and as
            `as_arguments`.
        ValueError: as `as_arguments` and `check_values`.
    """
    args = check_values(as_arguments(data, name), name)
    if (why := misfit(model, args, {})) is not None:
        raise TypeError(
            f"{name}: the model takes {why[0]}, got {len(args)} argument{'s' * (len(args) != 1)}: "
            f"{why[1]}. Pass all of them, as one tuple."
        )
    return args


def as_arguments(data: Any, name: str = "data") -> tuple:
    """Return one tuple of arguments; arrays and data frames become tensors.

    Args:
        data: a tensor, an array, a data frame, or a tuple of arguments (of any types).
        name: of them, in errors.

    Raises:
        TypeError: anything else, or a set with splits, of which one must be named.
        ValueError: a data frame with columns that are not numbers.
    """
    args = data if isinstance(data, tuple) else (data,)
    _refuse_ragged(data, args, name)
    for a in args:
        if hasattr(a, "train") and hasattr(a, "test"):
            raise TypeError(f"{name}: a set with splits was given; say which, as in digits.test.")
    args = tuple(_as_tensor(a, name) for a in args)
    if not isinstance(data, tuple) and not torch.is_tensor(args[0]):
        raise TypeError(
            f"{name}: expected a tensor, an array, a data frame, or a tuple of the pair's "
            f"arguments; got {type(data).__name__}. Wrap it: torch.tensor(x), or (x, y)."
        )
    return args


PADDED = (
    "pad them with zeros, torch.nn.utils.rnn.pad_sequence(x, batch_first=True), pass their lengths "
    "too, and put poutine.mask(mask=times < lengths[:, None]) around what is padded."
)


def _refuse_ragged(data: Any, args: tuple, name: str) -> None:
    """Raise ValueError for sequences of different lengths; an argument may be a list of tensors."""
    listed = isinstance(data, list)
    for i, a in enumerate((data,) if listed else args):
        shapes = {tuple(t.shape) for t in a} if listed and all(map(torch.is_tensor, a)) else set()
        if len(shapes) > 1 or (getattr(a, "is_nested", False) and torch.is_tensor(a)):
            some = ", ".join(map(str, sorted(shapes)[:3])) or "a nested tensor"
            raise ValueError(
                f"{name}: argument {i}: expected sequences of one length, with a mask, got {some}: "
                f"{PADDED}"
            )


def _as_tensor(a: Any, name: str) -> Any:
    """Turn an array into a tensor of its own type; a data frame into one of torch's default."""
    if torch.is_tensor(a) or not hasattr(a, "__array__"):
        return a
    array = a.__array__()
    if array.dtype.kind not in "biufc":
        raise ValueError(
            f"{name}: expected numbers, got a {type(a).__name__} of {array.dtype}. Turn its "
            "columns into numbers first (pandas.get_dummies), or leave them out."
        )
    tensor = torch.as_tensor(array if array.flags.writeable else array.copy())
    framed = hasattr(a, "iloc") and tensor.is_floating_point()  # pandas makes 64 bits of any float
    return tensor.to(torch.get_default_dtype()) if framed else tensor


def check_values(args: tuple, name: str = "data") -> tuple:
    """Return the arguments, where all tensors have rows, real numbers and finite values.

    Raises:
        ValueError: one has not; it is named.
    """
    for i, a in enumerate(args):
        if not torch.is_tensor(a):
            continue
        kind = "a complex" if a.is_complex() else "a sparse" if a.layout != torch.strided else ""
        if kind or a.is_meta:
            raise ValueError(
                f"{name}: argument {i}: expected a dense tensor of real numbers, got "
                f"{kind or 'a meta'} one. Use torch.view_as_real, .to_dense(), or real data."
            )
        if a.dim() and not len(a):
            raise ValueError(
                f"{name}: argument {i}: expected at least one row, got shape {tuple(a.shape)}."
            )
        if (wrong := not_finite(a)) is not None:
            mend = "Drop or impute them, or mask them in the model."
            if _is_padding(a):
                mend = f"They end its rows, as sequences of different lengths do: {PADDED}"
            raise ValueError(
                f"{name}: argument {i} has {wrong[0]} values that are NaN or infinite, the first "
                f"at {wrong[1]}. {mend}"
            )
    return args


def _is_padding(a: Tensor) -> bool:
    """Tell whether the NaN of a tensor are the ends of some of its rows."""
    if a.dim() < 2 or a.shape[1] < 2 or bool(a.isinf().any()):
        return False
    there = ~a.isnan().flatten(2).all(-1) if a.dim() > 2 else ~a.isnan()
    ends = bool((there[:, :-1] | ~there[:, 1:]).all()) and bool(there[:, 0].all())
    return ends and int((~there).sum()) * (a[0, 0].numel()) == int(a.isnan().sum())


def not_finite(a: Tensor) -> tuple[int, tuple[int, ...]] | None:
    """Count values that are NaN or infinite, with the index of the first; None: all are finite."""
    if not (a.is_floating_point() or a.is_complex()) or a.is_meta or torch.isfinite(a).all():
        return None
    wrong = ~torch.isfinite(a)
    return int(wrong.sum()), tuple(int(i) for i in wrong.nonzero()[0])


def misfit(function: Callable, args: tuple, kwargs: dict) -> tuple[str, str] | None:
    """Return a function's signature and why it cannot take the arguments; None where it can."""
    signature = signature_of(function)
    try:
        if signature is not None:  # else the call itself will tell
            signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(signature), str(error)
    return None


def signature_of(function: Callable) -> inspect.Signature | None:
    """Return the signature of a function or a module; None where it is built in, or has none."""
    while isinstance(function, functools.partial) and function.func is _context_wrap:
        function = function.args[1]  # what Pyro's handlers make of a function
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None


def takes(name: str, *functions: Callable) -> bool:
    """Return whether all functions have an argument of that name; `size` is the rows of all."""
    signatures = [signature_of(f) for f in functions]
    return all(s is not None and name in s.parameters for s in signatures)


def rows_of(args: tuple) -> int:
    """Count the rows of the first tensor that has any; 0 where there is none."""
    return next((len(a) for a in args if torch.is_tensor(a) and a.dim()), 0)


def has_rows(a: Any, n: int | None) -> bool:
    """Return whether an argument is a tensor with n rows, to be cut with the data."""
    return torch.is_tensor(a) and a.dim() > 0 and len(a) == n


def take_rows(args: tuple, rows: slice | Tensor, n: int | None = None) -> tuple:
    """Take some rows of every tensor that has n of them; the other arguments stay whole."""
    n = rows_of(args) if n is None else n
    return tuple(
        a[rows.to(a.device) if torch.is_tensor(rows) else rows] if has_rows(a, n) else a
        for a in args
    )


def moved(args: tuple, device: torch.device) -> tuple:
    """Move all tensors among the arguments to a device."""
    return tuple(a.to(device) if torch.is_tensor(a) else a for a in args)
