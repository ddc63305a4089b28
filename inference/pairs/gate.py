"""The gate: whatever a user gives becomes a checked pair with its data, or one sentence.

`admit` takes a run, a pair, or a model and its guide, followed by the arguments, and returns a
`CheckedPair`: pure functions of given parameters, and the data they are asked about. Everything
that fits or judges a pair begins here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..randomness import forked
from ..weights import LogWeights, Term, at, log_weights, no_validation, simulate
from .pair import Pair, modules_of, own_copy


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
        """The length of the first argument; 0 where it has no rows."""
        first = self.args[0] if self.args else None
        return len(first) if torch.is_tensor(first) and first.dim() else 0

    def take(self, rows: slice | Tensor) -> CheckedPair:
        """The same pair on some rows of its data."""
        n = self.rows
        args = tuple(
            a[rows.to(a.device) if torch.is_tensor(rows) else rows]
            if torch.is_tensor(a) and a.dim() and len(a) == n
            else a
            for a in self.args
        )
        return self.on(args)

    def on(self, args: tuple) -> CheckedPair:
        """The same pair on other arguments, whose rows count as all data."""
        return dataclasses.replace(self, args=args, kwargs={k: len(args[0]) for k in self.kwargs})

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
        """Log weights of so many draws. Call it inside `ready(seed)` or `bound()`.

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
        """The model's sites, the observed ones drawn too, and what it had observed."""
        return simulate(
            self.model, *self.args, values=given, particles=particles, nesting=self.nesting,
            **self.kwargs,
        )  # fmt: skip


def admit(given: Any, *rest: Any, vectorized: bool | None = None, who: str = "") -> CheckedPair:
    """The checked pair that a user means.

    Args:
        given, rest: a run and arguments; a pair with methods `model` and `guide`, and arguments; or
            a model, its guide, and arguments. Arguments may be one tuple of them.
        vectorized: whether the pair broadcasts under a particle plate; by default as it was fitted.
        who: the function that asks, named in errors.

    Raises:
        TypeError: none of these; too few or too many arguments.
        ValueError: arguments that hold NaN, or a pair with errors.
    """
    say = f"{who}: " if who else ""
    run = given if hasattr(given, "pair_") else None
    model, guide, rest = halves(given, rest, say)
    args = data_of(rest, say)
    if run is not None:
        pair, params, buffers = run.pair_, run.state, run.variables.buffers
        device = run.device
        if vectorized is None:
            vectorized = run.estimator.vectorized
        keywords = dict(run.kwargs)
    else:
        pair, keywords = None, {}
        tensors = [p for f in (model, guide) for m in modules_of(f) for p in m.parameters()]
        device = tensors[0].device if tensors else torch.device("cpu")
    args = tuple(a.to(device) if torch.is_tensor(a) else a for a in args)
    check_arguments(model, args)
    check_finite(args)
    kwargs = {k: len(args[0]) for k in keywords}
    if pair is None:
        pair = Pair(*own_copy(model, guide), args, kwargs, present=True)
        params, buffers = pair.params, pair.buffers
    return CheckedPair(
        pair, args, kwargs, dict(params), dict(buffers), device, vectorized is not False, run
    )


def admit_all(given: Any, *rest: Any, **options: Any) -> list[CheckedPair]:
    """One checked pair, or one for each of several runs: a list, or what `fit_many` returns.

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


def halves(given: Any, rest: tuple, say: str = "") -> tuple[Callable, Callable, tuple]:
    """Model, guide, and the arguments that follow them.

    Raises:
        TypeError: neither a run, nor a pair, nor a model followed by its guide.
    """
    if hasattr(given, "pair_"):  # a run
        return given.pair_.model, given.pair_.guide, rest
    if callable(getattr(given, "model", None)) and callable(getattr(given, "guide", None)):
        return given.model, given.guide, rest
    if callable(given) and rest and callable(rest[0]):
        return given, rest[0], rest[1:]
    raise TypeError(
        f"{say}expected a run, a pair with methods `model` and `guide`, or a model followed by "
        f"its guide; got {type(given).__name__}."
    )


def data_of(rest: tuple, say: str = "") -> tuple:
    """The arguments as a tuple, arrays as tensors.

    Raises:
        TypeError: no data, or a set with splits, of which one must be named.
    """
    args = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple) else rest
    if not args:
        raise TypeError(f"{say}no data was given.")
    for a in args:
        if hasattr(a, "train") and hasattr(a, "test"):
            raise TypeError(
                f"{say}data: a set with splits was given; say which, as in digits.test."
            )
    return tuple(torch.as_tensor(a) if hasattr(a, "__array__") else a for a in args)


def check_finite(args: tuple) -> None:
    """Raise ValueError where a floating-point argument holds NaN or infinite values."""
    for i, a in enumerate(args):
        if torch.is_tensor(a) and a.is_floating_point() and not torch.isfinite(a).all():
            wrong = ~torch.isfinite(a)
            first = tuple(int(v) for v in wrong.nonzero()[0])
            raise ValueError(
                f"data: argument {i} has {int(wrong.sum())} values that are NaN or infinite, the "
                f"first at {first}. Drop or impute them, or mask them in the model."
            )


def check_arguments(model: Callable, args: tuple) -> tuple:
    """The arguments, where the model's signature can take them.

    Raises:
        TypeError: too few or too many of them; the message shows the signature.
    """
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):  # built in, or without one: the call itself will tell
        return args
    try:
        signature.bind(*args)
    except TypeError as error:
        raise TypeError(
            f"data: the model takes {signature}, got {len(args)} "
            f"argument{'s' * (len(args) != 1)}: {error}. Pass all of them, as one tuple."
        ) from None
    return args
