"""A chunk of draws as arrays with named axes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..elbo.base import latent_of
from ..pairs.gate import CheckedPair
from ..weights import LogWeights, Term, by_plate
from .density import is_discrete, unconstrained
from .sampler import Chunk, tensor_arguments

GROUPS = (
    "posterior", "unconstrained_posterior", "log_likelihood", "log_prior", "posterior_predictive",
    "prior", "prior_predictive", "sample_stats",
)  # fmt: skip
DECOMPOSED = ("divergence", "divergence_per_dim")  # of a judge's, not ArviZ's
DENSITIES = ("log_likelihood", "log_prior", "sample_stats", *DECOMPOSED)  # float64
RESERVED = ("chain", "draw", "sample")  # axes that mean something to ArviZ


@dataclass
class Variable:
    """An array, the names of its axes, and labels along some of them."""

    array: Any  # a tensor, or a NumPy array
    dims: tuple[str, ...]
    labels: dict[str, np.ndarray] = field(default_factory=dict)


Named = Iterable[tuple[str, tuple[Tensor, Sequence[str | None]]]]  # arrays and their axes
Tree = dict[str, dict[str, Variable]]  # group -> name -> variable, axes (draw, *plates, *event)


def named_arrays(chunk: Chunk, groups: Sequence[str] = GROUPS) -> Tree:
    """All that a pair says about a chunk of draws: a reduction for `sample`.

    Groups are `GROUPS`, as in `to_datatree`, and besides them, in nats:

    - `divergence`: `reconstruction` = log p(x | z), and each latent's log q - log p, for each
      element of the plates that all sites share;
    - `divergence_per_dim`: each latent's KL(q || p) by dimension, where it has a closed form;
    - `discrete`: the probabilities of the values of each latent that the model sums out.
    """
    pair, weights = chunk.pair, chunk.weights
    k, nesting = weights.particles, weights.nesting
    latent = {n: t for n, t in weights.model.items() if t.is_latent}
    computed = {n: t for n, t in weights.model.items() if t.is_computed}
    out: Tree = {g: {} for g in groups}

    def put(group: str, arrays: Named) -> None:
        for name, (tensor, axes) in arrays if group in out else ():
            tensor = tensor.double() if group in DENSITIES else tensor
            out[group][name] = Variable(tensor.detach(), dims_of(name, axes))

    def drawn(terms: Mapping[str, Term | None]) -> Named:
        return ((n, t.values(k, nesting)) for n, t in terms.items() if t is not None)

    def dense(terms: Mapping[str, Term]) -> Named:
        return ((n, t.pointwise(k, nesting)) for n, t in terms.items())

    def shared(tensors: Mapping[str, Tensor]) -> Named:
        plates = weights.plates
        return ((n, by_plate(t, 0, plates, k, nesting)) for n, t in tensors.items())

    put("posterior", drawn({**latent, **computed}))
    if not {"posterior", "discrete"}.isdisjoint(out) and sums_out(weights):
        values, shares = pair.discrete(k, {n: t.value for n, t in latent.items()})
        put("posterior", drawn(values))
        put("discrete", drawn(shares))
    put("log_prior", dense(latent))
    if "unconstrained_posterior" in out:
        put("unconstrained_posterior", drawn({n: unconstrained(t) for n, t in latent.items()}))
    if "log_likelihood" in out:
        put("log_likelihood", dense(_likelihood(pair, weights)))
    if "sample_stats" in out:
        whole = {"log_p": weights.log_p(), "log_q": weights.log_q()}
        put("sample_stats", ((n, (weights.total(t), [])) for n, t in whole.items()))
        put("sample_stats", shared({"log_weight": weights.log_weight()}))
    if "divergence" in out:
        put("divergence", shared(_divergences(weights)))
    if "divergence_per_dim" in out:
        axes = [p.name for p in weights.plates] if len(weights.plates) == 1 else [None]
        per_dim = _divergences_per_dim(weights).items()
        put("divergence_per_dim", ((n, (kl, [*axes, None])) for n, kl in per_dim))
    if "posterior_predictive" in out:
        terms, data = pair.simulate(k, {n: t.value for n, t in latent.items()})
        put("posterior_predictive", drawn({n: counted(terms[n]) for n in data}))
    if "prior" in out or "prior_predictive" in out:
        prior, data = pair.simulate(k)
        put("prior_predictive", drawn({n: counted(prior[n]) for n in data}))
        put("prior", drawn({n: prior[n] for n in (*latent, *computed)}))
    return out


def sums_out(weights: LogWeights) -> bool:
    """Tell whether the model has latents that were summed out, and the guide none that were."""
    enumerated = any(t.enumerated for t in weights.guide.values())
    return any(t.fn is None for t in weights.model.values()) and not enumerated


def gathered(parts: Iterable[tuple[slice, Sequence[Tree]]], draws: int) -> Tree:
    """Chunks of several chains as one tree of numpy arrays with axes (chain, draw, ...).

    Args:
        parts: which draws a chunk holds, and the tree of each chain.
        draws: of each chain, in all.
    """
    whole: Tree = {}
    for here, trees in parts:
        for i, tree in enumerate(trees):
            for group, variables in tree.items():
                mine = whole.setdefault(group, {})
                for name, v in variables.items():
                    array = numpy_of(v.array)
                    if name not in mine:
                        empty = np.empty((len(trees), draws, *array.shape[1:]), array.dtype)
                        mine[name] = Variable(empty, ("chain", "draw", *v.dims))
                    mine[name].array[i, here] = array
    return whole


def observations(pair: CheckedPair) -> tuple[dict[str, Variable], dict[str, Variable]]:
    """Return what the pair observes, and the other tensors among its arguments, by name."""
    terms, data = pair.once()
    observed = {}
    for name, value in data.items():
        tensor, axes = counted(terms[name].having(value=value)).values(1, pair.nesting)
        observed[name] = Variable(numpy_of(tensor[0]), dims_of(name, axes))
    return observed, constants(pair, terms, data)


def constants(
    pair: CheckedPair, terms: Mapping[str, Term], observed: Mapping[str, object]
) -> dict[str, Variable]:
    """Return the tensors among a pair's arguments that it does not observe, by name."""
    plates = {p.size: p.name for t in terms.values() for p in t.plates}
    out = {}
    for name, a in tensor_arguments(pair).items():
        if not any(is_same(a, v) for v in observed.values()):
            axes = [plates.get(n) if i == 0 else None for i, n in enumerate(a.shape)]
            out[name] = Variable(numpy_of(a), dims_of(name, axes))
    return out


def coordinate_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """`tau`, `theta[0]`, `theta[1]`, …, `w[0, 1]`; axes of length one left out."""
    sizes = [n for n in shape if n > 1]
    if not sizes:
        return [name]
    return [f"{name}[{', '.join(map(str, i))}]" for i in itertools.product(*map(range, sizes))]


def numpy_of(array: Tensor | np.ndarray) -> np.ndarray:
    """An array on the host."""
    return array.detach().cpu().numpy() if torch.is_tensor(array) else array


def _likelihood(pair: CheckedPair, weights: LogWeights) -> dict[str, Term]:
    """log p of the observations, those summed over discrete latents under their own names."""
    out = {n: t for n, t in weights.model.items() if t.is_data}
    summed = {n: t for n, t in out.items() if t.fn is None}
    if summed:
        data = pair.once()[1]
        for label, term in summed.items():
            names = [n for n in term.sites if n in data]
            if len(names) == 1 and names[0] not in out:
                out[names[0]] = out.pop(label)
    return out


def _divergences(weights: LogWeights) -> dict[str, Tensor]:
    """log p(x | z) and each latent's log q - log p, (K, *shared), nats.

    One number for "latents" that are drawn jointly. An auxiliary guide site `<name>_...` is counted
    with the latent that it makes.
    """
    total = weights.shared_sum
    observed = {n: t for n, t in weights.model.items() if t.observed}
    priors = {n: p for n, p in weights.model.items() if not (p.observed or p.deterministic)}
    pieces: dict[str | None, dict[str, Term]] = {name: {} for name in priors}
    for name, q in weights.guide.items():
        pieces.setdefault(latent_of(name, priors), {})[name] = q
    out = {"reconstruction": total(observed)}
    if None in pieces and priors:  # some are drawn together
        name = "latents" if len(priors) > 1 else next(iter(priors))
        return {**out, f"kl:{name}": total(weights.guide) - total(priors)}
    return {**out, **{f"kl:{n}": total(pieces[n]) - total({n: p}) for n, p in priors.items()}}


def _divergences_per_dim(weights: LogWeights) -> dict[str, Tensor]:
    """Latent -> KL(q || p) of each dimension where both are independent ones, (K or 1, B, L)."""
    out = {}
    for name, q in weights.guide.items():
        halves = [t.fn for t in (q, weights.model.get(name)) if t is not None]
        independent = [f for f in halves if isinstance(f, Independent) and len(f.event_shape) == 1]
        if len(independent) < 2:
            continue
        with contextlib.suppress(NotImplementedError):  # no closed form
            kl = kl_divergence(*(f.base_dist for f in independent))
            if kl.dim() >= 2 and kl.shape[-1] == q.value.shape[-1]:
                out[name] = kl.reshape(-1, *kl.shape[-2:])
    return out


def is_same(a: object, b: object) -> bool:
    """Tell whether two things are one tensor, or two views of all of it."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


def counted(term: Term) -> Term:
    """Whole numbers as integers, so that what reads them knows that they are counts."""
    value = torch.as_tensor(term.value)
    if not is_discrete(term) or not value.is_floating_point() or not (value == value.round()).all():
        return term
    return term.having(value=value.to(torch.int64))


def dims_of(name: str, axes: Sequence[str | None]) -> tuple[str, ...]:
    """Plate names, and for the other axes the site's: `z_dim`, or `z_dim_0`, `z_dim_1`, …"""
    unnamed = sum(a is None for a in axes)
    own = iter([f"{name}_dim"] if unnamed == 1 else [f"{name}_dim_{i}" for i in range(unnamed)])
    names = [next(own) if a is None else a for a in axes]
    return tuple(f"{n}_plate" if n in RESERVED else n for n in names)
