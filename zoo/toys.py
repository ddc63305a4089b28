"""Two-dimensional sets that densities are usually tried on, drawn afresh from a generator.

Each function takes (n, generator) and returns points (n, 2), float32, within about [-6, 6]², and
the component each point came from, int64 (n,), or None where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor


def _labels(n: int, count: int, g: Generator) -> Tensor:
    return torch.randint(count, (n,), generator=g)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)


def moons(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles of radius 2, standard deviation 0.2 about them."""
    k = _labels(n, 2, g)
    arc = _polar(1.0, math.pi * torch.rand(n, generator=g))
    lower = torch.tensor([1.0, 0.5]) - arc  # the upper arc, turned by 180° and moved
    x = torch.where(k[:, None] == 0, arc, lower) + 0.1 * torch.randn(n, 2, generator=g)
    return 2 * (x - torch.tensor([0.5, 0.25])), k


def rings(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Four circles of radius 0.75, 1.5, 2.25 and 3, equally likely, standard deviation 0.1."""
    k = _labels(n, 4, g)
    x = _polar(0.75 * (k + 1), 2 * math.pi * torch.rand(n, generator=g))
    return x + 0.1 * torch.randn(n, 2, generator=g), k


def eight_gaussians(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Means on a circle of radius 4, standard deviation 0.5, equally likely."""
    k = _labels(n, 8, g)
    return _polar(4.0, k * math.pi / 4) + 0.5 * torch.randn(n, 2, generator=g), k


def checkerboard(n: int, g: Generator) -> tuple[Tensor, None]:
    """Uniform on every other square (side 2) of [-4, 4]²: the density there is 1/32."""
    column, pair = _labels(n, 4, g), _labels(n, 2, g)
    corner = torch.stack([column, 2 * pair + column % 2], -1)  # the dark square's corner
    return 2 * (corner + torch.rand(n, 2, generator=g)) - 4, None


def pinwheel(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Five arms turned by exp(radius) / 4 (Johnson et al. 2016, arXiv:1603.06277, figure 2)."""
    k = _labels(n, 5, g)
    arm = torch.randn(n, 2, generator=g) * torch.tensor([0.3, 0.1]) + torch.tensor([1.0, 0.0])
    angle = 2 * math.pi * k / 5 + 0.25 * arm[:, 0].exp()
    turn = torch.stack([_polar(1.0, angle), _polar(1.0, angle + math.pi / 2)], -1)  # (n, 2, 2)
    return 2 * (turn @ arm[..., None]).squeeze(-1), k


def two_spirals(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Two arms of one and a half turns from the origin, standard deviation 0.1."""
    k = _labels(n, 2, g)
    t = 3 * math.pi * torch.rand(n, generator=g).sqrt()  # one and a half turns, evenly covered
    return _polar(t / 3, t + math.pi * k) + 0.1 * torch.randn(n, 2, generator=g), k


TOYS: dict[str, Callable[[int, Generator], tuple[Tensor, Tensor | None]]] = {
    "moons": moons,
    "rings": rings,
    "eight-gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "two-spirals": two_spirals,
}
