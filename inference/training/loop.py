"""The loop that all trainers share: steps, and everything that happens between two of them."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..randomness import forked
from .batches import Batches
from .callbacks import tell
from .checkpoint import log
from .choosing import LOOP, Choice
from .iterates import size_of, stretch, take
from .keeping import Keeper, LastGood, signals
from .loss_sources import source_of_loss
from .options import AUTO, LASTING, LoopOptions, complete
from .pace import MOST, Pace
from .progress import Progress
from .ranks import Pulse, Ranks, is_lost
from .state import (
    Training,
    all_random_states,
    own_random_state,
    random_state,
    set_random_state,
)
from .steps import ForeignStep, Step

CALLS = 64  # at least, in a stretch of steps whose iterates are judged
WHOLE = 2**16  # parameters up to which averages of all of them are kept
ALIKE = 2.0**-12  # of the losses of one pair: float32 to half its digits


@dataclass
class Loop:
    """Make steps until the last one, a stop or an interrupt, and keep the record in `run`.

    Random numbers follow from torch's generators, which the caller has forked; those of a run that
    goes on are put back first. Ctrl-C ends the loop between two steps; a second one raises. Where a
    loss is not finite, the run goes back to its last good state, and ends.

    Args:
        run: what is trained: `variables` change in place, and `history` grows.
        moves: the updates of one step, one batch each; one update, but for a critic's extra moves.
        batches: where the batches come from.
        options: those of every trainer; `progress` may be a bar.
        validate: () -> (score, columns): higher is better; the best parameters are kept.
        foreign: a step with an optimiser of torch or Pyro, in place of our own.
        unit, advice: of the loss, and what to do when it is no longer finite.
        ranks: the processes that make the steps together.
        tolerance, groups: of `steps="auto"`, nats; and parameters -> losses of groups of held-out
            data, where batches are parts of the data.

    Raises:
        ConnectionError: another of the ranks is gone; the last good state is written.
        ValueError: a loss is not finite before there is a good state, or the run that goes on is of
            other data, batches of another size, or another pair.
    """

    run: Training
    moves: Sequence[Any]
    batches: Batches
    options: LoopOptions
    validate: Callable[[], tuple[Tensor, dict[str, float]]] | None = None
    foreign: ForeignStep | None = None
    unit: str = "nats"
    advice: str = "Lower lr, or set clip=..."
    ranks: Ranks | None = None
    tolerance: float = 0.0
    groups: Callable[[dict[str, Tensor]], Tensor] | None = None
    pace: Pace | None = field(init=False, default=None)
    steps: int = field(init=False)
    valid_every: int | None = field(init=False)
    rate: Tensor = field(init=False)
    bar: Progress = field(init=False)

    def __post_init__(self) -> None:
        options = self.options = complete(self.options)
        self.valid_every, auto = options["valid_every"], options["steps"] == AUTO
        made = self.run.steps // MOST + 1  # as often as it was ended there, and once more
        self.steps = made * MOST if auto else options["steps"]
        self.rate = torch.tensor(float(options["lr"]), device=self.run.variables.count.device)
        bar = options["progress"]
        known = None if auto else self.steps
        self.bar = bar if isinstance(bar, Progress) else Progress(known, self.unit, bool(bar))
        self._told = bool(options["callbacks"])
        if self.ranks is not None and not self.ranks.first:
            self.bar.show, options["callbacks"] = False, ()
        if options["not_finite"] == "skip" and (
            self.foreign is not None or not getattr(self.moves[0], "skip", False)
        ):
            raise ValueError(
                "not_finite: 'skip' is for fit with an optimiser of inference.optim; use 'stop'."
            )
        if self.validate is None:
            if options["patience"] is not None:
                raise ValueError("patience: there is no validation to wait for; give valid=...")
            self.valid_every = None
        elif self.valid_every is None:
            self.valid_every = max(100, self.steps // 20)
        if auto:
            self.pace = Pace(self.run, self.rate, self.tolerance, self.groups, self.bar.note)
        elif self.run.kind == "Run":
            before, start = self.run.iterates, max(self.steps // 2, self.run.steps)
            if before is None or before["start"] + before["length"] != self.steps:
                self.run.iterates = stretch(start, self.steps - start)

    def go(self) -> None:
        """Make the steps."""
        run, steps, options = self.run, self.steps, self.options
        if run.held or (self.pace is not None and self.pace.ended):
            return
        if run.batches is not None:
            self.batches.restore(run.batches)
            if run.steps and self.batches.streamed:
                log.warning(
                    "resume: a stream cannot go back to where the run was at step %d: the run goes "
                    "on with the stream's batches from its beginning.", run.steps,
                )  # fmt: skip
        self._refuse_another_pair()
        self._begin_noise()
        first = done = logged = run.steps
        due, every = self._next_look(done), max(1, min(100, steps // 50))
        ahead = max(1, len(self.moves))
        choice = Choice(self)
        self._step = step = choice.eager
        repeats = 1
        self._begin = time.perf_counter()
        self._before, run.stopped = (run.seconds, run.compile_seconds), None
        self._pending: list[tuple[int, Tensor]] = []
        run.batches, run.random_state = self.batches.state(), random_state(run.device)
        folder = None if options["folder"] is None else Path(options["folder"])
        keeper = Keeper(folder, options["save_every"])
        good = LastGood(run) if self.ranks is None else LastGood(run, 0.0)  # alike on all
        ending = keeper.folder is not None or self.ranks is not None
        with self.bar, choice, signals(ending) as come:
            pulse = Pulse(self.ranks, come, keeper.due)
            tell("start", options, run)
            try:
                while done < steps and not pulse.ended:
                    if done == first:
                        logged -= self._reopen()
                    if (other := choice.look(done - first)) is not None:
                        self._step = step = other
                        repeats = step.repeats
                    if (n := min(repeats, due - done, self._room(done))) != step.repeats:
                        step.repeats = n
                    batch, shared = self.batches.next(n * ahead)
                    self._pending.append((n, self._values_of(step, n, batch, shared)))
                    done += n
                    self._take(done)
                    over = self.pace is not None and done >= self.pace.over
                    row_due = over or done >= due or done // every != logged // every
                    save_due = pulse.save_due(done - first)
                    if not row_due and not save_due:
                        continue
                    if lost := self._lost():
                        if self.pace is None or not run.steps or not self._slower(good):
                            break
                        done = logged = run.steps
                        due, lost = self._next_look(done), None
                        continue
                    if not row_due:
                        self._close(done)
                        self._save(keeper)
                        self._reopen()
                        continue
                    row = self._row(done)
                    look = done == due and self.valid_every is not None
                    if look:
                        row |= self._validate(done)
                    if done == due:
                        due = self._next_look(done)
                    run.history.add(row)
                    logged = done
                    if over and self.pace is not None:
                        self.pace.look()
                    self._pause()
                    good.update(run)
                    self.bar.update(done, row[self._shown], row.get("valid_elbo"))
                    if self._told:
                        asked = tell("interval", options, run)
                        asked |= look and tell("validation", options, run)
                        asked = self.largest(asked) > 0
                        step.refresh()
                        if asked:
                            run.stopped = "a callback asked for it"
                            break
                    if save_due:
                        self._save(keeper)
                    if self.pace is not None and self.pace.ended:
                        break
                    if look and run.since_best >= (options["patience"] or math.inf):
                        run.stopped = f"no better validation in {run.since_best} rounds"
                        break
            except KeyboardInterrupt:
                if pulse.ended:  # the second: whoever presses twice wants out
                    raise
                pulse.ended.append(signal.SIGINT)
            except RuntimeError as error:
                if self.ranks is None or not is_lost(error):
                    raise
                self._leave(good, keeper, error)
            if lost := self._lost():
                self._go_back(good, lost)
            elif done > first:
                self._close(done)
            if pulse.ended and run.stopped is None and done < steps:
                names = [signal.Signals(n).name for n in pulse.ended if n != signal.SIGINT]
                run.stopped = f"ended by {names[0]}" if names else "interrupted"
            if self.ranks is not None:  # of batches, each rank has its own
                self.ranks.from_first(run.variables.buffers.values())
            tell("end", options, run)
            if run.steps:
                self._save(keeper, last=True)

    def _values_of(self, step: Step, n: int, batch: tuple, shared: bool) -> Tensor:
        """Make n updates; their losses, which are no numbers where a matrix has no factor."""
        try:
            return step(batch, shared)
        except torch.linalg.LinAlgError:
            (*_, update) = self.moves
            if self.ranks is not None or getattr(update, "vary", 0) is not None:
                raise  # of several fits, or players, nobody knows which
            self.run.variables.count += n
            return torch.full((n, 1), math.nan, device=self.rate.device)

    def _begin_noise(self) -> None:
        """Draw from where the run was, or from the seed; of several ranks, each for itself."""
        run, ranks = self.run, self.ranks
        state = run.random_state
        if ranks is not None:
            ranks.from_first(run.variables.flat())
            state = own_random_state(state, ranks.rank)
            if state is None and not ranks.first:
                torch.manual_seed(ranks.seed(run.seed, run.steps))
        if state is not None:
            set_random_state(state, run.device)

    def _leave(self, good: LastGood, keeper: Keeper, error: RuntimeError) -> None:
        """Write the last good state, and end: another rank is gone, in the middle of a step."""
        run = self.run
        self._pending = []
        good.restore(run)
        run.stopped = "another process of the group is gone"
        kept = ""
        if keeper.folder is not None and run.steps:
            run.probe = self._probe()
            keeper.write(run, last=True)
            kept = f" Kept: the state of step {run.steps:,} in {keeper.folder}."
        line = str(error).strip().splitlines()[0][:120]
        raise ConnectionError(f"group: {run.stopped} ({line}).{kept}") from error

    def largest(self, number: float) -> float:
        """A number on which all ranks agree."""
        return number if self.ranks is None else self.ranks.most(number)[0]

    def _room(self, done: int) -> int:
        """Most updates of a call, so that a stretch has iterates enough."""
        state = self.run.iterates
        if state is None:
            return LOOP
        if done < state["start"]:
            return int(state["start"]) - done
        return max(1, int(state["length"]) // CALLS)

    def _take(self, done: int) -> None:
        """Take this step's iterate, where a stretch of them is followed."""
        if self.run.iterates is not None:
            params = self.run.variables.params
            whole = self.pace is not None or size_of(params) <= WHOLE
            take(self.run.iterates, done, params, whole)

    def _slower(self, good: LastGood) -> bool:
        """Go on from the last good state at a lower rate; False where that has not helped."""
        assert self.pace is not None and self.run.pace is not None
        self._pending, rate = [], self.run.pace["rate"]
        good.restore(self.run)
        self.run.pace["rate"] = rate  # the one that failed, not that of the good state
        if self.run.batches is not None:
            self.batches.restore(self.run.batches)
        goes_on = self.pace.back_off()
        if not goes_on:
            self.run.stopped = "the loss is not finite at any rate"
        return goes_on

    def _pause(self) -> None:
        """Write down what a resume needs."""
        run = self.run
        run.batches = self.batches.state()
        run.random_state = random_state(run.device)
        if self.foreign is not None:
            run.optimiser_state = self.foreign.state()
        run.seconds = self._seconds()
        run.compiled = self._step.compiled
        run.compile_seconds = self._before[1] + self._step.seconds

    def _seconds(self) -> float:
        return self._before[0] + time.perf_counter() - self._begin

    def _save(self, keeper: Keeper, last: bool = False) -> None:
        """Write the state as it stands after `_pause`, and a probe of the pair with it."""
        run = self.run
        if self.ranks is not None:
            run.random_state = all_random_states(self.ranks.gathered(run.random_state))
        if keeper.folder is not None or last:
            run.probe = self._probe()
        keeper.write(run, last)
        if keeper.folder is not None:
            tell("saved", self.options, self.run)

    def _close(self, done: int) -> None:
        """Let the record end here: the steps since the last row become a row, until `_reopen`."""
        run = self.run
        run.logged = (len(run.history), len(run.losses))
        run.unlogged = None
        if self._pending:
            run.unlogged = self._values().clone()
            run.history.add(self._row(done))
        self._pause()

    def _reopen(self) -> int:
        """Take back the row of `_close`, as if there had been none; how many steps were in it."""
        run = self.run
        if run.unlogged is None:
            return 0
        rows, losses = run.logged
        del run.history.rows[rows:], run.losses[losses:]
        self._pending, run.unlogged = [(len(run.unlogged), run.unlogged)], None
        return self._pending[0][0]

    def _probe(self) -> dict[str, Any] | None:
        """The values of one eager update from here, of the first rows: another pair has others."""
        if self.batches.streamed:
            return None  # of a stream, nobody knows the first rows
        run, update = self.run, self.moves[-1]
        if self.ranks is not None:
            update = replace(update, ranks=None)
        own = {k: v for k, v in run.settings.items() if k not in (*LASTING, "optimiser")}
        where = (run.device.type, torch.backends.cpu.get_cpu_capability(), torch.__version__)
        with forked(run.seed):
            values = update(run.variables.clone(), self.rate, self.batches.example())
        return {"of": repr((own, *where)), "values": values.double().flatten().tolist()}

    def _refuse_another_pair(self) -> None:
        """Raise ValueError where the pair computes other values than the one that was fitted."""
        before, self.run.probe = self.run.probe, None
        if before is None:
            return
        now = self._probe()
        if now is None:
            return
        pairs = list(zip(before["values"], now["values"]))
        alike = all(math.isclose(a, b, rel_tol=ALIKE, abs_tol=ALIKE) or a != a for a, b in pairs)
        if before["of"] == now["of"] and not alike:
            raise ValueError(
                "resume: on the same rows, noise and parameters the pair that was fitted has a "
                f"loss of {pairs[0][0]:.6g}, this one {pairs[0][1]:.6g}. Give the pair that was "
                "fitted, or begin anew: fit(run.model, run.guide, data)."
            )

    def _lost(self) -> tuple[int, str] | None:
        """Steps before the first value since the last row that is not finite, and its column."""
        if not self._pending:
            return None
        values = self._values()
        if self.options["not_finite"] == "skip":  # a loss of NaN says that the step changed nothing
            return None
        bad = ~values.isfinite()
        bad = bad.all(1, keepdim=True) if values.dim() == 2 and self.run.kind == "Runs" else bad
        if not bool(bad.any()):
            return None
        step, column = bad.nonzero()[0].tolist()
        return step, self.moves[-1].columns[column]

    def _go_back(self, good: LastGood, lost: tuple[int, str]) -> None:
        """Return to the last good state, and say where the loss came from that was not finite.

        Raises:
            ValueError: there is no good state: no step was made before it.
        """
        run, made = self.run, self.run.steps
        at = made - sum(n for n, _ in self._pending) + lost[0] + 1
        self._pending = []
        good.restore(run)
        if run.batches is not None:
            self.batches.restore(run.batches)
        source = source_of_loss(run, self.moves[-1], self.batches, self.rate, at - run.steps)
        if self.ranks is not None:
            source = next(filter(None, self.ranks.gathered(source)), "")
        name = lost[1].replace("_", " ")
        said = f"{name} no longer finite at step {at}{source}"
        if not run.steps:
            raise ValueError(f"{said}. {self.advice}")
        run.stopped = f"{said}; kept: the state of step {run.steps}"
        log.warning("%s. %s", run.stopped, self.advice)

    def _next_look(self, done: int) -> int:
        """The next step after which there is something to do: validation, or the end."""
        if self.valid_every is None:
            return self.steps
        return min(self.steps, (done // self.valid_every + 1) * self.valid_every)

    @property
    def _shown(self) -> str:
        return self.moves[-1].columns[self.moves[-1].shown]

    def _values(self) -> Tensor:
        """The values of the steps since the last row: (n, columns), or (n, fits)."""
        return torch.cat([v.reshape(n, -1) for n, v in self._pending])

    def _row(self, done: int) -> dict[str, float]:
        """A row of the history: means since the last one."""
        values, self._pending = self._values(), []
        means = self.run.log(values, self.moves[-1].columns, self.moves[-1].shown)
        return {"step": float(done), **means, "seconds": self._seconds()}

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
