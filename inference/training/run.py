"""The result of a fit: the pair with its parameters, and the record of its training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..elbo import Estimator
from ..pairs.pair import Pair, modules_of
from .state import Training


@dataclass(kw_only=True, repr=False)
class Run(Training):
    """A fitted pair; `Training` says how it went.

    Attributes:
        estimator: whose bound was raised.
        unit: "nats per datum" where every site lies in the data plate, else "nats".
        divide: the loss is -bound / divide.
        kwargs: what the pair is called with beside its arguments, of which `example` is a batch.
    """

    pair_: Pair
    kwargs: dict[str, Any]
    estimator: Estimator
    divide: float
    unit: str
    example: tuple

    @property
    def state(self) -> dict[str, Tensor]:
        """The unconstrained parameters that are kept: the best on validation, else the last."""
        return self.final

    @property
    def params(self) -> dict[str, Tensor]:
        """The parameters in their own support, by name."""
        return self.pair_.constrained(self.state)

    @property
    def elbo(self) -> float:
        """The bound at the end, in `unit`: the best held-out value, else minus the recent loss."""
        if self.best is not None:
            return self.best
        recent = self.losses[-max(1, len(self.losses) // 20) :]
        return -float(np.mean(recent))

    @property
    def pair(self) -> nn.Module:
        """The trained module, where model and guide are methods of one (or the guide is one)."""
        modules = modules_of(self.pair_.model) or modules_of(self.pair_.guide)
        if not modules:
            raise AttributeError("this pair is two plain functions: use run.model and run.guide.")
        return modules[0]

    @property
    def model(self) -> Callable:
        """The model with the run's parameters."""
        return self._bound(self.pair_.model)

    @property
    def guide(self) -> Callable:
        """The guide with the run's parameters."""
        return self._bound(self.pair_.guide)

    def _bound(self, function: Callable) -> Callable:
        @functools.wraps(function if hasattr(function, "__name__") else type(function))
        def bound(*args: Any, **kwargs: Any) -> Any:
            with self.bind():
                return function(*args, **kwargs)

        bound.__wrapped__ = function  # type: ignore[attr-defined]
        bound.run = self  # type: ignore[attr-defined]  # whoever fits it starts from its parameters
        return bound

    def bind(self) -> Any:
        """A context in which the pair has this run's parameters."""
        return self.pair_.bind(self.state, self.variables.buffers)

    def finish(self) -> Run:
        """Write the kept parameters into the run's own modules."""
        self.pair_.write_back(self.state, self.variables.buffers)
        return self

    def __repr__(self) -> str:
        kind = "compiled" if self.compiled else "eager"
        return (
            f"Run({self.steps} steps, {kind}, {self.seconds:.1f} s, "
            f"{self.estimator!r}: {self.elbo:.3f} {self.unit})"
        )
