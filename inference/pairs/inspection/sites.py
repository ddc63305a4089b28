"""Model and guide site by site: names, plates, event dimensions, scales, supports, densities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..arguments import not_finite
from ..options import nearest
from .failures import explain
from .findings import Finding
from .record import Recording, Site
from .supports import compare as compare_supports
from .supports import invalid_parameters, out_of_support


def names(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Find sites that one half has and the other lacks, and observed ones in the guide."""
    latents, drawn = model.latents(), guide.sites
    unknown = [
        n for n, s in drawn.items() if n not in model.sites and not s.auxiliary and not s.observed
    ]
    for name, site in latents.items():
        if name in drawn:
            continue
        if getattr(site.fn, "has_enumerate_support", False):
            yield Finding(
                "note", name, "a discrete latent that the guide leaves out", "", site.family,
                "nothing to do: it is summed out exactly.",
            )  # fmt: skip
            continue
        near = nearest(name, unknown, bare=True)
        hint = f"rename the guide's {near!r}, or " if near else ""
        yield Finding(
            "error", name, "the guide forgets a latent of the model",
            f"a pyro.sample({name!r}, ...) in the guide, or obs= in the model",
            f"the guide has {_quoted(n for n, s in drawn.items() if not s.auxiliary)}; Pyro would "
            "draw it from its prior without a word",
            f"{hint}add the site to the guide (or condition the model on it).",
        )  # fmt: skip
    for name in unknown:
        free = [n for n in latents if n not in drawn]
        near = nearest(name, free, bare=True)
        hint = f"call it {near!r}, or " if near else "remove it, or "
        yield Finding(
            "error", name, "the guide draws a site that the model does not have",
            f"one of {_quoted(latents)}", f"pyro.sample({name!r}, ...)",
            f"{hint}mark it infer={{'is_auxiliary': True}} if it only helps to draw others.",
        )  # fmt: skip
    for name, site in drawn.items():
        if name in model.observed() and not site.observed:
            yield Finding(
                "error", name, "the guide draws what the model observes",
                "latents only", f"pyro.sample({name!r}, ...) in the guide",
                "remove the site from the guide: data belong to the model.",
            )  # fmt: skip
        elif site.observed and site.family != "Unit":
            yield Finding(
                "error", name, "the guide observes data", "latents only",
                f"pyro.sample({name!r}, ..., obs=...) in the guide, which divides the weight by "
                "its density",
                "remove the site from the guide: the likelihood belongs to the model.",
            )  # fmt: skip
    if not model.observed() and latents:
        yield Finding(
            "warning", None, "the model observes nothing", "a site with obs=data, or a pyro.factor",
            f"latents {_quoted(latents)} only",
            "pass obs=; as it is, the guide is fitted to the prior.",
        )  # fmt: skip


def pairs(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Compare plates, shapes, scale and support of each latent that both halves have."""
    for name, p in model.latents().items():
        q = guide.sites.get(name)
        if q is None or q.observed:
            continue
        shapes = list(_shape_findings(p, q))
        yield from shapes or compare_supports(p, q)
        yield from _scale_findings(p, q)


def each(recording: Recording, tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    """Check declared dimensions, distribution parameters and log density of each site.

    `tensors` are arguments and parameters by name, for mixtures of devices and dtypes.
    """
    finite = True
    for site in recording.sites.values():
        wrong = list(_undeclared_dims(site, recording.half))
        if site.observed:
            wrong += out_of_support(site)
        yield from wrong
        if finite and not any(f.level == "error" for f in wrong):
            bad = [*invalid_parameters(site)] or [*_bad_density(site, recording.half, tensors)]
            yield from bad
            finite = not bad  # what comes later follows from the first
    if any(not f.vectorized for s in recording.sites.values() for f in s.frames):
        looped = next(
            f.name for s in recording.sites.values() for f in s.frames if not f.vectorized
        )
        yield Finding(
            "note", None, f"plate {looped!r} of the {recording.half} is a Python loop",
            "with pyro.plate(...): and batched distributions", f"for i in pyro.plate({looped!r})",
            "a vectorised plate does the same in one step, and compiles to a small graph.",
        )  # fmt: skip


def data(args: tuple, kwargs: dict) -> Iterable[Finding]:
    """Find NaN in the arguments, and arguments that ask for a gradient."""
    named = [*((f"argument {i}", a) for i, a in enumerate(args)), *kwargs.items()]
    for name, a in named:
        if not torch.is_tensor(a):
            continue
        if (wrong := not_finite(a)) is not None:
            yield Finding(
                "error", None, f"{name} holds NaN or infinite values", "finite data",
                f"{wrong[0]} of {a.numel()}, the first at {wrong[1]}",
                "drop or impute them, or mask them in the model with poutine.mask.",
            )  # fmt: skip
        if a.requires_grad:
            yield Finding(
                "warning", None, f"{name} asks for a gradient", "data without requires_grad",
                "requires_grad=True", "pass it detached; what is to be learned goes into "
                "pyro.param or a module.",
            )  # fmt: skip


def ignored_baselines(guide: Recording) -> Iterable[Finding]:
    """Find baselines asked for in Pyro's way, which no estimator here looks at."""
    for name, site in guide.latents().items():
        if "baseline" in site.infer:
            yield Finding(
                "warning", name, "infer={'baseline': ...} is ignored", "no baseline",
                "a baseline in Pyro's way",
                "remove it: Score(8), VIMCO(8) and Trace(8) make theirs from the other particles.",
            )  # fmt: skip


def indices(model: Recording, guide: Recording) -> Iterable[Finding]:
    """Find guides that draw a mini-batch of their own where the model was given one."""
    for name, (given, used) in model.indices.items():
        drawn, _ = guide.indices.get(name, (used, used))
        if (
            given is None
            or drawn is not None
            or not _is_subsampled(guide, name)
            or not _is_subsampled(model, name)
        ):
            continue
        if not (torch.is_tensor(given) and torch.is_tensor(used) and _equal_values(given, used)):
            yield Finding(
                "error", None, f"the guide draws its own mini-batch at plate {name!r}",
                "one mini-batch for model and guide",
                "the model is given subsample=..., the guide (an autoguide?) draws random rows, "
                "and Pyro replays the model at those (issue 3468)",
                "pass create_plates= to the autoguide, make the guide's local latents a function "
                "of the data (amortised), or fit on all data.",
            )  # fmt: skip


def _is_subsampled(recording: Recording, plate: str) -> bool:
    """Return whether a plate holds a mini-batch of the rows that it is told of."""
    frames = [f for s in recording.sites.values() for f in s.frames if f.name == plate]
    return any(f.full_size is not None and f.full_size != f.size for f in frames)


def rows_of_parameters(guide: Recording, stored: dict[str, torch.Size]) -> Iterable[Finding]:
    """Find guide parameters with one row per row of a mini-batch, where the plate has more.

    As in Pyro's issue 3286.
    """
    for site in guide.latents().values():
        for f in site.frames:
            if not f.vectorized or f.full_size in (None, f.size) or f.size < 1:
                continue
            batch = tuple(site.fn.batch_shape)
            for name, shape in stored.items():
                if "$$$" in name or f.full_size in shape or not batch:
                    continue
                if len(shape) >= len(batch) and tuple(shape[: len(batch)]) == batch:
                    yield Finding(
                        "error", site.name, f"parameter {name!r} has one row for each of a "
                        "mini-batch",
                        f"{f.full_size} rows, one for each element of plate {f.name!r} "
                        f"(pyro.param(..., event_dim=...) inside the plate), or an amortised guide",
                        f"shape {tuple(shape)}: the same {f.size} rows serve whatever is drawn "
                        "(as in issue 3286)",
                        "size it for the whole plate, or compute it from the data; with an "
                        "AutoDiscreteParallel, leave the site out: it is then summed out exactly.",
                    )  # fmt: skip


def _shape_findings(p: Site, q: Site) -> Iterable[Finding]:
    mine, theirs = p.plates, q.plates
    if sorted(mine.values()) != sorted(theirs.values()):
        yield Finding(
            "error", p.name, "model and guide have it in different plates",
            f"{_plates_text(mine)} (the model)", f"{_plates_text(theirs)} (the guide)",
            "open the same plates around it in both, with the same names, dims and sizes.",
        )  # fmt: skip
        return
    if p.fn.event_dim != q.fn.event_dim:
        n = p.fn.event_dim
        yield Finding(
            "error", p.name, "model and guide count its event dimensions differently",
            f"event dimension {n}, {p.family} of shape {tuple(p.fn.shape())} (the model)",
            f"event dimension {q.fn.event_dim}, {q.family} of shape {tuple(q.fn.shape())} "
            "(the guide)",
            f"end the guide's distribution with .to_event({n})." if n else
            "drop .to_event() in the guide, or add it in the model.",
        )  # fmt: skip
        return
    if tuple(p.fn.shape()) != tuple(q.fn.shape()):
        yield Finding(
            "error", p.name, "model and guide give it different shapes",
            f"{tuple(p.fn.shape())} (the model)", f"{tuple(q.fn.shape())} (the guide)",
            "make the guide's parameters of the model's shape.",
        )  # fmt: skip
        return
    if set(mine) != set(theirs):
        yield Finding(
            "warning", p.name, "model and guide call its plates differently",
            f"{_quoted(mine)} (the model)", f"{_quoted(theirs)} (the guide)",
            "use one name: weights are only taken apart along plates that both halves name.",
        )  # fmt: skip


def _scale_findings(p: Site, q: Site) -> Iterable[Finding]:
    a, b = torch.as_tensor(p.scale), torch.as_tensor(q.scale)
    if a.shape == b.shape and bool(torch.isclose(a.double().cpu(), b.double().cpu()).all()):
        return
    told = [
        f"plate {f.name!r} of {g.full_size} in the guide and {f.full_size} in the model"
        for f in p.frames for g in q.frames if f.name == g.name and f.full_size != g.full_size
    ]  # fmt: skip
    yield Finding(
        "error", p.name, "model and guide scale it differently",
        f"one scale for log p and log q, {_scale_text(a)} as in the model",
        f"{_scale_text(b)} in the guide",
        f"tell both the same size ({told[0]})." if told else
        "put the same poutine.scale around model and guide (for annealing, use elbo.Beta).",
    )  # fmt: skip


def _undeclared_dims(site: Site, half: str) -> Iterable[Finding]:
    declared = {d for d, _ in site.plates.values()}
    batch = tuple(site.fn.batch_shape)
    loose = [d for d in range(-len(batch), 0) if batch[d] > 1 and d not in declared]
    if loose:
        d = loose[-1]
        yield Finding(
            "error", site.name, f"a batch dimension that the {half} does not declare",
            f"each batch dimension in a plate; it is in {_plates_text(site.plates)}",
            f"{site.family} of batch shape {batch}: dimension {d} of size {batch[d]}",
            f"with pyro.plate('data', {batch[d]}): around independent data, or .to_event("
            f"{-d}) for the parts of one value. A (N, 1) against a (N,) also makes (N, N).",
        )  # fmt: skip
        return
    if site.observed and torch.is_tensor(site.value) and site.family != "Unit":
        try:
            shape = torch.broadcast_shapes(site.value.shape, site.fn.shape())
        except RuntimeError:
            shape = None
        if shape != tuple(site.fn.shape()):
            yield Finding(
                "error", site.name, "data and distribution have different shapes",
                f"data of shape {tuple(site.fn.shape())}, as the distribution",
                f"data of shape {tuple(site.value.shape)}",
                "squeeze or unsqueeze one of them: (N, 1) and (N,) broadcast to (N, N).",
            )  # fmt: skip


def _bad_density(site: Site, half: str, tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    try:
        lp = site.log_prob()
    except Exception as error:
        yield explain(error, half, site.name, tensors)
        return
    if lp.is_meta:  # there are no values
        return
    bad = ~torch.isfinite(lp)
    if not bad.any():
        return
    value = site.value
    here = f"at values in [{float(value.min()):.4g}, {float(value.max()):.4g}]"
    yield Finding(
        "error", site.name, f"the first log density of the {half} that is not finite",
        "finite log densities at the start",
        f"{int(bad.sum())} of {lp.numel()} are {float(lp[bad].flatten()[0])}, {site.family} {here}",
        "check its support and scale; use logits instead of probabilities, clamp an exp or a log.",
    )  # fmt: skip


def _equal_values(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool((a.detach().cpu() == b.detach().cpu()).all())


def _plates_text(plates: dict[str, tuple[int, int]]) -> str:
    return (
        ", ".join(f"plate {n!r} (dim={d}, size={s})" for n, (d, s) in plates.items()) or "no plate"
    )


def _quoted(items: Any) -> str:
    return ", ".join(repr(i) for i in items) or "no sites"


def _scale_text(scale: Tensor) -> str:
    return f"{float(scale.flatten()[0]):g}"
