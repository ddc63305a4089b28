"""Density ratios: the table against calculus, the critic against two Gaussians."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from inference.ratios import (
    DIVERGENCES,
    Critic,
    DensityRatio,
    density_ratio,
    gradient_penalty,
    mutual_information,
)
from inference.ratios.divergences import divergence

LOG_4 = 2 * math.log(2)
GRID = torch.linspace(-14, 14, 56_001, dtype=torch.float64)


def integral(values):
    return float(torch.trapezoid(values, GRID))


def gaussian_pair(dim, seed):
    """N(0, I) and a Gaussian one standard deviation away with another covariance."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(dim, dim, generator=g) / dim**0.5
    mean = torch.randn(dim, generator=g)
    q = MultivariateNormal(mean / mean.norm(), 0.5 * torch.eye(dim) + 0.5 * factor @ factor.T)
    return MultivariateNormal(torch.zeros(dim), torch.eye(dim)), q


def rms_error(ratio, p, q, n=20_000):
    x = torch.cat([p.sample((n,)), q.sample((n,))])
    return float((ratio.log_ratio(x) - p.log_prob(x) + q.log_prob(x)).square().mean().sqrt())


def js_by_quadrature(p, q):
    p, q = p.log_prob(GRID), q.log_prob(GRID)
    m = torch.logaddexp(p, q) - math.log(2)
    return integral(0.5 * (p.exp() * (p - m) + q.exp() * (q - m)))


# ---------------------------------------------------------------- the table


GENERATORS = {  # f and its conjugate f*
    "kl": (lambda u: torch.xlogy(u, u), lambda t: torch.exp(t - 1)),
    "reverse-kl": (lambda u: -torch.log(u), lambda t: -1 - torch.log(-t)),
    "js": (
        lambda u: 0.5 * (torch.xlogy(u, u) - (u + 1) * torch.log((u + 1) / 2)),
        lambda t: -0.5 * torch.log(2 - torch.exp(2 * t)),
    ),
    "pearson": (lambda u: (u - 1) ** 2, lambda t: t**2 / 4 + t),
    "hellinger": (lambda u: (u.sqrt() - 1) ** 2, lambda t: t / (1 - t)),
}


@pytest.mark.parametrize("row", DIVERGENCES.values(), ids=lambda row: row.name)
def test_table_is_calculus(row):
    f, conjugate = GENERATORS[row.name]
    ell = torch.linspace(-4, 4, 81, dtype=torch.float64)
    u = ell.exp().requires_grad_()
    (slope,) = torch.autograd.grad(f(u).sum(), u)
    torch.testing.assert_close(row.activation(ell), slope)
    torch.testing.assert_close(conjugate(row.activation(ell)), row.penalty(ell))
    torch.testing.assert_close(f(torch.ones(1)), torch.zeros(1))
    # f*(t) is the largest ut − f(u), and it is reached at u = e^ℓ
    lines = u.detach()[None] * slope[:, None] - f(u.detach())[None]
    torch.testing.assert_close(lines.max(1).values, row.penalty(ell))


@pytest.mark.parametrize("row", DIVERGENCES.values(), ids=lambda row: row.name)
def test_bound_is_tight_only_at_the_log_ratio(row):
    p = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    q = Normal(torch.full((), 0.5, dtype=torch.float64), 1.2)
    ell = p.log_prob(GRID) - q.log_prob(GRID)

    def bound(ell):
        dp, dq = p.log_prob(GRID).exp(), q.log_prob(GRID).exp()
        return integral(dp * row.activation(ell) - dq * row.penalty(ell))

    truth = {
        "kl": math.log(1.2) + 1.25 / 2.88 - 0.5,
        "reverse-kl": -math.log(1.2) + (1.44 + 0.25) / 2 - 0.5,
        "js": js_by_quadrature(p, q),
        "pearson": 1.44 / (2.88 - 1) ** 0.5 * math.exp(0.25 / (2.88 - 1)) - 1,
        "hellinger": 2 - 2 * (2.4 / 2.44) ** 0.5 * math.exp(-0.25 / (4 * 2.44)),
    }[row.name]
    assert bound(ell) == pytest.approx(truth, abs=1e-9)
    assert bound(0.9 * ell) < truth - 1e-4
    assert bound(ell + 0.1) < truth - 1e-4


def test_links_keep_their_place():
    v = torch.linspace(-3, 3, 101, dtype=torch.float64)
    for row in DIVERGENCES.values():
        ell = row.link(v)
        assert (ell.diff() > 0).all() and float(row.link(v.new_zeros(()))) == 0
    pearson = divergence("pearson")
    torch.testing.assert_close(pearson.activation(pearson.link(v[v > 0])), 2 * v[v > 0])


def test_gradient_penalty_of_an_affine_critic():
    critic = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    want = (critic[0].weight.norm() - 1) ** 2
    got = gradient_penalty(critic, torch.randn(7, 3), torch.randn(7, 3))
    torch.testing.assert_close(got, want)
    got.backward()
    assert critic[0].weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- the critic


@pytest.mark.parametrize("dim", [1, 3])
def test_two_gaussians(dim):
    p, q = gaussian_pair(dim, seed=dim)
    ratio = density_ratio(p.sample((50_000,)), q.sample((50_000,)), steps=300)
    assert rms_error(ratio, p, q) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dim", range(1, 11))
def test_two_gaussians_one_to_ten_dimensions(dim, seed):
    """Logistic regression with k terms is off by √(k / (n w)), w the mean of D (1 − D) < ¼: with
    k = 66 in ten dimensions, 0.05 nats need some 150,000 training points of each sample."""
    p, q = gaussian_pair(dim, seed=100 * seed + dim)
    torch.manual_seed(seed)
    n = 200_000
    ratio = density_ratio(p.sample((n,)), q.sample((n,)), seed=seed)
    assert rms_error(ratio, p, q) < 0.05


@pytest.mark.parametrize("mean, sd", [(1.0, 1.0), (0.0, 2.0), (2.5, 0.7)])
def test_js_against_quadrature(mean, sd):
    p, q = Normal(0.0, 1.0), Normal(mean, sd)
    ratio = density_ratio(p.sample((60_000, 1)), q.sample((60_000, 1)), steps=200)
    js = ratio.js_divergence
    truth = js_by_quadrature(p, q)
    assert abs(js.value - truth) < min(0.01, 4 * js.se)
    assert ratio.objective.value == pytest.approx(2 * js.value - LOG_4)
    # at (2.5, 0.7) P lives where no sample of Q tells the critic anything: a lower bound is left
    kl, above = float(torch.distributions.kl_divergence(p, q)), 4 * ratio.kl.se + 0.05
    below = above if mean < 2 else math.inf
    assert -below < ratio.kl.value - kl < above  # with the critic's own error


def test_equal_distributions_give_minus_log_4():
    ratio = density_ratio(torch.randn(20_000, 3), torch.randn(20_000, 3), steps=300)
    assert abs(ratio.objective.value + LOG_4) < 0.01
    assert abs(ratio.objective.value + LOG_4) < 4 * ratio.objective.se + 1e-6


def test_few_samples_do_not_invent_a_difference():
    ratio = density_ratio(torch.randn(80, 4), torch.randn(80, 4), steps=300)
    assert float(ratio.log_ratio(torch.randn(1000, 4)).square().mean().sqrt()) < 1.0
    assert ratio.js_divergence.value < 3 * ratio.js_divergence.se


@pytest.mark.slow
def test_network_learns_what_quadratic_terms_miss():
    """Two clusters against one Gaussian with the same mean and covariance."""
    side = torch.randint(2, (40_000, 1)) * 2.0 - 1
    x_p = 0.96**0.5 * side + 0.2 * torch.randn(40_000, 1)
    x_q = torch.randn(40_000, 1)
    grid = GRID.float()
    p = torch.logaddexp(
        Normal(0.96**0.5, 0.2).log_prob(grid), Normal(-(0.96**0.5), 0.2).log_prob(grid)
    ) - math.log(2)
    q = Normal(0.0, 1.0).log_prob(grid)
    m = torch.logaddexp(p, q) - math.log(2)
    truth = integral((0.5 * (p.exp() * (p - m) + q.exp() * (q - m))).double())
    flat = density_ratio(x_p, x_q, steps=0).js_divergence
    ratio = density_ratio(x_p, x_q, steps=1_000)
    assert flat.value < 0.02 and ratio.best_step > 0
    assert abs(ratio.js_divergence.value - truth) < 0.01


def test_separable_samples_stay_finite():
    ratio = density_ratio(torch.rand(100, 1), 5 + torch.rand(100, 1), steps=100)
    assert ratio.js_divergence.value == pytest.approx(math.log(2), abs=0.02)
    assert torch.isfinite(ratio.log_ratio(torch.linspace(-3, 9, 50)[:, None])).all()


def test_mutual_information_of_correlated_gaussians():
    """−½ log(1 − ρ²) = ½ nats a pair at ρ = √(1 − e⁻¹): with d/2 pairs, d/4 nats."""
    rho, pairs = (1 - math.exp(-1)) ** 0.5, 3
    x = torch.randn(60_000, pairs)
    y = rho * x + math.exp(-0.5) * torch.randn(60_000, pairs)
    mi = mutual_information(x, y, steps=200)
    assert abs(mi.value - pairs / 2) < min(4 * mi.se, 0.1)
    independent = mutual_information(x, torch.randn(60_000, pairs), steps=200)
    assert abs(independent.value) < 0.01


# ---------------------------------------------------------------- the result


def gaussian_result(factor):
    """The exact log ratio of N(1, 1) to N(-1, 1), times a factor, at 20,000 points of each."""
    x_p, x_q = 1 + torch.randn(20_000), -1 + torch.randn(20_000)
    return DensityRatio(device=x_p.device, seed=0, log_p=factor * 2 * x_p, log_q=factor * 2 * x_q)


def test_calibration_finds_an_overconfident_critic():
    honest = gaussian_result(1.0).calibration()
    assert honest.error < 0.01
    assert ((honest.observed - honest.predicted).abs() < 4 * honest.se + 1e-3).all()
    assert gaussian_result(3.0).calibration().error > 0.05


def test_calibration_counts_unequal_samples_equally():
    result = gaussian_result(1.0)
    result.log_q = result.log_q[:2_000]
    assert result.calibration().error < 0.02


def test_figure(tmp_path):
    ratio = density_ratio(torch.randn(500, 2), 1 + torch.randn(700, 2), steps=20)
    ratio.plot().savefig(tmp_path / "ratio.png")
    assert (tmp_path / "ratio.png").stat().st_size > 5_000


def test_one_seed_one_result():
    x_p, x_q = torch.randn(300, 2), 1 + torch.randn(300, 2)
    before = torch.get_rng_state()
    a, b = (density_ratio(x_p, x_q, steps=40, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.log_ratio(x_p), b.log_ratio(x_p))
    assert not torch.equal(a.log_p, density_ratio(x_p, x_q, steps=40, seed=4).log_p)


def test_own_critic_is_copied_and_float64_kept():
    x_p, x_q = torch.randn(200, 2).double(), 1 + torch.randn(200, 2).double()
    mine = Critic(2, quadratic="diagonal", hidden=(8,))
    before = [p.clone() for p in mine.parameters()]
    ratio = density_ratio(x_p, x_q, critic=mine, steps=30)
    assert all(torch.equal(a, b) for a, b in zip(before, mine.parameters()))
    assert ratio.log_ratio(x_p).dtype == torch.float64


def test_stopped_and_resumed_is_as_if_never_stopped():
    x_p, x_q, mine = torch.randn(400, 1), 2 + torch.randn(400, 1), Critic(1)
    whole = density_ratio(x_p, x_q, steps=40, critic=mine)
    half = density_ratio(x_p, x_q, steps=40, critic=mine, callbacks=[lambda run: run.steps >= 22])
    assert half.stopped == "a callback asked for it" and half.steps == 22
    assert half.js_divergence.value > 0.1
    rest = density_ratio(x_p, x_q, steps=40, critic=mine, resume=half)
    assert rest.losses == whole.losses and torch.equal(rest.log_p, whole.log_p)
    assert half.steps == 22


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_all_but_constant_column_stays_finite(dtype):
    """MNIST has pixels that are lit in one image of thousands."""
    x_p, x_q = torch.randn(600, 3, dtype=dtype), torch.randn(600, 3, dtype=dtype)
    for x in (x_p, x_q):
        x[:, 1] = 1e-9 * torch.rand(600)
    x_q[7, 1] = 1.0
    x_p[:, 2] = x_q[:, 2] = 0.0
    ratio = density_ratio(x_p, x_q, steps=40)
    assert abs(ratio.js_divergence.value) < 4 * ratio.js_divergence.se + 0.005
    ratio.plot()


def test_errors_cover_what_few_points_cannot_tell():
    """Two clusters in four dimensions against their Gaussian: too few points to learn it from.

    Linear and quadratic terms see nothing; an error of the held-out means alone is 0.004 nats.
    """
    side = torch.randint(2, (500, 1)) * 2.0 - 1
    x_p = torch.cat([0.9 * side + 0.19**0.5 * torch.randn(500, 1), torch.randn(500, 3)], 1)
    x_q = torch.randn(500, 4)
    found = [density_ratio(x_p, x_q, steps=150, seed=s).js_divergence for s in range(2)]
    grid = GRID.float()
    p = torch.logaddexp(
        Normal(0.9, 0.19**0.5).log_prob(grid), Normal(-0.9, 0.19**0.5).log_prob(grid)
    ) - math.log(2)
    q = Normal(0.0, 1.0).log_prob(grid)
    m = torch.logaddexp(p, q) - math.log(2)
    truth = integral((0.5 * (p.exp() * (p - m) + q.exp() * (q - m))).double())
    for js in found:
        assert abs(js.value - truth) < 3 * js.se, (js, truth)
    assert abs(found[0].value - found[1].value) < 3 * math.hypot(found[0].se, found[1].se)


# ---------------------------------------------------------------- mistakes

GOOD = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: density_ratio(GOOD[:0], GOOD), r"x_p: expected floats of shape \(N, D\), N >= 20"),
        (lambda: density_ratio(GOOD.tolist(), GOOD), "x_p: expected a tensor"),
        (lambda: density_ratio(GOOD, GOOD[:, :1]), "D = 2.*D = 1"),
        (lambda: density_ratio(GOOD, GOOD[:, 0]), r"x_q: expected floats of shape \(N, D\)"),
        (lambda: density_ratio(GOOD.long(), GOOD), "x_p: expected floats"),
        (lambda: density_ratio(GOOD / 0 * 0, GOOD), "x_p: .* 200 values that are NaN"),
        (lambda: density_ratio(GOOD, GOOD.double()), "one dimension, dtype and device"),
        (lambda: density_ratio(GOOD, GOOD, batch_size=90), "batch_size: expected 1 to 63"),
        (lambda: density_ratio(GOOD, GOOD, held_out=1.5), "held_out"),
        (lambda: density_ratio(GOOD, GOOD, steps=-1), "steps"),
        (lambda: density_ratio(GOOD, GOOD, critic=nn.Linear(2, 1)), "one number a row"),
        (lambda: density_ratio(GOOD, GOOD, steps=5).divergence("pearsn"), "mean 'pearson'"),
        (lambda: divergence("jensen"), "expected one of"),
        (lambda: Critic(2, quadratic="cubic"), "quadratic"),
        (lambda: mutual_information(GOOD, GOOD[:50]), "expected pairs"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
