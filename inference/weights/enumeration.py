"""Discrete latents exactly: those the guide lacks are summed out, those it marks are averaged.

Both work on Pyro's packed tensors, whose dimensions are named by symbols: one symbol per plate
(the particles' plate too) and one per enumerated site.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
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
from .terms import LogWeights, Term


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


def branches(weights: LogWeights) -> bool:
    """Tell whether a guide's draw has a value for every value of a latent that is averaged over."""
    drawn = (t for t in weights.guide.values() if t.free and not (t.observed or t.enumerated))
    return any(t.averaged for t in drawn)


def without_averages(guide: Callable) -> Callable:
    """The guide, whose discrete latents are drawn where they are marked to be averaged over."""
    return poutine.infer_config(guide, lambda site: {"enumerate": None})  # type: ignore[typeddict-item]


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


def posterior_of(trace: Any, nesting: int, drawing: bool) -> dict[str, Tensor]:
    """Posterior of a model's enumerated sites: site -> (*plates, C), right-aligned in its plates.

    Given the trace's other values: the probabilities of a site's C values, the gradient of the log
    of the sum by the logarithms of its terms; or, `drawing`, one draw of all sites together, as
    ones and zeros. Takes one pass forward and one back along a chain.
    """
    _pack(trace, None)
    sites = sample_sites(trace)
    summed = {n: s for n, s in sites.items() if is_enumerated(s)}
    symbols = {n: s["infer"]["_enumerate_symbol"] for n, s in summed.items()}
    dims, zeros = {}, {}
    for name, site in summed.items():  # over all elements of its plates: each has a draw of its own
        around = sorted(frames(site), key=lambda f: f.dim)
        dims[name] = "".join(trace.plate_to_symbol[f.name] for f in around) + symbols[name]
        lp = site["packed"]["log_prob"]
        zeros[name] = lp.new_zeros([f.size for f in around] + [_sizes([lp])[symbols[name]]])

    def log_sum(leaves: Mapping[str, Tensor]) -> Tensor:
        factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
        for name, site in sites.items():
            lp = site["packed"]["log_prob"]
            if set(symbols.values()).isdisjoint(lp._pyro_dims):
                continue
            if name in leaves:
                leaf: Any = leaves[name].clone()
                leaf._pyro_dims = dims[name]
                lp = _product([lp, leaf])
            ordinal = frozenset(trace.plate_to_symbol[f.name] for f in frames(site))
            factors.setdefault(ordinal, []).append(lp)
        ring = _LogSumExp(drawing)
        contracted = contract_tensor_tree(factors, set(symbols.values()), ring=ring)
        return torch.stack([part.sum() for parts in contracted.values() for part in parts]).sum()

    found = torch.func.grad(log_sum)(zeros)
    out = {}
    for name, site in summed.items():
        size = {f.dim: f.size for f in frames(site)}
        front = [size.get(d, 1) for d in range(min([-nesting, *size]), 0)]
        out[name] = found[name].reshape(*front, -1)
    return out


SMALL = 2**13  # entries of a joint density that is summed beside others of its kind


class _LogSumExp(LogRing):
    """Sums of products in logarithms, the cheapest first, those of one kind at once.

    Every second state of a Markov chain is summed out in one operation, so that T states take
    log T of them (Särkkä and García-Fernández 2021, arXiv:1905.13002, section IV).

    Pyro's own takes exponentials factor by factor, which can underflow, and through an
    `autograd.Function` that `torch.func` cannot transform.

    Args:
        drawing: let the gradient of a sum be a draw of one of its entries, by their shares, in
            place of the shares. That of the whole is then a draw of all variables together, made
            as forward filtering and backward sampling makes it.
    """

    def __init__(self, drawing: bool = False):
        super().__init__()
        self.drawing = drawing

    def sumproduct(self, terms: Any, dims: Any) -> Tensor:
        """The sum over `dims` of the product of packed terms."""
        left = dict(enumerate(terms))
        at: dict[str, set[int]] = {d: set() for d in sorted(dims)}  # which terms have it
        costs: dict[str, int] = {}
        changed: Iterable[int] = left
        while at:
            for i in changed:
                for d in at.keys() & set(left[i]._pyro_dims):
                    at[d].add(i)
                    costs.pop(d, None)
            for d in at.keys() - costs.keys():
                costs[d] = math.prod(_sizes(left[i] for i in at[d]).values())
            alike: dict[Any, list[tuple[str, list[Any]]]] = {}
            taken: set[int] = set()
            for d in sorted(at, key=lambda d: (costs[d], d)):
                if taken.isdisjoint(at[d]) and (not alike or costs[d] <= SMALL):
                    taken |= at[d]
                    kind, ordered = _kind([left[i] for i in sorted(at[d])], d)
                    alike.setdefault(kind, []).append((d, ordered))
            for i in taken:
                left.pop(i)
            for group in alike.values():
                for d, _ in group:
                    at.pop(d), costs.pop(d)
            for ids in at.values():
                ids -= taken
            new = [
                t for group in alike.values() if group[0][1] for t in _sums_out(group, self.drawing)
            ]
            changed = range(first := max(left, default=-1) + 1, first + len(new))
            left.update(zip(changed, new))
        return _product(list(left.values()))


def _sizes(terms: Iterable[Any]) -> dict[str, int]:
    return {d: n for t in terms for d, n in zip(t._pyro_dims, t.shape)}


def _kind(terms: list[Any], dim: str) -> tuple[Any, list[Any]]:
    """The pattern in which factors depend on a variable and on others, and the factors in order.

    Sums over variables of one kind differ in the entries of their factors alone.
    """
    sizes = _sizes(terms)
    places = {d: i for i, d in enumerate([dim, *sorted(sizes.keys() - {dim})])}
    ordered = sorted(terms, key=lambda t: sorted(places[d] for d in t._pyro_dims))
    kind = tuple(
        tuple(sorted((places[d], n) for d, n in zip(t._pyro_dims, t.shape))) for t in ordered
    )
    return kind, ordered


def _product(terms: list[Any]) -> Tensor:
    terms = list(packed.broadcast_all(*terms, dims="".join(sorted(_sizes(terms)))))
    out = functools.reduce(torch.add, terms)
    out._pyro_dims = terms[0]._pyro_dims
    return out


def _sums_out(group: list[tuple[str, list[Any]]], drawing: bool = False) -> list[Any]:
    """log Σ exp of the sum of the factors of each variable of one kind, over that variable."""
    names = [d + "".join(sorted(_sizes(terms).keys() - {d})) for d, terms in group]
    total: Any = 0.0
    for column in zip(*(terms for _, terms in group)):
        laid = [_laid(t, dims) for t, dims in zip(column, names)]
        total = total + (torch.stack(laid) if len(laid) > 1 else laid[0][None])
    top = total.detach().amax(1, keepdim=True).clamp(min=torch.finfo(total.dtype).min)
    rest = (total - top).exp().sum(1)  # no gradient where every entry is -inf
    tiny = torch.finfo(rest.dtype).tiny
    whole = torch.where(rest > 0, rest.clamp(min=tiny).log() + top.squeeze(1), -math.inf)
    if drawing:
        noise = -(-torch.rand_like(total).clamp(min=tiny).log()).log()  # Gumbel's
        drawn = total.gather(1, (total.detach() + noise).argmax(1, keepdim=True)).squeeze(1)
        whole = whole.detach() + torch.where(rest > 0, drawn - drawn.detach(), 0.0)
    sums = whole.unbind()
    for out, dims in zip(sums, names):
        out._pyro_dims = dims[1:]  # type: ignore[attr-defined]
    return list(sums)


def _laid(term: Any, dims: str) -> Tensor:
    """A packed term with an axis for each of `dims`, of length one where it has none."""
    mine: str = term._pyro_dims
    order = [mine.index(d) for d in dims if d in mine]
    return term.permute(order)[tuple(slice(None) if d in mine else None for d in dims)]


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
