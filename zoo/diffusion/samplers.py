"""Other ways through a fitted diffusion: deterministic steps, the flow ODE, Langevin steps.

All need only the denoiser x̂(z, λ), from which the score of z_λ is (α x̂ − z) / σ² (Vincent 2011,
"A connection between score matching and denoising autoencoders", eq. 4.3).
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol

import torch
from torch import Tensor

SAMPLERS = ("ancestral", "ddim", "flow", "langevin")


class Levels(Protocol):
    """The levels of a diffusion, λ_1 > ... > λ_T, and its denoiser x̂(z, λ)."""

    log_snr: Tensor
    timesteps: int
    denoiser: Any


def score(process: Levels, z: Tensor, log_snr: Tensor) -> Tensor:
    """Return ∇ log q(z_λ): (..., D), λ (...) -> (..., D)."""
    alpha, sigma2 = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr)
    return (alpha[..., None] * process.denoiser(z, log_snr) - z) / sigma2[..., None]


@torch.no_grad()
def ddim(process: Levels, noise: Tensor, steps: int) -> Tensor:
    """Deterministic steps from z_T = noise (n, D) to x, over `steps` of the T levels.

        z_s = α_s x̂ + σ_s (z_t − α_t x̂) / σ_t,   and last x = x̂(z_1)

    Source: Song, Meng & Ermon 2021, "Denoising diffusion implicit models" (arXiv:2010.02502,
    eq. 12 with η = 0).
    """
    levels = torch.linspace(process.timesteps - 1, 0, steps).round().long()
    z = noise
    for t, s in itertools.pairwise(process.log_snr[levels]):
        guess = process.denoiser(z, t.expand(z.shape[:-1]))
        left = (z - t.sigmoid().sqrt() * guess) / torch.sigmoid(-t).sqrt()
        z = s.sigmoid().sqrt() * guess + torch.sigmoid(-s).sqrt() * left
    return process.denoiser(z, process.log_snr[0].expand(z.shape[:-1]))


@torch.no_grad()
def flow(process: Levels, noise: Tensor, steps: int) -> Tensor:
    """x = z_1 / α_1 at the end of the flow ODE that begins at z_T = noise: (n, D) -> (n, D)."""
    ends = process.log_snr[-1], process.log_snr[0]
    z, _ = _integrate(process, noise, *ends, steps, None)
    return z / ends[1].sigmoid().sqrt()


def flow_log_prob(process: Levels, x: Tensor, steps: int, probes: int = 0) -> Tensor:
    """log p(x) of the flow's draws, by the change of variables along the ODE: (B, D) -> (B,), nats.

        dz/dλ = (α x̂ − α² z) / 2,   log p(x) = log N(z_T; 0, I) + ∫ tr(∂(dz/dλ)/∂z) dλ + D log α_1

    from λ_1, where z = α_1 x, to λ_T. Exact but for the steps, whose error falls as their fourth
    power (Runge-Kutta).

    Args:
        probes: 0 for the whole trace, D backward passes at every stage; else so many random signs v
            whose v · J v replaces it, the same along the way: unbiased for log p(x).

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential
    equations" (arXiv:2011.13456, section 4.3 and appendix D).
    """
    ends = process.log_snr[0], process.log_snr[-1]
    alpha = ends[0].sigmoid().sqrt()
    signs = torch.randint(0, 2, (probes, *x.shape), device=x.device).to(x) * 2 - 1
    z, log_volume = _integrate(process, alpha * x, *ends, steps, signs)
    log_noise = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    return log_noise + log_volume + x.shape[-1] * alpha.log()


def _integrate(
    process: Levels, z: Tensor, begin: Tensor, end: Tensor, steps: int, signs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """z after `steps` of Runge-Kutta from λ = begin to end, and the integral of the trace."""
    h, log_volume = (end - begin) / steps, z.new_zeros(z.shape[:-1])
    for i in range(steps):
        at = begin + i * h
        k1, v1 = _drift(process, z, at, signs)
        k2, v2 = _drift(process, z + h / 2 * k1, at + h / 2, signs)
        k3, v3 = _drift(process, z + h / 2 * k2, at + h / 2, signs)
        k4, v4 = _drift(process, z + h * k3, at + h, signs)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        log_volume = log_volume + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
    return z, log_volume


def _drift(
    process: Levels, z: Tensor, log_snr: Tensor, signs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dz/dλ (..., D), and its trace (...) where there are signs, else zero."""
    alpha2 = log_snr.sigmoid()

    def drift(z: Tensor) -> Tensor:
        guess = process.denoiser(z, log_snr.expand(z.shape[:-1]))
        return 0.5 * (alpha2.sqrt() * guess - alpha2 * z)

    if signs is None:
        return drift(z), z.new_zeros(())
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        f = drift(z)
        last = len(signs) or z.shape[-1]
        trace = z.new_zeros(z.shape[:-1])
        for i in range(last):
            v = signs[i] if len(signs) else torch.eye(last).to(z)[i].expand_as(z)
            (slope,) = torch.autograd.grad(f, z, v, retain_graph=i + 1 < last)
            trace = trace + (slope * v).sum(-1) / max(1, len(signs))
    return f.detach(), trace


@torch.no_grad()
def langevin(process: Levels, noise: Tensor, moves: int = 5, size: float = 0.2) -> Tensor:
    """Draw by annealed Langevin steps, level by level from λ_T to λ_1: noise (n, D) -> x (n, D).

        u <- u + (ε / 2) s² score(u) + √ε s ξ = u + (ε / 2) (x̂ − u) + √ε s ξ,   ξ ~ N(0, I)

    for u = z / α, whose noise has the standard deviation s = σ / α; `moves` at every level. Right
    in the limit of many small moves.

    Args:
        size: ε, in units of the level's noise variance.

    Source: Song & Ermon 2019, "Generative modeling by estimating gradients of the data
    distribution" (arXiv:1907.05600, algorithm 1).
    """
    s = torch.exp(-process.log_snr / 2)
    u = s[-1] * noise
    for level in reversed(range(process.timesteps)):
        log_snr = process.log_snr[level]
        for _ in range(moves):
            guess = process.denoiser(log_snr.sigmoid().sqrt() * u, log_snr.expand(u.shape[:-1]))
            u = u + size / 2 * (guess - u) + math.sqrt(size) * s[level] * torch.randn_like(u)
    return process.denoiser(process.log_snr[0].sigmoid().sqrt() * u,
                            process.log_snr[0].expand(u.shape[:-1]))  # fmt: skip
