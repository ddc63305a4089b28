"""Check types and ranges of options, whichever function they are given to."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pyro.optim
import torch

from .. import optim

BASELINES = (  # options of a site's infer={"baseline": ...}
    "nn_baseline", "nn_baseline_input", "use_decaying_avg_baseline", "baseline_beta",
    "baseline_value",
)  # fmt: skip
AVERAGE = "average"  # and the running mean's tensor, which a bound pair puts there
SEEDS = 2**63  # what torch and numpy both take


def nearest(name: Any, known: Iterable[str], *, bare: bool = False) -> str:
    """Return " Did you mean 'x'?" for the nearest of some names, or "" where none is near.

    Args:
        name: what was given; capitals and underscores do not count.
        known: the names.
        bare: return the name alone.
    """
    spelt = {k.lower().replace("_", "-"): k for k in known}
    text = str(name).lower().replace("_", "-")
    near = [spelt[k] for k in difflib.get_close_matches(text, spelt, n=1, cutoff=0.4)]
    return "" if not near else near[0] if bare else f" Did you mean {near[0]!r}?"


def one_of(name: str, value: Any, known: Iterable[Any]) -> Any:
    """Return a value that is one of the known ones, or raise ValueError and name the nearest."""
    known = list(known)
    if not any(value is k or (type(value) is type(k) and value == k) for k in known):
        hint = nearest(value, [k for k in known if isinstance(k, str)])
        raise ValueError(f"{name}: expected one of {known}, got {value!r}.{hint}")
    return value


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a whole number in a range, or raise ValueError."""
    kind = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not kind or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise ValueError(f"{name}: expected a whole number {span}, got {value!r}.")
    return int(value)


def number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, open: bool = False
) -> float:
    """Return a finite number in a range (`open`: without its ends), or raise ValueError."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if real and math.isfinite(value) and (least < value < most if open else least <= value <= most):
        return float(value)
    low = f"{'>' if open else '>='} {least:g}" if least > -math.inf else ""
    high = f"{'<' if open else '<='} {most:g}" if most < math.inf else ""
    span = " and ".join(filter(None, [low, high])) or "that is finite"
    raise ValueError(f"{name}: expected a number {span}, got {value!r}.")


def _schedule(name: str, value: Any) -> Any:
    known = "constant", "linear", "cosine"
    if callable(value) or value in known:
        return value
    raise ValueError(
        f"{name}: expected 'constant', 'linear', 'cosine', or a function of the step count; got "
        f"{value!r}.{nearest(value, known)}"
    )


def _callbacks(name: str, value: Any) -> tuple:
    if callable(value) or any(not callable(c) for c in value):
        raise ValueError(f"{name}: expected a list of functions of the run, got {value!r}.")
    return tuple(value)


Check = Callable[[str, Any], Any]
_OF_CHECK: dict[Check, str] = {
    whole: "steps max_steps batch_size? valid_every? patience? repeats? chunk? fits? draws "
    "particles rows critic_steps? datasets simulations",
    partial(whole, least=0): "surgery gap settle?",
    partial(whole, least=0, most=SEEDS - 1): "seed",
    partial(number, least=0.0): "jitter penalty? compile_budget",
    partial(number, least=0.0, open=True): "lr? clip? save_every tolerance",
    partial(number, least=0.0, most=1.0): "average",
    partial(number, least=0.0, most=1.0, open=True): "held_out",
    partial(one_of, known=(True, False)): "autocast tf32 check",
    partial(one_of, known=(True, False, "auto")): "compile",
    partial(one_of, known=("stop", "skip")): "not_finite",
    _schedule: "schedule",
    _callbacks: "callbacks",
}
# option -> its check; with a question mark where it may be None
CHECKS = {name: check for check, names in _OF_CHECK.items() for name in names.split()}


def check_options(least: Mapping[str, int] | None = None, /, **given: Any) -> dict[str, Any]:
    """Return the options, with plain Python numbers for numbers of other libraries.

    Args:
        least: option -> the smallest whole number it may be, where that is not the usual one.
        given: options by name; those that `CHECKS` does not know are taken as they are.

    Raises:
        ValueError: the type or range of one is wrong.
    """
    for name, value in given.items():
        check = CHECKS.get(name) or (None if value is None else CHECKS.get(f"{name}?"))
        if least and name in least:
            check = partial(whole, least=least[name])
        if check is not None:
            given[name] = check(name, value)
    return given


def device_of(device: str | torch.device) -> torch.device:
    """Return the device asked for; "auto" is CUDA where there is one.

    Raises:
        ValueError: there is no such device on this machine.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.zeros(1, device=where)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        there = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        said = f"device: {device!r} is not on this machine (there is: {there})."
        raise ValueError(said) from error
    return where


def optimiser_of(given: Any, lr: float) -> Any:
    """Return the optimiser asked for: one of `inference.optim`, or a foreign one as it is.

    Args:
        given: None (Adam), an optimiser or a class of `inference.optim`, a function
            `params -> torch.optim.Optimizer`, or one of `pyro.optim`.
        lr: the learning rate of one made here.

    Raises:
        TypeError: anything else.
    """
    if given is None or (inspect.isclass(given) and issubclass(given, optim.Optimiser)):
        return (given or optim.Adam)(lr)
    if isinstance(given, (optim.Optimiser, pyro.optim.PyroOptim)) or callable(given):
        return given
    known, kind = ("Adam", "AdamW", "ClippedAdam", "SGD", "RMSprop"), type(given).__name__
    hint = nearest(given, known) if isinstance(given, str) else ""
    if isinstance(given, torch.optim.Optimizer):
        hint = f" Give the function: lambda params: torch.optim.{kind}(params)."
    raise TypeError(
        f"optimiser: expected one of inference.optim ({', '.join(known)}), a function params -> "
        "torch.optim.Optimizer, or a pyro.optim optimiser; got "
        f"{given if isinstance(given, str) else kind!r}.{hint}"
    )
