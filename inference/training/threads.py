"""The number of threads that make the steps: all, or one where that is faster."""

from __future__ import annotations

import math
import time

import torch

TIMED = 5  # eager steps that are timed to decide
FASTER = 1.2  # times, that one thread must be
SLOWER = 2.5  # times, that a step may be than it was, before the threads are looked at again
AGAIN = 30.0  # seconds after which they are looked at in any case
WINDOW = 1.0  # seconds over which a step's time is taken while it runs


class Threads:
    """The number of torch's threads while a loop runs, chosen by the time of eager steps.

    Beside another busy process, threads that wait for each other at every kernel can be slower than
    one by a hundred times.

    Args:
        vary: whether to choose; else the steps are only timed.

    Attributes:
        now: how many.
    """

    def __init__(self, vary: bool):
        self._all = self.now = torch.get_num_threads()
        self._vary = vary and self._all > 1
        self._begin_at(0)

    def _begin_at(self, made: int) -> None:
        self._timed: dict[int, float] = {}  # seconds of a step, by threads
        self._start = self._last = time.perf_counter()
        self._made, self._best = made, math.inf
        self._use(self._all, made)

    def _use(self, threads: int, made: int) -> None:
        """Go on with so many threads; the first step pays for what is loaded and allocated."""
        self.now, self._from = threads, made + 1
        torch.set_num_threads(threads)

    def timed(self, made: int) -> float | None:
        """Return the seconds of an eager step, once known, after so many steps.

        The threads are then those that are faster.
        """
        if made <= self._from:
            self._warm = time.perf_counter()
        if made < self._from + TIMED:
            return None
        self._timed[self.now] = (time.perf_counter() - self._warm) / TIMED
        if self._vary and self.now > 1:
            self._use(1, made)
            return None
        if self._vary and self._timed[self._all] <= FASTER * self._timed[1]:
            self._use(self._all, made)
        self._start = self._last = time.perf_counter()
        self._made = made
        return self._timed[self.now]

    def again(self, made: int) -> bool:
        """Tell whether to time eager steps anew: the steps have become slow, or a while has passed.

        Their number is then all again, until `timed` says otherwise.
        """
        now = time.perf_counter()
        if not self._vary or now - self._last < WINDOW:
            return False
        each = (now - self._last) / max(1, made - self._made)
        slow = each > SLOWER * self._best
        self._made, self._last, self._best = made, now, min(self._best, each)
        if not slow and now - self._start < AGAIN:
            return False
        self._begin_at(made)
        return True

    def lend(self) -> None:
        """Leave a processor to somebody else, until `take_back`."""
        if self._vary:
            torch.set_num_threads(max(1, min(self.now, self._all - 1)))

    def take_back(self) -> None:
        """Use again what was chosen."""
        if self._vary:
            torch.set_num_threads(self.now)

    def restore(self) -> None:
        """Put back the number that the caller had."""
        torch.set_num_threads(self._all)
