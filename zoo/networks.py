"""Networks that the model files share. All act on the last axis, so particles broadcast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def activation(name: str) -> nn.Module:
    """The activation called `name`, as a module.

    Raises:
        ValueError: `name` is not one of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)}, got {name!r}.")
    return ACTIVATIONS[name]()


class MLP(nn.Sequential):
    """Affine layers with an activation between them: (..., inputs) -> (..., outputs).

    Args:
        inputs: width of the last axis of the input.
        hidden: widths of the hidden layers; `()` makes the network affine.
        outputs: width of the last axis of the output.
        act: name of the activation (`ACTIVATIONS`).

    Weights start as in Glorot & Bengio 2010 (uniform, gain 1), biases at zero.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, act: str = "tanh"):
        widths = [inputs, *hidden, outputs]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:])):
            linear = nn.Linear(a, b)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if i < len(widths) - 2:
                layers.append(activation(act))
        super().__init__(*layers)


class MaskedLinear(nn.Linear):
    """An affine layer whose weight is multiplied by a fixed 0/1 mask of shape (outputs, inputs)."""

    mask: Tensor

    def __init__(self, mask: Tensor, bias: bool = True):
        outputs, inputs = mask.shape
        super().__init__(inputs, outputs, bias=bias)
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return nn.functional.linear(input, self.weight * self.mask, self.bias)


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
