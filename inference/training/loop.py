"""The loop that all trainers share: steps, and everything that happens between two of them."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..graph import Budget, OutOfBudget, TraceFailure
from ..randomness import forked
from .batches import Batches
from .options import LoopOptions, complete
from .progress import Progress
from .state import Training, random_state, set_random_state
from .steps import CompiledStep, EagerStep, ForeignStep, Round, Step

WORTH_COMPILING = 10.0  # seconds of eager steps ahead; see `python -m benchmarks`, "pays from"
LOOP = 64  # updates in one call, at most, where the step is replayed
TIMED = 5  # eager steps that are timed to decide
ROOM = 2**20  # numbers in the batches of one call


@dataclass
class Loop:
    """Make steps until the last one, a stop or an interrupt, and keep the record in `run`.

    Random numbers follow from torch's generators, which the caller has forked; those of a run that
    goes on are put back first. Ctrl-C ends the loop between two steps; a second one raises.

    Args:
        run: what is trained: `variables` change in place, and `history` grows.
        moves: the updates of one step, one batch each; one update, but for a critic's extra moves.
        batches: where the batches come from.
        options: those of every trainer; `progress` may be a bar.
        validate: () -> (score, columns): higher is better; the best parameters are kept.
        foreign: a step with an optimiser of torch or Pyro, in place of our own.
        unit, advice: of the loss, and what to do when it is no longer finite.

    Raises:
        ValueError: a loss is no longer finite.
    """

    run: Training
    moves: Sequence[Any]
    batches: Batches
    options: LoopOptions
    validate: Callable[[], tuple[Tensor, dict[str, float]]] | None = None
    foreign: ForeignStep | None = None
    unit: str = "nats"
    advice: str = "Lower lr, or set clip=..."
    steps: int = field(init=False)
    valid_every: int | None = field(init=False)
    rate: Tensor = field(init=False)
    bar: Progress = field(init=False)

    def __post_init__(self) -> None:
        options = self.options = complete(self.options)
        self.steps, self.valid_every = options["steps"], options["valid_every"]
        self.rate = torch.tensor(float(options["lr"]), device=self.run.variables.count.device)
        bar = options["progress"]
        self.bar = bar if isinstance(bar, Progress) else Progress(self.steps, self.unit, bool(bar))
        if self.validate is None:
            if options["patience"] is not None:
                raise ValueError("patience: there is no validation to wait for; give valid=...")
            self.valid_every = None
        elif self.valid_every is None:
            self.valid_every = max(100, self.steps // 20)

    def go(self) -> None:
        """Make the steps."""
        run, steps, options = self.run, self.steps, self.options
        if run.batches is not None:
            self.batches.restore(run.batches)
        if run.random_state is not None:
            set_random_state(run.random_state, run.device)
        first = done = logged = run.steps
        due, every = self._next_look(done), max(1, min(100, steps // 50))
        ahead = max(1, len(self.moves))
        eager = step = self._eager()
        repeats = 1
        chosen = self.foreign is not None or options["compile"] is False
        begin = warm = time.perf_counter()
        spent, compiled_before, run.stopped = run.seconds, run.compile_seconds, None
        pending: list[tuple[int, Tensor]] = []

        def pause() -> None:
            """Write down what a resume needs."""
            run.batches = self.batches.state()
            run.random_state = random_state(run.device)
            if self.foreign is not None:
                run.optimiser_state = self.foreign.state()
            run.seconds = spent + time.perf_counter() - begin
            run.compiled = step.compiled
            run.compile_seconds = compiled_before + step.seconds

        with self.bar, interrupts() as pressed:
            try:
                while done < steps and not pressed:
                    if done == first + 1:  # the first step pays for what is loaded and allocated
                        warm = time.perf_counter()
                    if not chosen and (options["compile"] is True or done == first + 1 + TIMED):
                        each = (time.perf_counter() - warm) / TIMED
                        step, repeats = self._choose(each, eager)
                        chosen = True
                    if (n := min(repeats, due - done)) != step.repeats:
                        step.repeats = n
                    batch, shared = self.batches.next(n * ahead)
                    pending.append((n, step(batch, shared)))
                    done += n
                    if done < due and done // every == logged // every:
                        continue
                    row = self._row(done, pending, spent + time.perf_counter() - begin)
                    look = done == due and self.valid_every is not None
                    if look:
                        row |= self._validate(done)
                    if done == due:
                        due = self._next_look(done)
                    run.history.add(row)
                    logged = done
                    pause()
                    self.bar.update(done, row[self._shown], row.get("valid_elbo"))
                    if options["callbacks"]:
                        with forked():
                            asked = [c(run) for c in options["callbacks"]]  # every one is called
                        step.refresh()
                        if any(asked):
                            run.stopped = "a callback asked for it"
                            break
                    if look and run.since_best >= (options["patience"] or math.inf):
                        run.stopped = f"no better validation in {run.since_best} rounds"
                        break
            except KeyboardInterrupt:
                if pressed:  # the second: whoever presses twice wants out
                    raise
                pressed.append(1)
        if pressed and run.stopped is None:
            run.stopped = "interrupted" if done < steps else None
        if pending:
            run.history.add(self._row(done, pending, spent + time.perf_counter() - begin))
        pause()

    def _next_look(self, done: int) -> int:
        """The next step after which there is something to do: validation, or the end."""
        if self.valid_every is None:
            return self.steps
        return min(self.steps, (done // self.valid_every + 1) * self.valid_every)

    @property
    def _shown(self) -> str:
        return self.moves[-1].columns[self.moves[-1].shown]

    def _row(
        self, done: int, pending: list[tuple[int, Tensor]], seconds: float
    ) -> dict[str, float]:
        """A row of the history: means since the last one; `pending` is emptied."""
        values = torch.cat([v.reshape(n, -1) for n, v in pending])  # (n, columns), or (n, fits)
        pending.clear()
        means = self.run.log(values, self.moves[-1].columns, self.moves[-1].shown)
        lost = [c for c, v in means.items() if not math.isfinite(v)]
        if lost:
            raise ValueError(
                f"{lost[0].replace('_', ' ')}: no longer finite before step {done}. {self.advice}"
            )
        return {"step": float(done), **means, "seconds": seconds}

    def _validate(self, done: int) -> dict[str, float]:
        """Look at held-out data; nothing is changed, not even the random state."""
        assert self.validate is not None
        with forked(self.run.seed + 1):
            score, columns = self.validate()
        if bool(score.isnan().any()):
            which = "" if score.dim() == 0 else f" of {int(score.isnan().sum())} fits"
            warnings.warn(
                f"step {done}: the held-out value{which} is NaN, so its parameters are not kept.",
                stacklevel=2,
            )
        self.run.keep_best(score.double())
        return columns

    def _eager(self) -> Step:
        if self.foreign is not None:
            return self.foreign
        variables = self.run.variables
        return self._together({id(u): EagerStep(u, variables, self.rate) for u in self.moves})

    def _together(self, steps: dict[int, Step]) -> Step:
        """One step of all moves; one that comes again is made by the same step."""
        moves = [steps[id(u)] for u in self.moves]
        return moves[0] if len(moves) == 1 else Round(moves)

    def _choose(self, each: float, eager: Step) -> tuple[Step, int]:
        """The step to use, given an eager one's seconds: the one rule for compiling."""
        run, left = self.run, self.steps - self.run.steps
        auto = self.options["compile"] == "auto"
        if auto and each * left < WORTH_COMPILING:
            return eager, 1
        self.bar.note("compiling the step")
        share = self.options["compile_budget"]
        try:
            step = self._compiled(left, Budget(each * left, share) if auto else Budget())
        except (TraceFailure, OutOfBudget) as failure:
            run.eager_because = str(failure)
            self.bar.note(f"eager steps: {failure}")
            return eager, 1
        run.eager_because, run.not_replayed = None, step.not_replayed
        why = f"; not replayed: {run.not_replayed}" if run.not_replayed else ""
        self.bar.note(f"compiled in {step.seconds:.0f} s ({step.nodes} operations){why}")
        return step, step.repeats

    def _compiled(self, left: int, budget: Budget) -> Step:
        """The compiled step of as many updates as suit the pair, tried and proved."""
        variables, n = self.run.variables, self._updates(left)
        steps: dict[int, Step] = {
            id(u): CompiledStep(u, variables, self.rate, n, budget) for u in self.moves
        }
        order = self.batches.state()
        batch, shared = self.batches.next(n * len(self.moves))
        self.batches.restore(order)
        kept = variables.clone()
        try:
            with forked():
                self._together(steps)(batch, shared)
        finally:
            with torch.no_grad():
                variables.assign(kept)
        return self._together(steps)

    def _updates(self, left: int) -> int:
        """Return the number of updates in a call of the compiled step, where they are replayed."""
        if len(self.moves) > 1:
            return 1
        if (repeats := self.options["repeats"]) is not None:
            return repeats
        most = min(LOOP, max(1, left // 50), self.valid_every or LOOP)
        if not self.batches.whole:
            size = sum(b.numel() for b in self.batches.example() if torch.is_tensor(b))
            most = max(1, min(most, ROOM // size))
        return most


@contextmanager
def interrupts() -> Iterator[list]:
    """Yield a list that the first Ctrl-C inside the block fills; the second one raises.

    Outside the main thread, and where Ctrl-C is ignored, nothing is changed.
    """
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    if before in (None, signal.SIG_IGN):
        yield pressed
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
