"""The result of a fit: the pair with its parameters, and the record of its training."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ..elbo import Estimator
from ..pairs.arguments import rows_of, takes
from ..pairs.pair import Pair, modules_of, own_copy
from ..randomness import forked
from ..results.notebook import as_html
from ..results.table import Table
from ..weights import log_weights, no_validation
from ..weights.sites import dry_run
from .convergence import Convergence, judged
from .state import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class BoundHalf:
    """A model or a guide with the parameters of a run.

    It is called as the half itself, and has its methods and attributes: `run.guide.median()`,
    `run.guide.quantiles([0.05, 0.95])`, `run.guide.locs.mu`.
    """

    def __init__(self, run: FittedPair, half: Any):
        named = half if hasattr(half, "__name__") else type(half)
        functools.update_wrapper(self, named, updated=())
        self.__wrapped__ = half
        self.run = run  # whoever fits it starts from its parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the half on its arguments."""
        with self.run.bind():
            return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # not yet there
            raise AttributeError(name)
        with self.run.bind():
            found = getattr(self.__wrapped__, name)
        if torch.is_tensor(found):
            return found.detach().clone()
        return BoundHalf(self.run, found) if callable(found) else found

    def __repr__(self) -> str:
        return f"{self.__wrapped__!r} with the parameters of a run"


@dataclass(kw_only=True, repr=False)
class FittedPair(Training):
    """A model and a guide with the parameters of a training; `Training` says how it went.

    Attributes:
        example: a batch of arguments that the pair is called with.
        kwargs: what it is called with beside them.
    """

    pair_: Pair
    example: tuple
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, Tensor]:
        """The unconstrained parameters that are kept: the best on validation, else the last."""
        return self.final

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the pair's modules."""
        return self.variables.buffers

    @property
    def params(self) -> dict[str, Tensor]:
        """The parameters in their own support, by name."""
        return self.pair_.constrained(self.state)

    @property
    def pair(self) -> nn.Module:
        """The trained module, where model and guide are methods of one (or the guide is one)."""
        modules = modules_of(self.pair_.model) or modules_of(self.pair_.guide)
        if not modules:
            raise AttributeError("this pair is two plain functions: use run.model and run.guide.")
        return modules[0]

    @property
    def model(self) -> Callable:
        """The model with the run's parameters."""
        return BoundHalf(self, self.pair_.model)

    @property
    def guide(self) -> Callable:
        """The guide with the run's parameters."""
        return BoundHalf(self, self.pair_.guide)

    def bind(self) -> AbstractContextManager:
        """A context in which the pair has this run's parameters."""
        return self.pair_.bind(self.state, self.buffers)

    def write_back(self) -> None:
        """Write the kept parameters into the run's own modules."""
        self.pair_.write_back(self.state, self.buffers)


@dataclass(kw_only=True, repr=False)
class Run(FittedPair):
    """A fitted pair; `Training` says how it went.

    Attributes:
        estimator: whose bound was raised.
        unit: "nats per datum" where every site lies in the data plate, else "nats".
        divide: the loss is -bound / divide.
        given: all data, where every step takes all of them.
    """

    estimator: Estimator
    divide: float
    unit: str
    given: tuple | None = None

    @property
    def elbo(self) -> float:
        """The bound at the end, in `unit`: the best held-out value, else minus the recent loss."""
        if self.best is not None:
            return self.best
        recent = self.losses[-max(1, len(self.losses) // 20) :]
        return -float(np.nanmean(recent))

    @property
    def converged(self) -> Convergence:
        """The verdict on the fit: true where it had converged; `str()` is evidence and advice."""
        before, said = self.__dict__.get("_judged", (None, None))
        if said is None or before != self.steps:
            said = judged(self)
            self.__dict__["_judged"] = (self.steps, said)
        return said

    def looked_at(self, data: tuple, who: str) -> tuple:
        """The arguments that a run is judged on: those given, else all data of the fit.

        Raises:
            ValueError: there are neither.
        """
        found = data or self.given
        if found is None:
            raise ValueError(
                f"{who}: the run was fitted by mini-batches and keeps none of its data. Give some "
                f"to judge it on, as in {who}(x_test)."
            )
        return found

    def diagnose(self, *data: Any, **options: Any) -> Any:
        """Say whether this posterior can be trusted, and why: `inference.diagnose`.

        Args:
            data: to look at; by default those of the fit, where every step took all of them.
            options: of `inference.diagnose`.

        Returns:
            A `Diagnosis`.

        Raises:
            TypeError, ValueError: as `inference.diagnose`; mini-batches, and no data given.
        """
        judge = sys.modules[__name__.partition(".")[0]].diagnose  # the public face knows all rooms
        return judge(self, *self.looked_at(data, "run.diagnose"), **options)

    def report(self, *data: Any, folder: str | Path | None = None) -> Path:
        """Judge the run and write a folder with its page `report.html`, its state and its draws.

        Args:
            data: to look at, or a set of `zoo.data`; by default those of the fit, where every step
                took all of them.
            folder: to write into; by default the next free `runs/MODEL-001`.

        Returns:
            The path of the page.

        Raises:
            ImportError: what draws pages is not installed.
            TypeError, ValueError: as `diagnose`.
        """
        missing = (
            "run.report: expected a package that draws pages. pip install 'pyro-zoo[command]'."
        )
        found = sorted(entry_points(group="inference.pages"), key=lambda e: e.value)
        if not found:
            raise ImportError(missing)
        try:
            page_of = found[0].load()
        except ImportError as error:
            raise ImportError(f"{missing[:-1]} ({error}).") from error
        return page_of(self, *data, folder=folder)

    def table(self) -> Table:
        """Facts of the training, one to a line."""
        step = "compiled" if self.compiled else f"eager: {self.eager_because or 'not compiled'}"
        facts = {
            f"{self.estimator!r} at the end": f"{self.elbo:.4g} {self.unit}",
            "steps": f"{self.steps:,}" + (f", {self.stopped}" if self.stopped else ""),
            "seconds": f"{self.seconds:.1f}",
            "step": step,
            "convergence": str(self.converged),
            "parameters": f"{sum(p.numel() for p in self.state.values()):,}",
        }
        return Table(["", ""], list(map(list, facts.items())), left=(0, 1))

    def picture(self) -> Figure | None:
        """The loss of every step."""
        if len(self.losses) < 2:
            return None
        from matplotlib.figure import Figure

        loss = np.array(self.losses, dtype=float)
        figure = Figure(figsize=(5.4, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(np.arange(1, len(loss) + 1), loss, linewidth=0.8)
        late = loss[len(loss) // 10 :]
        if np.isfinite(late).any():
            low, high = np.nanquantile(late[np.isfinite(late)], [0.001, 0.999])
            axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)
        axes.set(xlabel="step", ylabel=f"loss, {self.unit}")
        return figure

    def _repr_html_(self) -> str:
        """Facts and loss, for a notebook."""
        return as_html((), self.table(), (), self.picture, "", "The loss of every step of the fit")

    def __repr__(self) -> str:
        kind = "compiled" if self.compiled else "eager"
        return (
            f"Run({self.steps} steps, {kind}, {self.seconds:.1f} s, "
            f"{self.estimator!r}: {self.elbo:.3f} {self.unit})\n{self.converged}"
        )


def new_run(
    model: Callable, guide: Callable, example: tuple, size: int | None, elbo: Estimator,
    device: torch.device, seed: int,
) -> Run:  # fmt: skip
    """A run before its first step: its own copy of the pair, and what its plates are told.

    `run.model` and `run.guide` of an earlier run start from that run's parameters.

    Args:
        example: a batch of arguments; `size`: the rows of all data.

    Raises:
        ValueError: the loss of a batch cannot be scaled to all data.
    """
    earlier = [getattr(f, "run", None) for f in (model, guide)]
    rows = rows_of(example[:1]) or None
    told = size is not None and takes("size", without_run(model), without_run(guide))
    kwargs: dict[str, Any] = {"size": size} if told else {}
    pair = own_pair(device, model, guide, example, kwargs)
    for half, run in zip(("model", "guide"), earlier):
        if run is not None:
            _take_over(pair, half, run)
    with forked(), torch.no_grad(), no_validation(), pair.bind(pair.params, pair.buffers):
        weights = log_weights(pair.model, pair.guide, *example, nesting=pair.nesting, **kwargs)
    if elbo.particles > 1 and elbo.vectorized:
        pair.find_way(pair.params, pair.buffers, example, kwargs)
    if size is not None and size != rows and not kwargs:
        plates = {p.name: p for _, t in weights.terms() if t.observed for p in t.plates}
        scaled = any(p.scale != 1 for p in plates.values())
        data = [p for p in plates.values() if p.size == rows]
        data.sort(key=lambda p: p.dim != -1)  # the rightmost first
        if not scaled and not data:
            raise ValueError(
                f"batch_size: no plate of the model has the {rows} rows of a batch, so the loss "
                "cannot be scaled to all data. Put the observed site in "
                "pyro.plate('data', size, subsample=x), or use batch_size=None."
            )
        if not scaled:
            pair.full_sizes = {data[0].name: size}
    shared = [p for p in weights.plates if p.dim == -1]
    per_datum = size is not None and bool(shared) and shared[0].size == rows
    return Run(
        pair_=pair, kwargs=kwargs, estimator=elbo, device=device, seed=seed,
        divide=float(size) if per_datum and size else 1.0,
        unit="nats per datum" if per_datum else "nats", example=example,
    )  # fmt: skip


def own_pair(
    device: torch.device, model: Callable, guide: Callable, example: tuple, kwargs: dict
) -> Pair:
    """A pair of copies of model and guide, their modules on a device."""
    copies = own_copy(without_run(model), without_run(guide))
    for module in [m for function in copies for m in modules_of(function)]:
        module.to(device)
    return Pair(*copies, example, kwargs)


def without_run(function: Callable) -> Callable:
    """The model or guide itself, where it is `run.model` or `run.guide` of an earlier run."""
    return function.__wrapped__ if hasattr(function, "run") else function  # type: ignore[attr-defined]


def _take_over(pair: Pair, half: str, run: Run) -> None:
    """Start one half of a pair from a run's values of `pyro.param`; modules have theirs already."""
    used: Any = {"params": {}, "constraints": {}}  # what this half asks of an empty store
    with no_validation(), pyro.get_param_store().scope(used):
        dry_run(getattr(run.pair_, half), *run.example, **run.kwargs)
    for name in used["params"]:
        ours = run.pair_._stored.get(name, (name,))[0]
        if ours in pair.params and run.state[ours].shape == pair.params[ours].shape:
            pair.params[ours] = run.state[ours].detach().clone()
