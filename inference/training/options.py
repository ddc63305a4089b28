"""The options that all trainers share: what each is, its default, and what a resumed run takes."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast, get_args, get_type_hints

import torch
from torch import Tensor

from ..pairs.inspection import factorising
from ..pairs.options import check_options, nearest
from ..randomness import forked
from .checkpoint import GivenAgain
from .folders import claimed
from .progress import Progress
from .ranks import ranks_of
from .saved import TRAINERS, read_run

Trainer = TypeVar("Trainer", bound=Callable)


class LoopOptions(TypedDict, total=False):
    """Options of every trainer. One that is not given, or None, is the resumed run's or default.

    steps: updates to make, in all: those of `resume` included. "auto" (`fit` only; its default for
        pairs without mini-batches) lowers the rate when the parameters have settled, and ends when
        less than `tolerance` is to be gained.
    lr: learning rate of Adam.
    batch_size: rows per step, of every tensor that shares the first one's leading dimension.
    schedule: "constant", "linear" or "cosine" (both to zero), or a function of the step count, a
        tensor, that returns a factor of the learning rate.
    clip: largest norm of the gradient of the loss (in the unit of the history), of each player's
        where there are several; None leaves it.
    valid_every: steps between validations; None chooses.
    patience: stop after so many validations without a better value.
    compile: True, False, or "auto": when the run is long enough to earn it.
    compile_budget: part of the eager time ahead that "auto" may spend on compiling in vain; more
        only where an estimate says that it is saved.
    repeats: most updates per call of the compiled step; None chooses.
    seed: of everything that is random in the run.
    progress: show a progress bar (plain lines in a pipe).
    callbacks: called with the run after each validation or log interval; one that returns True
        stops the run. What they draw does not change the run.
    resume: go on from this run, or from the folder of one, which stays as it is, exactly as if it
        had never stopped. Its options hold where none is given here.
    folder: a new folder for the run's state, or that of `resume`. It is written as the run goes,
        at the end, and before SIGTERM or SIGHUP end the process; the last two are kept.
    save_every: seconds between two states; more where writing takes more than 2 % of them.
    not_finite: "stop" returns the run as it was before a loss that is not finite, and says where
        that came from; "skip" leaves out every step whose loss or gradient is not, and counts them.
    """

    steps: Any
    lr: float
    batch_size: int | None
    schedule: str | Callable[[Tensor], Tensor]
    clip: float | None
    valid_every: int | None
    patience: int | None
    compile: bool | str
    compile_budget: float
    repeats: int | None
    seed: int
    progress: bool | Progress
    callbacks: Sequence[Callable[[Any], Any]]
    resume: Any
    folder: str | Path | None
    save_every: float
    not_finite: str


class TrainingOptions(LoopOptions, total=False):
    """Options of the trainers that place the data, and hold some of it out.

    valid: held-out data, like `data`; the parameters kept are then those of the best value.
    device: "auto" (CUDA where there is one), or a torch device.
    """

    valid: Any
    device: str | torch.device


AUTO = "auto"  # for `steps`
DEFAULTS: dict[str, Any] = {
    "schedule": "constant",
    "compile": "auto",
    "compile_budget": 0.1,
    "seed": 0,
    "progress": True,
    "callbacks": (),
    "device": "auto",
    "save_every": 60.0,
    "not_finite": "stop",
}  # of the others: None
LASTING = (
    "steps", "lr", "batch_size", "schedule", "clip", "valid_every", "patience", "seed",
    "not_finite",
)  # fmt: skip


def lasting(options: LoopOptions) -> dict[str, Any]:
    """The shared options that a run keeps, for one that is resumed from it."""
    return {k: v for k, v in options.items() if k in LASTING}


def complete(options: LoopOptions) -> LoopOptions:
    """The options with defaults for those that are missing."""
    defaults = dict.fromkeys(LoopOptions.__annotations__) | DEFAULTS
    return cast(LoopOptions, defaults | options)


def trainer(
    least_steps: int = 1, auto: bool = False, **defaults: Any
) -> Callable[[Trainer], Trainer]:
    """Complete the options of a trainer `(..., **options: Unpack[TrainingOptions])` at each call.

    It draws from its seed, and leaves torch's random state as it was.

    An option that is not given, or None, is the resumed run's, else the default: of the trainer's
    own options in its signature, of shared ones here, else in `DEFAULTS`. Types and ranges are
    checked. `inspect.signature` and `help` show the shared options among the trainer's own.

    Args:
        least_steps: the smallest number of steps.
        auto: whether steps may be "auto", or None for the trainer to choose.
        defaults: of shared options, where the trainer's differ from `DEFAULTS`.
    """

    def decorate(function: Trainer) -> Trainer:
        shared = get_args(get_type_hints(function)["options"])[0]
        signature = _signature(function, shared, {**DEFAULTS, **defaults})
        own = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]

        @functools.wraps(function)
        def trained(*args: Any, **given: Any) -> Any:
            for name in set(given) - set(signature.parameters):
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}."
                    f"{nearest(name, signature.parameters)}"
                )
            given = {k: v for k, v in given.items() if v is not None}
            if isinstance(given.get("resume"), str | Path):
                given["resume"] = read_run(given["resume"])
            before = getattr(given.get("resume"), "settings", {})
            if "resume" in given and not hasattr(given["resume"], "settings"):
                raise TypeError(
                    "resume: expected a run that the same trainer returned, got "
                    f"{type(given['resume']).__name__}."
                )
            options = {p.name: given.pop(p.name, before.get(p.name, p.default)) for p in own}
            for name, value in options.items():
                if isinstance(value, GivenAgain):
                    raise ValueError(
                        f"{name}: the run had {value.shown}, which no file can hold. Give {name}= "
                        "again."
                    )
            free = auto and options["steps"] in (None, AUTO)
            options = {**check_options({} if free else {"steps": least_steps}, **{
                k: v for k, v in options.items() if not (free and k == "steps")
            }), "steps": options["steps"]}  # fmt: skip
            place = getattr(options["resume"], "path", None)
            with (
                factorising(function.__name__),
                _claimed(options, place) as options["folder"],
                forked(options["seed"]),
            ):
                run = function(*args, **given, **options)
            run.held = False
            return run

        TRAINERS[inspect.signature(function).return_annotation] = trained
        trained.__signature__ = signature  # type: ignore[attr-defined]
        trained.__doc__ = _help(function.__doc__ or "", shared)
        return cast(Trainer, trained)

    return decorate


@contextmanager
def _claimed(options: dict[str, Any], place: Path | None) -> Iterator[Path | None]:
    """The folder to write into: of several ranks, for the first. What it refuses, all refuse."""
    ranks = ranks_of(options.get("group"))
    problem: Exception | None = None
    with ExitStack() as held:
        folder = None
        try:
            if ranks is None or ranks.first:
                folder = held.enter_context(claimed(options["folder"], place))
                if folder is not None and folder == place:
                    _refuse_stale(options["resume"])
        except (OSError, ValueError) as error:
            problem = error
        if ranks is not None:
            problem = next((p for p in ranks.gathered(problem) if p is not None), None)
        if problem is not None:
            raise problem
        yield folder


def _refuse_stale(saved: Any) -> None:
    """Raise ValueError where another process has gone on from a state since it was read."""
    if (now := read_run(saved.path).steps) != saved.steps:
        raise ValueError(
            f"resume: another run has gone on in {saved.path} meanwhile, from step "
            f"{saved.steps:,} to {now:,}. Resume the folder again."
        )


def _signature(function: Callable, shared: type, defaults: dict[str, Any]) -> inspect.Signature:
    """The function's signature with a parameter for each shared option."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return signature.replace(parameters=own + [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name),
            annotation=hint.__forward_arg__,
        )
        for name, hint in shared.__annotations__.items()
    ])  # fmt: skip


def _help(text: str, shared: type) -> str:
    """The docstring with the explanation of shared options in place of its line `options: ...`."""
    explained = {n for names in re.findall(r"^ +((?:\w+, )*\w+): ", text, re.M)
                 for n in names.split(", ")}  # fmt: skip
    lines = []
    for options in (LoopOptions, TrainingOptions)[: 1 + (shared is TrainingOptions)]:
        entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", options.__doc__ or "", re.M)
        lines += [f"{n}: {said}" for n, said in entries if n not in explained]
    listed = "\n".join(" " * 8 + line.replace("\n", "\n    ") for line in lines)
    return re.sub(r"^ +options: .*(?:\n {12}.*)*", lambda _: listed, text, flags=re.M)
