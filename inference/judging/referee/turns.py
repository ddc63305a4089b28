"""The No-U-Turn sampler for several chains at once, all trees grown in step.

Source: Hoffman & Gelman 2014, "The No-U-Turn sampler", arXiv:1111.4246; Betancourt 2017, "A
conceptual introduction to Hamiltonian Monte Carlo", arXiv:1701.02434, appendix A (multinomial
draws, the criterion with summed momenta); Phan et al. 2019, arXiv:1912.11554, algorithm 2 (the tree
without recursion).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DEPTH = 7  # at most 127 steps of a tree; whitened coordinates take about seven
ACCEPTED = 0.8  # mean acceptance at which the step size aims
LOST = 1000.0  # nats of energy that a step may be off before it is called divergent

Density = Callable[[Tensor], tuple[Tensor, Tensor]]  # (C, D) -> log density (C,), gradient (C, D)


@dataclass
class Chains:
    """Draws of several chains.

    Attributes:
        draws: (C, S, D).
        divergences: of all kept draws.
        steps: leapfrog steps made in all, of one chain.
        step_size: after the warm-up.
        finished: whether the time was enough for all draws.
    """

    draws: Tensor
    divergences: int
    steps: int
    step_size: float
    finished: bool


def no_u_turn(
    density: Density, start: Tensor, draws: int, warmup: int, deadline: float = math.inf
) -> Chains:
    """Draw from a density whose scales are about one.

    Args:
        density: of (C, D) points.
        start: (C, D), a chain each.
        draws: kept of each chain; `warmup`: before them, in which the common step size is found.
        deadline: of `time.monotonic()`, at which it ends with what there is.
    """
    place, size = start, _Step(start.shape[-1])
    value, gradient = density(place)
    kept, divergences, steps, finished = [], 0, 0, True
    for i in range(warmup + draws):
        if time.monotonic() > deadline:
            finished = False
            break
        tree = _Tree(place, value, gradient)
        accepted = tree.grow(density, size.tuned if i >= warmup else size.now)
        place, value, gradient = tree.chosen
        steps += tree.leaves
        if i < warmup:
            size.update(float(accepted))
        else:
            kept.append(place)
            divergences += int(tree.diverged.sum())
    out = torch.stack(kept, 1) if kept else start[:, None][:, :0]
    return Chains(out, divergences, steps, size.tuned, finished)


class _Step:
    """Dual averaging of the logarithm of a step size (Hoffman & Gelman, section 3.2.1)."""

    def __init__(self, dim: int):
        self.now = self.tuned = 1.0 / dim**0.25
        self.centre, self.count = math.log(10 * self.now), 0
        self.off, self.mean = 0.0, math.log(self.now)

    def update(self, accepted: float) -> None:
        """Go up where more was accepted than is aimed at, down where less."""
        self.count += 1
        t = self.count
        rate = 1 / (t + 10)
        self.off = (1 - rate) * self.off + rate * (ACCEPTED - accepted)
        log = self.centre - math.sqrt(t) / 0.05 * self.off
        share = t**-0.75
        self.mean = share * log + (1 - share) * self.mean
        self.now, self.tuned = math.exp(min(log, 1.0)), math.exp(min(self.mean, 1.0))


class _Tree:
    """One trajectory of every chain, doubled until it turns."""

    def __init__(self, place: Tensor, value: Tensor, gradient: Tensor):
        p = torch.randn_like(place)
        self.energy = value - 0.5 * p.square().sum(-1)  # minus it, (C,)
        self.ends = dict.fromkeys((-1, 1), (place, p, gradient))
        self.chosen = place, value, gradient
        self.weight = torch.zeros_like(value)  # log of the summed exp(-energy), less the first
        self.sum = p
        self.diverged = torch.zeros_like(value, dtype=torch.bool)
        self.leaves, self._accepted, self._made = 0, torch.zeros_like(value), 0.0

    def grow(self, density: Density, size: float) -> Tensor:
        """Double until every tree has turned; return the mean acceptance."""
        going = torch.ones_like(self.diverged)
        for depth in range(DEPTH):
            going = going & self._doubled(density, size, depth, going)
            if not going.any():
                break
        return self._accepted.sum() / self._made

    def _doubled(self, density: Density, size: float, depth: int, going: Tensor) -> Tensor:
        """Add a tree of 2^depth leaves to one end of each chain that goes on; who still does."""
        right = torch.rand_like(self.weight) < 0.5
        way = torch.where(right, size, -size).to(self.weight)[:, None]
        z, p, g = (_either(right, a, b) for a, b in zip(self.ends[1], self.ends[-1]))
        alive, turned = going.clone(), torch.zeros_like(going)
        total, weight = torch.zeros_like(p), torch.full_like(self.weight, -math.inf)
        chosen = tuple(t.clone() for t in self.chosen)
        firsts: dict[int, tuple[Tensor, Tensor]] = {}  # of the unfinished subtrees
        for n in range(2**depth):
            p = p + 0.5 * way * g
            z = z + way * p
            value, g = density(z)
            p = p + 0.5 * way * g
            self.leaves += 1
            off = (value - 0.5 * p.square().sum(-1) - self.energy).nan_to_num(nan=-math.inf)
            self._accepted += torch.where(alive, off.clamp(max=0).exp(), 0.0)
            self._made += float(alive.sum())
            lost = alive & (off < -LOST)
            self.diverged |= lost
            alive = alive & ~lost
            weight = torch.where(alive, torch.logaddexp(weight, off), weight)
            takes = alive & (torch.rand_like(off).log() < off - weight)
            new = (z, value, g)
            chosen = tuple(_either(takes, a, b) for a, b in zip(new, chosen))
            total = total + p
            turned = turned | (alive & self._turns_inside(n, p, total, firsts))
            alive = alive & ~turned
            if not alive.any():
                return torch.zeros_like(going)
        takes = alive & (torch.rand_like(weight).log() < weight - self.weight)
        self.chosen = tuple(  # type: ignore[assignment]
            _either(takes, a, b) for a, b in zip(chosen, self.chosen)
        )
        self.weight = torch.where(alive, torch.logaddexp(self.weight, weight), self.weight)
        self.sum = _either(alive, self.sum + total, self.sum)
        for side, here in ((1, right), (-1, ~right)):
            self.ends[side] = tuple(  # type: ignore[assignment]
                _either(here, a, b) for a, b in zip((z, p, g), self.ends[side])
            )
        return alive & ~_turns(self.ends[-1][1], self.ends[1][1], self.sum)

    @staticmethod
    def _turns_inside(n: int, p: Tensor, total: Tensor, firsts: dict) -> Tensor:
        """Tell whether a subtree that ends with leaf n turns; its first leaf is kept at even n."""
        level = bin(n >> 1).count("1")
        if n % 2 == 0:
            firsts[level] = p, total
            return torch.zeros_like(p[:, 0], dtype=torch.bool)
        ends = (~n & (n + 1)).bit_length() - 1  # ones at the end of n: subtrees that end here
        turned = torch.zeros_like(p[:, 0], dtype=torch.bool)
        for i in range(level - ends + 1, level + 1):
            first, before = firsts[i]
            turned = turned | _turns(first, p, total - before + first)
        return turned


def _turns(first: Tensor, last: Tensor, total: Tensor) -> Tensor:
    """Tell whether going on would bring the ends of a trajectory closer."""
    middle = total - (first + last) / 2
    return ((first * middle).sum(-1) <= 0) | ((last * middle).sum(-1) <= 0)


def _either(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(which[:, None] if a.dim() > 1 else which, a, b)
