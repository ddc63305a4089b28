"""Draws of a guide on the real line, in blocks that are independent given the data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from ...draws.arrays import coordinate_names
from ...draws.density import is_discrete, support_ends, to_real
from ...draws.sampler import Chunk, sample
from ...pairs.gate import CheckedPair
from ...weights import LogWeights


@dataclass
class Blocks:
    """S draws in B blocks of d coordinates, float64.

    A block is an element of the plates that all sites share (a datum of an amortised guide), or
    the whole posterior where there is none.

    Attributes:
        u: (S, B, d).
        log_p, log_q: (S, B), joint density and guide's density of u, nats.
        densities: u -> the same two at other coordinates; log q only where `invertible`.
        invertible: whether the guide's own draws follow from the latents that they make.
        values: u -> site -> value, as `Term.value`.
        names: what the coordinates are called: `tau`, `theta[3]`.
        plates: names and sizes of the shared plates; the product of the sizes is B.
    """

    u: Tensor
    log_p: Tensor
    log_q: Tensor
    densities: Callable[[Tensor], tuple[Tensor, Tensor]]
    invertible: bool
    values: Callable[[Tensor], dict[str, Tensor]]
    names: list[str]
    plates: dict[str, int]


def blocks(chain: CheckedPair, draws: int, seed: int | Sequence[int] = 0) -> Blocks:
    """Draws of a chain's guide.

    Raises:
        ValueError: the pair has a latent that is discrete, or that the guide does not draw; fewer
            than two draws.
    """
    if draws < 2:
        raise ValueError(f"draws: expected at least 2, got {draws}.")
    with chain.ready(0):
        weights = chain.weights(2)
    moves: dict[str, Transform | None] = {}  # None where the support depends on other latents
    for name, t in weights.model.items():
        if not t.is_latent:
            continue
        move = to_real(t)
        if is_discrete(t) or move is None or name not in weights.guide:
            raise ValueError(f"{name!r} is discrete, or drawn by the model only")
        ends = support_ends(t)
        same = all(torch.equal(*b) for b in ends.values())
        moves[name] = to_real(t, {k: b[:1] for k, b in ends.items()}) if same else None
    if not moves:
        raise ValueError("the guide draws no continuous latent")

    def to_lines(weights: LogWeights) -> dict[str, Tensor]:
        moved = {n: move or to_real(weights.model[n]) for n, move in moves.items()}
        return {n: move.inv(weights.model[n].value) for n, move in moved.items() if move}

    lines = to_lines(weights)
    layout, origin = Layout(weights, lines), _origin(weights, lines)
    if chain.way == "loop":
        origin = None  # moved draws cost a run each, again and again
    dtype = next(iter(lines.values())).dtype

    def values(u: Tensor) -> dict[str, Tensor]:
        lines = layout.sites(u.to(dtype))
        out = {n: move(lines[n]) for n, move in moves.items() if move}
        for name in (n for n, move in moves.items() if move is None):  # in the model's order
            term = weights.model[name]
            ends_of = functools.partial(_ends, name)
            parts = list(sample(chain, len(u), ends_of, given=out))
            moved: Any = to_real(term, {k: torch.cat([p[k] for p in parts]) for k in parts[0]})
            out[name] = moved(lines[name])
        return {n: out[n] for n in lines}

    def log_det(weights: LogWeights, u: Tensor) -> Tensor:
        """log |dz / du|: (S, B)."""
        out = u.new_zeros(u.shape[:2])
        for name, line in layout.sites(u).items():
            move: Any = moves[name] or to_real(weights.model[name])
            jacobian = move.log_abs_det_jacobian(line, move(line))
            out = out + layout.by_block(jacobian).sum(-1)
        return out

    def log_densities(chunk: Chunk, u: Tensor) -> tuple[Tensor, Tensor]:
        det = log_det(chunk.weights, u)
        p, q = (layout.by_block(x)[..., 0] for x in (chunk.weights.log_p(), chunk.weights.log_q()))
        return p.double() + det, q.double() + det

    def densities(u: Tensor) -> tuple[Tensor, Tensor]:
        given = values(u)
        if origin:
            given = origin(given, layout.sites(u.to(dtype)))
        parts = sample(chain, len(u), lambda c: log_densities(c, u[c.draws]), given=given)
        p, q = map(torch.cat, zip(*parts))
        return p, q

    def draw(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        u = layout.flat(to_lines(chunk.weights)).double()
        return u, *log_densities(chunk, u)

    u, log_p, log_q = map(torch.cat, zip(*sample(chain, draws, draw, seed=seed)))
    return Blocks(
        u, log_p, log_q, densities, origin is not None, values, layout.names, layout.sizes
    )


def _ends(name: str, chunk: Chunk) -> dict[str, Tensor]:
    return support_ends(chunk.weights.model[name])


class Layout:
    """Places of the coordinates of a block in the sites' tensors (K, *nesting, *event)."""

    def __init__(self, weights: LogWeights, lines: dict[str, Tensor]):
        plates = sorted(weights.plates, key=lambda p: p.dim)
        self.sizes = {p.name: p.size for p in plates}
        self.axes = [1 + weights.nesting + p.dim for p in plates]
        self.front = list(range(1, 1 + len(plates)))
        self.shapes = {
            n: tuple(v.movedim(self.axes, self.front).shape[1 + len(plates) :])
            for n, v in lines.items()
        }
        self.names = [c for n, shape in self.shapes.items() for c in coordinate_names(n, shape)]

    def by_block(self, tensor: Tensor) -> Tensor:
        """(S, B, d): the shared plates in one axis, everything else in another."""
        moved = tensor.movedim(self.axes, self.front)
        return moved.reshape(len(tensor), math.prod(self.sizes.values()), -1)

    def flat(self, lines: dict[str, Tensor]) -> Tensor:
        """(S, B, d), the sites' coordinates side by side."""
        return torch.cat([self.by_block(lines[n]) for n in self.shapes], -1)

    def sites(self, u: Tensor) -> dict[str, Tensor]:
        """The inverse of `flat`."""
        out, start = {}, 0
        for name, shape in self.shapes.items():
            line = u[..., start : start + math.prod(shape)]
            line = line.reshape(len(u), *self.sizes.values(), *shape)
            out[name] = line.movedim(self.front, self.axes)
            start += math.prod(shape)
        return out


def _origin(
    weights: LogWeights, lines: dict[str, Tensor]
) -> Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]] | None:
    """(values, lines) of the latents -> what the guide drew to make them; None if it is unknown.

    A guide draws its latents themselves, or each on the real line (as `AutoNormal` does), or all
    of them on the real line in one vector (as `AutoMultivariateNormal` and the flows do).
    """
    drawn = {n: t for n, t in weights.guide.items() if t.free and not t.observed}
    found: dict[str, tuple[int, str]] = {}  # guide's site -> 0 (value) or 1 (line), and of which
    for name, term in drawn.items():
        same = [n for n, v in lines.items() if _close(term.value, v)]
        if name in lines or same:
            found[name] = (0, name) if name in lines else (1, same[0])
    if set(found) == set(drawn) and {n for _, n in found.values()} == set(lines):
        return lambda *made: {name: made[i][of] for name, (i, of) in found.items()}
    if len(drawn) != 1:
        return None
    ((name, term),) = drawn.items()
    shape = term.value.shape[1:]

    def vector(_: dict[str, Tensor], lines: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = torch.cat([v.reshape(len(v), -1) for v in lines.values()], -1)
        return {name: whole.reshape(-1, *shape)}

    fits = math.prod(shape) == sum(v[0].numel() for v in lines.values())
    return vector if fits and _close(term.value, vector({}, lines)[name]) else None


def _close(a: Tensor, b: Tensor) -> bool:
    same = a.shape == b.shape and a.dtype == b.dtype
    return same and torch.allclose(a, b, rtol=1e-4, atol=1e-4)
