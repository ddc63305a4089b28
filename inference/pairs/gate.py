"""The gate: whatever a user gives becomes a checked pair with its data, or one sentence."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..randomness import forked
from ..weights import (
    WAYS,
    LogWeights,
    Term,
    branches,
    discrete_posterior,
    log_weights,
    no_validation,
    plate_nesting,
    simulate,
    way_of,
    without_averages,
)
from .arguments import checked_arguments, halves, moved, rows_of, take_rows
from .inspection import refuse_errors
from .options import check_options, one_of
from .pair import FEW, Pair, modules_of, own_copy

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
        way: how draws are made together: "plate", "vmap" or "loop", as for `log_weights`.
        run: the fit it comes from, or None.
    """

    pair: Pair
    args: tuple
    kwargs: dict[str, Any]
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    device: torch.device
    way: str = "plate"
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
        known = {"nesting": self.nesting, "vectorized": self.way, "given": given, **self.kwargs}
        more = {"particles": particles, **known, **options}
        if not self.pair.branches:
            found = log_weights(self.model, self.guide, *self.args, **more)
            self.pair.branches = branches(found)
        if self.pair.branches:  # a latent has a draw for every value of another: draw that one
            found = log_weights(self.model, without_averages(self.guide), *self.args, **more)
        return found

    def simulate(
        self, particles: int = 1, given: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Term], dict[str, Any]]:
        """Run the model with observed sites drawn; return its sites and what it had observed."""
        known = {"nesting": self.nesting, "way": self.way, **self.kwargs}
        try:
            return simulate(self.model, *self.args, values=given, particles=particles, **known)
        except NotImplementedError as error:
            if "ImproperUniform" not in str(error):
                raise
            raise ValueError(
                "the model has a flat prior (ImproperUniform), from which nothing can be drawn: "
                "expected a proper one; give it a wide Normal or HalfNormal."
            ) from error

    def once(self) -> tuple[dict[str, Term], dict[str, Any]]:
        """Return `simulate` for one draw of the guide: what the model observes, and its shapes."""
        latent = {n: t.value for n, t in self.weights().model.items() if t.is_latent}
        return self.simulate(1, latent)

    def discrete(
        self, particles: int, given: Mapping[str, Tensor]
    ) -> tuple[dict[str, Term], dict[str, Term]]:
        """Draw what the model sums out, given the other latents; and return its probabilities."""
        known = {"nesting": self.nesting, "way": self.way, **self.kwargs}
        told = {"values": given, "particles": particles, **known}
        return discrete_posterior(self.model, *self.args, **told)


def admit(
    given: Any,
    *rest: Any,
    vectorized: bool | str | None = None,
    who: str = "",
    least: Mapping[str, int] | None = None,
    **options: Any,
) -> CheckedPair:
    """Return the checked pair that a user means.

    Args:
        given, rest: a run and arguments; a pair with methods `model` and `guide`, and arguments; or
            a model, its guide, and arguments. Arguments may be one tuple of them.
        vectorized: how draws are made together ("plate", "vmap", "loop"; False is "loop"); None
            and True look.
        who: the function that asks, named in errors.
        least, options: for `check_options`.

    Raises:
        TypeError: none of these; too few or too many arguments.
        ValueError: an option out of range; arguments without rows or finite values; a pair that
            `check` finds errors in, unless it comes from a run.
    """
    check_options(least, **options)
    one_of("vectorized", vectorized, (None, True, False, *WAYS))
    model, guide, rest, run = halves(given, rest, who)
    if not rest:
        raise TypeError(f"{who + ': ' if who else ''}no data was given.")
    args = checked_arguments(model, rest[0] if len(rest) == 1 else rest)
    if run is not None:
        device, args = run.device, moved(args, run.device)
        pair, params, buffers = run.pair_, run.state, run.variables.buffers
        kwargs = dict.fromkeys(run.kwargs, rows_of(args))
    else:
        own = (p for f in (model, guide) for m in modules_of(f) for p in m.parameters())
        device = next((p.device for p in own), torch.device("cpu"))
        args = moved(args, device)
        inspect_once(model, guide, args, who=who)
        pair, kwargs = Pair(*own_copy(model, guide), args, present=True), {}
        params, buffers = pair.params, pair.buffers
    named: dict[Any, str] = {None: "", True: "", False: "loop"}
    way = named.get(vectorized, str(vectorized))
    if not way:
        way = pair.find_way(params, buffers, args, kwargs)
    return CheckedPair(pair, args, kwargs, dict(params), dict(buffers), device, way, run)


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
) -> dict[str, Any]:
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


def known_of(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, who: str, many: bool
) -> dict[str, Any]:
    """Return `nesting`, and `vectorized` for many draws, of a pair met in plain SVI.

    Raises:
        ValueError: as `inspect_once`.
    """
    known: dict[str, Any] = inspect_once(model, guide, args, kwargs, who)
    if "nesting" not in known:
        known["nesting"] = plate_nesting(model, guide, *args, **kwargs)
    if many and "vectorized" not in known:
        told = {"nesting": known["nesting"], **kwargs}
        known["vectorized"] = way_of(model, guide, *args, **told)[0]
    return known if many else {"nesting": known["nesting"]}
