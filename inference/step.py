"""One update of the parameters: loss, gradient, optimiser. Eager, or traced once and compiled.

Both steps are the same pure function. The eager one calls it; the compiled one traces it at the
ATen level (`make_fx` on fake tensors), hands the graph to inductor and never runs the pair's
Python again. Before first use it is compared with the eager one on the same noise.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.optim
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .elbo import Estimator
from .optim import Optimiser, State
from .pair import Pair, own_copy
from .trace import Recorded, TraceFailure, compiled, hoisted, traced
from .weights import no_validation

FEW = 1_024  # normals in one update below which they are drawn at once: the calls would cost more
RETRACES = 8  # compiled versions of one step before a changing shape is called a mistake


@dataclass
class Variables:
    """Everything a step changes, in place: parameters, buffers, optimiser state, step count."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optim: State
    count: Tensor  # updates made so far, ()

    @staticmethod
    def start(pair: Pair, optimiser: Optimiser) -> Variables:
        """The pair's own starting values, copied."""
        params = {k: v.clone() for k, v in pair.params.items()}
        device = next((p.device for p in params.values()), torch.device("cpu"))
        return Variables(
            params,
            {k: v.clone() for k, v in pair.buffers.items()},
            optimiser.init(list(params.values())),
            torch.zeros((), device=device),
        )

    def flat(self) -> list[Tensor]:
        """All tensors in one fixed order."""
        slots = [t for key in sorted(self.optim) for t in self.optim[key]]
        return [*self.params.values(), *self.buffers.values(), *slots, self.count]

    def like(self, tensors: Sequence[Tensor]) -> Variables:
        """The same structure over other tensors, in the order of `flat`."""
        it = iter(tensors)
        params = {k: next(it) for k in self.params}
        buffers = {k: next(it) for k in self.buffers}
        optim = {key: [next(it) for _ in self.optim[key]] for key in sorted(self.optim)}
        return Variables(params, buffers, optim, next(it))

    def clone(self) -> Variables:
        """A copy that shares nothing."""
        return self.like([t.clone() for t in self.flat()])

    def assign(self, other: Variables) -> None:
        """Copy the other's values into these tensors."""
        for mine, theirs in zip(self.flat(), other.flat()):
            mine.copy_(theirs)


@dataclass
class Update:
    """What one update computes, as a pure function of variables, rates and batch.

    Args:
        pair: the model and guide.
        estimator: whose gradient is followed.
        optimiser: what is done with it.
        divide: the loss is -bound / divide; N makes it nats per datum.
        clip: the gradient's norm is cut to this (in the loss's unit); None leaves it.
        transform: applied to the batch inside the step (dynamic binarisation).
        kwargs: keyword arguments of model and guide.
        autocast: run the pair in bfloat16 where autocast allows it.
        vary: which batch arguments have a leading axis of fits; None means one single fit.
        schedule: step count -> factor of the learning rate, both tensors.
    """

    pair: Pair
    estimator: Estimator
    optimiser: Optimiser
    divide: float = 1.0
    clip: float | None = None
    transform: Callable[[tuple], tuple] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    autocast: bool = False
    vary: tuple[int | None, ...] | None = None
    schedule: Callable[[Tensor], Tensor] | None = None

    def loss(self, params: dict, buffers: dict, count: Tensor, batch: tuple) -> tuple:
        """(loss, surrogate loss), both scalars."""
        if self.transform is not None:
            batch = self.transform(batch)
        device = count.device.type
        with (
            no_validation(),
            self.pair.bind(params, buffers),
            at_step(self.estimator, count),
            torch.autocast(device, torch.bfloat16, enabled=self.autocast),
        ):
            value, surrogate = self.estimator.value_and_surrogate(
                self.pair.model, self.pair.guide, *batch, nesting=self.pair.nesting,
                full_sizes=self.pair.full_sizes, **self.kwargs,
            )  # fmt: skip
        return -value / self.divide, -surrogate / self.divide

    def gradients(self, variables: Variables, batch: tuple) -> tuple[Tensor, list[Tensor]]:
        """The loss, () or (R,) for R fits at once, and its clipped gradient per parameter."""
        with torch.enable_grad():
            leaves = {k: p.detach().requires_grad_() for k, p in variables.params.items()}
            if self.vary is None:
                loss, surrogate = self.loss(leaves, variables.buffers, variables.count, batch)
            else:
                with _DrawnAnew():
                    loss, surrogate = torch.vmap(
                        self.loss, in_dims=(0, 0, None, self.vary), randomness="different"
                    )(leaves, variables.buffers, variables.count, batch)
                surrogate = surrogate.sum()
            if not surrogate.requires_grad:
                raise ValueError(
                    "the loss does not depend on any parameter: the pair has none, or none is "
                    "registered (pyro.module, pyro.param, or an nn.Module as the pair)."
                )
            grads = torch.autograd.grad(surrogate, list(leaves.values()), allow_unused=True)
        full = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves.values())]
        return loss.detach(), full if self.clip is None else self._clipped(full)

    def __call__(self, variables: Variables, lr: Tensor, batch: tuple) -> Tensor:
        """Change `variables` in place and return the loss: (), or (R,) for R fits at once."""
        loss, grads = self.gradients(variables, batch)
        with torch.no_grad():
            if self.schedule is not None:
                lr = lr * self.schedule(variables.count)
            old = list(variables.params.values())
            new, state = self.optimiser.update(old, grads, variables.optim, lr)
            for p, q in zip(old, new):
                p.copy_(q)
            for key, slots in state.items():
                for s, t in zip(variables.optim[key], slots):
                    s.copy_(t)
            variables.count.add_(1)
        return loss

    def _clipped(self, grads: list[Tensor]) -> list[Tensor]:
        lead = 0 if self.vary is None else 1  # each of many fits has its own norm
        squares = [g.flatten(lead).square().sum(-1) if g.dim() else g.square() for g in grads]
        norm = torch.stack(squares).sum(0).sqrt()
        factor = (self.clip / (norm + 1e-12)).clamp(max=1.0)
        return [g * factor.reshape(factor.shape + (1,) * (g.dim() - factor.dim())) for g in grads]


class _DrawnAnew(TorchFunctionMode):
    """What `vmap` refuses, said otherwise: random numbers as new tensors, not filled in place."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.data.__get__:  # Pyro's enumeration looks at shapes through it
            return args[0].detach()
        if func is Tensor.normal_ and len(args) == 1 and not kwargs:
            return torch.randn_like(args[0])
        if func is Tensor.uniform_ and not kwargs:
            low, high = args[1:] or (0.0, 1.0)
            return low + (high - low) * torch.rand_like(args[0])
        if func is Tensor.exponential_ and len(args) == 1:
            return -torch.log1p(-torch.rand_like(args[0]))
        return func(*args, **kwargs)


@contextlib.contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """Matrix products on CUDA in TF32 or in full float32 inside the block; as it was after it."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def at_step(estimator: Estimator, count: Tensor) -> Iterator[None]:
    """The estimator as it is after so many updates."""
    before = estimator.step
    estimator.step = count
    try:
        yield
    finally:
        estimator.step = before


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


class CompiledStep:
    """The same signature as `EagerStep`, without the pair's Python.

    Each shape of batch is traced, compiled and proved once.

    Attributes:
        seconds: spent on tracing and compiling so far.

    Raises:
        TraceFailure: the pair cannot be traced, compiled, or proved equal to the eager step.
        ValueError: the batch's shape has changed more than eight times.
    """

    compiled = True

    def __init__(
        self, update: Update, variables: Variables, lr: Tensor, repeats: int = 1, prove: bool = True
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
        tensors = [b for b in batch if torch.is_tensor(b)]
        inputs = [*self._flat, self.lr, *tensors]

        def function(*flat: Tensor) -> Tensor:
            n = len(self._flat)
            rest = iter(flat[n + 1 :])
            args = tuple(next(rest) if torch.is_tensor(b) else b for b in batch)
            variables = self.variables.like(flat[:n])
            return _repeat(self.update, variables, flat[n], args, self.repeats, shared)

        graph = traced(function, inputs)
        self.nodes = len(graph.graph.nodes)
        noisy = hoisted(graph, FEW if self.repeats == 1 else None)
        noise = None
        if noisy is not None:
            graph, noise = noisy
            inputs = [*inputs, noise]
        run = compiled(graph, inputs, own=len(self._flat))
        if self.prove:
            self._prove(run, batch, shared, noise)
        self._ready[key] = run if noise is None else _with_noise(run, noise)
        self.seconds += time.perf_counter() - start
        return self._ready[key]

    def _prove(self, run: Callable, batch: tuple, shared: bool, noise: Tensor | None) -> None:
        """Run both steps from the same state on the same noise; compare losses and gradients."""
        tensors = [b for b in batch if torch.is_tensor(b)]
        results = []
        for which in ("eager", "compiled"):
            variables = self.variables.clone()
            for slots in variables.optim.values():  # from zero, the state shows the gradient
                for s in slots:
                    s.zero_()
            with torch.random.fork_rng(devices=_cuda(tensors)), torch.no_grad():
                torch.manual_seed(20)
                if which == "eager":
                    with Recorded() if noise is not None else contextlib.nullcontext() as tape:
                        loss = _repeat(self.update, variables, self.lr, batch, self.repeats, shared)
                else:
                    extra = [] if noise is None else [tape.noise]
                    loss = run([*variables.flat(), self.lr, *tensors, *extra])
            slot = self.update.optimiser.slots[0]
            results.append((loss.flatten()[0], variables.optim[slot]))
        (eager_loss, eager), (loss, slots) = results
        tolerance = 2e-4 if eager_loss.dtype == torch.float32 and not self.update.autocast else 1e-9
        tolerance = 5e-2 if self.update.autocast else tolerance
        if self.repeats > 1:  # updates amplify rounding; only the trend can be compared
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


def _with_noise(run: Callable, noise: Tensor) -> Callable:
    """One draw of fresh noise for all updates of a call."""

    def call(inputs: list[Tensor]) -> Tensor:
        noise.normal_()
        return run([*inputs, noise])

    return call


def explain(pair: Any, batch: tuple, estimator: Estimator | None = None) -> str:
    """Say at length whether a pair can be compiled, and what stops it when it cannot.

    Args:
        pair: a module with methods `model` and `guide`, a tuple (model, guide), or a `Pair`.
        batch: example arguments, a tuple.
        estimator: by default `Trace()`.
    """
    from .elbo import Trace
    from .optim import Adam

    if not isinstance(pair, Pair):
        model, guide = pair if isinstance(pair, tuple) else (pair.model, pair.guide)
        pair = Pair(*own_copy(model, guide), batch)
    update = Update(pair, estimator or Trace(), Adam())
    step = CompiledStep(update, Variables.start(pair, update.optimiser), torch.tensor(1e-3))
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


def _cuda(tensors: list[Tensor]) -> list[torch.device]:
    return list({t.device for t in tensors if t.is_cuda})
