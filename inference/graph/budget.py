"""A limit on the time that compiling a step may take, set by the time that it can save."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

LOWERING = 10.0  # seconds that inductor takes for one of tracing, measured: from 6 to 12
REPAID = 5.0  # times the budget: what may be spent where the estimate says that it is saved
MANY = 5_000  # operations, of which most are one loop's


class OutOfBudget(BaseException):
    """Compiling would take longer than it can save.

    Not an `Exception`: inductor would take it for a failure of its own and try something else.
    """


class Budget:
    """The time that compiling may take: a share of the eager steps' time that it is to save.

    Tracing ends with the share. The graph's lowering is then begun only where, at the pace of the
    tracing, it is done within five times as much, and ends there.

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

    def lower(self, seconds: float, operations: int) -> None:
        """Allow the lowering of a graph that took so long to trace, or raise `OutOfBudget`."""
        estimate = LOWERING * seconds
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
        """Look at the clock at each operation traced or lowered, and each attempt to fuse two."""
        import torch.fx.experimental.proxy_tensor as tracing

        with self._patches:
            if self.limit < math.inf:
                self._watch(tracing, "proxy_call", "tracing the step")
            yield

    def _watch(self, owner: Any, name: str, doing: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.check(doing)
            return function(*args, **kwargs)

        self._patches.enter_context(patch.object(owner, name, watched))
