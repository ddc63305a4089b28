"""A check of draws by Hamiltonian Monte Carlo, under which a posterior's draws stay as they are."""

from __future__ import annotations

import math
import time
from statistics import NormalDist

import torch
from torch import Tensor

from ...draws.joint import LogJoint
from ...draws.sampler import NUMBERS
from ...randomness import forked
from ...results.finding import Finding, listed

MOST, LEAST = 1_000, 200  # chains
TUNED = 12  # short trajectories that find the step size
ROUNDS = 24  # long ones, about a posterior standard deviation and a half each
LEAPS = 64  # most steps of one
ACCEPTED = 0.8  # share of proposals at which the step size aims
OFF = 0.05  # half of what a trusted posterior may be off, in sds: the chains go a part of the way
ROOM = 2**19  # values of sites that all chains together may hold
LEVEL = 0.01  # of the test, for all means and spreads together


def stays(joint: LogJoint, u: Tensor, seconds: float, seed: int = 0) -> Finding:
    """Check that draws keep their means and spreads under Hamiltonian Monte Carlo.

    Each draw begins a chain that leaves the posterior as it is. If the draws are the posterior's,
    nothing but noise changes; where they miss a tail, the chains walk into it. (Modes apart are for
    the paths to find: no chain goes there.) Weights of draws that were never made cannot tell what
    was missed; this can.

    Args:
        joint: the log joint.
        u: (S, D), draws on the real line.
        seconds: after which it ends, between two trajectories.
        seed: of the chains.

    Source: Neal 2011, "MCMC using Hamiltonian dynamics", arXiv:1206.1901; Gorham & Mackey 2015,
    arXiv:1506.03039, on judging samples by what leaves the target unchanged.
    """
    with forked(seed), torch.no_grad():
        count = min(len(u), max(LEAST, min(MOST, ROOM * joint.most // NUMBERS)))
        before = u[torch.randperm(len(u))[:count]]
        mean, sd = u.mean(0), u.std(0).clamp(min=1e-300)
        centred = (u - mean) / sd
        low, bad = torch.linalg.cholesky_ex(centred.T @ centred / len(u))
        scale = sd[:, None] * (torch.eye(len(sd)).to(u) if bad else low)
        after, accepted = _chains(joint, before, scale, time.perf_counter() + seconds)
    x, y = (before - mean) / sd, (after - mean) / sd
    root = math.sqrt(count)
    shift, shift_se = (y - x).mean(0), (y - x).std(0) / root
    wider = (y.square() - x.square()) / 2  # of the logarithm of the spread, to first order
    growth, growth_se = wider.mean(0), wider.std(0) / root
    z = NormalDist().inv_cdf(1 - LEVEL / (4 * len(sd)))
    moved = shift.abs() > (z * shift_se).clamp(min=OFF)
    grown = growth.abs() > (z * growth_se).clamp(min=OFF)
    worst = (shift.abs() + growth.abs()).argsort(descending=True).tolist()
    said = [
        f"{joint.names[i]} (mean {float(shift[i]):+.2f} sd, sd {100 * float(growth[i]):+.0f} %)"
        for i in worst
        if moved[i] or grown[i]
    ]
    how = f"{count} chains of Hamiltonian Monte Carlo, begun at the draws"
    if said:
        what = f"{how}, change {listed(said, 3)}: the draws miss a part of the posterior."
    elif accepted < 0.2:
        what = f"{how}, accept {100 * accepted:.0f} % of their proposals: they cannot tell."
    else:
        what = (
            f"{how}, stay: means within {float(shift.abs().max()):.2f} sd, sds within "
            f"{100 * float(growth.abs().max()):.0f} %."
        )
    good = not said and accepted >= 0.2
    numbers = {"shift": shift.tolist(), "growth": growth.tolist(), "accepted": accepted}
    return Finding.of("stationary", what, good, True, numbers)


def _chains(joint: LogJoint, u: Tensor, scale: Tensor, deadline: float) -> tuple[Tensor, float]:
    """Run chains from u (S, D); return their places and the share of accepted proposals.

    The step size is found on the way: with any of them the posterior stays as it is.
    """
    value, gradient = joint.with_gradient(u)
    step, shares = 0.5, []
    for i in range(TUNED + ROUNDS):
        momentum = torch.randn_like(u)  # of the whitened place: u = scale v
        start = value - 0.5 * momentum.square().sum(-1)
        place, slope, p, now = u, gradient, momentum, value
        size = step * 8 ** -torch.rand_like(value)[:, None]  # small ones for where it is narrow
        most = 8 if i < TUNED else min(LEAPS, max(4, round(4 / step)))
        for _ in range(int(torch.randint(most // 2, most + 1, ()))):
            p = p + 0.5 * size * (slope @ scale)
            place = place + size * (p @ scale.T)
            now, slope = joint.with_gradient(place)
            p = p + 0.5 * size * (slope @ scale)
        chance = (now - 0.5 * p.square().sum(-1) - start).clamp(max=0).exp().nan_to_num(0.0)
        takes = torch.rand_like(chance) < chance
        u = torch.where(takes[:, None], place, u)
        gradient = torch.where(takes[:, None], slope, gradient)
        value = torch.where(takes, now, value)
        shares.append(float(chance.mean()))
        if i < TUNED:
            step = min(2.0, step * math.exp(shares[-1] - ACCEPTED))
        if time.perf_counter() > deadline and i >= TUNED // 2:
            break
    return u, sum(shares[-4:]) / len(shares[-4:])
