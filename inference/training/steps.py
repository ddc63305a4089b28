"""The ways to make an update: eager, with a foreign optimiser, compiled."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import pyro.optim
import torch
from torch import Tensor

from ..elbo import Estimator, Trace
from ..graph import (
    Captured,
    Noise,
    NotReplayable,
    Recorded,
    Replay,
    TraceFailure,
    compiled,
    hoisted,
    traced,
)
from ..optim import Adam
from ..pairs.pair import Pair, own_copy
from ..randomness import forked
from .update import Update, Variables

UNROLL = 8  # updates in one graph, at most
RETRACES = 8  # compiled versions of one step before a changing shape is called a mistake
PROOF = 20  # the seed of the noise on which the two steps are compared


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
        return _repeat(self.update, self.variables, self.lr, batch, self.repeats, shared)


def _repeat(
    update: Update, variables: Variables, lr: Tensor, batch: tuple, repeats: int, shared: bool
) -> Tensor:
    if repeats == 1:
        return update(variables, lr, batch)
    losses = []
    for i in range(repeats):
        part = batch if shared else tuple(b[i] if torch.is_tensor(b) else b for b in batch)
        losses.append(update(variables, lr, part))
    return torch.stack(losses)


class ForeignStep:
    """The same signature with an optimiser of `torch.optim` or `pyro.optim`; eager only.

    Args:
        make: `params -> torch.optim.Optimizer`, or a `pyro.optim.PyroOptim`. Its state is its own:
            a checkpoint does not hold it.
    """

    compiled = False

    def __init__(self, update: Update, variables: Variables, make: Any):
        self.update, self.variables = update, variables
        params = list(variables.params.values())
        if isinstance(make, pyro.optim.PyroOptim):
            self._apply: Callable[[], Any] = lambda: make(params)
        else:
            self._apply = make(params).step

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """One update; its loss, ()."""
        loss, grads = self.update.gradients(self.variables, batch)
        for p, g in zip(self.variables.params.values(), grads):
            p.grad = g
        self._apply()
        self.variables.count.add_(1)
        return loss


def on_cuda(t: Tensor) -> bool:
    """Whether the step is to be captured on a GPU."""
    return t.is_cuda


class CompiledStep:
    """The same signature as `EagerStep`, without the pair's Python.

    Each shape of batch is traced, compiled and proved once. On CUDA the launches of `repeats`
    updates are captured and replayed; on a CPU, where the graph is nothing but kernels, they are a
    loop of C around one update, and elsewhere they are unrolled into one graph, which takes as
    much longer to compile.

    Attributes:
        seconds: spent on tracing and compiling so far.

    Raises:
        TraceFailure: the pair cannot be traced, compiled, or proved equal to the eager step.
        NotReplayable: more than eight updates a call, and they cannot be a loop.
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
        self.seconds = 0.0
        self.nodes = 0
        self._ready: dict[Any, Callable] = {}
        self._flat = variables.flat()

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """One call's losses: () when repeats is 1, else (repeats,)."""
        tensors = [b for b in batch if torch.is_tensor(b)]
        key = (shared, *((b.shape, b.dtype) for b in tensors))
        run = self._ready.get(key)
        if run is None:
            run = self._prepare(key, batch, shared)
        return run([*self._flat, self.lr, *tensors])

    def _prepare(self, key: Any, batch: tuple, shared: bool) -> Callable:
        if len(self._ready) >= RETRACES:
            raise ValueError(_changing([k[1:] for k in self._ready] + [key[1:]]))
        start = time.perf_counter()
        alone = shared or self.repeats == 1
        one = batch if alone else tuple(b[0] if torch.is_tensor(b) else b for b in batch)
        # the eager step comes first: its memory is free again when the compiled one takes its own
        expected = self._eagerly(one, True, 1)
        run, inputs, noise = self._compile(one, True, 1)
        replay = self._replay(run, inputs)
        if replay is None and self.repeats > 1:
            if self.repeats > UNROLL:
                raise NotReplayable(f"{self.repeats} updates in one graph: at most {UNROLL}")
            expected = self._eagerly(batch, shared, self.repeats)
            run, inputs, noise = self._compile(batch, shared, self.repeats)
            self._prove(run, batch, noise, self.repeats, expected)
        else:
            run = replay or run
            self._prove(run, one, noise, 1, expected)
            if self.repeats > 1:
                run = functools.partial(run, updates=self.repeats)
                noise = None if noise is None else noise * self.repeats
        self._ready[key] = run if noise is None else _with_noise(run, noise)
        self.seconds += time.perf_counter() - start
        return self._ready[key]

    def _compile(self, batch: tuple, shared: bool, repeats: int) -> tuple:
        """So many updates as one compiled graph, its example inputs, and a place for its noise."""

        def function(*flat: Tensor) -> Tensor:
            n = len(self._flat)
            rest = iter(flat[n + 1 :])
            args = tuple(next(rest) if torch.is_tensor(b) else b for b in batch)
            variables = self.variables.like(flat[:n])
            return _repeat(self.update, variables, flat[n], args, repeats, shared)

        inputs = [*self._flat, self.lr, *(b for b in batch if torch.is_tensor(b))]
        graph = traced(function, inputs)
        self.nodes = len(graph.graph.nodes)
        noise = None
        noisy = None if on_cuda(self.lr) else hoisted(graph)  # a captured graph draws its own
        if noisy is not None:
            graph, noise = noisy
            inputs = [*inputs, noise.values]
        return compiled(graph, inputs), inputs, noise

    def _replay(self, run: Callable, inputs: list[Tensor]) -> Replay | Captured | None:
        """One compiled update as a recording that can be repeated, where it can be recorded."""
        own = len(self._flat) + 1
        if on_cuda(self.lr):
            return Captured(run, inputs, own)
        try:
            return Replay(run, inputs, own)
        except NotReplayable:
            return None

    def _blank(self) -> Variables:
        """A copy with the optimiser's state zero: after one update it shows the gradient."""
        variables = self.variables.clone()
        for slots in variables.optim.values():
            for s in slots:
                s.zero_()
        return variables

    def _shown(self, loss: Tensor, variables: Variables) -> tuple[Tensor, list[Tensor]]:
        return loss.flatten()[0], variables.optim[self.update.optimiser.slots[0]]

    def _eagerly(self, batch: tuple, shared: bool, repeats: int) -> tuple | None:
        """Loss, gradients and noise of the eager step, which the compiled one is to have too."""
        if not self.prove:
            return None
        variables = self._blank()
        with forked(PROOF), torch.no_grad(), Recorded() as tape:
            loss = _repeat(self.update, variables, self.lr, batch, repeats, shared)
        return *self._shown(loss, variables), tape

    def _prove(
        self, run: Callable, batch: tuple, noise: Noise | None, repeats: int, expected: tuple | None
    ) -> None:
        """Hold the compiled step, from the same state on the same noise, against the eager one."""
        if expected is None:
            return
        eager_loss, eager, tape = expected
        variables = self._blank()
        extra = [] if noise is None else [tape.noise.view_as(noise.values)]
        tensors = [b for b in batch if torch.is_tensor(b)]
        with forked(PROOF), torch.no_grad():
            loss = run([*variables.flat(), self.lr, *tensors, *extra])
        loss, slots = self._shown(loss, variables)
        tolerance = 2e-4 if eager_loss.dtype == torch.float32 and not self.update.autocast else 1e-9
        tolerance = 5e-2 if self.update.autocast else tolerance
        if repeats > 1:  # updates amplify rounding; only the trend can be compared
            tolerance *= 50
        if not torch.allclose(loss, eager_loss, rtol=tolerance, atol=tolerance):
            raise TraceFailure(
                f"the compiled step's loss is {float(loss):.6g}, the eager one's "
                f"{float(eager_loss):.6g}, on the same noise"
            )
        whole = sum(float(e.square().sum()) for e in eager) ** 0.5
        for name, e, c in zip(self.variables.params, eager, slots):
            gap, size = float((e - c).norm()), float(e.norm())
            if not gap <= tolerance * (size + 0.01 * whole):
                raise TraceFailure(
                    f"the compiled step's gradient of {name!r} differs from the eager one's by "
                    f"{gap:.3g} (norm {size:.3g}), on the same noise"
                )


def _with_noise(run: Callable, noise: Noise) -> Callable:
    """Fresh noise for all updates of a call."""
    return lambda inputs: run([*inputs, noise.draw()])


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
            seen = sorted({tuple(c[0]) for c in columns})
            return (
                f"argument {i} of the step keeps changing its shape or dtype ({len(shapes)} "
                f"versions: {seen}). Pad or slice it to one shape, or use compile=False."
            )
    return "the step's arguments keep changing their shapes. Use compile=False."
