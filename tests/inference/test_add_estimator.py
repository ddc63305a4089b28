"""Adding an estimator takes about 20 lines, and one call says whether it is right."""

import math

import pytest
import torch
from wrong_estimators import (
    Damped,
    ForgetsTheGuide,
    HostSync,
    NoScore,
    Optimist,
    ScaleInside,
    SumsRows,
)

from inference import elbo
from inference.testing.estimators import Checked, check_estimator

# --- the 20 lines of CONTRIBUTING.md -----------------------------------------------------------


class Jackknife(elbo.Estimator):
    """K IWAE(K) - (K - 1) · mean of the IWAE(K - 1) that leave one particle out.

    Its O(1/K) bias is gone; it is not a lower bound any more. Source: Nowozin 2018, Debiasing
    evidence approximations, ICLR, eq. 8.
    """

    is_bound = False

    def bound(self, weights):
        weights.refuse_subsampled_joint(repr(self))  # N/B stays out of the logarithm
        log_w, k = weights.log_weight(), self.particles  # (K, *shared)
        full = torch.logsumexp(log_w, 0) - math.log(k)
        left_out = torch.where(torch.eye(k, dtype=torch.bool).reshape(k, k, *[1] * weights.nesting),
                               -math.inf, log_w)  # fmt: skip
        less = torch.logsumexp(left_out, 1).mean(0) - math.log(k - 1)
        return weights.total(k * full - (k - 1) * less)


# -----------------------------------------------------------------------------------------------


def test_a_new_estimator_is_one_class():
    report = check_estimator(Jackknife(4), draws=4_000)
    assert isinstance(report, Checked) and not report.refused
    assert "checks passed" in str(report) and "gradient, discrete" in str(report)


@pytest.mark.parametrize(
    "estimator, complaint",
    [
        (SumsRows(4), r"over all mini-batches of 2 of 4 rows"),
        (ScaleInside(4), r"over all mini-batches of 2 of 4 rows"),
        (ForgetsTheGuide(), r"the bound is log p\(x\) = -24.49128[56] nats, but its mean is"),
        (Optimist(16), r"claims to be a lower bound"),
        (NoScore(), r"is biased: on Switch"),
        (HostSync(), r"cannot be traced"),
        (Damped(), r"is biased: on LinearGaussian"),
    ],
    ids=lambda value: repr(value) if isinstance(value, elbo.Estimator) else "",
)
def test_a_wrong_one_fails_in_words(estimator, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_estimator(estimator, draws=4_000)


def test_one_that_refuses_everything_is_not_passed():
    class Never(elbo.Estimator):
        def bound(self, weights):
            raise ValueError("not today")

    with pytest.raises(AssertionError, match="refuses every pair"):
        check_estimator(Never())


def log_mean(log_w):
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


@pytest.mark.slow
def test_a_claimed_value_is_held_against_the_computed_one():
    report = check_estimator(elbo.IWAE(3), expected=log_mean, draws=1_000)
    assert "value, linear-Gaussian" in report.outcomes and not report.refused
    elbo_mean = check_estimator(elbo.MeanField(), expected=lambda w: w.mean(0), draws=1_000)
    assert "value, linear-Gaussian" in elbo_mean.outcomes


def test_a_bound_that_is_another_than_it_says():
    with pytest.raises(AssertionError, match=r"on \w+ its mean is .* the value it claims"):
        check_estimator(elbo.Renyi(0.3, 3), expected=log_mean, draws=1_000)
