"""Auxiliary noise in a guide, and the density of the latents that are computed from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from .findings import Finding, finding
from .perturbation import Perturbed, stopped
from .runs import Recording, Site
from .supports import is_interval

FEW = 128  # elements of which a whole Jacobian is made


def auxiliaries(here: Perturbed) -> Iterable[Finding]:
    """Find auxiliary noise that makes no latent, and Deltas without their Jacobian.

    Where latents are z = f(u), one to one, log q(z) = log q(u) - log |det dz/du|: the noise site
    counts the first term, and the Deltas' `log_density` must be the second.
    """
    q, p = here.run(1)
    noise = {n: s.value.detach().requires_grad_() for n, s in q.latents.items() if _counts(s)}
    noise = {n: u for n, u in noise.items() if n not in p.sites}
    if not noise or stopped((q, p)):
        return
    q, p = here.run(1, noise)
    made = {n: s for n, s in q.latents.items() if s.point and torch.is_tensor(s.value)}
    uses = {n: _sources(s.value, noise) for n, s in made.items()}
    for name in noise:
        if not any(name in used for used in uses.values()):
            yield finding("idle", name, line=q.lines.get(name, ""))
    for latents, sources in _groups(uses):
        if all(n in p.sites and is_interval(p.sites[n].fn.support) for n in latents):
            found = _density({n: made[n] for n in latents}, {n: noise[n] for n in sources}, q)
            # where there is no density at all, a judge has no estimate, and says so
            judged = not here.trial.trains and not any(made[n].log_prob().any() for n in latents)
            yield from (replace(f, level="note") if judged else f for f in found)


def _counts(site: Site) -> bool:
    """Tell whether a site is auxiliary noise whose density counts in the bound."""
    counted = site.mask is not False and getattr(site.fn, "_mask", None) is not False
    real = torch.is_tensor(site.value) and site.value.is_floating_point()
    return site.auxiliary and not site.point and counted and real and site.fn.has_rsample


def _sources(value: Tensor, noise: dict[str, Tensor]) -> frozenset[str]:
    if not value.requires_grad:
        return frozenset()
    leaves = list(noise.values())
    grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True, retain_graph=True)
    return frozenset(n for n, g in zip(noise, grads) if g is not None)


def _groups(uses: dict[str, frozenset[str]]) -> list[tuple[list[str], set[str]]]:
    """Join latents that are made of the same noise."""
    out: list[tuple[list[str], set[str]]] = []
    for name, sources in ((n, set(s)) for n, s in uses.items() if s):
        apart = [g for g in out if not g[1] & sources]
        joint = [g for g in out if g[1] & sources]
        names = [n for g in joint for n in g[0]] + [name]
        out = [*apart, (names, sources.union(*(g[1] for g in joint)))]
    return out


def _density(made: dict[str, Site], noise: dict[str, Tensor], q: Recording) -> Iterable[Finding]:
    z = torch.cat([s.value.reshape(-1) for s in made.values()])
    u = list(noise.values())
    first, of = next(iter(made)), ", ".join(noise)
    told = {"of": of, "line": q.lines.get(first, "")}
    if (wide := sum(t.numel() for t in u)) != z.numel():
        yield finding("not-one-to-one", first, **told, wide=wide, dims=z.numel())
        return
    if (expected := _log_det(z, u)) is None:
        return
    found = float(sum(s.log_prob().sum() for s in made.values()))
    if abs(found + expected) > 1e-2 * (1 + abs(expected)) + 1e-4 * z.numel():
        yield finding("jacobian", first, **told, expected=-expected, found=found)


def _log_det(z: Tensor, u: list[Tensor]) -> float | None:
    """Return log |det dz/du|; None where the matrix is too large, or singular."""

    def pulled(w: Tensor) -> Tensor:
        grads = torch.autograd.grad(z, u, w, allow_unused=True, retain_graph=True)
        return torch.cat([(torch.zeros_like(t) if g is None else g).reshape(-1)
                          for t, g in zip(u, grads)]).double()  # fmt: skip

    diagonal, w = pulled(torch.ones_like(z)), torch.randn_like(z)
    if torch.allclose(pulled(w), diagonal * w, 1e-4, 1e-6):
        out = diagonal.abs().log().sum()
    elif len(z) <= FEW:
        out = torch.linalg.slogdet(torch.stack([pulled(e) for e in torch.eye(len(z)).to(z)]))[1]
    else:
        return None
    return float(out) if torch.isfinite(out) else None
