"""Normalizing flows: Pyro pairs fitted by exact likelihood, transforms, and a flow for guides."""

from .models import IAF, MAF, Flow, NeuralSplineFlow, RealNVP
from .transforms import Autoregressive, Coupling, FlowTransform, OnePass
from .univariate import Affine, RationalQuadratic

__all__ = [
    "IAF",
    "MAF",
    "Affine",
    "Autoregressive",
    "Coupling",
    "Flow",
    "FlowTransform",
    "NeuralSplineFlow",
    "OnePass",
    "RationalQuadratic",
    "RealNVP",
]
