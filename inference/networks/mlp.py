"""Fully connected networks, plain and masked (MADE). All act on the last axis: particles broadcast.

The outputs of a masked one for a variable see only the variables before it in an order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

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


class Dropout(nn.Module):
    """Hidden units set to zero by chance, the others scaled up: in the steps of a fit alone.

    It begins in evaluation mode, so that a density is one, and `fit` puts it into training mode
    for its steps.

    Args:
        p: the probability of zero, at least 0 and below 1.

    Raises:
        ValueError: p out of range.

    Source: Srivastava et al. 2014, Dropout, JMLR 15:1929.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout: expected a probability below 1, got {p:g}.")
        self.p, self.training = p, False

    def forward(self, h: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        if not self.training or not self.p:
            return h
        return h * (torch.rand_like(h) >= self.p).to(h.dtype) / (1 - self.p)


class MLP(nn.Sequential):
    """Affine layers with an activation between them: (..., inputs) -> (..., outputs).

    Args:
        inputs: width of the last axis of the input.
        hidden: widths of the hidden layers; `()` makes the network affine.
        outputs: width of the last axis of the output.
        act: name of the activation (`ACTIVATIONS`).
        dropout: probability with which a step leaves out a hidden unit.

    Weights start as in Glorot & Bengio 2010 (uniform, gain 1), biases at zero.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, act: str = "tanh",
        dropout: float = 0.0,
    ):  # fmt: skip
        widths = [inputs, *hidden, outputs]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            linear = nn.Linear(a, b)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if i < len(widths) - 2:
                layers.append(activation(act))
            if i < len(widths) - 2 and dropout:
                layers.append(Dropout(dropout))
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
    section 4, where the degrees are drawn at random). With a context the degrees begin at -1:
    such units see the context alone, so that it reaches the first variable too.

    Args:
        inputs: D, the number of variables.
        hidden: widths of the hidden layers.
        outputs: numbers per variable.
        order: as for `ranks`, and `seed` for a random one.
        act: name of the activation (`ACTIVATIONS`).
        context: width C of an optional second input that every output sees.
        direct: add masked weights from the inputs straight to the outputs.
        dropout: probability with which a step leaves out a hidden unit.
    """

    rank: Tensor
    first_degrees: Tensor
    last_degrees: Tensor

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
        dropout: float = 0.0,
    ):
        super().__init__()
        self.outputs = outputs
        self.act: nn.Module = activation(act)
        if dropout:
            self.act = nn.Sequential(self.act, Dropout(dropout))
        rank = ranks(order, inputs, seed)
        self.register_buffer("rank", rank)
        degrees = [rank, *(_degrees(n, inputs, context > 0) for n in hidden)]
        self.register_buffer("first_degrees", degrees[1 % len(degrees)], persistent=False)
        self.register_buffer("last_degrees", degrees[-1], persistent=False)
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

    def in_order(self, x: Tensor, rank: Tensor) -> Tensor:
        """Return the outputs in another order of the variables, with the same weights.

        The hidden units keep their degrees; what they may see, and who sees them, follows the rank.

        Args:
            x: (..., B, D); rank: the place of each variable, (..., D). Leading axes broadcast.

        Returns:
            (..., B, outputs, D).
        """
        later = rank[..., :, None] > rank[..., None, :]  # (..., D, D)
        layers = cast(list[MaskedLinear], list(self.layers))
        masks: list[Tensor] = [later] if len(layers) == 1 else [
            self.first_degrees[:, None] >= rank[..., None, :],
            *(layer.mask for layer in layers[1:-1]),
            rank[..., :, None] > self.last_degrees,
        ]  # fmt: skip
        repeats = [1] * (masks[-1].ndim - 2)
        masks[-1] = masks[-1].repeat(*repeats, self.outputs, 1)
        h = x
        for i, (layer, mask) in enumerate(zip(layers, masks)):
            h = (self.act(h) if i else h) @ (layer.weight * mask).mT + layer.bias
        if self.direct is not None:
            h = h + x @ (self.direct.weight * later.repeat(*repeats, self.outputs, 1)).mT
        return h.unflatten(-1, (self.outputs, -1))


def _degrees(units: int, inputs: int, conditional: bool) -> Tensor:
    """0 .. D - 2 or, `conditional`, -1 .. D - 2, spread evenly; the last unit always has D - 2."""
    if not conditional:
        return (torch.arange(1, units + 1) * (inputs - 1) - 1) // units
    degrees = (torch.arange(1, units + 1) * inputs - 1) // units - 1
    degrees[0] = -1  # also where there are fewer units than variables
    return degrees


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
