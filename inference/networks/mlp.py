"""Fully connected networks. All act on the last axis, so particles broadcast."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

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
