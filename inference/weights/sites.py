"""Pyro's messages: what a site of a trace says about its log density, plates and scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ..randomness import forked
from .terms import Plate, Term

PARTICLES = "particles"  # the name of the outermost plate

Site = Mapping[str, Any]


def sample_sites(trace: Any) -> dict[str, Site]:
    """The sample sites of a trace, without the draws of subsamples."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }


class _FlatAtZero(Messenger):
    """Flat priors, from which nothing can be drawn, are at zero of their unconstrained space."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["done"] and is_flat(msg["fn"]):
            value = torch.zeros(msg["fn"].shape())
            msg["value"], msg["done"] = biject_to(msg["fn"].support)(value), True


def dry_run(model: Callable, *args: Any, **kwargs: Any) -> dict[str, Site]:
    """Run a model once, on a forked seed, for its sample sites."""
    with forked(), torch.no_grad():
        return sample_sites(poutine.trace(_FlatAtZero()(model)).get_trace(*args, **kwargs))


def is_latent(site: Site) -> bool:
    """Tell whether a site is a draw of the pair's own."""
    drawn = site["type"] == "sample" and not site["is_observed"]
    return drawn and type(site["fn"]).__name__ != "_Subsample"


def is_free(site: Site) -> bool:
    """Tell whether a site's value is drawn, not computed from other sites as a Delta is."""
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__ not in ("Delta", "Unit")


def is_flat(fn: Any) -> bool:
    """Tell whether a distribution is an improper prior, of which there are no draws."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, ImproperUniform)


def is_enumerated(site: Site) -> bool:
    """Tell whether a site's value is its whole support, along a dimension of its own."""
    return site["infer"].get("_enumerate_dim") is not None


def is_discrete(site: Site) -> bool:
    """Tell whether a site is a latent that takes one of several values."""
    latent = site["type"] == "sample" and not site["is_observed"]
    return latent and bool(getattr(site["fn"], "has_enumerate_support", False))


def at_zero(site: Site) -> Tensor:
    """The value of a site whose place on the real line is 0: no draw, so improper priors work."""
    fn, support = site["fn"], biject_to(site["fn"].support)
    inside = [fn]
    while hasattr(inside[-1], "base_dist"):
        inside.append(inside[-1].base_dist)
    numbers = [v for f in inside for v in vars(f).values() if torch.is_tensor(v)]
    like = next((v for v in numbers if v.is_floating_point()), torch.zeros(()))
    return support(like.new_zeros(support.inverse_shape(fn.shape())))


def latents_only(guide: Callable) -> Callable:
    """The guide, without what one of Pyro's messenger guides observes as it runs the model."""
    if not isinstance(poutine.unwrap(guide), GuideMessenger):
        return guide
    return poutine.block(guide, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])


class At(Messenger):
    """Drawn sites take these values and stay latent, inside the block or in `At(values)(fn)`."""

    def __init__(self, values: Mapping[str, Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            value = self.values[msg["name"]]
            whole = len(msg["fn"].shape()) if hasattr(msg["fn"], "shape") else value.dim()
            while value.dim() > whole and value.shape[0] == 1:  # axes of plates it is not in
                value = value[0]
            msg["value"], msg["done"] = value, True


def refuse_unmatched(model_trace: Any, guide_trace: Any) -> None:
    """Raise ValueError for a latent that one half draws and the other lacks.

    A latent drawn from its prior, or a factor log q without its log p, makes of the bound a number
    that may lie above log p(x).
    """
    p, q = sample_sites(model_trace), sample_sites(guide_trace)
    for name, site in p.items():
        if name not in q and is_latent(site) and not is_enumerated(site):
            drawn = ", ".join(map(repr, q)) or "no site"
            raise ValueError(
                f"the guide forgets a latent of the model, site {name!r}: expected "
                f"pyro.sample({name!r}, ...) in the guide, got {drawn}; add it (or give it obs= in "
                "the model), or the bound would not be one."
            )
    for name, site in q.items():
        if name not in p and is_latent(site) and not site["infer"].get("is_auxiliary"):
            latents = ", ".join(repr(n) for n, s in p.items() if is_latent(s)) or "no latent"
            raise ValueError(
                f"the guide draws a site that the model does not have, {name!r}: expected one of "
                f"the model's latents, {latents}; rename or remove it, or mark it "
                "infer={'is_auxiliary': True} where it makes latents (Deltas)."
            )


def log_prob(site: Site) -> Tensor:
    """A site's log density, masked, not scaled."""
    lp = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    mask = site["mask"]
    if mask is None or mask is True:
        return lp
    if mask is False:
        return torch.zeros_like(lp)
    lp, mask = torch.broadcast_tensors(lp, mask)
    return torch.where(mask, lp, lp.new_zeros(()))


def plates_of(site: Site, sizes: Mapping[str, int]) -> tuple[Plate, ...]:
    """The tensor dimensions along which a site is independent, particles left out."""
    out = []
    for f in site["cond_indep_stack"]:
        if f.vectorized and f.name != PARTICLES:
            full = f.full_size if f.full_size not in (None, f.size) else sizes.get(f.name, f.size)
            out.append(Plate(f.name, f.dim, f.size, full / f.size))
    return tuple(out)


def user_scale(site: Site) -> float | Tensor:
    """The site's scale without N/B of its plates (that of plates which are loops stays in)."""
    scale = site["scale"]
    for f in site["cond_indep_stack"]:
        if f.vectorized and f.full_size not in (None, f.size):
            scale = scale / (f.full_size / f.size)
    return 1.0 if isinstance(scale, float) and abs(scale - 1) < 1e-12 else scale


def term_of(name: str, site: Site, lp: Tensor, sizes: Mapping[str, int], **more: Any) -> Term:
    """The term of a site whose log density is `lp`."""
    loops = [f for f in site["cond_indep_stack"] if not f.vectorized and f.full_size is not None]
    return Term(
        name,
        lp,
        plates_of(site, sizes),
        user_scale(site),
        observed=site["is_observed"],
        auxiliary=bool(site["infer"].get("is_auxiliary")),
        fn=site["fn"],
        value=site["value"],
        mask=site["mask"],
        enumerated=is_enumerated(site),
        free=is_free(site),
        reparameterized=bool(getattr(site["fn"], "has_rsample", False)),
        deterministic=bool(site["infer"].get("_deterministic")),
        looped=math.prod(f.full_size / f.size for f in loops),
        infer=site["infer"],
        **more,
    )


def terms_of(
    trace: Any, particles: int, nesting: int, sizes: Mapping[str, int], constant: bool = False
) -> dict[str, Term]:
    """Every sample site of a trace without enumeration, its log density shaped (K, *plates).

    Args:
        constant: take the densities of computed sites as constants.

    Raises:
        ValueError: a log density has dimensions that no plate accounts for.
    """
    out = {}
    for name, site in sample_sites(trace).items():
        lp = log_prob(site)
        lead = lp.dim() - nesting
        if lead > 1 or (lead == 1 and lp.shape[0] not in (1, particles)):
            raise ValueError(
                f"site {name!r}: its log density has shape {tuple(lp.shape)}, but the pair has "
                f"{nesting} plate dimensions and {particles} particles. Declare event dimensions "
                "with .to_event()."
            )
        lp = lp.detach() if constant and not is_free(site) else lp
        out[name] = term_of(name, site, lp.reshape((1,) * (1 - lead) + lp.shape), sizes)
    return out
