"""Draws of several estimators on one pair, and their moments; parts made elsewhere are joined."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...draws.measures import Moments
from ...draws.sampler import conditions, label_of
from ...elbo import Estimator
from ...pairs.gate import CheckedPair, admit
from ...randomness import forked
from .gradients import Gradients, Group, groups_of

WORTH_COMPILING = 5.0  # seconds of batched draws ahead, per estimator


@dataclass
class Place:
    """A checked pair, and how its parameters are grouped.

    Attributes:
        pair: at the parameters where estimators are compared.
        groups: of the parameters.
        rows: how many data the numbers are divided by.
        label: what log p(x) is of.
    """

    pair: CheckedPair
    groups: list[Group]
    rows: float
    label: str


def place_of(model: Any, guide: Any, batch: Any) -> Place:
    """The pair at its present parameters, on the batch as all data."""
    given = (model,) if guide is None else (model, guide)
    pair = admit(*given, batch, who="compare")
    if not pair.params:
        raise ValueError("compare: the pair has no parameters, so there is no gradient to measure.")
    pair = dataclasses.replace(pair, pair=copy.copy(pair.pair))
    pair.pair.full_sizes = {}
    with pair.ready(0):
        weights = pair.weights(1)
        label = label_of(*conditions(pair, weights))
    return Place(pair, groups_of(pair), max(1.0, weights.data_size), label)


@dataclass
class Measured:
    """Moments of one estimator's draws, and how they were made.

    Attributes:
        values, gradients: of its values, and of all entries of its gradients.
        gap, along: of the gradient's bias, first of all entries, then per group along its mean.
        ms: milliseconds of a gradient.
        how, note: as of `Gradients`.
    """

    estimator: Estimator
    values: Moments
    gradients: Moments
    gap: Moments
    along: Moments
    ms: float
    how: str
    note: str | None

    def merge(self, other: Measured) -> None:
        """Take in the draws of another process."""
        for name in ("values", "gradients", "gap", "along"):
            getattr(self, name).merge(getattr(other, name))
        self.ms = (self.ms + other.ms) / 2

    def numbers(self, groups: list[Group]) -> dict[str, Any]:
        """The variables of a `Comparison` that follow from draws: a number, or one per group."""
        n, ms = self.gradients.n, self.ms
        mean, spread = self.gradients.mean, self.gradients.variance
        squares = [float(mean[g.columns].square().sum()) for g in groups]
        variance = [float(spread[g.columns].sum()) for g in groups]
        # the noise has its share in the square of the mean
        norm = [math.sqrt(max(0.0, s - v / n)) for s, v in zip(squares, variance)]
        bias = bias_se = [0.0 if self.estimator.follows_bound else math.nan] * len(groups)
        if self.along.n:
            bias = self.along.mean.tolist()
            bias_se = (self.along.variance / self.along.n).sqrt().tolist()
        return {
            "value": float(self.values.mean),
            "value_se": float((self.values.variance / self.values.n).sqrt()),
            "variance": variance,
            "snr": [m / math.sqrt(v) if v else math.inf for m, v in zip(norm, variance)],
            "gradient_norm": norm, "gradient_bias": bias, "gradient_bias_se": bias_se,
            "ms": ms, "efficiency": [1 / (v * ms) if v else math.inf for v in variance],
        }  # fmt: skip


def measure(
    place: Place, estimators: Sequence[Estimator], draws: int, compile: bool | str, seed: int
) -> list[Measured | str]:
    """Every estimator's draws, or why it refuses the pair."""
    found: list[EstimatorDraws | str] = []
    for e in estimators:
        try:
            found.append(EstimatorDraws(place, e, draws, seed))
        except ValueError as refusal:
            found.append(str(refusal))
    measured = [f for f in found if not isinstance(f, str)]
    ahead = sum(m.ahead for m in measured)
    if compile is True or (compile == "auto" and ahead > WORTH_COMPILING * len(measured)):
        for m in measured:  # all or none: milliseconds are compared
            m.compile()
    _in_turn(m.batches() for m in measured)
    _in_turn(m.time() for m in measured)
    return [f if isinstance(f, str) else f.measured() for f in found]


def measure_there(
    model: Any, guide: Any, batch: Any, estimators: Sequence[Estimator], draws: int,
    compile: bool | str, seed: int,
) -> list[Measured | str]:  # fmt: skip
    """The same in another process, which makes the pair ready for itself."""
    with forked(seed):
        return measure(place_of(model, guide, batch), estimators, draws, compile, seed)


def joined(parts: Sequence[list[Measured | str]]) -> list[Measured | str]:
    """Join the draws of several parts."""
    first, *rest = parts
    for part in rest:
        for mine, other in zip(first, part):
            if isinstance(mine, Measured) and isinstance(other, Measured):
                mine.merge(other)
    return first


class EstimatorDraws:
    """One estimator's draws on a place, whose groups it follows."""

    def __init__(self, place: Place, estimator: Estimator, draws: int, seed: int):
        self.place, self.estimator, self.draws, self.seed = place, estimator, draws, seed
        self.own = self._sampler()
        rows = self.own(seed)[1]  # a first call allocates
        self.other = None  # draws as many at once, with the same noise
        if estimator.follows_bound:
            other = self._sampler(reference=True, replicates=self.own.replicates)
            if not torch.equal(rows, other(seed)[1]):  # else the same gradient, draw by draw
                self.other = other
        self.values, self.gradients = Moments(), Moments()
        self.gap, self.along = Moments(), Moments()

    @property
    def ahead(self) -> float:
        """Seconds that the draws will take as they are drawn now."""
        calls = 2 * math.ceil(self.draws / 2 / self.own.replicates)
        return calls * self.own.seconds[0] * (1 if self.other is None else 2)

    def compile(self) -> None:
        """Draw by compiled code from now on."""
        self.own = self._sampler(compile=True)
        self.own(self.seed)
        if self.other is not None:
            replicates = self.own.replicates
            self.other = self._sampler(reference=True, compile=True, replicates=replicates)

    def _sampler(self, **options: Any) -> Gradients:
        pair = self.place.pair
        return Gradients(
            pair.pair, self.estimator, pair.args, pair.kwargs, params=pair.params,
            buffers=pair.buffers, draws=(self.draws + 1) // 2, **options,
        )  # fmt: skip

    def batches(self) -> Iterator[None]:
        """Draw one batch per step: half of them to find the gradient's bias, half to measure it."""
        for difference in (self.gap, self.along):
            unit = _directions(self.place.groups, self.gap.mean) if self.gap.n else None
            start = self.values.n
            while self.values.n - start < self.draws / 2:
                self.seed += 1
                value, rows = self.own(self.seed)
                self.values.add(value / self.place.rows)
                self.gradients.add(rows / self.place.rows)
                if self.other is not None:
                    apart = (rows - self.other(self.seed)[1]).double() / self.place.rows
                    difference.add(apart if unit is None else apart @ unit)
                yield

    def time(self) -> Iterator[None]:
        """Calls for the clock only, where they are short."""
        while len(self.own.seconds) < 12 and sum(self.own.seconds) < 2.0:
            self.own(self.seed)
            yield

    def measured(self) -> Measured:
        """Return their moments."""
        return Measured(
            self.estimator, self.values, self.gradients, self.gap, self.along,
            self.own.milliseconds, self.own.how, self.own.note,
        )  # fmt: skip


def _in_turn(walks: Iterable[Iterator[None]]) -> None:
    """One step of each in turn, until all are done: what the machine does meanwhile hits all."""
    walks = list(walks)
    while walks:
        walks = [w for w in walks if next(w, walks) is None]


def _directions(groups: list[Group], gap: Tensor) -> Tensor:
    """A unit vector per group along the mean difference: (P, groups)."""
    out = gap.new_zeros(len(gap), len(groups))
    for i, g in enumerate(groups):
        part = gap[g.columns]
        out[g.columns, i] = part / part.norm().clamp(min=1e-300)
    return out
