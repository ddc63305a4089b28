"""`zoo fit MODEL`: one subcommand for each card, its options read off the signatures."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cards import CARDS, TRAINERS, Card, card

from .options import FILLED, Argument, arguments, command, explained, option
from .own import OwnCard, installed, is_own, own_card

if TYPE_CHECKING:
    from zoo.data import DataSet

    from .plan import Plan


def what(
    data: str = "digits", root: str | None = None, download: bool = False, pixels: str = "auto"
) -> None:
    """Declare the options that choose the data.

    Args:
        data: a set by name (zoo list data), or the path of your own table (.csv, .tsv, .parquet,
            .feather, .npy), images (.npy) or folder of images.
        root: the folder that holds MNIST/raw and the like; by default $ZOO_DATA, else a cache.
        download: fetch the set where it is missing.
        pixels: how images are treated: none, threshold, static, dynamic (drawn at
            every step), or dequantised (with uniform noise, for densities).
    """


def how(
    trainer: str = "",
    seed: int = 0,
    out: str | None = None,
    particles: int = 500,
    test_rows: int = 1_000,
    ais: int = 0,
    save_every: float = 60.0,
) -> None:
    """Declare the options that every run has.

    Args:
        trainer: how it is trained, where there are several ways.
        seed: of everything random.
        out: the folder to write, which must not exist; by default the next runs/MODEL-DATA-NNN.
        particles: draws for each test datum, for log p(x) and k-hat.
        test_rows: how many test data are judged.
        ais: temperatures of annealed chains, which bound log p(x) from both sides; 1 finds how
            many, 0 is none.
        save_every: seconds between two states on disk.
    """


class Done(Exception):
    """A fit that did not end as planned, and what was reached is kept: the exit status."""


class Ended(BaseException):
    """SIGTERM or SIGHUP came: its number."""


class Models(typer.core.TyperGroup):
    """The subcommands of `zoo fit`. Only the chosen model is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every name of the catalogue, and of installed packages."""
        return [*CARDS, *installed()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in for the list of models, without options."""
        entry = {**CARDS, **installed()}.get(cmd_name)
        if entry is None:
            return None
        stub = command(cmd_name, lambda: None, [], entry.summary)
        stub.rich_help_panel = entry.family
        return stub

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the model that was asked for, with its options."""
        found = any_card(args[0])
        return found.name, fit_command(found), args[1:]


def any_card(name: str) -> Card:
    """The card of the catalogue, of an installed package, or of one's own FILE:NAME."""
    if is_own(name):
        return own_card(name)
    return installed().get(name) or card(name)


def go_on(
    ctx: typer.Context,
    pair: Annotated[
        str | None, explained("with --resume: FILE:NAME, of a pair of your own")
    ] = None,
    resume: Annotated[str | None, explained("go on from this run folder", metavar="RUN")] = None,
    steps: Annotated[int | None, explained("with --resume: updates in all", "as before")] = None,
    out: Annotated[str | None, explained("with --resume: the new folder", "runs/...")] = None,
    save_every: Annotated[
        float, explained("with --resume: seconds between two states on disk", "60")
    ] = 60.0,
) -> None:
    """Fit a model and write a run folder, with a page that shows it.

    MODEL is a name of the catalogue (zoo list), or FILE:NAME for a pair of your own, such as
    my_pair.py:Pair. zoo fit MODEL --help lists the options of one model.
    """
    if ctx.invoked_subcommand is not None:
        if resume is not None:
            raise ValueError("--resume takes the model from the run: leave the model's name out.")
        return
    if resume is None:
        raise ValueError("fit: name a model (zoo list shows them), or --resume RUN.")
    from .build import build, build_like
    from .inputs import settled
    from .plan import Plan
    from .runs import STEPPED, read, state_in
    from .train import Task

    folder = Path(resume)
    plan = Plan.read(folder, pair)
    saved = state_in(folder)
    if plan.trainer not in STEPPED and saved is not None:
        read(folder, pair)
        raise ValueError(f"{folder}: a run trained by {plan.trainer} is at its end.")
    data = plan.load()
    if saved is not None:
        total = plan.settings["steps"] if steps is None else steps
        if total <= saved.steps and (steps is not None or saved.steps >= total):
            raise ValueError(
                f"--steps: {folder} has done {saved.steps:,}; ask for more in all, as in "
                f"--steps {2 * saved.steps}."
            )
        model = build_like(plan, data, saved.variables.params)
    else:
        total = plan.settings.get("steps") if steps is None else steps
        model = build(plan.card, plan.options, data, plan.seed)
    data = settled(model, data) if isinstance(plan.card, OwnCard) else data
    typed = (
        ["zoo", "fit", "--resume", str(resume)]
        + ["--pair", str(pair)] * (pair is not None)
        + ["--steps", str(total)] * (total is not None)
    )
    settings = {**plan.settings, "steps": total} if total is not None else plan.settings
    plan = dataclasses.replace(
        plan, settings=settings, resumed=str(folder.resolve()), command=shlex.join(typed)
    )
    _train(plan, Task(plan.card, model, data, plan.seed, saved, save_every=save_every), out)


def fit_command(entry: Card, run: Callable[[Card, Mapping], Any] | None = None) -> Any:
    """`zoo fit NAME` for one card, or what else is done with its options."""
    run = run or fit_model
    panels = {
        "Data": [_with_default_of(entry, a) for a in data_arguments()],
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
    if isinstance(entry, OwnCard):
        return command(entry.name, lambda **given: run(entry, given), parameters,
                       f"{entry.summary[0].upper()}{entry.summary[1:]}.")  # fmt: skip
    trained = "; or ".join(TRAINERS[t] for t in entry.trainers)
    return command(
        entry.name, lambda **given: run(entry, given), parameters,
        f"{text}\n\nTrained by {trained}. Known exactly: {entry.exact}.",
    )  # fmt: skip


def data_arguments() -> list[Argument]:
    """Return the options that choose the data, and how a table of them is read."""
    from .plan import columns

    return [*arguments(what), *arguments(columns)]


def trainer_arguments(entry: Card, trainers: Collection[str] = ()) -> list[Argument]:
    """Return the options of some trainers of a card, by default of all of them."""
    from .train import TRAINERS as functions

    left_out = set() if hasattr(entry.load(), "classify") else {"labels"}
    found: dict[str, Argument] = {}
    for name in trainers or entry.trainers:
        alike = {"elbo"} if name == "likelihood" else set()  # without latents they are all alike
        for a in arguments(functions[name]):
            if a.name not in left_out | alike:
                found.setdefault(a.name, a)
    return list(found.values())


def run_arguments(entry: Card) -> list[Argument]:
    """Return the options that every run has; a choice of trainers where there is one."""
    return [a for a in arguments(how) if a.name != "trainer" or len(entry.trainers) > 1]


def _with_default_of(entry: Card, a: Argument) -> Argument:
    """Return an argument with the card's default."""
    mine = {
        "data": entry.data, "steps": entry.steps, "elbo": entry.elbo,
        "trainer": entry.trainers[0], **entry.settings,
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
    from .build import validate
    from .train import Task

    plan, data, model = prepare(entry, given)
    validate(model, data)
    every = given.get("save_every", 60.0)
    task = Task(entry, model, data, plan.seed, save_every=every)
    return _train(plan.pinned(data), task, given.get("out"))


def prepare(entry: Card, given: Mapping[str, Any]) -> tuple[Plan, DataSet, Any]:
    """Return the plan of a fit with the options given, its data, and the model before its fit.

    Raises:
        ValueError: an option is none of the trainer's, or out of range; no data.
    """
    from .build import build
    from .inputs import settled
    from .plan import Plan, columns

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
    table = {a.name: _read(a, given[a.name]) for a in arguments(columns) if a.name in given}
    if not chosen["data"] and "train" not in table:
        raise ValueError(
            "--data: name the data of your pair: a set (zoo list data), or a file such as my.csv."
        )
    plan = Plan(
        command=typed(entry, given),
        card=entry,
        options=own,
        data=chosen["data"],
        root=chosen["root"],
        table=table,
        trainer=trainer,
        settings={n: given.get(n, _with_default_of(entry, a).default) for n, a in mine.items()},
        seed=given.get("seed", 0),
        particles=given.get("particles", 500),
        test_rows=given.get("test_rows", 1_000),
        ais=given.get("ais", 0),
    )
    data = plan.load(chosen["download"])
    plan = dataclasses.replace(plan, options=resolved(entry, own, data))
    pixels = _pixels(entry, plan.options, data) if chosen["pixels"] == "auto" else chosen["pixels"]
    if pixels != "none":
        plan = dataclasses.replace(plan, pixels=pixels)
        data = plan.load()
    model = None
    if isinstance(entry, OwnCard):
        model = build(entry, plan.options, data, plan.seed)
        data = settled(model, data)
    if "batch_size" in plan.settings and "batch_size" not in given:
        most = len(data.train) if getattr(data, "whole", False) else plan.settings["batch_size"]
        fitting = min(most, len(data.train))
        plan = dataclasses.replace(plan, settings={**plan.settings, "batch_size": fitting})
    return plan, data, model or build(entry, plan.options, data, plan.seed)


def typed(entry: Card, given: Mapping[str, Any]) -> str:
    """Return the command line that gives these options."""
    name = entry.path if isinstance(entry, OwnCard) else entry.name
    words = ["zoo", "fit", os.path.relpath(name) if os.path.isabs(name) else name]
    for a in (*data_arguments(), *_model(entry), *trainer_arguments(entry), *run_arguments(entry)):
        if a.name in given:
            words += a.typed(given[a.name])
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


def _train(plan: Plan, task: Any, out: str | None) -> Path:
    """Reserve a folder, train into it, then judge, and say where.

    Raises:
        Done: a signal ended it, or judging failed; the folder holds what was trained.
    """
    from inference.training.folders import STATE

    from .output import say, tell
    from .runs import STEPPED, present, reserved, store, train

    data = task.data
    with ExitStack() as inside:
        inside.enter_context(ended_by_signals())
        if inside.enter_context(joined(plan.trainer)) > 0:  # rank 0 writes, judges and shows
            with suppress(ConnectionError):
                train(plan, task)
            return Path()
        folder = inside.enter_context(reserved(plan, out))
        say(
            f"{plan.card.name} on {data.name}: {len(data.train):,} training, {len(data.valid):,} "
            f"validation and {len(data.test):,} test rows of {data.data_dim} values"
            + (f", pixels {data.pixels}" if data.image_shape else "")
            + (", standardised" if data.scale is not None else "")
            if not getattr(data, "whole", False)
            else f"{plan.card.name} on {data.name}: {len(data.train):,} rows, fitted together"
        )
        where = shlex.quote(str(folder))
        more = f"Go on with: zoo fit --resume {where}"
        try:
            fitted = train(plan, dataclasses.replace(task, folder=folder))
            if plan.trainer not in STEPPED:
                store(folder, fitted)
        except (Ended, KeyboardInterrupt, Exception) as error:
            if not (folder / STATE).exists():
                raise
            return _left(f"ended while training: {_named(error)}. {more}", error)
        if interrupted := fitted.stopped == "interrupted":
            say(
                f"interrupted at step {fitted.done:,} of {fitted.steps:,}; what was reached is in "
                f"{folder}; judging it (Ctrl-C again to leave that out)", error=True,
            )  # fmt: skip
        else:
            say("judging and drawing", error=True)
        try:
            report = present(plan, data, fitted, folder)
        except (Ended, KeyboardInterrupt, Exception) as error:
            return _left(
                f"the run is trained and in {folder}, but not judged: {_named(error)}. Do it again "
                f"with: zoo report {where}", error,
            )  # fmt: skip
        tell(report.metrics, folder / "report.html")
        for note in report.notes:
            say(note, error=True)
        if interrupted:
            say(more, error=True)
            raise Done(130)
    return folder


def _left(text: str, error: BaseException) -> Any:
    """Say why a run was left as it is, and end with the status for it."""
    from .output import say

    if os.environ.get("ZOO_TRACEBACK") and isinstance(error, Exception):
        raise error
    say(f"zoo: {' '.join(text.split())}", error=True)
    status = 128 + error.args[0] if isinstance(error, Ended) else 1
    raise Done(130 if isinstance(error, KeyboardInterrupt) else status)


def _named(error: BaseException) -> str:
    """An error in words."""
    if isinstance(error, Ended):
        return signal.Signals(error.args[0]).name
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C"
    return str(error).rstrip(".") or type(error).__name__


@contextmanager
def joined(trainer: str) -> Iterator[int]:
    """Join the processes that `torchrun` has started; the number of this one, 0 without them.

    Raises:
        ValueError: the trainer is one for a single process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or "MASTER_ADDR" not in os.environ:
        yield 0
        return
    import torch

    rank = int(os.environ["RANK"])
    if trainer not in ("elbo", "likelihood"):
        raise ValueError(
            f"torchrun: {trainer} is made by one process: expected a model that is trained by "
            "elbo. Start it without torchrun."
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield rank
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Ended` where SIGTERM or SIGHUP comes inside the block; a step is finished first."""

    def end(number: int, frame: Any) -> None:
        raise Ended(number)

    from inference.training.keeping import ENDING

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _model(entry: Card) -> list[Argument]:
    return arguments(entry.load(), skip=FILLED)


def _read(a: Argument, value: Any) -> Any:
    try:
        return a.read(value)
    except ValueError as error:
        raise ValueError(f"{a.flag}: {error}") from error
