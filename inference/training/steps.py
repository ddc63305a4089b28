"""The ways to make an update: eager, with a foreign optimiser, compiled."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro.optim
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ..graph import (
    Budget,
    Captured,
    Launched,
    NotReplayable,
    Program,
    Replay,
    compiled,
    forget,
    name_of,
    program_of,
    recall,
    remember,
)
from .proof import PROVED, Disproved, Proof
from .update import Update, Variables, row

RETRACES = 8  # compiled versions of one step before a changing shape is called a mistake


class Step:
    """Updates of some variables in place: `step(batch)`, the same for every way to make them.

    Attributes:
        repeats: updates in one call.
        compiled: whether the pair's Python is gone.
        seconds, nodes: spent on compiling, and operations in the graph.
        not_replayed: which operation keeps a compiled step from being replayed, or None.
    """

    compiled = False
    repeats = 1
    seconds = 0.0
    nodes = 0
    not_replayed: str | None = None

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """The values of one call; each tensor of a batch not shared has a leading axis."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Look up at the next call where the variables lie: somebody else may have moved them."""


class Round(Step):
    """Several moves, each an update on a batch of its own, as one step; the last one's values."""

    def __init__(self, moves: Sequence[Step]):
        self.moves = moves
        self.compiled = all(m.compiled for m in moves)
        self.seconds = sum(m.seconds for m in set(moves))
        self.nodes = sum(m.nodes for m in set(moves))
        self.not_replayed = next((m.not_replayed for m in moves if m.not_replayed), None)

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """Make all moves; what the last one returns."""
        for i, move in enumerate(self.moves):
            values = move(batch if shared else row(batch, i))
        return values

    def refresh(self) -> None:
        """As every move's."""
        for move in self.moves:
            move.refresh()


class EagerStep(Step):
    """`step(batch)` runs the pair's Python, updates `variables` in place and returns the loss."""

    def __init__(self, update: Update, variables: Variables, lr: Tensor):
        self.update, self.variables, self.lr = update, variables, lr

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """One update; its loss."""
        return self.update(self.variables, self.lr, batch)


class ForeignStep(Step):
    """As `EagerStep`, with an optimiser of torch or Pyro; never compiled.

    The learning rates of its parameter groups are multiplied by the update's schedule.

    Args:
        make: `params -> torch.optim.Optimizer`, or a `pyro.optim.PyroOptim`.
        state: of an earlier step's `state()`, to go on from.

    Raises:
        ValueError: the state is another optimiser's.
    """

    def __init__(
        self, update: Update, variables: Variables, make: Any, state: dict[str, Any] | None = None
    ):
        self.update, self.variables = update, variables
        params = list(variables.params.values())
        if isinstance(make, pyro.optim.PyroOptim):  # one optimiser for each parameter
            make = copy.copy(make)
            make.optim_objs, make.grad_clip = {}, {}
            for p in params:
                make.optim_objs[p], make.grad_clip[p] = make._get_optim(p), make._get_grad_clip(p)
            self.optimisers = list(make.optim_objs.values())
            self._apply = lambda: make(params)
        else:
            self.optimisers = [make(params)]
            self._apply = self.optimisers[0].step
        self.name = type(self._inner()[0]).__name__
        if state is not None:
            if state["name"] != self.name:
                raise ValueError(
                    f"resume: the run's optimiser is {state['name']}, whose state is of no use to "
                    f"{self.name}. Leave optimiser= out, or begin anew from its parameters: "
                    "fit(run.model, run.guide, data, optimiser=...)."
                )
            for optimiser, saved in zip(self.optimisers, copy.deepcopy(state["states"])):
                if isinstance(optimiser, LRScheduler):
                    optimiser.optimizer.load_state_dict(saved.pop("optimizer"))
                optimiser.load_state_dict(saved)

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """One update; its loss, ()."""
        loss, grads = self.update.gradients(self.variables, batch)
        for p, g in zip(self.variables.params.values(), grads):
            p.grad = g
        schedule = self.update.schedule
        if schedule is None:
            self._apply()
        else:
            factor = float(schedule(self.variables.count.to(loss.dtype)))
            groups = [g for o in self._inner() for g in o.param_groups]
            rates = [g["lr"] for g in groups]
            for group, rate in zip(groups, rates):
                group["lr"] = rate * factor
            self._apply()
            for group, rate in zip(groups, rates):  # some change their rate themselves in a step
                own = group["lr"] != rate * factor and factor
                group["lr"] = group["lr"] / factor if own else rate
        with torch.no_grad():
            self.variables.count.add_(1)
        return loss

    def _inner(self) -> list[torch.optim.Optimizer]:
        return [o.optimizer if isinstance(o, LRScheduler) else o for o in self.optimisers]

    def state(self) -> dict[str, Any]:
        """The optimiser's name and its `state_dict`s, copied."""
        states = [o.state_dict() for o in self.optimisers]
        for state, o in zip(states, self.optimisers):
            if isinstance(o, LRScheduler):
                state["optimizer"] = o.optimizer.state_dict()
        return {"name": self.name, "states": copy.deepcopy(states)}


def on_cuda(t: Tensor) -> bool:
    """True where the step is to be captured on a GPU."""
    return t.is_cuda


class CompiledStep(Step):
    """The same signature as `EagerStep`, without the pair's Python.

    Each shape of batch is written down, compiled unless the same graph is known from before, and
    proved. On a CPU, where the graph is nothing
    but kernels, `repeats` updates are a loop of C around one; on CUDA their launches are captured
    and replayed; elsewhere every update is a call from Python.

    Args:
        budget: what the first shape may cost; by default as much as it takes.
        singly: draw the noise of each update as the eager step does, so that its numbers are those
            of eager steps.

    Attributes:
        repeats: updates in one call: 1 once it is known that they are not replayed.
        seconds: spent on compiling and the proof so far.

    Raises:
        TraceFailure: the pair cannot be traced, compiled, or proved equal to the eager step.
        OutOfBudget: it would cost more than the budget.
        ValueError: the batch's shape has changed more than eight times.
    """

    compiled = True

    def __init__(
        self,
        update: Update,
        variables: Variables,
        lr: Tensor,
        repeats: int = 1,
        budget: Budget | None = None,
        singly: bool = False,
    ):
        self.singly = singly
        self.update, self.variables, self.lr, self.repeats = update, variables, lr, repeats
        self.budget = budget or Budget()
        self._ready: dict[Any, Callable] = {}
        self._own: list[Tensor] | None = None

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """One call's losses: () when repeats is 1, else (repeats,)."""
        repeats = self.repeats
        alone = shared or repeats == 1
        tensors = [b for b in batch if torch.is_tensor(b)]
        key = tuple([(b.shape if alone else b.shape[1:], b.dtype) for b in tensors])
        run = self._ready.get(key)
        if run is None:
            run = self._prepare(key, batch, alone)
        if self._own is None:
            self._own = [*self.variables.flat(), self.lr]
        return run(self._own, tensors, None if repeats == 1 else repeats)

    def refresh(self) -> None:
        """Take the variables anew."""
        self._own = None

    def write(self, batch: tuple, shared: bool = True) -> None:
        """Compile for batches like this one, and write the program where other processes find it.

        Raises:
            TraceFailure, OutOfBudget: as when it is called.
            NotReplayable: there is no program, but code to be called from Python.
        """
        tape = self._proof(batch, shared or self.repeats == 1).tape
        name = name_of(tape.key)
        with self.budget.kept():
            if recall(name) is None:
                remember(name, program_of(compiled(tape)))

    def _proof(self, batch: tuple, alone: bool) -> Proof:
        """Some eager updates."""
        n = min(PROVED, self.repeats) if self.repeats > 1 else PROVED
        rows = [batch if alone else row(batch, i) for i in range(n)]
        return Proof(self.update, self.variables, self.lr, rows, not on_cuda(self.lr))

    def _prepare(self, key: Any, batch: tuple, alone: bool) -> Callable:
        """Record, compile and prove the step for batches of one shape."""
        if len(self._ready) >= RETRACES:
            raise ValueError(_changing([*self._ready, key]))
        start = time.perf_counter()
        # the eager step comes first: its memory is free again when the compiled one takes its own
        proof = self._proof(batch, alone)
        self.nodes = len(proof.tape.operations)
        apart = recall(name_of(proof.tape.key, True)) is not None  # as it was proved before
        with self.budget.kept():
            try:
                run = self._proved(proof, apart)
            except Disproved:
                run = self._proved(proof, not apart)
        self.budget = Budget()
        self._ready[key] = run
        self.seconds += time.perf_counter() - start
        return run

    def _proved(self, proof: Proof, apart: bool) -> Callable:
        """Compiled updates that pass the proof: known from before, or else compiled now."""
        name = name_of(proof.tape.key, apart)
        known = recall(name)
        if known is not None:
            try:
                return self._updates_by(known, proof)
            except Disproved:
                forget(name)
        code = compiled(proof.tape, apart)
        try:
            if on_cuda(self.lr):
                raise NotReplayable("launches are captured")
            program = program_of(code)
            run = self._updates_by(program, proof)
        except (NotReplayable, Disproved) as failure:
            code.not_replayed = None if on_cuda(self.lr) else str(failure)
            run = self._updates_by(code.tried(proof.inputs), proof)
            remember(name, code)
        else:
            remember(name, program)
        return run

    def _updates_by(self, code: Any, proof: Proof) -> Callable:
        """Updates by a program or by inductor's code, held against the eager ones."""
        constants, noise = proof.tape.constants, proof.tape.noise()
        if isinstance(code, Program):
            run: Callable = Replay(code, proof.own, constants)
        else:
            kind = Captured if on_cuda(self.lr) else Launched
            mine = [*self.variables.flat(), self.lr]  # a capture is of these, where they lie
            repeated = kind(code, [*mine, *proof.inputs[len(mine) :]], len(mine))
            batch = proof.batch

            def run(own: list[Tensor], others: list[Tensor], n: int | None) -> Tensor:
                return repeated(own, [*others[:batch], *constants, *others[batch:]], n)

        many = isinstance(code, Program) or on_cuda(self.lr)
        proof.hold(run, noise, together=many and self.repeats > 1)
        if not many:
            self.not_replayed, self.repeats = code.not_replayed, 1
        if noise is None:
            return run
        return lambda own, others, n: run(own, [*others, noise.draw(n or 1, self.singly)], n)


def _changing(shapes: list[tuple]) -> str:
    for i, columns in enumerate(zip(*shapes)):
        if len(set(columns)) > RETRACES / 2:
            seen = sorted({tuple(shape) for shape, _ in columns})
            return (
                f"argument {i} of the step keeps changing its shape or dtype ({len(shapes)} "
                f"versions: {seen}). Pad or slice it to one shape, or use compile=False."
            )
    return "the step's arguments keep changing their shapes. Use compile=False."
