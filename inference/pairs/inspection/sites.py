"""Model and guide site by site: names, plates, event dimensions, scales, supports, densities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from ..arguments import not_finite, signature_of
from ..options import AVERAGE, BASELINES, nearest
from .failures import explain
from .findings import Finding, finding
from .runs import Recording, Site, Trial
from .supports import compare, invalid_parameters, out_of_support, range_text

_COMPUTED = (
    "if the Deltas are computed from it one to one, mark it infer={'is_auxiliary': True} and give "
    "them log_density = -transform.log_abs_det_jacobian(u, z); else remove it."
)
_NOT_COMPUTED = (
    "remove it, or give it a density in the model, pyro.sample({name!r}, ...) after the latents "
    "(auxiliary variables, arXiv:1602.05473): log q alone makes no bound."
)


def observes(guide: Recording, model: Recording) -> Iterable[Finding]:
    """Find sites that the guide observes."""
    for name, site in guide.observed.items():
        if site.family != "Unit":
            hint = "remove the site from the guide: the likelihood belongs to the model."
            if name not in model.observed and (name in model.latents or name == model.last):
                hint = f"drop obs= there: {name!r} is a latent, and the guide draws it."
            yield finding("observes", name, line=guide.lines.get(name, ""), hint=hint)


def names(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Find sites that one half has and the other lacks, and observed ones in the guide."""
    drawn = {n: s for n, s in guide.sites.items() if not s.auxiliary}
    unknown = [n for n, s in drawn.items() if n not in model.sites and not s.is_observed]
    forgotten = [n for n in model.latents if n not in guide.sites]
    makes = any(s.point for n, s in drawn.items() if n in model.latents)
    for name in forgotten:
        if model.latents[name].finite:
            yield finding("left-out", name, family=model.latents[name].family)
            continue
        near = nearest(name, unknown, bare=True)
        hint = f"rename the guide's {near!r}, or " if near else ""
        yield finding("forgotten", name, drawn=_quoted(drawn), hint=hint)
    for name in unknown:
        near = nearest(name, forgotten, bare=True)
        hint = f"call it {near!r}, or " if near else ""
        hint += _COMPUTED if makes else _NOT_COMPUTED.format(name=name)
        yield finding("unknown", name, latents=_quoted(model.latents), hint=hint)
    for name, site in guide.sites.items():
        counted = site.mask is not False and getattr(site.fn, "_mask", None) is not False
        if name in model.observed and not site.is_observed:
            computed = model.observed[name].infer.get("_deterministic")
            kind = "draws-computed" if computed else "draws-data"
            yield finding(kind, name, line=guide.lines.get(name, ""))
        elif site.auxiliary and name not in model.sites and not (makes or site.point) and counted:
            yield finding("idle", name, line=guide.lines.get(name, ""))
    if model.latents and not model.observed:
        yield finding("nothing-observed", latents=_quoted(model.latents))


def latents(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Compare plates, shapes, scale and support of each latent that both halves have."""
    for name, p in model.latents.items():
        if (q := guide.latents.get(name)) is not None:
            own_rows = None in {r.given.get(f, "") for r in (model, guide) for f in r.given}
            shapes = list(_different_shapes(name, p, q, own_rows))
            yield from shapes or compare(p, q)
            yield from _different_scales(name, p, q)
            if not (q.point or shapes):
                yield from _different_masks(name, p, q, guide.lines.get(name, ""))


def _different_shapes(name: str, p: Site, q: Site, own_rows: bool) -> Iterable[Finding]:
    if sorted(p.plates.values()) != sorted(q.plates.values()):
        yield finding("plates", name, p=_plates_text(p), q=_plates_text(q))
    elif p.fn.event_dim != q.fn.event_dim:
        n = p.fn.event_dim
        drop = "drop .to_event() in the guide, or add it in the model."
        hint = f"end the guide's distribution with .to_event({n})." if n else drop
        yield finding("event-dims", name, p=p, q=q, hint=hint)
    elif p.shape != q.shape:
        yield finding("shapes", name, p=p, q=q)
    elif set(p.plates) != set(q.plates):
        drawn = [[f.name for f in s.cond_indep_stack if f.full_size not in (None, f.size)]
                 for s in (p, q)]  # fmt: skip
        kind = (
            "two-subsamples" if own_rows and all(drawn) and drawn[0] != drawn[1] else "plate-names"
        )
        yield finding(kind, name, p=_quoted(p.plates), q=_quoted(q.plates))


def _different_scales(name: str, p: Site, q: Site) -> Iterable[Finding]:
    a, b = (torch.as_tensor(s.scale).detach().double().cpu() for s in (p, q))
    if a.shape == b.shape and bool(torch.isclose(a, b).all()):
        return
    hint = "put the same poutine.scale around model and guide (for annealing, use elbo.Beta)."
    theirs = {g.name: g.full_size for g in q.cond_indep_stack}
    for f in p.cond_indep_stack:
        if theirs.get(f.name, f.full_size) != f.full_size:
            size = (
                f"plate {f.name!r} of {theirs[f.name]} in the guide and {f.full_size} in the model"
            )
            hint = f"tell both the same size ({size})."
    yield finding("scales", name, p=float(a.flatten()[0]), q=float(b.flatten()[0]), hint=hint)


def _different_masks(name: str, p: Site, q: Site, line: str) -> Iterable[Finding]:
    shape = torch.broadcast_shapes(p.fn.batch_shape, q.fn.batch_shape)
    counted = []
    for s in (p, q):
        mask = torch.ones(shape, dtype=torch.bool)
        for m in (s.mask, getattr(s.fn, "_mask", None)):
            mask = mask & (torch.as_tensor(m).cpu() if m is not None else True)
        counted.append(mask)
    if not torch.equal(*counted):
        yield finding("masks", name, p=int(counted[0].sum()), q=int(counted[1].sum()), line=line)


def each(recording: Recording, tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    """Check declared dimensions, distribution parameters and log density of each site.

    `tensors` are arguments and parameters by name, for mixtures of devices and dtypes.
    """
    finite = True
    for site in recording.sites.values():
        wrong = [*_undeclared_dims(site, recording.half)]
        if site.is_observed:
            wrong += out_of_support(site)
        yield from wrong
        if finite and not any(f.level == "error" for f in wrong):
            bad = [*invalid_parameters(site)] or [*_bad_density(site, recording.half, tensors)]
            yield from bad
            finite = not bad  # what comes later follows from the first
    frames = [f for s in recording.sites.values() for f in s.cond_indep_stack]
    for looped in [f.name for f in frames if not f.vectorized][:1]:
        yield finding("loop", plate=looped, half=recording.half)


def _undeclared_dims(site: Site, half: str) -> Iterable[Finding]:
    declared = {dim for dim, _ in site.plates.values()}
    batch = tuple(site.fn.batch_shape)
    loose = [d for d in range(-len(batch), 0) if batch[d] > 1 and d not in declared]
    if loose:
        where = {"dim": loose[-1], "event": -loose[-1], "size": batch[loose[-1]]}
        of = {"half": half, "family": site.family, "batch": batch, "plates": _plates_text(site)}
        yield finding("undeclared", site.name, **where, **of)
    elif site.is_observed and torch.is_tensor(site.value) and site.family != "Unit":
        shape, data = site.shape, tuple(site.value.shape)
        sizes = zip(reversed(shape), reversed(data))
        if len(data) > len(shape) or any(n not in (1, size) for size, n in sizes):
            yield finding("data-shapes", site.name, shape=shape, data=data)


def _bad_density(site: Site, half: str, tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    try:
        lp = site.log_prob()
    except Exception as error:
        yield explain(error, half, site.name, tensors)
        return
    bad = ~torch.isfinite(lp)
    if not lp.is_meta and bad.any():  # a meta tensor has no values
        where = {"half": half, "family": site.family, "span": range_text(site.value)}
        count = {"bad": int(bad.sum()), "all": lp.numel(), "first": float(lp[bad].flatten()[0])}
        yield finding("density", site.name, **where, **count)


def data(args: tuple, kwargs: dict) -> Iterable[Finding]:
    """Find NaN in the arguments, and arguments that ask for a gradient."""
    for name, a in {**{f"argument {i}": a for i, a in enumerate(args)}, **kwargs}.items():
        if torch.is_tensor(a) and (wrong := not_finite(a)) is not None:
            yield finding("nan", name=name, bad=wrong[0], all=a.numel(), first=wrong[1])
        if torch.is_tensor(a) and a.requires_grad:
            yield finding("asks-gradient", name=name)


def argument_order(trial: Trial) -> Iterable[Finding]:
    """Find a guide that takes the model's arguments in another order."""
    halves = [signature_of(f) for f in (trial.model, trial.guide)]
    names = [list(h.parameters)[: len(trial.args)] for h in halves if h is not None]
    if len(names) == 2 and names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
        yield finding("order", model=str(halves[0]), guide=str(halves[1]))


def draws(guide: Recording) -> Iterable[Finding]:
    """Find latents whose gradient needs the score function, and unknown options of baselines."""
    for name, site in guide.latents.items():
        for option in site.infer.get("baseline") or ():
            if option not in (*BASELINES, AVERAGE):
                yield finding("baseline", name, option=option)
        drawn = site.family not in ("Unit", "Delta") and not site.auxiliary
        if drawn and not site.fn.has_rsample and not site.infer.get("enumerate"):
            yield finding("summable" if site.finite else "score", name, family=site.family)


def fixed_seeds(one: Recording, two: Recording) -> Iterable[Finding]:
    """Find guides that draw the same values under different seeds."""
    drawn = [
        n
        for n, s in one.latents.items()
        if not s.point and s.fn.has_rsample and n in two.sites and torch.is_tensor(s.value)
    ]
    if drawn and all(torch.equal(one.sites[n].value, two.sites[n].value) for n in drawn):
        yield finding("seeded", drawn[0])


def minibatches(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Find guides that draw a mini-batch of their own where the model was given one.

    And guide parameters with one row per row of a mini-batch, where the plate has more, as in
    Pyro's issue 3286.
    """
    frames = [[f for s in r.sites.values() for f in s.cond_indep_stack] for r in (model, guide)]
    part = [{f.name for f in half if f.full_size not in (None, f.size)} for half in frames]
    for plate, given in model.given.items():
        own = guide.given.get(plate, given) is None
        if own and given is not None and plate in part[0] & part[1]:
            used = model.trace.nodes[plate]["value"]
            if not torch.is_tensor(given) or not torch.equal(given.cpu(), used.cpu()):
                yield finding("own-rows", plate=plate)
    stored = {n: tuple(p.shape) for n, p in pyro.get_param_store()._params.items()}
    for site in guide.latents.values():
        batch = tuple(site.fn.batch_shape)
        few = [(n, s) for n, s in stored.items() if "$$$" not in n and batch == s[: len(batch)]]
        for f in site.cond_indep_stack if batch else ():
            for name, shape in few if f.vectorized and f.name in part[1] else ():
                if f.full_size not in shape and f.size:
                    sizes = {"full": f.full_size, "rows": f.size, "shape": shape}
                    yield finding("few-rows", site.name, name=name, plate=f.name, **sizes)


def _plates_text(site: Site) -> str:
    plates = [f"plate {n!r} (dim={d}, size={s})" for n, (d, s) in site.plates.items()]
    return ", ".join(plates) or "no plate"


def _quoted(items: Iterable[Any]) -> str:
    return ", ".join(map(repr, items)) or "no sites"
