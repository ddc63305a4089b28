"""Fit a pair: batches, schedule, validation, early stop, resume around the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..elbo import Estimator, Trace, estimator_of
from ..optim import Adam, Optimiser
from ..pairs.arguments import moved
from ..pairs.inspection import refuse_errors
from ..pairs.options import check_options, optimiser_of
from ..randomness import forked
from .batches import Batches, arguments, batch_transform, chunk_rows, halves, pick_device
from .foreign import ForeignStep
from .loop import Loop
from .progress import Progress
from .run import Run
from .start import new_run, refuse_infinite, without_run
from .state import chosen, refuse_done
from .update import Update, Variables, matmul_precision, schedule_of
from .validation import held_out_values, validation_row

BATCH = 128  # for data sets, when no batch size is given
DEFAULTS: dict[str, Any] = {
    "elbo": None, "steps": 5_000, "lr": 1e-3, "batch_size": None, "optimiser": None,
    "schedule": "constant", "clip": None, "valid_every": None, "patience": None, "chunk": None,
    "autocast": False, "tf32": False, "seed": 0,
}  # fmt: skip


def fit(
    model: Callable | nn.Module,
    guide: Any = None,
    data: Any = None,
    *,
    elbo: Estimator | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    optimiser: Any = None,
    schedule: str | Callable[[Tensor], Tensor] | None = None,
    clip: float | None = None,
    valid: Any = None,
    valid_every: int | None = None,
    patience: int | None = None,
    compile: bool | str = "auto",
    repeats: int | None = None,
    chunk: int | None = None,
    device: str | torch.device = "auto",
    autocast: bool | None = None,
    tf32: bool | None = None,
    seed: int | None = None,
    progress: bool | Progress = True,
    check: bool = True,
    callbacks: Sequence[Callable[[Run], Any]] = (),
    resume: Run | None = None,
) -> Run:
    """Fit a pair: maximise a bound on log p(x) by stochastic gradients.

    `fit(pair, data)` for a module with methods `model` and `guide`, `fit(model, guide, data)` for
    any two Pyro callables. The pair given is not changed: the run owns a copy of its modules and
    its own parameter store. `fit(run.model, run.guide, data)` begins anew from a run's parameters.

    Args:
        data: a tensor, a tuple of arguments, or a data set with `train` (and `valid`).
        elbo: the estimator, by default `Trace()`.
        steps: updates to make, in all: those of `resume` included; by default 5,000.
        lr: learning rate of the default optimiser (Adam), by default 1e-3.
        batch_size: rows per step, of every tensor that shares the first one's leading dimension;
            None takes all of a tensor, and 128 rows of a data set.
        optimiser: from `inference.optim`; or a function `params -> torch.optim.Optimizer`, or a
            `pyro.optim` optimiser, which run eagerly only.
        schedule: "constant" (the default), "linear" or "cosine" (both to zero), or a function of
            the step count, a tensor, that returns a factor of the learning rate.
        clip: largest norm of the gradient of the loss (in the unit of the history); None leaves it.
        valid: held-out data, like `data`; the parameters kept are then those of the best value.
        valid_every: steps between validations; None chooses.
        patience: stop after so many validations without a better value.
        compile: True, False, or "auto": when the run is long enough to earn it.
        repeats: most updates per call of the compiled step; None chooses.
        chunk: most rows of a batch that go through the pair at once; the gradient is summed over
            the batch. None takes all, or what keeps particles times numbers of data below 2^26.
        device: "auto" (CUDA where there is one), or a torch device.
        autocast: bfloat16 where autocast allows it.
        tf32: TensorFloat-32 matrix products on CUDA.
        seed: of everything that is random in the run.
        progress: show a progress bar (plain lines in a pipe).
        check: look at the pair first, and refuse one with errors (`inference.check`).
        callbacks: called with the run after each validation or log interval; one that returns
            True stops the run. What they draw does not change the run.
        resume: go on from this run, which stays as it is, exactly as if it had never stopped. Its
            options hold where none is given here.

    Returns:
        A `Run`: the fitted pair, its parameters, its history in nats. Ctrl-C ends it early, between
        two steps.

    Raises:
        ValueError: the data or an option is out of range; the pair has an error; the loss is not
            finite at the first step (with the site), or becomes so later; `resume` is a run of
            another pair, or of other data or with another optimiser.
    """
    pair = model if data is None else getattr(model, "__self__", None)
    if data is None:
        model, guide, data = halves(model, guide)
    given = {
        "elbo": elbo, "steps": steps, "lr": lr, "batch_size": batch_size, "optimiser": optimiser,
        "schedule": schedule, "clip": clip, "valid_every": valid_every, "patience": patience,
        "chunk": chunk, "autocast": autocast, "tf32": tf32, "seed": seed,
    }  # fmt: skip
    options = chosen(DEFAULTS, given, resume)
    estimator = options["elbo"] = estimator_of(options["elbo"], Trace)
    optimiser = options["optimiser"] = chosen_optimiser(options, given)
    steps, seed = options["steps"], options["seed"]
    refuse_done(steps, resume)
    check_options(check=check, compile=compile, repeats=repeats, callbacks=callbacks)
    where = pick_device(device)
    transform = batch_transform(data)
    args, held_out = arguments(model, data, valid)
    if callable(validate := getattr(pair, "validate", None)):  # a zoo pair knows its range of data
        with forked():
            validate(*transform(args))  # as a step will see them
    args = moved(args, where)
    if hasattr(data, "train") and options["batch_size"] is None:
        options["batch_size"] = min(BATCH, len(args[0]))
    batches = Batches(args, options["batch_size"], seed)
    rows = chunk_rows(batches, estimator.particles, options["chunk"])
    first = batches.example(rows)
    with forked(seed):
        if check and resume is None:
            refuse_errors(
                without_run(model), without_run(guide), batches.example(), size=batches.size,
                elbo=estimator, device=where,
            )  # fmt: skip
        run = new_run(model, guide, first, batches.size, estimator, where, seed)
        run.settings = options
        ours = _ours(optimiser)
        update = Update(
            run.pair_, estimator, optimiser if ours else Adam(options["lr"]), run.divide,
            options["clip"], transform, run.kwargs, options["autocast"],
            schedule=schedule_of(options["schedule"], steps), chunk=rows,
        )  # fmt: skip
        run.variables = Variables.start(run.pair_, update.optimiser)
        if resume is not None:
            if ours != (resume.optimiser_state is None):
                raise ValueError(
                    f"resume: {optimiser!r} cannot go on from the state of the run's optimiser. "
                    "Leave optimiser= out, or begin anew: fit(run.model, run.guide, data)."
                )
            run.go_on_from(resume)
        foreign = None
        if not ours:
            foreign = ForeignStep(update, run.variables, optimiser, run.optimiser_state)
            run.eager_because = f"{optimiser!r} is not an optimiser of inference.optim"
        refuse_infinite(run, first)
        loop = Loop(
            run, [update], batches, steps, update.optimiser.lr, compile, repeats, progress,
            callbacks, _validation(run, held_out, batches.batch_size), options["valid_every"],
            options["patience"], foreign, run.unit, ADVICE,
        )  # fmt: skip
        if foreign is not None and compile is not False:
            loop.bar.note(f"eager steps: {run.eager_because}")
        with matmul_precision(options["tf32"]):
            loop.go()
    return run.finish()


ADVICE = (
    "Lower lr, set clip=..., or look at run.history up to there; inference.check(model, guide, "
    "...) names a site that overflows."
)


def _validation(run: Run, held_out: tuple | None, batch_size: int | None) -> Callable | None:
    """The validation of a run on held-out arguments, where there are any."""
    if held_out is None:
        return None
    args = moved(held_out, run.device)

    def validate() -> tuple[Tensor, dict[str, float]]:
        score, values = held_out_values(run, run.variables, args, batch_size)
        return score, validation_row(score, values)

    return validate


def chosen_optimiser(options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """The optimiser of a run; one that goes on takes a learning rate that is given anew."""
    optimiser = optimiser_of(options["optimiser"], options["lr"])
    anew = given["lr"] is not None and given["optimiser"] is None
    return replace(optimiser, lr=options["lr"]) if anew and _ours(optimiser) else optimiser


def _ours(optimiser: Any) -> bool:
    return isinstance(optimiser, Optimiser)
