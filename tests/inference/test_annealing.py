"""log p(x) from both sides, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference import evaluate
from inference.judging.annealing import annealed
from inference.testing.toys import GlobalLocal, LinearGaussian, Nested, Switch


class Rows(LinearGaussian):
    """Probabilistic PCA, many rows: log p(x) = log N(x; b, W Wᵀ + I)."""

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(3)).double() * 1.2


def exact_posterior(toy, x, draws):
    """Draws of z given x, (K, rows, 2)."""
    w, b = toy.p["w"].detach(), toy.p["b"].detach()
    covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + w.T @ w)
    mean = (x - b) @ w @ covariance
    noise = torch.randn(draws, len(x), 2, dtype=torch.float64, generator=torch.manual_seed(5))
    return mean + noise @ torch.linalg.cholesky(covariance).T


@pytest.mark.parametrize("method", ["ais", pytest.param("smc", marks=pytest.mark.slow)])
def test_log_px_of_probabilistic_pca_lies_between(method):
    toy = Rows()
    x = toy.data()
    given = {"z": exact_posterior(toy, x, 32)}
    with torch.random.fork_rng():
        found = annealed(toy, x, chains=32, method=method, posterior=given, temperatures=40)
    truth = float(toy.log_px(x)) / len(x)
    w, b = toy.p["w"].detach(), toy.p["b"].detach()
    per_row = dist.MultivariateNormal(b, w @ w.T + torch.eye(3).double()).log_prob(x)
    below, above = found.lower_per_datum - per_row, found.upper_per_datum - per_row
    for apart, sign in ((below, 1), (above, -1)):  # each within five of its standard errors
        assert sign * float(apart.mean()) < 5 * float(apart.std()) / math.sqrt(len(x))
    assert found.gap.value < 0.05
    assert abs(found.lower.value - truth) < 0.05 and abs(found.upper.value - truth) < 0.05
    assert "log p(x) ≥" in str(found) and "the posterior's draws given" in str(found)


@pytest.mark.slow
def test_few_temperatures_leave_a_gap_that_is_seen():
    """Two temperatures are importance sampling: biased down, and back up."""
    toy = Rows()
    x, truth = toy.data(), float(toy.log_px(toy.data())) / 40
    found = annealed(toy, x, chains=2, temperatures=2, posterior={"z": exact_posterior(toy, x, 2)})
    assert found.lower.value < truth < found.upper.value
    assert found.gap.value > 2 * found.gap.se > 0


@pytest.mark.slow
def test_simulated_data_have_exact_draws():
    found = annealed(
        LinearGaussian(), LinearGaussian().data(), chains=8, posterior="simulated", temperatures=20
    )
    assert found.ends == "exact draws, of simulated data"
    assert abs(found.gap.value) < 5 * found.gap.se + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GlobalLocal, Nested])
def test_joint_latents_are_annealed_together(kind):
    toy = kind()
    found = annealed(toy, toy.data(), chains=16, temperatures=30)
    truth = float(toy.log_px(toy.data()))
    assert found.unit == "nats" and found.lower_per_datum.shape == (1,)
    for bound in (found.lower, found.upper):
        assert abs(bound.value - truth) < 5 * bound.se < 2.5


def test_positive_latents_move_on_the_real_line():
    """tau ~ Gamma(2, 1), x_i | tau ~ Exponential(tau): p(x) = Γ(n + 2) / (Σx + 1)^(n + 2)."""

    class Rate(nn.Module):
        def __init__(self):
            super().__init__()
            self.shape = nn.Parameter(torch.tensor([2.0, 1.0]))

        def model(self, x):
            tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Exponential(tau), obs=x)

        def guide(self, x):
            pyro.sample("tau", dist.LogNormal(self.shape[0] * 0 + 0.3, self.shape[1]))

    x = torch.tensor([0.5, 1.2, 0.3, 0.9])
    truth = math.lgamma(6) - 6 * math.log(float(x.sum()) + 1)
    found = annealed(Rate(), x, chains=32, temperatures=20)
    assert abs(found.lower.value - truth) < 5 * found.lower.se < 1.0
    assert abs(found.upper.value - truth) < 5 * found.upper.se < 1.0


def test_evaluate_shows_both_sides():
    toy = LinearGaussian()
    x = toy.data()
    found = evaluate(toy, x, particles=20, ais=12)
    assert found.ais.n == 5 and len(found.ais.temperatures) == 12
    table = found.to_dict()
    assert table["ais_gap"] == pytest.approx(table["ais_upper"] - table["ais_lower"])
    assert "gap" in str(found) and "back from the ends of the chains" in str(found)
    assert evaluate(toy, x, particles=20).ais is None


def test_what_cannot_be_annealed_is_refused():
    toy = LinearGaussian()
    x = toy.data()
    with pytest.raises(ValueError, match="the guide draws 'k', a Bernoulli"):
        annealed(Switch(), Switch().data())
    with pytest.raises(ValueError, match="chains: expected a whole number of at least 2"):
        annealed(toy, x, chains=1)
    with pytest.raises(ValueError, match="temperatures: expected a whole number of at least 2"):
        evaluate(toy, x, ais=1)
    with pytest.raises(ValueError, match="posterior: expected draws of every site"):
        annealed(toy, x, posterior={"y": x})
    with pytest.raises(ValueError, match="method: expected one of"):
        annealed(toy, x, method="nuts")
