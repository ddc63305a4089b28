"""Mixtures of Gaussians given some columns: another mixture of Gaussians, exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, MultivariateNormal, Normal

from zoo.density import KernelDensity


def mixture_of(model: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """Log weights (C,), means (C, D) and covariances (C, D, D) of a mixture; None of all else."""
    if isinstance(model, KernelDensity):  # one Gaussian on each datum
        n, d = model.data.shape
        covariance = (model.bandwidth * model.tril) @ (model.bandwidth * model.tril).mT
        return model.data.new_zeros(n), model.data, covariance.expand(n, d, d)
    if not hasattr(model, "distribution"):
        return None
    p = model.distribution()
    mixed = isinstance(p, MixtureSameFamily)
    parts = p.component_distribution if mixed else p
    if hasattr(parts, "covariance_matrix"):
        covariance = parts.covariance_matrix
    elif isinstance(parts, Independent) and isinstance(parts.base_dist, Normal):
        covariance = torch.diag_embed(parts.variance)
    else:
        return None
    if mixed:
        return p.mixture_distribution.logits.log_softmax(-1), parts.mean, covariance
    return p.mean.new_zeros(1), p.mean[None], covariance[None]


def complete(
    log_weights: Tensor, means: Tensor, covariances: Tensor, x: Tensor, given: Tensor, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (K, B, D), log p(rest | part) (B,) and its error, which is zero.

    p(k | part) ∝ π_k N(part; μ_k, Σ_k),   rest | part, k Gaussian (Bishop 2006, eqs. 2.81, 2.82)
    """
    a, b = given, ~given
    s_aa, s_ba = covariances[:, a][:, :, a], covariances[:, b][:, :, a]
    gain = torch.linalg.solve(s_aa, s_ba.mT).mT  # Σ_ba Σ_aa⁻¹, (C, d_b, d_a)
    left = covariances[:, b][:, :, b] - gain @ s_ba.mT
    left = 0.5 * (left + left.mT)
    shift = (x[:, None, a] - means[:, a])[..., None]  # (B, C, d_a, 1)
    loc = means[:, b] + (gain @ shift).squeeze(-1)  # (B, C, d_b)
    part = MultivariateNormal(means[:, a], s_aa).log_prob(x[:, None, a])  # (B, C)
    share = (log_weights + part).log_softmax(-1)
    rest = MultivariateNormal(loc, left)
    log_prob = (share + rest.log_prob(x[:, None, b])).logsumexp(-1)
    k = share.exp().multinomial(draws, replacement=True)  # (B, K)
    drawn = rest.sample((draws,))  # (K, B, C, d_b)
    chosen = drawn[torch.arange(draws)[:, None], torch.arange(len(x)), k.mT]
    out = x.expand(draws, *x.shape).clone()
    out[..., b] = chosen.to(x)
    return out, log_prob, torch.zeros_like(log_prob)
