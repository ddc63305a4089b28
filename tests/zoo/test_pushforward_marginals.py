"""Columns by their inverse CDFs: exact masses, an exact inverse, a density that sums to one."""

import itertools
import math

import pytest
import scipy.stats
import torch

from zoo.pushforward import Marginals

F64 = {"dtype": torch.float64}


@pytest.fixture
def fitted():
    x = torch.randn(4_000, 2, **F64) * torch.tensor([1.0, 3.0], **F64) + 5
    return x, Marginals(2, bins=10).double().fit_closed_form(x)


def test_every_bin_holds_its_share_of_the_data(fitted):
    x, model = fitted
    bins = torch.stack([(x >= k).sum(0) for k in model.knots])  # (9, 2)
    expected = 4_000 * (1 - torch.arange(1, 10) / 10)[:, None]
    assert (bins - expected).abs().max() <= 1  # a quantile may fall on a datum


def test_cdf_and_inverse_cdf_undo_each_other(fitted):
    _, model = fitted
    u = torch.linspace(1e-6, 1 - 1e-6, 1_001, **F64)[:, None].expand(-1, 2)
    assert torch.allclose(model.cdf(model.icdf(u)), u, rtol=0, atol=1e-12)


def test_the_density_is_the_slope_of_the_cdf_and_integrates_to_one(fitted):
    _, model = fitted
    centres = torch.tensor([5.0, 5.0], **F64)
    total = 0.0
    # one Gauss-Legendre rule on each bin, where the density is smooth: exact to rounding
    nodes, weights = (torch.as_tensor(a) for a in scipy.special.roots_legendre(20))
    p_at = model.distribution().log_prob
    far = model.tails[:, 0] * 40  # e^-40 is left out
    edges = torch.cat(
        [model.knots[:1, 0] - far[0], model.knots[:, 0], model.knots[-1:, 0] + far[1]]
    )
    for low, high in itertools.pairwise(edges):
        for part in range(40):  # the tails need several panels
            a, b = (low + (high - low) * f / 40 for f in (part, part + 1))
            x = (a + b) / 2 + (b - a) / 2 * nodes
            both = torch.stack([x, centres[1].expand_as(x)], -1)
            total += float(((b - a) / 2 * weights * p_at(both).exp()).sum())
    alone = float(p_at(centres).exp()) / total  # p(x_2 = 5) if the first column integrates to one
    inside = (model.knots[:, 1] <= 5).sum()
    width = model.knots[inside, 1] - model.knots[inside - 1, 1]
    inside_1 = (model.knots[:, 0] <= 5).sum()
    width_1 = model.knots[inside_1, 0] - model.knots[inside_1 - 1, 0]
    assert total == pytest.approx(1 / (10 * float(width)), rel=1e-10)
    assert alone == pytest.approx(1 / (10 * float(width_1)), rel=1e-10)


def test_tails_have_the_most_likelihood(fitted):
    x, model = fitted
    best = float(model.distribution().log_prob(x).sum())
    for side in (0, 1):
        for factor in (0.9, 1.1):
            model.tails[side] *= factor
            assert float(model.distribution().log_prob(x).sum()) < best
            model.tails[side] /= factor


def test_draws_follow_the_columns_of_the_data():
    x = torch.randn(20_000, 1, **F64).exp()
    model = Marginals(1, bins=200).double().fit_closed_form(x)
    drawn = model.sample(20_000)[:, 0].numpy()
    assert scipy.stats.ks_2samp(drawn, x[:, 0].numpy()).pvalue > 1e-4


def test_columns_are_independent_and_lose_their_total_correlation():
    rho, n = 0.8, 20_000
    z = torch.randn(n, 2, **F64)
    x = torch.stack([z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]], -1)
    log_p = Marginals(2).double().fit_closed_form(x).distribution().log_prob(x)
    columns = [Marginals(1).double().fit_closed_form(x[:, [d]]) for d in (0, 1)]
    each = sum(m.distribution().log_prob(x[:, [d]]) for d, m in enumerate(columns))
    assert torch.allclose(log_p, each, rtol=0, atol=1e-10)
    truth = torch.distributions.MultivariateNormal(
        torch.zeros(2, **F64), torch.tensor([[1.0, rho], [rho, 1.0]], **F64)
    )
    gap = truth.log_prob(x) - log_p  # E[gap] is the total correlation and each column's own KL
    least = -0.5 * math.log(1 - rho**2)
    assert float(gap.mean()) > least - 4 * float(gap.std()) / math.sqrt(n)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Marginals(2, bins=2), "at least 3"),
        (lambda: Marginals(1).fit_closed_form(torch.tensor([[1.0], [1.0], [2.0]])), "coincide"),
        (lambda: Marginals(2).fit_closed_form(torch.zeros(9, 3)), "data_dim = 2"),
        (lambda: Marginals(1).fit_closed_form(torch.full((9, 1), math.nan)), "NaN"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
