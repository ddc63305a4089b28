"""Density ratios from a critic, and the divergences that a critic can bound.

Nothing here knows where the samples come from: two data sets, a generator and its data
(`fit_adversarial`), or a guide without a density and a Gaussian (`fit_implicit`).
"""

from ..estimate import Estimate
from .adversarial import AdversarialRun, fit_adversarial
from .critics import Critic
from .divergences import DIVERGENCES, FDivergence, divergence, gradient_penalty
from .fitting import density_ratio, mutual_information
from .implicit import ImplicitRun, fit_implicit
from .result import DensityRatio, Reliability

__all__ = [
    "DIVERGENCES",
    "AdversarialRun",
    "Critic",
    "DensityRatio",
    "Estimate",
    "FDivergence",
    "ImplicitRun",
    "Reliability",
    "density_ratio",
    "divergence",
    "fit_adversarial",
    "fit_implicit",
    "gradient_penalty",
    "mutual_information",
]
