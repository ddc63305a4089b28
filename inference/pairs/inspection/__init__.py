"""Say in words what is wrong with a pair, before it is fitted.

A pair is run a few times, in a parameter store and under a random state of its own; its modules are
put back as they were. What its code raises becomes a finding that names the site reached last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ...weights import way_of
from ..arguments import halves, misfit, rows_of, takes
from ..pair import Pair
from . import calls, parameters, perturbation, rows, sites
from .auxiliary import auxiliaries
from .failures import explain, factorising, first_line, mixtures, unfactorised
from .findings import Finding, Findings, finding
from .lines import line_of
from .runs import Recording, Trial, afresh, untouched

__all__ = [
    "Finding",
    "Findings",
    "check",
    "factorising",
    "findings_of",
    "refuse_errors",
    "unfactorised",
]


def check(model: Any, guide: Any = None, *args: Any, **kwargs: Any) -> Findings:
    """Look at a pair before it is fitted.

    `check(model, guide, *args)` for two Pyro callables, `check(pair, *args)` for an object with
    methods `model` and `guide`, or for a run. Nothing is changed: not the pair's modules, the
    parameter store, or any random state.

    Looked at are sites missing or unknown, plates and event dimensions that differ, supports that
    do not match, devices and dtypes, scales under mini-batches (the bias of a mini-batch's bound is
    measured), parameters that get no gradient or are not registered, log densities that are not
    finite, discrete and sequential sites, and whether a closed-form mean-field KL applies.

    The pair is also run at other parameters, draws, rows and subsamples, and twice under one seed,
    which finds what reading shapes cannot: rows that do not follow a subsample, ranges that are
    left, gradients that are cut, noise whose density is not counted, calls that change parameters.

    Args:
        model, guide: any Pyro pair.
        args, kwargs: its arguments.

    Returns:
        `Findings`, errors first: `str()` is advice, `.errors` those with which `fit` refuses to
        start; true when there is anything to read.

    Raises:
        TypeError: neither a run, nor a pair, nor a model followed by its guide.
    """
    rest = () if guide is None else (guide, *args)
    return findings_of(*halves(model, rest, "check")[:3], kwargs)


def refuse_errors(
    model: Callable,
    guide: Callable,
    args: tuple,
    *,
    who: str = "",
    trains: bool = True,
    **told: Any,
) -> None:
    """Raise ValueError with the findings where a pair has errors.

    Args:
        args, trains, told: as for `findings_of`.
        who: the function that asks, named in the error.
    """
    found = findings_of(model, guide, args, trains=trains, errors_only=True, **told)
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
    device: torch.device | None = None,
    **use: Any,
) -> Findings:
    """`check`, told what will be done with the pair.

    Args:
        args, kwargs: what both halves are called with, as an example batch on `device`.
        size: N, the rows of all data; more than those of `args` means mini-batches.
        device: where the pair will run.
        use: `elbo`, `trains` and `errors_only`, as in `Trial`.
    """
    told = {"size": size} if size is not None and takes("size", model, guide) else {}
    trial = Trial(model, guide, args, {**(kwargs or {}), **told}, **use)
    trial.batched = size is not None and size > rows_of(args)
    looks = [_at_first_sight, _site_by_site, _by_log_weights, _by_perturbation]
    if trial.batched or not trial.errors_only:
        looks.append(parameters.biases)
    found: list[Finding] = []
    with untouched(), afresh(trial.modules):
        for module in trial.own if device is not None else ():
            module.to(device)
        for look in looks:  # each takes for granted that those before it found no error
            if not any(f.level == "error" for f in found):
                with afresh(trial.modules):
                    found += look(trial)
    return Findings(found)


def _at_first_sight(trial: Trial) -> Iterable[Finding]:
    """Find what is wrong without a run: arguments and attributes."""
    for half in ("model", "guide"):
        if (why := misfit(getattr(trial, half), trial.args, trial.kwargs)) is not None:
            given = [type(a).__name__ for a in trial.args] + [f"{k}=" for k in trial.kwargs]
            told = {"half": half, "signature": why[0], "why": why[1]}
            yield finding("arguments", given=", ".join(given), **told)
    yield from sites.data(trial.args, trial.kwargs)
    yield from sites.argument_order(trial)
    yield from parameters.cached(trial.own)


def _site_by_site(trial: Trial) -> Iterable[Finding]:
    """Run each half once and compare them site by site."""
    q = Recording(trial, "guide")
    p = Recording(trial, "model", replay=q.trace if q.error is None else None)
    known = trial.tensors()
    observed = list(sites.observes(q, p))
    ended = p.error is None and q.error is None
    differ = [*observed, *(sites.names(p, q) if ended else ()), *sites.latents(p, q)]
    follows = any(f.level == "error" for f in differ)  # what stops the model follows from those
    for r in (q,) if p.error is None or follows else (q, p):
        if r.error is not None and not (r is q and _same_error(p.error, q.error)):
            yield explain(r.error, r.half, r.last, known, r.lines.get(r.last or ""), r.given)
    yield from differ
    wrong = {f.site for f in differ if f.level == "error"}
    yield from (f for f in sites.each(q, known) if f.site not in wrong)
    if not wrong:  # else the model was run at values that it cannot have
        yield from sites.each(p, known)
    yield from sites.draws(q)
    yield from sites.minibatches(p, q)
    yield from parameters.collisions(p, q)


def _same_error(a: Exception | None, b: Exception | None) -> bool:
    """Tell whether two runs stopped alike, as where an autoguide runs the model."""
    lines = [e and line_of(e) for e in (a, b)]
    return str(a) == str(b) or (type(a) is type(b) and None not in lines and lines[0] == lines[1])


def _by_log_weights(trial: Trial) -> Iterable[Finding]:
    """Run the pair again for its noise, gradients, particles and closed forms."""
    if not trial.errors_only:
        yield from sites.fixed_seeds(*(Recording(trial, "guide", seed=i) for i in (0, 1)))
    try:
        pair = Pair(trial.model, trial.guide, trial.args, trial.kwargs)
        called = list(calls.second(pair, trial))
        weights, grads, strangers = parameters.gradients(pair, trial, 1)
    except Exception as error:
        yield explain(error, "pair", None, trial.tensors())
        return
    if called:
        yield from called
        return
    yield from mixtures(trial.tensors({**pair.params, **pair.buffers}))
    yield from parameters.unregistered(strangers, trial)
    if not strangers:
        yield from parameters.reached(weights, grads, trial.trains)
    elbo = trial.elbo
    asked = bool(getattr(elbo, "closed_form", False))
    try:
        if asked or elbo is None:
            weights.refuse_unfactorised("MeanField")
    except ValueError as error:
        yield finding("closed-form", level="error" if asked else "note", why=error)
    if not trial.errors_only:
        way, why = way_of(
            trial.model, trial.guide, *trial.args, nesting=weights.nesting, **trial.kwargs
        )
        if way == "loop":
            yield finding("particles", raised=first_line(why) if why else "other densities")


def _by_perturbation(trial: Trial) -> Iterable[Finding]:
    """Run the pair at other parameters, draws and rows, and again."""
    here, whole = perturbation.Perturbed(trial), not trial.errors_only
    yield from auxiliaries(here)
    yield from rows.again(here)
    if whole or trial.batched:
        yield from rows.coupled(here)
    if whole:
        yield from perturbation.ranges(here)
        yield from perturbation.differences(here)
