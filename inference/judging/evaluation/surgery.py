"""The divergence in two parts: what a latent says of its datum, and codes against the prior.

Source: Hoffman & Johnson 2016, ELBO surgery, NIPS workshop on Advances in Approximate Bayesian
Inference, eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...draws.sampler import strides
from ...estimate import Estimate
from ...results.result import Result
from ...results.table import Table
from ...weights import LogWeights, log_q_at


@dataclass(frozen=True, repr=False)
class Surgery(Result):
    """The mean divergence of N rows in two parts, with q(z) = 1/N Σ_i q(z | x_i).

    1/N Σ KL(q(z | x_i) || p(z)) = I(x; z) + KL(q(z) || p(z)),   0 <= I(x; z) <= log N

    Attributes:
        kl, mutual_information, marginal_kl: the three, in nats per datum.
        kl_se, mutual_information_se, marginal_kl_se: their standard errors over rows and draws.
        n: N; the mutual information of few rows is limited by log N, not by the pair.
    """

    kl: float
    kl_se: float
    mutual_information: float
    mutual_information_se: float
    marginal_kl: float
    marginal_kl_se: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        """The parts with their errors, by name."""
        return {
            "mutual_information": self.mutual_information,
            "mutual_information_se": self.mutual_information_se,
            "marginal_kl": self.marginal_kl, "marginal_kl_se": self.marginal_kl_se,
            "surgery_n": self.n,
        }  # fmt: skip

    def table(self) -> Table:
        """A part to a line."""
        limit = f"{self.n:,} rows, at most {math.log(self.n):.2f}"
        information = Estimate(self.mutual_information, self.mutual_information_se)
        marginal = Estimate(self.marginal_kl, self.marginal_kl_se)
        rows = [
            ["KL = I(x; z)", information.number(3), limit],
            ["  + KL(q(z) || p(z))", marginal.number(3), ""],
        ]
        return Table(["", "", ""], rows, left=(0, 2))


def operate(
    weights: LogWeights, guide: Callable, args: tuple, kwargs: dict[str, Any], rows: int
) -> Surgery | None:
    """The parts of the divergence, z drawn once per row and every pair of rows taken exactly.

    Args:
        weights: the pair's log weights on the data, one particle.
        guide, args, kwargs: what was run to get them.
        rows: most rows in one run of the guide.

    Returns:
        None where a latent lies outside the data plate, or was summed out, so that there is no
        guide to average over data.
    """
    drawn = [q for q in weights.guide.values() if q.free and not q.observed]
    priors = {n: p for n, p in weights.model.items() if not p.observed}
    summed = any(name in weights.guide for p in weights.model.values() for name in p.sites)
    if len(weights.plates) != 1 or weights.plates[0].size < 2 or not drawn or summed:
        return None
    log_prior = weights.shared_sum(priors)
    log_q, log_aggregate = weights.log_q(), _log_aggregate(weights, guide, args, kwargs, rows)
    parts = (log_q - log_prior, log_q - log_aggregate, log_aggregate - log_prior)
    whole, information, marginal = (Estimate.of(p.detach().double().flatten()) for p in parts)
    return Surgery(*whole, *information, *marginal, n=weights.plates[0].size)


def _log_aggregate(
    weights: LogWeights, guide: Callable, args: tuple, kwargs: dict[str, Any], rows: int
) -> Tensor:
    """log 1/N Σ_j q(z_i | x_j) for each row's draw z_i: (N,)."""
    (plate,) = weights.plates
    n, nesting = plate.size, weights.nesting
    drawn = {}
    for name, q in weights.guide.items():
        if q.free and not q.observed:
            event = q.fn.event_dim
            batch = q.value.dim() - event
            shape = (1,) * (nesting - batch) + tuple(q.value.shape)
            drawn[name] = (q.value.reshape(shape), nesting + plate.dim)
    log_q = weights.log_q()
    total = torch.full((n,), -math.inf, device=log_q.device, dtype=log_q.dtype)
    for part in strides(n, max(1, rows // n)):
        shifts = range(n)[part]
        values = {
            k: torch.stack([v.roll(-s, axis) for s in shifts]) if len(shifts) > 1
            else v.roll(-part.start, axis)
            for k, (v, axis) in drawn.items()
        }  # fmt: skip
        terms = log_q_at(guide, values, *args, particles=len(shifts), nesting=nesting, **kwargs)
        density = replace(weights, guide=terms).log_q().reshape(-1, n)
        for s, row in zip(shifts, density):  # (shift, x): z of row x + shift
            total = torch.logaddexp(total, row.roll(s))
    return (total - math.log(n)).reshape(log_q.shape)
