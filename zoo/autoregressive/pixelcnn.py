"""PixelCNN: gated masked convolutions over binary images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.networks import check_sizes

from .base import BinaryAutoregressive, grey_shape


class PixelCNN(BinaryAutoregressive):
    """Gated PixelCNN of binary images, pixel after pixel, row by row.

    Two stacks of masked convolutions: the vertical one sees the rows above a pixel, the horizontal
    one the pixels to its left and the vertical one. Together they see every pixel before it,
    without the blind spot of a single masked stack (arXiv:1601.06759).

        (a, b) = W * h,   h <- h + V (tanh(a) sigmoid(b))

    Sites, plates, truth as for `BinaryAutoregressive`.

    Args:
        data_dim: D = height · width, one channel, flat.
        image_shape: (1, height, width); by default a square image.
        channels: width of both stacks.
        layers: number of gated layers; each reaches `kernel // 2` pixels further.
        kernel: odd size of a convolution, at least 3; the first has twice the reach.

    Raises:
        ValueError: a shape that does not give D, more than one channel, an even kernel.

    Source: Conditional image generation with PixelCNN decoders, arXiv:1606.05328, eq. 2, figure 2.
    """

    def __init__(
        self,
        data_dim: int,
        image_shape: Sequence[int] | None = None,
        channels: int = 32,
        layers: int = 6,
        kernel: int = 3,
    ):
        check_sizes(data_dim=data_dim, channels=channels, layers=layers)
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number from 3, got {kernel}; 3 is usual.")
        super().__init__(data_dim, torch.arange(data_dim))
        self.shape = grey_shape(data_dim, image_shape)
        kernels = [2 * kernel - 1] + [kernel] * (layers - 1)
        self.layers = nn.ModuleList(
            GatedLayer(channels if i else 1, channels, k, first=i == 0)
            for i, k in enumerate(kernels)
        )
        self.out = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 1, 1)
        )

    def logits(self, x: Tensor) -> Tensor:
        """h(x): (..., D) -> (..., D)."""
        above = left = x.reshape(-1, *self.shape)
        for layer in self.layers:
            above, left = layer(above, left)
        return self.out(left).reshape(x.shape)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x, pixel after pixel: (n, D).

        Every feature depends on pixels before its own only, so each is computed once, when these
        are drawn: a row at a time in the vertical stack, a pixel at a time in the horizontal one.
        All of it costs about one pass over n images.
        """
        _, height, width = self.shape
        x = next(self.parameters()).new_zeros(n, 1, height, width)
        layers: list[Any] = list(self.layers)
        above = [x[:, :, 0:0], *(x.new_zeros(n, m.channels, 0, width) for m in layers)]
        for r in range(height):
            above[0] = x[:, :, :r]  # rows that are known at each level of the vertical stack
            left = [x[:, :, r], *(x.new_zeros(n, m.channels, width) for m in layers)]
            given = []  # what the vertical stack tells the horizontal one about this row
            for i, layer in enumerate(layers):
                rows = layer.next_row(above[i])  # (n, 2 channels, 1, W)
                above[i + 1] = torch.cat([above[i + 1], gate(rows)], 2)[:, :, -layer.seen :]
                given.append(layer.down(rows)[:, :, 0])
            for c in range(width):
                for i, layer in enumerate(layers):
                    left[i + 1][..., c] = layer.next_pixel(left[i], given[i], c)
                h = left[-1][..., c]
                for layer in self.out:
                    h = at_one_pixel(layer, h) if isinstance(layer, nn.Conv2d) else layer(h)
                x[:, 0, r, c] = h[:, 0].sigmoid().bernoulli()
        return x.flatten(1)


class GatedLayer(nn.Module):
    """One layer of both stacks: (above, left) -> (above, left), each (B, channels, H, W).

    At a pixel `above` knows the rows above it, and `left` these and the pixels to its left. The
    first layer reads the image itself, so its masks leave out the pixel's own row and the pixel.
    """

    def __init__(self, inputs: int, channels: int, kernel: int, first: bool):
        super().__init__()
        middle = kernel // 2
        last = middle if first else middle + 1
        square, row = torch.zeros(kernel, kernel), torch.zeros(1, kernel)
        square[:last] = 1
        row[:, :last] = 1
        self.above = MaskedConv2d(inputs, 2 * channels, square)
        self.left = MaskedConv2d(inputs, 2 * channels, row)
        self.down = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.first, self.seen, self.channels = first, last, channels

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """(above, left) -> (above, left)."""
        rows = self.above(above)
        h = self.out(gate(self.left(left) + self.down(rows)))
        return gate(rows), h if self.first else left + h

    def next_row(self, above: Tensor) -> Tensor:
        """The vertical stack's row before its gate, from the rows known: (B, 2 channels, 1, W)."""
        known = above[:, :, -self.seen :]
        known = nn.functional.pad(known, (0, 0, self.seen - known.shape[2], 0))
        weight = self.above.weight[:, :, : self.seen]
        sides = self.above.weight.shape[3] // 2
        return nn.functional.conv2d(known, weight, self.above.bias, padding=(0, sides))

    def next_pixel(self, left: Tensor, given: Tensor, column: int) -> Tensor:
        """The horizontal stack at one column of a row (B, inputs, W): (B, channels)."""
        end = column if self.first else column + 1
        known = left[..., max(0, end - self.seen) : end]
        weight = self.left.weight[:, :, 0, self.seen - known.shape[2] : self.seen]
        fresh = nn.functional.linear(known.flatten(1), weight.flatten(1), self.left.bias)
        h = fresh + given[..., column]
        h = at_one_pixel(self.out, gate(h))
        return h if self.first else left[..., column] + h


class MaskedConv2d(nn.Conv2d):
    """A convolution that keeps the image's size; its kernel is multiplied by a 0/1 mask (h, w)."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: Tensor):
        height, width = mask.shape
        super().__init__(inputs, outputs, (height, width), padding=(height // 2, width // 2))
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self._conv_forward(input, self.weight * self.mask, self.bias)


def at_one_pixel(conv: nn.Conv2d, h: Tensor) -> Tensor:
    """A convolution of one pixel: (B, inputs) -> (B, outputs). A product is the faster call."""
    return nn.functional.linear(h, conv.weight.flatten(1), conv.bias)


def gate(h: Tensor) -> Tensor:
    """tanh(a) sigmoid(b) for h = (a, b) along the channels (eq. 2)."""
    a, b = h.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()
