"""Several players, each with a loss and parameters of its own: simultaneous gradient steps.

A player is a prefix of parameter names ("critic.", "generator."). One update takes the gradient of
each player's loss with respect to that player's own parameters, all at the same point. It is a pure
function of (variables, learning rate, batch) like `Update`, and is compiled alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..optim import Optimiser
from ..pairs.pair import Pair
from ..weights import no_validation
from .run import FittedPair
from .update import Variables, clipped, descend

Tensors = Mapping[str, Tensor]
AVERAGE = "average"  # prefix of the running mean of a player's parameters, among the buffers


@dataclass
class GameUpdate:
    """One simultaneous gradient step of some players.

    Args:
        losses: (params, buffers, batch) -> every player's loss under the name "PLAYER_loss", and
            whatever else is to be recorded: scalars.
        players: all of them; `movers`: those whose parameters this update changes.
        optimiser: a pure one (`inference.optim`); each player has its own state.
        schedule: count of steps -> factor of the learning rate, both tensors.
        decay: of the running mean of the last player's parameters, which `start` adds to the
            buffers as "average.NAME"; 0 keeps none.
        clip: the norm of each player's gradient is cut to this; None leaves it.
        counts: whether a step ends with this update.
        columns: what a call returns, known once it was called; the last player's loss is `shown`.
    """

    losses: Callable[[dict[str, Tensor], dict[str, Tensor], tuple], dict[str, Tensor]]
    players: Sequence[str]
    movers: Sequence[str]
    optimiser: Optimiser
    schedule: Callable[[Tensor], Tensor] | None = None
    decay: float = 0.0
    clip: float | None = None
    counts: bool = True
    autocast: bool = False
    columns: list[str] = field(default_factory=list)

    @property
    def shown(self) -> int:
        """The index of the column that is the loss of the run."""
        return self.columns.index(f"{self.players[-1]}_loss")

    def sizes(self, batch: tuple) -> set[float]:
        """Return the factors of the loss that follow from the number of data: none."""
        return set()

    def moves(self, of_critic: int) -> list[GameUpdate]:
        """One step: so many moves of the others, the last of them together with the last player."""
        if of_critic == 1:
            return [self]
        alone = replace(self, movers=self.players[:-1], counts=False)
        return [alone] * (of_critic - 1) + [self]

    def start(self, params: Tensors, buffers: Tensors) -> Variables:
        """Copies of these tensors, and an optimiser state with one count for each player."""
        last = {k: p for k, p in params.items() if k.startswith(f"{self.players[-1]}.")}
        buffers = {**buffers, **(named(AVERAGE, last) if self.decay else {})}
        params, buffers = (
            {k: v.detach().clone() for k, v in tensors.items()} for tensors in (params, buffers)
        )
        optim = self.optimiser.init(list(params.values()))
        (count,) = optim["count"]
        optim["count"] = [count.clone() for _ in self.players]
        return Variables(params, buffers, optim, count)

    def __call__(self, variables: Variables, lr: Tensor, batch: tuple) -> Tensor:
        """Change `variables` in place; returns what `losses` gave, in its order: (columns,)."""
        names = list(variables.params)
        own = {p: [i for i, n in enumerate(names) if n.startswith(p + ".")] for p in self.movers}
        own = {p: index for p, index in own.items() if index}  # some have nothing to learn
        with torch.enable_grad(), no_validation():
            leaves = {k: v.detach().requires_grad_() for k, v in variables.params.items()}
            values = self.losses(leaves, variables.buffers, batch)
            grads = {
                p: torch.autograd.grad(values[f"{p}_loss"], [leaves[names[i]] for i in index],
                                       retain_graph=True, materialize_grads=True)
                for p, index in own.items()
            }  # fmt: skip
        self.columns[:] = values
        with torch.no_grad():
            if self.schedule is not None:
                lr = lr * self.schedule(variables.count.to(lr.dtype))
            optim = variables.optim
            slots = [s for s in optim if s != "count"]
            for player, index in own.items():
                count = [optim["count"][list(self.players).index(player)]]
                params = [variables.params[names[i]] for i in index]
                state = {**{s: [optim[s][i] for i in index] for s in slots}, "count": count}
                gradient = list(grads[player])
                if self.clip is not None:
                    gradient = clipped(gradient, self.clip)
                descend(self.optimiser, params, gradient, state, lr)
            if self.counts:
                variables.count.add_(1)
                for name, mean in under(AVERAGE, variables.buffers).items():
                    # a plain mean at first, so that the start is forgotten
                    rate = (1 / variables.count).clamp(min=1 - self.decay).to(mean.dtype)
                    mean.add_(rate * (variables.params[name] - mean))
        return torch.stack([v.detach() for v in values.values()])


@dataclass(kw_only=True, repr=False)
class PlayedPair(FittedPair):
    """A pair that was trained as one of several players.

    Attributes:
        critic: the trained critic.
        is_bound: False. What a critic estimates says nothing sure of log p(x).
    """

    player: ClassVar[str]  # the pair's name
    critic: nn.Module
    is_bound: bool = False

    def kept(self) -> dict[str, Tensor]:
        """All parameters, and the running means of the last player's, if any."""
        means = named(AVERAGE, under(AVERAGE, self.variables.buffers))
        return {**self.variables.params, **means}

    @property
    def state(self) -> dict[str, Tensor]:
        """The pair's parameters that are kept: their running means, if any."""
        return self.own(self.final)

    def own(self, tensors: Tensors) -> dict[str, Tensor]:
        """The pair's parameters among these: their running means, if any."""
        return under(f"{AVERAGE}.{self.player}", tensors) or under(self.player, tensors)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The pair's buffers."""
        return under(self.player, self.variables.buffers)


class Players:
    """Modules and pairs, each under a name, with all their tensors together.

    Attributes:
        params, buffers: the tensors, each called "PLAYER.ITS NAME".
    """

    def __init__(self, **parts: nn.Module | Pair):
        self.parts: dict[str, Any] = parts
        self.params: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for name, part in parts.items():
            if isinstance(part, Pair):
                params, buffers = part.params, part.buffers
            else:
                params, buffers = dict(part.named_parameters()), dict(part.named_buffers())
            self.params |= named(name, params)
            self.buffers |= named(name, buffers)

    def function(self, name: str, params: Tensors, buffers: Tensors) -> Callable:
        """A module as a function, its tensors taken from these."""
        tensors = {**under(name, params), **under(name, buffers)}
        return lambda *args: functional_call(self.parts[name], tensors, args)

    def bind(self, name: str, params: Tensors, buffers: Tensors) -> AbstractContextManager:
        """A context in which a pair has its parameters and buffers from these."""
        return self.parts[name].bind(under(name, params), under(name, buffers))

    def write_back(self, params: Tensors, buffers: Tensors) -> None:
        """Copy values into the modules; a pair is written back by its run."""
        for name, part in self.parts.items():
            if isinstance(part, nn.Module):
                part.load_state_dict({**under(name, params), **under(name, buffers)})


def named(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The same tensors with `prefix` and a dot before each name."""
    return {f"{prefix}.{k}": v for k, v in tensors.items()}


def under(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """Those tensors whose names begin with `prefix` and a dot, without it."""
    prefix += "."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
