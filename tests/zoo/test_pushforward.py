"""Derived densities against closed forms (float64, 1e-10), draws against their distribution."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import tensor
from torch.distributions import constraints

from zoo.pushforward import (
    Folded,
    NegativeLog,
    Quantile,
    absolute,
    inverse_cdf,
    linear,
    negative_log,
    square,
)

f64 = {"dtype": torch.float64}
zero, one = torch.zeros((), **f64), torch.ones((), **f64)
EXACT = {"rtol": 0, "atol": 1e-10}


def uniform():
    return dist.Uniform(zero, one)


def assert_draws_follow(draws, cdf):
    """Kolmogorov-Smirnov at a level that a right sampler fails once in 10,000 seeds."""
    assert scipy.stats.kstest(draws.numpy(), cdf).pvalue > 1e-4


def test_minus_log_of_a_uniform_is_exponential():
    derived = negative_log(uniform())
    x = torch.logspace(-8, 2, 50, **f64)
    assert torch.allclose(derived.log_prob(x), dist.Exponential(one).log_prob(x), **EXACT)
    assert_draws_follow(derived.sample((5_000,)), "expon")


def test_minus_log_of_a_log_normal_is_normal():
    derived = negative_log(dist.LogNormal(0.3 * one, 2 * one))
    x = torch.linspace(-9, 9, 50, **f64)
    assert torch.allclose(
        derived.log_prob(x), dist.Normal(-0.3 * one, 2 * one).log_prob(x), **EXACT
    )


def test_no_draw_is_infinite():
    ends = torch.tensor([0.0, 1.0])
    assert torch.isfinite(NegativeLog()(ends)).all()
    assert torch.isfinite(Quantile(icdf=torch.special.ndtri)(ends)).all()


def test_square_of_a_normal_is_chi_squared():
    derived = square(dist.Normal(zero, one))
    x = torch.logspace(-8, 2, 50, **f64)
    assert torch.allclose(derived.log_prob(x), dist.Chi2(one).log_prob(x), **EXACT)
    assert_draws_follow(derived.sample((5_000,)), scipy.stats.chi2(1).cdf)


def test_square_of_a_shifted_normal_is_noncentral_chi_squared():
    derived = square(dist.Normal(1.5 * one, one))
    x = torch.linspace(0.01, 20, 50, **f64)
    truth = tensor(scipy.stats.ncx2(1, 1.5**2).logpdf(x.numpy()))
    assert torch.allclose(derived.log_prob(x), truth, **EXACT)


def test_a_branch_outside_the_support_counts_nothing():
    derived = square(dist.Gamma(3 * one, 2 * one))
    x = torch.linspace(0.01, 9, 50, **f64).requires_grad_()
    truth = dist.Gamma(3 * one, 2 * one).log_prob(x.sqrt()) - (2 * x.sqrt()).log()
    assert torch.allclose(derived.log_prob(x), truth, **EXACT)
    (slope,) = torch.autograd.grad(derived.log_prob(x).sum(), x)
    (expected,) = torch.autograd.grad(truth.sum(), x)
    assert torch.allclose(slope, expected, **EXACT)


def test_absolute_value_of_a_normal_is_half_normal():
    derived = absolute(dist.Normal(zero, 2 * one))
    x = torch.linspace(0, 12, 50, **f64)
    assert torch.allclose(derived.log_prob(x), dist.HalfNormal(2 * one).log_prob(x), **EXACT)


def test_a_fold_expands_and_sits_in_a_plate():
    derived = square(dist.Normal(zero, one))
    assert isinstance(derived, Folded)

    def model():
        with pyro.plate("data", 5):
            return pyro.sample("x", derived)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (5,)
    assert torch.allclose(
        trace.nodes["x"]["log_prob"], dist.Chi2(one).log_prob(trace.nodes["x"]["value"]), **EXACT
    )
    vector = derived.expand([3]).to_event(1)
    assert vector.log_prob(torch.ones(2, 3, **f64)).shape == (2,)


LOGISTIC = {
    "cdf": torch.sigmoid,
    "icdf": torch.logit,
}
WEIBULL = {
    "cdf": lambda x: -torch.expm1(-(x**1.7)),
    "icdf": lambda u: (-torch.log1p(-u)) ** (1 / 1.7),
    "support": constraints.positive,
}


@pytest.mark.parametrize("given", [("cdf", "icdf"), ("cdf",), ("icdf",)])
@pytest.mark.parametrize(
    "functions, law, points",
    [
        (LOGISTIC, scipy.stats.logistic, torch.linspace(-12, 4, 40, **f64)),
        (WEIBULL, scipy.stats.weibull_min(1.7), torch.logspace(-3, 0.3, 40, **f64)),
    ],
)
def test_inverse_cdf(functions, law, points, given):
    kept = {k: v for k, v in functions.items() if k in (*given, "support")}
    derived = inverse_cdf(**kept, base=uniform())
    truth = tensor(law.logpdf(points.numpy()))
    assert torch.allclose(derived.log_prob(points), truth, **EXACT)
    draws = derived.sample((2_000,))
    assert derived.support.check(draws).all()
    assert_draws_follow(draws, law.cdf)


def test_far_tail_of_a_normal_from_its_cdf():
    # torch.special.ndtr is 0 below -8.4
    derived = inverse_cdf(lambda x: torch.erfc(-x / math.sqrt(2)) / 2, base=uniform())
    x = tensor([-12.0, -9.0, 9.0, 12.0], **f64)
    assert torch.allclose(derived.log_prob(x), dist.Normal(zero, one).log_prob(x), **EXACT)
    u = tensor([1e-30, 0.5, 0.999], **f64)
    assert torch.allclose(derived.transforms[0](u), torch.special.ndtri(u), rtol=1e-10, atol=1e-10)


def test_draws_are_differentiable_in_the_parameters_of_a_cdf():
    rate = tensor(2.0, requires_grad=True, **f64)
    derived = inverse_cdf(
        lambda x: -torch.expm1(-rate * x), support=constraints.positive, base=uniform()
    )
    x = derived.rsample((9,))
    (slope,) = torch.autograd.grad(x.sum(), rate)
    assert torch.allclose(slope, -(x / rate).sum(), **EXACT)  # x = -log(1 - u)/rate


def test_gradient_of_the_density_of_a_quantile_function():
    derived = inverse_cdf(icdf=torch.logit, base=uniform())
    x = torch.linspace(-3, 3, 9, requires_grad=True, **f64)
    (slope,) = torch.autograd.grad(derived.log_prob(x).sum(), x)
    assert torch.allclose(slope, 1 - 2 * torch.sigmoid(x.detach()), **EXACT)


def test_inverse_cdf_needs_a_function():
    with pytest.raises(ValueError, match="neither"):
        inverse_cdf()


MATRIX = tensor([[2.0, 0.5, 0.0], [0.3, -1.0, 0.2], [0.0, 0.7, 1.5]], **f64)
BIAS = tensor([1.0, -2.0, 0.5], **f64)


def test_linear_map_of_a_gaussian_in_closed_form_and_by_the_jacobian():
    covariance = MATRIX @ MATRIX.T + torch.eye(3, **f64)
    base = dist.MultivariateNormal(BIAS, covariance)
    closed = linear(base, MATRIX, BIAS)
    # The mask hides from `linear` that the base is Gaussian.
    jacobian = linear(base.mask(True), MATRIX, BIAS)
    assert isinstance(closed, dist.MultivariateNormal)
    assert isinstance(jacobian, dist.TransformedDistribution)
    x = 5 * torch.randn(20, 3, **f64)
    assert torch.allclose(closed.log_prob(x), jacobian.log_prob(x), **EXACT)
    truth = scipy.stats.multivariate_normal(
        (MATRIX @ BIAS + BIAS).numpy(), (MATRIX @ covariance @ MATRIX.T).numpy()
    ).logpdf(x.numpy())
    assert torch.allclose(closed.log_prob(x), tensor(truth), **EXACT)


def test_linear_map_of_a_diagonal_gaussian_may_project():
    base = dist.Normal(BIAS, tensor([1.0, 2.0, 3.0], **f64)).to_event(1)
    got = linear(base, MATRIX[:2], 1.0)
    variance = tensor([1.0, 4.0, 9.0], **f64).diag()
    assert torch.allclose(got.mean, MATRIX[:2] @ BIAS + 1.0, **EXACT)
    assert torch.allclose(got.covariance_matrix, MATRIX[:2] @ variance @ MATRIX[:2].T, **EXACT)


def test_linear_map_of_a_box_is_a_parallelepiped():
    box = dist.Uniform(torch.zeros(3, **f64), torch.ones(3, **f64)).to_event(1)
    derived = linear(box, MATRIX, BIAS)
    x = derived.sample((100,))
    truth = -math.log(abs(float(torch.linalg.det(MATRIX))))
    assert torch.allclose(derived.log_prob(x), torch.full((100,), truth, **f64), **EXACT)
    assert derived.event_shape == (3,)


def test_log_determinant_equals_autodiff():
    derived = linear(dist.Laplace(zero, one).expand([3]).to_event(1), MATRIX, BIAS)
    (transform,) = derived.transforms
    z = torch.randn(3, **f64)
    jacobian = torch.autograd.functional.jacobian(transform, z)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(transform.log_abs_det_jacobian(z, transform(z)), expected, **EXACT)
    assert torch.allclose(transform.inv(transform(z)), z, **EXACT)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: linear(dist.Normal(zero, one), MATRIX), "to_event"),
        (lambda: linear(dist.Normal(BIAS, one).to_event(1), MATRIX[:, :2]), "expected shape"),
        (lambda: linear(dist.Normal(BIAS, one).to_event(1), MATRIX[[0, 1, 1]]), "rank 3"),
        (lambda: linear(dist.Laplace(BIAS, one).to_event(1), MATRIX[:2]), "not Gaussian"),
        (lambda: square(dist.Normal(BIAS, one).to_event(1)), "over numbers"),
        (lambda: Folded(dist.Normal(zero, one), square(uniform()).transforms[0], []), "at least"),
        (lambda: square(dist.Categorical(torch.ones(3, **f64))), "continuous"),
        (lambda: negative_log(dist.Poisson(one)), "continuous"),
        (lambda: negative_log(dist.Normal(zero, one)), "positive numbers"),
    ],
)
def test_refuses(make, words):
    with pytest.raises(ValueError, match=words):
        make()
