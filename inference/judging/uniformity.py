"""Tests of uniform ranks: the exact law of their ECDF at many points at once."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

POINTS = 100  # at most so many places where an ECDF is compared
SIMULATIONS = 4_000  # of the smallest pointwise tail probability of uniform values


def band(n: int, at: ArrayLike, level: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
    """A band that contains the ECDF of n uniform values at all points with probability `level`.

    Pointwise binomial intervals of one common level γ, found by simulation.

    Args:
        n: how many values.
        at: (J,) rising points in (0, 1).
        level: of the whole band.

    Returns:
        Lower and upper ends, (J,) each.

    Source: Säilynoja, Bürkner & Vehtari 2022, arXiv:2103.10522, algorithm 1.
    """
    points = tuple(np.asarray(at, float))
    gamma = np.quantile(_smallest(n, points), 1 - level)
    low, high = (stats.binom.ppf(g, n, points) / n for g in (gamma / 2, 1 - gamma / 2))
    return low, high


def uniformity(ranks: ArrayLike, draws: int) -> np.ndarray:
    """p-values of uniform ranks, by the band that the ECDF would just leave.

    Args:
        ranks: (R, ...), whole numbers 0 .. draws: how many of `draws` draws lie below the truth.
        draws: L.

    Returns:
        (...): the probability that uniform ranks stray as far, somewhere.

    A uniform rank has P(rank < j) = j / (L + 1), so its counts are binomial at whole j.

    Source: Säilynoja et al. 2022, arXiv:2103.10522, section 2.
    """
    ranks = np.asarray(ranks)
    n = len(ranks)
    j = places(draws)
    points = j / (draws + 1)
    flat = ranks.reshape(n, -1)
    count = (flat[:, :, None] < j).sum(0)  # (everything else, J)
    table = _tails(n, tuple(points))
    seen = table[count, np.arange(len(j))].min(-1)
    null = np.sort(_smallest(n, tuple(points)))
    below = np.searchsorted(null, seen * (1 + 1e-9), side="right")
    return ((1 + below) / (1 + len(null))).reshape(ranks.shape[1:])


def places(draws: int) -> np.ndarray:
    """Whole numbers 1 .. L, at most POINTS of them, evenly spread: where ECDFs are compared."""
    return np.unique(np.linspace(1, draws, min(draws, POINTS)).round().astype(int))


@functools.lru_cache(maxsize=16)
def _tails(n: int, points: tuple[float, ...]) -> np.ndarray:
    """2 min(P(X <= c), P(X >= c)) for c = 0 .. n and X ~ Binomial(n, point): (n + 1, J)."""
    c = np.arange(n + 1)[:, None]
    p = np.array(points)
    return 2 * np.minimum(stats.binom.cdf(c, n, p), stats.binom.sf(c - 1, n, p))


@functools.lru_cache(maxsize=16)
def _smallest(n: int, points: tuple[float, ...]) -> np.ndarray:
    """The smallest tail probability over all points, of simulated uniform values."""
    widths = np.diff([0.0, *points, 1.0])
    counts = np.random.default_rng(0).multinomial(n, widths, SIMULATIONS)[:, :-1].cumsum(1)
    return _tails(n, points)[counts, np.arange(len(points))].min(-1)


def symmetry(pit: ArrayLike, flips: int = 1_000) -> np.ndarray:
    """p-values of values in (0, 1) that are distributed symmetrically around 1/2.

    Their ECDF against that of their mirror images (Kolmogorov-Smirnov), and the law of that
    distance when every value is mirrored or not by the toss of a coin.

    Args:
        pit: (R, ...).
        flips: tosses.

    Returns:
        (...).

    Source: Yao et al. 2018, "Yes, but did it work?", arXiv:1802.02538, section 4 (VSBC).
    """
    pit = np.asarray(pit)
    n = len(pit)
    at = np.linspace(0, 0.5, POINTS + 1)[1:]
    flat = pit.reshape(n, -1)
    sign = np.random.default_rng(0).choice([-1.0, 1.0], (flips, n))
    out = []
    for column in flat.T:
        # F(t) less that of the mirror images: +1 for each value <= t, -1 for each >= 1 - t
        step = (column[:, None] <= at).astype(float) - (column[:, None] >= 1 - at)  # (R, J)
        seen = np.abs(step.sum(0)).max()
        null = np.abs(sign @ step).max(1)
        out.append((1 + (null >= seen).sum()) / (1 + flips))
    return np.array(out).reshape(pit.shape[1:])
