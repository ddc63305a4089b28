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

from ..draws.joint import LogJoint
from ..draws.psis import LEAST, ess, psis
from ..randomness import forked
from ..results.finding import listed
from .quasi_newton import SETTLED, STEPS, Climb, factors, times

PATHS = 8
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
        climb = Climb(joint, joint.starts(paths))
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


def _gaussians(joint: LogJoint, climb: Climb) -> list[Normal]:
    """The Gaussian of the highest ELBO along every path."""
    out = []
    d = joint.dim
    noise = torch.randn(FEW, d, dtype=joint.dtype)
    paths = len(climb.u)
    kept = [k for k in climb.kept if k[-1].any()]
    u, g, alpha, s, y = (torch.stack([k[i] for k in kept], 1) for i in range(5))  # (P, I, ...)
    moved = torch.stack([k[-1] for k in kept], 1)
    beta, gamma = factors(alpha, s, y)
    loc = u + times(alpha, beta, gamma, g)
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


def _away(joint: LogJoint, climb: Climb) -> str:
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
