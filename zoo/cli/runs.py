"""Run folders: reserved, trained into, read back, and presented as often as one likes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference.pairs.arguments import take_rows
from inference.pairs.options import device_of
from inference.training import checkpoint
from inference.training.checkpoint import Fields, number, whole
from inference.training.folders import (
    STATE,
    remove_empty,
    reserve,
    sweep,
    temporary,
    write_whole,
)
from inference.training.run import Run
from inference.training.saved import Saved, read_run
from inference.training.state import History
from zoo.data import DataSet

from ..report import Metric, Report, labelled, write
from ..report.posterior import store_tree
from .build import build_like
from .inputs import NamedSet, arguments_of, settled
from .judged import judge
from .output import say
from .own import OwnCard
from .plan import Plan, fingerprint_of
from .posterior import judge_whole
from .train import TRAINERS, Fitted, Task

DRAWS, POSTERIOR_ROWS = 200, 100  # of posterior.nc
STEPPED = ("elbo", "likelihood", "adversarial", "implicit")  # trainers that go on from a state


@contextmanager
def reserved(plan: Plan, out: str | None) -> Iterator[Path]:
    """A new folder with the plan in it: `out`, or the next free `runs/MODEL-DATA-NNN`.

    Where the block fails and no state was written, the folder is removed.

    Raises:
        ValueError: it exists, or cannot be written.
    """
    new = [p for p in (Path("runs"),) if not p.exists()]
    if out is not None:
        names: Any = [Path(out).expanduser()]
        new = [p for p in names[0].parents if not p.exists()]
    else:
        names = (Path("runs") / f"{plan.stem}-{n:03d}" for n in itertools.count(1))
    try:
        folder = reserve(names, {"config.json": plan.config()})
    except FileExistsError:
        raise ValueError(f"--out: {out} exists already. Name a folder that does not.") from None
    except PermissionError as error:
        raise ValueError(f"{error} --out names it.") from error
    try:
        yield folder
    except BaseException:
        if not (folder / STATE).exists():
            (folder / "config.json").unlink(missing_ok=True)
            sweep(folder)
            remove_empty([folder, *new])
        raise


def require_writable(folder: Path) -> None:
    """Raise ValueError unless a folder can be made inside `folder`; leave nothing behind."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    probe = temporary(folder)
    try:
        probe.mkdir(parents=True)
        probe.rmdir()
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}). Choose another place with --out."
        ) from error
    finally:
        remove_empty(new)


def store(folder: Path, fitted: Fitted) -> None:
    """Write the state of what was not trained in steps, which then has none."""
    model = fitted.model
    tensors: dict[str, torch.Tensor] = {}
    own = model.state_dict() if isinstance(model, nn.Module) else {"data": model.data}
    state = checkpoint.packed(dict(own), tensors)
    checkpoint.write(folder, tensors, {
        "kind": "Fitted", "state": state, "history": fitted.history.rows, "unit": fitted.unit,
        "seconds": fitted.seconds, "done": fitted.done, "stopped": fitted.stopped,
        "metrics": [vars(m) for m in fitted.metrics], "notes": fitted.notes,
    })  # fmt: skip


def state_in(folder: Path) -> Saved | None:
    """The state of what was trained in steps, or None where the run ended before its first."""
    try:
        return read_run(folder)
    except FileNotFoundError:
        return None


def read(folder: str | Path, pair: str | None = None) -> tuple[Plan, DataSet, Fitted]:
    """Read a run folder: its plan, its data, and what was fitted.

    Args:
        folder: of the run.
        pair: FILE:NAME, of a run of one's own pair.

    Raises:
        FileNotFoundError: there is no run, or a file of it is missing.
        ValueError: a file is damaged.
    """
    folder = Path(folder)
    plan = Plan.read(folder, pair)
    data = plan.load()
    if not any((folder / name).exists() for name in (STATE, checkpoint.BEFORE)):
        raise FileNotFoundError(
            f"{folder}: the run ended before its first state (looked for {folder / STATE}). Go on "
            f"with zoo fit --resume {folder}"
        )
    if plan.trainer in STEPPED:
        saved = read_run(folder)
        saved.held = True
        model = build_like(plan, data, saved.variables.params)
        data = settled(model, data) if isinstance(plan.card, OwnCard) else data
        fitted = train(plan, Task(plan.card, model, data, plan.seed, saved))
    else:
        fitted = checkpoint.read(folder, lambda tensors, f: _stored(plan, data, tensors, f))
    if fingerprint_of(data) != plan.fingerprint:
        said = f"The data in {plan.data} are not those that were fitted: they have changed since."
        fitted.notes.insert(0, said)
        say(said, error=True)
    return plan, data, fitted


def train(plan: Plan, task: Task) -> Fitted:
    """Train as planned; where a device is gone, say so and take the one there is."""
    settings = dict(plan.settings)
    if task.resume is not None and "device" in settings:
        try:
            device_of(settings["device"])
        except ValueError as error:
            say(f"{error} Taken instead: {device_of('auto')}.", error=True)
            settings["device"] = "auto"
    return TRAINERS[plan.trainer](task, **settings)


def _stored(plan: Plan, data: DataSet, tensors: dict, fields: Fields) -> Fitted:
    """Read back what `store` wrote."""
    fields.take("kind", f"'Fitted', as {plan.trainer} leaves", lambda v: v == "Fitted")
    state: dict[str, Any] = {}
    fields.take("state", "tensors by name", lambda v: (
        state.update(checkpoint.unpacked(v, tensors)) is None
        and all(map(torch.is_tensor, state.values()))
    ))  # fmt: skip
    rows = fields.take("history", "rows of numbers", lambda v: isinstance(v, list) and all(
        isinstance(r, dict) and all(map(number, r.values())) for r in v
    ))  # fmt: skip
    metrics = fields.take("metrics", "numbers with their labels", lambda v: (
        isinstance(v, list) and all(map(_is_metric, v))
    ))  # fmt: skip
    notes = fields.take("notes", "sentences", lambda v: (
        isinstance(v, list) and all(isinstance(n, str) for n in v)
    ))  # fmt: skip
    model = build_like(plan, data, None)
    if isinstance(model, nn.Module):
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise fields.wrong(
                "field 'state'", f"the tensors of {plan.card.name}", str(error)
            ) from error
    done = fields.take("done", "a whole number", whole)
    return Fitted(
        model, History(rows), fields.text("unit"), fields.number("seconds"), done, done,
        fields.text("stopped", optional=True), [Metric(**m) for m in metrics], list(notes),
    )  # fmt: skip


def _is_metric(m: Any) -> bool:
    texts = ("key", "label", "unit", "note")
    return (
        {*m} == {*texts, "value", "se"} and all(isinstance(m[k], str) for k in texts)
        and number(m["value"]) and (m["se"] is None or number(m["se"]))
    )  # fmt: skip


def fitted_pair(
    folder: str | Path, rows: int, pair: str | None = None
) -> tuple[Plan, DataSet, Run]:
    """Read a run folder that holds a fitted pair, to be looked at on some rows.

    Raises:
        ValueError: no rows, or the run was trained without an ELBO.
    """
    if rows < 1:
        raise ValueError(f"--rows: expected at least 1, got {rows}.")
    plan, data, fitted = read(folder, pair)
    if not isinstance(fitted.run, Run):
        raise ValueError(f"{folder} was trained by {plan.trainer}: there is no guide to look at.")
    return plan, data, fitted.run


def present(plan: Plan, data: DataSet, fitted: Fitted, folder: Path) -> Report:
    """Judge a fit, draw it, and write what shows it into its folder, in place of earlier files."""
    sweep(folder)
    if isinstance(data, NamedSet) and data.whole:
        write_whole(folder / "history.csv", fitted.history.to_csv().encode())
        return judge_whole(plan, data, fitted, folder)
    report = judge(plan, data, fitted)
    write_whole(folder / "history.csv", fitted.history.to_csv().encode())
    if isinstance(fitted.run, Run):
        _write_posterior(folder, plan, data, fitted)
    write(report, folder)
    return report


def _write_posterior(folder: Path, plan: Plan, data: DataSet, fitted: Fitted) -> None:
    """`posterior.nc`: draws of the latents of a few test data, with their densities."""
    from inference.draws.datatree import to_datatree

    pair = None if isinstance(data, NamedSet) else fitted.model
    args = take_rows(arguments_of(pair, data, "test"), slice(POSTERIOR_ROWS))
    groups = ("posterior", "log_likelihood")
    tree = to_datatree(fitted.run, *args, draws=DRAWS, groups=groups, seed=plan.seed)
    tree = labelled(tree, {"x": data.columns} if data.columns else {})
    if data.scale is not None:  # log densities of the data in their own units
        shifted = tree["log_likelihood"].to_dataset() + data.log_det
        tree["log_likelihood"] = shifted.assign_attrs(standardised="undone")
    store_tree(tree, folder)
