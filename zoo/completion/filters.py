"""Particle filters: what is given is met on the way, and particles that expected it survive."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

GROUPS = 8  # independent filters: their spread is the standard error


def along_the_order(
    model: Any, x: Tensor, given: Tensor, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws, log p(rest | part) and its error, of a binary autoregressive model.

    Variables are drawn in the model's order; one that is given keeps its value and weighs the
    particle by its probability. The mean weight is unbiased for p(part), and exact where the part
    comes first in the order (Gordon, Salmond & Smith 1993, IEE Proc. F 140:107). Filters of a
    model of several orders take turns in them.

    Args:
        model: with `conditionals`, the rank and the logits of each order, and `log_prob`.
        x: (B, D); given: (D,); draws: K.
    """
    ways = model.conditionals()
    groups = math.ceil(GROUPS / len(ways)) * len(ways)
    size = math.ceil(draws / groups)
    turns = [ways[g % len(ways)] for g in range(groups)]
    found = [_one_order(rank, logits, x, given, size) for rank, logits in turns]
    log_z = torch.stack([z for _, z in found])  # (G, B)
    particles = torch.stack([p for p, _ in found], 1)  # (size, G, B, D)
    group = log_z.softmax(0).mT.multinomial(draws, replacement=True).mT  # (K, B)
    turn = torch.arange(draws)[:, None] % size
    out = particles[turn, group, torch.arange(len(x))]
    log_part, se = _mean(log_z)
    return out, model.log_prob(x) - log_part, se


def _one_order(
    rank: Tensor, logits: Any, x: Tensor, given: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Equally weighted particles (size, B, D) and log of the mean weight (B,)."""
    particles = torch.where(given, x, 0.0).expand(size, *x.shape).clone()
    log_w, log_z = x.new_zeros(size, len(x)), x.new_zeros(len(x))
    for i in rank.argsort().tolist():
        h = logits(particles)[..., i]
        if given[i]:
            log_w = log_w + torch.where(x[:, i] == 1, 1.0, -1.0).mul(h).sigmoid().log()
            particles, log_w, log_z = _resampled(particles, log_w, log_z, at_least=0.5)
        else:
            particles[..., i] = h.sigmoid().bernoulli()
    particles, _, log_z = _resampled(particles, log_w, log_z, at_least=1.0)
    return particles, log_z


def along_the_noise(model: Any, x: Tensor, given: Tensor, draws: int) -> Tensor:
    """Draws (K, B, D) of a diffusion.

    The part is given noise as the encoder gives it; along that path the rest is denoised, and a
    particle survives as it expected the path's next stop. Right in the limit of many particles
    where the decoder's path is the encoder's (Trippe et al. 2023, arXiv:2206.04119, algorithm 1).
    """
    size = math.ceil(draws / GROUPS)
    alpha, sigma = model.log_snr.sigmoid().sqrt(), (-model.log_snr).sigmoid().sqrt()
    found = []
    for _ in range(GROUPS):
        path = [alpha[0] * x + sigma[0] * torch.randn_like(x)]  # z_1, ..., z_T of the part
        for t in range(1, model.timesteps):
            c = -torch.expm1(model.log_snr[t] - model.log_snr[t - 1])
            noise = c.sqrt() * sigma[t] * torch.randn_like(x)
            path.append(alpha[t] / alpha[t - 1] * path[-1] + noise)
        z = torch.where(given, path[-1], torch.randn(size, *x.shape, dtype=x.dtype))
        log_z = x.new_zeros(len(x))
        for t in range(model.timesteps - 1, 0, -1):
            step = model._decode(z, t).base_dist
            here = path[t - 1]
            log_w = step.log_prob(here)[..., given].sum(-1)
            drawn = torch.where(given, here, step.sample())
            z, _, log_z = _resampled(drawn, log_w, log_z, at_least=1.0)
        rest = model._head(z).sample()
        found.append(torch.where(given, x, rest))
    return torch.cat(found)[torch.randperm(GROUPS * size)[:draws]]


def _resampled(
    particles: Tensor, log_w: Tensor, log_z: Tensor, at_least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Particles chosen by their weights in each row where few are in effect left.

    Systematic resampling (Kitagawa 1996): of (size, B, D) by (size, B), without a copy too many.

    Args:
        at_least: the share of particles that must be in effect left for a row to be let be.
    """
    size = len(log_w)
    w = log_w.softmax(0)
    few = 1 / w.square().sum(0) < at_least * size * (1 + 1e-6)
    u = (torch.arange(size)[:, None] + torch.rand(1, log_w.shape[1])).to(w) / size
    own = torch.searchsorted(w.cumsum(0).mT.contiguous(), u.mT.contiguous()).mT.clamp(max=size - 1)
    index = torch.where(few, own, torch.arange(size)[:, None])
    moved = particles.gather(0, index[..., None].expand_as(particles))
    log_z = log_z + torch.where(few, log_w.logsumexp(0) - math.log(size), 0.0)
    return moved, torch.where(few, 0.0, log_w), log_z


def _mean(log_z: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the mean of estimates (G, B) and its error to first order, (B,) each."""
    mean = log_z.logsumexp(0) - math.log(len(log_z))
    return mean, (log_z - mean).exp().std(0) / math.sqrt(len(log_z))
