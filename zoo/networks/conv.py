"""Convolutional encoders and decoders of flat images, and the choice of networks by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from inference.networks import MLP, activation

from .checks import check_image_shape
from .residual import ResidualDecoder, ResidualEncoder


class ConvEncoder(nn.Module):
    """Two strided convolutions and an affine layer: flat images (..., C·H·W) -> (..., outputs).

    Args:
        shape: (channels, height, width) of an image.
        outputs: width of the result.
        width: channels of the first convolution; the second has twice as many.
    """

    def __init__(self, shape: Sequence[int], outputs: int, width: int = 32, act: str = "elu"):
        super().__init__()
        c, h, w = shape
        self.shape = (c, h, w)
        self.conv = nn.Sequential(
            nn.Conv2d(c, width, 3, stride=2, padding=1),
            activation(act),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            activation(act),
            nn.Flatten(),
        )
        h4, w4 = math.ceil(math.ceil(h / 2) / 2), math.ceil(math.ceil(w / 2) / 2)
        self.out = nn.Linear(2 * width * h4 * w4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C·H·W) -> (..., outputs)."""
        batch = x.shape[:-1]
        return self.out(self.conv(x.reshape(-1, *self.shape))).reshape(*batch, -1)


class ConvDecoder(nn.Module):
    """An affine layer and two up-sampling convolutions: (..., inputs) -> (..., outputs·C·H·W).

    `outputs` numbers are given for each value of the image, as planes one after another.
    """

    def __init__(
        self, inputs: int, shape: Sequence[int], outputs: int = 1, width: int = 32, act: str = "elu"
    ):
        super().__init__()
        c, h, w = shape
        self.small = (2 * width, math.ceil(h / 4), math.ceil(w / 4))
        self.size = (h, w)
        self.inp = nn.Linear(inputs, math.prod(self.small))
        self.act = activation(act)
        self.conv1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, c * outputs, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs·C·H·W)."""
        batch = z.shape[:-1]
        h = self.act(self.inp(z)).reshape(-1, *self.small)
        half = (math.ceil(self.size[0] / 2), math.ceil(self.size[1] / 2))
        h = self.act(self.conv1(nn.functional.interpolate(h, size=half)))
        h = self.conv2(nn.functional.interpolate(h, size=self.size))
        return h.reshape(*batch, -1)


def encoder_for(
    networks: str, data_dim: int, hidden: Sequence[int], outputs: int,
    image_shape: Sequence[int] | None, act: str, planes: int = 0,
) -> nn.Module:  # fmt: skip
    """Return an encoder (..., D + planes) -> (..., outputs): "mlp", "conv" or "residual".

    Args:
        planes: numbers beside a row; those beside an image come as so many constant planes.

    Raises:
        ValueError: an unknown name, or an `image_shape` that does not give D values.
    """
    if networks == "mlp":
        return MLP(data_dim + planes, hidden, outputs, act)
    c, h, w = check_image_shape(networks, image_shape, data_dim)
    kind = {"conv": ConvEncoder, "residual": ResidualEncoder}[networks]
    return kind((c + planes, h, w), outputs, act=act)


def decoder_for(
    networks: str, inputs: int, hidden: Sequence[int], data_dim: int, outputs: int,
    image_shape: Sequence[int] | None, act: str,
) -> nn.Module:  # fmt: skip
    """Return a decoder (..., inputs) -> (..., outputs·D), as `encoder_for`."""
    if networks == "mlp":
        return MLP(inputs, hidden[::-1], outputs * data_dim, act)
    shape = check_image_shape(networks, image_shape, data_dim)
    kind = {"conv": ConvDecoder, "residual": ResidualDecoder}[networks]
    return kind(inputs, shape, outputs, act=act)
