"""Derived distributions, and a model made of them: each column by its inverse CDF."""

from .derived import (
    Absolute,
    Folded,
    Linear,
    NegativeLog,
    Quantile,
    Square,
    absolute,
    inverse_cdf,
    linear,
    negative_log,
    square,
)
from .marginals import Marginals

__all__ = [
    "Absolute",
    "Folded",
    "Linear",
    "Marginals",
    "NegativeLog",
    "Quantile",
    "Square",
    "absolute",
    "inverse_cdf",
    "linear",
    "negative_log",
    "square",
]
