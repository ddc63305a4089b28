"""Fit a pair: batches, schedule, validation, early stop, resume around the step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..elbo import Estimator, Trace, estimator_of, kl_by_site
from ..optim import Adam, Optimiser
from ..pairs.arguments import checked_arguments, rows_of, take_rows
from ..pairs.inspection import refuse_errors
from ..pairs.options import device_of, optimiser_of
from ..randomness import DrawnAnew, forked
from ..weights import no_validation
from .batches import Batches, arguments, batch_transform, chunk_rows
from .convergence import LAST, TOLERANCE
from .loop import Loop
from .options import AUTO, LoopOptions, TrainingOptions, lasting, trainer
from .ranks import Ranks, ranks_of
from .run import Run, new_run, without_run
from .sources import Source
from .steps import ForeignStep
from .update import Update, Variables, at_step, even_parts, matmul_precision, schedule_of

STEPS = 5_000  # where they are not given, and a fit does not end by itself
GROUPS = 32  # of held-out data, over which a gain is paired
BATCH = 128  # for data sets, when no batch size is given
ADVICE = (
    "Lower lr, set clip=..., or look at run.history up to there; inference.check(model, guide, "
    "...) names a site that overflows."
)


@trainer(auto=True, lr=1e-3)
def fit(
    model: Callable | nn.Module,
    guide: Any = None,
    data: Any = None,
    *,
    elbo: Estimator | None = None,
    optimiser: Any = None,
    chunk: int | None = None,
    autocast: bool = False,
    tf32: bool = False,
    check: bool = True,
    group: Any = "auto",
    tolerance: float = TOLERANCE,
    **options: Unpack[TrainingOptions],
) -> Run:
    """Fit a pair: maximise a bound on log p(x) by stochastic gradients.

    `fit(pair, data)` for a module with methods `model` and `guide`, `fit(model, guide, data)` for
    any two Pyro callables. The pair given is not changed: the run owns a copy of its modules and
    its own parameter store. `fit(run.model, run.guide, data)` begins anew from a run's parameters.

    Args:
        data: a tensor, a tuple of arguments, or a data set with `train` (and `valid`). Or what is
            read by and by, of which no more than two batches are in memory: the path of a .npy or
            .parquet file, or of a folder of these; a memory-mapped array, or a tuple with some; a
            `Dataset`, `IterableDataset` or `DataLoader` of torch.
        elbo: the estimator, by default `Trace()`.
        optimiser: from `inference.optim`; or a function `params -> torch.optim.Optimizer`, or a
            `pyro.optim` optimiser, which run eagerly only. By default Adam.
        batch_size: rows per step, of every tensor that shares the first one's leading dimension;
            None takes all of a tensor, and 128 rows of a data set, or of what is read.
        chunk: most rows of a batch that go through the pair at once; the gradient is summed over
            the batch. None takes all, or what keeps particles times numbers of data below 2^26.
        autocast: bfloat16 where autocast allows it.
        tf32: TensorFloat-32 matrix products on CUDA.
        check: look at the pair first, and refuse one with errors (`inference.check`).
        group: processes of `torch.distributed` that make the fit together, each calling `fit` with
            the same arguments: they share the rows of each batch of a given `batch_size`, else the
            draws. "auto" is the default process group where there is one; False is this process
            alone. Rank 0 writes, and calls `callbacks`.
        steps: updates to make, in all: those of `resume` included. "auto" ends by itself: the
            parameters are averaged, `lr` rises while all of them go one way and falls when they
            have settled, and the end comes when less than `tolerance` is to be gained. That is
            judged on all data, with the same draws for all averages; with mini-batches on held-out
            data (`valid=`), paired over data. By default "auto" where every step takes all data,
            else 5,000. `run.converged` says whether it had converged, in either case.
        tolerance: nats (per datum, where the run's unit is) that a fit may leave to be gained.
        options: those of all trainers, `inference.training.options.TrainingOptions`.

    Returns:
        A `Run`: the fitted pair, its parameters, its history in nats. Ctrl-C ends it early, between
        two steps.

    Raises:
        ValueError: the data or an option is out of range; the pair has an error, as a log
            density that is not finite; the loss is no longer finite; `resume` is a run of another
            pair, or of other data or with another optimiser.
    """
    pair = model if data is None else getattr(model, "__self__", None)
    where = device_of(options["device"])
    model, guide, data, args, held_out = arguments(
        model, guide, data, options["valid"], where, options["batch_size"] or BATCH, streams=True
    )  # fmt: skip
    estimator = estimator_of(elbo, Trace)
    optimiser = chosen_optimiser(optimiser, options)
    transform = batch_transform(data)
    if options["batch_size"] is None and (isinstance(args, Source) or hasattr(data, "train")):
        options["batch_size"] = min(BATCH, args.rows if isinstance(args, Source) else len(args[0]))
    ranks = ranks_of(group)
    batches = Batches(args, options["batch_size"], options["seed"], held_out, ranks, where)
    if isinstance(args, Source):
        checked_arguments(model, batches.args)
    if callable(validate := getattr(pair, "validate", None)):  # a zoo pair knows its range of data
        with forked():
            validate(*transform(batches.args))  # as a step will see them
    rows = chunk_rows(batches, estimator.particles, chunk)
    options["steps"] = _steps(options, batches, optimiser, held_out, ranks)
    automatic = options["steps"] == AUTO
    run, update = begun(
        model, guide, batches.example(rows), batches.size, estimator, optimiser, check, options,
        transform=transform, autocast=autocast, chunk=rows, ranks=ranks, share=batches.share,
    )  # fmt: skip
    run.given = batches.args if batches.whole and not isinstance(args, Source) else None
    run.settings |= {
        "chunk": chunk, "autocast": autocast, "tf32": tf32, "tolerance": tolerance,
    }  # fmt: skip
    ours, resume = isinstance(optimiser, Optimiser), options["resume"]
    if resume is not None and resume.kind == run.kind and ours != (resume.optimiser_state is None):
        raise ValueError(
            f"resume: {optimiser!r} cannot go on from the state of the run's optimiser. "
            "Leave optimiser= out, or begin anew: fit(run.model, run.guide, data)."
        )
    run.go_on_from(resume, None if automatic else options["steps"])
    if not automatic:
        run.pace = None
    foreign = None
    if not ours:
        foreign = ForeignStep(update, run.variables, optimiser, run.optimiser_state)
        run.eager_because = f"{optimiser!r} is not an optimiser of inference.optim"
    held = (
        None
        if held_out is None or automatic
        else partial(held_out_values, run, run.variables, held_out, batches, ranks=ranks)
    )
    groups = partial(held_out_losses, run, held_out) if automatic and held_out else None
    loop = Loop(
        run, [update], batches, options, held, foreign, run.unit, ADVICE, ranks, tolerance, groups
    )
    if foreign is not None and options["compile"] is not False:
        loop.bar.note(f"eager steps: {run.eager_because}")
    with matmul_precision(tf32):
        loop.go()
    run.write_back()
    return run


def _steps(
    options: TrainingOptions, batches: Batches, optimiser: Any, held_out: Any, ranks: Ranks | None
) -> Any:
    """The steps asked for, or chosen.

    Raises:
        ValueError: "auto" without what it takes.
    """
    steps, ours = options["steps"], isinstance(optimiser, Optimiser)
    plain = options["schedule"] == "constant" and options["patience"] is None
    if steps is None:
        free = batches.whole and ours and plain and held_out is None and ranks is None
        return AUTO if free else STEPS
    if steps != AUTO:
        return steps
    if not ours:
        raise ValueError("steps: 'auto' sets the rate of an optimiser of inference.optim; got "
                         f"{optimiser!r}. Give a number of steps.")  # fmt: skip
    if ranks is not None:
        raise ValueError("steps: 'auto' is for one process; give a number of steps, or group=None.")
    if not plain:
        raise ValueError(
            "steps: 'auto' finds rate and end by itself: expected no schedule= and no patience=."
        )
    if not batches.whole and held_out is None:
        raise ValueError(
            "steps: 'auto' with mini-batches judges on held-out data: expected valid=..., got "
            "none. Give it, or a number of steps."
        )
    return steps


def held_out_losses(run: Run, args: tuple, params: dict[str, Tensor]) -> Tensor:
    """The loss of groups of held-out rows, (G,), on draws that are the same at every call."""
    pair, estimator, rows = run.pair_, run.estimator, rows_of(args) or 1
    parts = even_parts(rows, -(-rows // GROUPS))
    out = []
    with torch.no_grad(), no_validation(), at_step(estimator, LAST.to(run.device)):
        for i, part in enumerate(parts):
            size = part.stop - part.start
            known = {"nesting": pair.nesting, "vectorized": pair.way or True}
            buffers = {k: b.clone() for k, b in run.buffers.items()}
            with forked(run.seed + 1 + i), pair.bind(params, buffers):
                weights = estimator.draw(
                    pair.model, pair.guide, *take_rows(args, part, rows), **known,
                    **dict.fromkeys(run.kwargs, size),
                )  # fmt: skip
                value = -estimator.bound(weights).double() / (weights.scale or 1.0)
            out.append(value / (1.0 if run.divide == 1.0 else size))
    return torch.stack(out).cpu()


def begun(
    model: Callable, guide: Callable, example: tuple, size: int | None, elbo: Estimator,
    optimiser: Any, check: bool, options: TrainingOptions, **more: Any,
) -> tuple[Run, Update]:  # fmt: skip
    """A run before its first step, and its update, of which `more` says more.

    Raises:
        ValueError: the pair has errors, and no run goes on.
    """
    where = device_of(options["device"])
    if check and options["resume"] is None:
        pair = without_run(model), without_run(guide)
        refuse_errors(*pair, example, size=size, elbo=elbo, device=where)
    run = new_run(model, guide, example, size, elbo, where, options["seed"])
    run.settings = lasting(options) | {"elbo": elbo, "optimiser": optimiser}
    update = Update(
        run.pair_, elbo, optimiser if isinstance(optimiser, Optimiser) else Adam(options["lr"]),
        run.divide, options["clip"], kwargs=run.kwargs,
        schedule=schedule_of(options["schedule"], options["steps"], where),
        skip=options["not_finite"] == "skip" and "vary" not in more, **more,
    )  # fmt: skip
    run.variables = Variables.start(run.pair_, update.optimiser)
    return run, update


def chosen_optimiser(optimiser: Any, options: LoopOptions) -> Any:
    """The optimiser of a run, whose learning rate the options then have.

    That of a run that goes on takes a learning rate that is given anew; another has its own.
    """
    resume = options["resume"]
    chosen = optimiser_of(optimiser, options["lr"])
    if isinstance(chosen, Optimiser):
        if resume is not None and optimiser is resume.settings.get("optimiser"):
            chosen = replace(chosen, lr=options["lr"])
        options["lr"] = chosen.lr
    return chosen


def held_out_values(
    run: Run,
    variables: Variables,
    args: tuple,
    batches: Batches,
    vary: tuple[int | None, ...] | None = None,
    ranks: Ranks | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The estimator's bound on held-out rows, and beside it the ELBO and its divergences.

    Buffers stay as they are. An annealed estimator is taken at the end of its schedule, so that
    values of different steps compare.

    Args:
        run: the fit; what its plates are told.
        variables: at which values: of one fit, or of R with `vary`.
        args: held-out arguments.
        batches: most rows at once are those of a batch; parts are of one size, but for one row.
        vary: which arguments have a leading axis of fits; None is one single fit.
        ranks: the processes that share the rows.

    Returns:
        The score, () or (R,), and columns for the history: `valid_elbo`, `valid_bound` where it is
        another, and `kl_SITE`; means over fits, of which those with NaN are left out.
    """
    pair, estimator = run.pair_, run.estimator
    fitwise = vary is not None
    rows = rows_of(args) or 1
    kwargs = dict.fromkeys(run.kwargs, rows)

    def values(params: dict, buffers: dict, part: tuple) -> dict[str, Tensor]:
        with pair.bind(params, buffers):
            known = {"nesting": pair.nesting, "vectorized": pair.way or True, **kwargs}
            weights = estimator.draw(pair.model, pair.guide, *part, **known)
        found = {"bound": estimator.bound(weights), "elbo": weights.elbo().mean()}
        found |= {f"kl_{n}": torch.as_tensor(kl) for n, kl in kl_by_site(weights).items()}
        return {k: v / (weights.scale or 1.0) for k, v in found.items()}

    if fitwise:
        values = torch.vmap(values, in_dims=(0, 0, vary), randomness="different")
    whole = run.divide == 1.0 or (fitwise and any(v == 0 for v in vary or ()))
    most = batches.batch_size or rows
    spread = ranks is not None and not whole and rows >= ranks.size
    if ranks is not None and spread:
        most = min(most, rows // ranks.size)
    parts = [slice(0, rows)] if whole else even_parts(rows, most)
    if ranks is not None and spread:
        parts = parts[ranks.rank :: ranks.size]
    annealed = LAST.to(variables.count.device)  # a schedule's value at its end
    sums: dict[str, Tensor] = {}
    anew = DrawnAnew() if fitwise else nullcontext()
    with torch.no_grad(), no_validation(), at_step(estimator, annealed), anew:
        for part in parts:
            buffers = {k: b.clone() for k, b in variables.buffers.items()}
            batch = args if whole else take_rows(args, part, rows)
            for name, value in values(variables.params, buffers, batch).items():
                sums[name] = sums.get(name, 0.0) + value.double()
    if ranks is not None:
        values_ = ranks.sums(list(sums.values()), 1.0 if spread else 1 / ranks.size)
        sums = dict(zip(sums, values_))
    per = 1.0 if run.divide == 1.0 else float(rows)
    means = {k: float((v / per).nanmean()) for k, v in sums.items()}
    bound, elbo = means.pop("bound"), means.pop("elbo")
    row = {"valid_elbo": elbo, **({"valid_bound": bound} if bound != elbo else {}), **means}
    return sums["bound"] / per, row
