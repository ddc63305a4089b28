"""Verdicts that somebody tries to obtain: none of these may be "trust"."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from inference import diagnose, fit, posterior

X = torch.tensor(0.7)


def scalar(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact(x):
    pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def unit(x):
    """A flat likelihood: the posterior is uniform on (0, 1)."""
    pyro.sample("z", dist.Uniform(0.0, 1.0))


def nowhere(x):
    """A flat likelihood, and a flat prior."""
    pyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))


def huge(x):
    """Log densities so large that float32 loses everything that differs."""
    scalar(x)
    pyro.factor("constant", torch.tensor(1e9))


def undefined(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("x", torch.where(z > 0, math.nan, -0.5 * (z - x) ** 2))


def at(value):
    return lambda x: pyro.sample("z", dist.Delta(torch.as_tensor(value)))


def noise_of_its_own(x):
    pyro.sample("z", dist.Delta(x / 2 + 0.5**0.5 * torch.randn(x.shape)))


def without_density(x):
    pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).mask(False))


@pytest.mark.parametrize(
    "model, guide, why",
    [
        (scalar, at(0.35), "as a point"),
        (scalar, noise_of_its_own, "as a point|noise of its own"),
        (unit, lambda x: pyro.sample("z", dist.Uniform(0.0, 0.5)), "equal weights say nothing"),
        (huge, lambda x: pyro.sample("z", dist.Normal(3.0, 0.1)), "rounded to"),
        (scalar, lambda x: pyro.sample("z", dist.Normal(9.0, 0.01)), "k-hat"),
        (nowhere, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)), "k-hat"),
    ],
    ids=["point", "own noise", "equal weights", "rounding", "one draw", "flat"],
)
@pytest.mark.filterwarnings("ignore:.*no prior groups.*")
def test_diagnose_cannot_be_had(model, guide, why):
    found = diagnose(model, guide, X, draws=400)
    assert found.verdict == "do not trust" and found.corrected is None
    assert any(re.search(why, reason) for reason in found.reasons)


@pytest.mark.parametrize(
    "model, guide, why",
    [
        (scalar, without_density, "model and guide mask it differently"),
        (undefined, exact, "log_factor of Unit is out of range|site 'x'"),
    ],
    ids=["masked", "NaN"],
)
def test_diagnose_refuses_what_has_no_density(model, guide, why):
    with pytest.raises(ValueError, match=why):
        diagnose(model, guide, X, draws=400)


def test_an_unconverged_fit_is_not_trusted_whatever_its_weights():
    def narrow(x):
        loc = pyro.param("loc", torch.tensor(-0.4))
        pyro.sample("z", dist.Normal(loc, 0.8))

    run = fit(scalar, narrow, X, steps=60, lr=1e-3, compile=False, progress=False)
    found = diagnose(run, X, draws=1_000)
    assert run.converged.moving is True and not found.trust
    assert any(r.startswith("convergence: not converged") for r in found.reasons)


def test_the_exact_posterior_keeps_its_trust():
    found = diagnose(scalar, exact, X, draws=400)
    assert found.trust and found["beyond the draws"].good
    whole = diagnose(unit, lambda x: pyro.sample("z", dist.Uniform(0.0, 1.0)), X, draws=400)
    assert whole.trust and whole["beyond the draws"].good


def one_draw(x):
    """Nearly all mass in a tail that no Gaussian has."""
    pyro.sample("z", dist.StudentT(0.3, 0.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("model", [nowhere, one_draw])
@pytest.mark.filterwarnings("ignore:.*no prior groups.*")
def test_posterior_cannot_be_had(model):
    found = posterior(model, X, seconds=20, draws=400)
    assert not found.trust and found.reasons and found.evidence.value is None


def test_posterior_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="no Gaussian along the paths has a finite ELBO"):
        posterior(undefined, X, seconds=20)
