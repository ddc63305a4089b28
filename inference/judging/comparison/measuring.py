"""Several estimators measured on one pair: noise and time of each, here or in other processes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...draws.sampler import conditions, data_plate, label_of
from ...elbo import Estimator
from ...estimate import Estimate
from ...pairs.arguments import takes
from ...pairs.gate import CheckedPair, admit
from ...randomness import forked
from .clock import TOGETHER, StepClock, all_milliseconds
from .gradients import groups_of
from .noise import LEAST, EstimatorDraws, Place


@dataclass
class Measured:
    """One estimator's numbers, and how they were found.

    Attributes:
        numbers: variables of a `Comparison` that follow from draws.
        draws: of value and gradient; `how` they were made, and what there is to note.
        ms: of a training step, and which `step` that is.
    """

    estimator: Estimator
    numbers: dict[str, Any]
    draws: int
    how: str
    note: str
    ms: Estimate
    step: str


def measure(
    place: Place, estimators: Sequence[Estimator], draws: int | None, compile: bool | str, seed: int
) -> list[Measured | str]:
    """Measure every estimator, or say why it refuses the pair."""
    found: list[tuple[EstimatorDraws, StepClock] | str] = []
    for e in estimators:
        try:
            found.append((EstimatorDraws(place, e, draws, seed), StepClock(place, e)))
        except ValueError as refusal:
            found.append(str(refusal))
    taken = [f for f in found if not isinstance(f, str)]
    left = TOGETHER
    for m, _ in taken:
        if compile is True:  # it gains a third, and takes as long as a step's
            m.compile()
    for _, clock in sorted(taken, key=lambda f: f[1].each):
        if compile is True or (compile == "auto" and (draws is None or draws >= LEAST)):
            left -= clock.compile(compile, left)
    _in_turn(m.walk() for m, _ in taken)
    _in_turn(c.walk() for _, c in taken)
    ms = iter(all_milliseconds([c for _, c in taken], [m.own.milliseconds for m, _ in taken]))
    return [f if isinstance(f, str) else _measured(*f, next(ms)) for f in found]


def measure_there(
    given: tuple, batch: Any, batch_size: int | None, estimator: Estimator, draws: int | None,
    compile: bool | str, seed: int,
) -> Measured | str:  # fmt: skip
    """Measure one of them in another process, which makes the pair ready for itself."""
    with forked(seed):
        place = place_of(given, batch, batch_size)
        return measure(place, [estimator], draws, compile, seed)[0]


def _measured(draws: EstimatorDraws, clock: StepClock, ms: Estimate) -> Measured:
    notes = "; ".join(n for n in (draws.own.note, clock.note) if n)
    numbers, how = draws.numbers(), draws.own.how
    return Measured(draws.estimator, numbers, draws.values.n, how, notes, ms, clock.how)


def _in_turn(walks: Iterable[Iterator[None]]) -> None:
    """One step of each in turn, until all are done: what the machine does meanwhile hits all."""
    walks = list(walks)
    while walks:
        walks = [w for w in walks if next(w, walks) is None]


def place_of(given: tuple, batch: Any, batch_size: int | None) -> Place:
    """The pair at its present parameters, on the rows of a step."""
    pair = admit(*given, batch, who="compare")
    if not pair.params:
        raise ValueError("compare: the pair has no parameters, so there is no gradient to measure.")
    pair = _alone(pair)
    with pair.ready(0):
        weights = pair.weights(1)
        label = label_of(*conditions(pair, weights))
    local, size = data_plate(weights, pair.rows) is not None, pair.rows
    per = max(1.0, weights.data_size)
    if batch_size is None:
        rows = size if local and len(weights.plates) == 1 and size >= 4 else 0
        return Place(pair, groups_of(pair), per, label, None, rows)
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size: expected 1 .. {size} (the rows of the data), got {batch_size}."
        )
    if batch_size == size:
        return Place(pair, groups_of(pair), per, label)
    if local:
        step = pair.take(torch.randperm(size)[:batch_size])
        return Place(step, groups_of(step), per * batch_size / size, label, pair, batch_size)
    many = pair
    if takes("size", pair.model, pair.guide):
        many = dataclasses.replace(pair, kwargs={"size": size})
    else:
        plates = [p for _, t in weights.terms() if t.observed for p in t.plates if p.size == size]
        if not plates:
            raise ValueError(
                f"batch_size: no plate of the model has the {size} rows of the data, so a "
                "mini-batch cannot be scaled to them. Leave batch_size= out."
            )
        many = _alone(pair, {plates[0].name: size})
    return Place(pair, groups_of(pair), per, label, many, batch_size)


def _alone(pair: CheckedPair, sizes: dict[str, int] | None = None) -> CheckedPair:
    """The pair with sizes of plates of its own."""
    pair = dataclasses.replace(pair, pair=copy.copy(pair.pair))
    pair.pair.full_sizes = dict(sizes or {})
    return pair
