"""Many fits of one pair in one batched step: restarts, or one fit per data set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from ..elbo import Estimator, Trace, estimator_of
from ..executors import spread
from ..optim import Optimiser
from ..pairs.options import device_of
from .batches import Batches, arguments
from .fitting import ADVICE, begun, chosen_optimiser, held_out_values
from .loop import Loop
from .options import TrainingOptions, trainer
from .run import Run
from .saved import Saved
from .state import History, Training
from .update import Variables

BLOCKS = 8  # that the workers of an executor share, where nothing else is said


@dataclass(kw_only=True, repr=False)
class Runs(Training):
    """R fits of one pair, made together; `runs[i]` is a `Run` of its own.

    `variables` have a leading axis of R; a row of the history holds the median fit's loss.

    Attributes:
        first: the run that all share: pair, estimator, unit.
        data: the arguments; `vary` says which have a leading axis of R.
        losses: (R,) for each log interval, the mean losses in it.
        best: (R,), the best held-out values.
    """

    first: Run
    data: tuple
    vary: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(next(iter(self.variables.params.values())))

    @property
    def params(self) -> dict[str, Tensor]:
        """The unconstrained parameters that are kept: name -> (R, ...)."""
        return self.final

    @property
    def elbo(self) -> np.ndarray:
        """The bound of every fit, (R,): the best held-out value, else minus the recent loss."""
        if self.best is not None:
            return self.best.cpu().numpy()
        recent = max(1, len(self.losses) // 10)
        return -np.mean(self.losses[-recent:], 0)

    def log(self, values: Tensor, columns: Sequence[str], shown: int) -> dict[str, float]:
        """Mean losses of an interval (n, R): one row of `losses`, and the median over fits."""
        means = values.double().mean(0)
        self.losses.append(means.cpu().numpy())
        return {"loss": float(means.nanmedian())}

    def __repr__(self) -> str:
        kind = "compiled" if self.compiled else "eager"
        low, middle, high = np.quantile(self.elbo, (0.0, 0.5, 1.0))
        return (
            f"Runs({len(self):,} fits, {self.steps:,} steps, {kind}, {self.seconds:.1f} s, "
            f"{self.first.estimator!r}: {low:.3f} to {high:.3f}, median {middle:.3f} "
            f"{self.first.unit})"
        )

    def join(self, blocks: Sequence[Training]) -> None:
        """Take over the fits of some blocks, one after another."""
        fits = [len(next(iter(b.variables.params.values()))) for b in blocks]
        flat = zip(self.variables.flat(), *(b.variables.flat() for b in blocks))
        for mine, *theirs in flat:  # counts have no axis of fits
            joined = torch.cat(theirs) if mine.dim() else torch.stack(theirs).max()
            mine.copy_(joined)
        most = max(len(b.losses) for b in blocks)  # patience may have ended some before
        self.losses = [
            np.concatenate([b.losses[min(i, len(b.losses) - 1)] for b in blocks])
            for i in range(most)
        ]
        longest = max(blocks, key=lambda b: len(b.history))
        self.history = History([dict(row) for row in longest.history.rows])
        for i, (row, losses) in enumerate(zip(self.history.rows, self.losses)):
            row["loss"] = float(np.nanmedian(losses))
            rows = [b.history.rows[min(i, len(b.history) - 1)] for b in blocks]
            for name in [n for n in row if n.startswith(("valid_", "kl_"))]:
                row[name] = float(np.average([r[name] for r in rows], weights=fits))
        if all(b.best is not None for b in blocks):
            self.best = torch.cat([b.best for b in blocks])
            self.best_params = {
                k: torch.cat([b.final[k] for b in blocks]) for k in self.variables.params
            }
            self.best_step = max(b.best_step or 0 for b in blocks)
        self.stopped = next((b.stopped for b in blocks if b.stopped), None)
        self.compiled = all(b.compiled for b in blocks)
        self.compile_seconds = sum(b.compile_seconds for b in blocks)
        self.eager_because = next((b.eager_because for b in blocks if b.eager_because), None)

    def arguments(self, i: int) -> tuple:
        """The data of fit i."""
        return tuple(a[i] if v == 0 else a for a, v in zip(self.data, self.vary))

    def __getitem__(self, i: int) -> Run:
        if not -len(self) <= i < len(self):
            raise IndexError(f"fit {i}: there are {len(self)}.")
        v = self.variables
        losses = [float(row[i]) for row in self.losses]
        kept = self.best_params and {k: p[i] for k, p in self.best_params.items()}
        alike = ("best_step", "stopped", "seconds", "compiled", "eager_because")
        return dataclasses.replace(
            self.first,
            variables=v.like([t[i].clone() if t.dim() else t for t in v.flat()]),  # but counts
            history=History(
                [{"step": row["step"], "loss": x} for row, x in zip(self.history.rows, losses)]
            ),
            losses=losses,
            example=self.arguments(i),
            best_params=kept,
            best=None if self.best is None else float(self.best[i]),
            **{name: getattr(self, name) for name in alike},
        )

    def __iter__(self) -> Iterator[Run]:
        return (self[i] for i in range(len(self)))


def _blocks(runs: Runs, block: int, held_out: tuple | None, options: dict[str, Any]) -> list[tuple]:
    """Data and options of `fit_many` for each block of fits.

    Raises:
        ValueError: the fits are to be kept on disk, or to go on.
    """
    for name in ("folder", "resume"):
        if options[name] is not None:
            raise ValueError(
                f"{name}: fits that are made in blocks are not written as they go. Use "
                f"block=None without an executor, or leave {name}= out."
            )
    seeds = torch.Generator().manual_seed(runs.seed)
    found: list[tuple[Any, dict[str, Any]]] = []
    for start in range(0, len(runs), block):
        rows = slice(start, min(start + block, len(runs)))
        data, valid = (
            args and tuple(a[rows].clone() if v == 0 else a for a, v in zip(args, runs.vary))
            for args in (runs.data, held_out)
        )
        seed = int(torch.randint(2**62, (), generator=seeds))
        fits = None if options["stacked"] else rows.stop - rows.start
        own = {"valid": valid, "fits": fits, "seed": seed, "progress": False}
        found.append((data, options | own))
    return found


def _made(model: Callable, guide: Any, data: tuple, options: dict[str, Any]) -> Saved:
    """The state of a block of fits, without its pair, to be sent."""
    return Saved.of_run(fit_many(model, guide, data, **options))


@trainer(steps=2_000, lr=1e-2, progress=False)
def fit_many(
    model: Callable | nn.Module,
    guide: Any = None,
    data: Any = None,
    *,
    fits: int | None = None,
    stacked: Sequence[int] = (),
    elbo: Estimator | None = None,
    optimiser: Optimiser | None = None,
    jitter: float = 0.1,
    check: bool = True,
    block: int | None = None,
    executor: Executor | None = None,
    **options: Unpack[TrainingOptions],
) -> Runs:
    """Fit one pair R times at once, under `torch.vmap`: every update is one batched step.

    Args:
        model, guide, data: as for `fit`.
        fits: R; may be left out when arguments are stacked.
        stacked: which of the arguments have a leading axis of R data sets; the others, and all
            of them when this is empty, are shared (restarts).
        elbo, check: as for `fit`.
        optimiser: of `inference.optim` only, by default Adam.
        jitter: standard deviation of the noise added to the unconstrained starting values, so
            that restarts start apart.
        batch_size: rows per step, shared by restarts, and refused for stacked data; None takes all.
        block: most fits that are made at once; blocks have seeds of their own. None takes all of
            them, or an eighth with an executor.
        executor: any `concurrent.futures.Executor`, whose workers make the blocks. The numbers are
            those of the same blocks made here.
        valid: held-out data, stacked like `data`; each fit keeps the parameters of its own best
            value, and `patience` counts validations in which no fit got better.
        options: those of all trainers, `inference.training.options.TrainingOptions`.

    Returns:
        `Runs`: R runs. Ctrl-C ends the fits early, between two steps.

    Raises:
        ValueError: R < 1, stacked arguments of different lengths, a pair that `vmap` cannot
            batch (data-dependent Python), or blocks that are to be kept on disk or to go on.
        TypeError: the pair or an option cannot be sent to the executor's workers.
    """
    begin = time.perf_counter()
    where = device_of(options["device"])
    model, guide, data, args, held_out = arguments(model, guide, data, options["valid"], where)
    estimator = estimator_of(elbo, Trace)
    optimiser = chosen_optimiser(optimiser, options)
    if not isinstance(optimiser, Optimiser):
        raise TypeError("optimiser: many fits at once need one of inference.optim.")
    vary: tuple[int | None, ...] = tuple(0 if i in stacked else None for i in range(len(args)))
    lengths = {len(a) for a, v in zip(args, vary) if v == 0} | ({fits} if fits else set())
    if len(lengths) != 1 or min(lengths) < 1:
        raise ValueError(
            f"fits: expected one number of fits >= 1, from fits=R or the stacked arguments; got "
            f"{sorted(lengths)}."
        )
    r = lengths.pop()
    if stacked and options["batch_size"] is not None:
        raise ValueError("batch_size: every fit takes all of its own data when data is stacked.")
    batches = Batches(args, options["batch_size"], options["seed"], held_out)
    example = tuple(a[0] if v == 0 else a for a, v in zip(batches.example(), vary))
    size = None if options["batch_size"] is None else batches.size
    run, update = begun(
        model, guide, example, size, estimator, optimiser, check, options, vary=vary
    )
    run.settings |= {"jitter": jitter, "fits": r, "stacked": stacked}
    alone = run.variables
    params, buffers = (
        {k: t.expand(r, *t.shape).clone() for k, t in tensors.items()}
        for tensors in (alone.params, alone.buffers)
    )
    for p in params.values():
        p.add_(jitter * torch.randn_like(p))
    state = optimiser.init(list(params.values()))
    runs = Runs(
        first=run, variables=Variables(params, buffers, state, alone.count.clone()), data=args,
        vary=vary, device=where, seed=run.seed, settings=run.settings,
    )  # fmt: skip
    if block is None and executor is not None:
        block = -(-r // BLOCKS)
    if block is not None and block < r:
        own = dict(elbo=elbo, optimiser=optimiser, jitter=jitter, check=False, stacked=stacked)
        blocks = _blocks(runs, block, held_out, {**own, **options})
        runs.join(spread(executor, _made, [(model, guide, *b) for b in blocks], "fit_many"))
        runs.seconds = time.perf_counter() - begin
        return runs
    runs.go_on_from(options["resume"], options["steps"])
    held = (
        None
        if held_out is None
        else partial(held_out_values, run, runs.variables, held_out, batches, vary)
    )
    Loop(runs, [update], batches, options, held, unit=run.unit, advice=ADVICE).go()
    run.variables.count.fill_(runs.steps)
    return runs
