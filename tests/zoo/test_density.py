"""A Gaussian against its closed form; the kernel density estimate against SciPy and quadrature."""

import math
import runpy
from pathlib import Path

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from torch import tensor

from zoo.density import Gaussian, KernelDensity

torch64 = {"dtype": torch.float64}


def correlated(n=60, d=3):
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-0.3, 0.2, 3.0]], **torch64)[:d, :d]
    return torch.randn(n, d, **torch64) @ mix.T + 5.0


# The Gaussian


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_closed_form_is_the_sample_moments(covariance):
    x = correlated()
    fitted = Gaussian(3, covariance).double().fit_closed_form(x).distribution()
    expected = tensor(np.cov(x.numpy().T, bias=True))
    if covariance == "diagonal":
        expected = expected.diagonal().diag()
        got = fitted.variance.diag()
    else:
        got = fitted.covariance_matrix
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12)
    # Bishop eq. 2.118 at its maximum
    truth = -len(x) / 2 * (3 * math.log(2 * math.pi) + expected.logdet() + 3)
    assert torch.allclose(fitted.log_prob(x).sum(), truth, rtol=1e-12)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_closed_form_is_a_stationary_point_of_the_pair(covariance):
    x = correlated()
    pair = Gaussian(3, covariance).double().fit_closed_form(x)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(pair.model, pair.guide, x)
    gradients = torch.autograd.grad(loss, list(pair.parameters()))
    # The gradient sums N terms that cancel: rounding grows with N and with 1/scale.
    assert all(g.abs().max() < 1e-10 * len(x) for g in gradients)


def test_the_subsampled_pair_is_scaled():
    x = correlated()
    pair = Gaussian(3).double()
    full = pyro.infer.Trace_ELBO().loss(pair.model, pair.guide, x)
    half = pyro.infer.Trace_ELBO().loss(pair.model, pair.guide, x[:30], 60)
    log_p = pair.distribution().log_prob(x).tolist()
    assert half == pytest.approx(-2 * sum(log_p[:30]), rel=1e-12)
    assert full == pytest.approx(-sum(log_p), rel=1e-12)


def test_samples_have_the_fitted_moments():
    x = correlated()
    pair = Gaussian(3).double().fit_closed_form(x)
    draws = pair.sample(20_000)
    error = pair.distribution().variance.sqrt() / math.sqrt(20_000)
    assert ((draws.mean(0) - x.mean(0)).abs() < 4 * error).all()


@pytest.mark.parametrize(
    "x, words",
    [
        (torch.ones(5, **torch64), "expected shape"),
        (torch.ones(5, 3, **torch64), "expected shape"),
        (torch.ones(1, 2, **torch64), "at least 2 rows"),
        (tensor([[1.0, math.nan], [0.0, 1.0], [2.0, 5.0]], **torch64), "NaN"),
        (tensor([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0], [3.0, 6.0]], **torch64), "singular"),
        (tensor([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]], **torch64), "singular"),
    ],
)
def test_gaussian_refuses(x, words):
    with pytest.raises(ValueError, match=words):
        Gaussian(2).double().fit_closed_form(x)


def test_gaussian_refuses_an_unknown_covariance():
    with pytest.raises(ValueError, match="full or diagonal"):
        Gaussian(2, "tied")


def test_diagonal_refuses_a_constant_column():
    with pytest.raises(ValueError, match="singular"):
        Gaussian(2, "diagonal").double().fit_closed_form(
            tensor([[1.0, 2.0], [2.0, 2.0]], **torch64)
        )


# The kernel density estimate


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("bandwidth", ["scott", "silverman", 0.37])
def test_equals_scipy(d, bandwidth):
    x = correlated(d=d)
    at = correlated(n=25, d=d)
    ours = KernelDensity(x, bandwidth).log_prob(at)
    theirs = scipy.stats.gaussian_kde(x.numpy().T, bandwidth).logpdf(at.numpy().T)
    assert torch.allclose(ours, tensor(theirs), rtol=0, atol=1e-10)


def test_leave_one_out_bandwidth_maximises_the_leave_one_out_likelihood():
    x = torch.cat([correlated(30, 2), correlated(30, 2) + 9.0])
    kde = KernelDensity(x, "leave-one-out")
    white = kde.white

    def leave_one_out(h):  # term by term, over scipy's univariate normal
        total = 0.0
        for i in range(len(x)):
            others = torch.cat([white[:i], white[i + 1 :]])
            kernels = scipy.stats.norm.pdf(((white[i] - others) / h).numpy()).prod(-1) / h**2
            total += math.log(kernels.mean())
        return total

    best = leave_one_out(kde.bandwidth)
    grid = np.exp(np.linspace(math.log(0.02), math.log(3.0), 80))
    assert best >= max(leave_one_out(h) for h in grid)
    assert best > leave_one_out(kde.bandwidth * 1.001)
    assert best > leave_one_out(kde.bandwidth * 0.999)


@pytest.mark.parametrize("bandwidth", ["scott", "leave-one-out"])
def test_integrates_to_one(bandwidth):
    x = correlated(n=20, d=2)
    kde = KernelDensity(x, bandwidth)
    sd = kde.variance.sqrt()
    axes = [
        torch.linspace(float(m - 9 * s), float(m + 9 * s), 801, **torch64)
        for m, s in zip(kde.mean, sd)
    ]
    grid = torch.cartesian_prod(*axes)
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    # A sum over a grid finer than a kernel converges faster than any power of the cell.
    assert float(kde.log_prob(grid).exp().sum() * cell) == pytest.approx(1, abs=1e-8)


def test_draws_have_the_moments_of_the_mixture():
    kde = KernelDensity(correlated(d=2), 0.8)
    draws = kde.sample((40_000,))
    assert draws.shape == (40_000, 2)
    z = (draws - kde.mean) / kde.variance.sqrt()
    assert (z.mean(0).abs() < 4 / math.sqrt(40_000)).all()
    product = z.prod(-1)
    rho = kde.covariance_matrix[0, 1] / kde.variance.prod().sqrt()
    assert abs(product.mean() - rho) < 4 * product.std() / math.sqrt(40_000)


def test_is_a_pyro_distribution():
    kde = KernelDensity(correlated(d=2))
    assert kde.event_dim == 1 and kde.event_shape == (2,) and kde.batch_shape == ()

    def model():
        with pyro.plate("data", 7):
            return pyro.sample("x", kde)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["x"]
    assert site["value"].shape == (7, 2) and site["log_prob"].shape == (7,)
    assert torch.equal(site["log_prob"], kde.log_prob(site["value"]))
    assert kde.expand([4, 1]).log_prob(torch.zeros(5, 2, **torch64)).shape == (4, 5)


def test_gradient_pulls_towards_the_data():
    kde = KernelDensity(tensor([[-1.0], [1.0], [1.5]], **torch64), 0.5)
    x = tensor([[0.3]], requires_grad=True, **torch64)
    (slope,) = torch.autograd.grad(kde.log_prob(x).sum(), x)
    step = 1e-5
    numeric = (kde.log_prob(x + step) - kde.log_prob(x - step)) / (2 * step)
    assert torch.allclose(slope.squeeze(), numeric.squeeze(), rtol=1e-8)


def test_long_arrays_are_cut_into_blocks(monkeypatch):
    x, at = correlated(d=2), correlated(n=50, d=2)
    whole = KernelDensity(x, "leave-one-out")
    expected = whole.log_prob(at)
    monkeypatch.setattr(KernelDensity, "kernels_at_once", 7 * len(x))
    blocks = KernelDensity(x, "leave-one-out")
    assert blocks.bandwidth == pytest.approx(whole.bandwidth, rel=1e-6)
    assert torch.allclose(KernelDensity(x, whole.bandwidth).log_prob(at), expected, rtol=1e-13)


@pytest.mark.parametrize(
    "data, bandwidth, words",
    [
        (torch.ones(4, **torch64), "scott", r"x\[:, None\]"),
        (torch.ones(1, 1, **torch64), "scott", "at least 2 rows"),
        (torch.ones(4, 1, **torch64), "scott", "singular"),
        (tensor([[1.0, math.inf], [0.0, 1.0], [2.0, 5.0]], **torch64), "scott", "infinite"),
        (torch.eye(3, **torch64)[:, :1].repeat(2, 1), "leave-one-out", "exact copy"),
        (torch.randn(9, 1), "scot", "bandwidth: expected"),
        (torch.randn(9, 1), 0.0, "positive number"),
        (torch.randn(9, 1), math.nan, "positive number"),
        (torch.randn(2, 2), "scott", "singular"),
    ],
)
def test_kernel_density_refuses(data, bandwidth, words):
    with pytest.raises(ValueError, match=words):
        KernelDensity(data, bandwidth)


def test_kernel_density_checks_what_it_is_asked():
    with pytest.raises(ValueError, match="event_shape"):
        KernelDensity(torch.randn(9, 2), validate_args=True).log_prob(torch.randn(4, 3))


def test_keeps_dtype():
    kde = KernelDensity(torch.randn(9, 2), "leave-one-out")
    assert kde.sample((3,)).dtype == kde.log_prob(torch.randn(3, 2)).dtype == torch.float32
    assert isinstance(kde, pyro.distributions.TorchDistribution)


@pytest.mark.slow
def test_example(tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "densities.py"))["main"]
    errors = main(n=60, out=str(tmp_path / "densities.png"))
    assert (tmp_path / "densities.png").stat().st_size > 0
    assert len(errors) == 3 and max(errors.values()) < 1e-10
