"""L-BFGS up the log joint, on several paths at once.

Source: Zhang, Carpenter, Gelman & Vehtari 2022, arXiv:2108.03782, algorithms 1 and 3; Nocedal &
Wright 2006, "Numerical optimization", chapter 7.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..draws.joint import LogJoint

MEMORY = 6  # pairs of steps and changes of the gradient that make an inverse Hessian
STEPS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.02, 1e-3)  # that a line search tries, all at once
ARMIJO = 1e-4  # of the rise that the gradient promises, that a step must bring
SETTLED = 1e-7  # nats that a Newton step still promises, where a path has ended
LIMIT = 300  # steps of a path


class Climb:
    """L-BFGS on P paths at once; every step is kept, for its Gaussian."""

    def __init__(self, joint: LogJoint, u: Tensor):
        self.joint, self.start = joint, u
        self.u, (self.value, self.gradient) = u, joint.with_gradient(u)
        p, d = u.shape
        self.alpha = (1 / self.gradient.norm(dim=1).clamp(min=1.0))[:, None].expand(p, d).clone()
        self.s, self.y = u.new_zeros(p, d, MEMORY), u.new_zeros(p, d, MEMORY)
        self.going = torch.ones(p, dtype=torch.bool)
        self.settled = torch.zeros(p, dtype=torch.bool)
        self.reach = u.new_ones(p)  # of the line search
        self.failures = torch.zeros(p)
        self.steps, self.runs = 0, 1
        self.half = math.inf  # the step at which half of the paths had ended
        self.kept: list[tuple[Tensor, ...]] = []
        self._keep(self.going)

    def goes_on(self) -> bool:
        """Tell whether a path is on its way that has not fallen far behind the others."""
        if int(self.settled.sum()) * 2 >= len(self.u):
            self.half = min(self.half, self.steps)
        return bool(self.going.any()) and self.steps < min(LIMIT, 2 * self.half + 10)

    def step(self) -> None:
        """One step of every path that has not ended."""
        beta, gamma = factors(self.alpha, self.s, self.y)
        way = times(self.alpha, beta, gamma, self.gradient)  # (P, D)
        slope = (way * self.gradient).sum(-1)
        astray = ~(slope > 0)
        way = torch.where(astray[:, None], self.alpha * self.gradient, way)
        slope = torch.where(astray, (way * self.gradient).sum(-1), slope)
        self.settled |= self.going & (slope < 2 * SETTLED)
        self.going &= ~self.settled
        if not self.going.any():
            return
        t = torch.tensor(STEPS).to(self.u)[:, None] * self.reach  # (T, P)
        ahead = self.u + t[..., None] * way  # (T, P, D)
        value, gradient = torch.full_like(t, -math.inf), torch.zeros_like(ahead)
        rows = self.joint.with_gradient(ahead[:, self.going].flatten(0, 1))
        value[:, self.going] = rows[0].reshape(len(t), -1)
        gradient[:, self.going] = rows[1].reshape(len(t), -1, ahead.shape[-1])
        self.runs += 1
        self.steps += 1
        rises = value >= self.value + ARMIJO * t * slope
        chosen = torch.where(rises, value, -math.inf).argmax(0)  # (P,)
        moves = self.going & rises.any(0)
        self.failures = torch.where(moves, 0.0, self.failures + 1)
        self.reach = torch.where(moves, 1.0, self.reach * 1e-3)
        fails = self.going & ~moves
        self.s[fails], self.y[fails] = 0.0, 0.0  # begin again from the diagonal
        self.going &= self.failures < 3
        at = torch.arange(len(self.u))
        new, new_gradient = ahead[chosen, at], gradient[chosen, at]
        s, y = new - self.u, self.gradient - new_gradient  # of -log p
        sy, yy = (s * y).sum(-1), (y * y).sum(-1)
        learns = moves & (sy > 1e-12 * yy) & (sy > 0)
        self.alpha = torch.where(learns[:, None], _diagonal(self.alpha, s, y), self.alpha)
        for old, latest in ((self.s, s), (self.y, y)):
            rolled = torch.cat([old[..., 1:], latest[..., None]], -1)
            old.copy_(torch.where(learns[:, None, None], rolled, old))
        self.u = torch.where(moves[:, None], new, self.u)
        self.gradient = torch.where(moves[:, None], new_gradient, self.gradient)
        rise = value[chosen, at] - self.value
        self.value = torch.where(moves, value[chosen, at], self.value)
        self.settled |= moves & (rise < SETTLED) & (slope < 1e-3)
        self._keep(moves)

    def _keep(self, moved: Tensor) -> None:
        state = self.u, self.gradient, self.alpha, self.s.clone(), self.y.clone(), moved.clone()
        self.kept.append(state)


def _diagonal(alpha: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The diagonal of the inverse Hessian after a step (Gilbert & Lemaréchal 1989, eq. 4.7)."""
    a, b = (alpha * y * y).sum(-1, keepdim=True), (s * y).sum(-1, keepdim=True)
    c = (s * s / alpha).sum(-1, keepdim=True)
    new = 1 / (a / (b * alpha) + y * y / b - a * s * s / (b * c * alpha * alpha))
    good = (new.isfinite() & (new > 0)).all(-1, keepdim=True)
    return torch.where(good, new, alpha)


def factors(alpha: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """β (..., D, 2J) and γ (..., 2J, 2J) with H = diag(α) + β γ βᵀ (Pathfinder, algorithm 3).

    Columns of zeros in s and y, of a short memory, play no part.
    """
    j = s.shape[-1]
    sy = s.mT @ y
    empty = (s == 0).all(-2)
    upper = sy.triu() + torch.diag_embed(empty.to(sy))
    inverse = torch.linalg.solve_triangular(upper, torch.eye(j).to(sy), upper=True)
    ay = alpha[..., None] * y
    middle = torch.diag_embed(sy.diagonal(dim1=-2, dim2=-1)) + y.mT @ ay
    corner = inverse.mT @ middle @ inverse
    zero = torch.zeros_like(inverse)
    gamma = torch.cat(
        [torch.cat([zero, -inverse], -1), torch.cat([-inverse.mT, corner], -1)], -2
    )  # fmt: skip
    return torch.cat([ay, s], -1), gamma


def times(alpha: Tensor, beta: Tensor, gamma: Tensor, g: Tensor) -> Tensor:
    """H g."""
    return alpha * g + (beta @ (gamma @ (beta.mT @ g[..., None])))[..., 0]
