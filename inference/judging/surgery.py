"""The divergence in two parts: what a latent says of its datum, and codes against the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..draws.sampler import Chunk, strides
from ..estimate import Estimate
from ..weights import log_q_at


@dataclass(frozen=True)
class Surgery:
    """The mean divergence of N rows in two parts, with q(z) = 1/N Σ_i q(z | x_i).

    1/N Σ KL(q(z | x_i) || p(z)) = I(x; z) + KL(q(z) || p(z)),   0 <= I(x; z) <= log N

    Attributes:
        kl, mutual_information, marginal_kl: the three, in nats per datum, with their standard
            errors over rows and draws.
        n: N; the mutual information of few rows is limited by log N, not by the pair.
    """

    kl: Estimate
    mutual_information: Estimate
    marginal_kl: Estimate
    n: int


def operate(chunk: Chunk, rows: int) -> Surgery | None:
    """The parts of the divergence, z drawn once per row and every pair of rows taken exactly.

    Args:
        chunk: one draw of the pair on the data.
        rows: most rows in one run of the guide.

    Returns:
        None where a latent lies outside the data plate, or was summed out, so that there is no
        guide to average over data.

    Source: Hoffman & Johnson 2016, ELBO surgery, NIPS workshop on Advances in Approximate Bayesian
    Inference, eq. 4.
    """
    weights = chunk.weights
    drawn = any(q.free and not q.observed for q in weights.guide.values())
    priors = {n: p for n, p in weights.model.items() if not p.observed}
    summed = any(name in weights.guide for p in weights.model.values() for name in p.sites)
    if len(weights.plates) != 1 or weights.plates[0].size < 2 or not drawn or summed:
        return None
    log_prior, log_q = weights.shared_sum(priors), weights.log_q()
    log_aggregate = _log_aggregate(chunk, rows)
    parts = (log_q - log_prior, log_q - log_aggregate, log_aggregate - log_prior)
    mean = [Estimate.of(p.double().flatten()) for p in parts]
    return Surgery(mean[0], mean[1], mean[2], weights.plates[0].size)


def _log_aggregate(chunk: Chunk, rows: int) -> Tensor:
    """log 1/N Σ_j q(z_i | x_j) for each row's draw z_i: (N,)."""
    pair, weights = chunk.pair, chunk.weights
    (plate,), nesting = weights.plates, weights.nesting
    n, axis = plate.size, nesting + plate.dim
    drawn = {}
    for name, q in weights.guide.items():
        if q.free and not q.observed:
            missing = nesting - (q.value.dim() - q.fn.event_dim)
            drawn[name] = q.value.reshape((1,) * missing + tuple(q.value.shape))
    log_q = weights.log_q()
    total = torch.full((n,), -math.inf, device=log_q.device, dtype=log_q.dtype)
    for part in strides(n, max(1, rows // n)):
        shifts = range(n)[part]
        values = {k: torch.stack([v.roll(-s, axis) for s in shifts]) for k, v in drawn.items()}
        if len(shifts) == 1:  # no particle plate
            values = {k: v[0] for k, v in values.items()}
        terms = log_q_at(
            pair.guide, values, *pair.args,
            particles=len(shifts), nesting=nesting, way=pair.way, **pair.kwargs,
        )  # fmt: skip
        density = replace(weights, guide=terms).log_q().reshape(-1, n)
        for s, row in zip(shifts, density):  # (shift, x): z of row x + shift
            total = torch.logaddexp(total, row.roll(s))
    return (total - math.log(n)).reshape(log_q.shape)
