"""The f-divergences a critic can bound, and beside them the Wasserstein distance's penalty.

    D_f(P || Q) = E_Q[f(p/q)] = max_T E_P[T(x)] − E_Q[f*(T(x))],    attained by T = f'(p/q)

A critic's output is read as ℓ(x) = log p(x)/q(x); each divergence is a pair of functions of ℓ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ..pairs.options import one_of

LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class FDivergence:
    """One row of the f-divergence table, written in terms of the log ratio ℓ = log p/q.

    Attributes:
        name: what it is called in `DIVERGENCES`.
        f: the convex generator, f(1) = 0: D_f(P || Q) = E_Q[f(p/q)], nats.
        conjugate: f*(t) = max_u ut − f(u).
        activation: ℓ -> f'(e^ℓ), the critic T that is optimal when ℓ is the log ratio.
        penalty: ℓ -> f*(f'(e^ℓ)), in a form that neither overflows early nor cancels.
        link: a network's output v -> ℓ: v itself, but ±log(1 + |v|) on the side where the loss
            would grow exponentially with ℓ, so that it grows with a power of v.

    Source: Nowozin, Cseke & Tomioka 2016, "f-GAN" (arXiv:1606.00709), tables 1, 2 and 6. Theirs
    gives twice the Jensen-Shannon divergence; here it lies between 0 and log 2.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor]
    link: Callable[[Tensor], Tensor] = lambda v: v

    def bound(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """E_P[T] − E_Q[f*(T)] <= D_f(P || Q), nats, given ℓ at samples of P and of Q."""
        return self.activation(log_p).mean() - self.penalty(log_q).mean()


def _tame(v: Tensor) -> Tensor:
    """p/q = 1 + v where v > 0, and e^v elsewhere: once differentiable, with slope 1 at 0."""
    return torch.where(v > 0, torch.log1p(v.clamp(min=0)), v)


DIVERGENCES: dict[str, FDivergence] = {
    d.name: d
    for d in (
        FDivergence(
            "kl",  # KL(P || Q)
            f=lambda u: torch.xlogy(u, u),
            conjugate=lambda t: torch.exp(t - 1),
            activation=lambda ell: 1 + ell,
            penalty=torch.exp,
            link=_tame,
        ),
        FDivergence(
            "reverse-kl",  # KL(Q || P)
            f=lambda u: -torch.log(u),
            conjugate=lambda t: -1 - torch.log(-t),
            activation=lambda ell: -torch.exp(-ell),
            penalty=lambda ell: ell - 1,
            link=lambda v: -_tame(-v),
        ),
        FDivergence(
            "js",  # ½ KL(P || M) + ½ KL(Q || M), M = (P + Q) / 2
            f=lambda u: 0.5 * (torch.xlogy(u, u) - (u + 1) * torch.log((u + 1) / 2)),
            conjugate=lambda t: -0.5 * torch.log(2 - torch.exp(2 * t)),
            activation=lambda ell: 0.5 * (LOG_2 + logsigmoid(ell)),
            penalty=lambda ell: 0.5 * (softplus(ell) - LOG_2),
        ),
        FDivergence(
            "pearson",  # E_Q[(p/q − 1)²]
            f=lambda u: (u - 1) ** 2,
            conjugate=lambda t: t**2 / 4 + t,
            activation=lambda ell: 2 * torch.expm1(ell),
            penalty=lambda ell: torch.expm1(2 * ell),
            link=_tame,
        ),
        FDivergence(
            "hellinger",  # squared: ∫ (√p − √q)²
            f=lambda u: (u.sqrt() - 1) ** 2,
            conjugate=lambda t: t / (1 - t),
            activation=lambda ell: -torch.expm1(-ell / 2),
            penalty=lambda ell: torch.expm1(ell / 2),
            link=lambda v: torch.where(v > 0, _tame(v), -_tame(-v)),
        ),
    )
}


def divergence(name: str) -> FDivergence:
    """The row of the f-divergence table called `name`.

    Raises:
        ValueError: there is no such divergence; the nearest name is suggested.
    """
    return DIVERGENCES[one_of("divergence", name, DIVERGENCES)]


def gradient_penalty(critic: Callable, x_p: Tensor, x_q: Tensor) -> Tensor:
    """E[(|∇ critic(x)| − 1)²] at random points between samples of P and of Q.

    With it, E_P[critic] − E_Q[critic] estimates the Wasserstein distance, in units of x.

    Args:
        critic: (B, D) -> (B,).
        x_p, x_q: samples, both (B, D).

    Source: Gulrajani et al. 2017, "Improved training of Wasserstein GANs"
    (arXiv:1704.00028), eq. 3.
    """
    mix = torch.rand(len(x_p), 1, dtype=x_p.dtype, device=x_p.device)
    x = (mix * x_p + (1 - mix) * x_q).detach().requires_grad_()  # (B, D)
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    # the square root has no gradient at 0, which a critic of dead units reaches
    return ((slope.square().sum(-1) + 1e-12).sqrt() - 1).square().mean()
