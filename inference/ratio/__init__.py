"""Density ratios from a critic, and the divergences that a critic can bound.

Nothing here knows where the samples come from: two data sets, a generator and its data
(`inference.adversarial`), or a guide without a density and a Gaussian (`inference.implicit`).
"""

from ..estimate import Estimate
from .critic import Critic
from .divergence import DIVERGENCES, FDivergence, divergence, gradient_penalty
from .fit import density_ratio, mutual_information
from .result import Calibration, DensityRatio

__all__ = [
    "DIVERGENCES",
    "Calibration",
    "Critic",
    "DensityRatio",
    "Estimate",
    "FDivergence",
    "density_ratio",
    "divergence",
    "gradient_penalty",
    "mutual_information",
]
