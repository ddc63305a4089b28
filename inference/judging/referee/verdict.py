"""A referee of draws: the No-U-Turn sampler, begun at them, in coordinates that they whiten."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from pyro.distributions.transforms import LowerCholeskyAffine
from torch import Tensor
from torch.distributions import AffineTransform, Independent, Normal, TransformedDistribution

from ...draws.joint import LogJoint
from ...randomness import forked
from ...ratios.fitting import density_ratio
from ...results.finding import Finding, listed
from .turns import Chains, no_u_turn

CHAINS = 64  # as many as cost hardly more than one
WARMUP, DRAWS = 50, 50  # of each chain
GROUPS = 8  # of chains
RHAT = 1.05  # of the groups, above which it is none
DIVERGENT = 0.01  # share of its draws
OFF = 0.1  # sds of a mean, and share of an sd, by which draws may be off
ERRORS = 3.0  # standard errors beyond that
APART = 0.05  # share of draws, above one half, that a classifier may tell apart
LEAST = 100  # effective draws, below which it tells nothing

Map = Callable[[Tensor], tuple[Tensor, Tensor]]  # v (C, D) -> u, log |du/dv|


@dataclass
class Referee:
    """The chains of a referee, on the real line.

    Attributes:
        draws: (C, S, D).
        names: of the coordinates.
        effective, rhat: (D,).
        divergences: of all draws; `steps`: leapfrog steps of one chain, warm-up included.
        seconds: in all.
        coordinates: what they moved in.
    """

    draws: Tensor
    names: list[str]
    effective: Tensor
    rhat: Tensor
    divergences: int
    steps: int
    seconds: float
    coordinates: str


def refereed(
    joint: LogJoint,
    drawn: Tensor,
    *,
    guide: Any = None,
    seconds: float = 60.0,
    seed: int = 0,
) -> tuple[Finding, Referee | None]:
    """Compare draws with those of the No-U-Turn sampler.

    Args:
        joint: of the model and its data.
        drawn: (S, D), draws to be judged, on the real line in the joint's order.
        guide: a distribution of them that is a flow of N(0, I): the chains move in its noise
            (NeuTra). Otherwise they move in u = mean + A v with the draws' mean and covariance.
        seconds: after which it ends.
        seed: of the chains.

    Returns:
        A finding, which decides; and the chains, or None where there are too few.

    Source: Hoffman et al. 2019, "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural
    transport", arXiv:1903.03704; Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests",
    arXiv:1610.06545.
    """
    begin = time.monotonic()
    with forked(seed):
        found, coordinates = _chains(joint, drawn, guide, begin + seconds)
    count = found.draws.shape[1]
    if count < 20:
        what = (
            f"the referee made {count} draws a chain in {seconds:.0f} s: too few to tell; give more"
        )
        return Finding.of("referee", what, None, True), None
    effective, rhat = _effective(found.draws)
    referee = Referee(
        found.draws, joint.names, effective, rhat, found.divergences, found.steps,
        time.monotonic() - begin, coordinates,
    )  # fmt: skip
    return _compared(referee, drawn, seed), referee


def _chains(joint: LogJoint, drawn: Tensor, guide: Any, deadline: float) -> tuple[Chains, str]:
    """Run the chains from the draws; theirs are on the real line again."""
    u = drawn[torch.randperm(len(drawn))[:CHAINS]].to(joint.dtype)
    rows = joint.traced(len(u))
    to_u, start, coordinates = _flow(guide, u) or _whitened(drawn.to(joint.dtype), u)

    def density(v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            place, volume = to_u(v)
            value, gradient = rows(place.detach())
            (slope,) = torch.autograd.grad(
                (place * gradient).sum() + volume.sum(), v
            )  # the chain rule
        value = value + volume.detach()
        good = value.isfinite() & slope.isfinite().all(-1)
        return torch.where(good, value, -math.inf), torch.where(good[:, None], slope, 0.0)

    with torch.no_grad():
        found = no_u_turn(density, start, DRAWS, WARMUP, deadline)
        if found.draws.numel():
            found.draws = to_u(found.draws.flatten(0, 1))[0].reshape(found.draws.shape)
    return found, coordinates


def _whitened(drawn: Tensor, u: Tensor) -> tuple[Map, Tensor, str]:
    """u = mean + A v, with the mean and covariance of the draws."""
    mean, sd = drawn.mean(0), drawn.std(0).clamp(min=1e-300)
    centred = (drawn - mean) / sd
    low, bad = torch.linalg.cholesky_ex(centred.T @ centred / len(drawn))
    scale = sd[:, None] * (torch.eye(len(sd)).to(u) if bad else low)
    start = torch.linalg.solve_triangular(scale, (u - mean).T, upper=False).T

    def to_u(v: Tensor) -> tuple[Tensor, Tensor]:
        return mean + v @ scale.T, torch.zeros_like(v[:, 0])

    return to_u, start, "whitened by the draws"


def _flow(guide: Any, u: Tensor) -> tuple[Map, Tensor, str] | None:
    """The noise of a flow, and places there; None where the guide is none."""
    if not isinstance(guide, TransformedDistribution):
        return None
    base: Any = guide
    transforms: list[Any] = []
    while isinstance(base, TransformedDistribution):
        base, transforms = base.base_dist, [*base.transforms, *transforms]
    noise = base
    base = base.base_dist if isinstance(base, Independent) else base
    nets = any(not isinstance(t, AffineTransform | LowerCholeskyAffine) for t in transforms)
    if not (isinstance(base, Normal) and nets):
        return None
    start = noise.sample((len(u),)).reshape(len(u), -1)

    def to_u(v: Tensor) -> tuple[Tensor, Tensor]:
        place, volume = v.to(start.dtype), 0.0
        for t in transforms:
            before, place = place, t(place)
            ladj = t.log_abs_det_jacobian(before, place)
            volume = volume + (ladj.sum(-1) if ladj.dim() > 1 else ladj)
        return place.to(u.dtype), torch.as_tensor(volume).to(u.dtype).expand(len(v))

    return to_u, start.to(u.dtype), "the flow's own noise (NeuTra)"


def _effective(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Effective draws (the smaller of bulk and squares) and R-hat of each coordinate, (D,).

    R-hat is that of groups of chains: one of many short chains says how short they are.

    Source: Margossian et al. 2024, "Nested R-hat", arXiv:2110.13017; Vehtari et al. 2021,
    arXiv:1903.08008.
    """
    from arviz_stats import ess, rhat

    chains, count, dim = draws.shape
    together = max(1, chains // GROUPS)
    grouped = draws[: together * GROUPS].unflatten(0, (-1, together)).transpose(1, 2)
    grouped = grouped.reshape(-1, together * count, dim)  # in the order in which they were made

    def of(values: Tensor, what: Any) -> Tensor:
        data = xr.Dataset({"u": (("chain", "draw", "d"), values.double().numpy())})
        return torch.as_tensor(what(data)["u"].values)

    squares = (draws - draws.mean((0, 1))).square()
    return torch.minimum(of(draws, ess), of(squares, ess)), of(grouped, rhat)


def _compared(referee: Referee, drawn: Tensor, seed: int) -> Finding:
    """Moments in posterior sds with their Monte Carlo errors, and a classifier's word."""
    theirs = referee.draws.flatten(0, 1)
    drawn = drawn.to(theirs)
    mean, sd = theirs.mean(0), theirs.std(0).clamp(min=1e-300)
    shift, growth = (drawn.mean(0) - mean) / sd, (drawn.std(0) / sd).log()
    each = 1 / referee.effective.clamp(min=1.0) + 1 / len(drawn)
    error = each.sqrt()
    off = (shift.abs() > OFF + ERRORS * error) | (growth.abs() > OFF + ERRORS * error / 2**0.5)
    accuracy, accuracy_se = _told_apart(drawn, theirs, referee.effective, seed)
    worst = int(shift.abs().argmax()), int(growth.abs().argmax())
    total = theirs.shape[0]
    share = referee.divergences / total
    rhat, least = float(referee.rhat.max()), float(referee.effective.min())
    own = (
        f"{len(referee.draws)} chains of NUTS in coordinates {referee.coordinates}: {total:,} "
        f"draws, at least {least:,.0f} effective, R-hat {rhat:.3f}, {referee.divergences} "
        f"divergences, {referee.seconds:.1f} s"
    )
    text = (
        f"means within {float(shift.abs().max()):.2f} ± {float(error[worst[0]]):.2f} sd "
        f"({referee.names[worst[0]]}), sds within {100 * float(growth.abs().max()):.0f} ± "
        f"{100 * float(error[worst[1]]) / 2**0.5:.0f} % ({referee.names[worst[1]]}); a classifier "
        f"tells {100 * accuracy:.1f} ± {100 * accuracy_se:.1f} % of the draws apart (50 % where "
        "they are alike)"
    )
    names = [n for n, bad in zip(referee.names, off.tolist()) if bad]
    apart = accuracy - ERRORS * accuracy_se > 0.5 + APART
    good: bool | None = not (names or apart)
    if not rhat <= RHAT or share > DIVERGENT or least < LEAST:
        good, text = None, f"the referee has not mixed and tells nothing: {text}"
    elif names:
        text = f"the draws are off in {listed(names)}: {text}"
    elif apart:
        text = f"the draws have another shape: {text}"
    numbers = {
        "shift": shift.tolist(), "growth": growth.tolist(), "error": error.tolist(),
        "accuracy": accuracy, "accuracy_se": accuracy_se, "rhat": rhat, "effective": least,
        "divergences": referee.divergences, "seconds": referee.seconds,
    }  # fmt: skip
    return Finding.of("referee", f"{text}. {own}.", good, True, numbers)


def _told_apart(drawn: Tensor, theirs: Tensor, effective: Tensor, seed: int) -> tuple[float, float]:
    """The share of draws that a classifier, fitted to others, gives to their own sample.

    As many of the referee's as are effective, so that they count as independent.
    """
    n = min(len(drawn), len(theirs), max(50, int(effective.min())), 2_000)
    with forked(seed):
        theirs = theirs[torch.linspace(0, len(theirs) - 1, n).long()]
        drawn = drawn[torch.randperm(len(drawn))[:n]]
        mean, sd = theirs.mean(0), theirs.std(0).clamp(min=1e-300)
        ratio = density_ratio((drawn - mean) / sd, (theirs - mean) / sd, steps=0, seed=seed)
    right = (ratio.log_p > 0).double().mean() + (ratio.log_q < 0).double().mean()
    return float(right) / 2, 0.5 / math.sqrt(2 * n)
