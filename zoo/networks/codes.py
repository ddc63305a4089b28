"""Spatial codes of images, and a learned prior over codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from inference.networks import activation

from .residual import ResidualBlock


class SpatialEncoder(nn.Module):
    """A vector for each 4 x 4 patch: flat images (..., C·H·W) -> (..., S·d), slot after slot.

    Args:
        shape: (channels, height, width); both sides multiples of four, S = H W / 16.
        code_dim: d.
        width: channels.

    Raises:
        ValueError: sides that are no multiples of four.
    """

    def __init__(self, shape: Sequence[int], code_dim: int, width: int = 32, act: str = "silu"):
        super().__init__()
        c, h, w = shape
        if h % 4 or w % 4:
            raise ValueError(
                f"image_shape: spatial codes stand for patches of 4 x 4, so they expect sides that "
                f"are multiples of 4, got {h} x {w}."
            )
        self.shape = (c, h, w)
        self.conv = nn.Sequential(
            nn.Conv2d(c, width, 4, stride=2, padding=1), activation(act),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            ResidualBlock(2 * width, 2 * width, act), activation(act),
            nn.Conv2d(2 * width, code_dim, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(..., C·H·W) -> (..., S·d)."""
        h = self.conv(x.reshape(-1, *self.shape))
        return h.flatten(2).mT.reshape(*x.shape[:-1], -1)


class SpatialDecoder(nn.Module):
    """The encoder turned around: (..., S·d) -> (..., outputs·C·H·W), plane after plane."""

    def __init__(
        self, shape: Sequence[int], code_dim: int, outputs: int = 1, width: int = 32,
        act: str = "silu",
    ):  # fmt: skip
        super().__init__()
        c, h, w = shape
        self.small, self.code_dim = (h // 4, w // 4), code_dim
        self.conv = nn.Sequential(
            nn.Conv2d(code_dim, 2 * width, 3, padding=1),
            ResidualBlock(2 * width, 2 * width, act), activation(act),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), activation(act),
            nn.ConvTranspose2d(width, c * outputs, 4, stride=2, padding=1),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """(..., S·d) -> (..., outputs·C·H·W)."""
        h = z.reshape(-1, self.small[0] * self.small[1], self.code_dim).mT
        return self.conv(h.unflatten(-1, self.small)).reshape(*z.shape[:-1], -1)


class CodePrior(nn.Module):
    """p(k) = Π_s p(k_s | k_1 .. k_{s-1}) by dilated causal convolutions: (..., S) -> (..., S, C).

    Args:
        codes: C.
        width: channels.
        layers: with dilations 1, 2, 4, ...: 2^(layers + 1) − 1 slots are seen.

    Source: van den Oord et al. 2016, "WaveNet" (arXiv:1609.03499, section 2.1); as a prior of
    codes, arXiv:1711.00937, section 3.3.
    """

    def __init__(self, codes: int, width: int = 64, layers: int = 4):
        super().__init__()
        self.codes = codes
        self.embedding = nn.Embedding(codes + 1, width)  # the last one begins
        self.layers = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, dilation=2**i) for i in range(layers)
        )
        self.out = nn.Linear(width, codes)

    def forward(self, k: Tensor) -> Tensor:
        """Logits of each slot given those before it: (..., S) -> (..., S, C)."""
        flat = k.reshape(-1, k.shape[-1])
        start = torch.full_like(flat[:, :1], self.codes)
        h = self.embedding(torch.cat([start, flat[:, :-1]], -1)).mT  # (B, width, S)
        for i, layer in enumerate(self.layers):
            a, b = layer(nn.functional.pad(h, (2 ** (i + 1), 0))).chunk(2, 1)
            h = h + a.tanh() * b.sigmoid()
        return self.out(h.mT).reshape(*k.shape, self.codes)


class CodeChain(TorchDistribution):
    """The distribution of codes k (S,) that a `CodePrior` makes, over a batch."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(self, prior: CodePrior, slots: int, batch_shape: Sequence[int] = ()):
        self.prior, self.slots = prior, slots
        super().__init__(torch.Size(batch_shape), torch.Size([slots]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CodeChain:
        """The same distribution over a larger batch."""
        return CodeChain(self.prior, self.slots, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(k), nats: (..., S) -> (...)."""
        logits = self.prior(value).log_softmax(-1)
        return logits.gather(-1, value[..., None])[..., 0].sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw codes, slot after slot."""
        shape = torch.Size(sample_shape) + self.batch_shape
        device = self.prior.out.weight.device
        k = torch.zeros(*shape, self.slots, dtype=torch.int64, device=device)
        for s in range(self.slots):
            logits = self.prior(k)[..., s, :]
            k[..., s] = torch.distributions.Categorical(logits=logits).sample()
        return k
