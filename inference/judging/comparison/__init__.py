"""Choose the estimator for a pair: value, bias, noise and cost of each, or a race between them.

from inference import compare, elbo

found = compare(vae, digits.test[:64], [elbo.Trace(), elbo.IWAE(8), elbo.DReG(8)])
print(found)               # a table, and one estimator recommended in a sentence
found.plot()               # signal-to-noise and variance, efficiency, layers
compare(vae, digits.train, [...], batch_size=64, race=30, valid=digits.valid)  # trains with each
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from ...draws.sampler import data_plate
from ...elbo import Estimator, Trace, estimator_of
from ...estimate import Estimate
from ...executors import spread
from ...pairs.arguments import as_arguments, take_rows, takes
from ...pairs.gate import admit
from ...pairs.options import check_options, number
from ...randomness import forked
from .measuring import Measured, measure, measure_there, place_of
from .noise import Place
from .race import HELD_OUT, ROWS, Judge, Lane, behind, judge_of, run_race
from .reference import log_evidence_of
from .result import VARIABLES, Comparison

__all__ = ["Comparison", "compare"]


def compare(
    model: Any,
    guide: Any = None,
    batch: Any = None,
    estimators: Sequence[Estimator] | None = None,
    *,
    draws: int | None = None,
    batch_size: int | None = None,
    race: float | None = None,
    valid: Any = None,
    seeds: int = 3,
    lr: float = 1e-3,
    reference: float | Tensor | tuple[float, float] | None = None,
    compile: bool | str = "auto",
    seed: int = 0,
    executor: Executor | None = None,
) -> Comparison:
    """Measure estimators on one pair at the parameters that it has now, or let them race.

    `compare(pair, batch, estimators)` for a module with `model` and `guide`, or a `Run` (at its
    kept parameters); `compare(model, guide, batch, estimators)` for any two Pyro callables.

    Noise and time at one place cannot tell where training with an estimator ends: another bound
    has another optimum. A race can.

    Args:
        batch: a tensor or a tuple of the pair's arguments.
        estimators: of `inference.elbo`, or yours.
        draws: of value and gradient, per estimator; None takes from 200 to 1,000, until the
            variance is known within 5 %.
        batch_size: rows of a training step, taken at random from those given. None: all rows given
            are one step's; where they are independent, they stand for mini-batches like them, and
            the noise that those have is found by halving them. The number of rows: a step takes all
            data, and there is no such noise.
        race: seconds for which each estimator trains from here, with Adam, for the recommendation
            to come from held-out data; each makes the steps that its milliseconds allow in them.
        valid: held-out arguments of a race; None holds out a fifth of independent rows, and judges
            others on the data themselves.
        seeds: fits of each estimator in a race; lr: their learning rate.
        reference: log p(x) of the batch, summed, in nats; or that and its standard error. None
            finds one: the exact sum where all latents are discrete, else an IWAE bound with 1,000
            particles, and none where its weights are bad. `attrs["reference"]` says which.
        compile: True, False, or "auto": the step is timed compiled where a fit of 5,000 steps would
            compile it, by the fit's rule and budget; where that takes more than 15 s in all, the
            others' time is estimated from those compiled. Fewer than 200 draws are a quick look,
            without compiling. Draws are compiled where it is True.
        seed: of all draws. Nothing outside is changed, not even the random state.
        executor: any `concurrent.futures.Executor`, whose workers measure an estimator each;
            milliseconds are then those of its machines. A race is run here.

    Returns:
        A `Comparison`, an `xarray.Dataset` with dims `estimator` and `group` (the halves "model"
        and "guide", then every module), in nats per datum where the pair has a data plate. Each of
        these has its standard error beside it, as `value_se`:

        - `value`; `bias`: value minus the reference;
        - `variance`: of the gradient given the batch, summed over the group's parameters: Monte
          Carlo noise; `variance_batch`: between mini-batches; `variance_step`: both;
        - `snr`: norm of the mean gradient over its standard deviation, the noise's own share
          taken out of the norm (Rainforth et al. 2018, arXiv:1802.04537, eq. 9, per group), of
          Monte Carlo noise alone; `snr_step`: of a training step's;
        - `gradient_bias`: distance of the mean gradient from that of the estimator's own bound,
          along the direction that half of the draws found;
        - `ms`: milliseconds of a training step; `efficiency`: 1 / (variance_step x seconds), the
          precision that a second buys;
        - after a race, `race`: held-out nats at the end of its last round; `race_behind`: the
          leader, or whoever was, minus it, paired over data; `race_steps`, `race_seconds`.

    Raises:
        ValueError: no estimators, fewer than 4 draws; all estimators refuse the pair (where some
            do, the others are compared, and why is among the footnotes); a reference that is not
            one number; a race shorter than one evaluation.
        TypeError: neither a pair, nor a run, nor a model followed by its guide.
    """
    if estimators is None and not (callable(guide) or guide is None):
        guide, batch, estimators = None, guide, batch
    if estimators is None or isinstance(estimators, (str, Estimator)) or not list(estimators):
        raise ValueError("estimators: expected a list such as [elbo.Trace(), elbo.IWAE(8)].")
    estimators = [estimator_of(e, Trace) for e in estimators]
    check_options(
        {"draws": 4}, compile=compile, seed=seed, lr=lr, fits=seeds, batch_size=batch_size
    )
    if draws is not None:
        check_options({"draws": 4}, draws=draws)
    if race is not None:
        number("race", race, 0.0, open=True)
    elif valid is not None:
        raise ValueError("valid: held-out data are for a race; give race=SECONDS too.")
    given = (model,) if guide is None else (model, guide)
    with forked(seed):
        if race is not None:
            batch, valid = _held_out(given, batch, valid, seed)
        place = place_of(given, batch, batch_size)
        told = (draws, compile, seed)
        if executor is None:
            answers = measure(place, estimators, *told)
        else:
            calls = [(given, batch, batch_size, e, *told) for e in estimators]
            answers = spread(executor, measure_there, calls, "compare")
        refused = {repr(e): a for e, a in zip(estimators, answers) if isinstance(a, str)}
        measured = [a for a in answers if not isinstance(a, str)]
        if not measured:
            first, why = next(iter(refused.items()))
            raise ValueError(
                f"compare: no estimator takes this pair. {first}: {why.removeprefix(f'{first}: ')}"
            )
        truth = log_evidence_of(place.pair, reference, seed)
    lanes, judge = [], None
    if race is not None:
        learns = any(g.half != "guide" for g in place.groups)
        judge = judge_of(given, valid or place.pair.args, learns)
        lanes = [Lane(m.estimator, m.ms.value or 0.0) for m in measured]
        options = {"lr": lr, "seed": seed, "batch_size": batch_size, "compile": compile}
        run_race(_start(given), batch, judge, lanes, race, seeds, options)
    return _dataset(place, measured, truth, refused, lanes, judge)


def _start(given: tuple) -> tuple:
    """Model and guide of a run, of a pair, or as they were given."""
    return (given[0].model, given[0].guide) if len(given) == 1 else given


def _held_out(given: tuple, batch: Any, valid: Any, seed: int) -> tuple[tuple, tuple | None]:
    """The data of a race, and what is held out of them."""
    if hasattr(batch, "train"):
        labels = takes("y", getattr(given[0], "model", given[0]))
        valid = (batch.valid, batch.valid_labels)[: 1 + labels] if valid is None else valid
        batch = (batch.train, batch.train_labels)[: 1 + labels]
    args = as_arguments(batch)
    if valid is not None:
        held = as_arguments(valid, "valid")
        return args, take_rows(held, slice(ROWS))
    pair = admit(*given, *args, who="compare")
    with pair.ready(0):
        local = data_plate(pair.weights(1), pair.rows) is not None
    few = round(HELD_OUT * pair.rows)
    if not local or few < 2:
        return args, None
    order = torch.randperm(pair.rows, generator=torch.Generator().manual_seed(seed))
    return take_rows(args, order[few:]), take_rows(args, order[:few][:ROWS])


def _dataset(
    place: Place, measured: list[Measured], truth: tuple[str, Estimate], refused: dict[str, str],
    lanes: list[Lane], judge: Judge | None,
) -> Comparison:  # fmt: skip
    estimators = [m.estimator for m in measured]
    unit = "nats per datum" if place.per > 1 else "nats"
    log_px, log_px_se = ((math.nan if v is None else v) / place.per for v in truth[1])
    found = [m.numbers for m in measured]
    for numbers, each in zip(found, (m.ms for m in measured)):
        numbers["bias"] = numbers["value"] - log_px
        numbers["bias_se"] = math.hypot(numbers["value_se"], log_px_se)
        numbers["ms"], numbers["ms_se"] = each.value, each.se or 0.0
        seconds = (each.value or math.nan) / 1e3
        relative = numbers["ms_se"] / (1e3 * seconds)
        steps = list(zip(numbers["variance_step"], numbers["variance_step_se"]))
        bought = [1 / (v * seconds) if v else math.inf for v, _ in steps]
        numbers["efficiency"] = bought
        numbers["efficiency_se"] = [
            e * math.hypot(relative, se / v) if v else 0.0 for e, (v, se) in zip(bought, steps)
        ]
    raced = _raced(found, lanes)
    data = {}
    for variable, (long_name, own) in VARIABLES.items():
        if variable.startswith("race") and not lanes:
            continue
        column = [numbers[variable] for numbers in found]
        dims = ("estimator", "group") if isinstance(column[0], list) else ("estimator",)
        data[variable] = (dims, column, {"long_name": long_name, "units": own or unit})
    names = [repr(e) for e in estimators]
    earlier = [names[:i].count(n) for i, n in enumerate(names)]
    named = [f"{n} #{k + 1}" if k else n for n, k in zip(names, earlier)]
    coords = {
        "estimator": named,
        "group": [g.name for g in place.groups],
        "particles": ("estimator", [e.particles for e in estimators]),
        "kind": ("estimator", [type(e).__name__ for e in estimators]),
        "is_bound": ("estimator", [bool(e.is_bound) for e in estimators]),
        "step": ("estimator", [m.step for m in measured]),
        "half": ("group", [g.half for g in place.groups]),
        "is_half": ("group", [g.name == g.half for g in place.groups]),
        "parameters": ("group", [len(g.columns) for g in place.groups]),
    }
    notes = [f"{m.estimator!r}: {m.note}" for m in measured if m.note]
    notes += [f"{lane.estimator!r}: {lane.note}" for lane in lanes if lane.note]
    attrs = {
        "unit": unit, "reference": truth[0], "label": place.label,
        "log_px": log_px, "log_px_se": log_px_se,
        "draws": max(m.draws for m in measured), "device": str(place.pair.device),
        "batch": place.rows, "how": ", ".join(dict.fromkeys(m.how for m in measured)),
        "notes": "; ".join(notes),
    }  # fmt: skip
    if refused:
        attrs |= {"refused": list(refused), "refused_because": list(refused.values())}
    if judge is not None:
        local = "nats per datum" if judge.local else "nats"
        attrs |= {"race": judge.what, "race_unit": local, "race_seeds": len(lanes[0].scores)}
        attrs |= {"race_winner": named[raced], "race_rise": lanes[raced].rise}
        attrs |= {"race_data": max(len(x.scores[0]) for x in lanes)}
    return Comparison(data, coords, attrs).recommended()


def _raced(found: list[dict[str, Any]], lanes: list[Lane]) -> int:
    """Write what a race said into the estimators' numbers; the place of the winner."""
    if not lanes:
        return -1
    last = max(lane.rounds for lane in lanes)
    winner = max(lanes, key=lambda lane: (lane.rounds == last, lane.mean))
    for numbers, lane in zip(found, lanes):
        numbers |= {
            "race": lane.mean, "race_se": _own_error(lane), "race_behind": lane.gap,
            "race_behind_se": lane.gap_se, "race_steps": lane.steps, "race_seconds": lane.seconds,
        }  # fmt: skip
    return lanes.index(winner)


def _own_error(lane: Lane) -> float:
    """Of a lane's mean over held-out data and seeds."""
    return behind(lane, dataclasses.replace(lane, scores=torch.zeros_like(lane.scores)))[1]
