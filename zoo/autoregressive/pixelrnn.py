"""PixelRNN: a long short-term memory that walks down the rows of a binary image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.networks import check_sizes

from .base import BinaryAutoregressive, grey_shape
from .pixelcnn import MaskedConv2d


class PixelRNN(BinaryAutoregressive):
    """PixelRNN with Row LSTM layers, for binary images, row by row.

    All columns of a row are updated at once, from the row's features and the state of the row
    above, three columns of it:

        (o, f, i, g) = K_s * h_{r-1} + K_i * x_r,   K_i masked: nothing to the right
        c_r = σ(f) c_{r-1} + σ(i) tanh(g),   h_r = σ(o) tanh(c_r)

    The features of the first layer see no pixel from their own on, so that h does not either. What
    a pixel sees of the rows above widens by one column a row, and by the first convolution's reach.

    Sites, plates, truth as for `BinaryAutoregressive`.

    Args:
        data_dim: D = height · width, one channel, flat.
        image_shape: (1, height, width); by default a square image.
        channels: width of each layer's state.
        layers: number of Row LSTM layers, with residual connections between them.
        kernel: odd size of the first, masked convolution.

    Raises:
        ValueError: a shape that does not give D, more than one channel, an even kernel.

    Source: Pixel recurrent neural networks, arXiv:1601.06759, sections 3.1 and 3.3, eq. 3.
    """

    def __init__(
        self,
        data_dim: int,
        image_shape: Sequence[int] | None = None,
        channels: int = 16,
        layers: int = 2,
        kernel: int = 7,
    ):
        check_sizes(data_dim=data_dim, channels=channels, layers=layers)
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number from 3, got {kernel}; 7 is usual.")
        super().__init__(data_dim, torch.arange(data_dim))
        self.shape = grey_shape(data_dim, image_shape)
        middle = kernel // 2
        before = torch.ones(kernel, kernel)
        before[middle, middle:] = 0
        before[middle + 1 :] = 0
        self.inp = MaskedConv2d(1, channels, before)
        self.layers = nn.ModuleList(RowLSTM(channels) for _ in range(layers))
        self.out = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 1, 1)
        )

    def logits(self, x: Tensor) -> Tensor:
        """h(x): (..., D) -> (..., D)."""
        h = self.inp(x.reshape(-1, *self.shape))
        for layer in self.layers:
            h = h + layer(h)
        return self.out(h).reshape(x.shape)


class RowLSTM(nn.Module):
    """One layer: features (B, channels, H, W) -> states (B, channels, H, W), from row to row."""

    def __init__(self, channels: int):
        super().__init__()
        left = torch.tensor([[1.0, 1.0, 0.0]])
        self.from_input = MaskedConv2d(channels, 4 * channels, left)
        self.from_state = nn.Conv1d(channels, 4 * channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H, W)."""
        given = self.from_input(x)
        h = c = torch.zeros_like(x[:, :, 0])
        states = []
        for row in given.unbind(2):
            o, f, i, g = (row + self.from_state(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return torch.stack(states, 2)
