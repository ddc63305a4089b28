"""Optimisers as pure functions, so that a step can be traced with its update inside.

Each has `init(params)`, a dictionary of lists of tensors, and `update(params, grads, state, lr)`
which returns new parameters and new state. Learning rate and step count are tensors: a schedule
never retraces. Their numbers are those of the `torch.optim` (and `pyro.optim`) classes named alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

State = dict[str, list[Tensor]]
Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Optimiser:
    """An optimiser of ours: it has a learning rate that `fit` may schedule."""

    lr: float = 1e-3

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr: expected a positive learning rate, got {self.lr}.")

    slots: ClassVar[tuple[str, ...]] = ()

    def init(self, params: Tensors) -> State:
        """Zero state: a step count and one tensor per slot and parameter."""
        state: State = {s: [torch.zeros_like(p) for p in params] for s in self.slots}
        if params:
            state["count"] = [torch.zeros((), device=params[0].device, dtype=torch.int64)]
        return state

    def update(
        self, params: Tensors, grads: Tensors, state: State, lr: Tensor
    ) -> tuple[list[Tensor], State]:
        """New parameters and new state."""
        raise NotImplementedError


@dataclass(frozen=True)
class Adam(Optimiser):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).

    `weight_decay` λ adds λθ to the gradient.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    slots: ClassVar[tuple[str, ...]] = ("mean", "square")

    def update(self, params: Tensors, grads: Tensors, state: State, lr: Tensor) -> tuple:
        """New parameters and new state."""
        b1, b2 = self.betas
        count = state["count"][0] + 1
        # m̂ / (√v̂ + ε), with both corrections folded into the step size and ε
        debias = torch.sqrt(_one_minus_power(b2, count, lr))
        rate = computed_once(lr * debias / _one_minus_power(b1, count, lr))
        floor = computed_once(self.eps * debias)
        new, means, squares = [], [], []
        for p, g, m, v in zip(params, grads, state["mean"], state["square"]):
            g = self._gradient(p, g, lr)
            m = m + (1 - b1) * (g - m)
            v = b2 * v + (1 - b2) * g * g
            step = rate.to(p.dtype) * m / (v.sqrt() + floor.to(p.dtype))
            new.append(self._decayed(p, lr) - step)
            means.append(m)
            squares.append(v)
        return new, {"mean": means, "square": squares, "count": [count]}

    def _gradient(self, p: Tensor, g: Tensor, lr: Tensor) -> Tensor:
        return g + self.weight_decay * p if self.weight_decay else g

    def _decayed(self, p: Tensor, lr: Tensor) -> Tensor:
        return p


def _one_minus_power(base: float, count: Tensor, like: Tensor) -> Tensor:
    """1 − base^count without cancellation, in the dtype of `like`.

    1 − 0.999 in float32 keeps three digits: an update would depend on whose power function it is.
    """
    if base == 0:
        return torch.ones_like(like)
    return -torch.expm1(math.log(base) * count.to(like.dtype))


def computed_once(scalar: Tensor) -> Tensor:
    """The same number, kept by the compiler in memory.

    Inductor writes a formula of scalars into every loop that uses its value: two powers for each
    vector of parameters, more than all the rest of the update. The result of a reduction it stores.
    """
    return scalar.expand(16).amax()


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    weight_decay: float = 0.01

    def _gradient(self, p: Tensor, g: Tensor, lr: Tensor) -> Tensor:
        return g

    def _decayed(self, p: Tensor, lr: Tensor) -> Tensor:
        return p * (1 - lr * self.weight_decay).to(p.dtype)


@dataclass(frozen=True)
class AveragedAdam(AdamW):
    """AdamW that also keeps a running mean of the parameters, in the slot "average".

    The mean is plain over the first 1 / (1 − decay) steps, so that the start is forgotten, and
    exponential from then on (Polyak & Juditsky 1992; as in Ho et al. 2020, arXiv:2006.11239).
    """

    weight_decay: float = 0.0
    decay: float = 0.999
    slots: ClassVar[tuple[str, ...]] = ("mean", "square", "average")

    def update(self, params: Tensors, grads: Tensors, state: State, lr: Tensor) -> tuple:
        """New parameters and new state."""
        new, after = super().update(params, grads, state, lr)
        rate = (1 / after["count"][0].to(lr.dtype)).clamp(min=1 - self.decay)
        average = [m + rate.to(m.dtype) * (p - m) for m, p in zip(state["average"], new)]
        return new, {**after, "average": average}


@dataclass(frozen=True)
class ClippedAdam(Adam):
    """Adam with every gradient entry clipped to [-clip, clip] and lr decayed by `lrd` a step.

    As `pyro.optim.ClippedAdam`.
    """

    clip: float = 10.0
    lrd: float = 1.0

    def update(self, params: Tensors, grads: Tensors, state: State, lr: Tensor) -> tuple:
        """New parameters and new state."""
        if self.lrd != 1.0:
            lr = lr * torch.pow(self.lrd, (state["count"][0] + 1).to(lr.dtype))
        return super().update(params, [g.clamp(-self.clip, self.clip) for g in grads], state, lr)


@dataclass(frozen=True)
class SGD(Optimiser):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD` (no dampening)."""

    lr: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def update(self, params: Tensors, grads: Tensors, state: State, lr: Tensor) -> tuple:
        """New parameters and new state."""
        velocity = [self.momentum * v + g for v, g in zip(state["velocity"], grads)]
        step = velocity
        if self.nesterov:
            step = [g + self.momentum * v for g, v in zip(grads, velocity)]
        new = [p - lr.to(p.dtype) * s for p, s in zip(params, step)]
        return new, {"velocity": velocity, "count": [state["count"][0] + 1]}


@dataclass(frozen=True)
class RMSprop(Optimiser):
    """RMSprop (Tieleman & Hinton 2012), as `torch.optim.RMSprop` without momentum."""

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    slots: ClassVar[tuple[str, ...]] = ("square",)

    def update(self, params: Tensors, grads: Tensors, state: State, lr: Tensor) -> tuple:
        """New parameters and new state."""
        square = [self.alpha * v + (1 - self.alpha) * g * g for v, g in zip(state["square"], grads)]
        new = [
            p - lr.to(p.dtype) * g / (v.sqrt() + self.eps) for p, g, v in zip(params, grads, square)
        ]
        return new, {"square": square, "count": [state["count"][0] + 1]}
