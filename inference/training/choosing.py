"""The choice of a loop's step: eager at first, compiled where that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..graph import Budget, OutOfBudget, TraceFailure
from ..randomness import forked
from .beside import Beside, is_possible
from .pace import EXPECTED
from .steps import CompiledStep, EagerStep, Round, Step
from .threads import Threads

WORTH_COMPILING = 10.0  # seconds of eager steps ahead; see `python -m benchmarks`, "pays from"
WORTH_BESIDE = 3.0  # the same, where nobody waits for it
WORTH_RECALLING = 250  # steps ahead, of which some ten are spent to look whether it is known
LOOP = 64  # updates in one call, at most, where the step is replayed
ROOM = 2**20  # numbers in the batches of one call


class Choice:
    """The one rule for compiling.

    `compile=True` compiles before the first step. "auto" makes a few eager steps; then a step that
    is known from before is taken; another one is compiled by a process of its own, while the eager
    steps go on, and taken over when it is there; where that cannot be, it is compiled at once if
    the steps ahead are long enough to earn it. The noise is that of eager steps in every case.

    "auto" also chooses the number of threads, and looks at it again as the steps go on. A run that
    is kept on disk has its threads and compiles at once: it can be resumed bit for bit.

    Args:
        loop: the `Loop` whose steps they are.
    """

    def __init__(self, loop: Any):
        self.loop = loop
        self._beside: Beside | None = None
        asked, run = loop.options["compile"], loop.run
        self._at_once = asked is True or run.compiled  # as the run that goes on had chosen
        self._settled = loop.foreign is not None or asked is False
        self._each = 0.0
        # a run that is kept on disk changes over at one place, so that it can be resumed exactly
        self._anywhere = loop.options["folder"] is None and loop.ranks is None
        varies = self._anywhere and not self._settled and not self._at_once
        self._threads = Threads(varies and run.device.type == "cpu")
        self._known: dict[int, Step] = {}  # compiled steps, by threads
        self._hopeless = False  # compiling was given up
        self.eager = loop.foreign or self._together(
            {id(u): EagerStep(u, run.variables, loop.rate) for u in loop.moves}
        )

    def __enter__(self) -> Choice:
        return self

    def __exit__(self, *_: object) -> None:
        if self._beside is not None:
            self._beside.end()
        self._threads.restore()

    def look(self, made: int) -> Step | None:
        """Return the step to go on with where it is another one, after so many steps made here."""
        if self._beside is not None:
            if not self._beside.done():
                return None
            ended, self._beside, self._settled = self._beside, None, True
            self._threads.take_back()
            return self._arrived(ended, made)
        if self._settled:
            if not self._threads.again(made):
                return None
            self._settled = False
            return self.eager
        if self._at_once:
            self._settled = True
            return self._compiled(Budget())
        each = self._threads.timed(made)
        if each is None:
            return None
        self._each = self.loop.largest(each)
        return self._chosen()

    @property
    def _left(self) -> int:
        """The steps ahead, about."""
        left = self.loop.steps - self.loop.run.steps
        if self.loop.pace is not None:
            left = min(left, max(EXPECTED - self.loop.run.steps, EXPECTED // 4))
        return left

    @property
    def _ahead(self) -> float:
        """Seconds of the eager steps ahead, about."""
        return self._each * self._left

    def _chosen(self) -> Step | None:
        """Choose, now that it is known what an eager step takes."""
        alone = self.loop.ranks is None
        self._settled = True
        if (step := self._known.get(self._threads.now)) is not None:
            step.refresh()
            return step
        if self._hopeless:
            return None
        # ranks have to choose alike, but one may know a step that another does not
        if alone and self._left >= WORTH_RECALLING and (known := self._recalled()) is not None:
            return known
        beside = self._anywhere and is_possible(self.loop.run.device)
        if beside and self._ahead >= WORTH_BESIDE:
            self._settled = False
            self._beside = Beside(self._writing(), self._ahead / 2)
            self._threads.lend()
            self.loop.bar.note("compiling the step, beside eager ones")
            return None
        return self._in_the_way()

    def _in_the_way(self) -> Step | None:
        """Compile while the steps wait, where those ahead are long enough."""
        if self._ahead < WORTH_COMPILING:
            return None
        self.loop.bar.note("compiling the step")
        limited = self.loop.ranks is None  # a clock would part the ranks
        share = self.loop.options["compile_budget"]
        return self._compiled(Budget(self._ahead, share) if limited else Budget())

    def _arrived(self, beside: Beside, made: int) -> Step | None:
        """Take over what was compiled beside the steps."""
        if beside.refused is not None:
            return self._refused(beside.refused)
        known = None if beside.failed else self._recalled(f", beside {made:,} eager steps")
        return known or self._in_the_way()

    def _recalled(self, how: str = "") -> Step | None:
        """The compiled step, if its program is known."""
        try:
            return self._tried(Budget(self._ahead, 0.0), how)
        except (TraceFailure, OutOfBudget):
            return None

    def _compiled(self, budget: Budget) -> Step | None:
        """The compiled step; None where it cannot be had."""
        try:
            return self._tried(budget)
        except (TraceFailure, OutOfBudget) as failure:
            return self._refused(str(failure))

    def _refused(self, why: str) -> Step | None:
        """Go on with eager steps, and say why."""
        self.loop.run.eager_because, self._hopeless = why, True
        self.loop.bar.note(f"eager steps: {why}")
        return None

    def _tried(self, budget: Budget, how: str = "") -> Step:
        """The compiled step of as many updates as suit the pair, tried and proved.

        Raises:
            TraceFailure, OutOfBudget: as `CompiledStep`.
        """
        run = self.loop.run
        steps = self._steps(budget)
        batch, shared = self._batch()
        kept = run.variables.clone()
        try:
            with forked():
                self._together(steps)(batch, shared)
        finally:
            with torch.no_grad():
                run.variables.assign(kept)
        step = self._known[self._threads.now] = self._together(steps)
        run.eager_because, run.not_replayed, run.repeats = None, step.not_replayed, step.repeats
        why = f"; not replayed: {run.not_replayed}" if run.not_replayed else ""
        self.loop.bar.note(f"compiled in {step.seconds:.0f} s ({step.nodes} operations){how}{why}")
        return step

    def _writing(self) -> Callable[[], None]:
        """Return what compiles the step in another process, for this one to find."""

        def write() -> None:
            batch, shared = self._batch()
            budget = Budget(self._ahead, self.loop.options["compile_budget"])
            for step in self._steps(budget).values():
                step.write(batch, shared)

        return write

    def _batch(self) -> tuple[tuple, bool]:
        return self.loop.batches.trial(self._updates() * len(self.loop.moves))

    def _steps(self, budget: Budget) -> dict[int, CompiledStep]:
        """A compiled step of each update."""
        loop, singly = self.loop, self.loop.options["compile"] == "auto"
        return {
            id(u): CompiledStep(u, loop.run.variables, loop.rate, self._updates(), budget, singly)
            for u in loop.moves
        }

    def _together(self, steps: dict) -> Step:
        """One step of all moves; one that comes again is made by the same step."""
        moves: Sequence[Step] = [steps[id(u)] for u in self.loop.moves]
        return moves[0] if len(moves) == 1 else Round(moves)

    def _updates(self) -> int:
        """Return the number of updates in a call of the compiled step, where they are replayed."""
        loop, run = self.loop, self.loop.run
        if len(loop.moves) > 1:
            return 1
        if (repeats := loop.options["repeats"]) is not None:
            return repeats
        if run.compiled:  # the noise of a call is that of the run that goes on
            return run.repeats
        most = min(LOOP, max(1, self._left // 50), loop.valid_every or LOOP)
        if not loop.batches.whole:
            size = sum(b.numel() for b in loop.batches.example() if torch.is_tensor(b))
            most = max(1, min(most, ROOM // size))
        return most
