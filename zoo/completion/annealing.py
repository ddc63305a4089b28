"""Annealing: from a Gaussian conditional, which is exact of Gaussians, to a density's own."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

TEMPERATURES, LEAPS, MOMENTS = 40, 5, 4_000


def complete(model: Any, x: Tensor, given: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (K, B, D), log p(rest | part) and its error, (B,) each, of a density.

    The Gaussian with the mean and covariance of the model's draws has a conditional in closed form,
    g(rest | part), in whose units the rest is u ~ N(0, I). Particles begin there and are moved by
    Hamiltonian steps along g^(1 - β) p^β, β from 0 to 1; the mean of their weights is unbiased for
    p(part), and they are resampled by them (Neal 2001, "Annealed importance sampling").

    Args:
        model: with `log_prob`, differentiable in x, and `sample`.
        x: (B, D); given: (D,); draws: K.
    """
    a, b = given, ~given
    some = model.sample(MOMENTS).to(x)
    mean, covariance = some.mean(0), torch.cov(some.mT).reshape(len(given), -1)
    covariance = covariance + 1e-6 * covariance.diagonal().mean() * torch.eye(len(given)).to(x)
    gain = torch.linalg.solve(covariance[a][:, a], covariance[a][:, b]).mT
    left = covariance[b][:, b] - gain @ covariance[a][:, b]
    factor = torch.linalg.cholesky(0.5 * (left + left.mT))
    centre = mean[b] + (x[:, a] - mean[a]) @ gain.mT  # (B, d)
    volume = factor.diagonal().log().sum()

    def whole(u: Tensor) -> Tensor:
        out = x.expand(*u.shape[:-1], -1).clone()
        out[..., b] = centre + u @ factor.mT
        return out

    def log_p(u: Tensor) -> Tensor:  # of u, so that g is N(0, I)
        return model.log_prob(whole(u)) + volume

    def log_g(u: Tensor) -> Tensor:
        return -0.5 * (u.square().sum(-1) + u.shape[-1] * math.log(2 * math.pi))

    u = torch.randn(draws, len(x), int(b.sum())).to(x)
    log_w, size = x.new_zeros(draws, len(x)), 0.5 / u.shape[-1] ** 0.25
    betas = torch.linspace(0, 1, TEMPERATURES + 1) ** 2  # the first steps change most
    for before, beta in itertools.pairwise(betas):
        log_w = log_w + (beta - before) * (log_p(u) - log_g(u))
        u, share = _moved(lambda v, β=beta: (1 - β) * log_g(v) + β * log_p(v), u, size)
        size *= 1.1 if share > 0.8 else 0.8 if share < 0.6 else 1.0
    log_part = log_w.logsumexp(0) - math.log(draws)
    se = (log_w - log_part).exp().std(0) / math.sqrt(draws)
    index = log_w.softmax(0).mT.multinomial(draws, replacement=True).mT
    u = u.gather(0, index[..., None].expand_as(u))
    for _ in range(5):  # copies part ways
        u, _ = _moved(log_p, u, size)
    return whole(u), model.log_prob(x) - log_part, se


def _moved(log_density: Any, u: Tensor, size: float) -> tuple[Tensor, float]:
    """One Hamiltonian move of every particle, and the share of them that was accepted."""

    def with_slope(v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            value = log_density(v)
            return value.detach(), torch.autograd.grad(value.sum(), v)[0]

    value, slope = with_slope(u)
    p = torch.randn_like(u)
    energy = value - 0.5 * p.square().sum(-1)
    v = u
    for _ in range(LEAPS):
        p = p + 0.5 * size * slope
        v = v + size * p
        end, slope = with_slope(v)
        p = p + 0.5 * size * slope
    ratio = end - 0.5 * p.square().sum(-1) - energy
    accepted = torch.rand_like(ratio).log() < ratio  # false for NaN
    return torch.where(accepted[..., None], v, u), float(accepted.float().mean())
