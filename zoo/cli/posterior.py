"""`zoo posterior`, and the page of any fit whose latents belong to all data."""

from __future__ import annotations

import inspect
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inference import diagnose, posterior
from inference.results.table import Table
from inference.training.folders import reserve, write_whole
from zoo.tables import read_named

from ..report import Report, include_diagnosis, labelled, write
from ..report import posterior as pages
from ..report.of_run import joint_report
from ..report.posterior import store_tree
from .judged import facts_of, pace_of
from .output import say
from .own import arguments_by_name, labels_of, own_card


def climb(
    reference: str, data: str, seconds: float, draws: int, drop: str, seed: int, out: str | None
) -> Path:
    """Find the posterior of a user's model, print its verdict, and write a folder with its page.

    Raises:
        ValueError: no such model; columns that its arguments lack; the folder exists.
    """
    made = own_card(reference).load()
    model = getattr(made, "of", None) or made().model
    named = read_named(data)
    left_out = {d.strip() for d in drop.split(",")} - {""}
    if unknown := left_out - {*named}:
        raise ValueError(f"--drop: {data} has no column {sorted(unknown)[0]!r}.")
    named = {n: c for n, c in named.items() if n not in left_out}
    args = arguments_by_name(model, named, Path(data).name)
    name = reference.rpartition(":")[2]
    stem = f"posterior-{name}-{Path(data).stem}"
    names: Any = [Path(out).expanduser()] if out else (
        Path("runs") / f"{stem}-{n:03d}" for n in itertools.count(1))  # fmt: skip
    typed = ["zoo", "posterior", reference, "--data", data]
    typed += ["--drop", drop] * bool(drop) + ["--seed", str(seed)] * bool(seed)
    typed += ["--seconds", f"{seconds:g}"] * (seconds != 60)
    found = posterior(model, *args, seconds=seconds, draws=draws, seed=seed)
    say(found)
    try:
        folder = reserve(names, {"command.txt": f"{shlex.join(typed)}\n".encode()})
    except FileExistsError:
        raise ValueError(f"--out: {out} exists already. Name a folder that does not.") from None
    tree = labelled(found.datatree, labels_of(model, named))
    report = Report(
        title=f"Posterior of {name} given {Path(data).name}",
        subtitle=_subtitle(model),
        command=shlex.join(typed),
        metrics=pages.numbers(found.diagnosis, found.evidence),
        pictures=pages.pictures(tree),
        facts={"Data": _sizes(args, model), "Found": {
            "seconds": f"{found.seconds:.1f}", "draws": f"{draws:,}", "seed": seed,
        }},
        notes=found.notes,
        tables={
            "Posterior": pages.summary(tree),
            "The way there": Table(
                ["guide", "steps", "ELBO, nats", "k-hat", "seconds", "verdict"],
                [[r.guide, f"{r.steps:,}" if r.steps else "", str(r.elbo),
                  "" if r.khat is None else f"{r.khat:.2f}", f"{r.seconds:.1f}", r.said]
                 for r in found.rungs],
            ),
        },
    )  # fmt: skip
    write(report, folder)
    store_tree(tree, folder)
    write_whole(folder / "posterior.json", found.to_json().encode())
    page = folder / "report.html"
    if found.diagnosis is not None:
        page = include_diagnosis(found.diagnosis, folder, about=_verdict(found))
    say(page)
    return folder


def _verdict(found: Any) -> str:
    """The verdict on the whole way, where it is another than that on the last guide."""
    same = found.diagnosis is not None and found.verdict == found.diagnosis.verdict
    return "" if same else f"Of the posterior: {found.verdict}. " + " ".join(found.reasons)


def judge_whole(plan: Any, data: Any, fitted: Any, folder: Path) -> Report:
    """Judge a fit whose latents belong to all data and write its page; its report."""
    args = data.given["train"]
    found = diagnose(fitted.run, *args, gap=0, seed=plan.seed)
    notes = list(fitted.notes)
    if fitted.stopped:
        notes.insert(0, f"Stopped at step {fitted.done:,} of {fitted.steps:,}: {fitted.stopped}.")
    facts = {
        "Model": facts_of(plan.options), "Data": {"set": data.name, **_sizes(args, None)},
        "Training": {**facts_of(plan.settings), "seed": plan.seed, **pace_of(fitted)},
    }  # fmt: skip
    report, tree = joint_report(
        fitted.run, found, args, f"{plan.card.name} on {data.name}", facts,
        f"{plan.card.summary[0].upper()}{plan.card.summary[1:]}.", plan.command, notes, data.labels,
    )  # fmt: skip
    write(report, folder)
    include_diagnosis(found, folder)
    store_tree(tree, folder)
    say(found.headline + "".join(f"\n  - {r}" for r in found.reasons))
    return report


def _sizes(args: Sequence[Any], model: Any) -> dict[str, str]:
    """Argument -> its shape."""
    names = list(inspect.signature(model).parameters) if model is not None else []
    names += [f"argument {i + 1}" for i in range(len(names), len(args))]
    return {
        n: "×".join(map(str, a.shape)) or "a number" if torch.is_tensor(a) else str(a)
        for n, a in zip(names, args)
    }  # fmt: skip


def _subtitle(model: Any) -> str:
    return (inspect.getdoc(model) or "").split("\n\n")[0].replace("\n", " ")
