"""Draws with named axes, and a model that draws its observations too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .run import _under_plate
from .sites import at, is_free, sample_sites, terms_of
from .sites import is_latent as is_drawn
from .terms import Plate, Term

Axes = list[str | None]


def simulate(
    model: Callable,
    *args: Any,
    values: Mapping[str, Tensor] | None = None,
    particles: int = 1,
    nesting: int = 0,
    **kwargs: Any,
) -> tuple[dict[str, Term], dict[str, Any]]:
    """Run the model under a particle plate and draw its observed sites too.

    Args:
        model: any Pyro model; what it observes in `args` is replaced by draws.
        values: site -> value of a latent, shaped as `Term.value`; the others are drawn.
        particles: K.
        nesting: number of plate dimensions of the model.

    Returns:
        site -> Term: draws from the prior and the prior predictive, or from the predictive
        distribution given `values`; and site -> what the model had observed there.
    """
    run = _under_plate(at(model, values or {}), particles, -nesting - 1)
    trace, observed = _unobserved(run, args, kwargs)
    return terms_of(trace, particles, nesting, {}), observed


def dream(model: Callable, *args: Any, **kwargs: Any) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """Run the model forward: latents from the prior, and data drawn in place of what it observes.

    Returns:
        Site -> value of every drawn latent, and `args` in which each argument that the model
        observes as it is has been replaced by the draw.

    Raises:
        ValueError: the model observes something that is none of its arguments.
    """
    with torch.no_grad():
        trace, observed = _unobserved(model, args, kwargs)
    dreamed = list(args)
    for name, value in observed.items():
        places = [i for i, a in enumerate(args) if a is value]
        if not places:
            raise ValueError(
                f"site {name!r} observes something that is not an argument of the model as it is, "
                "so the model cannot dream it. Pass obs=ARGUMENT, or do without the sleep phase."
            )
        for i in places:
            dreamed[i] = trace.nodes[name]["value"]
    drawn = {n: s for n, s in sample_sites(trace).items() if n not in observed and is_drawn(s)}
    return {n: s["value"] for n, s in drawn.items()}, tuple(dreamed)


def _unobserved(run: Callable, args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
    """The trace of a run that draws what it would observe, and the values observed there."""
    observed: dict[str, Any] = {}

    class Unobserved(poutine.messenger.Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            if msg["is_observed"] and is_free(msg):  # not a pyro.deterministic or a pyro.factor
                observed[msg["name"]] = msg["value"]
                msg["is_observed"], msg["value"], msg["done"] = False, None, False

    with Unobserved():
        return poutine.trace(run).get_trace(*args, **kwargs), observed


def is_latent(term: Term) -> bool:
    """Tell whether a model's site is a drawn latent: not data, computed or summed out."""
    return not (term.observed or term.enumerated or term.fn is None)


def is_data(term: Term) -> bool:
    """Tell whether a model's site is an observation, or a factor of summed-out latents and data."""
    return term.observed and (term.free or term.fn is None)


def is_computed(term: Term) -> bool:
    """Tell whether a site is a `pyro.deterministic`."""
    return term.observed and not term.free and type(term.fn).__name__ != "Unit"


def values(term: Term, particles: int, nesting: int) -> tuple[Tensor, Axes]:
    """The value as (K, *plates, *event), and the plate's name for each axis after K."""
    value = torch.as_tensor(term.value)
    event = getattr(term.fn, "event_dim", 0)
    if is_computed(term):  # pyro.deterministic calls all of its axes event
        drawn = particles > 1 and value.dim() > nesting and len(value) == particles
        batch = nesting + 1 if drawn else max((-p.dim for p in term.plates), default=0)
        event = max(0, value.dim() - batch)
    return by_plate(value, event, term.plates, particles, nesting)


def pointwise(term: Term, particles: int, nesting: int) -> tuple[Tensor, Axes]:
    """`log_prob` as (K, *plates), and the plate's name for each axis after K."""
    return by_plate(term.log_prob, 0, term.plates, particles, nesting)


def by_plate(
    tensor: Tensor, event: int, plates: Iterable[Plate], particles: int, nesting: int
) -> tuple[Tensor, Axes]:
    """A site's tensor with one axis for each plate that the site is in, and their names.

    Args:
        tensor: batch axes that broadcast to (K, *nesting), then `event` event axes.

    Returns:
        (K, *plates, *event), and a name or None for each axis after K, outermost plate first.
    """
    batch = tensor.dim() - event
    tensor = tensor.reshape((1,) * (nesting + 1 - batch) + tensor.shape)
    plate = {p.dim: p for p in plates}
    target = list(tensor.shape)
    target[0] = particles
    names: Axes = []
    drop = []
    for dim in range(-nesting, 0):
        axis = nesting + 1 + dim
        if dim in plate:
            target[axis] = plate[dim].size
            names.append(plate[dim].name)
        elif target[axis] == 1:
            drop.append(axis)
        else:
            names.append(None)
    tensor = tensor.expand(target)
    return tensor.squeeze(drop) if drop else tensor, names + [None] * event
