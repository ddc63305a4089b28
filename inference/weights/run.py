"""One run of guide and model under a particle plate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..randomness import ALONE, forked
from .enumeration import averaged_guide, marginalised
from .sites import (
    PARTICLES,
    At,
    enumerate_unguided,
    is_enumerated,
    is_free,
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
        draws = [
            log_weights(model, guide, *args, nesting=nesting, full_sizes=sizes,
                        model_values=model_values, **kwargs)
            for _ in range(particles)
        ]  # fmt: skip
        return stack(draws)

    dim = -nesting - 1
    run_guide = _under_plate(latents_only(guide), particles, dim)

    def trace_guide(given: Mapping[str, Tensor] | None = None) -> Any:
        # At is outermost: Pyro's enumeration must see the sites before they have a value
        with At(given or {}), poutine.enum(first_available_dim=dim - 1):
            return poutine.trace(run_guide).get_trace(*args, **kwargs)

    guide_trace = trace_guide()
    seen = guide_trace if model_values is None else _changed(guide_trace, model_values)
    names = {n for n, s in guide_trace.nodes.items() if s["type"] == "sample"}
    marked = poutine.infer_config(
        _under_plate(model, particles, dim), functools.partial(enumerate_unguided, names)
    )
    # enumeration inside the replay, for the same reason
    replayed = poutine.replay(poutine.enum(marked), trace=seen)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    refuse_unmatched(model_trace, guide_trace)

    drawn = {n: s for n, s in guide_trace.nodes.items() if is_latent(s) and is_free(s)}
    shape = particles, nesting, sizes
    guide_enumerated = any(map(is_enumerated, sample_sites(guide_trace).values()))

    def resample() -> dict[str, Term]:
        values = {
            n: s["value"].detach()
            for n, s in drawn.items()
            if torch.is_tensor(s["value"]) and not is_enumerated(s)
        }
        again = trace_guide(values)
        if guide_enumerated:
            return averaged_guide(again, *shape, constant=True)
        terms = terms_of(again, *shape)
        return {
            n: t if t.free or t.observed else t.having(log_prob=t.log_prob.detach())
            for n, t in terms.items()
        }

    if guide_enumerated or any(map(is_enumerated, sample_sites(model_trace).values())):
        q = averaged_guide(guide_trace, *shape)
        p = marginalised(model_trace, guide_trace, *shape)
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
        names = {n for n, s in guide_trace.nodes.items() if s["type"] == "sample"}
        marked = poutine.infer_config(model, functools.partial(enumerate_unguided, names))
        replayed = poutine.replay(poutine.enum(marked, first_available_dim=-20), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    return max(
        (-(f.dim or 0) for t in (guide_trace, model_trace) for s in t.nodes.values()
         if s["type"] == "sample" for f in s["cond_indep_stack"] if f.vectorized),
        default=0,
    )  # fmt: skip


@contextmanager
def no_validation() -> Iterator[None]:
    """Distribution and trace checks off inside the block, as they were after it."""
    with ALONE:
        torch_flag = torch.distributions.Distribution._validate_args
        pyro_flag = pyro.infer.util.is_validation_enabled()
        poutine_flag = pyro.poutine.util.is_validation_enabled()
        try:
            pyro.enable_validation(False)
            yield
        finally:
            torch.distributions.Distribution.set_default_validate_args(torch_flag)
            pyro.infer.util.enable_validation(pyro_flag)
            pyro.poutine.util.enable_validation(poutine_flag)


def stack(draws: list[LogWeights]) -> LogWeights:
    """Log weights of several runs as one, along the particle dimension."""

    def join(halves: list[dict[str, Term]]) -> dict[str, Term]:
        out = {}
        for name, term in halves[0].items():
            parts = tuple(half[name] for half in halves)
            lps = [p.log_prob.expand(d.particles, *p.log_prob.shape[1:])
                   for p, d in zip(parts, draws)]  # fmt: skip
            out[name] = term.having(log_prob=torch.cat(lps), parts=parts)
        return out

    def resample() -> dict[str, Term]:
        return join([d.fixed().guide for d in draws])

    total = sum(d.particles for d in draws)
    model, guide = join([d.model for d in draws]), join([d.guide for d in draws])
    return LogWeights(model, guide, total, draws[0].nesting, resample)


def _under_plate(fn: Callable, particles: int, dim: int) -> Callable:
    """`fn` with an outermost plate of K particles, when there is more than one."""
    if particles == 1:
        return fn

    def run(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(PARTICLES, particles, dim=dim):
            return fn(*args, **kwargs)

    return run


def _changed(guide_trace: Any, model_values: Callable[[str, Tensor], Tensor]) -> Any:
    """The guide's trace with other values of its continuous latents, for the model to replay."""
    seen = guide_trace.copy()
    for name, site in seen.nodes.items():
        value = site["value"] if is_latent(site) else None
        if torch.is_tensor(value) and value.is_floating_point():
            seen.nodes[name] = {**site, "value": model_values(name, value)}
    return seen
