"""A U-Net with attention: from a noisy image and its noise level to a guess of what was added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .residual import attention, group_norm


class UNet(nn.Module):
    """Residual blocks at falling and rising sizes, joined across: (..., C·H·W), (..., F) -> (...).

    The features of noise level and condition scale and shift each block's normalised values. At
    the smallest size all positions attend to each other. The last convolution begins at zero.

    Args:
        shape: (channels, height, width); both sides must be divisible by 2^levels.
        features: F, the width of what is told beside the image.
        width: channels of the first level; each further one has twice as many.
        levels: how often the image is halved.

    Raises:
        ValueError: an image whose side cannot be halved so often.

    Source: Ronneberger et al. 2015 (arXiv:1505.04597, fig. 1); Ho et al. 2020 (arXiv:2006.11239,
    appendix B); Dhariwal & Nichol 2021 (arXiv:2105.05233, eq. 3).
    """

    def __init__(self, shape: Sequence[int], features: int, width: int = 32, levels: int = 2):
        super().__init__()
        c, h, w = shape
        if h % 2**levels or w % 2**levels:
            raise ValueError(
                f"image_shape: a U-Net of {levels} levels halves both sides {levels} times, so it "
                f"expects multiples of {2**levels}, got {h} x {w}. Pad the images, or take fewer "
                "levels."
            )
        self.shape = (c, h, w)
        wide = [width << level for level in range(levels + 1)]
        told = 4 * width
        self.told = nn.Sequential(nn.Linear(features, told), nn.SiLU())
        self.inp = nn.Conv2d(c, width, 3, padding=1)
        self.down = nn.ModuleList(ToldBlock(a, a, told) for a in wide[:-1])
        self.halve = nn.ModuleList(nn.Conv2d(a, 2 * a, 3, stride=2, padding=1) for a in wide[:-1])
        self.middle = nn.ModuleList([ToldBlock(wide[-1], wide[-1], told) for _ in range(2)])
        self.attend = Attention(wide[-1])
        self.up = nn.ModuleList(ToldBlock(3 * a, a, told) for a in reversed(wide[:-1]))
        self.out = nn.Sequential(
            group_norm(width), nn.SiLU(), last := nn.Conv2d(width, c, 3, padding=1)
        )
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(..., C·H·W), (..., F) -> (..., C·H·W)."""
        told = self.told(told.expand(*x.shape[:-1], -1).reshape(-1, told.shape[-1]))
        h = self.inp(x.reshape(-1, *self.shape))
        across = []
        for block, halve in zip(self.down, self.halve):
            h = block(h, told)
            across.append(h)
            h = halve(h)
        first, second = self.middle
        h = second(self.attend(first(h, told)), told)
        for block in self.up:
            h = nn.functional.interpolate(h, scale_factor=2.0)
            h = block(torch.cat([h, across.pop()], 1), told)
        return self.out(h).reshape(x.shape)


class ToldBlock(nn.Module):
    """A residual block whose second normalisation is scaled and shifted by what is told."""

    def __init__(self, inputs: int, outputs: int, told: int):
        super().__init__()
        self.first = nn.Sequential(
            group_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.norm, self.tell = group_norm(outputs), nn.Linear(told, 2 * outputs)
        self.last = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, told) -> (B, outputs, H, W)."""
        scale, shift = self.tell(told)[..., None, None].chunk(2, 1)
        g = self.norm(self.first(h)) * (1 + scale) + shift
        return self.skip(h) + self.last(nn.functional.silu(g))


class Attention(nn.Module):
    """One head of self-attention over all positions, added to its input (arXiv:1706.03762)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv, self.out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, h: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H, W)."""
        q, k, v = self.qkv(self.norm(h).flatten(2)).chunk(3, 1)
        return h + self.out(attention(q, k, v)).reshape(h.shape)
