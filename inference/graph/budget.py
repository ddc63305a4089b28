"""A limit on the time that compiling a step may take, set by the time that it can save."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

LOWERING = 0.012  # seconds that lowering takes for an operation, measured
REPAID = 5.0  # times the budget: what may be spent where the estimate says that it is saved
MANY = 5_000  # operations, of which most are one loop's


_KEPT: list[Budget] = []  # those whose blocks are open


def lowering(operations: int) -> None:
    """Ask the open budgets whether a graph of so many operations may be lowered."""
    for budget in _KEPT:
        budget.lower(operations)


class OutOfBudget(BaseException):
    """Compiling would take longer than it can save.

    Not an `Exception`: inductor would take it for a failure of its own and try something else.
    """


class Budget:
    """The time that compiling may take: a share of the eager steps' time that it is to save.

    The lowering of a graph is begun only where it is expected to be done within five times the
    share, and ends there.

    Args:
        ahead: seconds of the eager steps ahead.
        share: the part of them that may be spent in vain.
    """

    def __init__(self, ahead: float = math.inf, share: float = math.inf):
        self.ahead, self.seconds = ahead, share * ahead
        self.begin, self.limit = time.perf_counter(), self.seconds
        self.operations, self._patches = 0, ExitStack()

    @property
    def spent(self) -> float:
        """Seconds since the budget was made."""
        return time.perf_counter() - self.begin

    def check(self, doing: str) -> None:
        """Raise `OutOfBudget` where the time is over."""
        self.operations += 1
        if self.spent > self.limit:
            raise OutOfBudget(
                f"{doing} took more than {self.limit:.2g} s{self._advice(self.operations)}"
            )

    def _advice(self, operations: int) -> str:
        loop = (
            "; a loop over times in Python is long to compile: write inference.scan, or one "
            "distribution of the sequence (DiscreteHMM, GaussianHMM)"
        )
        return (
            f", and about {self.ahead:.2g} s of eager steps were ahead (compile_budget=... allows "
            f"more, compile=True any time{loop if operations > MANY else ''})"
        )

    def lower(self, operations: int) -> None:
        """Allow the lowering of a graph of so many operations, or raise `OutOfBudget`."""
        estimate = LOWERING * operations
        if self.spent + estimate > REPAID * self.seconds:
            raise OutOfBudget(
                f"compiling {operations:,} operations would take about {estimate:.2g} s"
                f"{self._advice(operations)}"
            )
        self.limit = REPAID * self.seconds
        if self.limit < math.inf:
            from torch._inductor.graph import GraphLowering
            from torch._inductor.scheduler import Scheduler

            self._watch(GraphLowering, "run_node", "compiling the step")
            self._watch(Scheduler, "can_fuse", "compiling the step")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Limit what is compiled inside the block."""
        with self._patches:
            _KEPT.append(self)
            try:
                yield
            finally:
                _KEPT.remove(self)

    def _watch(self, owner: Any, name: str, doing: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.check(doing)
            return function(*args, **kwargs)

        self._patches.enter_context(patch.object(owner, name, watched))
