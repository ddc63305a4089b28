"""Runs of guide and model for many draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..randomness import forked, is_transformed
from .enumeration import averaged, posterior_of
from .sites import (
    PARTICLES,
    At,
    is_discrete,
    is_enumerated,
    is_free,
    is_latent,
    latents_only,
    plates_of,
    refuse_unmatched,
    sample_sites,
    terms_of,
)
from .terms import LogWeights, Term
from .ways import Given, Subsamples, agree, no_validation, over_draws


def log_weights(
    model: Callable,
    guide: Callable,
    *args: Any,
    particles: int = 1,
    nesting: int | None = None,
    full_sizes: Mapping[str, int] | None = None,
    vectorized: bool | str = True,
    model_values: Callable[[str, Tensor], Tensor] | None = None,
    given: Given | None = None,
    **kwargs: Any,
) -> LogWeights:
    """Run guide and model for K draws of the latents and return every site's log density.

    Discrete latents that the guide does not draw are summed out exactly; discrete guide sites
    marked `infer={"enumerate": "parallel"}` are averaged exactly under the guide.

    Args:
        model, guide: any Pyro pair.
        args, kwargs: their arguments.
        particles: K, how many draws of the latents.
        nesting: number of plate dimensions of the pair; found by a dry run when None.
        full_sizes: plate name -> N, for a plate that is only told the batch size.
        vectorized: how the draws are made together: "plate", in one run (the pair must broadcast),
            "vmap", by `torch.vmap` of a run of one draw, or "loop", one after another. True finds
            out by a dry run; False is "loop".
        model_values: maps (site, value) to the value that the model sees.
        given: site -> value, (K, ...) as in `Term.value`, in place of the guide's draws.

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
    named: dict[Any, str] = {True: "plate", False: "loop"}
    way = named.get(vectorized, str(vectorized))
    if vectorized is True and particles > 1:
        way, _ = way_of(model, guide, *args, nesting=nesting, **kwargs)
    pair, sizes = (model, guide, args, kwargs), dict(full_sizes or {})
    if particles == 1 or way == "plate":
        return _together(*pair, particles, nesting, sizes, model_values, given or {})

    def one(values: Given) -> dict[str, dict[str, Term]]:
        w = _together(*pair, 1, nesting, sizes, model_values, values)
        return {"model": w.model, "guide": w.guide}

    halves = over_draws(one, given or {}, particles, nesting, way)

    def resample() -> dict[str, Term]:
        def again(values: Given) -> dict[str, dict[str, Term]]:
            return {"guide": _guide_at(guide, args, kwargs, 1, nesting, sizes, values)}

        drawn = {n: t.value.detach() for n, t in halves["guide"].items() if _is_drawn(t)}
        drawn = {n: v.expand(particles, *v.shape[1:]) for n, v in drawn.items()}
        return over_draws(again, drawn, particles, nesting, way)["guide"]

    return LogWeights(
        halves["model"], halves["guide"], particles=particles, nesting=nesting, resample=resample,
        way=way,
    )  # fmt: skip


def _together(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, particles: int, nesting: int,
    sizes: Mapping[str, int], model_values: Callable | None, given: Given,
) -> LogWeights:  # fmt: skip
    """Log weights of one run under a plate of particles, or of one draw without it."""
    dim = -nesting - 1
    shape = particles, nesting, sizes
    guide_trace = _trace_guide(guide, args, kwargs, particles, nesting, given)
    seen = guide_trace if model_values is None else guide_trace.copy()
    if model_values is not None:
        for name, site in seen.nodes.items():
            if is_latent(site) and site["value"].is_floating_point():
                seen.nodes[name] = {**site, "value": model_values(name, site["value"])}
    model_trace = _trace_model(_under_plate(model, particles, dim), seen, None, args, kwargs)
    refuse_unmatched(model_trace, guide_trace)

    def resample() -> dict[str, Term]:
        drawn = {
            n: s["value"].detach()
            for n, s in guide_trace.nodes.items()
            if is_latent(s) and is_free(s) and torch.is_tensor(s["value"]) and not is_enumerated(s)
        }
        return _guide_at(guide, args, kwargs, *shape, drawn)

    if _enumerates(guide_trace) or _enumerates(model_trace):
        q = averaged(guide_trace, guide_trace, *shape[1:])
        p = averaged(model_trace, guide_trace, *shape[1:])
    else:
        q, p = terms_of(guide_trace, *shape), terms_of(model_trace, *shape)
    return LogWeights(p, q, particles, nesting, resample)


def _trace_guide(
    guide: Callable, args: tuple, kwargs: dict, particles: int, nesting: int, given: Given
) -> Any:
    run = _under_plate(latents_only(guide), particles, -nesting - 1)
    # At is outermost: Pyro's enumeration must see the sites before they have a value
    with At(given), poutine.enum(first_available_dim=-nesting - 2):
        return poutine.trace(run).get_trace(*args, **kwargs)


def _guide_at(
    guide: Callable, args: tuple, kwargs: dict, particles: int, nesting: int,
    sizes: Mapping[str, int], given: Given,
) -> dict[str, Term]:  # fmt: skip
    """The guide's terms at given draws, whose computed sites and averages are constants."""
    again = _trace_guide(guide, args, kwargs, particles, nesting, given)
    if _enumerates(again):
        return averaged(again, again, nesting, sizes, constant=True)
    return terms_of(again, particles, nesting, sizes, constant=True)


def _enumerates(trace: Any) -> bool:
    return any(map(is_enumerated, sample_sites(trace).values()))


def _is_drawn(term: Term) -> bool:
    """Tell whether a guide's site is a draw, whose value the others follow from."""
    return term.free and not (term.observed or term.enumerated) and torch.is_tensor(term.value)


def discrete_posterior(
    model: Callable, *args: Any, values: Given, particles: int = 1, nesting: int,
    way: str = "plate", **kwargs: Any,
) -> tuple[dict[str, Term], dict[str, Term]]:  # fmt: skip
    """Draw what a model sums out, from its posterior given K draws of the other latents.

    Args:
        model, args, kwargs, particles, nesting, way: as for `log_weights`.
        values: site -> value of every other latent, (K, ...) as in `Term.value`.

    Returns:
        Site -> a draw, jointly with the others (along a chain by forward filtering, backward
        sampling), (K, *plates); and site -> the probabilities of its C values, (K, *plates, C).
    """

    def at(given: Given, k: int) -> dict[str, dict[str, Term]]:
        def mark(site: Any) -> Any:
            return (
                {"enumerate": "parallel"} if site["name"] not in given and is_discrete(site) else {}
            )

        run = poutine.infer_config(_under_plate(model, k, -nesting - 1), mark)
        with At(given), poutine.enum(first_available_dim=-nesting - 2):
            trace = poutine.trace(run).get_trace(*args, **kwargs)
        halves: dict[str, dict[str, Term]] = {"drawn": {}, "probabilities": {}}
        shares = posterior_of(trace, nesting, False)
        for name, one in posterior_of(trace, nesting, True).items():
            site: Any = trace.nodes[name]
            support = site["fn"].enumerate_support(expand=False)
            support = support.reshape(len(support), *site["fn"].event_shape)
            for half, value, event in (
                ("drawn", support[one.argmax(-1)], site["fn"].event_dim),
                ("probabilities", shares[name], 1),
            ):
                none = one.new_zeros((1,) * (nesting + 1))
                fn = SimpleNamespace(event_dim=event)
                halves[half][name] = Term(name, none, plates_of(site, {}), fn=fn, value=value)
        return halves

    together = particles == 1 or way == "plate"
    found = at(values, particles) if together else over_draws(
        partial(at, k=1), values, particles, nesting, way
    )  # fmt: skip
    return found["drawn"], found["probabilities"]


def way_of(
    model: Callable, guide: Callable, *args: Any, nesting: int, **kwargs: Any
) -> tuple[str, Exception | None]:
    """Find how draws of a pair are made together, and for "loop" what keeps it from `torch.vmap`.

    Each way is tried with three draws and compared with runs of one draw at the same values: a
    pair that broadcasts, but wrongly, is seen too. Inside a transform of torch's, where values
    cannot be compared, a pair counts as one that broadcasts.
    """
    if is_transformed():
        return "plate", None
    k, pair, failed = 3, (model, guide, *args), None
    run: Any = partial(log_weights, *pair, particles=k, nesting=nesting, **kwargs)
    with forked(), torch.no_grad(), no_validation(), Subsamples():
        for way in ("plate", "vmap"):
            try:
                found = run(vectorized=way)
                if any(t.enumerated for t in found.guide.values()):
                    return way, None  # draws given every value of a site have no one value
                drawn = {n: t.value for n, t in found.guide.items() if _is_drawn(t)}
                drawn = {n: v.expand(k, *v.shape[1:]) for n, v in drawn.items()}
                first = run(vectorized="loop", given=drawn)
                halves = [(w.guide, w.model) for w in (found, first)]
                if agree(halves[0], halves[1], k):
                    return way, None
                second = run(vectorized="loop", given=drawn)
                if not agree(halves[1], (second.guide, second.model), k):
                    return way, None  # it has noise of its own, and there is nothing to compare
            except Exception as error:  # whatever a user's code does when it does not broadcast
                failed = error
    return "loop", failed


def log_q_at(
    guide: Callable,
    values: Given,
    *args: Any,
    particles: int = 1,
    nesting: int,
    way: str = "plate",
    **kwargs: Any,
) -> dict[str, Term]:
    """The guide's log densities at given values of its drawn sites, (K, *plates) each.

    Args:
        values: site -> value, with the leading particle dimension when K > 1.
        args, kwargs: of the guide; particles, nesting, way: as for `log_weights`.
    """

    def at(given: Given, k: int) -> dict[str, dict[str, Term]]:
        run = poutine.trace(_under_plate(latents_only(guide), k, -nesting - 1))
        with At(given):
            return {"guide": terms_of(run.get_trace(*args, **kwargs), k, nesting, {})}

    if particles == 1 or way == "plate":
        return at(values, particles)["guide"]
    return over_draws(partial(at, k=1), values, particles, nesting, way)["guide"]


def plate_nesting(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> int:
    """Count the tensor dimensions of the pair's plates by running it once on a forked seed."""
    with forked(), torch.no_grad(), no_validation():
        guide_trace = poutine.trace(latents_only(guide)).get_trace(*args, **kwargs)
        traces = guide_trace, _trace_model(model, guide_trace, -20, args, kwargs)
    sites = [s for t in traces for s in t.nodes.values() if s["type"] == "sample"]
    frames = [f for s in sites for f in s["cond_indep_stack"] if f.vectorized]
    return max((-(f.dim or 0) for f in frames), default=0)


def simulate(
    model: Callable,
    *args: Any,
    values: Given | None = None,
    particles: int = 1,
    nesting: int = 0,
    way: str = "plate",
    **kwargs: Any,
) -> tuple[dict[str, Term], dict[str, Any]]:
    """Run the model for K draws and draw its observed sites too.

    Args:
        model: any Pyro model; what it observes in `args` is replaced by draws.
        values: site -> value of a latent, shaped as `Term.value`; the others are drawn.
        particles: K.
        nesting: number of plate dimensions of the model.
        way: how the draws are made together, as for `log_weights`.

    Returns:
        site -> Term: draws from the prior and the prior predictive, or from the predictive
        distribution given `values`; and site -> what the model had observed there.
    """
    seen: dict[str, Any] = {}

    def at(given: Given, k: int) -> dict[str, dict[str, Term]]:
        run = _under_plate(At(given)(model), k, -nesting - 1)
        trace, observed = _unobserved(run, args, kwargs)
        seen.update(observed)
        return {"model": terms_of(trace, k, nesting, {})}

    if particles == 1 or way == "plate":
        return at(values or {}, particles)["model"], seen
    return over_draws(partial(at, k=1), values or {}, particles, nesting, way)["model"], seen


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
