"""Independent gradients of one estimator, by `torch.vmap` or compiled; groups of parameters.

Compiled on a CPU, the kernels of one draw are recorded and repeated by a loop of C, where that can
be (`inference.graph.replay`), each thread with draws of its own; else the batch is compiled.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...elbo import Estimator
from ...graph import (
    NotReplayable,
    Program,
    Replay,
    TraceFailure,
    compiled,
    forget,
    name_of,
    program_of,
    recall,
    recorded,
    remember,
)
from ...pairs.arguments import has_rows, rows_of, take_rows
from ...pairs.gate import CheckedPair
from ...pairs.pair import Pair
from ...randomness import DrawnAnew, forked
from ...weights import no_validation

NUMBERS = {"cpu": 2**24, "cuda": 2**28}  # floats held in one batch of draws: memory is bounded
LOOPED = 2**22  # floats of the gradients that one call writes


class Gradients:
    """Independent draws of an estimator's value and gradient, R of them per call.

    Args:
        pair: the model and guide.
        estimator: whose values and gradients are drawn.
        args, kwargs: of the pair.
        params, buffers: where to evaluate; the pair's own when None.
        replicates: R; None takes what memory allows, at most `draws`.
        draws: how many are wanted in all.
        reference: draw the gradients of `estimator.reference` instead of its surrogate.
        compile: trace and compile the batch.
        rows: the arguments are all data, and each draw is of a mini-batch of so many rows, which
            every call is given; never compiled.

    Attributes:
        how: "recorded" (compiled, in a loop of C), "compiled", "batched", or "one by one".
        note: why it is not what was asked for, or None.
        slices: parameter -> its columns in the gradients.
        seconds: of each call so far.
    """

    def __init__(
        self,
        pair: Pair,
        estimator: Estimator,
        args: tuple,
        kwargs: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Tensor] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
        replicates: int | None = None,
        draws: int = 1_000,
        reference: bool = False,
        compile: bool = False,
        rows: int | None = None,
    ):
        self.pair, self.estimator = pair, estimator
        self.data, self.rows = args, rows
        self.args = args if rows is None else take_rows(args, slice(rows))
        self.kwargs, self.reference = dict(kwargs or {}), reference
        self.params = {k: v.detach() for k, v in (params or pair.params).items()}
        self.buffers = dict(pair.buffers if buffers is None else buffers)
        self.device = next(iter(self.params.values())).device
        self.slices = _columns(self.params)
        if estimator.particles > 1 and estimator.vectorized:
            pair.find_way(self.params, self.buffers, self.args, self.kwargs)
        self.replicates = 2 if replicates is None else replicates
        self.seconds: list[float] = []
        self.note: str | None = None
        self.how = "batched"
        self._batch: tuple = ()
        self._run: Callable[[], Tensor] = partial(self._function, *self.params.values())
        self._choose_batching()
        if replicates is None:
            floats = self._saved_floats() + sum(p.numel() for p in self.params.values())
            floats += 0 if rows is None else sum(a.numel() for a in self.args if torch.is_tensor(a))
            room = NUMBERS.get(self.device.type, 2**24) // floats
            self.replicates = max(1, min(draws, room))
        if compile:
            self._compile()

    def __call__(self, seed: int, batches: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values (R,) in nats and gradients of the value (R, P), with noise that follows `seed`.

        Both may be written over by the next call.

        Args:
            seed: of the noise.
            batches: the rows of each draw's mini-batch, (R, rows), where these are drawn.
        """
        torch.manual_seed(seed)
        if batches is not None:
            self.replicates = len(batches)
            self._take(batches)
        self._wait()
        start = time.perf_counter()
        out = self._run()
        self._wait()
        self.seconds.append(time.perf_counter() - start)
        return out[:, 0], out[:, 1:]

    @property
    def milliseconds(self) -> float:
        """Median time of one gradient, when drawn in such batches."""
        return 1e3 * statistics.median_high(self.seconds[1:] or self.seconds) / self.replicates

    def _take(self, batches: Tensor) -> None:
        index, size = batches.to(self.device), rows_of(self.data)
        self._batch = tuple(a[index] if has_rows(a, size) else a for a in self.data)

    def _objective(
        self, params: dict[str, Tensor], args: tuple | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the surrogate and the value."""
        pair, estimator = self.pair, self.estimator
        given = (pair.model, pair.guide, *(self.args if args is None else args))
        known = {"nesting": pair.nesting, "full_sizes": pair.full_sizes}
        options = {**known, "vectorized": pair.way or True, **self.kwargs}
        with no_validation(), pair.bind(params, self.buffers):
            if self.reference:
                surrogate = estimator.reference(*given, **options)
                return surrogate, surrogate.detach()
            value, surrogate = estimator.value_and_surrogate(*given, **options)
        return surrogate, value

    def _function(self, *flat: Tensor) -> Tensor:
        """Values and gradients side by side: (R, 1 + P)."""
        params = dict(zip(self.params, flat))
        count = torch.zeros(self.replicates, device=self.device)
        batch = self._batch[: len(self.args)]
        own = tuple(0 if b is not a else None for a, b in zip(self.data, batch))

        def one(_: Tensor, args: tuple) -> Tensor:
            grads, value = torch.func.grad(self._objective, has_aux=True)(params, args or None)
            return torch.cat([value.reshape(1), *(g.reshape(-1) for g in grads.values())])

        with DrawnAnew():
            return torch.vmap(one, in_dims=(0, own), randomness="different")(count, batch)

    def _row(self, *flat: Tensor, args: tuple | None = None) -> Tensor:
        """One value and its gradient: (1 + P,)."""
        with torch.enable_grad():
            leaves = {k: p.detach().requires_grad_() for k, p in zip(self.params, flat)}
            surrogate, value = self._objective(leaves, args)
            grads = torch.autograd.grad(surrogate, list(leaves.values()), materialize_grads=True)
        return torch.cat([value.detach().reshape(1), *(g.reshape(-1) for g in grads)])

    def _one_by_one(self) -> Tensor:
        def batch(i: int) -> tuple | None:
            own = zip(self.data, self._batch)
            return tuple(b if b is a else b[i] for a, b in own) or None

        rows = range(self.replicates)
        return torch.stack([self._row(*self.params.values(), args=batch(i)) for i in rows])

    def _saved_floats(self) -> int:
        """Count the floats autograd saves per draw, without parameters and data."""
        shared = {t.data_ptr() for t in (*self.params.values(), *self.args) if torch.is_tensor(t)}
        sizes: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in shared:
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        leaves = {k: p.clone().requires_grad_() for k, p in self.params.items()}
        shared |= {p.data_ptr() for p in leaves.values()}
        try:
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                self._objective(leaves)
        except RuntimeError as error:  # an objective that takes gradients itself
            if "saved tensor hooks" not in str(error):
                raise
            own = sum(t.numel() for t in (*leaves.values(), *self.args) if torch.is_tensor(t))
            return 8 * own * self.estimator.particles
        return sum(sizes.values())

    def _choose_batching(self) -> None:
        """Run a batch of two; a pair that `vmap` cannot batch is run draw by draw."""
        wanted, self.replicates = self.replicates, min(2, self.replicates)
        if self.rows is not None:
            self._take(torch.arange(self.rows).expand(self.replicates, -1))
        try:
            self._run()
        except ValueError:
            raise
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "")[:160]
            self.note = f"draws one by one: {type(error).__name__}: {first}"
            self.how, self._run = "one by one", self._one_by_one
            self._run()
        self.replicates = wanted

    def _compile(self) -> None:
        if self.device.type == "cpu":
            with suppress(NotReplayable, TraceFailure):  # the batch may still be compiled
                return self._record()
        if self.how == "batched":
            inputs = list(self.params.values())
            try:
                with forked():
                    tape = recorded(self._function, inputs, outside=False)
                inputs += tape.constants
                run = compiled(tape).tried(inputs)
            except TraceFailure as failure:
                self.note = f"not compiled: {failure}"
                return
            self._run, self.how = partial(run, inputs), "compiled"

    def _record(self) -> None:
        """Repeat the kernels of one draw in a loop of C, proved by one draw on the same noise."""
        own, threads = list(self.params.values()), torch.get_num_threads()
        with forked():
            tape = recorded(self._row, own)
        one = tape.noise()
        if one is None:
            raise NotReplayable("it draws something else than normals and uniforms")
        torch.set_num_threads(1)  # inside a draw; the draws are shared out
        try:
            name = name_of(tape.key)
            program = recall(name)
            if not isinstance(program, Program):
                program = program_of(compiled(tape))
            loops = [Replay(program, len(own), tape.constants) for _ in range(threads)]
        finally:
            torch.set_num_threads(threads)
        with forked():
            expected = self._row(*own)
        with forked():
            got = loops[0](own, [one.draw()])
        scale = float(expected.abs().max())
        if not torch.allclose(got, expected, rtol=1e-3, atol=1e-5 * max(1.0, scale)):
            forget(name)
            raise NotReplayable("another gradient than the eager one on the same noise")
        remember(name, program)
        self.replicates = max(1, min(self.replicates, LOOPED // len(expected)))
        pool = ThreadPoolExecutor(threads)

        def drawn() -> Tensor:
            rows = one.draw(self.replicates).reshape(self.replicates, -1)
            shares = [s for s in zip(loops, rows.tensor_split(threads)) if len(s[1])]
            return torch.cat(list(pool.map(lambda s: s[0](own, [s[1]], len(s[1])), shares)))

        self._run, self.how, self.note = drawn, "recorded", None

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Group:
    """Some columns of a gradient: a half ("model", "guide", "shared"), or a module of one."""

    name: str
    half: str
    columns: Tensor


def halves_of(pair: CheckedPair) -> dict[str, str]:
    """Parameter -> "model", "guide" or "shared"; those that change nothing are left out.

    A parameter belongs to the half that its value changes: the guide's draws and densities, or
    the model's densities at fixed draws. Those that change both are "shared".
    """
    leaves = {k: p.detach().requires_grad_() for k, p in pair.params.items()}
    with forked(), torch.enable_grad(), replace(pair, params=leaves).bound():
        drawn = pair.weights(model_values=lambda _, value: value.detach())
    draws = [t.value for t in drawn.guide.values() if torch.is_tensor(t.value)]
    in_model = _reaching([t.log_prob for t in drawn.model.values()], leaves)
    in_guide = _reaching([*draws, *(t.log_prob for t in drawn.guide.values())], leaves)
    half = dict.fromkeys(in_model, "model") | dict.fromkeys(in_guide, "guide")
    half |= dict.fromkeys(in_model & in_guide, "shared")
    return {k: half[k] for k in pair.params if k in half}


def groups_of(pair: CheckedPair) -> list[Group]:
    """The halves first, then every module of each half, in the order of the parameters."""
    half_of = halves_of(pair)
    columns = {n: torch.arange(s.start, s.stop) for n, s in _columns(pair.params).items()}
    members: dict[tuple[str, str], list[Tensor]] = {}  # (half, module), the half as the first
    halves = [h for h in ("model", "guide", "shared") if h in half_of.values()]
    for half in halves:
        members[half, half] = [columns[n] for n, h in half_of.items() if h == half]
    for name, half in half_of.items():
        module = name.rpartition(".")[0] or name
        if module != half:  # such a module is the half, and has its columns already
            members.setdefault((half, module), []).append(columns[name])
    modules = [module for half, module in members if half != module]
    return [
        Group(f"{module} ({half})" if modules.count(module) > 1 else module, half, torch.cat(parts))
        for (half, module), parts in members.items()
    ]


def _reaching(outputs: list[Tensor], leaves: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters that some output depends on."""
    sums = [o.sum() for o in outputs if o.requires_grad]
    if not sums:
        return set()
    grads = torch.autograd.grad(sums, list(leaves.values()), allow_unused=True)
    return {name for name, g in zip(leaves, grads) if g is not None}


def _columns(params: Mapping[str, Tensor]) -> dict[str, slice]:
    """Parameter -> its place among all, side by side."""
    ends = list(itertools.accumulate((p.numel() for p in params.values()), initial=0))
    return {name: slice(a, b) for name, (a, b) in zip(params, itertools.pairwise(ends))}
