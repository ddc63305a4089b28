"""A rate and an end by themselves: the controller of `fit(..., steps="auto")`.

A stretch of steps at one rate is judged by its iterates. Where they go one way at full speed, the
rate rises; where they still go somewhere, the next stretch is twice as long; where they have
settled, their average is kept and the rate falls. The fit ends when the gain of the last fall says
that further ones bring less than the tolerance.

Source: Welandawe, Andersen, Vehtari & Huggins 2022, "A framework for improving the reliability of
black-box variational inference", arXiv:2203.15945. Theirs compares averages by the symmetrised KL
divergence of Gaussians; here the losses of two averages on the same draws are compared, which every
guide has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .convergence import AHEAD, DRIFT, EXCESS, QUARTERS, RHAT, SPEED, Losses
from .iterates import averages, name_of, size_of, spread, stretch, taken

FIRST = 256  # steps of the first stretch
MOST = 100_000  # steps after which a fit ends in any case (that of a resumed run: again so many)
RISE = 8.0  # of the rate, while all goes one way
FALL = 4.0  # of the rate, when its iterates have settled
HIGHEST = 0.1  # rate that is raised to
FEW = 4_096  # parameters up to which the rate is raised: networks are not asked to bear it
EXPECTED = 10_000  # steps that are expected when it is decided whether compiling pays
LOWEST = 1e-7  # rate below which no gain is waited for
WAITS = 3  # looks at held-out data without a gain at one rate


class Pace:
    """Set the rate of a run, and tell when it has converged. Its state is `run.pace`.

    Args:
        run: the `Run` whose parameters are averaged; `rate` is what its step reads.
        tolerance: nats (of the run's unit) that the end may leave to be gained.
        held_out: parameters -> losses of groups of held-out data, (G,); None looks at all data.
        note: told a line at each look.
    """

    def __init__(
        self,
        run: Any,
        rate: Tensor,
        tolerance: float,
        held_out: Callable[[dict[str, Tensor]], Tensor] | None,
        note: Callable[[str], None],
    ):
        self.run, self.rate, self.tolerance = run, rate, tolerance
        self.held_out, self.note = held_out, note
        if run.pace is None:
            kept = {k: p.clone() for k, p in run.variables.params.items()}
            run.pace = {"rate": float(rate), "falls": 0, "kept": kept, "said": None}
            if held_out is not None:
                run.pace |= {"scores": held_out(kept), "stage": 0.0}
            self._next(FIRST)
        elif run.iterates is None:
            self._next(FIRST)
        rate.fill_(run.pace["rate"])

    @property
    def ended(self) -> bool:
        """True where the fit has come to its end."""
        assert self.run.pace is not None
        return self.run.pace["said"] is not None

    @property
    def over(self) -> int:
        """The step at which the stretch ends."""
        assert self.run.iterates is not None
        return self.run.iterates["start"] + self.run.iterates["length"]

    def look(self) -> None:
        """Judge the stretch that is over: a new rate, a longer stretch, or the end."""
        if not taken(self.run.iterates):
            self._next(2 * self._length)
        elif self.held_out is None:
            self._look_at_losses()
        else:
            self._look_at_held_out()

    def back_off(self) -> bool:
        """Go on more slowly, as the loss was not finite; False where that has not helped."""
        assert self.run.pace is not None
        self._fall(self.run.pace["rate"] / FALL**2)
        self._next(FIRST)
        self.note(f"the loss was not finite: rate {self.run.pace['rate']:.2g}")
        return self.run.pace["rate"] > LOWEST

    # ---- all data: losses on the same draws

    def _look_at_losses(self) -> None:
        run, at, tol = self.run, self.run.pace, self.tolerance
        assert at is not None and run.iterates is not None
        params, length = run.variables.params, self._length
        move, means = spread(run.iterates), averages(run.iterates, run.variables.params)
        losses = Losses(run, [*means, at["kept"]], tol / 8)
        drift, drift_se = losses(**DRIFT)
        excess, _ = losses(**EXCESS)
        gain, gain_se = losses(p5=1.0, p4=-1.0)
        error = max(excess, 0.0) / QUARTERS
        worst = int(move["rhat"].argmax())
        rhat = float(move["rhat"][worst])
        speed = float(move["way"].abs().max()) / (at["rate"] * 0.75 * length)
        numbers = {
            "rhat": rhat, "parameter": name_of(worst, size_of(params), params), "gain": gain,
            "gain_se": gain_se, "average_error": error, "rate": at["rate"], "drift": drift,
        }  # fmt: skip
        if not all(map(math.isfinite, (drift, excess, gain))):
            self._return_to_kept(numbers)
            return
        if (
            speed > SPEED and drift > 2 * drift_se + tol / 10 and not at["falls"]
            and RISE * at["rate"] <= HIGHEST and size_of(params) <= FEW
        ):  # fmt: skip
            run.pace = {**at, "rate": RISE * at["rate"]}
            self._report(f"all go one way: rate {RISE * at['rate']:.2g}", numbers)
            self._next(length)
            return
        if gain < -max(2 * gain_se, tol / 4):  # noise at this rate costs more than it brings
            self._return_to_kept(numbers)
            return
        still = excess > tol / 10 and rhat > RHAT and AHEAD * drift > tol / 4
        if still or error > tol / 4:
            self._report("still moving" if still else "noisy", numbers)
            self._next(2 * length)
            return
        left = (max(gain, 0.0) / (FALL - 1) if at["falls"] else max(gain, 0.0)) + error
        at = run.pace = {**at, "kept": means[-1] if gain > 0 else at["kept"]}
        numbers["further"] = left
        if left + 2 * gain_se <= tol and (at["falls"] or rhat <= RHAT):
            self._end(True, numbers)
        elif at["rate"] / FALL < LOWEST:
            self._end(False, numbers)
        else:
            self._fall(at["rate"] / FALL)
            self._report(f"settled: rate {at['rate'] / FALL:.2g}", numbers)
            self._next(length)

    def _return_to_kept(self, numbers: dict[str, Any]) -> None:
        """The stretch made it worse: back, and slower."""
        at, length = self.run.pace, self._length
        assert at is not None
        if at["rate"] / FALL < LOWEST:
            self._end(False, numbers)
            return
        self._fall(at["rate"] / FALL)
        self._report(f"worse than before: rate {at['rate'] / FALL:.2g}", numbers)
        self._next(length)

    # ---- mini-batches: held-out data, paired over data

    def _look_at_held_out(self) -> None:
        run, at, tol, length = self.run, self.run.pace, self.tolerance, self._length
        assert at is not None and run.iterates is not None and self.held_out is not None
        mean = averages(run.iterates, run.variables.params)[-1]
        scores = self.held_out(mean)
        each = at["scores"] - scores  # of groups of data, on the same draws
        gain, se = float(each.mean()), float(each.std()) / math.sqrt(len(each))
        if not math.isfinite(gain):
            self._return_to_kept({"gain": gain})
            return
        waits = 0 if gain > max(tol / 2, se) else at.get("waits", 0) + 1
        if gain > 0:
            at = {**at, "kept": mean, "scores": scores, "stage": at["stage"] + gain}
        run.pace = {**at, "waits": waits}
        if gain > 0:
            run.best, run.best_step = -float(scores.mean()), run.steps
            run.best_params = {k: p.clone() for k, p in mean.items()}
        numbers = {"gain": gain, "gain_se": se, "rate": at["rate"], "stage": at["stage"]}
        enough = waits >= WAITS or gain < -2 * se
        if not enough:
            self._report("held-out data", numbers)
            self._next(length if waits == 0 else math.ceil(1.5 * length))
            return
        if at["falls"] and at["stage"] <= max(tol, 2 * se):
            self._end(True, numbers)
        elif at["rate"] / FALL < LOWEST:
            self._end(False, numbers)
        else:
            self._fall(at["rate"] / FALL)
            self._report(f"no gain on held-out data: rate {at['rate'] / FALL:.2g}", numbers)
            self._next(length)

    # ---- what follows

    @property
    def _length(self) -> int:
        assert self.run.iterates is not None
        return int(self.run.iterates["length"])

    def _next(self, length: int) -> None:
        """Begin a stretch here."""
        self.run.iterates = stretch(self.run.steps, length)
        assert self.run.pace is not None
        self.rate.fill_(self.run.pace["rate"])

    def _fall(self, rate: float) -> None:
        """Go on from what was kept, at a lower rate."""
        at = self.run.pace
        assert at is not None
        self.run.pace = {**at, "rate": rate, "falls": at["falls"] + 1, "stage": 0.0, "waits": 0}
        with torch.no_grad():
            for k, p in self.run.variables.params.items():
                p.copy_(at["kept"][k])

    def _report(self, what: str, numbers: dict[str, Any]) -> None:
        """Show a line."""
        gain = f"gain {numbers['gain']:.2g} ± {numbers['gain_se']:.1g}"
        rhat = "" if "rhat" not in numbers else f", R-hat {numbers['rhat']:.2f}"
        self.note(f"step {self.run.steps:,}: {what}; {gain} {self.run.unit}{rhat}")

    def _end(self, good: bool, numbers: dict[str, Any]) -> None:
        """Keep the average, and say why this is the end."""
        run = self.run
        assert run.pace is not None
        text = _how_it_ended(good, numbers, run.unit, self.tolerance)
        run.pace = {**run.pace, "said": {"good": good, "text": text, "numbers": numbers}}
        if self.held_out is None:
            run.best_params = {k: p.clone() for k, p in run.pace["kept"].items()}
            run.best_step = run.steps
        self.note(text)


def _how_it_ended(good: bool, n: Mapping[str, Any], unit: str, tolerance: float) -> str:
    """The evidence in words."""
    if "rhat" not in n:
        text = (
            f"at rate {n['rate']:.2g} the average of the parameters gains {n['stage']:.2g} {unit} "
            f"on held-out data (the last look {n['gain']:.2g} ± {n['gain_se']:.1g}, paired over "
            "data)"
        )
    else:
        text = (
            f"the average at rate {n['rate']:.2g} gains {n['gain']:.2g} ± {n['gain_se']:.1g} "
            f"{unit} on what was kept before, R-hat of the iterates is {n['rhat']:.2f} "
            f"({n['parameter']}), and the Monte Carlo error of their average "
            f"{n['average_error']:.1g}"
        )
    if not good:
        return f"not converged: {text}; no rate makes it better: look at run.history."
    more = f"; about {n['further']:.1g} are still to be gained" if "further" in n else ""
    return f"converged to {tolerance:g} {unit}: {text}{more}."
