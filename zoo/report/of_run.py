"""The page of a run that was made in Python, and the part that `zoo fit` shares with it.

`run.report()` finds `page_of_run` by the entry point `inference.pages`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inference import diagnose, evaluate
from inference.draws.datatree import to_datatree
from inference.pairs.arguments import rows_of, take_rows
from inference.training.folders import STATE, reserve
from zoo.data import DataSet

from .diagnosis import include_diagnosis
from .gallery import loss, pictures
from .numbers import metrics
from .page import Report, write
from .posterior import labelled, numbers, store_tree, summary
from .posterior import pictures as marginals
from .subject import Subject

if TYPE_CHECKING:
    from inference.judging.diagnosis import Diagnosis
    from inference.training.run import Run

TREE_ROWS, TREE_DRAWS = 100, 200  # of posterior.nc, where latents belong to single data


class _Halves:
    """Two fitted callables as one pair."""

    def __init__(self, run: Run):
        self.model, self.guide = run.model, run.guide


def page_of_run(run: Run, *data: Any, folder: str | Path | None = None) -> Path:
    """Judge a run, draw it, and write a folder with its page and its state.

    Where latents belong to all data the page shows their posterior, pairs, the trace of the fit,
    predictive checks and the verdict; else it is that of the catalogue's models, with the verdict.

    Args:
        run: as `inference.fit` returns.
        data: the pair's arguments, or a set of `zoo.data`, of which the test rows are looked at; by
            default the data of the fit, where every step took all of them.
        folder: to write into; by default the next free `runs/MODEL-001`.

    Returns:
        The path of the page.

    Raises:
        TypeError, ValueError: as `inference.diagnose`.
    """
    data = run.looked_at(data, "run.report")
    given = data[0] if len(data) == 1 and isinstance(data[0], DataSet) else None
    args = data if given is None else _test_rows(run, given)
    found = diagnose(run, *args, gap=0, seed=run.seed)
    name = getattr(run.pair_.model, "__name__", type(run.pair_.model).__name__)
    name = name if name != "model" or not _module(run) else type(_module(run)).__name__
    if folder is None:
        stems = (Path("runs") / f"{name.lower()}-{i:03d}" for i in itertools.count(1))
        folder = reserve(stems, {})
    folder = Path(folder)
    if not (folder / STATE).exists():
        run.save(folder)
    facts = {"Training": training_facts(run)}
    if run.unit == "nats":
        report, tree = joint_report(run, found, args, name, facts)
    else:
        report, tree = _report_per_datum(run, args, given, name, facts)
    write(report, folder)
    page = include_diagnosis(found, folder)
    store_tree(tree, folder)
    return page


def joint_report(
    run: Run, found: Diagnosis, args: Sequence[Any], title: str,
    facts: Mapping[str, Mapping[str, object]], subtitle: str = "", command: str = "",
    notes: Sequence[str] = (), labels: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Report, Any]:  # fmt: skip
    """The page of latents that belong to all data, and the draws that it shows.

    Args:
        run, found: the fit and its verdict; `args` of the pair.
        title, subtitle, command, facts, notes: as for `Report`.
        labels: names of the axes, as for `labelled`.
    """
    best = found.datatree if found.corrected is None else found.corrected
    tree = labelled(best, labels or {})
    x = torch.cat([a.reshape(-1).float() for a in args if torch.is_tensor(a)] or [torch.zeros(1)])
    shown = DataSet(title, x[:, None], x[:, None], x[:, None])
    trace = loss(Subject(_Halves(run), shown, run.history, run.unit, kept=run.best_step))
    told = list(notes)
    if found.corrected is not None:
        told.append("Shown are the draws importance-corrected.")
    report = Report(
        title=title, subtitle=subtitle, command=command, metrics=numbers(found),
        pictures=[*marginals(tree), *([trace] if trace else [])], facts=facts,
        notes=told,
        tables={"Posterior": summary(tree)},
    )  # fmt: skip
    return report, tree


def training_facts(run: Run) -> dict[str, object]:
    """Estimator, steps, seconds and convergence of a run."""
    return {
        "estimator": repr(run.estimator), "steps": f"{run.steps:,}",
        "seconds": f"{run.seconds:.1f}", "seed": run.seed,
        "step": "compiled" if run.compiled else "eager", "convergence": str(run.converged),
    }  # fmt: skip


def _report_per_datum(
    run: Run, args: tuple, given: DataSet | None, name: str, facts: dict[str, Any]
) -> tuple[Report, Any]:
    """The page of latents that belong to single data, and draws of theirs."""
    if given is None:
        n = rows_of(args)
        parts = [a.reshape(n, -1).float() for a in args if torch.is_tensor(a) and a.dim()
                 and len(a) == n]  # fmt: skip
        x = torch.cat(parts, -1)
        given = DataSet("the data given", x, x, x)
    subject = Subject(
        _module(run) or _Halves(run), given, run.history, run.unit, seed=run.seed,
        kept=run.best_step, bound=bool(run.estimator.is_bound), rows=rows_of(args),
    )  # fmt: skip
    if not (subject.offers("elbo") or subject.offers("log_prob")):
        subject.evaluation = evaluate(run, *args, seed=run.seed)
    few = take_rows(args, slice(TREE_ROWS))
    groups = ("posterior", "log_likelihood")
    tree = to_datatree(run, *few, draws=TREE_DRAWS, groups=groups, seed=run.seed)
    report = Report(
        title=f"{name} on {given.name}", metrics=metrics(subject), pictures=pictures(subject),
        facts=facts,
    )  # fmt: skip
    return report, tree


def _module(run: Run) -> Any:
    """The fitted module, or None where the pair is two functions."""
    try:
        return run.pair
    except AttributeError:
        return None


def _test_rows(run: Run, data: DataSet) -> tuple:
    """The arguments of a pair on the test rows: x, and the labels where it takes them."""
    both = len(run.example) > 1 and data.test_labels is not None
    return (data.test, data.test_labels) if both else (data.test,)
