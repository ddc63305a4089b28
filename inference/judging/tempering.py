"""Chains along a path of temperatures from a guide to the posterior, many blocks at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..draws.density import to_real
from ..draws.psis import ess
from ..elbo.base import log_mean
from ..graph import TraceFailure, traced
from ..pairs.gate import CheckedPair
from ..weights import LogWeights, Term

AIM = 0.75  # share of proposals that moves are to take
SETTLING = 20  # moves at the end before the way back, where the ends are not exact draws

Place = dict[str, Tensor]  # site -> its value on the real line, (K, ...)


class Places:
    """The space of the chains: the values of a guide's drawn sites on the real line.

    With base(u) the guide's density there and w = p(x, z) / q(z), the density at temperature β is
    base · w^β: the guide's at 0, the joint's at 1.

    Args:
        pair: a checked pair, bound.
        chains: K.
    """

    def __init__(self, pair: CheckedPair, chains: int):
        self.pair, self.chains = pair, chains
        first = pair.weights(chains)
        self.drawn = [n for n, t in first.guide.items() if t.free and not t.observed]
        moves = {n: to_real(first.guide[n]) for n in self.drawn}
        self._graph: Any = None
        self.moves = {n: m for n, m in moves.items() if m is not None}
        self.shared = [first.nesting + 1 + p.dim for p in first.plates]
        self.blocks = tuple(
            n if i in self.shared else 1 for i, n in enumerate(first.log_weight().shape)
        )[1:]

    def start(self) -> Place:
        """K draws of the guide."""
        weights = self.pair.weights(self.chains)
        return self.of({n: weights.guide[n].value for n in self.drawn})

    def of(self, values: Mapping[str, Tensor]) -> Place:
        """Values of the sites on the real line."""
        return {n: self.moves[n].inv(values[n]).detach() for n in self.drawn}

    def densities(self, u: Place) -> tuple[Tensor, Tensor]:
        """log base and log w at u: (K, *blocks) each."""
        z = {n: self.moves[n](v) for n, v in u.items()}
        weights = self.pair.weights(self.chains, z)
        free = {n: weights.guide[n] for n in self.drawn}
        base = weights.shared_sum(free) + self._jacobian(u, z, weights)
        return base, weights.log_weight()

    def _jacobian(self, u: Place, z: Place, weights: LogWeights) -> Tensor:
        total = torch.zeros(())
        for n in self.drawn:
            term, one = weights.guide[n], self.moves[n].log_abs_det_jacobian(u[n], z[n])
            while one.dim() > z[n].dim() - term.fn.event_dim:
                one = one.sum(-1)
            total = total + _as_term(term, one).sum_to(weights.plates)
        return total

    def with_gradient(self, u: Place, beta: float) -> tuple[Tensor, Tensor, Place]:
        """log density at β and log w, (K, *blocks), and the first one's gradient at u."""
        inputs = [*u.values(), torch.tensor(beta, dtype=next(iter(u.values())).dtype)]
        found = self._run(inputs)
        size = self.chains * math.prod(self.blocks)
        value, log_w, *slopes = found.split([size, size, *(v.numel() for v in u.values())])
        shape = (self.chains, *self.blocks)
        value = torch.where(value.isnan(), -math.inf, value)
        slopes = [torch.where(g.isfinite(), g, torch.zeros_like(g)) for g in slopes]
        pairs = zip(u.items(), slopes)
        return (
            value.reshape(shape),
            log_w.reshape(shape),
            {n: g.reshape(v.shape) for (n, v), g in pairs},
        )

    def _run(self, inputs: list[Tensor]) -> Tensor:
        """`_flat`, without the pair's Python where it can be traced: as one graph of operations."""
        if self._graph is None:
            try:
                self._graph = traced(self._flat, inputs)
            except TraceFailure:
                self._graph = self._flat
        return self._graph(*inputs)

    def _flat(self, *inputs: Tensor) -> Tensor:
        """log density at β, log w, and the first one's gradient, one after another."""
        with torch.enable_grad():
            leaves = [v.detach().requires_grad_() for v in inputs[:-1]]
            base, log_w = self.densities(dict(zip(self.drawn, leaves)))
            value = base + inputs[-1] * log_w
            slopes = torch.autograd.grad(value.sum(), leaves)
        return torch.cat([t.detach().reshape(-1) for t in (value, log_w, *slopes)])

    def per_block(self, value: Tensor) -> Tensor:
        """Sum of a site's entries over all that belongs to a block: (K, *blocks)."""
        keep = [0, *self.shared]
        lead = max(0, len(self.blocks) + 1 - value.dim())
        value = value.reshape(value.shape[:1] + (1,) * lead + value.shape[1:])
        gone = [i for i in range(value.dim()) if i not in keep]
        summed = value.sum(gone, keepdim=True) if gone else value
        return summed.reshape(len(value), *self.blocks)

    def over(self, block: Tensor, value: Tensor) -> Tensor:
        """A number of each block, (K or 1, *blocks), as it broadcasts to a site's value."""
        nesting = len(self.blocks)
        if value.dim() <= nesting:  # a site without the axes of plates
            return block.reshape(block.shape[0], *(1,) * (value.dim() - 1))
        return block.reshape(*block.shape, *(1,) * (value.dim() - 1 - nesting))

    def pick(self, u: Place, log_w: Tensor, keep: bool = False) -> Place:
        """Chains drawn anew by their weights, in each block; the first one kept if asked for."""
        flat = log_w.reshape(self.chains, -1).T.softmax(-1)
        index = torch.multinomial(flat, self.chains, replacement=True).T
        if keep:
            index[0] = 0
        index = index.reshape(log_w.shape)
        return {n: v.gather(0, self.over(index, v).expand_as(v)) for n, v in u.items()}


def _as_term(term: Term, log_prob: Tensor) -> Term:
    nesting = term.log_prob.dim() - 1
    if log_prob.dim() <= nesting:
        log_prob = log_prob.reshape((1,) * (nesting + 1 - log_prob.dim()) + log_prob.shape)
    if torch.is_tensor(term.mask):
        log_prob = torch.where(term.mask, log_prob, torch.zeros_like(log_prob))
    return term.having(log_prob=log_prob)


@dataclass
class Walk:
    """Chains at the end of a path.

    Attributes:
        place: where they are.
        log_w: of each since it was last drawn anew, (K, *blocks); `log_z`: what came before.
        trail: of each temperature, on a way back.
    """

    place: Place
    log_w: Tensor
    log_z: Tensor
    trail: list[Place]


@dataclass
class Path:
    """Temperatures with the moves at each, which stay as they were found.

    Attributes:
        places: where chains may be.
        temperatures: from 0 to 1.
        steps: of the moves at each, per block.
        scale: of each site's coordinates.
        leaps: leapfrog steps of a move.
        accepted: share of the proposals taken while the path was found.
    """

    places: Places
    temperatures: list[float]
    steps: list[Tensor]
    scale: Place
    leaps: int
    accepted: float

    @classmethod
    def found(cls, places: Places, leaps: int, count: int | None, pace: float, most: int) -> Path:
        """Walk once from the guide to the posterior, and note the way.

        The next temperature is where log w has changed by `pace` of its own standard deviations,
        on average over blocks; with a count, the way is parted anew in as many parts as long.
        """
        u = places.start()
        scale = {n: v.std(0, keepdim=True).clamp(min=1e-6) for n, v in u.items()}
        step = torch.full((1, *places.blocks), 0.3).to(next(iter(u.values())))
        path = cls(places, [0.0], [step], scale, leaps, 0.0)
        beta, shares = 0.0, []
        log_w = places.with_gradient(u, 0.0)[1]
        for t in range(most):
            spread = log_w.double().clamp(min=-1e6).std(0).square().mean().sqrt()
            left = (1 - beta) / (most - t)  # so that the end is reached
            beta = min(1.0, beta + max(pace / max(float(spread), 1e-6), left, 1e-7))
            u, share, log_w = path.move(u, beta, step)
            step = (step * torch.exp(share - AIM)).clamp(1e-4, 2.0)
            path.temperatures.append(beta)
            path.steps.append(step)
            shares.append(float(share.mean()))
            if beta >= 1:
                break
        path.accepted = sum(shares) / len(shares)
        return path if count is None else path.parted(count)

    def parted(self, count: int) -> Path:
        """The same way in another number of temperatures."""
        old = torch.tensor(self.temperatures, dtype=torch.float64)
        at = torch.linspace(0, len(old) - 1, count, dtype=torch.float64)
        low = at.floor().long().clamp(max=len(old) - 2)
        betas = old[low] + (at - low) * (old[low + 1] - old[low])
        betas[-1] = 1.0
        steps = [self.steps[int(i.round())] for i in at]
        return Path(self.places, betas.tolist(), steps, self.scale, self.leaps, self.accepted)

    def move(self, u: Place, beta: float, step: Tensor) -> tuple[Place, Tensor, Tensor]:
        """One move of Hamiltonian Monte Carlo at β; the share of chains that took it; log w there.

        Source: Neal 2011, MCMC using Hamiltonian dynamics, arXiv:1206.1901, section 3.2.
        """
        places, scale = self.places, self.scale
        value, before, slope = places.with_gradient(u, beta)
        p = {n: torch.randn_like(v) for n, v in u.items()}
        start = value - sum(places.per_block(0.5 * v.square()) for v in p.values())
        at, now, after = u, value, before
        size = {n: places.over(step, v) for n, v in u.items()}
        for _ in range(self.leaps):
            p = {n: p[n] + 0.5 * size[n] * scale[n] * slope[n] for n in p}
            at = {n: at[n] + size[n] * scale[n] * p[n] for n in p}
            now, after, slope = places.with_gradient(at, beta)
            p = {n: p[n] + 0.5 * size[n] * scale[n] * slope[n] for n in p}
        end = now - sum(places.per_block(0.5 * v.square()) for v in p.values())
        chance = (end - start).clamp(max=0).exp().nan_to_num(0.0)
        takes = torch.rand_like(chance) < chance
        kept = {n: torch.where(places.over(takes, v), at[n], v) for n, v in u.items()}
        return kept, chance.mean(0, keepdim=True), torch.where(takes, after, before)

    def settled(self, u: Place) -> Place:
        """After some moves at the end."""
        for _ in range(SETTLING):
            u = self.move(u, 1.0, self.steps[-1])[0]
        return u

    def forward(self, u: Place, resample: bool = False, pinned: list[Place] | None = None) -> Walk:
        """Chains from the guide: w_k = Π_t w(u_t)^(β_t+1 - β_t), drawn anew where they are few.

        Args:
            u: draws of the guide; resample: as SMC does.
            pinned: the places of the first chain, which stays on its way.
        """
        places, betas = self.places, self.temperatures
        here = places.with_gradient(u, 0.0)[1]  # log w
        log_w, log_z = torch.zeros_like(here), torch.zeros_like(here[0])
        for t in range(1, len(betas)):
            if pinned is not None:
                u = {n: torch.cat([pinned[t - 1][n][:1], v[1:]]) for n, v in u.items()}
                here = places.with_gradient(u, betas[t - 1])[1]
            log_w = log_w + (betas[t] - betas[t - 1]) * here
            if resample and t < len(betas) - 1:
                few = ess(log_w) < 0.5 * len(log_w)  # (*blocks)
                picked, chosen = places.pick(u, log_w, pinned is not None), few.expand(log_w.shape)
                u = {n: torch.where(places.over(chosen, v), picked[n], v) for n, v in u.items()}
                log_z = torch.where(few, log_z + log_mean(log_w), log_z)
                log_w = torch.where(chosen, torch.zeros_like(log_w), log_w)
            u, _, here = self.move(u, betas[t], self.steps[t])
        return Walk(u, log_w, log_z, [])

    def backward(self, u: Place) -> Walk:
        """Chains from draws of the posterior, whose weights are those of the same way forward.

        Every move leaves its density as it is and is its own reverse.
        """
        places, betas, log_w = [], self.temperatures, torch.zeros(())
        for t in range(len(betas) - 1, 0, -1):
            u, _, here = self.move(u, betas[t], self.steps[t])
            places.append(u)
            log_w = log_w + (betas[t] - betas[t - 1]) * here
        return Walk(u, log_w, torch.zeros_like(log_w[0]), places[::-1])

    def conditional(self, end: Place) -> Tensor:
        """log Z by SMC with one chain on the way back from a posterior draw: an upper bound.

        Source: Grosse et al. 2015, arXiv:1511.02543, section 4.2; Andrieu, Doucet & Holenstein
        2010, Particle Markov chain Monte Carlo methods, section 4.3.
        """
        back = self.backward(end)
        walk = self.forward(self.places.start(), resample=True, pinned=back.trail)
        return walk.log_z + log_mean(walk.log_w)
