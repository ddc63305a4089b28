"""Choose the estimator for a pair: value, bias, noise and cost of each, measured.

from inference import compare, elbo

found = compare(vae, digits.test[:64], [elbo.Trace(), elbo.IWAE(8), elbo.DReG(8)])
print(found)               # a table, and one estimator recommended in a sentence
found.plot()               # signal-to-noise and variance against K, efficiency, layers
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...draws.density import missing_density
from ...draws.measures import Moments
from ...draws.sampler import Chunk, conditions, label_of, sample
from ...elbo import IWAE, Estimator, Trace, estimator_of
from ...estimate import Estimate
from ...executors import spread
from ...pairs.gate import CheckedPair, admit
from ...pairs.options import check_options
from ...randomness import forked
from ...weights import LogWeights, log_weights
from .parts import Measured, Place, joined, measure, measure_there, place_of
from .result import VARIABLES, Comparison

__all__ = ["Comparison", "compare"]

PARTS = 4  # of the draws, among the workers of an executor
TIGHT = 1_000, 20  # particles and draws of the bound that stands in for log p(x)


def compare(
    model: Any,
    guide: Any = None,
    batch: Any = None,
    estimators: Sequence[Estimator] | None = None,
    *,
    draws: int = 1_000,
    reference: float | Tensor | tuple[float, float] | None = None,
    compile: bool | str = "auto",
    seed: int = 0,
    executor: Executor | None = None,
) -> Comparison:
    """Measure estimators on one pair and batch, at the parameters that it has now.

    `compare(pair, batch, estimators)` for a module with `model` and `guide`, or a `Run` (at its
    kept parameters); `compare(model, guide, batch, estimators)` for any two Pyro callables.

    Args:
        batch: a tensor or a tuple of the pair's arguments; its rows count as all data.
        estimators: of `inference.elbo`, or yours.
        draws: of value and gradient, per estimator.
        reference: log p(x) of the batch, summed, in nats; or that and its standard error. None
            finds one: the exact sum where all latents are discrete, else an IWAE bound with 1,000
            particles, a lower bound with its own error bar. `attrs["reference"]` says which.
        compile: True, False, or "auto": trace and compile a batch of draws where it pays.
        seed: of all draws. Nothing outside is changed, not even the random state.
        executor: any `concurrent.futures.Executor`, whose workers make a quarter of the draws each,
            under seeds of their own; milliseconds are then those of its machines.

    Returns:
        A `Comparison`, an `xarray.Dataset` with dims `estimator` and `group` (the halves "model"
        and "guide", then every module), in nats per datum where the pair has a data plate:

        - `value`, `value_se`; `bias`, `bias_se`: value minus the reference;
        - `variance`: of the gradient, summed over the group's parameters;
        - `snr`: norm of the mean gradient over its standard deviation, the noise's own share
          taken out of the norm (Rainforth et al. 2018, arXiv:1802.04537, eq. 9, per group);
        - `gradient_bias`, `gradient_bias_se`: distance of the mean gradient from that of the
          estimator's own bound, along the direction that half of the draws found;
        - `ms`: milliseconds per gradient when drawn in batches; `efficiency`: 1/(variance · ms).

    Raises:
        ValueError: no estimators, fewer than 4 draws; all estimators refuse the pair. Where some
            do, the others are compared, and why is among the footnotes.
        TypeError: neither a pair, nor a run, nor a model followed by its guide.
    """
    if estimators is None and not (callable(guide) or guide is None):
        guide, batch, estimators = None, guide, batch
    if estimators is None or isinstance(estimators, (str, Estimator)) or not list(estimators):
        raise ValueError("estimators: expected a list such as [elbo.Trace(), elbo.IWAE(8)].")
    estimators = [estimator_of(e, Trace) for e in estimators]
    check_options({"draws": 4}, draws=draws, compile=compile, seed=seed)
    with forked(seed):
        place = place_of(model, guide, batch)
        if executor is None:
            found = measure(place, estimators, draws, compile, seed)
        else:
            given = (model, guide, batch, estimators, max(4, -(-draws // PARTS)), compile)
            seeds = torch.randint(2**62, (PARTS,)).tolist()
            found = joined(spread(executor, measure_there, [(*given, s) for s in seeds], "compare"))
        refused = {repr(e): f for e, f in zip(estimators, found) if isinstance(f, str)}
        measured = [f for f in found if not isinstance(f, str)]
        if not measured:
            first, why = next(iter(refused.items()))
            raise ValueError(
                f"compare: no estimator takes this pair. {first}: {why.removeprefix(f'{first}: ')}"
            )
        truth = _reference(place, reference, seed)
    return _dataset(place, measured, truth, draws, refused)


# ---------------------------------------------------------------- log p(x)


def _reference(place: Place, given: Any, seed: int) -> tuple[str, Estimate]:
    """Find log p(x) of the batch, summed: in which way, and its estimate."""
    if given is not None:
        value, se = given if isinstance(given, tuple) else (given, 0.0)
        return "given by the user", Estimate(float(value), float(se))
    exact = _by_enumeration(place.pair)
    if exact is not None:
        return "exact sum over the discrete latents", Estimate(exact, 0.0)
    with place.pair.ready(seed):
        because = missing_density(place.pair.weights(2))
    if because:
        return because, Estimate.none(because)
    particles, repeats = TIGHT
    tight, values = IWAE(particles), []

    def log_w(chunk: Chunk) -> tuple[Tensor, LogWeights]:
        return tight.log_w(chunk.weights), chunk.weights

    try:
        for i in range(repeats):
            parts, weights = zip(*sample(place.pair, particles, log_w, seed=[seed, i]))
            values.append(weights[0].total(tight.per_datum(torch.cat(parts))))
    except ValueError as refusal:
        return str(refusal), Estimate.none(str(refusal))
    found = Estimate.of(torch.stack(values).double())
    return f"IWAE({particles}), a lower bound, mean of {repeats} draws", found


def _by_enumeration(pair: CheckedPair) -> float | None:
    """log p(x) where the model's latents are few and discrete, else None."""
    with pair.ready(0):
        latents = [t for t in pair.weights().guide.values() if not t.observed]
        if not all(getattr(t.fn, "has_enumerate_support", False) for t in latents):
            return None
        if any(t.fn.event_dim for t in latents):
            return None
        if math.prod(len(t.fn.enumerate_support(expand=False)) for t in latents) > 2**16:
            return None

        def nothing(*args: Any, **kwargs: Any) -> None:
            pass

        alone = log_weights(pair.model, nothing, *pair.args, nesting=pair.nesting, **pair.kwargs)
    return float(alone.elbo()) if all(t.observed for t in alone.model.values()) else None


# ---------------------------------------------------------------- the result


def _dataset(
    place: Place,
    measured: list[Measured],
    truth: tuple[str, Estimate],
    draws: int,
    refused: dict[str, str],
) -> Comparison:
    estimators = [m.estimator for m in measured]
    unit = "nats per datum" if place.rows > 1 else "nats"
    log_px, log_px_se = ((math.nan if v is None else v) / place.rows for v in truth[1])
    found = [m.numbers(place.groups) for m in measured]
    for numbers in found:
        numbers["bias"] = numbers["value"] - log_px
        numbers["bias_se"] = math.hypot(numbers["value_se"], log_px_se)
    data = {}
    for variable, (long_name, own) in VARIABLES.items():
        column = [numbers[variable] for numbers in found]
        dims = ("estimator", "group") if isinstance(column[0], list) else ("estimator",)
        data[variable] = (dims, column, {"long_name": long_name, "units": own or unit})
    names = [repr(e) for e in estimators]
    earlier = [names[:i].count(n) for i, n in enumerate(names)]
    coords = {
        "estimator": [f"{n} #{k + 1}" if k else n for n, k in zip(names, earlier)],
        "group": [g.name for g in place.groups],
        "particles": ("estimator", [e.particles for e in estimators]),
        "kind": ("estimator", [type(e).__name__ for e in estimators]),
        "is_bound": ("estimator", [bool(e.is_bound) for e in estimators]),
        "half": ("group", [g.half for g in place.groups]),
        "is_half": ("group", [g.name == g.half for g in place.groups]),
        "parameters": ("group", [len(g.columns) for g in place.groups]),
    }
    notes = [f"{m.estimator!r}: {m.note}" for m in measured if m.note]
    attrs = {
        "unit": unit, "reference": truth[0], "label": place.label,
        "log_px": log_px, "log_px_se": log_px_se,
        "draws": draws, "device": str(place.pair.device),
        "how": ", ".join(dict.fromkeys(m.how for m in measured)), "notes": "; ".join(notes),
    }  # fmt: skip
    if refused:
        attrs |= {"refused": list(refused), "refused_because": list(refused.values())}
    return Comparison(data, coords, attrs).recommended()
