"""`posterior`: exact posteriors are trusted, and what only looks like one is not."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from inference import posterior
from inference.draws.joint import LogJoint
from inference.guides.paths import pathfinder
from inference.judging.referee.stationary import stays


def conjugate(x):
    """Mean N(0, 10), x_i ~ N(mean, 2): exact posterior and evidence."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 2.0), obs=x)


def two_modes():
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(a.abs(), 0.3), obs=torch.tensor(4.0))


def banana():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(2 * a**2, 0.3))


def flat(name, support=constraints.real):
    return pyro.sample(name, dist.ImproperUniform(support, (), ()))


def twice(x):
    mean = flat("a") + flat("b")
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_a_conjugate_posterior_is_trusted_with_its_evidence():
    x = torch.linspace(3.0, 7.0, 20)
    found = posterior(conjugate, x)
    precision = 1 / 100 + 20 / 4
    drawn = found.datatree.posterior["mean"].values
    error = 1 / math.sqrt(precision * drawn.size)
    assert found.trust and [r.guide for r in found.rungs] == ["pathfinder"]
    assert abs(drawn.mean() - float(x.sum()) / 4 / precision) < 4 * error
    assert drawn.std() * math.sqrt(precision) == pytest.approx(1, abs=4 / math.sqrt(8_000))
    cov = 100 * torch.ones(20, 20) + 4 * torch.eye(20)
    exact = float(dist.MultivariateNormal(torch.zeros(20), cov).log_prob(x))
    assert found.evidence.value == pytest.approx(exact, abs=1e-3)
    assert "Trust this posterior" in str(found) and found.to_dict()["trust"] is True


def test_a_second_mode_is_found_and_no_posterior_of_one_mode_is_trusted():
    found = posterior(two_modes)
    said = [r.said for r in found.rungs]
    assert said[0] == "do not trust: other modes" and found.rungs[1].guide == "mixture"
    assert found.trust
    share = float((found.datatree.posterior["a"] > 0).mean())
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(4_000)
    exact = math.log(2) + float(  # |a| is half-normal, and a normal's mass below 0 is e^-80
        dist.Normal(0.0, math.hypot(3.0, 0.3)).log_prob(torch.tensor(4.0))
    )
    assert found.evidence.value == pytest.approx(exact, abs=1e-2)


def test_an_improper_posterior_is_named_with_its_direction():
    found = posterior(twice, torch.randn(20))
    assert not found.trust and len(found.rungs) == 1
    assert "improper" in found.reasons[0]
    assert all(f"{n} -> {s}∞" in found.reasons[0] for n, s in _ends(found.reasons[0]))
    assert found.evidence.value is None and "prior of a, b is improper" in found.evidence.because


def _ends(text):
    """Opposite ends of the sum's two parts."""
    first = "+" if "a -> +" in text else "-"
    return (("a", first), ("b", "-" if first == "+" else "+"))


def impossible(x):
    u = pyro.sample("u", dist.Beta(1.0, 1.0))
    pyro.sample("x", dist.Uniform(0.0, u), obs=x)


def counting(x):
    n = pyro.sample("n", dist.Poisson(3.0))
    pyro.sample("x", dist.Normal(n, 1.0), obs=x)


def known(x):
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def learning(x):
    scale = pyro.param("scale", torch.tensor(1.0))
    pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), scale), obs=x)


@pytest.mark.filterwarnings("ignore:Found vars")
@pytest.mark.parametrize(
    "model, why",
    [
        (impossible, "log joint is not finite at any of .* starts: site 'x'"),
        (counting, "site 'n': a Poisson takes infinitely many values"),
        (known, "no continuous latent"),
        (learning, "the model learns scale"),
    ],
)
def test_what_has_no_posterior_is_refused_in_a_sentence(model, why):
    with pytest.raises(ValueError, match=why):
        posterior(model, torch.tensor(3.0))
    with pytest.raises(ValueError, match="seconds: expected a positive budget, got 0"):
        posterior(model, torch.tensor(3.0), seconds=0)


def test_a_budget_too_small_returns_what_was_reached_untrusted():
    found = posterior(conjugate, torch.linspace(3.0, 7.0, 20), seconds=1e-3, draws=100)
    assert not found.trust and found.diagnosis is None
    assert "the budget was spent after" in found.reasons[-1]
    assert found.datatree.posterior["mean"].size == 100
    assert found.evidence.value is None


@pytest.mark.parametrize("limit, good", [(1.5, False), (9.0, True)])
def test_draws_without_a_tail_do_not_stay(limit, good):
    """The body of a banana, whose weights look well because its tails were never drawn."""
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(9_000, generator=draw, dtype=torch.float64)
    a = a[a.abs() < limit][:4_000]
    b = 2 * a**2 + 0.3 * torch.randn(len(a), generator=draw, dtype=torch.float64)
    found = stays(LogJoint(banana, ()), torch.stack([a, b], -1), seconds=60.0)
    assert found.good is good and found.decides


def test_a_point_is_no_posterior():
    joint = LogJoint(conjugate, (torch.linspace(3.0, 7.0, 20),))
    point = torch.full((1_000, 1), 4.99, dtype=torch.float64)
    assert stays(joint, point + 1e-9 * torch.randn(1_000, 1), seconds=60.0).good is False


def test_paths_find_the_peak_of_scales_that_differ_by_a_million():
    """log p is exactly quadratic: the best Gaussian is the posterior itself."""
    sd = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    loc = torch.tensor([5.0, -1.0, 4e3], dtype=torch.float64)

    def model():
        pyro.sample("z", dist.Normal(loc, sd).to_event(1))

    found = pathfinder(LogJoint(model, ()))
    assert torch.allclose(found.laplace.loc, loc, rtol=1e-4)
    assert np.allclose(found.laplace.sd, sd, rtol=1e-4)
    assert found.best.elbo == pytest.approx(0.0, abs=1e-4) and not found.away + found.improper
