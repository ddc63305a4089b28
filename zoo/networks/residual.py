"""Residual convolutional networks of images: halved and doubled block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.networks import activation


class ResidualBlock(nn.Module):
    """h + conv(act(conv(act(h)))), normalised in groups; the last convolution begins small.

    Source: He et al. 2016, "Identity mappings in deep residual networks" (arXiv:1603.05027).
    """

    def __init__(self, inputs: int, outputs: int, act: str = "silu"):
        super().__init__()
        self.body = nn.Sequential(
            group_norm(inputs), activation(act), nn.Conv2d(inputs, outputs, 3, padding=1),
            group_norm(outputs), activation(act), last := nn.Conv2d(outputs, outputs, 3, padding=1),
        )  # fmt: skip
        with torch.no_grad():
            last.weight.mul_(0.1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.skip(h) + self.body(h)


class ResidualEncoder(nn.Module):
    """Residual blocks, each level half the size: flat images (..., C·H·W) -> (..., outputs).

    Args:
        shape: (channels, height, width) of an image.
        outputs: width of the result.
        width: channels of the first level; each further one has twice as many.
        levels: how often the image is halved.
        blocks: residual blocks on each level.
    """

    def __init__(
        self, shape: Sequence[int], outputs: int, width: int = 32, levels: int = 2,
        blocks: int = 1, act: str = "silu",
    ):  # fmt: skip
        super().__init__()
        c, h, w = shape
        self.shape = (c, h, w)
        layers: list[nn.Module] = [nn.Conv2d(c, width, 3, padding=1)]
        for level in range(levels):
            layers += [ResidualBlock(width << level, width << level, act) for _ in range(blocks)]
            layers.append(nn.Conv2d(width << level, width << level + 1, 3, stride=2, padding=1))
        last = width << levels
        layers += [ResidualBlock(last, last, act), group_norm(last), activation(act), nn.Flatten()]
        self.conv = nn.Sequential(*layers)
        self.out = nn.Linear(last * math.prod(halved((h, w), levels)), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C·H·W) -> (..., outputs)."""
        batch = x.shape[:-1]
        return self.out(self.conv(x.reshape(-1, *self.shape))).reshape(*batch, -1)


class ResidualDecoder(nn.Module):
    """The encoder turned around: (..., inputs) -> (..., outputs·C·H·W), plane after plane."""

    def __init__(
        self, inputs: int, shape: Sequence[int], outputs: int = 1, width: int = 32,
        levels: int = 2, blocks: int = 1, act: str = "silu",
    ):  # fmt: skip
        super().__init__()
        c, h, w = shape
        self.sizes = [halved((h, w), level) for level in range(levels, -1, -1)]
        self.small = (width << levels, *self.sizes[0])
        self.inp = nn.Linear(inputs, math.prod(self.small))
        self.first = ResidualBlock(width << levels, width << levels, act)
        self.levels = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(width << level, width << level - 1, act),
                *(ResidualBlock(width << level - 1, width << level - 1, act)
                  for _ in range(blocks - 1)),
            )
            for level in range(levels, 0, -1)
        )  # fmt: skip
        self.out = nn.Sequential(
            group_norm(width), activation(act), nn.Conv2d(width, c * outputs, 3, padding=1)
        )

    def forward(self, z: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs·C·H·W)."""
        batch = z.shape[:-1]
        h = self.first(self.inp(z).reshape(-1, *self.small))
        for level, size in zip(self.levels, self.sizes[1:]):
            h = level(nn.functional.interpolate(h, size=size))
        return self.out(h).reshape(*batch, -1)


def halved(size: Sequence[int], times: int) -> tuple[int, int]:
    """Height and width of an image that was halved so many times, rounded up."""
    h, w = size
    for _ in range(times):
        h, w = math.ceil(h / 2), math.ceil(w / 2)
    return h, w


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalisation in groups of at least four channels, eight groups at most.

    Unlike a batch's, its statistics are those of one image: rows stay independent.
    """
    return nn.GroupNorm(math.gcd(8, max(1, channels // 4)), channels)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(qᵀ k / √d) v over positions: (B, d, N) each -> (B, d, N)."""
    weights = torch.softmax(q.mT @ k / math.sqrt(q.shape[1]), -1)  # (B, N, N)
    return v @ weights.mT
