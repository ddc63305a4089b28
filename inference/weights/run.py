"""Runs of guide and model under a particle plate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..randomness import ALONE, forked
from .enumeration import averaged
from .sites import (
    PARTICLES,
    At,
    at_zero,
    is_discrete,
    is_enumerated,
    is_free,
    is_improper,
    is_latent,
    latents_only,
    refuse_unmatched,
    sample_sites,
    terms_of,
)
from .terms import LogWeights, Term


def log_weights(
    model: Callable,
    guide: Callable,
    *args: Any,
    particles: int = 1,
    nesting: int | None = None,
    full_sizes: Mapping[str, int] | None = None,
    vectorized: bool = True,
    model_values: Callable[[str, Tensor], Tensor] | None = None,
    **kwargs: Any,
) -> LogWeights:
    """Run guide and model once under a particle plate and return every site's log density.

    Discrete latents that the guide does not draw are summed out exactly; discrete guide sites
    marked `infer={"enumerate": "parallel"}` are averaged exactly under the guide.

    Args:
        model, guide: any Pyro pair.
        args, kwargs: their arguments.
        particles: K, how many draws of the latents.
        nesting: number of plate dimensions of the pair; found by a dry run when None.
        full_sizes: plate name -> N, for a plate that is only told the batch size.
        vectorized: one run under a plate (the pair must broadcast), or K runs one after another.
        model_values: maps (site, value) to the value that the model sees.

    Returns:
        LogWeights, all log densities shaped (K, *plates), in nats.

    Raises:
        ValueError: K < 1; a latent that one half has and the other lacks; sites whose shapes do
            not fit the pair's plates.
    """
    if particles < 1:
        raise ValueError(f"particles: expected K >= 1, got {particles}.")
    if nesting is None:
        nesting = plate_nesting(model, guide, *args, **kwargs)
    sizes = dict(full_sizes or {})
    if particles > 1 and not vectorized:
        more = {"full_sizes": sizes, "model_values": model_values, **kwargs}
        runs = (log_weights(model, guide, *args, nesting=nesting, **more) for _ in range(particles))
        return _one_by_one(list(runs))

    dim = -nesting - 1
    run_guide = _under_plate(latents_only(guide), particles, dim)

    def trace_guide(given: Mapping[str, Tensor]) -> Any:
        # At is outermost: Pyro's enumeration must see the sites before they have a value
        with At(given), poutine.enum(first_available_dim=dim - 1):
            return poutine.trace(run_guide).get_trace(*args, **kwargs)

    guide_trace = trace_guide({})
    seen = guide_trace if model_values is None else guide_trace.copy()
    for name, site in seen.nodes.items() if model_values is not None else ():
        if is_latent(site) and site["value"].is_floating_point():
            seen.nodes[name] = {**site, "value": model_values(name, site["value"])}
    model_trace = _trace_model(_under_plate(model, particles, dim), seen, None, args, kwargs)
    refuse_unmatched(model_trace, guide_trace)
    enumerates = [
        any(map(is_enumerated, sample_sites(t).values())) for t in (guide_trace, model_trace)
    ]
    shape = particles, nesting, sizes

    def resample() -> dict[str, Term]:
        drawn = {
            n: s["value"].detach()
            for n, s in guide_trace.nodes.items()
            if is_latent(s) and is_free(s) and torch.is_tensor(s["value"]) and not is_enumerated(s)
        }
        again = trace_guide(drawn)
        if enumerates[0]:
            return averaged(again, again, *shape[1:], constant=True)
        return terms_of(again, *shape, constant=True)

    if any(enumerates):
        q = averaged(guide_trace, guide_trace, *shape[1:])
        p = averaged(model_trace, guide_trace, *shape[1:])
    else:
        q, p = terms_of(guide_trace, *shape), terms_of(model_trace, *shape)
    return LogWeights(p, q, particles, nesting, resample)


def log_q_at(
    guide: Callable,
    values: Mapping[str, Tensor],
    *args: Any,
    particles: int = 1,
    nesting: int,
    **kwargs: Any,
) -> dict[str, Term]:
    """The guide's log densities at given values of its drawn sites, (K, *plates) each.

    Args:
        values: site -> value, with the leading particle dimension when K > 1.
        args, kwargs: of the guide; particles, nesting: as for `log_weights`.
    """
    run = poutine.trace(_under_plate(latents_only(guide), particles, -nesting - 1))
    with At(values):
        return terms_of(run.get_trace(*args, **kwargs), particles, nesting, {})


def plate_nesting(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> int:
    """Count the tensor dimensions of the pair's plates by running it once on a forked seed."""
    with forked(), torch.no_grad(), no_validation():
        guide_trace = poutine.trace(latents_only(guide)).get_trace(*args, **kwargs)
        traces = guide_trace, _trace_model(model, guide_trace, -20, args, kwargs)
    sites = [s for t in traces for s in t.nodes.values() if s["type"] == "sample"]
    frames = [f for s in sites for f in s["cond_indep_stack"] if f.vectorized]
    return max((-(f.dim or 0) for f in frames), default=0)


@contextmanager
def no_validation() -> Iterator[None]:
    """Distribution and trace checks off inside the block, as they were after it."""
    with ALONE:
        torch_flag = torch.distributions.Distribution._validate_args
        try:
            with pyro.validation_enabled(False):
                yield
        finally:
            torch.distributions.Distribution.set_default_validate_args(torch_flag)


def _one_by_one(draws: list[LogWeights]) -> LogWeights:
    """Log weights of several runs as one, along the particle dimension."""

    def join(halves: list[dict[str, Term]]) -> dict[str, Term]:
        out = {}
        for name, term in halves[0].items():
            parts = tuple(half[name] for half in halves)
            lps = torch.cat([p.log_prob for p in parts])
            out[name] = term.having(log_prob=lps, parts=parts)
        return out

    def resample() -> dict[str, Term]:
        return join([d.fixed().guide for d in draws])

    model, guide = join([d.model for d in draws]), join([d.guide for d in draws])
    return LogWeights(model, guide, len(draws), draws[0].nesting, resample)


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
    run = _under_plate(At(values or {})(model), particles, -nesting - 1)
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
    drawn = {n: s for n, s in sample_sites(trace).items() if n not in observed and is_latent(s)}
    return {n: s["value"] for n, s in drawn.items()}, tuple(dreamed)


def _unobserved(run: Callable, args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
    """The trace of a run that draws what it would observe, and the values observed there."""
    observed: dict[str, Any] = {}

    class Unobserved(poutine.messenger.Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            if msg["is_observed"] and is_free(msg):  # not a pyro.deterministic or a pyro.factor
                observed[msg["name"]] = msg["value"]
                msg["is_observed"], msg["value"], msg["done"] = False, None, False
            elif is_improper(msg["fn"]) and not msg["done"]:  # shapes are asked for, no draws
                msg["value"], msg["done"] = at_zero(msg), True

    with Unobserved():
        return poutine.trace(run).get_trace(*args, **kwargs), observed


def _trace_model(
    model: Callable, guide_trace: Any, first_dim: int | None, args: tuple, kwargs: dict
) -> Any:
    """Trace the model at the guide's values; enumerate discrete latents that the guide lacks."""
    guided = {n for n, s in guide_trace.nodes.items() if s["type"] == "sample"}

    def enumerate_unguided(site: Any) -> Any:
        unguided = site["name"] not in guided and is_discrete(site)
        return {"enumerate": "parallel"} if unguided else {}

    marked = poutine.enum(
        poutine.infer_config(model, enumerate_unguided), first_available_dim=first_dim
    )
    # enumeration inside the replay: it too must see the sites before they have a value
    return poutine.trace(poutine.replay(marked, trace=guide_trace)).get_trace(*args, **kwargs)


def _under_plate(fn: Callable, particles: int, dim: int) -> Callable:
    """`fn` with an outermost plate of K particles, when there is more than one."""
    if particles == 1:
        return fn

    def run(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(PARTICLES, particles, dim=dim):
            return fn(*args, **kwargs)

    return run
