"""Networks and invertible maps that the zoo's models and the guides share: torch, and Pyro's names.

This room stands below all others: model files may import it too.
"""

from .masked import AutoregressiveMLP, MaskedLinear, ranks
from .mlp import ACTIVATIONS, MLP, activation
from .transforms import (
    Autoregressive,
    FlowTransform,
    OnePass,
    autoregressive_layers,
    start_at_identity,
)
from .univariate import Affine, Composed, RationalQuadratic, Univariate

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Affine",
    "Autoregressive",
    "AutoregressiveMLP",
    "Composed",
    "FlowTransform",
    "MaskedLinear",
    "OnePass",
    "RationalQuadratic",
    "Univariate",
    "activation",
    "autoregressive_layers",
    "ranks",
    "start_at_identity",
]
