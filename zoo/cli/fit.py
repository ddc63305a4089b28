"""`zoo fit MODEL`: one subcommand for each card, its options read off the signatures."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cards import CARDS, TRAINERS, Card, card

from .options import Argument, arguments, command, explained, option

if TYPE_CHECKING:
    from zoo.data import DataSet

FILLED = ("data_dim", "data", "image_shape", "seed", "validate_args")  # not options of a model


def what(
    data: str = "digits", root: str | None = None, download: bool = False, pixels: str = "auto"
) -> None:
    """Declare the options that choose the data.

    Args:
        data: a set by name (zoo list data), or the path of a .npy or .csv file of your own.
        root: the folder that holds MNIST/raw and the like; by default $ZOO_DATA, else a cache.
        download: fetch the set where it is missing.
        pixels: how images are treated: none, threshold, static, or dynamic (drawn at every step).
    """


def how(
    trainer: str = "",
    seed: int = 0,
    out: str | None = None,
    particles: int = 500,
    test_rows: int = 1_000,
) -> None:
    """Declare the options that every run has.

    Args:
        trainer: how it is trained, where there are several ways.
        seed: of everything random.
        out: the folder to write, which must not exist; by default the next runs/MODEL-DATA-NNN.
        particles: draws for each test datum, for log p(x) and k-hat.
        test_rows: how many test data are judged.
    """


class Interrupted(Exception):
    """Ctrl-C ended a fit early; what was reached has been written."""


class Models(typer.core.TyperGroup):
    """The subcommands of `zoo fit`. Only the chosen model is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every name of the catalogue."""
        return list(CARDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in for the list of models, without options."""
        entry = CARDS.get(cmd_name)
        if entry is None:
            return None
        stub = command(cmd_name, lambda: None, [], entry.summary)
        stub.rich_help_panel = entry.family
        return stub

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the model that was asked for, with its options."""
        found = card(args[0])
        return found.name, fit_command(found), args[1:]


def go_on(
    ctx: typer.Context,
    resume: Annotated[str | None, explained("go on from this run folder", metavar="RUN")] = None,
    steps: Annotated[int | None, explained("with --resume: updates in all", "as before")] = None,
    out: Annotated[str | None, explained("with --resume: the new folder", "runs/...")] = None,
) -> None:
    """Fit a model and write a run folder, with a page that shows it.

    zoo fit MODEL --help lists the options of one model.
    """
    if ctx.invoked_subcommand is not None:
        if resume is not None:
            raise ValueError("--resume takes the model from the run: leave the model's name out.")
        return
    if resume is None:
        raise ValueError("fit: name a model (zoo list shows them), or --resume RUN.")
    from .runs import read
    from .train import Task

    plan, data, fitted = read(resume)
    if fitted.run is None:
        raise ValueError(
            f"{resume}: a run trained by {plan.trainer} cannot go on. Fit it again: {plan.command}"
        )
    total = fitted.steps if steps is None else steps
    if total <= fitted.done:
        raise ValueError(
            f"--steps: {resume} has done {fitted.done:,}; ask for more in all, as in "
            f"--steps {2 * fitted.done}."
        )
    plan = dataclasses.replace(
        plan, settings={**plan.settings, "steps": total}, resumed=str(resume),
        command=shlex.join(["zoo", "fit", "--resume", str(resume), "--steps", str(total)]),
    )  # fmt: skip
    task = Task(plan.card, fitted.model, data, plan.seed, fitted.run)
    _train(plan, task, out)


def fit_command(entry: Card) -> Any:
    """`zoo fit NAME` for one card."""
    panels = {
        "Data": [_with_default_of(entry, a) for a in arguments(what)],
        "Model": arguments(entry.load(), skip=FILLED),
        "Training": [_with_default_of(entry, a) for a in trainer_arguments(entry)],
        "Run": [_with_default_of(entry, a) for a in run_arguments(entry)],
    }
    parameters = [
        option(a, _cases(entry, a.name) if panel == "Model" else {}, panel)
        for panel, found in panels.items()
        for a in found
    ]
    text = f"{entry.summary[0].upper()}{entry.summary[1:]} ({entry.paper})."
    trained = "; or ".join(TRAINERS[t] for t in entry.trainers)
    return command(
        entry.name, lambda **given: fit_model(entry, given), parameters,
        f"{text}\n\nTrained by {trained}. Known exactly: {entry.exact}.",
    )  # fmt: skip


def trainer_arguments(entry: Card, trainers: Collection[str] = ()) -> list[Argument]:
    """Return the options of some trainers of a card, by default of all of them."""
    from .train import TRAINERS as functions

    found: dict[str, Argument] = {}
    for name in trainers or entry.trainers:
        for a in arguments(functions[name]):
            if (name, a.name) != ("likelihood", "elbo"):  # without latents they are all alike
                found.setdefault(a.name, a)
    return list(found.values())


def run_arguments(entry: Card) -> list[Argument]:
    """Return the options that every run has; a choice of trainers where there is one."""
    return [a for a in arguments(how) if a.name != "trainer" or len(entry.trainers) > 1]


def _with_default_of(entry: Card, a: Argument) -> Argument:
    """Return an argument with the card's default."""
    mine = {
        "data": entry.data, "steps": entry.steps, "elbo": entry.elbo,
        "trainer": entry.trainers[0],
    }  # fmt: skip
    own = dataclasses.replace(a, default=mine.get(a.name, a.default))
    if a.name == "trainer":
        own = dataclasses.replace(own, help=f"{' or '.join(entry.trainers)}.")
    return own


def _cases(entry: Card, name: str) -> dict[str, Any]:
    """Return the defaults of a model's option that depend on the data, by kind of data."""
    both = {"for images": entry.images, "for tables": entry.tables}
    return {case: options[name] for case, options in both.items() if name in options}


def fit_model(entry: Card, given: Mapping[str, Any]) -> Path:
    """Fit a card's model with the options given on the command line; the run's folder."""
    from .build import build, validate
    from .runs import Plan
    from .train import Task

    trainer = given.get("trainer", entry.trainers[0])
    if trainer not in entry.trainers:
        near = difflib.get_close_matches(trainer, entry.trainers, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"--trainer: {entry.name} is trained by {' or '.join(entry.trainers)}, not by "
            f"{trainer!r}.{hint}"
        )
    for name in ("particles", "test_rows", "steps", "batch_size"):
        if given.get(name, 1) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: expected at least 1, got {given[name]}.")
    mine = {a.name: a for a in trainer_arguments(entry, [trainer])}
    for a in trainer_arguments(entry):
        if a.name in given and a.name not in mine:
            raise ValueError(f"{a.flag} is no option of the trainer {trainer}. Leave it out.")

    chosen = {
        a.name: given.get(a.name, _with_default_of(entry, a).default) for a in arguments(what)
    }
    own = {a.name: _read(a, given[a.name]) for a in _model(entry) if a.name in given}
    plan = Plan(
        command=typed(entry, given),
        card=entry,
        options=own,
        data=chosen["data"],
        root=chosen["root"],
        trainer=trainer,
        settings={n: given.get(n, _with_default_of(entry, a).default) for n, a in mine.items()},
        seed=given.get("seed", 0),
        particles=given.get("particles", 500),
        test_rows=given.get("test_rows", 1_000),
    )
    data = plan.load(chosen["download"])
    plan = dataclasses.replace(plan, options=resolved(entry, own, data))
    pixels = _pixels(entry, plan.options, data) if chosen["pixels"] == "auto" else chosen["pixels"]
    if pixels != "none":
        plan = dataclasses.replace(plan, pixels=pixels)
        data = plan.load()
    if "batch_size" in plan.settings and "batch_size" not in given:
        fitting = min(plan.settings["batch_size"], len(data.train))
        plan = dataclasses.replace(plan, settings={**plan.settings, "batch_size": fitting})
    model = build(entry, plan.options, data, plan.seed)
    validate(model, data)
    return _train(plan, Task(entry, model, data, plan.seed), given.get("out"))


def typed(entry: Card, given: Mapping[str, Any]) -> str:
    """Return the command line that gives these options."""
    words = ["zoo", "fit", entry.name]
    for a in (*arguments(what), *_model(entry), *trainer_arguments(entry), *run_arguments(entry)):
        if a.kind is bool and a.name in given:
            words.append(a.flag)
        elif a.name in given:
            words += [a.flag, str(given[a.name])]
    return shlex.join(words)


def resolved(entry: Card, given: Mapping[str, Any], data: DataSet) -> dict[str, Any]:
    """Every option of a model: as given, else as the data suggest, else the class's default."""
    by_kind = entry.images if data.image_shape else entry.tables
    options = {a.name: a.default for a in _model(entry)} | dict(by_kind)
    if "classes" in options and data.train_labels is not None:
        options["classes"] = int(data.train_labels.max()) + 1
    return {**options, **given}


def _pixels(entry: Card, options: Mapping[str, Any], data: DataSet) -> str:
    """Binary pixels for images under a Bernoulli likelihood, so that nats are nats."""
    inside = bool(data.train.min() >= 0) and bool(data.train.max() <= 1)
    binary = options.get("likelihood", "bernoulli") == "bernoulli"
    return entry.pixels if data.image_shape and inside and binary else "none"


def _train(plan: Any, task: Any, out: str | None) -> Path:
    """Train, judge, write, and say where."""
    from .output import tell
    from .runs import place, save
    from .train import TRAINERS as functions

    target = place(plan, out)
    data = task.data
    print(
        f"{plan.card.name} on {data.name}: {len(data.train):,} training, {len(data.valid):,} "
        f"validation and {len(data.test):,} test rows of {data.data_dim} values"
        + (f", pixels {data.pixels}" if data.image_shape else ""),
        flush=True,
    )
    fitted = functions[plan.trainer](task, **plan.settings)
    interrupted = fitted.stopped == "interrupted"
    if interrupted:
        print(
            f"interrupted at step {fitted.done:,} of {fitted.steps:,}; writing what was reached "
            "(Ctrl-C again to drop it)",
            file=sys.stderr,
        )
    else:
        print("judging and drawing", file=sys.stderr)
    folder, metrics = save(plan, data, fitted, target)
    tell(metrics, folder / "report.html")
    for note in fitted.notes:
        print(note, file=sys.stderr)
    if interrupted:
        more = f"Go on with: zoo fit --resume {shlex.quote(str(folder))}"
        if fitted.run is None:  # a game's optimisers and critic are not part of its folder
            more = "A fit against a critic cannot go on from here; to train longer, fit again."
        print(more, file=sys.stderr)
        raise Interrupted
    return folder


def _model(entry: Card) -> list[Argument]:
    return arguments(entry.load(), skip=FILLED)


def _read(a: Argument, value: Any) -> Any:
    try:
        return a.read(value)
    except ValueError as error:
        raise ValueError(f"{a.flag}: {error}") from error
