"""Networks that the model files share. All act on the last axis, so particles broadcast."""

from __future__ import annotations

import itertools
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
    """Return the activation called `name`, as a module.

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
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
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


class AutoregressiveMLP(nn.Module):
    """Masked affine layers: the outputs for variable i see only the inputs before i in the order.

    A hidden unit has a degree m, spread evenly over 0 .. D - 2, and sees ranks <= m; the outputs
    for a variable of rank r see units of degree < r (MADE, Germain et al. 2015, arXiv:1502.03509,
    section 4, where the degrees are drawn at random).

    Args:
        inputs: D, the number of variables.
        hidden: widths of the hidden layers.
        outputs: numbers per variable.
        order: as for `ranks`, and `seed` for a random one.
        act: name of the activation (`ACTIVATIONS`).
        context: width of an optional second input that every output sees.
        direct: add masked weights from the inputs straight to the outputs.
    """

    rank: Tensor

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        order: str | Sequence[int] = "natural",
        seed: int = 0,
        act: str = "relu",
        context: int = 0,
        direct: bool = False,
    ):
        super().__init__()
        self.outputs, self.act = outputs, activation(act)
        rank = ranks(order, inputs, seed)
        self.register_buffer("rank", rank)
        degrees = [rank]
        # Evenly, and the last unit always sees all but the last variable.
        degrees += [(torch.arange(1, n + 1) * (inputs - 1) - 1) // n for n in hidden]
        masks = [b[:, None] >= a for a, b in itertools.pairwise(degrees)]
        masks.append((rank[:, None] > degrees[-1]).repeat(outputs, 1))
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        first = len(masks[0])
        self.context = nn.Linear(context, first, bias=False) if context else None
        skip = (rank[:, None] > rank).repeat(outputs, 1)
        self.direct = MaskedLinear(skip, bias=False) if direct else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., outputs, D)."""
        h = self.layers[0](x)
        if self.context is not None:
            h = h + self.context(context)
        for layer in list(self.layers)[1:]:
            h = layer(self.act(h))
        if self.direct is not None:
            h = h + self.direct(x)
        return h.unflatten(-1, (self.outputs, -1))


def ranks(order: str | Sequence[int], data_dim: int, seed: int = 0) -> Tensor:
    """Return the place 0 .. D - 1 of each variable in an order.

    Args:
        order: `"natural"`, `"reversed"`, `"random"` (drawn from `seed`), or the variables' indices,
            first variable first.
        data_dim: D.

    Raises:
        ValueError: another name, or indices that are not a permutation of 0 .. D - 1.
    """
    natural = torch.arange(data_dim)
    if isinstance(order, str):
        if order not in ("natural", "reversed", "random"):
            raise ValueError(
                f"order: expected natural, reversed, random or a permutation of 0 .. "
                f"{data_dim - 1}, got {order!r}."
            )
        draw = torch.randperm(data_dim, generator=torch.Generator().manual_seed(seed))
        return {"natural": natural, "reversed": natural.flip(0), "random": draw}[order]
    if sorted(order) != natural.tolist():
        raise ValueError(
            f"order: expected each of 0 .. {data_dim - 1} once, got {list(order)}. It lists the "
            "variables' indices, the first one first."
        )
    return torch.as_tensor(list(order)).argsort()


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
