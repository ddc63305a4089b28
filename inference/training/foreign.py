"""A step whose optimiser is one of `torch.optim` or `pyro.optim`."""

from __future__ import annotations

import copy
from typing import Any

import pyro.optim
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from .update import Update, Variables


class ForeignStep:
    """As `EagerStep`, with an optimiser of torch or Pyro; never compiled.

    The learning rates of its parameter groups are multiplied by the update's schedule.

    Args:
        make: `params -> torch.optim.Optimizer`, or a `pyro.optim.PyroOptim`.
        state: of an earlier step's `state()`, to go on from.

    Raises:
        ValueError: the state is another optimiser's.
    """

    compiled = False
    repeats = 1

    def __init__(
        self, update: Update, variables: Variables, make: Any, state: dict[str, Any] | None = None
    ):
        self.update, self.variables = update, variables
        params = list(variables.params.values())
        if isinstance(make, pyro.optim.PyroOptim):  # one optimiser for each parameter
            make = copy.copy(make)
            make.optim_objs, make.grad_clip = {}, {}
            for p in params:
                make.optim_objs[p], make.grad_clip[p] = make._get_optim(p), make._get_grad_clip(p)
            self.optimisers = list(make.optim_objs.values())
            self._apply = lambda: make(params)
        else:
            self.optimisers = [make(params)]
            self._apply = self.optimisers[0].step
        self.name = type(self._inner()[0]).__name__
        if state is not None:
            if state["name"] != self.name:
                raise ValueError(
                    f"resume: the run's optimiser is {state['name']}, whose state is of no use to "
                    f"{self.name}. Leave optimiser= out, or begin anew from its parameters: "
                    "fit(run.model, run.guide, data, optimiser=...)."
                )
            for optimiser, saved in zip(self.optimisers, copy.deepcopy(state["states"])):
                if isinstance(optimiser, LRScheduler):
                    optimiser.optimizer.load_state_dict(saved.pop("optimizer"))
                optimiser.load_state_dict(saved)

    def __call__(self, batch: tuple, shared: bool = True) -> Tensor:
        """One update; its loss, ()."""
        loss, grads = self.update.gradients(self.variables, batch)
        for p, g in zip(self.variables.params.values(), grads):
            p.grad = g
        schedule = self.update.schedule
        if schedule is None:
            self._apply()
        else:
            factor = float(schedule(self.variables.count.to(loss.dtype)))
            groups = [g for o in self._inner() for g in o.param_groups]
            rates = [g["lr"] for g in groups]
            for group, rate in zip(groups, rates):
                group["lr"] = rate * factor
            self._apply()
            for group, rate in zip(groups, rates):  # some change their rate themselves in a step
                own = group["lr"] != rate * factor and factor
                group["lr"] = group["lr"] / factor if own else rate
        with torch.no_grad():
            self.variables.count.add_(1)
        return loss

    def _inner(self) -> list[torch.optim.Optimizer]:
        return [o.optimizer if isinstance(o, LRScheduler) else o for o in self.optimisers]

    def state(self) -> dict[str, Any]:
        """The optimiser's name and its `state_dict`s, copied."""
        states = [
            {**o.state_dict(), **({"optimizer": o.optimizer.state_dict()})}
            if isinstance(o, LRScheduler)
            else o.state_dict()
            for o in self.optimisers
        ]
        return {"name": self.name, "states": copy.deepcopy(states)}
