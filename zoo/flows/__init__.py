"""Normalizing flows: Pyro pairs fitted by exact likelihood, a flow for guides, and their layers."""

from inference.networks import (
    Affine,
    Autoregressive,
    FlowTransform,
    OnePass,
    RationalQuadratic,
)

from .conditional import ConditionalFlow
from .coupling import Coupling
from .models import IAF, MAF, Flow, NeuralSplineFlow, RealNVP

__all__ = [
    "IAF",
    "MAF",
    "Affine",
    "Autoregressive",
    "ConditionalFlow",
    "Coupling",
    "Flow",
    "FlowTransform",
    "NeuralSplineFlow",
    "OnePass",
    "RationalQuadratic",
    "RealNVP",
]
