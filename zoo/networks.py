"""Networks that the model files share, beside those of `inference.networks`, and checks of sizes.

All act on the last axis, so that particles broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.networks import activation


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


def mean_and_scale(h: Tensor) -> tuple[Tensor, Tensor]:
    """Split (..., 2L) into a mean and a positive standard deviation, both (..., L).

    The second half is the logarithm of the standard deviation, kept in [-10, 10]: beyond that a
    float32 density overflows, and an untrained encoder would stop a run with a NaN.
    """
    mean, log_scale = h.chunk(2, dim=-1)
    return mean, torch.exp(log_scale.clamp(-10.0, 10.0))


def check_rows(x: Tensor, data_dim: int) -> None:
    """Raise ValueError unless x holds rows (..., B, D) with D = `data_dim`. Reads no values."""
    if x.ndim < 2 or x.shape[-1] != data_dim:
        raise ValueError(
            f"x: expected rows of data_dim = {data_dim} values, (B, {data_dim}), got shape "
            f"{tuple(x.shape)}. Flatten images with x.flatten(1), or change data_dim."
        )


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Raise ValueError unless each named size, or each width of a named sequence, is at least 1."""
    for name, size in sizes.items():
        for width in [size] if isinstance(size, int) else size:
            if width < 1:
                raise ValueError(f"{name}: expected sizes of at least 1, got {size}.")


def check_image_shape(
    networks: str, image_shape: Sequence[int] | None, data_dim: int
) -> tuple[int, int, int]:
    """Return the image shape for `networks="conv"`; raise ValueError unless it gives D values."""
    if networks != "conv":
        raise ValueError(f"networks: expected mlp or conv, got {networks!r}.")
    if image_shape is None or len(image_shape) != 3 or math.prod(image_shape) != data_dim:
        raise ValueError(
            f"image_shape: convolutional networks need (channels, height, width) with "
            f"{data_dim} values in all, got {image_shape}. A set from zoo.data has one."
        )
    c, h, w = image_shape
    return c, h, w
