"""Value and gradient of an estimator as training sees them: Monte Carlo and mini-batch noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...draws.measures import Moments
from ...elbo import Estimator
from ...pairs.gate import CheckedPair
from .gradients import Gradients, Group

BLOCKS = 8  # of draws, each left out in turn, for the errors of what follows from all of them
LEAST, MOST = 200, 1_000  # draws where none are asked for: until the variance is known, or enough
KNOWN = 0.05  # relative standard error at which it is
SPLITS = 100  # mini-batches for the variance between them


@dataclass
class Place:
    """A checked pair where estimators are compared, and how its parameters are grouped.

    Attributes:
        pair: at its parameters, on the rows of one step.
        groups: of the parameters.
        per: what numbers are divided by: the rows, or 1 where a latent is one for all data.
        label: what log p(x) is of.
        whole: the pair on all rows, where a step takes some of them.
        rows: of a step's mini-batch; 0 where a step takes all data, and there is no such noise.
    """

    pair: CheckedPair
    groups: list[Group]
    per: float
    label: str
    whole: CheckedPair | None = None
    rows: int = 0


class EstimatorDraws:
    """One estimator's draws and what they say, per group in the order of the place's groups.

    Monte Carlo noise is that of draws on one batch. Noise of mini-batches is what two halves of
    that batch differ by beyond it: half of the difference of the halves' gradients has the variance
    of a step on a fresh batch, S²/B between rows and the Monte Carlo part, whatever the rows are.
    Where there are more rows than a step's, whole batches of them are drawn, each used twice.
    """

    def __init__(self, place: Place, estimator: Estimator, draws: int | None, seed: int):
        self.place, self.estimator, self.seed = place, estimator, seed
        self.draws, self.least = draws or MOST, draws or LEAST
        self.own = self._sampler()
        rows = self.own(seed)[1]  # a first call allocates
        self.other = None  # draws as many at once, with the same noise
        if estimator.follows_bound:
            other = self._sampler(reference=True, replicates=self.own.replicates)
            if not torch.equal(rows, other(seed)[1]):  # else the same gradient, draw by draw
                self.other = other
        self.values, self.spread = Moments(), Spread(place.groups)
        self.gap, self.along = Moments(), Moments()
        self.batches: list[Tensor] = []  # (n, groups) each: variance of a step, or of its two parts

    def compile(self) -> None:
        """Draw by compiled code from now on."""
        self.own = self._sampler(compile=True)
        self.own(self.seed)
        if self.other is not None:
            replicates = self.own.replicates
            self.other = self._sampler(reference=True, compile=True, replicates=replicates)

    def _sampler(self, pair: CheckedPair | None = None, **options: Any) -> Gradients:
        pair = pair or self.place.pair
        own: dict[str, Any] = {
            "kwargs": pair.kwargs,
            "params": pair.params,
            "buffers": pair.buffers,
        }
        own |= {"draws": (self.draws + 1) // 2}
        return Gradients(pair.pair, self.estimator, pair.args, **{**own, **options})

    def walk(self) -> Iterator[None]:
        """Draw one batch per step: half of them to find the gradient's bias, half to measure it."""
        yield from self._between_batches()
        while self.values.n < self.least or (self.values.n < self.draws and not self.known):
            second = self.gap.n >= self.least / 2
            self.seed += 1
            value, rows = self.own(self.seed)
            self.values.add(value / self.place.per)
            self.spread.add(rows / self.place.per)
            if self.other is not None:
                apart = (rows - self.other(self.seed)[1]).double() / self.place.per
                if second:
                    unit = _directions(self.place.groups, self.gap.mean)
                    self.along.add(apart @ unit)
                else:
                    self.gap.add(apart)
            yield

    @property
    def known(self) -> bool:
        """True where the variance of every half has an error of 5 %, or is zero."""
        n, half = self.spread.n, [g.name == g.half for g in self.place.groups]
        if n < 2 * BLOCKS:
            return False
        v, se = self.spread.variance()
        return bool((se <= KNOWN * v)[torch.tensor(half)].all())

    def _between_batches(self) -> Iterator[None]:
        """Draw gradients on halves of the batch, or on mini-batches of all rows, two of each."""
        place = self.place
        if not place.rows:
            return
        whole = place.whole is not None
        pair = place.whole if place.whole is not None else place.pair
        all_rows, each = pair.rows, place.rows if whole else place.rows // 2
        local = place.per > 1  # then N/B is left out, and numbers are divided by the rows
        told = {"kwargs": dict.fromkeys(pair.kwargs, each)} if local else {}
        sampler = self._sampler(pair, rows=each, draws=4 * SPLITS, **told)
        at_once, generator = max(4, sampler.replicates // 4 * 4), torch.Generator().manual_seed(0)
        per = each if local else 1.0
        splits = min(SPLITS, max(8, self.draws // 4))
        for start in range(0, splits if whole else 2 * splits, at_once // 2):
            left = (splits if whole else 2 * splits) - start
            n = min(at_once // 2, left + left % 2)
            order = torch.stack([torch.randperm(all_rows, generator=generator) for _ in range(n)])
            first = order[:, :each]
            second = first if whole else order[:, each : 2 * each]
            g = sampler(self.seed + start, torch.cat([first, second]))[1].double() / per
            a, b = g.tensor_split(2)  # (n, P) each
            if whole:  # the same rows twice; then others
                inner = self._squares(a - b) / 2
                total = self._squares(a[0::2] - a[1::2]) / 2
                self.batches.append(torch.stack([total, (inner[0::2] + inner[1::2]) / 2]))
            else:
                self.batches.append(self._squares(a - b)[None] / 4 * (2 * each / all_rows))
            yield

    def _squares(self, rows: Tensor) -> Tensor:
        """Squared norms of the groups' parts: (n, P) -> (n, groups)."""
        groups = self.place.groups
        return torch.stack([rows[:, g.columns].square().sum(1) for g in groups], 1)

    def numbers(self) -> dict[str, Any]:
        """The variables of a `Comparison` that follow from draws: a number, or one per group."""
        inner, inner_se = self.spread.variance()
        total, total_se = inner, inner_se
        if self.batches:
            found = torch.cat(self.batches, 1)  # (1 or 2, n, groups)
            mean, se = found.mean(1), found.std(1) / math.sqrt(found.shape[1])
            total, total_se = mean[0], se[0]
            if len(found) == 2:
                inner, inner_se = mean[1], se[1]
        between = (total - inner).clamp(min=0.0)
        between_se = (total_se**2 + inner_se**2).sqrt() if self.batches else 0 * total_se
        total = inner + between
        own, own_se = self.spread.squared_norm()
        # rows that stand for others like them have a share of their own in the mean's square
        seen, seen_se = (own, own_se) if self.place.whole else (own - between, own_se)
        names = ("snr", own, own_se, inner), ("snr_step", seen, seen_se, total)
        out: dict[str, Any] = {
            "value": float(self.values.mean),
            "value_se": float((self.values.variance / self.values.n).sqrt()),
            "variance": inner, "variance_se": inner_se,
            "variance_batch": between, "variance_batch_se": between_se,
            "variance_step": total, "variance_step_se": total_se,
            "gradient_norm": own.clamp(min=0.0).sqrt(),
        }  # fmt: skip
        errors = {"snr": inner_se, "snr_step": total_se}
        for name, square, se, variance in names:
            ratio = (square.clamp(min=0.0) / variance).nan_to_num(nan=math.inf).sqrt()
            low = ((square - se).clamp(min=0.0) / variance).nan_to_num(nan=math.inf).sqrt()
            high = ((square + se).clamp(min=0.0) / variance).nan_to_num(nan=math.inf).sqrt()
            by_variance = 0.5 * ratio * (errors[name] / variance)
            out[name] = ratio
            out[f"{name}_se"] = (((high - low) / 2) ** 2 + by_variance**2).sqrt().nan_to_num(0.0)
        unbiased = 0.0 if self.estimator.follows_bound else math.nan
        bias = bias_se = torch.full_like(total, unbiased)
        if self.along.n:
            bias, bias_se = self.along.mean, (self.along.variance / self.along.n).sqrt()
        out |= {"gradient_bias": bias, "gradient_bias_se": bias_se}
        return {k: v.tolist() if torch.is_tensor(v) else v for k, v in out.items()}


@dataclass
class Spread:
    """Mean and variance of gradients per group, and their errors by leaving out blocks of draws.

    Squares are taken about the first draw, so that rows that are all the same have no variance.

    Source: Efron & Stein 1981, The jackknife estimate of variance.
    """

    groups: list[Group]
    n: int = 0
    shift: Tensor | None = None
    counts: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    sums: list[Any] = field(default_factory=lambda: [0.0] * BLOCKS)  # (P,) each
    squares: list[Any] = field(default_factory=lambda: [0.0] * BLOCKS)  # (groups,) each

    def add(self, rows: Tensor) -> None:
        """Rows (R, P)."""
        if self.shift is None:
            self.shift = rows[0].double()
        first = self.n % BLOCKS  # small calls go round
        for i, part in enumerate(rows.tensor_split(min(BLOCKS, len(rows)))):
            block, away = (first + i) % BLOCKS, part.double() - self.shift
            self.counts[block] += len(part)
            self.sums[block] = self.sums[block] + away.sum(0)
            square = torch.stack([away[:, g.columns].square().sum() for g in self.groups])
            self.squares[block] = self.squares[block] + square
        self.n += len(rows)

    def variance(self) -> tuple[Tensor, Tensor]:
        """Of one draw, summed over each group's parameters, and its standard error."""
        return self._with_error(lambda n, mean, square: (square - n * mean[1]) / max(1, n - 1))

    def squared_norm(self) -> tuple[Tensor, Tensor]:
        """Of the mean gradient, without what the noise adds to it, and its standard error."""

        def without_noise(n: int, mean: tuple[Tensor, Tensor], square: Tensor) -> Tensor:
            return mean[0] - (square - n * mean[1]) / max(1, n - 1) / n

        return self._with_error(without_noise)

    def _with_error(self, of: Any) -> tuple[Tensor, Tensor]:
        shift = self.shift
        assert shift is not None
        whole = (sum(self.counts), sum(self.sums), sum(self.squares))

        def at(n: int, total: Tensor, square: Tensor) -> Tensor:
            mean = total / max(1, n)
            norms = [
                torch.stack([m[g.columns].square().sum() for g in self.groups])
                for m in (mean + shift, mean)
            ]
            return of(n, tuple(norms), square)

        own = zip(self.counts, self.sums, self.squares)
        left = [at(whole[0] - n, whole[1] - s, whole[2] - q) for n, s, q in own if n]
        every = torch.stack(left)
        b = len(every)
        se = ((b - 1) / b * (every - every.mean(0)).square().sum(0)).sqrt()
        return at(*whole), se


def _directions(groups: list[Group], gap: Tensor) -> Tensor:
    """A unit vector per group along the mean difference: (P, groups)."""
    out = gap.new_zeros(len(gap), len(groups))
    for i, g in enumerate(groups):
        part = gap[g.columns]
        out[g.columns, i] = part / part.norm().clamp(min=1e-300)
    return out
