"""Gaussian mixtures without gradients: EM and coordinate-ascent variational Bayes.

Both are batched over restarts and monotone by check; `compare_mixtures` puts them beside SVI with
exact enumeration on the same data and prior.
"""

from .ascent import kmeans_plus_plus
from .comparison import MixtureComparison, MixtureMethod, compare_mixtures
from .gauss_wishart import GaussWishart
from .maximum_likelihood import MaximumLikelihoodFit, MixtureDensity, expectation_maximization
from .variational import VariationalFit, variational_bayes, weak_prior

__all__ = [
    "GaussWishart",
    "MaximumLikelihoodFit",
    "MixtureComparison",
    "MixtureDensity",
    "MixtureMethod",
    "VariationalFit",
    "compare_mixtures",
    "expectation_maximization",
    "kmeans_plus_plus",
    "variational_bayes",
    "weak_prior",
]
