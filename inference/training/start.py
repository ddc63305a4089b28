"""A run before its first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch

from ..elbo import Estimator
from ..pairs.arguments import takes
from ..pairs.pair import Pair, modules_of, own_copy
from ..randomness import forked
from ..weights import log_weights, no_validation
from .run import Run


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
    model, guide = own_copy_on(device, model, guide)
    kwargs: dict[str, Any] = {}
    rows = len(example[0]) if torch.is_tensor(example[0]) and example[0].dim() else None
    if size is not None and takes("size", model, guide):
        kwargs["size"] = size
    pair = Pair(model, guide, example, kwargs)
    for half, run in zip(("model", "guide"), earlier):
        if run is not None:
            _take_over(pair, half, run)
    with (
        forked(), torch.no_grad(), no_validation(),
        pair.bind(pair.params, pair.buffers),
    ):  # fmt: skip
        weights = log_weights(model, guide, *example, nesting=pair.nesting, **kwargs)
    if size is not None and size != rows and not kwargs:
        plates = {p.name: p for _, t in weights.terms() if t.observed for p in t.plates}
        told = [p for p in plates.values() if p.scale != 1]
        data = [p for p in plates.values() if p.size == rows and p.dim == -1] or [
            p for p in plates.values() if p.size == rows
        ]
        if not told and not data:
            raise ValueError(
                f"batch_size: no plate of the model has the {rows} rows of a batch, so the loss "
                "cannot be scaled to all data. Put the observed site in "
                "pyro.plate('data', size, subsample=x), or use batch_size=None."
            )
        if not told:
            pair.full_sizes = {data[0].name: size}
    shared = [p for p in weights.plates if p.dim == -1]
    per_datum = size is not None and bool(shared) and shared[0].size == rows
    return Run(
        pair_=pair, kwargs=kwargs, estimator=elbo, device=device, seed=seed,
        divide=float(size) if per_datum and size else 1.0,
        unit="nats per datum" if per_datum else "nats", example=example,
    )  # fmt: skip


def own_copy_on(device: torch.device, model: Callable, guide: Callable) -> tuple:
    """Copies of model and guide, their modules on a device."""
    copies = own_copy(without_run(model), without_run(guide))
    for function in copies:
        for module in modules_of(function):
            module.to(device)
    return copies


def without_run(function: Callable) -> Callable:
    """The model or guide itself, where it is `run.model` or `run.guide` of an earlier run."""
    return function.__wrapped__ if hasattr(function, "run") else function  # type: ignore[attr-defined]


def _take_over(pair: Pair, half: str, run: Run) -> None:
    """Start one half of a pair from a run's values of `pyro.param`; modules have theirs already."""
    used: Any = {"params": {}, "constraints": {}}  # what this half asks of an empty store
    with forked(), torch.no_grad(), no_validation(), pyro.get_param_store().scope(used):
        getattr(run.pair_, half)(*run.example, **run.kwargs)
    for name in used["params"]:
        ours = run.pair_._stored.get(name, (name,))[0]
        if ours in pair.params and run.state[ours].shape == pair.params[ours].shape:
            pair.params[ours] = run.state[ours].detach().clone()


def refuse_infinite(run: Run, example: tuple) -> None:
    """Raise ValueError when a site's log density is not finite before the first step."""
    pair, v = run.pair_, run.variables
    with (
        forked(), torch.no_grad(), no_validation(),
        pair.bind(v.params, {k: b.clone() for k, b in v.buffers.items()}),
    ):  # fmt: skip
        weights = log_weights(pair.model, pair.guide, *example, nesting=pair.nesting, **run.kwargs)
        for sign, term in weights.terms():
            if not torch.isfinite(term.log_prob).all():
                half = "model" if sign > 0 else "guide"
                bad = term.log_prob[~torch.isfinite(term.log_prob)][0]
                value = term.value if torch.is_tensor(term.value) else torch.zeros(())
                raise ValueError(
                    f"site {term.name!r} of the {half}: its log density is {float(bad)} at the "
                    f"first step (values in [{float(value.min()):.3g}, {float(value.max()):.3g}], "
                    f"{type(term.fn).__name__}). Check the site's support and scale, and the data."
                )
