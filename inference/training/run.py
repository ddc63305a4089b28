"""What a fit returns: the pair with its parameters, and how it got there."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..elbo import Estimator
from ..pairs.pair import Pair, modules_of
from .update import Update, Variables


@dataclass
class History:
    """One row per log interval: step, mean loss since the last row, seconds, held-out values.

    `history["loss"]` is a numpy array, NaN where a row lacks the column.
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, row: dict[str, float]) -> None:
        """Append a row."""
        self.rows.append(row)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order they first came."""
        return list(dict.fromkeys(k for r in self.rows for k in r))

    def __getitem__(self, column: str) -> np.ndarray:
        return np.array([r.get(column, np.nan) for r in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def to_csv(self) -> str:
        """The table as comma-separated text."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()


@dataclass
class Run:
    """A fitted pair.

    Attributes:
        history: rows of step, loss, seconds, and held-out values, in `unit`.
        losses: every step's loss, in `unit`.
        unit: "nats per datum" where every site lies in the data plate, else "nats".
        seconds: of the loop, compiling included.
        compiled: whether the compiled step was used; `eager_because` says why not.
        stopped: why the run ended before its last step, or None.
        best_step: the step of the parameters kept, where there was validation.
    """

    pair_: Pair
    kwargs: dict[str, Any]
    estimator: Estimator
    device: torch.device
    seed: int
    divide: float
    unit: str
    example: tuple
    variables: Variables
    history: History
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    compiled: bool = False
    compile_seconds: float = 0.0
    eager_because: str | None = None
    stopped: str | None = None
    best: float | None = None
    best_step: int | None = None
    best_params: dict[str, Tensor] | None = None
    random_state: Tensor | None = None
    batches: dict[str, Tensor] | None = None
    update: Update | None = None

    @property
    def state(self) -> dict[str, Tensor]:
        """The unconstrained parameters that are kept: the best on validation, else the last."""
        return self.variables.params if self.best_params is None else self.best_params

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
            f"Run({int(self.variables.count)} steps, {kind}, {self.seconds:.1f} s, "
            f"{self.estimator!r}: {self.elbo:.3f} {self.unit})"
        )
