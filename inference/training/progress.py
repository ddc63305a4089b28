"""Progress display: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import Any

EVERY = 10.0  # seconds between two lines, where the end is not known
LINES = 10  # in all, where the output is not a terminal


class Progress:
    """Loss in nats, its smoothed trend, steps per second and time left.

    Args:
        steps: how many there will be; None where that is not known.
        unit: of the loss.
        show: whether to show anything.
    """

    def __init__(self, steps: int | None, unit: str = "nats", show: bool = True):
        self.steps, self.unit, self.show = steps, unit, show
        self.smooth: float | None = None
        self._bar: Any = None
        self._printed, self._shown = -1, 0.0
        self._first = (0, time.perf_counter())

    def __enter__(self) -> Progress:
        self._first = (0, time.perf_counter())
        if self.show and sys.stderr.isatty() and find_spec("rich") is not None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(),
                TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task("fit", total=self.steps, loss="")
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def note(self, text: str) -> None:
        """Say one line beside the bar."""
        if not self.show:
            return
        if self._bar is not None:
            self._bar.console.print(f"[dim]{text}[/dim]", highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def update(self, step: int, loss: float, held_out: float | None = None) -> None:
        """Report a mean loss at a step."""
        if not self.show:
            return
        trend = loss if self.smooth is None else 0.8 * self.smooth + 0.2 * loss
        arrow = "→" if self.smooth is None else "↓" if trend < self.smooth else "↑"
        now, (begun, begin) = time.perf_counter(), self._first
        rate = (step - begun) / max(now - begin, 1e-9)
        if self.smooth is None:
            self._first = step, now  # the first steps are slow
        self.smooth = trend
        text = f"loss {loss:.4g} {self.unit} {arrow} {trend:.4g}, {rate:,.0f} steps/s"
        if held_out is not None:
            text += f", held-out ELBO {held_out:.4g}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=text)
        elif self.steps is None:
            if now - self._shown > EVERY:
                self._shown = now
                print(f"step {step}: {text}", file=sys.stderr, flush=True)
        elif step * LINES // self.steps > self._printed or step >= self.steps:
            self._printed = step * LINES // self.steps
            left = f"{(self.steps - step) / max(rate, 1e-9):.0f} s left"
            print(f"step {step}/{self.steps}: {text}, {left}", file=sys.stderr, flush=True)
