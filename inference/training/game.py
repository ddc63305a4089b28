"""Players with a loss each, moving at once: the step and the loop of adversarial training.

A player is a prefix of parameter names ("critic.", "generator."). One update takes the gradient of
each player's loss with respect to that player's own parameters, all at the same point. It is a pure
function of (variables, learning rate, batch) like `Update`, and is compiled alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..graph import TraceFailure
from ..optim import Optimiser
from ..randomness import forked
from ..weights import no_validation
from .fitting import WORTH_COMPILING, Batches
from .progress import Progress
from .run import History
from .steps import CompiledStep, EagerStep
from .update import Update, Variables

Tensors = Mapping[str, Tensor]
AVERAGE = "average."  # prefix of the running mean of a player's parameters, among the buffers


@dataclass
class GameUpdate:
    """One move of some players.

    Args:
        losses: (params, buffers, batch) -> every player's loss under the name "PLAYER_loss", and
            whatever else is to be recorded: scalars.
        players: all of them; `movers`: those whose parameters this update changes.
        optimiser: a pure one (`inference.optim`); each player has its own state.
        steps: the learning rate falls to zero along a cosine over so many moves of the last
            player; None keeps it.
        decay: of the running mean of parameters in buffers called "average.NAME".
    """

    losses: Callable[[dict[str, Tensor], dict[str, Tensor], tuple], dict[str, Tensor]]
    players: Sequence[str]
    movers: Sequence[str]
    optimiser: Optimiser
    steps: int | None = None
    decay: float = 0.999
    autocast: bool = False

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
        own = {p: index for p, index in own.items() if index}  # a fixed player just stands there
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
        with torch.no_grad():
            if self.steps is not None:
                share = (variables.count / self.steps).clamp(max=1.0)
                lr = lr * 0.5 * (1 + torch.cos(math.pi * share))
            optim = variables.optim
            slots = [s for s in optim if s != "count"]
            for player, index in own.items():
                count = [optim["count"][list(self.players).index(player)]]
                params = [variables.params[names[i]] for i in index]
                state = {**{s: [optim[s][i] for i in index] for s in slots}, "count": count}
                new, after = self.optimiser.update(params, list(grads[player]), state, lr)
                for p, q in zip(params, new):
                    p.copy_(q)
                for key, tensors in after.items():
                    for s, t in zip(state[key], tensors):
                        s.copy_(t)
            if self.players[-1] in self.movers:
                variables.count.add_(1)
                for name, mean in variables.buffers.items():
                    if name.startswith(AVERAGE):
                        # a plain mean at first, so that the start is forgotten
                        rate = (1 / variables.count).clamp(min=1 - self.decay)
                        mean.add_(rate * (variables.params[name.removeprefix(AVERAGE)] - mean))
        return torch.stack([v.detach() for v in values.values()])


@dataclass
class Played:
    """How a game went: the record every adversarial run carries.

    Attributes:
        history: a row each log interval: `step`, the losses and what else is reported with them
            (nats, means over the interval), `seconds`.
        seconds: of the loop, compiling included.
        stopped: why it ended early, or None.
        compiled, eager_because: whether the compiled step was used, and if not, what stopped it.
    """

    history: History = field(default_factory=History)
    seconds: float = 0.0
    stopped: str | None = None
    compiled: bool = False
    eager_because: str | None = None

    def then(self, later: Played) -> Played:
        """This record with a later one behind it, its steps and seconds counted on."""
        start = {"step": self.history.rows[-1]["step"], "seconds": self.seconds}
        rows = [{k: v + start.get(k, 0.0) for k, v in r.items()} for r in later.history.rows]
        return Played(
            History([*self.history.rows, *rows]),
            self.seconds + later.seconds,
            later.stopped,
            self.compiled,
            self.eager_because,
        )


def play(
    update: GameUpdate,
    variables: Variables,
    batches: Batches,
    *,
    steps: int,
    critic_steps: int,
    lr: float,
    compile: bool | str,
    progress: bool,
) -> Played:
    """Make `steps` moves of all, each after `critic_steps` − 1 moves of all but the last player.

    Ctrl-C ends it early; `variables` hold what was reached.

    Raises:
        ValueError: a loss is no longer finite.
    """
    rate = torch.tensor(lr, device=variables.count.device)
    alone = GameUpdate(**{**update.__dict__, "movers": update.players[:-1]})
    columns = _columns(update, variables, batches.example())
    shown = columns.index(f"{update.players[-1]}_loss")
    played = Played()
    pending: list[Tensor] = []
    begin, every = time.perf_counter(), max(1, min(100, steps // 50))
    rest: EagerStep | CompiledStep = EagerStep(_as_update(update), variables, rate)
    first: EagerStep | CompiledStep = EagerStep(_as_update(alone), variables, rate)
    warm_up = 0 if compile is True else 5

    def record(step: int) -> list[float]:
        means = torch.stack(pending).mean(0).tolist()
        pending.clear()
        row = {"step": float(step), **dict(zip(columns, means))}
        played.history.add({**row, "seconds": time.perf_counter() - begin})
        return means

    with Progress(steps, "nats", progress) as bar:
        try:
            for step in range(1, steps + 1):
                if step == warm_up + 1 and compile is not False:
                    ahead = (time.perf_counter() - begin) / max(1, warm_up) * (steps - step)
                    if compile is True or ahead > WORTH_COMPILING:
                        bar.note("compiling the steps")
                        try:
                            first, rest = both = _compiled(
                                (alone, update), variables, rate, batches, critic_steps
                            )
                            played.compiled = True
                            spent = sum(s.seconds for s in both)
                            nodes = sum(s.nodes for s in both)
                            bar.note(f"compiled in {spent:.0f} s ({nodes} operations)")
                        except TraceFailure as failure:
                            played.eager_because = str(failure)
                            bar.note(f"eager steps: {failure}")
                for _ in range(critic_steps - 1):
                    first(batches.next()[0])
                pending.append(rest(batches.next()[0]))
                if step % every == 0 or step == steps:
                    means = record(step)
                    lost = [c for c, v in zip(columns, means) if not math.isfinite(v)]
                    if lost:
                        raise ValueError(
                            f"{lost[0]} is no longer finite near step {step}. Lower lr, raise "
                            "the penalty, or choose another objective."
                        )
                    bar.update(step, means[shown])
        except KeyboardInterrupt:
            played.stopped = "interrupted"
            if pending:
                record(step)
    played.seconds = time.perf_counter() - begin
    return played


def _as_update(update: GameUpdate) -> Update:
    """A step asks of its update only what `GameUpdate` has too: a call, `optimiser`, `autocast`."""
    return cast(Update, update)


def _columns(update: GameUpdate, variables: Variables, batch: tuple) -> list[str]:
    with forked(), no_validation():
        params = {k: v.detach().requires_grad_() for k, v in variables.params.items()}
        return list(update.losses(params, variables.buffers, batch))


def _compiled(
    updates: Sequence[GameUpdate],
    variables: Variables,
    rate: Tensor,
    batches: Batches,
    critic_steps: int,
) -> list[CompiledStep]:
    """Both steps compiled and proved equal to the eager ones, `variables` left as they were."""
    steps = [CompiledStep(_as_update(u), variables, rate) for u in updates]
    kept = variables.clone()
    with forked():
        for step in steps if critic_steps > 1 else steps[1:]:
            step(batches.example())
    with torch.no_grad():
        variables.assign(kept)
    return steps


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
