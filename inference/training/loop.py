"""The loop around the step: which step, when to look at held-out data, when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..elbo import Estimator
from ..graph import NotReplayable, TraceFailure
from ..randomness import forked
from ..weights import no_validation
from .batches import Batches
from .progress import Progress
from .run import Run
from .steps import UNROLL, CompiledStep, EagerStep, ForeignStep
from .update import Update, at_step

WORTH_COMPILING = 10.0  # seconds of eager steps ahead; see `python -m benchmarks`, "pays from"
LOOP = 64  # updates in one call, at most, where the step is replayed
TIMED = 5  # eager steps that are timed to decide
ROOM = 2**20  # numbers in the batches of one call
SMALL, WORTH_UNROLLING = 2_000, 50_000  # parameters, steps: several in one graph if it cannot loop


@dataclass
class Loop:
    """Steps until the last one, a stop or an interrupt; what happened is written into the run."""

    run: Run
    update: Update
    batches: Batches
    steps: int
    compile: bool | str
    repeats: int | None
    bar: Progress
    callbacks: Sequence[Callable[[Run], Any]]
    foreign: Any = None
    held_out: tuple | None = None
    valid_every: int = 0
    patience: int | None = None
    lr: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lr = torch.tensor(1e-3, device=self.run.variables.count.device)
        if self.run.batches is not None:
            self.batches.restore(self.run.batches)

    def validation(self, held_out: tuple | None, every: int | None, patience: int | None) -> None:
        """Look at held-out data every so many steps; stop after `patience` looks without gain."""
        self.held_out = held_out
        self.valid_every = max(1, every or max(100, self.steps // 20)) if held_out else 0
        self.patience = patience

    def go(self) -> None:
        """Make the steps."""
        run = self.run
        first = done = int(run.variables.count)
        log_every = max(1, min(100, self.steps // 50))
        begin, spent = time.perf_counter(), run.seconds
        pending: list[Tensor] = []
        at_log, bad = done, 0
        step: EagerStep | CompiledStep | ForeignStep
        eager: EagerStep | ForeignStep = EagerStep(self.update, run.variables, self.lr)
        if self.foreign is not None:
            eager = ForeignStep(self.update, run.variables, self.foreign)
        step, repeats = eager, 1
        chosen = self.foreign is not None
        warm = time.perf_counter()
        with self.bar:
            try:
                while done < self.steps:
                    if done == first + 1:  # the first step pays for what is loaded and allocated
                        warm = time.perf_counter()
                    if not chosen and (self.compile is True or done == first + 1 + TIMED):
                        each = (time.perf_counter() - warm) / TIMED
                        step, repeats = self._choose(each, self.steps - done)
                        chosen = True
                    use, n = (step, repeats) if done + repeats <= self.steps else (eager, 1)
                    batch, shared = self.batches.next(n)
                    losses = use(batch, shared)
                    pending.append(losses)
                    done += n
                    if done - at_log >= log_every or done >= self.steps:
                        loss = float(torch.cat([p.reshape(-1) for p in pending]).mean())
                        run.losses.extend(torch.cat([p.reshape(-1) for p in pending]).tolist())
                        pending.clear()
                        run.seconds = spent + time.perf_counter() - begin
                        row: dict[str, float] = {"step": done, "loss": loss, "seconds": run.seconds}
                        if not math.isfinite(loss):
                            raise ValueError(_lost(run, done))
                        crossed = self.valid_every and (
                            done // self.valid_every > at_log // self.valid_every
                            or done >= self.steps
                        )
                        if crossed:
                            row |= self._validate()
                            bad = 0 if run.best_step == done else bad + 1
                        run.history.add(row)
                        at_log = done
                        self.bar.update(done, loss, row.get("valid_elbo"))
                        asked = [c(run) for c in self.callbacks]  # every one is called
                        if any(asked):
                            run.stopped = "a callback asked for it"
                            break
                        if self.patience is not None and crossed and bad >= self.patience:
                            run.stopped = f"no better validation in {bad} rounds"
                            break
            except KeyboardInterrupt:
                run.stopped = "interrupted"
                for p in pending:
                    run.losses.extend(p.reshape(-1).tolist())
        run.batches = self.batches.state()
        run.seconds = spent + time.perf_counter() - begin
        run.compiled = bool(step.compiled)
        run.compile_seconds = getattr(step, "seconds", 0.0)

    def _choose(self, each: float, left: int) -> tuple[EagerStep | CompiledStep, int]:
        """The step to use, given an eager step's seconds and how many are left."""
        run = self.run
        eager = EagerStep(self.update, run.variables, self.lr)
        if self.compile is False or (self.compile == "auto" and each * left < WORTH_COMPILING):
            return eager, 1
        self.bar.note("compiling the step")
        try:
            step = self._compiled(left)
        except TraceFailure as failure:
            run.eager_because = str(failure)
            self.bar.note(f"eager steps: {failure}")
            return eager, 1
        self.bar.note(f"compiled in {step.seconds:.0f} s ({step.nodes} operations)")
        return step, step.repeats

    def _compiled(self, left: int) -> CompiledStep:
        """The compiled step of as many updates as suit the pair, tried and proved."""
        variables, choices = self.run.variables, [self.repeats or 1]
        if self.repeats is None:
            loop = min(LOOP, max(1, left // 50))
            if not self.batches.whole:
                size = sum(b.numel() for b in self.batches.example() if torch.is_tensor(b))
                loop = max(1, min(loop, ROOM // size))
            numbers = sum(p.numel() for p in variables.params.values())
            unrolled = UNROLL if numbers < SMALL and left > WORTH_UNROLLING else 1
            choices = [loop, unrolled] if loop > 1 else [1]
        for repeats in choices:
            step = CompiledStep(self.update, variables, self.lr, repeats)
            order = self.batches.state()
            batch, shared = self.batches.next(repeats)
            self.batches.restore(order)
            try:
                with forked():
                    kept = variables.clone()
                    step(batch, shared)
                    with torch.no_grad():
                        variables.assign(kept)
                break
            except NotReplayable:
                continue
        return step

    def _validate(self) -> dict[str, float]:
        """The held-out value and the un-tempered ELBO, in the unit of the history."""
        run, update = self.run, self.update
        assert self.held_out is not None
        values = held_out_values(run, update.estimator, self.held_out, self.batches.batch_size)
        score = values["bound"]
        if run.best is None or score > run.best:
            run.best, run.best_step = score, int(run.variables.count)
            run.best_params = {k: v.clone() for k, v in run.variables.params.items()}
        return {
            "valid_elbo": values["elbo"],
            **({"valid_bound": score} if score != values["elbo"] else {}),
            **{k: v for k, v in values.items() if k.startswith("kl_")},
        }


def held_out_values(
    run: Run, estimator: Estimator, args: tuple, batch_size: int | None
) -> dict[str, float]:
    """The estimator's bound, the ELBO, and the divergence per latent, on held-out rows.

    All in the unit of the run's history; nothing is changed, not even the random state. An annealed
    estimator is taken at the end of its schedule, so that values of different steps compare.
    """
    from ..elbo import kl_by_site

    rows = len(args[0])
    chunk = max(batch_size or rows, 1)
    sums: dict[str, float] = {}
    pair, v = run.pair_, run.variables
    kwargs = dict.fromkeys(run.kwargs, rows)
    annealed = torch.tensor(1e9, device=v.count.device)  # a schedule's value at its end
    with (
        forked(run.seed + 1),
        torch.no_grad(),
        no_validation(),
        at_step(estimator, annealed),
        pair.bind(v.params, {k: b.clone() for k, b in v.buffers.items()}),
    ):
        if run.divide == 1.0:
            chunk = rows
        for i in range(0, rows, chunk):
            part = tuple(
                a[i : i + chunk] if torch.is_tensor(a) and a.dim() and len(a) == rows else a
                for a in args
            )
            weights = estimator.draw(pair.model, pair.guide, *part, nesting=pair.nesting, **kwargs)
            own = weights.scale or 1.0
            values = {"bound": estimator.bound(weights), "elbo": weights.elbo().mean()}
            values |= {f"kl_{n}": kl for n, kl in kl_by_site(weights).items()}
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value) / own
    per = rows if run.divide != 1.0 else 1
    return {k: s / per for k, s in sums.items()}


def _lost(run: Run, step: int) -> str:
    return (
        f"the loss became NaN or infinite before step {step}. Lower lr, set clip=..., or look at "
        "run.history up to there; inference.check(model, guide, ...) names a site that overflows."
    )
