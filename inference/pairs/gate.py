"""The gate: whatever a user gives becomes a checked pair with its data, or one sentence.

Everything that fits or judges a pair begins here. `halves` tells a run, a pair, or a model and its
guide apart; `as_arguments` and `check_values` look at the data, `pairs.options` at the options, and
`inspect_once` at the pair itself. `admit` does all of it and returns a `CheckedPair`: pure
functions of given parameters, and the data they are asked about.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..randomness import forked
from ..weights import (
    LogWeights,
    Term,
    at,
    log_weights,
    no_validation,
    plate_nesting,
    simulate,
)
from .arguments import as_arguments, check_signature, check_values, moved, rows_of, take_rows
from .inspection import refuse_errors
from .options import check_options
from .pair import Pair, modules_of, own_copy

FEW = 64  # rows of a large data set at which a pair is inspected first


@dataclass(frozen=True)
class CheckedPair:
    """A model and a guide at given parameters, with the arguments they are asked about.

    Attributes:
        pair: the two as a pure function of their parameters.
        args, kwargs: what both are called with, on the pair's device.
        params, buffers: the values at which they are asked.
        device: of the parameters.
        vectorized: whether the pair broadcasts under a particle plate.
        run: the fit it comes from, or None.
    """

    pair: Pair
    args: tuple
    kwargs: dict[str, Any]
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    device: torch.device
    vectorized: bool = True
    run: Any = None

    @property
    def model(self) -> Callable:
        """The model, to be called inside `bound()`."""
        return self.pair.model

    @property
    def guide(self) -> Callable:
        """The guide, to be called inside `bound()`."""
        return self.pair.guide

    @property
    def nesting(self) -> int:
        """The number of plate dimensions."""
        return self.pair.nesting

    @property
    def rows(self) -> int:
        """The rows of its data; 0 where no argument has any."""
        return rows_of(self.args)

    def take(self, rows: slice | Tensor) -> CheckedPair:
        """Return the same pair on some rows of its data."""
        return self.on(take_rows(self.args, rows))

    def on(self, args: tuple) -> CheckedPair:
        """Return the same pair on other arguments, whose rows count as all data."""
        kwargs = dict.fromkeys(self.kwargs, rows_of(args))
        return dataclasses.replace(self, args=args, kwargs=kwargs)

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Run what is inside with these parameters, without distributions' own checks."""
        with no_validation(), self.pair.bind(self.params, self.buffers):
            yield

    @contextlib.contextmanager
    def ready(self, seed: int) -> Iterator[None]:
        """`bound`, without gradients and under a random state of its own."""
        with forked(seed), torch.no_grad(), self.bound():
            yield

    def weights(
        self, particles: int = 1, given: Mapping[str, Tensor] | None = None, **options: Any
    ) -> LogWeights:
        """Return log weights of so many draws. Call it inside `ready(seed)` or `bound()`.

        Args:
            particles: K.
            given: site -> value of a latent (as in `Term.value`), in place of the guide's draws.
            options: of `log_weights`.
        """
        guide = at(self.guide, given) if given else self.guide
        options = {"nesting": self.nesting, "vectorized": self.vectorized, **self.kwargs, **options}
        return log_weights(self.model, guide, *self.args, particles=particles, **options)

    def simulate(
        self, particles: int = 1, given: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Term], dict[str, Any]]:
        """Run the model with observed sites drawn; return its sites and what it had observed."""
        return simulate(
            self.model, *self.args, values=given, particles=particles, nesting=self.nesting,
            **self.kwargs,
        )  # fmt: skip


class Halves(NamedTuple):
    """A model, its guide, and what was given after them.

    Attributes:
        model, guide: the two callables; of a run its own modules, without its parameters.
        rest: what was given after them.
        run: the fit they are of, or None.
    """

    model: Callable
    guide: Callable
    rest: tuple
    run: Any = None


def admit(
    given: Any,
    *rest: Any,
    vectorized: bool | None = None,
    who: str = "",
    least: Mapping[str, int] | None = None,
    **options: Any,
) -> CheckedPair:
    """Return the checked pair that a user means.

    Args:
        given, rest: a run and arguments; a pair with methods `model` and `guide`, and arguments; or
            a model, its guide, and arguments. Arguments may be one tuple of them.
        vectorized: whether the pair broadcasts under a particle plate; by default as it was fitted.
        who: the function that asks, named in errors.
        least, options: for `check_options`.

    Raises:
        TypeError: none of these; too few or too many arguments.
        ValueError: an option out of range; arguments without rows or finite values; a pair that
            `check` finds errors in, unless it comes from a run.
    """
    check_options(least, **options)
    model, guide, rest, run = halves(given, rest, who)
    if not rest:
        raise TypeError(f"{who + ': ' if who else ''}no data was given.")
    args = check_values(as_arguments(rest[0] if len(rest) == 1 else rest))
    args = check_signature(
        model, moved(args, run.device if run is not None else _device(model, guide))
    )
    if run is not None:
        pair, params, buffers = run.pair_, run.state, run.variables.buffers
        vectorized = run.estimator.vectorized if vectorized is None else vectorized
        kwargs = dict.fromkeys(run.kwargs, rows_of(args))
        device = run.device
    else:
        inspect_once(model, guide, args, who=who)
        pair, kwargs = Pair(*own_copy(model, guide), args, {}, present=True), {}
        params, buffers, device = pair.params, pair.buffers, _device(model, guide)
    return CheckedPair(
        pair, args, kwargs, dict(params), dict(buffers), device, vectorized is not False, run
    )


def admit_all(given: Any, *rest: Any, **options: Any) -> list[CheckedPair]:
    """Return one checked pair, or one for each of several runs: a list, or what `fit_many` returns.

    Raises:
        ValueError: an empty list; and what `admit` raises.
    """
    if isinstance(given, tuple) and len(given) == 2 and all(map(callable, given)):
        return [admit(*given, *rest, **options)]
    if isinstance(given, (list, tuple)) or (hasattr(given, "__getitem__") and not callable(given)):
        runs = list(given)
        if not runs:
            raise ValueError("expected at least one run, got an empty list.")
        return [p for run in runs for p in admit_all(run, *rest, **options)]
    return [admit(given, *rest, **options)]


def halves(given: Any, rest: tuple = (), who: str = "") -> Halves:
    """Return model, guide, and what follows them.

    Raises:
        TypeError: neither a run, nor a pair, nor a model followed by its guide.
    """
    if hasattr(given, "pair_"):
        return Halves(given.pair_.model, given.pair_.guide, rest, given)
    if callable(getattr(given, "model", None)) and callable(getattr(given, "guide", None)):
        return Halves(given.model, given.guide, rest)
    if callable(given) and rest and callable(rest[0]):
        run = getattr(given, "run", None)  # `run.model` and `run.guide` know their run
        if hasattr(run, "pair_") and getattr(rest[0], "run", None) is run:
            return Halves(run.pair_.model, run.pair_.guide, rest[1:], run)
        return Halves(given, rest[0], rest[1:])
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


def inspect_once(
    model: Callable, guide: Callable, args: tuple, kwargs: dict | None = None, who: str = ""
) -> dict[str, int]:
    """Look at a pair that is new; return what is known of it, to which a caller may add.

    A pair counts as seen for arguments of the same types and numbers of dimensions. Of many rows,
    the first few are looked at, and all only where something is wrong with those.

    Raises:
        ValueError: `check` finds errors.
    """
    seen, kwargs = _facts(model, guide), kwargs or {}
    kinds = tuple(
        (type(a), getattr(a, "dtype", None), getattr(a, "ndim", None))
        for a in (*args, *kwargs.values())
    )
    if kinds not in seen:
        few = take_rows(args, slice(FEW))
        try:
            refuse_errors(model, guide, few, kwargs=kwargs, who=who, trains=False)
        except ValueError:
            if rows_of(args) <= FEW:
                raise
            refuse_errors(model, guide, args, kwargs=kwargs, who=who, trains=False)
        seen[kinds] = {}
    return seen[kinds]


def nesting_of(model: Callable, guide: Callable, args: tuple, kwargs: dict, who: str = "") -> int:
    """Return the number of plate dimensions of a pair that an estimator meets in plain SVI.

    Raises:
        ValueError: as `inspect_once`.
    """
    known = inspect_once(model, guide, args, kwargs, who)
    if "nesting" not in known:
        known["nesting"] = plate_nesting(model, guide, *args, **kwargs)
    return known["nesting"]


_SEEN: dict[tuple, tuple[weakref.ref, weakref.ref, dict[tuple, dict[str, int]]]] = {}


def _facts(model: Callable, guide: Callable) -> dict[tuple, dict[str, int]]:
    """Return what is known of a pair by kinds of arguments, kept for as long as it lives."""
    (a, half_a), (b, half_b) = _anchor(model), _anchor(guide)
    key = id(a), half_a, id(b), half_b
    if key in _SEEN and _SEEN[key][0]() is a and _SEEN[key][1]() is b:
        return _SEEN[key][2]
    for old in [k for k, (x, y, _) in _SEEN.items() if x() is None or y() is None]:
        del _SEEN[old]
    try:
        _SEEN[key] = weakref.ref(a), weakref.ref(b), {}
    except TypeError:  # an object that cannot be referred to weakly is looked at every time
        return {}
    return _SEEN[key][2]


def _anchor(function: Any) -> tuple[Any, str]:
    """Return the object that lives as long as a function does, and the method's name."""
    if inspect.ismethod(function):
        return function.__self__, function.__name__
    return function, ""


def _device(model: Callable, guide: Callable) -> torch.device:
    """Return the device of the pair's modules."""
    tensors = (p for f in (model, guide) for m in modules_of(f) for p in m.parameters())
    return next((p.device for p in tensors), torch.device("cpu"))
