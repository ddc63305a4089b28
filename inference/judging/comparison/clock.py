"""Milliseconds of the step that a fit would use: eager, or compiled where a fit would compile."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator

import torch

from ...elbo import Estimator
from ...estimate import Estimate
from ...graph import Budget, OutOfBudget, TraceFailure
from ...optim import Adam
from ...randomness import forked
from ...training.choosing import WORTH_COMPILING
from ...training.options import DEFAULTS
from ...training.steps import CompiledStep, EagerStep, Step
from ...training.update import Update, Variables
from .noise import Place

STEPS = 5_000  # of the fit to come: its default
TIMED, ENOUGH = 12, 1.0  # calls, or seconds of them
TOGETHER = 15.0  # seconds after which no further step is compiled


class StepClock:
    """Times one estimator's training step on the place's batch: loss, gradient and Adam.

    Attributes:
        how: "eager", "compiled", or "estimated": as much faster than the draws made in batches as
            the steps were that have been compiled.
    """

    def __init__(self, place: Place, estimator: Estimator):
        pair = place.pair
        self.update = Update(pair.pair, estimator, Adam(1e-3), place.per, kwargs=pair.kwargs)
        state = Variables.start(pair.pair, self.update.optimiser)
        params = {k: v.detach().clone() for k, v in pair.params.items()}
        buffers = {k: v.clone() for k, v in pair.buffers.items()}
        self.variables = Variables(params, buffers, state.optim, state.count)
        self.rate = torch.zeros((), device=pair.device)  # the parameters stay
        self.batch, self.device = pair.args, pair.device
        self.how, self.note = "eager", ""
        self.step: Step = EagerStep(self.update, self.variables, self.rate)
        self.seconds: list[float] = []
        for _ in range(3):  # the first pays for what is loaded and allocated
            eager = self._call()
        self.each = eager

    def compile(self, asked: bool | str, seconds: float) -> float:
        """Compile where a fit of 5,000 steps would, by its rule and budget; seconds that it took.

        Args:
            asked: True, False or "auto".
            seconds: left for compiling; none is begun where there are none.
        """
        ahead = self.each * STEPS
        if asked is False or (asked == "auto" and ahead < WORTH_COMPILING):
            return 0.0
        if asked == "auto" and seconds <= 0:
            self.how = "estimated"
            return 0.0
        begin = time.perf_counter()
        budget = Budget(ahead, DEFAULTS["compile_budget"]) if asked == "auto" else Budget()
        step = CompiledStep(self.update, self.variables, self.rate, 8, budget)
        try:
            with forked():
                step(self.batch)
            self.step, self.how = step, "compiled"
        except (TraceFailure, OutOfBudget) as failure:
            self.note = f"eager steps: {failure}"
        return time.perf_counter() - begin

    def _call(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        self.step(self.batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / self.step.repeats

    def walk(self) -> Iterator[None]:
        """Calls for the clock, where they are short."""
        while len(self.seconds) < TIMED and sum(self.seconds) * self.step.repeats < ENOUGH:
            self.seconds.append(self._call())
            yield

    @property
    def milliseconds(self) -> Estimate:
        """The median over calls, and its standard error."""
        middle = statistics.median(self.seconds)
        away = statistics.median(abs(s - middle) for s in self.seconds)
        se = 1.2533 * 1.4826 * away / math.sqrt(len(self.seconds))  # of a normal sample's median
        return Estimate(1e3 * middle, 1e3 * se)


def all_milliseconds(clocks: list[StepClock], batched: list[float]) -> list[Estimate]:
    """Of every step; those that a fit would compile and that were not, from those that were.

    Args:
        clocks: of the estimators.
        batched: their milliseconds of a gradient when drawn in batches, where Python costs little.
    """
    ratios = [
        c.milliseconds.value / b
        for c, b in zip(clocks, batched)
        if c.how == "compiled" and c.milliseconds.value
    ]
    out = []
    for clock, b in zip(clocks, batched):
        if clock.how != "estimated" or not ratios:
            out.append(clock.milliseconds)
            continue
        mean = statistics.geometric_mean(ratios)
        spread = max(ratios) / min(ratios) if len(ratios) > 1 else 2.0
        out.append(Estimate(mean * b, mean * b * max(0.25, spread - 1) / 2))
    return out
