"""Say in words what is wrong with a pair, before it is fitted.

A pair is run a few times, in a parameter store and under a random state of its own; its modules are
put back as they were. What its code raises becomes a finding that names the site reached last.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from torch import nn
from torch.distributions import constraints

from ...weights import LogWeights
from ...weights.sites import latents_only
from ..arguments import misfit, rows_of, takes_size
from ..pair import Pair, modules_of
from ..references import referred
from . import minibatch, parameters, sites, supports
from .failures import explain, mixture, named_tensors
from .findings import Finding, Findings
from .isolation import afresh, put_back, untouched
from .record import Recording, record, stored_shapes

__all__ = ["Finding", "Findings", "check", "findings_of", "refuse_errors"]


def check(model: Any, guide: Any = None, *args: Any, **kwargs: Any) -> Findings:
    """Look at a pair before it is fitted.

    `check(model, guide, *args)` for two Pyro callables, `check(pair, *args)` for an object with
    methods `model` and `guide`. Nothing is changed: not the pair's modules, the parameter store,
    or any random state.

    Looked at are sites missing or unknown, plates and event dimensions that differ, supports that
    do not match, devices and dtypes, scales under mini-batches (the bias of a mini-batch's bound is
    measured), parameters that get no gradient or are not registered, log densities that are not
    finite, discrete and sequential sites, and whether a closed-form mean-field KL applies.

    Args:
        model, guide: any Pyro pair.
        args, kwargs: its arguments.

    Returns:
        `Findings`, errors first: `str()` is advice, `.errors` those with which `fit` refuses to
        start; true when there is anything to read.

    Raises:
        TypeError: neither a pair nor a model followed by its guide.
    """
    if not callable(guide) and all(callable(getattr(model, h, None)) for h in ("model", "guide")):
        args = args if guide is None else (guide, *args)
        model, guide = model.model, model.guide
    if not callable(model) or not callable(guide):
        raise TypeError(
            "check: expected check(model, guide, *args), or check(pair, *args) with a pair "
            "that has methods `model` and `guide`; got "
            f"{type(model).__name__}, {type(guide).__name__}."
        )
    return findings_of(model, guide, args, kwargs)


def refuse_errors(
    model: Callable, guide: Callable, args: tuple, *, who: str = "", trains: bool = True,
    **told: Any,
) -> None:  # fmt: skip
    """Raise ValueError with the findings where a pair has errors.

    Args:
        args, trains, told: as for `findings_of`.
        who: the function that asks, named in the error.
    """
    found = findings_of(model, guide, args, trains=trains, errors_only=True, **told)
    for f in found.warnings:
        if "is ignored" in f.what:
            warnings.warn(f"site {f.site!r}: {f.what}; {f.fix}", stacklevel=2)
    if found.errors:
        say = f"{who}: " if who else ""
        why = ", so it was not fitted (check=False starts it all the same)" if trains else ""
        raise ValueError(f"{say}this pair has errors{why}.\n" + "\n".join(map(str, found.errors)))


def findings_of(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict | None = None,
    *,
    size: int | None = None,
    elbo: Any = None,
    device: torch.device | None = None,
    trains: bool = True,
    errors_only: bool = False,
) -> Findings:
    """`check`, told what will be done with the pair.

    Args:
        args, kwargs: what both halves are called with, as an example batch on `device`.
        size: N, the rows of all data; more than those of `args` means mini-batches.
        elbo: the estimator that will be used.
        device: where the pair will run.
        trains: whether it is to be fitted; a pair without parameters can be judged.
        errors_only: leave out what can only lead to notes and warnings.
    """
    kwargs = dict(kwargs or {})
    if size is not None and takes_size(model, guide):
        kwargs["size"] = size
    found = [*_call_findings(model, guide, args, kwargs), *sites.data(args, kwargs)]
    own = {m for f in (model, guide) for m in modules_of(f)}
    found += parameters.cached(own)
    if any(f.level == "error" for f in found):
        return Findings(found)
    modules = [*own, *(o for o in referred(model, guide).values() if isinstance(o, nn.Module))]
    batched = size is not None and size > rows_of(args)
    with untouched(), put_back(modules):
        if device is not None:
            for module in own:
                module.to(device)
        with afresh(modules):
            found += _site_findings(model, guide, args, kwargs)
        if any(f.level == "error" for f in found):
            return Findings(found)
        with afresh(modules):
            found += _weight_findings(model, guide, args, kwargs, elbo, trains, errors_only)
        if (batched or not errors_only) and not any(f.level == "error" for f in found):
            with afresh(modules):
                found += minibatch.findings(model, guide, args, kwargs, modules, batched)
    return Findings(found)


def _site_findings(
    model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> Iterable[Finding]:
    """Run each half once and compare them site by site."""
    q = record(latents_only(guide), args, kwargs, "guide")
    p = record(model, args, kwargs, "model", replay=q.trace if q.error is None else None)
    ended = p.error is None and q.error is None
    known = named_tensors(args, _named_parameters(model, guide))
    for r in (q, p):
        if r.error is not None and not (r is q and str(p.error) == str(q.error)):
            yield explain(r.error, r.half, r.last, known)
    differ = [*(sites.names(p, q) if ended else ()), *sites.pairs(p, q)]
    yield from differ
    wrong = {f.site for f in differ if f.level == "error"}
    yield from (f for f in sites.each(q, known) if f.site not in wrong)
    if not wrong:  # else the model was run at values that it cannot have
        yield from sites.each(p, known)
    yield from sites.ignored_baselines(q)
    yield from sites.indices(p, q)
    yield from sites.rows_of_parameters(q, stored_shapes())
    yield from parameters.collisions(p, q)
    yield from _point_masses(p, q)
    yield from _high_variance(q)


def _weight_findings(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, elbo: Any, trains: bool,
    errors_only: bool,
) -> Iterable[Finding]:  # fmt: skip
    """Run the pair again for its noise, gradients, particles and closed forms."""
    if not errors_only:
        yield from _fixed_seed(
            *(record(latents_only(guide), args, kwargs, "guide", seed=i) for i in (0, 1))
        )
    try:
        pair = Pair(model, guide, args, kwargs)
        weights, grads, strangers = parameters.gradients(pair, args, kwargs, 1)
    except Exception as error:
        yield explain(error, "pair", None, named_tensors(args, _named_parameters(model, guide)))
        return
    yield from mixture(named_tensors(args, {**pair.params, **pair.buffers}))
    yield from parameters.unregistered(strangers, model, guide)
    if not strangers:
        yield from parameters.reached(weights, grads, trains)
    yield from _mean_field(weights, elbo)
    if errors_only:
        return
    try:
        parameters.gradients(pair, args, kwargs, 2)
    except Exception as error:
        yield Finding(
            "warning", None, "the pair does not broadcast over particles",
            "latents of shape (K, batch, event) work as (batch, event) do",
            f"with two particles: {type(error).__name__}: {str(error).splitlines()[0][:160]}",
            "index and reduce from the right (z[..., 0], .sum(-1)); or use "
            "vectorized=False in the estimator.",
        )  # fmt: skip


def _call_findings(
    model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> Iterable[Finding]:
    """Check that both halves take these arguments."""
    for half, function in (("model", model), ("guide", guide)):
        if (why := misfit(function, args, kwargs)) is not None:
            given = ", ".join([type(a).__name__ for a in args] + [f"{k}=" for k in kwargs])
            yield Finding(
                "error", None, f"the {half} does not take these arguments",
                half + why[0], f"called with ({given}): {why[1]}",
                "model and guide get the same arguments, in the same order: give both one "
                "signature (with defaults for what one of them does not use).",
            )  # fmt: skip


def _mean_field(weights: LogWeights, elbo: Any) -> Iterable[Finding]:
    """Check that divergences in closed form apply."""
    asked = bool(getattr(elbo, "closed_form", False))
    if elbo is not None and not asked:
        return
    try:
        weights.refuse_unfactorised("MeanField")
    except ValueError as error:
        yield Finding(
            "error" if asked else "note", None, "the closed-form mean-field KL does not apply",
            "every prior depends only on latents that the guide draws before" if asked else "",
            str(error), "use elbo.Trace(), or draw the guide's sites in the model's order.",
        )  # fmt: skip


def _high_variance(guide: Recording) -> Iterable[Finding]:
    for name, site in guide.latents().items():
        if getattr(site.fn, "has_rsample", False) or site.infer.get("enumerate"):
            continue
        if site.auxiliary or site.family in ("Unit", "Delta"):
            continue
        finite = getattr(site.fn, "has_enumerate_support", False)
        yield Finding(
            "note", name, "the guide's distribution has no reparameterisation", "", site.family,
            "mark it infer={'enumerate': 'parallel'}, or leave it out of the guide, to sum it out "
            "exactly." if finite else "its gradient has a high variance: use several particles "
            "(they make a baseline), or a distribution with rsample.",
        )  # fmt: skip


def _point_masses(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Find point masses at parameters without a constraint."""
    store, real = pyro.get_param_store(), constraints.real
    free = {
        t.data_ptr(): n for n, t in store._params.items() if store._constraints.get(n, real) is real
    }
    for name, site in model.latents().items():
        if name in guide.sites:
            yield from supports.unconstrained_points(site, guide.sites[name], free)


def _fixed_seed(one: Recording, two: Recording) -> Iterable[Finding]:
    """Find guides that draw the same values under different seeds."""
    drawn = [
        n for n, s in one.latents().items()
        if not s.point and s.fn.has_rsample and n in two.sites and torch.is_tensor(s.value)
    ]  # fmt: skip
    if drawn and all(torch.equal(one.sites[n].value, two.sites[n].value) for n in drawn):
        yield Finding(
            "warning", drawn[0], "the guide draws the same values under every seed",
            "fresh noise at each step", "equal draws under two seeds",
            "remove pyro.set_rng_seed or torch.manual_seed from model and guide.",
        )  # fmt: skip


def _named_parameters(model: Callable, guide: Callable) -> dict[str, torch.Tensor]:
    own: dict[str, torch.Tensor] = {}
    for function in (model, guide):
        for module in modules_of(function):
            own |= {n: p.detach() for n, p in module.named_parameters()}
            own |= dict(module.named_buffers())
    for name, obj in referred(model, guide).items():
        if isinstance(obj, nn.Module):
            own |= {f"{name}.{n}": p.detach() for n, p in obj.named_parameters()}
    return own
