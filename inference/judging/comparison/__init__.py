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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...draws.density import missing_density
from ...draws.measures import Moments
from ...draws.sampler import Chunk, conditions, label_of, sample
from ...elbo import IWAE, Estimator, Trace, estimator_of
from ...estimate import Estimate
from ...pairs.gate import CheckedPair, admit
from ...pairs.options import check_options
from ...randomness import forked
from ...weights import LogWeights, log_weights
from .gradients import Gradients, Group, groups_of
from .result import VARIABLES, Comparison

__all__ = ["Comparison", "compare"]

WORTH_COMPILING = 5.0  # seconds of batched draws ahead, per estimator
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
        place = _place(model, guide, batch)
        measured, refused = [], {}
        for e in estimators:
            try:
                measured.append(EstimatorDraws(place, e, draws, seed))
            except ValueError as refusal:
                refused[repr(e)] = str(refusal)
        if not measured:
            first, why = next(iter(refused.items()))
            raise ValueError(
                f"compare: no estimator takes this pair. {first}: {why.removeprefix(f'{first}: ')}"
            )
        ahead = sum(m.ahead for m in measured)
        if compile is True or (compile == "auto" and ahead > WORTH_COMPILING * len(measured)):
            for m in measured:  # all or none: milliseconds are compared
                m.compile()
        _in_turn(m.batches() for m in measured)
        _in_turn(m.time() for m in measured)
        truth = _reference(place, reference, seed)
    return _dataset(place, measured, truth, draws, refused)


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


def _place(model: Any, guide: Any, batch: Any) -> Place:
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


class EstimatorDraws:
    """One estimator's draws and what they say, per group in the order of the place's groups."""

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

    def numbers(self) -> dict[str, Any]:
        """The variables of a `Comparison` that follow from draws: a number, or one per group."""
        groups, n, ms = self.place.groups, self.gradients.n, self.own.milliseconds
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
    measured: list[EstimatorDraws],
    truth: tuple[str, Estimate],
    draws: int,
    refused: dict[str, str],
) -> Comparison:
    estimators = [m.estimator for m in measured]
    unit = "nats per datum" if place.rows > 1 else "nats"
    log_px, log_px_se = ((math.nan if v is None else v) / place.rows for v in truth[1])
    found = [m.numbers() for m in measured]
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
    notes = [f"{m.estimator!r}: {m.own.note}" for m in measured if m.own.note]
    attrs = {
        "unit": unit, "reference": truth[0], "label": place.label,
        "log_px": log_px, "log_px_se": log_px_se,
        "draws": draws, "device": str(place.pair.device),
        "how": ", ".join(dict.fromkeys(m.own.how for m in measured)), "notes": "; ".join(notes),
    }  # fmt: skip
    if refused:
        attrs |= {"refused": list(refused), "refused_because": list(refused.values())}
    return Comparison(data, coords, attrs).recommended()
