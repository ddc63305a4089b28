"""Draws of a guide on the real line, in blocks that are independent given the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Transform

from ...draws.arrays import coordinate_names
from ...draws.density import is_discrete, to_real
from ...draws.sampler import Chunk, sample
from ...pairs.gate import CheckedPair
from ...weights import LogWeights
from ...weights.simulation import is_latent


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
        ValueError: the pair does not broadcast, or has a latent that is discrete, that the guide
            does not draw, or whose support depends on another; fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"draws: expected at least 2, got {draws}.")
    if not chain.vectorized:
        raise ValueError("the pair does not broadcast under a particle plate")
    with chain.ready(0):
        weights = chain.weights(2)
    latent = {n: t for n, t in weights.model.items() if is_latent(t)}
    if not latent:
        raise ValueError("the guide draws no continuous latent")
    moves: dict[str, Transform] = {}
    for name, t in latent.items():
        move = to_real(t)
        if is_discrete(t) or move is None or name not in weights.guide:
            raise ValueError(f"{name!r} is discrete, or drawn by the model only")
        moves[name] = move
        if any(torch.is_tensor(v) and v.dim() > 0 for v in vars(t.fn.support).values()):
            raise ValueError(f"the support of {name!r} depends on other latents")
    lines = {n: moves[n].inv(t.value) for n, t in latent.items()}
    layout = Layout(weights, lines)
    dtype = next(iter(lines.values())).dtype
    origin = _origin(weights, lines)

    def values(u: Tensor) -> dict[str, Tensor]:
        return {n: moves[n](line) for n, line in layout.sites(u.to(dtype)).items()}

    def log_det(u: Tensor) -> Tensor:
        """log |dz / du|: (S, B)."""
        out = u.new_zeros(u.shape[:2])
        for name, line in layout.sites(u).items():
            jacobian = moves[name].log_abs_det_jacobian(line, moves[name](line))
            out = out + layout.by_block(jacobian).sum(-1)
        return out

    def log_densities(chunk: Chunk, u: Tensor) -> tuple[Tensor, Tensor]:
        det = log_det(u)
        p, q = (layout.by_block(x)[..., 0] for x in (chunk.weights.log_p(), chunk.weights.log_q()))
        return p.double() + det, q.double() + det

    def densities(u: Tensor) -> tuple[Tensor, Tensor]:
        given = values(u)
        if origin:
            given = origin(given, layout.sites(u.to(dtype)))
        parts = sample(chain, len(u), lambda c: log_densities(c, u[c.draws]), given=given)
        p, q = zip(*parts)
        return torch.cat(p), torch.cat(q)

    def draw(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        sites = {n: moves[n].inv(chunk.weights.model[n].value) for n in latent}
        u = layout.flat(sites).double()
        return u, *log_densities(chunk, u)

    drawn = zip(*sample(chain, draws, draw, seed=seed))
    return Blocks(
        *map(torch.cat, drawn), densities, origin is not None, values, layout.names,
        {p.name: p.size for p in layout.plates},
    )  # fmt: skip


class Layout:
    """Places of the coordinates of a block in the sites' tensors (K, *nesting, *event)."""

    def __init__(self, weights: LogWeights, lines: dict[str, Tensor]):
        self.plates = sorted(weights.plates, key=lambda p: p.dim)
        self.sizes = tuple(p.size for p in self.plates)
        self.axes = [1 + weights.nesting + p.dim for p in self.plates]
        self.front = list(range(1, 1 + len(self.plates)))
        self.shapes = {
            n: tuple(v.movedim(self.axes, self.front).shape[1 + len(self.plates) :])
            for n, v in lines.items()
        }
        self.names = [c for n, shape in self.shapes.items() for c in coordinate_names(n, shape)]

    def by_block(self, tensor: Tensor) -> Tensor:
        """(S, B, d): the shared plates in one axis, everything else in another."""
        moved = tensor.movedim(self.axes, self.front)
        return moved.reshape(len(tensor), math.prod(self.sizes), -1)

    def flat(self, lines: dict[str, Tensor]) -> Tensor:
        """(S, B, d), the sites' coordinates side by side."""
        return torch.cat([self.by_block(lines[n]) for n in self.shapes], -1)

    def sites(self, u: Tensor) -> dict[str, Tensor]:
        """The inverse of `flat`."""
        out, start = {}, 0
        for name, shape in self.shapes.items():
            line = u[..., start : start + math.prod(shape)]
            out[name] = line.reshape(len(u), *self.sizes, *shape).movedim(self.front, self.axes)
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
    found: dict[str, tuple[str, str]] = {}
    for name, term in drawn.items():
        if name in lines:
            found[name] = ("value", name)
            continue
        same = [n for n, v in lines.items() if _close(term.value, v)]
        if same:
            found[name] = ("line", same[0])
    if set(found) == set(drawn) and {n for _, n in found.values()} == set(lines):
        return lambda values, lines: {
            n: (values if kind == "value" else lines)[of] for n, (kind, of) in found.items()
        }
    if len(drawn) == 1:
        ((name, term),) = drawn.items()
        shape = term.value.shape[1:]

        def vector(lines: dict[str, Tensor]) -> Tensor:
            return torch.cat([v.flatten(1) for v in lines.values()], -1).reshape(-1, *shape)

        if math.prod(shape) == sum(v[0].numel() for v in lines.values()) and _close(
            term.value, vector(lines)
        ):
            return lambda _, lines: {name: vector(lines)}
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    same = a.shape == b.shape and a.dtype == b.dtype
    return same and torch.allclose(a, b, rtol=1e-4, atol=1e-4)
