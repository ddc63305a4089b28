"""Networks of adversarial training at image size: a generator, and a critic of bounded slope."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .residual import group_norm, halved

SQUARINGS = 4


def largest_singular(weight: Tensor, squarings: int = SQUARINGS) -> Tensor:
    """Return a bound on the largest singular value σ of a matrix (m, n): ().

        σ <= (Σ_i σ_i^p)^{1/p} <= σ min(m, n)^{1/p},   p = 2^{squarings + 1}

    by repeated squaring of W Wᵀ. Power iteration (arXiv:1802.05957, section 2.1) keeps a vector
    from step to step and is below σ until it has converged; this needs no state.
    """
    w = weight if weight.shape[0] <= weight.shape[1] else weight.mT
    m, log_norm, share = w @ w.mT, weight.new_zeros(()), 1.0
    for _ in range(squarings):
        trace = m.trace() + torch.finfo(m.dtype).tiny
        m = m / trace
        log_norm = log_norm + share * trace.log()
        m, share = m @ m, share / 2
    return torch.exp(0.5 * (log_norm + share * (m.trace() + torch.finfo(m.dtype).tiny).log()))


class SpectralConv2d(nn.Conv2d):
    """A convolution whose kernel, as a matrix (outputs, inputs·h·w), has spectral norm 1 at most.

    Source: Miyato et al. 2018, "Spectral normalization for generative adversarial networks"
    (arXiv:1802.05957, section 2).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        norm = largest_singular(self.weight.flatten(1))
        return self._conv_forward(input, self.weight / norm, self.bias)


class SpectralLinear(nn.Linear):
    """An affine layer whose matrix has spectral norm 1 at most."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return nn.functional.linear(input, self.weight / largest_singular(self.weight), self.bias)


class ConvGenerator(nn.Module):
    """An affine layer and two doublings by transposed convolutions: (..., L) -> (..., C·H·W).

    Normalised in groups, not over a batch, so that draws are independent of one another.

    Args:
        inputs: L.
        shape: (channels, height, width) of an image.
        width: channels before the last layer; there are twice as many at each smaller size.

    Source: Radford et al. 2016, "Unsupervised representation learning with deep convolutional
    generative adversarial networks" (arXiv:1511.06434, section 3).
    """

    def __init__(self, inputs: int, shape: Sequence[int], width: int = 32):
        super().__init__()
        c, *self.size = shape
        self.small = (4 * width, *halved(self.size, 2))
        self.inp = nn.Linear(inputs, math.prod(self.small))
        self.conv = nn.Sequential(
            group_norm(4 * width), nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
            group_norm(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            group_norm(width), nn.ReLU(),
            nn.Conv2d(width, c, 3, padding=1),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """(..., L) -> (..., C·H·W)."""
        h = self.conv(self.inp(z).reshape(-1, *self.small))
        h = h[..., : self.size[0], : self.size[1]]  # sides that four does not divide
        return h.reshape(*z.shape[:-1], -1)


class ConvCritic(nn.Module):
    """Strided convolutions with spectral norm, then what stands beside: (..., D + E) -> (...).

    Args:
        shape: (channels, height, width) of the image, the first D = C·H·W values of a row.
        extra: E, values beside it (latents, conditions).
        width: channels of the first layer.
    """

    def __init__(self, shape: Sequence[int], extra: int = 0, width: int = 32):
        super().__init__()
        c, h, w = shape
        self.shape, self.extra = (c, h, w), extra
        self.conv = nn.Sequential(
            SpectralConv2d(c, width, 3, padding=1), nn.LeakyReLU(0.1),
            SpectralConv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.1),
            SpectralConv2d(2 * width, 4 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.1),
            nn.Flatten(),
        )  # fmt: skip
        flat = 4 * width * (h // 2 // 2) * (w // 2 // 2)
        self.joint = SpectralLinear(flat + extra, 4 * width)
        self.out = nn.Linear(4 * width, 1)  # unbounded: a log ratio may be large

    def forward(self, x: Tensor) -> Tensor:
        """(..., D + E) -> (...)."""
        d = math.prod(self.shape)
        h = self.conv(x[..., :d].reshape(-1, *self.shape)).reshape(*x.shape[:-1], -1)
        if self.extra:
            h = torch.cat([h, x[..., d:]], -1)
        return self.out(nn.functional.leaky_relu(self.joint(h), 0.1)).squeeze(-1)
