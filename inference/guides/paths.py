"""Pathfinder: quasi-Newton paths up the log joint, and the best Gaussian along them.

Source: Zhang, Carpenter, Gelman & Vehtari 2022, "Pathfinder: parallel quasi-Newton variational
inference", arXiv:2108.03782. All paths climb together, a run of the model for each step of all.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..draws.psis import LEAST, ess, psis
from ..randomness import forked
from ..results.finding import listed
from .joint import LogJoint

PATHS = 8
MEMORY = 6  # pairs of steps and changes of the gradient that make an inverse Hessian
STEPS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.02, 1e-3)  # that a line search tries, all at once
ARMIJO = 1e-4  # of the rise that the gradient promises, that a step must bring
SETTLED = 1e-7  # nats that a Newton step still promises, where a path has ended
LIMIT = 300  # steps of a path
FEW, MANY = 10, 50  # draws for the ELBO of a Gaussian, first of every one and then of the best
DENSE = 1_000  # latents up to which a covariance is kept whole
CURVED = 200  # latents up to which the curvature at the peak is computed
NEWTON = 20  # steps from the end of a path to its peak


@dataclass
class Normal:
    """N(loc, A Aᵀ) on the real line, A lower triangular (D, D), or a diagonal (D,)."""

    loc: Tensor
    scale: Tensor
    elbo: float = math.nan
    elbo_se: float = math.nan

    def points(self, noise: Tensor) -> Tensor:
        """loc + A ε of (K, D) noise."""
        turned = noise * self.scale if self.scale.dim() == 1 else noise @ self.scale.T
        return self.loc + turned

    def noise(self, u: Tensor) -> Tensor:
        """A⁻¹ (u - loc), the whitened place of (K, D) points."""
        away = u - self.loc
        if self.scale.dim() == 1:
            return away / self.scale
        return torch.linalg.solve_triangular(self.scale, away.T, upper=False).T

    def log_prob(self, u: Tensor) -> Tensor:
        """(K, D) -> (K,)."""
        e = self.noise(u)
        diagonal = self.scale if self.scale.dim() == 1 else self.scale.diagonal()
        log_det = diagonal.abs().log().sum()
        return -0.5 * e.square().sum(-1) - log_det - 0.5 * u.shape[-1] * math.log(2 * math.pi)

    @property
    def lower(self) -> float:
        """The ELBO less two standard errors: the best of many estimates is not the luckiest."""
        return self.elbo - 2 * self.elbo_se

    @property
    def sd(self) -> Tensor:
        """Standard deviations, (D,)."""
        return self.scale.abs() if self.scale.dim() == 1 else self.scale.square().sum(-1).sqrt()


@dataclass
class Paths:
    """The Gaussians along the paths, and the places that these reached.

    Attributes:
        best: the Gaussian of the highest ELBO.
        each: the best of every path.
        peak: the highest place that a path reached, (D,), and `laplace` the Gaussian of the log
            joint's curvature there, or None where it is no peak.
        draws: (S, D), from the mixture of `each`, importance-resampled.
        shares: of the posterior's mass that each of `each` accounts for.
        khat, effective: of those weights.
        away: in words, where the paths ran to, if they found no end; "" where they did.
        improper: in words, the direction in which the log joint does not fall; "" where it falls in
            all that were looked at.
        steps: of all paths together; `seconds`, `evaluations` (runs of the model).
    """

    best: Normal
    each: list[Normal]
    peak: Tensor
    laplace: Normal | None
    draws: Tensor
    shares: Tensor
    khat: float
    effective: float
    away: str
    improper: str
    names: list[str] = field(repr=False)
    steps: int = 0
    evaluations: int = 0
    seconds: float = 0.0


def pathfinder(
    joint: LogJoint, *, paths: int = PATHS, seed: int = 0, deadline: float = math.inf
) -> Paths:
    """Climb the log joint from several starts and return the best Gaussians on the way.

    Args:
        joint: of the model and its data.
        paths: how many, from starts uniform in (-2, 2)^D.
        seed: of starts and draws.
        deadline: of `time.monotonic()`, at which paths stop where they are.

    Raises:
        ValueError: the log joint is not finite at any start, or no Gaussian has a finite ELBO.
    """
    begin = time.perf_counter()
    with forked(seed), torch.no_grad():
        climb = _Climb(joint, joint.starts(paths))
        while climb.goes_on() and time.monotonic() < deadline:
            climb.step()
        found = _gaussians(joint, climb)
        top = int(climb.value.argmax())
        peak = climb.u[top].clone()
        laplace, flattest = None, climb.u[top] - climb.start[top]
        if joint.dim <= CURVED and bool(climb.settled[top]):
            laplace, flattest = peak_and_curvature(joint, peak, found[top].sd)
            if laplace is not None:
                _estimate(joint, [laplace], MANY)
        every = [n for n in [*found, laplace] if n is not None and math.isfinite(n.lower)]
        if not every:
            raise ValueError(
                "pathfinder: no Gaussian along the paths has a finite ELBO: the log joint is "
                "infinite or undefined close to every place that they reached."
            )
        best = max(every, key=lambda n: n.lower)
        draws, shares, khat, effective = _mixture(joint, every, 1_000)
    return Paths(
        best, every, peak, laplace, draws, shares, khat, effective, _away(joint, climb),
        _improper(joint, peak, flattest), joint.names, climb.steps, climb.runs,
        time.perf_counter() - begin,
    )  # fmt: skip


class _Climb:
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
        beta, gamma = _factors(self.alpha, self.s, self.y)
        way = _times(self.alpha, beta, gamma, self.gradient)  # (P, D)
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


def _factors(alpha: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
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


def _times(alpha: Tensor, beta: Tensor, gamma: Tensor, g: Tensor) -> Tensor:
    """H g."""
    return alpha * g + (beta @ (gamma @ (beta.mT @ g[..., None])))[..., 0]


def _gaussians(joint: LogJoint, climb: _Climb) -> list[Normal]:
    """The Gaussian of the highest ELBO along every path."""
    out = []
    d = joint.dim
    noise = torch.randn(FEW, d, dtype=joint.dtype)
    paths = len(climb.u)
    kept = [k for k in climb.kept if k[-1].any()]
    u, g, alpha, s, y = (torch.stack([k[i] for k in kept], 1) for i in range(5))  # (P, I, ...)
    moved = torch.stack([k[-1] for k in kept], 1)
    beta, gamma = _factors(alpha, s, y)
    loc = u + _times(alpha, beta, gamma, g)
    # H = A Aᵀ, A = diag(√α) (I + Q (L - I) Qᵀ) (Pathfinder, algorithm 4)
    root = alpha.sqrt()
    q, r = torch.linalg.qr(beta / root[..., None])
    eye = torch.eye(r.shape[-2]).to(r)
    low, bad = torch.linalg.cholesky_ex(eye + r @ gamma @ r.mT)
    good = moved & (bad == 0) & loc.isfinite().all(-1)
    log_det = root.log().sum(-1) + low.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    turned = noise @ q  # (P, I, M, R)
    e = noise + (turned @ low.mT - turned) @ q.mT
    draws = loc[:, :, None] + root[:, :, None] * e  # (P, I, M, D)
    log_q = -0.5 * noise.square().sum(-1) - log_det[..., None] - 0.5 * d * math.log(2 * math.pi)
    log_p = torch.full_like(log_q, -math.inf)
    log_p[good] = joint(draws[good].reshape(-1, d)).reshape(-1, FEW)
    elbo = torch.where(good, (log_p - log_q).mean(-1), -math.inf).nan_to_num(-math.inf)
    for k in range(paths):
        several = elbo[k].topk(min(3, elbo.shape[1])).indices.tolist()
        candidates = []
        for i in several:
            if not elbo[k, i] > -math.inf:
                continue
            if d > DENSE:
                projected = q[k, i] @ (low[k, i] - eye)
                spread = (1 + 2 * (projected * q[k, i]).sum(-1) + projected.square().sum(-1)).sqrt()
                candidates.append(Normal(loc[k, i], root[k, i] * spread))
                continue
            a = root[k, i, :, None] * (torch.eye(d).to(r) + q[k, i] @ (low[k, i] - eye) @ q[k, i].T)
            tril, failed = torch.linalg.cholesky_ex(a @ a.T)
            if not failed:
                candidates.append(Normal(loc[k, i], tril))
        _estimate(joint, candidates, MANY)
        if candidates:
            out.append(max(candidates, key=lambda n: n.lower))
        else:
            out.append(Normal(climb.u[k], climb.alpha[k].sqrt(), -math.inf))
    return out


def _estimate(joint: LogJoint, normals: list[Normal], draws: int) -> None:
    """Estimate the ELBO of Gaussians, in one run of the model."""
    if not normals:
        return
    noise = torch.randn(draws, joint.dim, dtype=joint.dtype)
    u = [n.points(noise) for n in normals]
    log_p = joint(torch.cat(u)).reshape(len(normals), -1)
    for n, points, p in zip(normals, u, log_p):
        weight = p - n.log_prob(points)
        n.elbo = float(weight.mean())
        n.elbo_se = float(weight.std()) / math.sqrt(draws)


def peak_and_curvature(joint: LogJoint, u: Tensor, sd: Tensor) -> tuple[Normal | None, Tensor]:
    """N(u*, H⁻¹), H the curvature of -log p(x, u) at the peak u* near u; None where there is none.

    Returns the way of the least curvature besides, one standard deviation given the others long.

    A quasi-Newton path along a narrow ridge ends when it creeps. Newton's steps take it to the
    peak: H by central differences of the gradient, its eigenvalues' signs turned where they are
    negative, with the line search of the paths.

    Args:
        joint: the log joint.
        u: (D,), where to begin.
        sd: (D,), scales on which the log joint changes, to begin with.

    Source: Nocedal & Wright 2006, "Numerical optimization", section 3.4 and eq. 8.7; Dauphin et al.
    2014, arXiv:1406.2572 (the signs).
    """
    value, gradient = (x[0] for x in joint.with_gradient(u[None]))
    width = 1e-2 if joint.dtype == torch.float64 else 1e-1
    t = torch.tensor(STEPS).to(u)[:, None]
    for _ in range(NEWTON):
        around = torch.cat([u + torch.diag(width * sd), u - torch.diag(width * sd)])
        sides = joint.with_gradient(around)[1].reshape(2, joint.dim, joint.dim)
        h = (sides[1] - sides[0]) / (2 * width * sd[:, None])
        diagonal = h.diagonal().abs()
        sd = torch.where(diagonal > 0, diagonal.rsqrt(), sd)  # of each alone, given the others
        h = (sd[:, None] * (h + h.T) / 2 * sd).nan_to_num()  # in units of sd
        size, turn = torch.linalg.eigh(h)
        least = size.abs().clamp(min=1e-10)
        a = sd[:, None] * turn / least.sqrt()  # A Aᵀ is the inverse Hessian
        way = a @ (a.T @ gradient)
        promise = float(way @ gradient)
        ahead = u + t * way
        values, gradients = joint.with_gradient(ahead)
        i = int(values.argmax())
        flattest = sd * turn[:, 0]
        if promise < 2 * SETTLED or not values[i] > value:  # rounding ends it too
            scale, bad = torch.linalg.cholesky_ex(a @ a.T)
            peak = bool((size > 1e-10).all()) and promise < 1e-2
            return (Normal(u, scale) if peak and not bad else None), flattest
        u, value, gradient = ahead[i], values[i], gradients[i]
    return None, flattest


def _mixture(
    joint: LogJoint, each: list[Normal], draws: int
) -> tuple[Tensor, Tensor, float, float]:
    """Draws from the mixture of Gaussians, importance-resampled; shares, k-hat, effective size."""
    k = len(each)
    noise = torch.randn(k, -(-draws // k), joint.dim, dtype=joint.dtype)
    u = torch.cat([n.points(e) for n, e in zip(each, noise)])
    parts = torch.stack([n.log_prob(u) for n in each])  # (k, S)
    log_w = joint(u) - parts.logsumexp(0) + math.log(k)
    finite = log_w > -math.inf
    if int(finite.sum()) < LEAST:
        return u[:0], torch.full((k,), 1 / k).to(u), math.inf, 0.0
    u, log_w, parts = u[finite], log_w[finite], parts[:, finite]
    smooth, khat = psis(log_w)
    picked = torch.multinomial(smooth.exp(), draws, replacement=True)
    shares = (smooth.exp() * parts.softmax(0)).sum(-1)
    return u[picked], shares, float(khat), float(ess(smooth))


def _away(joint: LogJoint, climb: _Climb) -> str:
    """Say where a path that found no end ran to."""
    top = int(climb.value.argmax())
    if bool(climb.settled[top]):
        return ""
    to = _direction(joint, climb.u[top] - climb.start[top])
    return (
        f"the log joint still rises after {climb.steps} steps, to {float(climb.value[top]):.4g} "
        f"nats: the path runs away ({to}). Either the posterior is improper, or its density has a "
        "spike there, as a centred hierarchy has where a scale goes to 0 (write it non-centred)"
    )


def _improper(joint: LogJoint, u: Tensor, way: Tensor) -> str:
    """Say along which way the log joint stays within a nat of its peak, as far as numbers go."""
    far = torch.logspace(4, -2, 13).to(u)
    t = torch.cat([far, -far])
    drop = (joint(u[None]) - joint(u + t[:, None] * way)).reshape(2, -1)
    for side, sign in zip(drop, (1, -1)):
        finite = side.isfinite().nonzero()
        if len(finite):  # the furthest place that has a number
            i = int(finite[0])
            enough = far[i] >= 100 or far[i] * way.abs().max() >= 50
            if enough and side[i] < 1:
                return (
                    "the posterior is improper: the log joint does not fall along "
                    f"{_direction(joint, sign * way)}. Give that a proper prior, or take out one "
                    "of two latents that do the same"
                )
    return ""


def _direction(joint: LogJoint, way: Tensor) -> str:
    """The latents that a way leads to infinity, on the real line: `a -> +∞, b -> -∞`."""
    size = way.abs() / way.abs().max().clamp(min=1e-300)
    big = [i for i in size.argsort(descending=True).tolist() if size[i] > 0.3]
    ends = [f"{joint.names[i]} -> {'+' if way[i] > 0 else '-'}∞" for i in big]
    return listed(ends, 3) + " on the real line"
