"""The verdict on a fit: converged or not, the evidence, and what to do where it has not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide import AutoContinuous, AutoGuide
from torch import Tensor

from ..randomness import forked
from ..weights import no_validation
from .iterates import averages, name_of, size_of, spread, taken
from .update import at_step

RHAT = 1.1  # of the iterates, above which they still go somewhere
TOLERANCE = 0.05  # nats
FEW, MANY = 8, 64  # draws of the loss at averages of iterates: until they can tell, or so many
SPEED = 0.3  # of a learning rate a step: no way that Adam's noise goes
AHEAD = 2.0  # gains of the last half of a stretch that are still to come: where losses fall as 1/t
EVEN = 0.8  # of the first part of a way, that its last part is, where nothing slows down
FAR = 20.0  # times the steps made: more is no advice
LAST = torch.tensor(1e9)  # a step count at which every annealing has ended


@dataclass(frozen=True)
class Convergence:
    """The verdict on a fit: true where it has converged, and `str()` says why.

    Attributes:
        good: None where it cannot be told.
        moving: whether the parameters still go somewhere (else noise is what keeps them off).
        text: the evidence, and what to do.
        numbers: the same by name: R-hat, nats.
    """

    good: bool | None
    text: str
    moving: bool = False
    numbers: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return self.good is True

    def __str__(self) -> str:
        return self.text


class Losses:
    """The loss at some parameters, all on the same draws: their differences have little noise.

    Args:
        run: whose pair, estimator and data it is.
        points: the parameters.
        precision: nats, of the standard error of a difference where draws can bring it about.
    """

    def __init__(self, run: Any, points: Sequence[Mapping[str, Tensor]], precision: float):
        self.run, self.points = run, points
        self.values = torch.empty(0, len(points), dtype=torch.float64)
        while len(self.values) < FEW or (
            len(self.values) < MANY and self._error() > precision and self.values.isfinite().all()
        ):
            more = [self._row(len(self.values) + i) for i in range(FEW)]
            self.values = torch.cat([self.values, torch.stack(more)])

    def _row(self, i: int) -> Tensor:
        """The losses on draw i."""
        run, pair, estimator = self.run, self.run.pair_, self.run.estimator
        known = {"nesting": pair.nesting, "full_sizes": pair.full_sizes, **run.kwargs,
                 "vectorized": pair.way or True}  # fmt: skip
        out = []
        for params in self.points:
            buffers = {k: b.clone() for k, b in run.buffers.items()}
            with (
                torch.no_grad(), no_validation(), forked(run.seed + 1 + i),
                pair.bind(params, buffers), at_step(estimator, LAST.to(run.device)),
            ):  # fmt: skip
                weights = estimator.draw(pair.model, pair.guide, *run.example, **known)
                out.append(-estimator.bound(weights).double().cpu() / run.divide)
        return torch.stack(out)

    def _error(self) -> float:
        differences = self.values - self.values[:, -1:]
        return float(differences.std(0).max()) / math.sqrt(len(differences))

    def __call__(self, **contrast: float) -> tuple[float, float]:
        """A sum of losses with factors `p0=..., p1=...` of the points: its mean and error, nats."""
        each = sum(c * self.values[:, int(k[1:])] for k, c in contrast.items())
        assert torch.is_tensor(each)
        return float(each.mean()), float(each.std()) / math.sqrt(len(each))


# of four quarters of a stretch and of all of it: points 0 to 4
DRIFT = {"p0": 0.5, "p1": 0.5, "p2": -0.5, "p3": -0.5}  # what the loss fell by, half to half
EXCESS = {"p0": 0.25, "p1": 0.25, "p2": 0.25, "p3": 0.25, "p4": -1.0}
QUARTERS = 3  # the average of n quarters has a Monte Carlo error of 1 / (n - 1) of their excess


def judged(run: Any) -> Convergence:
    """Judge a `Run`: with a given number of steps by the iterates of their second half."""
    if run.pace is not None:
        return _ended(run)
    state, unit = run.iterates, run.unit
    if not taken(state):
        return Convergence(None, "not known: too few steps to tell.")
    assert state is not None
    tolerance = float(run.settings.get("tolerance") or TOLERANCE)
    move, size = spread(state), size_of(run.variables.params)
    worst = int(move["rhat"].argmax())
    rhat, name = float(move["rhat"][worst]), name_of(worst, size, run.variables.params)
    numbers: dict[str, Any] = {"rhat": rhat, "parameter": name, "tolerance": tolerance}
    head = f"over the last {state['length']:,} steps R-hat of the iterates is {rhat:.2f} ({name})"
    if state["sums"].shape[1] < size or run.batches is None or not _all_data(run):
        return _by_losses(run, head, tolerance, numbers)
    losses = Losses(run, [*averages(state, run.variables.params), run.final], tolerance / 32)
    if not losses.values.isfinite().all():
        return Convergence(False, "not converged: the loss is not finite.", True, numbers)
    drift, drift_se = losses(**DRIFT)
    error = losses(**EXCESS)[0] / QUARTERS
    last, last_se = losses(p5=1.0, p4=-1.0)
    slower = rhat < RHAT or float(move["even"][worst]) < EVEN
    ahead = (AHEAD if slower else FAR) * max(drift, 0.0)  # at an even pace there is no end in sight
    numbers |= {
        "drift": drift, "drift_se": drift_se, "further": ahead + max(error, 0.0),
        "average_error": error, "last": last, "last_se": last_se,
    }  # fmt: skip
    head += (
        f", the loss at the average of their second half is {drift:.2g} ± {drift_se:.1g} {unit} "
        f"below that of the first, and the Monte Carlo error of the whole average {error:.1g}"
    )
    noise = math.hypot(drift_se, 2 * error)  # of draws, and of averages of half as many iterates
    if ahead > tolerance and drift > 2 * noise and (rhat > RHAT or drift > 3 * noise):
        text = f"not converged: {head}. More steps would gain about {ahead:.2g} {unit} or more"
        return Convergence(False, f"{text}: {_advice(run, losses, move)}.", True, numbers)
    if max(last, error) - 2 * last_se > tolerance:
        text = (
            f"not converged: {head}. The parameters go nowhere, but the last ones are worth "
            f"{last:.2g} ± {last_se:.1g} {unit} less than the average: lower the rate "
            '(schedule="cosine", or a lower lr), take more particles, or steps="auto", which '
            "averages"
        )
        return Convergence(False, f"{text}.", False, numbers)
    text = f"converged to {tolerance:g} {unit}: {head}."
    return Convergence(True, text, False, numbers)


def _all_data(run: Any) -> bool:
    """Tell whether every step took all data, so that the loss can be computed again."""
    tensors = [a for a in run.example if torch.is_tensor(a)]
    rows = len(tensors[0]) if tensors and tensors[0].dim() else 0
    return run.batches["batch_size"] in (None, rows) and run.batches["rows"] == rows


def _ended(run: Any) -> Convergence:
    """Say how a fit with `steps="auto"` ended."""
    said = run.pace["said"]
    if said is None:
        why = run.stopped or f"{run.steps:,} steps were made, and it still moves"
        return Convergence(False, f"not converged: {why}; go on with resume=run.", True)
    return Convergence(said["good"], said["text"], False, said["numbers"])


def _by_losses(run: Any, head: str, tolerance: float, numbers: dict[str, Any]) -> Convergence:
    """By the losses that the steps had: of mini-batches, or where the averages are too large."""
    assert run.iterates is not None
    start, unit = run.iterates["start"], run.unit
    losses = np.array(run.losses[start : start + run.iterates["length"]], float)
    halves = [h[np.isfinite(h)] for h in np.array_split(losses, 2)]
    if min(map(len, halves)) < 2:
        return Convergence(None, "not known: too few steps to tell.")
    drift = float(halves[0].mean() - halves[1].mean())
    se = math.hypot(*(h.std(ddof=1) / math.sqrt(len(h)) for h in halves))
    numbers |= {"drift": drift, "drift_se": se, "further": AHEAD * max(drift, 0.0)}
    head += f", and the loss fell by {drift:.2g} ± {se:.1g} {unit} from half to half"
    if drift > 3 * se and AHEAD * drift > tolerance:
        more = min(FAR, AHEAD * drift / tolerance) * run.steps
        text = f"not converged: {head}. More steps: about {_rounded(more)} (resume=run)"
        return Convergence(False, f"{text}.", True, numbers)
    if AHEAD * (drift + 2 * se) > tolerance:
        text = (
            f"not known: {head}: the noise of the batches hides whether more is to be had. "
            'Held-out data tell: valid=..., with steps="auto"'
        )
        return Convergence(None, f"{text}.", False, numbers)
    return Convergence(True, f"converged to {tolerance:g} {unit}: {head}.", False, numbers)


def _advice(run: Any, losses: Losses, move: Mapping[str, Tensor]) -> str:
    """Advice about parameters that still move."""
    assert run.iterates is not None
    rate, length = float(run.settings["lr"]), run.iterates["length"]
    speed = move["way"].abs() / (rate * 0.75 * length)
    fastest = int(speed.argmax())
    tolerance = float(run.settings.get("tolerance") or TOLERANCE)
    do = []
    if run.settings.get("schedule") == "constant" and float(speed[fastest]) > SPEED:
        name = name_of(fastest, size_of(run.variables.params), run.variables.params)
        do.append(
            f"raise lr (to {min(0.1, 10 * rate):g}, say: {name} moves by "
            f"{float(speed[fastest]):.1f} lr a step, all of it one way)"
        )
    early, _ = losses(p0=1.0, p1=-1.0)
    late, _ = losses(p2=1.0, p3=-1.0)
    ratio = late / early if early > 0 else 1.0
    if 0 < ratio < 0.8:  # a quarter of the stretch brings so much less than the one before
        left = late * ratio / (1 - ratio)
        quarters = max(1.0, math.log(max(left / tolerance, 1.5)) / -math.log(ratio))
        do.append(f"more steps: about {_rounded(run.steps + quarters * length / 4)} in all")
    elif ratio < 1.2 and (more := AHEAD * losses(**DRIFT)[0] / tolerance) < FAR:
        do.append(f"more steps: about {_rounded(max(2.0, more) * run.steps)} in all")
    else:
        do.append(f"many more steps than {run.steps:,}: no end is in sight")
    if isinstance(guide := run.pair_.guide, AutoGuide) and not hasattr(guide, "loc0"):
        kind = ' (make_guide(..., start="pathfinder"))' if isinstance(guide, AutoContinuous) else ""
        do.append(f"start from pathfinder{kind or ': make_guide(..., start=...)'}")
    do += [f"centre {name} (mean {m:.3g}, sd {s:.2g})" for name, m, s in _uncentred(run)]
    return "; or ".join(do)


def _uncentred(run: Any) -> list[tuple[str, float, float]]:
    """Inputs far from zero, whose coefficients are tied to the intercept: name, mean, sd."""
    known = {"nesting": run.pair_.nesting, "full_sizes": run.pair_.full_sizes, **run.kwargs}
    with torch.no_grad(), no_validation(), forked(run.seed), run.bind():
        weights = run.estimator.draw(run.pair_.model, run.pair_.guide, *run.example,
                                     vectorized=run.pair_.way or True, **known)  # fmt: skip
    seen = [t.value for t in weights.model.values() if t.observed and torch.is_tensor(t.value)]
    try:
        names = list(inspect.signature(run.pair_.model).parameters)
    except (TypeError, ValueError):
        return []
    out = []
    for name, a in zip(names, run.example):
        if not (torch.is_tensor(a) and a.is_floating_point() and a.dim() in (1, 2) and len(a) > 2):
            continue
        if any(v.numel() == a.numel() and torch.equal(v.flatten(), a.flatten()) for v in seen):
            continue
        columns = a.reshape(len(a), -1).double()
        mean, sd = columns.mean(0), columns.std(0)
        far = torch.where(sd > 0, mean.abs() / sd, torch.zeros_like(sd))
        if float(far.max()) > 3:
            i = int(far.argmax())
            shown = name if a.dim() == 1 else f"{name}[:, {i}]"
            out.append((shown, float(mean[i]), float(sd[i])))
    return out


def _rounded(steps: float) -> str:
    """A number of steps to one digit, or two: `20,000`."""
    unit = 10 ** max(0, math.floor(math.log10(max(steps, 1))) - 1)
    return f"{math.ceil(steps / unit) * unit:,.0f}"
