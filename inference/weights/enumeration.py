"""Discrete latents exactly: those the guide lacks are summed out, those it marks are averaged.

Both work on Pyro's packed tensors, whose dimensions are named by symbols: one symbol per plate
(the particles' plate too) and one per enumerated site.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from torch import Tensor

from .sites import (
    Site,
    is_enumerated,
    is_free,
    log_prob,
    plates_of,
    sample_sites,
    term_of,
    user_scale,
)
from .terms import Term


class _Average:
    """E_q over the guide's enumerated sites of a packed term."""

    def __init__(self, guide_trace: Any, nesting: int, dims: Mapping[str, int], constant: bool):
        self.nesting, self.dims = nesting, dims
        self.sites = [s for s in sample_sites(guide_trace).values() if is_enumerated(s)]
        log_q = [s["packed"]["log_prob"] for s in self.sites]
        self.factors = [(lp.detach() if constant else lp).exp() for lp in log_q]
        self.symbols = {d for lp in log_q for d in lp._pyro_dims if not self.plate(d)}

    def plate(self, symbol: str) -> bool:
        """Tell whether a symbol is a plate's."""
        return self.dims[symbol] >= -self.nesting - 1

    def depends(self, value: Tensor) -> bool:
        """Tell whether a packed term varies with an enumerated guide site."""
        return not self.symbols.isdisjoint(value._pyro_dims)  # type: ignore[attr-defined]

    def __call__(self, value: Tensor, ordinal: frozenset) -> Tensor:
        """The mean, unpacked to (K, *plates)."""
        dims: str = value._pyro_dims  # type: ignore[attr-defined]
        if self.depends(value):
            upstream = [i for i, s in enumerate(self.sites) if frames(s) <= ordinal]
            names = [self.sites[i]["packed"]["log_prob"]._pyro_dims for i in upstream]
            missing = self.symbols & set(dims) - set("".join(names))
            if missing:
                site = next(s for s in self.sites if s["infer"]["_enumerate_symbol"] in missing)
                inner = sorted(f.name for f in frames(site) - ordinal)
                raise ValueError(
                    f"guide site {site['name']!r} is enumerated inside plate {', '.join(inner)}, "
                    "but something outside that plate depends on it: its exact average would run "
                    "over every combination. Draw it (no infer={'enumerate': ...}), or take it out "
                    "of the guide."
                )
            out = "".join(sorted({d for n in (dims, *names) for d in n if self.plate(d)}))
            value = _mean(value, [self.factors[i] for i in upstream], [dims, *names], out)
            value._pyro_dims = out  # type: ignore[attr-defined]
        lp = packed.unpack(value, self.dims)
        return lp.reshape((1,) * (self.nesting + 1 - lp.dim()) + lp.shape)


def _mean(value: Tensor, factors: list[Tensor], dims: list[str], out: str) -> Tensor:
    """Σ value · Π factors, where an impossible value (-inf) of probability 0 adds nothing."""
    equation = ",".join(dims) + "->" + out
    impossible = value == -math.inf
    mean = torch.einsum(equation, value.masked_fill(impossible, 0.0), *factors)
    with torch.no_grad():
        reached = torch.einsum(equation, impossible.to(value.dtype), *factors) > 0
    return mean.masked_fill(reached, -math.inf)


def averaged(
    trace: Any, guide_trace: Any, nesting: int, sizes: Mapping[str, int], constant: bool = False
) -> dict[str, Term]:
    """The terms of one half, averaged over the guide's enumerated sites.

    Sites of the model that the guide lacks are summed out before.

    Args:
        trace, guide_trace: of the half, and of the guide (which may be the half, and comes first).
        constant: take the probabilities of enumerated sites and the densities of computed sites
            as constants: what is left to differentiate is the score of the drawn ones.

    Raises:
        ValueError: sites that share an enumerated latent differ in scale, or lie in a subsampled
            plate that the latent is outside of.
    """
    _pack(trace, None if trace is guide_trace else guide_trace.plate_to_symbol)
    dims = {**guide_trace.symbol_to_dim, **trace.symbol_to_dim}
    average = _Average(guide_trace, nesting, dims, constant)
    sites = sample_sites(trace)
    summed = {n: s for n, s in sites.items() if n not in guide_trace and is_enumerated(s)}
    symbols = {s["infer"]["_enumerate_symbol"]: n for n, s in summed.items()}
    out: dict[str, Term] = {}
    factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    involved: dict[str, Site] = {}
    for name, site in sites.items():
        lp = site["packed"]["log_prob"]
        if symbols.keys().isdisjoint(lp._pyro_dims):
            if constant and (is_enumerated(site) or not is_free(site)):
                named, lp = lp._pyro_dims, lp.detach()
                lp._pyro_dims = named
            mean, depends = average(lp, frames(site)), average.depends(lp)
            out[name] = term_of(name, site, mean, sizes, averaged=depends)
        else:
            around = frozenset(trace.plate_to_symbol[f.name] for f in frames(site))
            factors.setdefault(around, []).append(lp)
            involved[name] = site
            for symbol in symbols.keys() & set(lp._pyro_dims):
                _refuse_subsampled(symbols[symbol], summed[symbols[symbol]], name, site, sizes)
    if involved:
        scales = [user_scale(s) for s in involved.values()]
        if len({id(s) if torch.is_tensor(s) else s for s in scales}) > 1:
            raise ValueError(
                f"sites {list(involved)}: those that share an enumerated latent must have one "
                f"poutine.scale, got {scales}."
            )
        frame = {trace.plate_to_symbol[f.name]: f for s in involved.values() for f in frames(s)}
        contracted = contract_tensor_tree(factors, set(symbols), ring=_LogSumExp())
        for i, (around, parts) in enumerate(contracted.items()):
            ordinal = frozenset(frame[symbol] for symbol in around)
            plates = plates_of({"cond_indep_stack": tuple(ordinal)}, sizes)
            for j, part in enumerate(parts):
                name = "marginal:" + ",".join(involved) + (f"[{i},{j}]" if i + j else "")
                lp, of = average(part, ordinal), tuple(involved)
                out[name] = Term(name, lp, plates, scales[0], observed=True, sites=of)
    return out


class _LogSumExp(LogRing):
    """Sums of products in logarithms, one variable after another, the cheapest first.

    Pyro's own takes exponentials factor by factor, which can underflow, and through an
    `autograd.Function` that `torch.func` cannot transform.
    """

    def sumproduct(self, terms: Any, dims: Any) -> Tensor:
        """The sum over `dims` of the product of packed terms."""
        left, todo = list(terms), set(dims)
        while todo:
            joint = {d: _sizes(t for t in left if d in t._pyro_dims) for d in sorted(todo)}
            cheapest = min(joint, key=lambda d: math.prod(joint[d].values()))
            touched = [t for t in left if cheapest in t._pyro_dims]
            left = [t for t in left if cheapest not in t._pyro_dims]
            if touched:
                left.append(_sum_out(_product(touched), cheapest))
            todo.remove(cheapest)
        return _product(left)


def _sizes(terms: Iterable[Any]) -> dict[str, int]:
    return {d: n for t in terms for d, n in zip(t._pyro_dims, t.shape)}


def _product(terms: list[Any]) -> Tensor:
    terms = list(packed.broadcast_all(*terms, dims="".join(sorted(_sizes(terms)))))
    out = functools.reduce(torch.add, terms)
    out._pyro_dims = terms[0]._pyro_dims
    return out


def _sum_out(term: Any, dim: str) -> Tensor:
    """log Σ exp along a dimension, with zero gradient where every entry is -inf."""
    at = term._pyro_dims.index(dim)
    top = term.detach().amax(at, keepdim=True).clamp(min=torch.finfo(term.dtype).min)
    total = (term - top).exp().sum(at)
    tiny = torch.finfo(term.dtype).tiny
    out = torch.where(total > 0, total.clamp(min=tiny).log() + top.squeeze(at), -math.inf)
    out._pyro_dims = term._pyro_dims.replace(dim, "")  # type: ignore[attr-defined]
    return out


def frames(site: Site) -> frozenset:
    """The plates of a site that are tensor dimensions, as Pyro's frames."""
    return frozenset(f for f in site["cond_indep_stack"] if f.vectorized)


def _pack(trace: Any, plate_to_symbol: Mapping[str, str] | None) -> None:
    """Name the dimensions of every log density of a trace."""
    sites = sample_sites(trace)
    for name, site in trace.nodes.items():
        if name in sites:
            site["unscaled_log_prob"] = site["log_prob"] = log_prob(site)
        elif site["type"] == "sample":
            trace.nodes[name] = {**site, "type": "subsample"}
    trace.pack_tensors(plate_to_symbol)


def _refuse_subsampled(
    latent: str, summed: Site, name: str, site: Site, sizes: Mapping[str, int]
) -> None:
    around = {f.name for f in frames(summed)}
    for plate in plates_of(site, sizes):
        if plate.scale != 1 and plate.name not in around:
            raise ValueError(
                f"site {latent!r} is summed out over all data at once, because it lies outside the "
                f"subsampled plate {plate.name!r} of site {name!r}: a mini-batch would be biased. "
                "Use the full data (batch_size=None), or draw the site in the guide."
            )
