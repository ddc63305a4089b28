"""The parts of a log weight: reconstruction, and the divergence of each latent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..weights import LogWeights, Term


def shared_sum(weights: LogWeights, terms: list[Term]) -> Tensor:
    """The sum of some terms over the plates that not all sites share: (K, *shared)."""
    zero = torch.zeros_like(weights.log_weight())
    return sum((t.sum_to(weights.plates) for t in terms), start=zero)


def reconstruction(weights: LogWeights) -> Tensor:
    """log p(x | z) per particle and element of the shared plates: (K, *shared), nats."""
    return shared_sum(weights, [t for t in weights.model.values() if t.observed])


def divergences(weights: LogWeights) -> dict[str, Tensor]:
    """Latent -> log q - log p, (K, *shared); one number for "latents" that are drawn jointly.

    An auxiliary guide site `<name>_...` is counted with the latent that it makes.
    """
    priors = {n: p for n, p in weights.model.items() if not (p.observed or p.deterministic)}
    pieces: dict[str, list[Term]] = {name: [] for name in priors}
    joint = []
    for name, q in weights.guide.items():
        owners = [n for n in priors if name == n or name.startswith(f"{n}_")]
        pieces[max(owners, key=len)].append(q) if owners else joint.append(q)
    if joint and priors:
        every = [q for qs in pieces.values() for q in qs] + joint
        name = "latents" if len(priors) > 1 else next(iter(priors))
        return {name: shared_sum(weights, every) - shared_sum(weights, list(priors.values()))}
    return {n: shared_sum(weights, pieces[n]) - shared_sum(weights, [p]) for n, p in priors.items()}


def divergences_per_dim(weights: LogWeights) -> dict[str, Tensor]:
    """Latent -> KL(q || p) of each dimension where both are independent ones, (K or 1, B, L)."""
    out = {}
    for name, q in weights.guide.items():
        p = weights.model.get(name)
        if p is not None and (kl := _kl_per_dim(q, p)) is not None:
            out[name] = kl
    return out


def _kl_per_dim(q: Term, p: Term) -> Tensor | None:
    if not all(isinstance(t.fn, Independent) and len(t.fn.event_shape) == 1 for t in (q, p)):
        return None
    try:
        kl = kl_divergence(q.fn.base_dist, p.fn.base_dist)
    except NotImplementedError:
        return None
    if kl.dim() < 2 or kl.shape[-1] != q.value.shape[-1]:
        return None
    return kl.reshape(-1, *kl.shape[-2:])
