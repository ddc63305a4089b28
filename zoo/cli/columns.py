"""Columns of a leaderboard beside log p(x): its upper bound, sample quality, representation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from inference.draws.measures import ACTIVE
from inference.estimate import Estimate
from inference.judging.annealing import annealed
from inference.pairs.arguments import take_rows
from inference.randomness import forked
from zoo.data import DataSet

from ..report import Subject
from ..report.leaderboard import Row
from ..report.quality import two_sample
from .inputs import arguments_of

ANNEALED = 32  # test data whose log p(x) is bounded from above
CHAINS, TEMPERATURES = 8, 50
DRAWN = 1_000  # draws, and held-out data, that classifiers tell apart
FEWEST = 50  # of them


def with_columns(row: Row, subject: Subject, run: Any) -> Row:
    """The row with what its model's draws, codes and annealed chains show."""
    data = subject.fitted
    words, code = _representation(subject, data)
    return dataclasses.replace(
        row,
        gap=_gap(row, subject, run) if row.kind == "≥" else Estimate(0.0, 0.0),
        told_apart=_told_apart(subject, data),
        code=code,
        code_words=words,
    )


def _gap(row: Row, subject: Subject, run: Any) -> Estimate:
    """The upper bound of annealed chains less the lower bound told, per datum.

    The upper bound is by chains back from the ends of those forward (bidirectional Monte Carlo).
    """
    assert row.values is not None
    if run is None or subject.offers("elbo"):
        return Estimate.none("its latents have no chains")
    args = arguments_of(subject.model, subject.fitted, "test")
    n = min(ANNEALED, len(row.values))
    try:
        found = annealed(
            run, *take_rows(args, slice(n)), chains=CHAINS, temperatures=TEMPERATURES,
            seed=subject.seed,
        )  # fmt: skip
    except ValueError as error:
        return Estimate.none(str(error))
    if found.upper_per_datum is None or len(found.upper_per_datum) != n:
        return Estimate.none("its latents are joint")
    return Estimate.of(found.upper_per_datum.double().cpu() + subject.log_det - row.values[:n])


def _told_apart(subject: Subject, data: DataSet) -> Estimate:
    """Accuracy of the best of three classifiers, cross-fitted, in telling draws from held-out data.

    Among validation and test data; one half is best.
    """
    if not subject.offers("sample"):
        return Estimate.none("it draws nothing")
    real = torch.cat([data.test, data.valid])[:DRAWN]
    if len(real) < FEWEST:
        return Estimate.none(f"{len(real)} held-out rows are too few")
    drawn = subject.standardised(subject.call("sample", len(real)))
    if not bool(drawn.isfinite().all()):
        return Estimate.none("draws are not finite")
    found = two_sample(real.float(), drawn.reshape(len(real), -1).float(), subject.seed)
    return max(found.values(), key=lambda e: e.value or 0.0)


def _representation(subject: Subject, data: DataSet) -> tuple[str, Estimate]:
    """Words and number: how well codes tell labels by a linear classifier, else those in use."""
    name = next((n for n in ("encode", "responsibilities") if subject.offers(n)), None)
    none = Estimate.none("it has no codes")
    if name is None:
        return "", none

    def codes(split: str) -> Tensor:
        x = subject.original(getattr(data, split))
        with forked(subject.seed):
            return subject.call(name, x).reshape(len(x), -1)

    y, truth = data.train_labels, data.test_labels
    if y is None or truth is None:
        if name != "encode":
            return "", none
        active = int((codes("test").var(0) > ACTIVE).sum())
        return f"of {codes('test').shape[1]} active", Estimate(float(active), 0.0)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    probe.fit(codes("train")[:10_000].numpy(), y[:10_000].numpy())
    right = float(probe.score(codes("test").numpy(), truth.numpy()))
    return "of labels", Estimate(right, math.sqrt(right * (1 - right) / len(truth)))
