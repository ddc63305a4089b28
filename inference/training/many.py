"""Many fits of one pair in one batched step: restarts, or one fit per data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from ..elbo import Estimator, Trace, estimator_of
from ..optim import Optimiser
from ..pairs.options import device_of
from .batches import Batches, arguments
from .fitting import ADVICE, begun, chosen_optimiser, held_out_values
from .loop import Loop
from .options import TrainingOptions, trainer
from .run import Run
from .state import History, Training
from .update import Variables


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
        valid: held-out data, stacked like `data`; each fit keeps the parameters of its own best
            value, and `patience` counts validations in which no fit got better.
        options: those of all trainers, `inference.training.options.TrainingOptions`.

    Returns:
        `Runs`: R runs. Ctrl-C ends the fits early, between two steps.

    Raises:
        ValueError: R < 1, stacked arguments of different lengths, or a pair that `vmap` cannot
            batch (data-dependent Python).
    """
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
    runs.go_on_from(options["resume"], options["steps"])
    held = (
        None
        if held_out is None
        else partial(held_out_values, run, runs.variables, held_out, batches, vary)
    )
    Loop(runs, [update], batches, options, held, unit=run.unit, advice=ADVICE).go()
    run.variables.count.fill_(runs.steps)
    return runs
