"""EM against closed forms, scikit-learn and a published likelihood; its start and its loop."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.mixture import GaussianMixture
from torch import tensor

from zoo.em import expectation_maximization, kmeans_plus_plus
from zoo.em.ascent import Rows, WeightedMoments, ascend

f64 = {"dtype": torch.float64}
KINDS = ["full", "diagonal"]


def overlapping(n=150, d=2):
    """Three clusters that overlap, in columns of very different units."""
    centres = torch.randn(3, d, **f64) * 2
    x = centres[torch.randint(3, (n,))] + torch.randn(n, d, **f64)
    return x * torch.logspace(0, 2, d, **f64) + 7


def faithful(zoo_data):
    return torch.from_numpy(
        np.loadtxt(zoo_data / "old_faithful/faithful.csv", delimiter=",", skiprows=1)
    )


def test_old_faithful(zoo_data):
    fit = expectation_maximization(faithful(zoo_data), 2)
    assert fit.log_likelihood == pytest.approx(-1130.264, abs=0.001)
    assert sorted(fit.responsibilities.argmax(-1).bincount().tolist()) == [97, 175]
    assert fit.converged and not fit.floored.any()
    assert fit.log_prob(faithful(zoo_data)).sum().item() == pytest.approx(fit.log_likelihood)


@pytest.mark.parametrize("covariance", KINDS)
def test_equals_scikit_learn_from_the_same_start(covariance):
    x = overlapping()
    start = torch.rand(len(x), 3, **f64)
    start = start / start.sum(-1, keepdim=True)
    ours = expectation_maximization(x, 3, covariance=covariance, start=start, tol=1e-13)
    # scikit-learn takes the parameters that the first M-step makes of these responsibilities.
    weights = start.mean(0)
    means = (start.T @ x) / start.sum(0).unsqueeze(-1)
    apart = x - means.unsqueeze(1)
    scatter = torch.einsum("nc,cnd,cne->cde", start, apart, apart) / start.sum(0)[:, None, None]
    if covariance == "full":
        precisions = scatter.inverse()
    else:
        precisions = 1 / scatter.diagonal(dim1=1, dim2=2)
    theirs = GaussianMixture(
        3,
        covariance_type=covariance.removesuffix("onal"),
        weights_init=weights.numpy(),
        means_init=means.numpy(),
        precisions_init=precisions.numpy(),
        reg_covar=0,  # our floor does not bind here
        tol=1e-13,
        max_iter=10_000,
    ).fit(x.numpy())
    assert ours.converged and not ours.floored.any()
    for mine, his in (
        (ours.weights, theirs.weights_),
        (ours.means, theirs.means_),
        (ours.covariances, theirs.covariances_),
        (ours.responsibilities, theirs.predict_proba(x.numpy())),
    ):
        assert torch.allclose(mine, tensor(his), rtol=1e-6, atol=1e-6)
    assert ours.log_likelihood == pytest.approx(len(x) * theirs.score(x.numpy()), abs=1e-6)


@pytest.mark.parametrize("covariance", KINDS)
def test_one_component_is_the_closed_form(covariance):
    x = overlapping()
    fit = expectation_maximization(x, 1, covariance=covariance)
    full = torch.cov(x.T, correction=0)
    expected = full if covariance == "full" else full.diagonal()
    assert torch.allclose(fit.means[0], x.mean(0), rtol=1e-12)
    assert torch.allclose(fit.covariances[0], expected, rtol=1e-10)
    det = full.logdet() if covariance == "full" else full.diagonal().log().sum()
    truth = -len(x) / 2 * (2 * math.log(2 * math.pi) + float(det) + 2)
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("covariance", KINDS)
@pytest.mark.parametrize("components", [2, 5])
def test_never_falls(covariance, components):
    x = overlapping()
    fit = expectation_maximization(x, components, covariance=covariance, restarts=3)
    rounding = 1e-12 * abs(fit.log_likelihood)
    assert (fit.history.diff() > -rounding).all()
    assert fit.history[-1] == fit.log_likelihood == fit.restarts.max()


def test_restarts_in_one_batch_are_the_restarts_one_by_one():
    x = overlapping()
    distance = torch.cdist(kmeans_plus_plus(x, 3, 4, seed=3), x).square().mT  # (4, N, 3)
    spread = distance.amin(-1).mean(-1)[:, None, None] / x.shape[-1]
    starts = torch.softmax(-0.5 * distance / spread, -1)
    together = expectation_maximization(x, 3, start=starts)
    alone = [expectation_maximization(x, 3, start=s) for s in starts]
    best = alone[int(together.restarts.argmax())]
    # Batched and single matrix products may round differently.
    expected = tensor([f.log_likelihood for f in alone], **f64)
    assert torch.allclose(together.restarts, expected, rtol=1e-9)
    assert torch.allclose(together.means, best.means, rtol=1e-6)
    assert together.n_iter == best.n_iter


@pytest.mark.parametrize("covariance", KINDS)
def test_the_size_of_a_chunk_does_not_matter(covariance, monkeypatch):
    x = overlapping(n=700)
    one = expectation_maximization(x, 3, covariance=covariance, restarts=5)
    monkeypatch.setattr("zoo.em.ascent.NUMBERS_AT_ONCE", 1)  # chunks of 256, 256 and 188 rows
    other = expectation_maximization(x, 3, covariance=covariance, restarts=5)
    assert torch.allclose(one.restarts, other.restarts, rtol=1e-9)
    assert torch.allclose(one.responsibilities, other.responsibilities, atol=1e-6)


@pytest.mark.parametrize("covariance", KINDS)
def test_moments_are_weighted_sums(covariance):
    z, r = torch.randn(50, 3, **f64), torch.rand(2, 4, 50, **f64)
    m = Rows(z, covariance).moments(r)
    mean = (r @ z) / r.sum(-1, keepdim=True)
    apart = z - mean.unsqueeze(-2)  # (2, 4, 50, 3)
    full = torch.einsum("rcn,rcni,rcnj->rcij", r, apart, apart) / r.sum(-1)[..., None, None]
    expected = full if covariance == "full" else full.diagonal(dim1=-2, dim2=-1)
    for ours, theirs in ((m.counts, r.sum(-1)), (m.mean, mean), (m.covariance, expected)):
        torch.testing.assert_close(ours, theirs)


def test_units_do_not_matter():
    x = overlapping()
    factor = tensor([1e-3, 250.0], **f64)
    one, other = (expectation_maximization(v, 3, restarts=1) for v in (x, x * factor))
    assert torch.allclose(one.responsibilities, other.responsibilities, atol=1e-8)
    shift = -len(x) * float(factor.log().sum())
    assert other.log_likelihood == pytest.approx(one.log_likelihood + shift, rel=1e-10)


@pytest.mark.parametrize("covariance", KINDS)
def test_a_singular_component_is_floored_and_reported(covariance):
    cloud = torch.randn(60, 2, **f64)
    x = torch.cat([cloud, torch.full((20, 2), 8.0, **f64)])
    start = torch.zeros(80, 2, **f64)
    start[:60, 0] = start[60:, 1] = 1
    fit = expectation_maximization(x, 2, covariance=covariance, start=start, floor=1e-4)
    assert fit.floored.tolist() == [False, True]
    assert (fit.history.diff() > -1e-9).all()
    floor = 1e-4 * x.var(0, correction=0)
    got = fit.covariances[1]
    assert torch.allclose(got.diagonal() if covariance == "full" else got, floor, rtol=1e-9)


def test_restarts_without_singular_components_come_first():
    x = torch.cat([torch.randn(60, 2, **f64), torch.full((3, 2), 1.0, **f64)])
    collapsed = torch.zeros(63, 2, **f64)
    collapsed[:60, 0] = collapsed[60:, 1] = 1
    sound = torch.rand(63, 1, **f64)
    start = torch.stack([collapsed, torch.cat([sound, 1 - sound], -1)])
    fit = expectation_maximization(x, 2, start=start)
    assert not fit.floored.any()
    assert fit.log_likelihood == fit.restarts[1] < fit.restarts[0]


def test_collinear_columns_are_held_up_by_the_floor():
    x = torch.randn(50, 1, **f64) * tensor([1.0, 2.0], **f64)
    fit = expectation_maximization(x, 2, restarts=3)
    assert fit.floored.all() and math.isfinite(fit.log_likelihood)


def test_same_seed_same_numbers():
    x = overlapping()
    one, other = (expectation_maximization(x, 3, seed=5) for _ in range(2))
    assert torch.equal(one.means, other.means) and torch.equal(one.restarts, other.restarts)


def test_keeps_float32_data_exact_enough():
    x = overlapping().float()
    fit = expectation_maximization(x, 2)
    assert fit.means.dtype == torch.float64
    assert fit.assign(x).shape == (len(x), 2)


def test_kmeans_plus_plus_draws_in_proportion_to_squared_distance():
    x = tensor([[0.0], [1.0], [3.0], [3.0]], **f64)
    seeds = kmeans_plus_plus(x, 2, 40_000, seed=1)[..., 0]
    assert seeds.shape == (40_000, 2)
    count = {(a, b): 0 for a in (0.0, 1.0, 3.0) for b in (0.0, 1.0, 3.0)}
    for pair in map(tuple, seeds.tolist()):
        count[pair] += 1
    # from 0: squared distances 1, 9, 9; from 1: 1, 4, 4; from either 3: 9, 4
    chance = {
        (0.0, 1.0): 1 / 19, (0.0, 3.0): 18 / 19, (1.0, 0.0): 1 / 9, (1.0, 3.0): 8 / 9,
        (3.0, 0.0): 9 / 13, (3.0, 1.0): 4 / 13,
    }  # fmt: skip
    first = {0.0: 0.25, 1.0: 0.25, 3.0: 0.5}
    assert all(count[k] == 0 for k in count if k not in chance)
    expected = [40_000 * first[k[0]] * p for k, p in chance.items()]
    assert scipy.stats.chisquare([count[k] for k in chance], expected).pvalue > 1e-4


def test_more_seeds_than_distinct_data():
    seeds = kmeans_plus_plus(torch.ones(4, 2, **f64), 3, 2)
    assert torch.equal(seeds, torch.ones(2, 3, 2, **f64))


def test_a_falling_objective_stops_the_loop():
    rows = Rows(torch.randn(3, 1, **f64), "diagonal")
    start = WeightedMoments(torch.ones(1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    values = iter([torch.tensor([1.0]), torch.tensor([0.5])])

    def maximise(moments):  # scores are all 0
        return {}, torch.zeros(1, 1, 3, **f64), next(values)

    with pytest.raises(ArithmeticError, match=r"went from 1 to 0\.5 nats at update 2"):
        ascend(maximise, rows, start, tol=0, slack=1e-12, max_iter=9, objective="it")


@pytest.mark.parametrize(
    "x, keywords, words",
    [
        (torch.randn(5), {}, r"expected shape \(N, D\)"),
        (torch.randn(0, 2), {}, "expected shape"),
        (torch.randn(1, 2), {}, "at most one per datum"),
        (torch.tensor([[1.0, math.nan], [2.0, 1.0], [0.0, 3.0]]), {}, "1 values are NaN"),
        (torch.tensor([[1.0, 4.0], [2.0, 4.0], [0.0, 4.0]]), {}, r"columns \[1\] are constant"),
        (torch.randn(9, 2), {"components": 0}, "at least 1, got 0"),
        (torch.randn(9, 2), {"components": 10}, "10 for 9 rows"),
        (torch.randn(9, 2), {"covariance": "tied"}, "'tied'"),
        (torch.randn(9, 2), {"restarts": 0}, "restarts"),
        (torch.randn(9, 2), {"floor": 0.0}, "floor"),
        (torch.randn(9, 2), {"max_iter": 0}, "max_iter"),
        (torch.randn(9, 2), {"start": torch.ones(9, 3) / 3}, r"shape \(9, 2\)"),
        (torch.randn(9, 2), {"start": torch.ones(9, 2)}, "sum to 1"),
    ],
)
def test_refuses(x, keywords, words):
    with pytest.raises(ValueError, match=words):
        expectation_maximization(x, **{"components": 2, **keywords})
