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

    With f the convex generator, f(1) = 0 and D_f(P || Q) = E_Q[f(p/q)], and its conjugate f*(t) =
    max_u ut − f(u), nats:

    Attributes:
        name: what it is called in `DIVERGENCES`.
        activation: ℓ -> f'(e^ℓ), the critic T that is optimal when ℓ is the log ratio.
        penalty: ℓ -> f*(f'(e^ℓ)), in a form that neither overflows early nor cancels.
        link: a network's output v -> ℓ: v itself, but ±log(1 + |v|) on the side where the loss
            would grow exponentially with ℓ, so that it grows with a power of v.

    Source: Nowozin, Cseke & Tomioka 2016, "f-GAN" (arXiv:1606.00709), tables 1, 2 and 6. Theirs
    gives twice the Jensen-Shannon divergence; here it lies between 0 and log 2.
    """

    name: str
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
        # KL(P || Q): f(u) = u log u
        FDivergence("kl", lambda ell: 1 + ell, torch.exp, _tame),
        # KL(Q || P): f(u) = −log u
        FDivergence(
            "reverse-kl", lambda ell: -torch.exp(-ell), lambda ell: ell - 1, lambda v: -_tame(-v)
        ),
        # ½ KL(P || M) + ½ KL(Q || M), M = (P + Q) / 2: f(u) = ½ (u log u − (u + 1) log ½(u + 1))
        FDivergence(
            "js",
            lambda ell: 0.5 * (LOG_2 + logsigmoid(ell)),
            lambda ell: 0.5 * (softplus(ell) - LOG_2),
        ),
        # E_Q[(p/q − 1)²]: f(u) = (u − 1)²
        FDivergence(
            "pearson", lambda ell: 2 * torch.expm1(ell), lambda ell: torch.expm1(2 * ell), _tame
        ),
        # squared, ∫ (√p − √q)²: f(u) = (√u − 1)²
        FDivergence(
            "hellinger",
            lambda ell: -torch.expm1(-ell / 2),
            lambda ell: torch.expm1(ell / 2),
            lambda v: torch.where(v > 0, _tame(v), -_tame(-v)),
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
