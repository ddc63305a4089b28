"""Cholesky factors of Wishart precisions, and Gaussians given by them, against torch's own."""

import math

import pyro
import pytest
import torch
from torch import tensor
from torch.distributions import MultivariateNormal, Wishart, biject_to

from zoo.mixture.wishart import PrecisionNormal, WishartCholesky

f64 = {"dtype": torch.float64}
DF = tensor([3.5, 9.0], **f64)
FACTOR = tensor(
    [
        [[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.2, 0.7]],
        [[0.4, 0.0, 0.0], [-1.5, 1.0, 0.0], [0.3, 0.1, 3.0]],
    ],
    **f64,
)


def test_density_is_the_wishart_density_times_the_jacobian():
    law = WishartCholesky(DF, FACTOR)
    tril = law.sample((6,))
    covariance = FACTOR @ FACTOR.mT
    # |d(L Lᵀ)/dL| = 2^D ∏ L_ii^(D - i + 1), i = 1 .. D (Muirhead 1982, theorem 2.1.9)
    powers = tensor([3.0, 2.0, 1.0], **f64)
    jacobian = 3 * math.log(2) + (powers * tril.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
    truth = Wishart(DF, covariance_matrix=covariance).log_prob(tril @ tril.mT) + jacobian
    assert torch.allclose(law.log_prob(tril), truth, rtol=1e-10)


def test_draws_have_the_wishart_mean_and_variance():
    n = 40_000
    tril = WishartCholesky(DF, FACTOR).sample((n,))
    precision = tril @ tril.mT
    truth = Wishart(DF, covariance_matrix=FACTOR @ FACTOR.mT)
    error = truth.variance.sqrt() / math.sqrt(n)
    assert ((precision.mean(0) - truth.mean).abs() < 4 * error).all()
    fourth = (precision - truth.mean).pow(4).mean(0)
    error = ((fourth - truth.variance.square()) / n).sqrt()
    assert ((precision.var(0) - truth.variance).abs() < 4 * error).all()


def test_gradients_reach_degrees_and_scale():
    n = 20_000
    df = DF.repeat(n, 1).requires_grad_()  # one for each draw, to know the gradient's spread
    factor = FACTOR.clone().requires_grad_()
    tril = WishartCholesky(df, factor).rsample()
    log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    by_df, by_factor = torch.autograd.grad(log_det.sum(), (df, factor))
    # E log|Λ| = Σ_i ψ((ν - i + 1)/2) + D log 2 + 2 log|T|
    truth = 0.5 * torch.polygamma(1, (DF.unsqueeze(-1) - torch.arange(3)) / 2).sum(-1)
    error = by_df.std(0) / math.sqrt(n)
    assert ((by_df.mean(0) - truth).abs() < 4 * error).all()
    expected = (2 / FACTOR.diagonal(dim1=1, dim2=2)).diag_embed()
    assert torch.allclose(by_factor.tril() / n, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (5, 1), (2,), (4, 3, 2)])
def test_expands_like_pyro_wants(shape):
    law = WishartCholesky(DF[0], FACTOR[0]).expand(shape)
    draw = law.sample((3,))
    assert draw.shape == (3, *shape, 3, 3) and law.log_prob(draw).shape == (3, *shape)
    assert law.support.check(draw).all()
    normal = PrecisionNormal(FACTOR[0, 1], FACTOR[0]).expand(shape)
    draw = normal.sample((3,))
    assert draw.shape == (3, *shape, 3) and normal.log_prob(draw).shape == (3, *shape)
    assert normal.log_prob(draw[(0,) * (draw.ndim - 1)]).shape == shape


@pytest.mark.parametrize("alike", [True, False])
def test_precision_normal_is_the_multivariate_normal(alike):
    # one factor for a row of data (C, 1, D, D), or one for each datum (C, B, D, D)
    factor = FACTOR.unsqueeze(1) if alike else FACTOR.unsqueeze(1).repeat(1, 5, 1, 1)
    loc = torch.randn(2, 1, 3, **f64)
    truth = MultivariateNormal(loc, precision_matrix=factor @ factor.mT)
    x = torch.randn(5, 3, **f64)
    law = PrecisionNormal(loc, factor)
    assert law.batch_shape == truth.batch_shape
    assert torch.allclose(law.log_prob(x), truth.log_prob(x), rtol=1e-11)
    assert torch.allclose(law.mean, truth.mean) and torch.allclose(law.variance, truth.variance)


def test_precision_normal_draws():
    n = 40_000
    law = PrecisionNormal(FACTOR[:, 1], FACTOR)
    draws = law.sample((n,))
    white = (FACTOR.mT @ (draws - law.loc).unsqueeze(-1)).squeeze(-1)  # standard normal
    assert (white.mean(0).abs() < 4 / math.sqrt(n)).all()
    second = (white.unsqueeze(-1) * white.unsqueeze(-2)).mean(0)
    assert ((second - torch.eye(3)).abs() < 4 * math.sqrt(2 / n)).all()


def test_a_site_under_a_particle_plate():
    def model():
        with pyro.plate("particles", 4, dim=-2):
            tril = pyro.sample("tril", WishartCholesky(DF, FACTOR).to_event(1))
            pyro.sample("mean", PrecisionNormal(torch.zeros(3, **f64), tril).to_event(1))

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["tril"]["log_prob"].shape == (4, 1)
    assert trace.nodes["mean"]["value"].shape == (4, 1, 2, 3)


def test_the_support_has_a_bijection():
    transform = biject_to(WishartCholesky(DF, FACTOR).support)
    x = torch.randn(4, 6, **f64)
    y = transform(x)
    assert y.shape == transform.forward_shape(x.shape) == (4, 3, 3)
    assert transform.inverse_shape(y.shape) == x.shape
    assert torch.allclose(transform.inv(y), x, atol=1e-12)
    rows, columns = torch.tril_indices(3, 3)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[rows, columns], x[0])
    truth = torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(transform.log_abs_det_jacobian(x, y)[0], truth, atol=1e-12)


def test_validation():
    with pytest.raises(ValueError, match="df"):
        WishartCholesky(-DF, FACTOR, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        WishartCholesky(DF, FACTOR, validate_args=True).log_prob(-FACTOR)
