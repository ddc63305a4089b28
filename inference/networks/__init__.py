"""Networks and invertible maps that the zoo's models and the guides share: torch, and Pyro's names.

This room stands below all others: model files may import it too.
"""

from .linear import ActivationNorm, LULinear, Permutation, with_linear
from .mlp import ACTIVATIONS, MLP, AutoregressiveMLP, Dropout, MaskedLinear, activation, ranks
from .transforms import (
    Autoregressive,
    FlowTransform,
    OnePass,
    autoregressive_layers,
    start_at_identity,
)
from .univariate import Affine, Composed, RationalQuadratic, Univariate

__all__ = [
    "ACTIVATIONS", "MLP", "ActivationNorm", "Affine", "Autoregressive", "AutoregressiveMLP",
    "Composed", "FlowTransform", "LULinear", "MaskedLinear", "OnePass", "Permutation",
    "RationalQuadratic", "Univariate", "activation", "autoregressive_layers", "ranks",
    "start_at_identity", "with_linear",
]  # fmt: skip
