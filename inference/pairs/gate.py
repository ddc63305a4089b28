"""The gate: whatever a user gives becomes a checked pair with its data, or one sentence."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..randomness import forked
from ..weights import At, LogWeights, Term, log_weights, no_validation, plate_nesting, simulate
from .arguments import checked_arguments, halves, moved, rows_of, take_rows
from .inspection import refuse_errors
from .options import check_options
from .pair import Pair, modules_of, own_copy

FEW = 64  # rows of a large data set at which a pair is inspected first
# owner of the model -> owner of the guide -> (names, kinds of arguments) -> what is known of them
_SEEN: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


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
        """Return the same pair on some rows of its data, which then count as all data."""
        args = take_rows(self.args, rows)
        return replace(self, args=args, kwargs=dict.fromkeys(self.kwargs, rows_of(args)))

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Run what is inside with these parameters, without distributions' own checks."""
        with no_validation(), self.pair.bind(self.params, self.buffers):
            yield

    @contextmanager
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
        guide = At(given)(self.guide) if given else self.guide
        options = {"nesting": self.nesting, "vectorized": self.vectorized, **self.kwargs, **options}
        return log_weights(self.model, guide, *self.args, particles=particles, **options)

    def simulate(
        self, particles: int = 1, given: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Term], dict[str, Any]]:
        """Run the model with observed sites drawn; return its sites and what it had observed."""
        told = {"values": given, "particles": particles, "nesting": self.nesting, **self.kwargs}
        return simulate(self.model, *self.args, **told)


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
        vectorized: whether the pair broadcasts under a particle plate; None looks, unless it was
            fitted by an estimator that draws particles one by one.
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
    args = checked_arguments(model, rest[0] if len(rest) == 1 else rest)
    if run is not None:
        device, args = run.device, moved(args, run.device)
        pair, params, buffers = run.pair_, run.state, run.variables.buffers
        vectorized = run.estimator.vectorized if vectorized is None else vectorized
        kwargs = dict.fromkeys(run.kwargs, rows_of(args))
    else:
        own = (p for f in (model, guide) for m in modules_of(f) for p in m.parameters())
        device = next((p.device for p in own), torch.device("cpu"))
        args = moved(args, device)
        inspect_once(model, guide, args, who=who)
        pair, kwargs = Pair(*own_copy(model, guide), args, present=True), {}
        params, buffers = pair.params, pair.buffers
    together = vectorized is not False
    together = vectorized is not False
    state = dict(params), dict(buffers)
    found = CheckedPair(pair, args, kwargs, *state, device, together, run)
    return replace(found, vectorized=together and broadcasts(found))


def broadcasts(found: CheckedPair) -> bool:
    """Return whether a pair runs under a particle plate: on its first rows, or else on all."""
    both = replace(found, vectorized=True)
    for pair in (both.take(slice(FEW)), both) if both.rows > FEW else (both,):
        with suppress(RuntimeError, ValueError, IndexError), pair.ready(0):
            pair.weights(2)
            return True
    return False


def refuse_unbroadcast(found: CheckedPair, who: str) -> None:
    """Raise ValueError where a pair does not run under a particle plate."""
    if not broadcasts(found):
        raise ValueError(
            f"{who}: the pair does not broadcast over particles: expected that latents of shape "
            "(K, batch, event) work as (batch, event) do; index and reduce from the right "
            "(z[..., 0], .sum(-1)), put data into a pyro.plate, or set vectorized=False."
        )


def admit_all(given: Any, *rest: Any, **options: Any) -> list[CheckedPair]:
    """Return one checked pair, or one for each of several runs: a list, or what `fit_many` returns.

    Raises:
        ValueError: an empty list; and what `admit` raises.
    """
    if isinstance(given, tuple) and len(given) == 2 and all(map(callable, given)):
        return [admit(*given, *rest, **options)]
    if not hasattr(given, "__getitem__") or callable(given):
        return [admit(given, *rest, **options)]
    pairs = [p for run in given for p in admit_all(run, *rest, **options)]
    if not pairs:
        raise ValueError("expected at least one run, got an empty list.")
    return pairs


def inspect_once(
    model: Callable, guide: Callable, args: tuple, kwargs: dict | None = None, who: str = ""
) -> dict[str, int]:
    """Look at a pair that is new; return what is known of it, to which a caller may add.

    A pair counts as seen for arguments of the same types and numbers of dimensions. Of many rows,
    the first few are looked at, and all only where something is wrong with those.

    Raises:
        ValueError: `check` finds errors.
    """
    given = (*args, *(kwargs or {}).values())
    kinds = tuple((type(a), getattr(a, "dtype", None), getattr(a, "ndim", None)) for a in given)
    # a bound method is new at every look: its owner lives, and its name says which it is
    mine, theirs = (f.__self__ if inspect.ismethod(f) else f for f in (model, guide))
    names = tuple(getattr(f, "__name__", "") for f in (model, guide))
    try:
        seen = _SEEN.setdefault(mine, weakref.WeakKeyDictionary()).setdefault(theirs, {})
    except TypeError:  # what cannot be referred to weakly is looked at every time
        seen = {}
    if (names, kinds) not in seen:
        look = partial(refuse_errors, model, guide, kwargs=kwargs, who=who, trains=False)
        try:
            look(take_rows(args, slice(FEW)))
        except ValueError:
            if rows_of(args) <= FEW:
                raise
            look(args)
        seen[names, kinds] = {}
    return seen[names, kinds]


def nesting_of(model: Callable, guide: Callable, args: tuple, kwargs: dict, who: str = "") -> int:
    """Return the number of plate dimensions of a pair that an estimator meets in plain SVI.

    Raises:
        ValueError: as `inspect_once`.
    """
    known = inspect_once(model, guide, args, kwargs, who)
    if "nesting" not in known:
        known["nesting"] = plate_nesting(model, guide, *args, **kwargs)
    return known["nesting"]
