"""Matrices without a Cholesky factor: the line, and float64, by name."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from inference import check, fit, make_guide, posterior

HELP = "torch.set_default_dtype(torch.float64) and y.double()"
X = torch.linspace(0.0, 1.0, 40)
Y = torch.sin(6.0 * X)


def smooth(x, y):
    """A Gaussian process whose matrix has no factor in float32."""
    rho = pyro.sample("rho", dist.LogNormal(0.0, 0.1))
    apart = (x[:, None] - x).square()
    cov = torch.exp(-0.5 * apart / rho[..., None, None] ** 2)
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), cov))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.1), obs=y)


def drifts(y):
    """A matrix that loses its factor as s falls below -1."""
    s = pyro.sample("s", dist.Normal(-5.0, 0.1))
    cov = torch.eye(3) * (1 + s)[..., None, None]
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), cov), obs=y)


def near_zero(y):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("s", dist.Normal(loc, 0.01))


def test_check_names_the_line_and_float64_once():
    (found,) = check(smooth, AutoNormal(smooth), X, Y).errors
    assert found.what.startswith("a matrix of the model is not positive definite")
    assert "test_factors.py:" in found.found and "float32" in found.found
    assert HELP in found.fix and "torch.eye" in found.fix


@pytest.mark.parametrize(
    "call",
    [
        lambda: make_guide("mean-field", smooth, X, Y, start={}),
        lambda: posterior(smooth, X, Y),
        lambda: fit(smooth, make_guide("mean-field", smooth), (X, Y), check=False, progress=False),
    ],
)
def test_it_is_one_sentence_everywhere(call):
    with pytest.raises(ValueError, match=r"not positive definite in float32") as error:
        call()
    assert HELP in str(error.value) and "Trace Shapes" not in str(error.value)


def test_a_run_keeps_its_last_good_state():
    run = fit(drifts, near_zero, torch.zeros(3), steps=200, lr=0.05, compile=False, progress=False)
    assert 0 < run.steps < 200 and run.params["loc"].isfinite()
    assert "not positive definite in float32" in run.stopped and HELP in run.stopped
    assert "test_factors.py:" in run.stopped


def test_in_float64_it_is_the_diagonal():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match=r"in float64.*add a little to its diagonal") as error:
            make_guide("mean-field", smooth, X.double(), Y.double(), start={})
    finally:
        torch.set_default_dtype(before)
    assert "use float64" not in str(error.value)
