"""Several players, each with a loss and parameters of its own: simultaneous gradient steps.

A player is a prefix of parameter names ("critic.", "generator."). One update takes the gradient of
each player's loss with respect to that player's own parameters, all at the same point. It is a pure
function of (variables, learning rate, batch) like `Update`, and is compiled alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..optim import Optimiser
from ..weights import no_validation
from .update import Variables, clipped, descend

Tensors = Mapping[str, Tensor]
AVERAGE = "average."  # prefix of the running mean of a player's parameters, among the buffers


@dataclass
class GameUpdate:
    """One simultaneous gradient step of some players.

    Args:
        losses: (params, buffers, batch) -> every player's loss under the name "PLAYER_loss", and
            whatever else is to be recorded: scalars.
        players: all of them; `movers`: those whose parameters this update changes.
        optimiser: a pure one (`inference.optim`); each player has its own state.
        schedule: count of steps -> factor of the learning rate, both tensors.
        decay: of the running mean of parameters in buffers called "average.NAME".
        clip: the norm of each player's gradient is cut to this; None leaves it.
        counts: whether a step ends with this update.
        columns: what a call returns, known once it was called; the last player's loss is `shown`.
    """

    losses: Callable[[dict[str, Tensor], dict[str, Tensor], tuple], dict[str, Tensor]]
    players: Sequence[str]
    movers: Sequence[str]
    optimiser: Optimiser
    schedule: Callable[[Tensor], Tensor] | None = None
    decay: float = 0.999
    clip: float | None = None
    counts: bool = True
    autocast: bool = False
    columns: list[str] = field(default_factory=list)

    @property
    def shown(self) -> int:
        """Which column is the loss of the run."""
        return self.columns.index(f"{self.players[-1]}_loss")

    def moves(self, of_critic: int) -> list[GameUpdate]:
        """One step: so many moves of the others, the last of them together with the last player."""
        if of_critic == 1:
            return [self]
        alone = replace(self, movers=self.players[:-1], counts=False)
        return [alone] * (of_critic - 1) + [self]

    def start(self, params: Tensors, buffers: Tensors) -> Variables:
        """Copies of these tensors, and an optimiser state with one count for each player."""
        params = {k: v.detach().clone() for k, v in params.items()}
        optim = self.optimiser.init(list(params.values()))
        optim["count"] = [torch.zeros_like(optim["count"][0]) for _ in self.players]
        return Variables(
            params,
            {k: v.detach().clone() for k, v in buffers.items()},
            optim,
            torch.zeros_like(optim["count"][0]),
        )

    def __call__(self, variables: Variables, lr: Tensor, batch: tuple) -> Tensor:
        """Change `variables` in place; returns what `losses` gave, in its order: (columns,)."""
        names = list(variables.params)
        own = {p: [i for i, n in enumerate(names) if n.startswith(p + ".")] for p in self.movers}
        own = {p: index for p, index in own.items() if index}  # some have nothing to learn
        with torch.enable_grad(), no_validation():
            leaves = {k: v.detach().requires_grad_() for k, v in variables.params.items()}
            values = self.losses(leaves, variables.buffers, batch)
            grads = {
                player: torch.autograd.grad(
                    values[f"{player}_loss"],
                    [leaves[names[i]] for i in index],
                    retain_graph=True,
                    materialize_grads=True,
                )
                for player, index in own.items()
            }
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
                for name, mean in variables.buffers.items():
                    if name.startswith(AVERAGE):
                        # a plain mean at first, so that the start is forgotten
                        rate = (1 / variables.count).clamp(min=1 - self.decay).to(mean.dtype)
                        mean.add_(rate * (variables.params[name.removeprefix(AVERAGE)] - mean))
        return torch.stack([v.detach() for v in values.values()])


def module_tensors(modules: Mapping[str, nn.Module]) -> tuple[Tensors, Tensors]:
    """Parameters and buffers of several modules, each under its name and a dot."""
    params = {f"{n}.{k}": p for n, m in modules.items() for k, p in m.named_parameters()}
    return params, {f"{n}.{k}": b for n, m in modules.items() for k, b in m.named_buffers()}


def load_modules(modules: Mapping[str, nn.Module], params: Tensors, buffers: Tensors) -> None:
    """Write tensors named as `module_tensors` names them back into the modules."""
    for n, module in modules.items():
        module.load_state_dict({**under(f"{n}.", params), **under(f"{n}.", buffers)})


def as_function(module: nn.Module, prefix: str, params: Tensors, buffers: Tensors) -> Callable:
    """The module as a function, its tensors taken from those whose names begin with `prefix`."""
    tensors = {**under(prefix, params), **under(prefix, buffers)}
    return lambda *args: functional_call(module, tensors, args)


def named(prefix: str, tensors: Tensors) -> Tensors:
    """The same tensors with `prefix` before each name."""
    return {prefix + k: v for k, v in tensors.items()}


def under(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """Those tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
