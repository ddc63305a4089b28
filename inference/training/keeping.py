"""The state of a run on disk and the last good one in memory; signals, obeyed between steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .checkpoint import log
from .state import Training
from .update import Variables

SHARE = 50  # of the time, one part in so many at most goes into writing states
GOOD = 0.2  # seconds between two good states in memory
ENDING = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n))


class Keeper:
    """Write a run's state into its folder: at intervals, and at the end.

    Args:
        folder: where; None for nowhere.
        every: seconds between two states.
    """

    def __init__(self, folder: Path | None, every: float):
        self.folder, self.every = folder, every
        self._next = time.monotonic() + every

    def due(self) -> bool:
        """True when it is time for a state."""
        return self.folder is not None and time.monotonic() >= self._next

    def write(self, run: Training, last: bool = False) -> None:
        """Write a state. Where that fails, say so, and try again later; the last one raises."""
        if self.folder is None:
            return
        begin = time.monotonic()
        try:
            run.write(self.folder)
        except OSError as error:
            if last:
                raise
            log.warning(
                "%s: the state of step %d was not written (%s); the run goes on.",
                self.folder, run.steps, error.strerror or error,
            )  # fmt: skip
        now = time.monotonic()
        self._next = now + max(self.every, SHARE * (now - begin))


class LastGood:
    """The state at the last row whose losses and variables were finite, to go back to.

    Args:
        every: seconds between two, at least.
    """

    OWN = (
        "batches", "random_state", "optimiser_state", "seconds", "best", "best_step",
        "best_params", "since_best", "pace",
    )  # fmt: skip

    def __init__(self, run: Training, every: float = GOOD):
        self.every = every
        self.variables: Variables = run.variables.clone()
        self._take(run)

    def _take(self, run: Training) -> None:
        self.rows, self.losses = len(run.history), len(run.losses)
        self.fields = {name: getattr(run, name) for name in self.OWN}  # none changes in place
        self.when = time.monotonic()

    def update(self, run: Training) -> None:
        """Take the present state, if the last one is old enough and this one is finite."""
        old = time.monotonic() - self.when > self.every or not int(self.variables.count)
        if old and all(bool(p.isfinite().all()) for p in run.variables.params.values()):
            self.variables.assign(run.variables)
            self._take(run)

    def restore(self, run: Training) -> None:
        """Put the run back."""
        with torch.no_grad():
            run.variables.assign(self.variables)
        del run.history.rows[self.rows :], run.losses[self.losses :]
        for name, value in self.fields.items():
            setattr(run, name, value)
        run.unlogged, run.logged = None, (self.rows, self.losses)
        run.iterates = None  # it has what came since


@contextmanager
def signals(ending: bool) -> Iterator[list[int]]:
    """Yield a list that a signal inside the block is added to; a second Ctrl-C raises.

    Those are Ctrl-C and, where the run is kept on disk, SIGTERM and SIGHUP: these are sent anew
    after the block, to whoever was to have them. What is ignored stays ignored, and outside the
    main thread nothing is changed.

    Args:
        ending: whether to hold back SIGTERM and SIGHUP.
    """
    come: list[int] = []

    def note(number: int, frame: Any) -> None:
        if come and number == signal.SIGINT:
            raise KeyboardInterrupt
        come.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *(ENDING if ending else ())):
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in ENDING:
        if number in come:
            signal.raise_signal(number)
