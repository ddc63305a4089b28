"""Many fits of one pair in one batched step: restarts, or one fit per data set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..elbo import Estimator, Trace
from ..graph import TraceFailure
from ..optim import Adam, Optimiser
from ..randomness import forked
from .fitting import Batches, arguments, halves, pick_device, schedule_of
from .progress import Progress
from .run import History, Run
from .start import start
from .steps import CompiledStep, EagerStep
from .update import Update, Variables


@dataclass(repr=False)
class Many:
    """R fits of one pair.

    Attributes:
        params: name -> (R, ...), unconstrained.
        losses: (logged, R), the mean loss of each interval.
        seconds: of the loop, compiling included.
        compiled: whether the compiled step was used; `eager_because` says why not.

    `many[i]` is a `Run` of its own, and iterating gives all of them.
    """

    first: Run
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    data: tuple
    vary: tuple[int | None, ...]
    losses: np.ndarray
    steps: int
    seconds: float = 0.0
    compile_seconds: float = 0.0
    compiled: bool = False
    eager_because: str | None = None
    history_steps: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))

    @property
    def elbo(self) -> np.ndarray:
        """Minus the recent mean loss of every fit, (R,), in the run's unit."""
        recent = max(1, len(self.losses) // 10)
        return -self.losses[-recent:].mean(0)

    def __repr__(self) -> str:
        kind = "compiled" if self.compiled else "eager"
        low, middle, high = np.quantile(self.elbo, (0.0, 0.5, 1.0))
        return (
            f"Many({len(self):,} fits, {self.steps:,} steps, {kind}, {self.seconds:.1f} s, "
            f"{self.first.estimator!r}: {low:.3f} to {high:.3f}, median {middle:.3f} "
            f"{self.first.unit})"
        )

    def arguments(self, i: int) -> tuple:
        """The data of fit i."""
        return tuple(a[i] if v == 0 else a for a, v in zip(self.data, self.vary))

    def __getitem__(self, i: int) -> Run:
        if not -len(self) <= i < len(self):
            raise IndexError(f"fit {i}: there are {len(self)}.")
        v = self.first.variables
        history = History(
            [{"step": s, "loss": float(row[i])} for s, row in zip(self.history_steps, self.losses)]
        )
        return dataclasses.replace(
            self.first,
            variables=Variables(
                {k: p[i].clone() for k, p in self.params.items()},
                {k: b[i].clone() for k, b in self.buffers.items()},
                v.optim,
                v.count,
            ),
            history=history,
            losses=[float(x) for x in self.losses[:, i]],
            example=self.arguments(i),
        )

    def __iter__(self) -> Iterator[Run]:
        return (self[i] for i in range(len(self)))


def fit_many(
    model: Callable | nn.Module,
    guide: Any = None,
    data: Any = None,
    *,
    fits: int | None = None,
    stacked: Sequence[int] = (),
    elbo: Estimator | None = None,
    steps: int = 2_000,
    lr: float = 1e-2,
    batch_size: int | None = None,
    optimiser: Optimiser | None = None,
    schedule: str | Callable[[Tensor], Tensor] = "constant",
    clip: float | None = None,
    jitter: float = 0.1,
    compile: bool | str = "auto",
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = False,
) -> Many:
    """Fit one pair R times at once, under `torch.vmap`: every update is one batched step.

    Args:
        model, guide, data: as for `fit`.
        fits: R; may be left out when arguments are stacked.
        stacked: which of the arguments have a leading axis of R data sets; the others, and all
            of them when this is empty, are shared (restarts).
        jitter: standard deviation of the noise added to the unconstrained starting values, so
            that restarts start apart.
        elbo, steps, lr, batch_size, optimiser, schedule, clip, compile, device, seed, progress:
            as for `fit`. Mini-batches are shared by restarts, and refused for stacked data.

    Returns:
        A `Many` of R runs.

    Raises:
        ValueError: R < 1, stacked arguments of different lengths, or a pair that `vmap` cannot
            batch (data-dependent Python).
    """
    if data is None:
        model, guide, data = halves(model, guide)
    elbo = Trace() if elbo is None else elbo
    where = pick_device(device)
    args, _ = arguments(model, data, None)
    args = tuple(a.to(where) if torch.is_tensor(a) else a for a in args)
    vary: tuple[int | None, ...] = tuple(0 if i in stacked else None for i in range(len(args)))
    lengths = {len(a) for a, v in zip(args, vary) if v == 0} | ({fits} if fits else set())
    if len(lengths) != 1 or min(lengths) < 1:
        raise ValueError(
            f"fits: expected one number of fits >= 1, from fits=R or the stacked arguments; got "
            f"{sorted(lengths)}."
        )
    r = lengths.pop()
    if stacked and batch_size is not None:
        raise ValueError("batch_size: stacked data sets are fitted whole; leave it None.")
    shared_args = tuple(a for a, v in zip(args, vary) if v is None)
    batches = Batches(args if not stacked else shared_args, batch_size, seed)
    example = tuple(a[0] if v == 0 else a for a, v in zip(args, vary))
    if not stacked:
        example = batches.example()
    with forked(seed):
        size = batches.size if batch_size is not None else None
        run = start(model, guide, example, size, elbo, where, seed)
        update = Update(
            run.pair_, elbo, optimiser or Adam(lr), run.divide, clip,
            kwargs=run.kwargs, vary=vary, schedule=schedule_of(schedule, steps),
        )  # fmt: skip
        run.update = update
        begin = run.pair_.params
        params = {
            k: p.expand(r, *p.shape)
            + jitter * torch.randn(r, *p.shape, device=where, dtype=p.dtype)
            for k, p in begin.items()
        }
        variables = Variables(
            params,
            {k: b.expand(r, *b.shape).clone() for k, b in run.pair_.buffers.items()},
            update.optimiser.init(list(params.values())),
            torch.zeros((), device=where, dtype=torch.int64),
        )
        run.variables = Variables.start(run.pair_, update.optimiser)
        many = Many(run, params, variables.buffers, args, vary, np.empty((0, r)), steps)
        rate = torch.tensor(float(update.optimiser.lr), device=where)
        step: EagerStep | CompiledStep = EagerStep(update, variables, rate)
        clock = time.perf_counter()
        means: list[Tensor] = []
        interval = max(1, steps // 100)
        total: Tensor | float = 0.0
        since = 0
        with Progress(steps, run.unit, progress) as bar:
            for done in range(steps):
                if compile is True and done == 0:
                    step = _compiled(many, update, variables, rate, batches, args, stacked)
                elif compile == "auto" and done == 3:
                    ahead = (time.perf_counter() - clock) / 3 * (steps - 3)
                    if ahead > 30.0:
                        step = _compiled(many, update, variables, rate, batches, args, stacked)
                batch = args if stacked else batches.next()[0]
                total = total + step(batch)
                since += 1
                if since == interval or done == steps - 1:
                    means.append(total / since)
                    many.history_steps.append(done + 1)
                    bar.update(done + 1, float(means[-1].mean()))
                    total, since = 0.0, 0
    many.losses = torch.stack(means).double().cpu().numpy()
    many.seconds = time.perf_counter() - clock
    many.compiled = bool(step.compiled)
    many.compile_seconds = getattr(step, "seconds", 0.0)
    run.variables.count.fill_(steps)
    return many


def _compiled(
    many: Many, update: Update, variables: Variables, rate: Tensor, batches: Batches, args: tuple,
    stacked: Sequence[int],
) -> EagerStep | CompiledStep:  # fmt: skip
    step = CompiledStep(update, variables, rate)
    try:
        order = batches.state()
        batch = args if stacked else batches.next()[0]
        batches.restore(order)
        kept = variables.clone()
        with forked():
            step(batch)
        with torch.no_grad():
            variables.assign(kept)
    except TraceFailure as failure:
        many.eager_because = str(failure)
        return EagerStep(update, variables, rate)
    return step
