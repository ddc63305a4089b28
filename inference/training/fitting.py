"""Fit a pair: batches, schedule, validation, early stop, resume around the step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.optim
import torch
from torch import Tensor, nn

from ..elbo import Estimator, Trace
from ..optim import Adam, Optimiser
from ..pairs.inspection import refuse_errors
from ..randomness import forked
from .batches import Batches, arguments, batch_transform, chunk_rows, halves, pick_device, to
from .loop import WORTH_COMPILING, Loop, held_out_values
from .progress import Progress
from .run import Run
from .start import refuse_infinite, start
from .update import Update, Variables, matmul_precision

BATCH = 128  # for data sets, when no batch size is given

__all__ = [
    "BATCH",
    "WORTH_COMPILING",
    "Batches",
    "arguments",
    "fit",
    "halves",
    "held_out_values",
    "pick_device",
    "schedule_of",
    "start",
]


def fit(
    model: Callable | nn.Module,
    guide: Any = None,
    data: Any = None,
    *,
    elbo: Estimator | None = None,
    steps: int = 5_000,
    lr: float = 1e-3,
    batch_size: int | None = None,
    optimiser: Any = None,
    schedule: str | Callable[[Tensor], Tensor] = "constant",
    clip: float | None = None,
    valid: Any = None,
    valid_every: int | None = None,
    patience: int | None = None,
    compile: bool | str = "auto",
    repeats: int | None = None,
    chunk: int | None = None,
    device: str | torch.device = "auto",
    autocast: bool = False,
    tf32: bool = False,
    seed: int = 0,
    progress: bool | Progress = True,
    check: bool = True,
    callbacks: Sequence[Callable[[Run], Any]] = (),
    resume: Run | None = None,
) -> Run:
    """Fit a pair: maximise a bound on log p(x) by stochastic gradients.

    `fit(pair, data)` for a module with methods `model` and `guide`, `fit(model, guide, data)` for
    any two Pyro callables. The pair given is not changed: the run owns a copy of its modules and
    its own parameter store.

    Args:
        data: a tensor, a tuple of arguments, or a data set with `train` (and `valid`).
        elbo: the estimator, by default `Trace()`.
        steps: updates to make; with `resume`, updates in all.
        lr: learning rate of the default optimiser (Adam).
        batch_size: rows per step, of every tensor that shares the first one's leading dimension;
            None takes all of a tensor, and 128 rows of a data set.
        optimiser: from `inference.optim`; or a function `params -> torch.optim.Optimizer`, or a
            `pyro.optim` optimiser, which run eagerly only.
        schedule: "constant", "linear" or "cosine" (both to zero), or a function of the step count,
            a tensor, that returns a factor.
        clip: largest norm of the gradient of the loss (in the unit of the history).
        valid: held-out data, like `data`; the parameters kept are then those of the best value.
        valid_every: steps between validations.
        patience: stop after so many validations without a better value.
        compile: True, False, or "auto": when the run is long enough to earn it.
        repeats: updates per call of the compiled step; None chooses.
        chunk: rows of a batch that go through the pair at once (a divisor of it); the gradient is
            summed over the batch. None takes all, or what keeps particles times numbers of data
            below 2^26.
        device: "auto" (CUDA where there is one), or a torch device.
        autocast: bfloat16 where autocast allows it.
        tf32: TensorFloat-32 matrix products on CUDA.
        seed: of everything that is random in the run.
        progress: show a progress bar (plain lines in a pipe).
        check: look at the pair first, and refuse one with errors (`inference.check`).
        callbacks: called with the run after each validation or log interval; one that returns
            True stops the run.
        resume: go on from this run.

    Returns:
        A `Run`: the fitted pair, its parameters, its history in nats.

    Raises:
        ValueError: the data or an option is out of range; the pair has an error; the loss is not
            finite at the first step (with the site), or becomes so later.
    """
    pair = model if data is None else getattr(model, "__self__", None)
    if data is None:
        model, guide, data = halves(model, guide)
    elbo = Trace() if elbo is None else elbo
    optimiser = Adam(lr) if optimiser is None else optimiser
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}.")
    where = pick_device(device)
    transform = batch_transform(data)
    args, held_out = arguments(model, data, valid)
    if callable(validate := getattr(pair, "validate", None)):  # a zoo pair knows its range of data
        with forked():
            validate(*transform(args))  # as a step will see them
    args = tuple(to(a, where) for a in args)
    held_out = None if held_out is None else tuple(to(a, where) for a in held_out)
    if hasattr(data, "train") and batch_size is None:
        batch_size = min(BATCH, len(args[0]))
    batches = Batches(args, batch_size, seed)

    rows = chunk_rows(batches, elbo.particles, chunk)
    first = batches.example(rows)
    with forked(seed):
        if resume is None:
            if check:
                refuse_errors(
                    model, guide, batches.example(), size=batches.size, elbo=elbo, device=where
                )
            run = start(model, guide, first, batches.size, elbo, where, seed)
        else:
            run = dataclasses.replace(resume, stopped=None)
        foreign = None if isinstance(optimiser, Optimiser) else _foreign(optimiser)
        update = Update(
            run.pair_, elbo, Adam(lr) if foreign else optimiser, run.divide, clip,
            transform, run.kwargs, autocast,
            schedule=schedule_of(schedule, steps), chunk=rows,
        )  # fmt: skip
        run.update = update
        if resume is None:
            run.variables = Variables.start(run.pair_, update.optimiser)
        if run.random_state is not None:
            torch.random.set_rng_state(run.random_state)
        refuse_infinite(run, first)
        bar = (
            progress
            if isinstance(progress, Progress)
            else Progress(steps, run.unit, bool(progress))
        )
        if foreign is not None and compile is not False:
            run.eager_because = f"{foreign!r} is not an optimiser of inference.optim"
            bar.note(f"eager steps: {run.eager_because}")
        loop = Loop(run, update, batches, steps, compile, repeats, bar, callbacks, foreign)
        loop.lr.fill_(update.optimiser.lr)
        loop.validation(held_out, valid_every, patience)
        with matmul_precision(tf32):
            loop.go()
        run.random_state = torch.random.get_rng_state()
    return run.finish()


def _foreign(optimiser: Any) -> Any:
    """The optimiser, when it is one of torch or Pyro."""
    if isinstance(optimiser, pyro.optim.PyroOptim) or callable(optimiser):
        return optimiser
    raise TypeError(
        "optimiser: expected one of inference.optim (Adam, AdamW, ClippedAdam, SGD, RMSprop), a "
        "function params -> torch.optim.Optimizer, or a pyro.optim optimiser; got "
        f"{type(optimiser).__name__}."
    )


def schedule_of(schedule: Any, steps: int) -> Callable[[Tensor], Tensor] | None:
    """A schedule as a function of the step count; None is constant."""
    if callable(schedule):
        return schedule
    if schedule == "constant":
        return None
    if schedule == "linear":
        return lambda count: (1 - count / steps).clamp(min=0.0)
    if schedule == "cosine":
        return lambda count: 0.5 * (1 + torch.cos(math.pi * (count / steps).clamp(max=1.0)))
    raise ValueError(
        f"schedule: expected constant, linear, cosine or a function, got {schedule!r}."
    )
