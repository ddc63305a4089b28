"""The numbers that log weights are reduced to, each defined once.

Log weights are (K, B): K draws for each of B independent blocks, the data of an amortised guide or
the one posterior of all latents. Where a number has no meaning it is an `Estimate` that says why.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..elbo.base import log_mean
from ..estimate import Estimate
from .psis import GOOD, LEAST, ess, khat

EFFECTIVE = 5.0  # effective draws below which the mean weight of a posterior has no error to state
ACTIVE = 0.01  # Var_x(E_q[z]) of a dimension in use; Burda et al. 2016, arXiv:1509.00519, section 5


def elbo(log_weight: Tensor) -> Estimate:
    """The mean of log weights (K, B) per block, with its error over blocks and draws together."""
    per_block = log_weight.mean(0)
    return Estimate.of((per_block if len(per_block) > 1 else log_weight[:, 0]).double())


def log_evidence(log_weight: Tensor) -> Tensor:
    """log 1/K Σ_k w_k of each block, (B,): in expectation below log p(x), nats."""
    return log_mean(log_weight)


def evidence_error(log_weight: Tensor) -> Tensor:
    """The standard error of `log_evidence` that K draws leave, by the delta method: (B,)."""
    k = len(log_weight)
    if k < 2:
        return torch.full_like(log_weight[0], math.nan)
    relative = torch.exp(log_weight - log_evidence(log_weight))  # w / mean(w)
    return relative.std(0) / math.sqrt(k)


def evidence(log_weight: Tensor) -> Estimate:
    """log p(x) by importance sampling, per block.

    Over several blocks it is the mean lower bound, its error that over blocks. Of one posterior,
    whose error is that of the weights, there is none where k-hat is above 0.7 or fewer than five
    draws are effective: the spread of weights that were never drawn cannot be seen.

    Source: Vehtari et al. 2024, arXiv:1507.02646, section 3.
    """
    per_block, k = log_evidence(log_weight), len(log_weight)
    if per_block.numel() > 1:
        return Estimate.of(per_block)
    if k == 1:
        return Estimate(float(per_block))
    effective = float(ess(log_weight))
    if not effective >= min(EFFECTIVE, 0.5 * k):  # of two equal draws, both are all there is
        return Estimate.none(f"{effective:.1f} of {k:,} draws are effective")
    if k >= LEAST and not (tail := float(khat(log_weight))) <= GOOD:
        return Estimate.none(f"k-hat is {tail:.2f}: above {GOOD} the mean weight is not reliable")
    return Estimate(float(per_block), float(evidence_error(log_weight)))


def pareto_khat(log_weight: Tensor) -> Tensor | Estimate:
    """k-hat of each block, (B,); no estimate where there are too few draws for a tail."""
    if len(log_weight) < LEAST:
        return Estimate.none(f"k-hat takes at least {LEAST} draws, and there are {len(log_weight)}")
    return khat(log_weight)


def active_variance(mean: Tensor, variance: Tensor, draws: int) -> Tensor:
    """Var_x(E_q[z]) of each dimension, less what finitely many draws add to it: (L,).

    Args:
        mean, variance: (N, L), of `draws` draws of each datum, the variance unbiased.

    Source: Burda et al. 2016, arXiv:1509.00519, section 5 and appendix C.
    """
    return mean.var(0) - variance.mean(0) / draws


def bits_per_dim(log_px: Estimate, numbers: float) -> Estimate:
    """-log₂ p(x) / D of log p(x) in nats and D numbers."""
    if log_px.value is None:
        return log_px
    unit = numbers * math.log(2)
    return Estimate(-log_px.value / unit, None if log_px.se is None else log_px.se / unit)


class Moments:
    """Running mean and variance of rows, in float64.

    Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, eq. 1.5.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: Tensor | Any = 0.0
        self._squares: Tensor | Any = 0.0  # about the mean

    def add(self, rows: Tensor) -> None:
        """Rows (R, ...)."""
        variance, mean = (t.double() for t in torch.var_mean(rows, 0, correction=0))
        self._join(len(rows), mean, variance * len(rows))

    def merge(self, other: Moments) -> None:
        """The rows of another."""
        if other.n:
            self._join(other.n, other.mean, other._squares)

    def _join(self, k: int, mean: Tensor, squares: Tensor) -> None:
        apart, total = mean - self.mean, self.n + k
        self.mean = self.mean + apart * (k / total)
        self._squares = self._squares + squares + apart.square() * (self.n * k / total)
        self.n = total

    @property
    def variance(self) -> Tensor:
        """Of one row, unbiased."""
        return self._squares / max(1, self.n - 1)
