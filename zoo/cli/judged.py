"""A fit judged: its numbers, its pictures and the facts of its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from inference import evaluate
from inference.pairs.arguments import take_rows
from inference.randomness import forked
from inference.ratios import density_ratio
from inference.ratios.implicit import ImplicitRun
from inference.training.run import Run
from zoo.cards import TRAINERS
from zoo.data import DataSet

from ..report import Metric, Report, Subject, metrics, pictures
from ..report.quality import quality, two_sample
from .inputs import arguments_of
from .options import shown
from .plan import Plan
from .train import Fitted

# of the critic that judges draws: a bound however short its training, which begins at a logistic
# regression. Compiling it took longer than the training of many a generator.
JUDGE: Any = {"steps": 400, "patience": 4, "compile": False}


def judge(plan: Plan, data: DataSet, fitted: Fitted) -> Report:
    """Return the report of a fit: its metrics, pictures and facts."""
    subject = Subject(
        fitted.model, data, fitted.history, fitted.unit, seed=plan.seed, bound=plan.card.bound,
        kept=getattr(fitted.run, "best_step", None), rows=plan.test_rows,
    )  # fmt: skip
    own = subject.offers("elbo") or subject.offers("log_prob")  # exact, or made for it
    if isinstance(fitted.run, Run) and plan.card.bound and not own:
        args = take_rows(arguments_of(fitted.model, data, "test"), slice(plan.test_rows))
        subject.evaluation = evaluate(
            fitted.run, *args, particles=plan.particles, seed=plan.seed,
            ais=plan.ais if plan.ais > 1 else bool(plan.ais),
        )  # fmt: skip
    if plan.trainer == "adversarial":
        given = subject.data
        x = torch.cat([given.test, given.valid])[: plan.test_rows].cpu()
        drawn = subject.call("sample", len(x))
        if len(x) >= 20:
            rows = 128 if len(x) >= 400 else None
            subject.ratio = density_ratio(x, drawn, seed=plan.seed, batch_size=rows, **JUDGE)
        if len(x) >= 50:
            subject.quality = quality(x, drawn, given.train.cpu(), plan.seed)
            if subject.offers("infer"):  # the codes of data against the prior
                with forked(plan.seed):
                    prior = torch.randn(len(x), subject.model.latent_dim)
                codes = subject.call("infer", x)
                subject.latents = two_sample(prior, codes, plan.seed)
    shape = data.image_shape
    kind = "×".join(map(str, shape[1:])) + " images" if shape else f"rows of {data.data_dim}"
    notes = list(fitted.notes)
    if fitted.stopped:
        notes.insert(0, f"Stopped at step {fitted.done:,} of {fitted.steps:,}: {fitted.stopped}.")
    told = [
        dataclasses.replace(m, value=m.value + len(data.train) * data.log_det)
        if m.key in ("log_likelihood", "elbo") and m.value is not None else m
        for m in fitted.metrics
    ]  # fmt: skip
    trainers = [*told, *_by_critic(fitted, data, plan.seed)]
    measured = [*metrics(subject), *trainers]
    return Report(
        title=f"{plan.card.name} on {data.name}",
        subtitle=f"{plan.card.summary[0].upper()}{plan.card.summary[1:]} ({plan.card.paper}).",
        command=plan.command,
        metrics=measured if plan.card.bound else [*trainers, *metrics(subject, bound=False)],
        pictures=pictures(subject),
        facts={
            "Model": facts_of(plan.options),
            "Data": {
                "set": data.name, "kind": kind, **_treated(data),
                "train / valid / test": " / ".join(
                    f"{len(x):,}" for x in (data.train, data.valid, data.test)
                ),
            },
            "Training": {
                "by": _trained_by(plan), **facts_of(plan.settings), "seed": plan.seed,
                **pace_of(fitted),
            },
        },
        notes=notes,
    )  # fmt: skip


def _treated(data: DataSet) -> dict[str, str]:
    """Facts on the treatment of the values."""
    if data.scale is None:
        return {"pixels": data.pixels} if data.image_shape else {}
    return {"standardised": "by training means and deviations; all numbers are in own units"}


def _by_critic(fitted: Fitted, data: DataSet, seed: int) -> list[Metric]:
    """The ELBO and its parts of a pair whose guide has no density, on the test data."""
    if not isinstance(fitted.run, ImplicitRun):
        return []
    test = data.test.to(fitted.run.device)
    note = f"by a critic, no bound; error of the draws alone, {len(test):,} test data"
    with forked(seed):
        parts = fitted.run.evaluate(test)
    return [
        Metric(name.split()[0].lower(), f"{name} ≈", part.value, "nats per datum", part.se, note)
        for name, part in zip(("ELBO", "reconstruction", "KL z"), parts)
    ]


def _trained_by(plan: Plan) -> str:
    if plan.trainer == "elbo" and not plan.card.bound:
        return "stochastic gradients of its loss, which is no bound on log p(x)"
    return TRAINERS[plan.trainer]


def facts_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as the page shows them."""
    return {k.replace("_", " "): shown(v) for k, v in options.items() if v is not None}


def pace_of(fitted: Fitted) -> dict[str, str]:
    """Steps and seconds of the training."""
    pace = {"seconds": f"{fitted.seconds:.1f}"}
    if fitted.done and fitted.seconds:
        pace = {"steps done": f"{fitted.done:,}", **pace,
                "steps per second": f"{fitted.done / fitted.seconds:,.0f}"}  # fmt: skip
    if fitted.compiled is not None:
        pace["step"] = "compiled" if fitted.compiled else "eager"
    return pace
