"""One update as a pure function, and the variables that it changes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..elbo import Estimator
from ..optim import Optimiser, State
from ..pairs.arguments import rows_of, take_rows
from ..pairs.options import one_of
from ..pairs.pair import Pair
from ..randomness import DrawnAnew
from ..weights import no_validation
from .ranks import Ranks


def even_parts(rows: int, most: int) -> list[slice]:
    """As few parts as have at most so many rows each, of sizes that differ by one at most."""
    parts = -(-rows // max(1, most))
    return [slice(i * rows // parts, (i + 1) * rows // parts) for i in range(parts)]


def row(batch: tuple, i: int) -> tuple:
    """One update's batch, of several with a leading axis."""
    return tuple(b[i] if torch.is_tensor(b) else b for b in batch)


@dataclass
class Variables:
    """Everything a step changes, in place: parameters, buffers, optimiser state, step count."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optim: State
    count: Tensor  # updates made so far, (), an integer: a float32 would stall at 2^24

    @staticmethod
    def start(pair: Pair, optimiser: Optimiser) -> Variables:
        """The pair's own starting values, copied."""
        params = {k: v.clone() for k, v in pair.params.items()}
        device = next((p.device for p in params.values()), torch.device("cpu"))
        return Variables(
            params,
            {k: v.clone() for k, v in pair.buffers.items()},
            optimiser.init(list(params.values())),
            torch.zeros((), device=device, dtype=torch.int64),
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
            if not any(step == 0 and n > 1 for step, n in zip(mine.stride(), mine.shape)):
                mine.copy_(theirs)  # an expanded one is only read


@dataclass
class Update:
    """One update: a pure function of variables, learning rate and batch.

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
        schedule: step count (a float) -> factor of the learning rate, both tensors.
        chunk: most rows that go through the pair at once; None is all.
        skip: leave everything as it is where the loss or what follows from it is not finite; the
            loss is then NaN.
        ranks: the processes that make the update together, each from its batch, and `share`, the
            weight of this one's.
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
    chunk: int | None = None
    skip: bool = False
    ranks: Ranks | None = None
    share: float = 1.0
    columns: ClassVar[tuple[str, ...]] = ("loss",)  # what a call returns
    shown: ClassVar[int] = 0  # which of them is the loss

    def sizes(self, batch: tuple) -> set[float]:
        """Return the factors of the loss that follow from the number of data: N and N/B."""
        known = {*self.kwargs.values(), *self.pair.full_sizes.values(), self.divide} - {1.0}
        rows = rows_of(batch) or 1
        parts = {p.stop - p.start for p in even_parts(rows, self.chunk or rows)}
        return {n / b for n in known for b in (1, *parts) if n != b}

    def loss(self, params: dict, buffers: dict, count: Tensor, batch: tuple) -> tuple:
        """(loss, surrogate loss), both scalars."""
        if self.transform is not None:
            batch = self.transform(batch)
        device = count.device.type
        with (
            no_validation(),
            self.pair.bind(params, buffers),
            self.pair.training(),
            at_step(self.estimator, count.to(torch.get_default_dtype())),
            torch.autocast(device, torch.bfloat16, enabled=self.autocast),
        ):
            value, surrogate = self.estimator.value_and_surrogate(
                self.pair.model, self.pair.guide, *batch, nesting=self.pair.nesting,
                full_sizes=self.pair.full_sizes, vectorized=self.pair.way or True, **self.kwargs,
            )  # fmt: skip
        return -value / self.divide, -surrogate / self.divide

    def gradients(self, variables: Variables, batch: tuple) -> tuple[Tensor, list[Tensor]]:
        """The loss, () or (R,) for R fits at once, and its clipped gradient per parameter."""
        loss: Any
        rows = rows_of(batch)
        if self.chunk is None or self.chunk >= rows:
            loss, grads = self._gradients(variables, batch)
        else:  # each part estimates the whole gradient: weighted by their rows, they sum to it
            loss, grads = 0.0, [torch.zeros_like(p) for p in variables.params.values()]
            for part in even_parts(rows, self.chunk):
                share = (part.stop - part.start) / rows
                more, add = self._gradients(variables, take_rows(batch, part, rows))
                loss, grads = loss + share * more, [g + share * a for g, a in zip(grads, add)]
        if self.ranks is not None:
            with torch.no_grad():
                loss, *grads = self.ranks.sums([loss, *grads], self.share)
        if self.clip is not None:
            grads = clipped(grads, self.clip, 0 if self.vary is None else 1)
        return loss, grads

    def _gradients(self, variables: Variables, batch: tuple) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            leaves = {k: p.detach().requires_grad_() for k, p in variables.params.items()}
            if self.vary is None:
                loss, surrogate = self.loss(leaves, variables.buffers, variables.count, batch)
            else:
                with DrawnAnew():
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
        return loss.detach(), full

    def __call__(self, variables: Variables, lr: Tensor, batch: tuple) -> Tensor:
        """Change `variables` in place and return the loss: (), or (R,) for R fits at once."""
        before = [t.clone() for t in variables.flat()] if self.skip else []
        loss, grads = self.gradients(variables, batch)
        with torch.no_grad():
            if self.schedule is not None:
                lr = lr * self.schedule(variables.count.to(lr.dtype))
            descend(self.optimiser, list(variables.params.values()), grads, variables.optim, lr)
            if self.skip:
                now = variables.flat()
                good = torch.stack([t.isfinite().all() for t in (loss, *now)]).all()
                for new, old in zip(now, before):
                    new.copy_(torch.where(good, new, old))
                loss = torch.where(good, loss, torch.full_like(loss, math.nan))
            variables.count.add_(1)
        return loss


def descend(
    optimiser: Optimiser, params: list[Tensor], grads: list[Tensor], state: State, lr: Tensor
) -> None:
    """Change parameters and the optimiser's state in place."""
    new, after = optimiser.update(params, grads, state, lr)
    for p, q in zip(params, new):
        p.copy_(q)
    for key, slots in after.items():
        for s, t in zip(state[key], slots):
            s.copy_(t)


def clipped(grads: list[Tensor], norm: float, lead: int = 0) -> list[Tensor]:
    """A gradient cut to a norm; with `lead` = 1, that of each of many fits to its own."""
    squares = [g.reshape(*g.shape[:lead], -1).square().sum(-1) for g in grads]
    factor = (norm / (torch.stack(squares).sum(0).sqrt() + 1e-12)).clamp(max=1.0)
    return [g * factor.reshape(factor.shape + (1,) * (g.dim() - factor.dim())) for g in grads]


def schedule_of(
    schedule: Any, steps: int, device: torch.device | None = None
) -> Callable[[Tensor], Tensor] | None:
    """A schedule as a function of the step count; None is constant.

    The number of steps is a tensor on the parameters' device: another number is no other graph.
    """
    if callable(schedule):
        return schedule
    if schedule == "constant":
        return None
    end = torch.tensor(float(steps), device=device)
    if schedule == "linear":
        return lambda count: (1 - count / end).clamp(min=0.0)
    one_of("schedule", schedule, ("constant", "linear", "cosine"))
    return lambda count: 0.5 * (1 + torch.cos(math.pi * (count / end).clamp(max=1.0)))


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
