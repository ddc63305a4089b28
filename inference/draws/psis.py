"""Pareto-smoothed importance sampling, for many sets of log weights at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EQUAL = 1e-3  # nats by which log weights may differ and yet be called the same
LEAST = 25  # draws below which there are no five weights of a tail
GOOD = 0.7  # k-hat above which importance weights are not to be trusted, for a few thousand draws


def psis(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth the largest importance weights by a generalised Pareto tail.

    The M = ⌊min(K/5, 3 √K)⌋ largest weights are replaced by the expected order statistics of the
    tail fitted to them; its shape k̂ says how many moments the weights have.

    Args:
        log_weights: (K, ...), unnormalised, over K draws.

    Returns:
        The smoothed, normalised log weights (K, ...), and k̂ (...): -infinity where all weights are
        the same to a thousandth (the guide is the posterior, and what differs is rounding),
        infinity where fewer than five tail weights differ otherwise, so that no tail can be fitted.

    Raises:
        ValueError: K < 25, too few for a tail of five.

    Source: Vehtari et al. 2024, arXiv:1507.02646, section 2; tail fit of Zhang & Stephens 2009.
    """
    k = log_weights.shape[0]
    if k < LEAST:
        raise ValueError(f"psis: expected at least {LEAST} draws, got {k}.")
    shape = log_weights.shape[1:]
    lw = log_weights.reshape(k, -1).to(torch.float64)
    lw = lw - lw.max(0).values
    ranked, order = lw.sort(0)  # (K, N), ascending
    tail = tail_size(k)
    cutoff = ranked[-tail - 1].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    excess = (ranked[-tail:].exp() - cutoff.exp()).clamp(min=0.0)  # (M, N)
    shape_hat, scale = _pareto(excess)
    at = (torch.arange(tail, dtype=lw.dtype, device=lw.device) + 0.5) / tail
    safe = torch.where(shape_hat.abs() < 1e-30, torch.full_like(shape_hat, 1e-30), shape_hat)
    quantile = torch.expm1(-safe * torch.log1p(-at).unsqueeze(-1)) / safe * scale  # (M, N)
    smooth = (quantile + cutoff.exp()).log().clamp(max=0.0)
    usable = ((ranked[-tail:] > cutoff).sum(0) > 4) & torch.isfinite(shape_hat)
    ranked = torch.cat([ranked[:-tail], torch.where(usable, smooth, ranked[-tail:])])
    out = torch.empty_like(lw).scatter_(0, order, ranked)
    khat = torch.where(usable, shape_hat, torch.full_like(shape_hat, math.inf))
    khat = torch.where(lw.min(0).values > -EQUAL, -math.inf, khat)
    out = out - torch.logsumexp(out, 0)
    return out.reshape(k, *shape).to(log_weights.dtype), khat.reshape(shape).to(log_weights.dtype)


def tail_size(draws: int) -> int:
    """Count the largest weights that k̂ is made from: ⌊min(K/5, 3 √K)⌋."""
    return math.floor(min(draws / 5, 3 * math.sqrt(draws)))


def khat(log_weights: Tensor) -> Tensor:
    """k̂ of (K, ...) log weights, (...): see `psis`."""
    return psis(log_weights)[1]


def ess(log_weights: Tensor) -> Tensor:
    """Effective number of draws (Σ w)² / Σ w² of (K, ...) log weights, (...).

    Source: Kish 1965; Owen 2013, "Monte Carlo theory, methods and examples", eq. 9.13.
    """
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0))


def _pareto(x: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale of a generalised Pareto, columns of (M, N) ascending exceedances.

    A posterior mean over a grid of Zhang & Stephens 2009, "A new and efficient estimation method
    for the generalized Pareto distribution", with the weak prior of Vehtari et al.: shrink k
    towards 0.5 as by ten observations.
    """
    n = x.shape[0]
    m = 30 + int(math.sqrt(n))
    grid = torch.arange(1, m + 1, dtype=x.dtype, device=x.device) - 0.5
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = (1 - torch.sqrt(m / grid)).unsqueeze(-1) / (3 * quartile) + 1 / x[-1]  # (m, N)
    k = torch.stack([torch.log1p(-t * x).mean(0) for t in theta])  # (m, N)
    profile = n * (torch.log(-theta / k) - k - 1)
    weight = profile.softmax(0)
    weight = torch.where(weight >= 10 * torch.finfo(x.dtype).eps, weight, weight.new_zeros(()))
    best = (theta * weight).sum(0) / weight.sum(0)
    shape = torch.log1p(-best * x).mean(0)
    scale = -shape / best
    return (n * shape + 5.0) / (n + 10.0), scale
