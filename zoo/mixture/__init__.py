"""Gaussian mixtures: Bayesian, and by maximum likelihood. k is summed out exactly."""

from .bayesian import GaussianMixture
from .maximum_likelihood import MaximumLikelihoodMixture

__all__ = ["GaussianMixture", "MaximumLikelihoodMixture"]
