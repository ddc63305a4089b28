"""The ways to make an update: eager, with a foreign optimiser, compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..elbo import Estimator, Trace
from ..graph import (
    Captured,
    Launched,
    Noise,
    NotReplayable,
    Replay,
    TraceFailure,
    compiled,
    hoisted,
    traced,
)
from ..optim import Adam
from ..pairs.pair import Pair, own_copy
from .proof import PROVED, Disproved, Proof
from .update import Update, Variables, row

RETRACES = 8  # compiled versions of one step before a changing shape is called a mistake


class EagerStep:
    """`step(batch)` runs the pair's Python, updates `variables` in place and returns the loss.

    `repeats` updates are made in one call; each batch tensor then has a leading axis of that
    length unless it is listed in `shared`. The result is (repeats,) losses.
    """

    compiled = False

    def __init__(self, update: Update, variables: Variables, lr: Tensor, repeats: int = 1):
        self.update, self.variables, self.lr, self.repeats = update, variables, lr, repeats

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """One call's losses: () when repeats is 1, else (repeats,)."""
        if self.repeats == 1:
            return self.update(self.variables, self.lr, batch)
        rows = [batch if shared else row(batch, i) for i in range(self.repeats)]
        return torch.stack([self.update(self.variables, self.lr, each) for each in rows])


def on_cuda(t: Tensor) -> bool:
    """True where the step is to be captured on a GPU."""
    return t.is_cuda


class CompiledStep:
    """The same signature as `EagerStep`, without the pair's Python.

    Each shape of batch is traced, compiled and proved once. On a CPU, where the graph is nothing
    but kernels, `repeats` updates are a loop of C around one; on CUDA their launches are captured
    and replayed; elsewhere every update is a call from Python.

    Attributes:
        repeats: updates in one call: 1 once it is known that they are not replayed.
        not_replayed: which operation keeps the step from being replayed, or None.
        seconds: spent on tracing, compiling and the proof so far.
        nodes: operations in the graph.

    Raises:
        TraceFailure: the pair cannot be traced, compiled, or proved equal to the eager step.
        ValueError: the batch's shape has changed more than eight times.
    """

    compiled = True

    def __init__(
        self,
        update: Update,
        variables: Variables,
        lr: Tensor,
        repeats: int = 1,
        prove: bool = True,
    ):
        self.update, self.variables, self.lr, self.repeats = update, variables, lr, repeats
        self.prove = prove
        self.not_replayed: str | None = None
        self.seconds = 0.0
        self.nodes = 0
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
        """Look up at the next call where the variables lie: somebody else may have moved them."""
        self._own = None

    def _prepare(self, key: Any, batch: tuple, alone: bool) -> Callable:
        """Trace, compile and prove the step for batches of one shape."""
        if len(self._ready) >= RETRACES:
            raise ValueError(_changing([*self._ready, key]))
        start = time.perf_counter()
        n = min(PROVED, self.repeats) if self.repeats > 1 else PROVED
        rows = [batch if alone else row(batch, i) for i in range(n)]
        # the eager step comes first: its memory is free again when the compiled one takes its own
        proof = Proof(self.update, self.variables, self.lr, rows) if self.prove else None
        try:
            run = self._proved(rows[0], proof, apart=False)
        except Disproved:
            run = self._proved(rows[0], proof, apart=True)
        self._ready[key] = run
        self.seconds += time.perf_counter() - start
        return run

    def _proved(self, batch: tuple, proof: Proof | None, apart: bool) -> Callable:
        """Compiled updates that pass the proof: replayed, or else called from Python."""
        run, inputs, noise = self._compile(batch, apart)
        own = len(self.variables.flat()) + 1
        repeated: Replay | Captured | Launched
        try:
            repeated = Captured(run, inputs, own) if on_cuda(self.lr) else Replay(run, inputs, own)
            if proof is not None:
                proof.hold(repeated, noise, together=self.repeats > 1)
        except (NotReplayable, Disproved) as failure:
            repeated = Launched(run, inputs, own)
            if proof is not None:
                proof.hold(repeated, noise, together=False)
            self.not_replayed, self.repeats = str(failure), 1
        return repeated if noise is None else _with_noise(repeated, noise)

    def _compile(
        self, batch: tuple, apart: bool = False
    ) -> tuple[Callable, list[Tensor], Noise | None]:
        """One update as compiled code, its example inputs, and what its noise is drawn into."""
        flat = self.variables.flat()

        def function(*inputs: Tensor) -> Tensor:
            n = len(flat)
            rest = iter(inputs[n + 1 :])
            args = tuple(next(rest) if torch.is_tensor(b) else b for b in batch)
            return self.update(self.variables.like(inputs[:n]), inputs[n], args)

        inputs = [*flat, self.lr, *(b for b in batch if torch.is_tensor(b))]
        graph = traced(function, inputs)
        self.nodes = len(graph.graph.nodes)
        noise = None
        noisy = None if on_cuda(self.lr) else hoisted(graph)  # a captured graph draws its own
        if noisy is not None:
            graph, noise = noisy
            inputs = [*inputs, noise.values]
        return compiled(graph, inputs, apart), inputs, noise


def _with_noise(run: Callable, noise: Noise) -> Callable:
    """The same call with fresh noise for each of its updates."""
    several = {1: noise}

    def drawn(own: list[Tensor], others: list[Tensor], updates: int | None) -> Tensor:
        n = updates or 1
        if n not in several:
            several[n] = noise * n
        return run(own, [*others, several[n].draw()], updates)

    return drawn


def explain(pair: Any, batch: tuple, estimator: Estimator | None = None) -> str:
    """Say at length whether a pair can be compiled, and what stops it when it cannot.

    Args:
        pair: a module with methods `model` and `guide`, a tuple (model, guide), or a `Pair`.
        batch: example arguments, a tuple.
        estimator: by default `Trace()`.
    """
    if not isinstance(pair, Pair):
        model, guide = pair if isinstance(pair, tuple) else (pair.model, pair.guide)
        pair = Pair(*own_copy(model, guide), batch)
    update = Update(pair, estimator or Trace(), Adam())
    variables = Variables.start(pair, update.optimiser)
    lr = torch.tensor(1e-3, device=variables.count.device)
    step = CompiledStep(update, variables, lr)
    try:
        step(batch)
    except TraceFailure as failure:
        return f"This pair runs eagerly.\n{failure.long()}"
    return (
        f"This pair compiles: {step.nodes} operations in one graph, {step.seconds:.1f} s to trace "
        "and compile; loss and gradients equal the eager step's on the same noise."
    )


def _changing(shapes: list[tuple]) -> str:
    for i, columns in enumerate(zip(*shapes)):
        if len(set(columns)) > RETRACES / 2:
            seen = sorted({tuple(shape) for shape, _ in columns})
            return (
                f"argument {i} of the step keeps changing its shape or dtype ({len(shapes)} "
                f"versions: {seen}). Pad or slice it to one shape, or use compile=False."
            )
    return "the step's arguments keep changing their shapes. Use compile=False."
