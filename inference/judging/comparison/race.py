"""A race of estimators: each trains from one state for equal time; held-out data say who won."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ...draws.density import missing_density
from ...draws.measures import log_evidence
from ...draws.sampler import data_plate, sample
from ...elbo import Estimator
from ...pairs.gate import admit
from ...training.fitting import fit
from ...training.many import fit_many

PARTICLES = 100  # draws of each held-out datum
ROWS = 1_000  # held-out rows, at most
HELD_OUT = 0.2  # of the rows, where none are held out
SIGMAS = 2.0  # standard errors within which nobody is sent home


@dataclass
class Lane:
    """One estimator in a race.

    Attributes:
        ms: milliseconds of its step; `steps`, `seconds`: trained so far, one seed's.
        runs: one for each seed.
        scores: (seeds, data), held-out nats.
        rounds: that it was in.
        gap, gap_se: nats behind the leader of its last round, and the standard error.
        rise: nats won in its last round, the latter half of its time.
        note: why it was trained otherwise, or not to the end.
    """

    estimator: Estimator
    ms: float
    steps: int = 0
    seconds: float = 0.0
    runs: Any = None
    scores: Tensor = field(default_factory=lambda: torch.zeros(1, 1))
    rounds: int = 0
    gap: float = 0.0
    gap_se: float = 0.0
    rise: float = 0.0
    note: str = ""

    @property
    def mean(self) -> float:
        """Mean over seeds and data."""
        return float(self.scores.mean().nan_to_num(nan=-math.inf))


@dataclass
class Judge:
    """Scores runs on held-out rows: log p(x) where the model learns, else the ELBO.

    Attributes:
        what: what is scored, in words.
        args: the rows.
        evidence: log p(x) by 100 draws of each datum (a lower bound); else the ELBO.
        local: whether rows are independent, so that errors are over data; else over draws.
        seconds: of one evaluation.
    """

    what: str
    args: tuple
    evidence: bool
    local: bool
    seconds: float = 0.0

    def __call__(self, given: Any) -> Tensor:
        """Nats of each datum, or of each draw of all latents: (N,)."""
        begin = time.perf_counter()
        given = given if isinstance(given, tuple) else (given,)
        pair = admit(*given, *self.args, who="compare")
        parts: dict[int, list[Tensor]] = {}
        particles = PARTICLES if self.local else 10 * PARTICLES
        for row, log_w in sample(
            pair, particles, lambda c: (c.rows.start, c.weights.log_weight().double()),
            by_rows=self.local, seed=1,
        ):  # fmt: skip
            parts.setdefault(row, []).append(log_w.reshape(len(log_w), -1))
        log_w = torch.cat([torch.cat(p) for p in parts.values()], 1)  # (K, N) or (K, 1)
        self.seconds = time.perf_counter() - begin
        if not self.local:
            return log_w.sum(1)
        return log_evidence(log_w) if self.evidence else log_w.mean(0)


def judge_of(given: tuple, args: tuple, learns: bool) -> Judge:
    """The judge of a pair on some rows.

    Raises:
        ValueError: the guide has no density, so that no bound can be compared.
    """
    pair = admit(*given, *args, who="compare")
    with pair.ready(0):
        weights = pair.weights(2)
        because = missing_density(weights)
        local = data_plate(weights, pair.rows) is not None and pair.rows > 1
    if because:
        raise ValueError(f"race: {because}, so there is no bound to rank by; leave race= out.")
    what = "log p(x), a bound of 100 draws" if learns and local else "ELBO"
    return Judge(what, args, learns and local, local)


def run_race(
    given: tuple, args: tuple, judge: Judge, lanes: Sequence[Lane], seconds: float, seeds: int,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Train by successive halving: after each round the worse half goes home.

    Everyone makes as many steps as its milliseconds allow in the same time. Who is within two
    standard errors of the leader stays.

    Args:
        given: model and guide; `args`: to train on.
        lanes: the estimators, which are changed.
        seconds: that the last round ends at, of each estimator and seed.
        seeds: fits of each; options: of `fit`.

    Source: Jamieson & Talwalkar 2016, Non-stochastic best arm identification, arXiv:1502.07943.

    Raises:
        ValueError: the race is shorter than one evaluation, or than a step of its first round.
    """
    judge(given)
    judge(given)  # the first pays for what is loaded
    rounds = max(2, math.ceil(math.log2(len(lanes))))  # two, to see who still rises
    slowest = max(lanes, key=lambda lane: lane.ms)
    least = max(judge.seconds, 2 ** (rounds - 1) * slowest.ms / 1e3)
    if seconds < least:
        raise ValueError(
            f"race: expected at least {least:.2g} s, in which the held-out rows can be judged once "
            f"and {slowest.estimator!r} makes a step before the first round ends; got {seconds:g}."
        )
    left = list(lanes)
    for i in range(rounds):
        for lane in left:
            lane.seconds = seconds / 2 ** (rounds - 1 - i)
            lane.rounds, before = i + 1, lane.mean
            try:
                _train(lane, given, args, seeds, options)
                lane.scores = torch.stack([judge(r) for r in lane.runs])
                lane.rise = lane.mean - before
            except ValueError as failure:  # its loss is not finite, or what it trained is not
                lane.note, lane.scores = str(failure), torch.full((1, 1), -math.inf)
        left.sort(key=lambda lane: -lane.mean)
        for lane in left:
            lane.gap, lane.gap_se = behind(left[0], lane)
        half = max(2, math.ceil(len(left) / 2))
        left = [
            lane
            for j, lane in enumerate(left)
            if lane.mean > -math.inf and (j < half or lane.gap <= SIGMAS * lane.gap_se)
        ]


def _train(lane: Lane, given: tuple, args: tuple, seeds: int, options: dict[str, Any]) -> None:
    """Go on to as many steps as the lane's time allows, all seeds at once where that can be."""
    lane.steps = max(lane.steps + 1, round(1e3 * lane.seconds / lane.ms))
    own: dict[str, Any] = {"elbo": lane.estimator, "steps": lane.steps, "progress": False}
    own |= {"check": False, **options}
    many: dict[str, Any] = {"fits": seeds, "jitter": 0.0}
    model, guide = given
    if isinstance(lane.runs, list):
        seed = own.pop("seed")
        lane.runs = [
            fit(model, guide, args, resume=r, seed=seed + i, **own) for i, r in enumerate(lane.runs)
        ]
        return
    try:
        with warnings.catch_warnings():
            # no tensor requires a gradient under `vmap`, which Pyro takes for a frozen parameter
            warnings.filterwarnings("ignore", ".*was not registered in the param store")
            lane.runs = fit_many(model, guide, args, resume=lane.runs, **many, **own)
    except (ValueError, RuntimeError, NotImplementedError) as failure:  # what vmap cannot batch
        if lane.runs is not None:
            raise
        lane.note = f"seeds one by one: {(str(failure).splitlines() or [''])[0][:120]}"
        seed = own.pop("seed")
        lane.runs = [fit(model, guide, args, seed=seed + i, **own) for i in range(seeds)]


def behind(leader: Lane, lane: Lane) -> tuple[float, float]:
    """The nats that a lane is behind another, and the standard error of that.

    Paired over held-out data and over seeds: both see the same rows, noise of the rows' evaluation,
    and order of mini-batches.
    """
    if lane.mean == -math.inf:
        return math.inf, 0.0
    apart = leader.scores - lane.scores  # (seeds, data)
    variance = float(apart.mean(0).var()) / apart.shape[1] if apart.shape[1] > 1 else 0.0
    if len(apart) > 1:
        variance += float(apart.mean(1).var()) / len(apart)
    return float(apart.mean()), math.sqrt(variance)


def sureness(gap: float, se: float) -> float:
    """The chance that a lead is one, its error taken as normal."""
    return NormalDist().cdf(gap / se) if se > 0 else 1.0 if gap > 0 else 0.5
