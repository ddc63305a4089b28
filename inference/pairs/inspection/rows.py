"""A pair called with other rows, other draws, and again: what does not follow, and what does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import rows_of, take_rows
from .findings import Finding, finding
from .perturbation import Perturbed, Run, stopped
from .runs import Recording, Site
from .supports import arguments_of, varies


def again(here: Perturbed) -> Iterable[Finding]:
    """Call the pair again under one seed, with other draws, and with other subsamples."""
    first = here.run(1)
    if stopped(first):
        return
    yield from _stateful(first, here.run(1))
    plates = {n: f for half in first for n, s in half.sites.items() if (f := _subsampled(s))}
    drawn = {n: s.value for n, s in first[0].latents.items() if not s.point}
    if not plates:
        other = here.run(5, drawn)
        for name, s in first[0].latents.items():
            t = other[0].sites.get(name)
            if s.point and t is not None and t.shape == s.shape and not _close(s.value, t.value):
                level = "error" if here.trial.trains else "note"  # a judge says "no estimate"
                yield finding("unsampled", name, level=level, line=first[0].lines.get(name, ""))
                return
        yield from _private(first, other, here)
        return
    others = [
        here.run(seed, {n: v for n, v in drawn.items() if n not in plates}) for seed in (2, 3)
    ]
    args, n = here.trial.args, rows_of(here.trial.args)
    given = any(r.given.get(f.name) is not None for r in first for f in plates.values())
    if given and n > 1:  # other rows are other arguments then
        first, *others = (
            here.run(1, args=take_rows(args, slice(i, i + n // 2))) for i in (0, n // 2)
        )
    if not any(map(stopped, (first, *others))):
        for i, half in enumerate(first):
            yield from _stuck(half, [other[i] for other in others])


def _subsampled(site: Site) -> Any:
    """Return the plate around a site of which only a part is drawn, or None."""
    return next((f for f in site.cond_indep_stack if f.full_size not in (None, f.size)), None)


def _stateful(one: Run, two: Run) -> Iterable[Finding]:
    """Find a half whose draws or distributions differ although its seed and arguments do not."""
    for a, b in zip(one, two):
        for name, s in a.sites.items():
            t = b.sites.get(name)
            if t is None or not all(_close(x, y) for x, y in zip(_parts(s), _parts(t))):
                how = "is gone" if t is None else "has another value, distribution or scale"
                yield finding("stateful", name, half=a.half, how=how, line=a.lines.get(name, ""))
                return


def _parts(site: Site) -> list[Any]:
    return [site.value, site.scale, *(value for _, value, _ in arguments_of(site.fn))]


def _close(a: Any, b: Any) -> bool:
    x, y = (torch.as_tensor(v).double() for v in (a, b))
    return x.shape == y.shape and torch.allclose(x, y, 1e-3, 1e-4, equal_nan=True)


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else a is b


def _stuck(half: Recording, others: list[Recording]) -> Iterable[Finding]:
    """Find distributions and data in a subsampled plate that stay whatever rows are drawn."""
    inside = [n for n, s in half.latents.items() if _subsampled(s)]
    for name, s in half.sites.items():
        if (plate := _subsampled(s)) is None:
            continue
        rows = [r.trace.nodes[plate.name]["value"] for r in (half, *others)]
        twins = [r.sites[name] for r in others if name in r.sites]
        if not twins or any(_equal(rows[0], r) for r in rows[1:]):
            continue
        what = ""
        if half.half == "guide" or (s.is_observed and not inside):  # else it follows from latents
            parts = [_parts(site)[2:] for site in (s, *twins)]
            if all(all(map(_equal, parts[0], p)) for p in parts[1:]):
                stays = any(varies(v, plate.size) for v in parts[0])
                what = f"the distribution ({s.family})" if stays else ""
        if s.is_observed and torch.is_tensor(s.value):  # x[:B] is the same memory, x[i] a copy
            same = all(_equal(s.value, t.value) for t in twins)
            memory = {site.value.data_ptr() for site in (s, *twins)}
            what = "the data" if same and len(memory) == 1 and varies(s.value, plate.size) else what
        if what:
            told = {"half": half.half, "what": what, "plate": plate.name, "size": plate.size}
            told |= {"full": plate.full_size, "line": half.lines.get(name, "")}
            yield finding("stuck", name, **told)
            return


def _private(first: Run, other: Run, here: Perturbed) -> Iterable[Finding]:
    """Find data that change from call to call: a mini-batch of the model's own, without N/B."""
    known = {f"argument {i}": a for i, a in enumerate(here.trial.args)} | here.trial.references
    for name, s in first[1].observed.items():
        t = other[1].sites.get(name)
        if (
            t is None
            or not torch.is_tensor(s.value)
            or not s.value.dim()
            or _equal(s.value, t.value)
        ):
            continue
        batch, event = len(s.value), s.value.shape[1:]
        for of, a in known.items():
            if not torch.is_tensor(a) or a.shape[1:] != event or not a.dim() or len(a) <= batch:
                continue
            mine, whole = s.value.reshape(batch, 1, -1), a.to(s.value).reshape(1, len(a), -1)
            if (mine == whole).all(-1).any(1).all():
                told = {"half": "model", "of": of, "batch": batch, "full": len(a)}
                told |= {"by": len(a) / batch, "line": first[1].lines.get(name, "")}
                yield finding("private", name, **told)
                break


def coupled(here: Perturbed) -> Iterable[Finding]:
    """Replace all rows but one half's, and find densities of that half that change.

    Where the later rows alone depend on the earlier ones, and on their order, the data are a
    sequence, whose rows are meant to.
    """
    args, n = here.trial.args, rows_of(here.trial.args)
    h = n // 2
    if n < 4 or stopped(before := here.run(1)):
        return
    held = {k: s.value for k, s in before[0].latents.items() if not s.point}

    def changed(start: int, rows: Tensor) -> list[Finding]:
        """Findings of sites whose densities of h rows change where the data are those rows."""
        others = {k: _taken(before[0].sites[k], rows) for k in held} if _norms(here) else held
        after = here.run(1, others, take_rows(args, rows))
        return [
            finding("coupled", name, half=a.half, hint=_hint(here), line=a.lines.get(name, ""))
            for a, b in zip(before, after)
            for name, s in a.sites.items()
            if not stopped(after) and name in b.sites and not s.point
            and _moves(s, b.sites[name], n, start, h)
        ]  # fmt: skip

    order = torch.arange(n)  # h rows stay, the others become copies
    later, earlier = (changed(start, start + (order - start) % h) for start in (0, n - h))
    if earlier and not later:
        turned = torch.cat([order[: n - h].flip(0), order[n - h :]])
        here.trial.ordered = bool(changed(n - h, turned))  # which no mean or maximum would be
    yield from [] if here.trial.ordered else [*later, *earlier][:1]


def _moves(before: Site, after: Site, n: int, start: int, h: int) -> bool:
    """Tell whether log densities of h of n rows differ."""
    dims = [f.dim for f in before.cond_indep_stack if f.vectorized and f.size == n]
    if not dims or _subsampled(before):
        return False
    x, y = before.log_prob(), after.log_prob()
    if x.dim() < -dims[0] or x.shape != y.shape or x.shape[dims[0]] != n:
        return False
    return not _close(x.narrow(dims[0], start, h), y.narrow(dims[0], start, h))


def _taken(site: Site, rows: Tensor) -> Any:
    """Return some rows of a latent's value, where it has as many."""
    dims = [f.dim - site.fn.event_dim for f in site.cond_indep_stack if f.size == len(rows)]
    value = site.value
    has = dims and value.dim() >= -dims[0] and value.shape[dims[0]] == len(rows)
    return value.index_select(dims[0], rows) if has else value


def _norms(here: Perturbed) -> list[str]:
    """List the kinds of batch normalisation that are not at rest."""
    kinds = nn.modules.batchnorm._BatchNorm
    parts = (m for root in here.trial.modules for m in root.modules() if m.training)
    return [type(m).__name__ for m in parts if isinstance(m, kinds)]


def _hint(here: Perturbed) -> str:
    if norms := _norms(here):
        return f"{norms[0]} couples the rows of a batch: use LayerNorm"
    return (
        "take means and scales of all data once, outside of model and guide: x - x.mean(0) is "
        "another number in each mini-batch"
    )
