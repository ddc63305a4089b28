"""Many independent gradients of one estimator at once: batched by `torch.vmap`, or compiled.

Compiled on a CPU, the kernels of one draw are recorded and repeated by a loop of C, where that can
be (`inference.graph.replay`), each thread with draws of its own; else the batch is compiled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ...elbo import Estimator
from ...graph import NotReplayable, Replay, TraceFailure, compiled, hoisted, traced
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
    ):
        self.pair, self.estimator, self.args = pair, estimator, args
        self.kwargs, self.reference = dict(kwargs or {}), reference
        self.params = {k: v.detach() for k, v in (params or pair.params).items()}
        self.buffers = dict(pair.buffers if buffers is None else buffers)
        self.slices, end = {}, 0
        for name, p in self.params.items():
            self.slices[name] = slice(end, end + p.numel())
            end += p.numel()
        self.replicates = 2 if replicates is None else replicates
        self.seconds: list[float] = []
        self.note: str | None = None
        self.how = "batched"
        self._run: Callable[[], Tensor] = self._batched
        self._choose_batching()
        if replicates is None:
            room = NUMBERS.get(self._device().type, 2**24) // (end + self._saved_floats())
            self.replicates = max(1, min(draws, room))
        if compile:
            self._compile()

    def __call__(self, seed: int) -> tuple[Tensor, Tensor]:
        """Values (R,) in nats and gradients of the value (R, P), with noise that follows `seed`.

        Both may be written over by the next call.
        """
        torch.manual_seed(seed)
        self._wait()
        start = time.perf_counter()
        out = self._run()
        self._wait()
        self.seconds.append(time.perf_counter() - start)
        return out[:, 0], out[:, 1:]

    @property
    def milliseconds(self) -> float:
        """Median time of one gradient, when drawn in such batches."""
        ordered = sorted(self.seconds[1:] or self.seconds)
        return 1e3 * ordered[len(ordered) // 2] / self.replicates

    def _objective(self, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the surrogate and the value."""
        with no_validation(), self.pair.bind(params, self.buffers):
            pair, options = self.pair, {"nesting": self.pair.nesting, **self.kwargs}
            options["full_sizes"] = self.pair.full_sizes
            if self.reference:
                surrogate = self.estimator.reference(pair.model, pair.guide, *self.args, **options)
                return surrogate, surrogate.detach()
            value, surrogate = self.estimator.value_and_surrogate(
                pair.model, pair.guide, *self.args, **options
            )
        return surrogate, value

    def _batched(self) -> Tensor:
        return self._function(*self.params.values())

    def _function(self, *flat: Tensor) -> Tensor:
        params = dict(zip(self.params, flat))
        count = torch.zeros(self.replicates, device=self._device())

        def one(_: Tensor) -> Tensor:
            grads, value = torch.func.grad(self._objective, has_aux=True)(params)
            return torch.cat([value.reshape(1), *(g.reshape(-1) for g in grads.values())])

        with DrawnAnew():
            return torch.vmap(one, randomness="different")(count)

    def _row(self, *flat: Tensor) -> Tensor:
        """One value and its gradient: (1 + P,)."""
        with torch.enable_grad():
            leaves = {k: p.detach().requires_grad_() for k, p in zip(self.params, flat)}
            surrogate, value = self._objective(leaves)
            grads = torch.autograd.grad(surrogate, list(leaves.values()), materialize_grads=True)
        return torch.cat([value.detach().reshape(1), *(g.reshape(-1) for g in grads)])

    def _one_by_one(self) -> Tensor:
        return torch.stack([self._row(*self.params.values()) for _ in range(self.replicates)])

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
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            self._objective(leaves)
        return sum(sizes.values())

    def _device(self) -> torch.device:
        return next(iter(self.params.values())).device

    def _choose_batching(self) -> None:
        """Run a batch of two; a pair that `vmap` cannot batch is run draw by draw."""
        wanted, self.replicates = self.replicates, min(2, self.replicates)
        try:
            self._run()
        except ValueError:
            raise
        except Exception as error:
            first = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
            self.note = f"draws one by one: {type(error).__name__}: {first}"
            self.how, self._run = "one by one", self._one_by_one
            self._run()
        self.replicates = wanted

    def _compile(self) -> None:
        if self._device().type == "cpu":
            try:
                return self._record()
            except (NotReplayable, TraceFailure):
                pass  # the batch may still be compiled
        if self.how == "batched":
            inputs = list(self.params.values())
            try:
                run = compiled(traced(self._function, inputs), inputs)
            except TraceFailure as failure:
                self.note = f"not compiled: {failure}"
                return
            self._run, self.how = lambda: run(inputs), "compiled"

    def _record(self) -> None:
        """Repeat the kernels of one draw in a loop of C, proved by one draw on the same noise."""
        inputs = list(self.params.values())
        found = hoisted(traced(self._row, inputs))
        if found is None:
            raise NotReplayable("it draws something else than normals and uniforms")
        graph, one = found
        inputs.append(one.values)
        own, threads = len(inputs) - 1, torch.get_num_threads()
        with _one_thread():  # inside a draw; the draws are shared out
            run = compiled(graph, inputs)
            loops = [Replay(run, inputs, own=own) for _ in range(threads)]
        with forked():
            expected = self._row(*inputs[:own])
        got = loops[0]([*inputs[:own], one.draw()])
        scale = float(expected.abs().max())
        if not torch.allclose(got, expected, rtol=1e-3, atol=1e-5 * max(1.0, scale)):
            raise NotReplayable("another gradient than the eager one on the same noise")
        self.replicates = max(1, min(self.replicates, LOOPED // len(expected)))
        noise = one * self.replicates
        out = expected.new_empty(self.replicates, len(expected))  # written again at every call
        pool = ThreadPoolExecutor(threads)

        def drawn() -> Tensor:
            rows = noise.draw().reshape(self.replicates, -1)
            parts = zip(loops, rows.tensor_split(threads), out.tensor_split(threads))
            shares = [(loop, r, o) for loop, r, o in parts if len(r)]
            list(pool.map(lambda s: s[0]([*inputs[:own], s[1]], len(s[1]), s[2]), shares))
            return out

        self._run, self.how, self.note = drawn, "recorded", None

    def _wait(self) -> None:
        if self._device().type == "cuda":
            torch.cuda.synchronize()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compile with one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
