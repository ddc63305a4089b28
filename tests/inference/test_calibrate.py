import json
import math
import runpy
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats import ecdf_utils
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats
from torch import nn

from inference import elbo
from inference.judging.calibration import calibrate
from inference.judging.calibration import ranked as ranks_of
from inference.judging.uniformity import _smallest, band, symmetry, uniformity
from zoo.vae import VAE


class Correlated(nn.Module):
    """theta ~ N(0, I), x | theta ~ N(theta_1 + theta_2, s²): a posterior with correlation rho.

    Its precision is I + a 11ᵀ with a = 1 / s², so that rho = -a / (1 + a), and its mean is
    a x / (1 + 2 a) in both. The best mean-field guide has that mean and variances 1 / (1 + a).
    """

    def __init__(self, rho, exact=False, off=0.0):
        super().__init__()
        a = rho / (1 - rho)
        self.scale = a**-0.5
        self.slope = nn.Parameter(torch.tensor(a / (1 + 2 * a)))
        self.off = off
        precision = torch.eye(2) + a
        covariance = torch.linalg.inv(precision)
        self.tril = torch.linalg.cholesky(covariance) if exact else torch.eye(2) / math.sqrt(1 + a)

    def model(self, x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(theta.sum(-1), self.scale), obs=x)

    def guide(self, x):
        mean = (self.slope * x + self.off)[..., None].expand(*x.shape, 2)
        pyro.sample("theta", dist.MultivariateNormal(mean, scale_tril=self.tril))


X = torch.zeros(())


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_coverage_of_a_mean_field_guide(rho):
    """Nominal 90 % intervals cover P(|N(0, 1)| < 1.645 sqrt(1 - rho²)): 84.6 % and 52.7 %."""
    c = calibrate(Correlated(rho), X, datasets=4_000, draws=999)
    exact = 2 * stats.norm.cdf(stats.norm.ppf(0.95) * math.sqrt(1 - rho**2)) - 1
    assert abs(exact - {0.5: 0.846, 0.9: 0.527}[rho]) < 5e-4
    for found, se in c.coverage(0.9).values():
        assert abs(found - exact) < 4 * se
    assert not c.passed and max(c.uniform().values()) < 1e-3
    assert min(c.symmetric().values()) > 1e-3  # the means are right
    assert c.tarp_uniform() < 1e-3
    assert "Not calibrated" in str(c) and "too narrow" in str(c)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_the_exact_posterior_passes(rho):
    c = calibrate(Correlated(rho, exact=True), X, datasets=1_000, seed=1)
    assert c.passed and str(c).startswith("Calibrated: 1000 data sets, guide amortised")
    for level in (0.5, 0.9):
        for found, se in c.coverage(level).values():
            assert abs(found - level) < 4 * se
    assert abs(c.expected_coverage(np.array([0.5])) - 0.5) < 4 * math.sqrt(0.25 / 1_000)


def test_a_bias_is_found_and_named():
    c = calibrate(Correlated(0.5, exact=True, off=0.3), X, datasets=500)
    assert max(c.symmetric().values()) < 0.01 and "posteriors too high" in str(c)


@pytest.mark.slow
def test_guides_fitted_to_every_data_set():
    """From the same start: a full-rank guide reaches the posterior, a mean-field one cannot."""
    pair = Correlated(0.9)
    options = {"datasets": 200, "steps": 400, "lr": 0.05, "elbo": elbo.Trace(16),
               "schedule": "cosine", "compile": False}  # fmt: skip
    full = calibrate(pair.model, AutoMultivariateNormal(pair.model), X, **options)
    assert full.fitted and full.passed
    mean_field = calibrate(pair.model, AutoNormal(pair.model), X, **options)
    exact = 2 * stats.norm.cdf(stats.norm.ppf(0.95) * math.sqrt(1 - 0.9**2)) - 1
    assert not mean_field.passed
    for found, se in mean_field.coverage(0.9).values():
        assert abs(found - exact) < 4 * se


class Factors(nn.Module):
    """x_i ~ N(2 z_i, 1), z_i ~ N(0, 1), with labels that shift x; the guide is the posterior."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def model(self, x, y, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(2 * z + y[:, None], 1.0).to_event(1), obs=x)

    def guide(self, x, y, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            mean = 2 * (x - y[:, None]) / 5
            pyro.sample("z", dist.Normal(mean, self.scale / math.sqrt(5)).to_event(1))


def test_every_datum_of_an_amortised_guide_is_a_data_set():
    x, y = torch.zeros(7, 1), torch.arange(7)
    assert calibrate(Factors(), x, y, datasets=500).passed
    wide = calibrate(Factors(2.0), x, y, datasets=500)
    assert not wide.passed and "too wide" in str(wide) and list(wide.ranks) == ["z"]
    vae = calibrate(VAE(6, latent_dim=2, hidden=(5,)), torch.zeros(4, 6), datasets=50, draws=20)
    assert list(vae.ranks) == ["z[0]", "z[1]"] and len(vae) == 50


def test_ties_are_broken_at_random():
    """Counts: where draws and truth share their law the ranks are uniform, ties and all."""
    rng = np.random.default_rng(0)
    both = torch.tensor(rng.poisson(1.0, size=(4_000, 20)))
    ranks = ranks_of(both[:, 1:], both[:, 0], rng)
    assert ranks.min() == 0 and ranks.max() == 19
    assert uniformity(ranks, 19) > 0.01


@pytest.mark.parametrize("n", [20, 500])
def test_bands_hold_all_points_at_once(n):
    at = np.linspace(0, 1, 51)[1:-1]
    low, high = band(n, at, 0.9)
    u = np.sort(np.random.default_rng(1).uniform(size=(2_000, n)))
    ecdf = np.stack([np.searchsorted(row, at, side="right") for row in u]) / n
    inside = ((ecdf >= low) & (ecdf <= high)).all(1).mean()
    # counts are whole, so the band may hold a little more often than it says
    assert inside > 0.9 - 4 * math.sqrt(0.09 / 2_000) - 4 * math.sqrt(0.09 / 4_000)
    assert inside < 0.95


@pytest.mark.parametrize("n", [20, 500])
def test_bands_are_those_of_arviz(n):
    """Their simulation makes one band at a time; ours keeps what p-values need too."""
    at = np.linspace(0, 1, 51)[1:-1]
    rng = np.random.default_rng(3)
    prob = ecdf_utils.simulate_confidence_bands(n, 1, at, 0.9, 4_000, rng)
    theirs = ecdf_utils.get_pointwise_confidence_band(prob, n, at)
    # at their pointwise level the ends are the same, whole counts of n
    low, high = (stats.binom.ppf(g, n, at) / n for g in ((1 - prob) / 2, (1 + prob) / 2))
    assert np.array_equal(low, theirs[0]) and np.array_equal(high, theirs[1])
    # and by our own simulation theirs holds 90 %, within five errors of the two simulations
    share = (_smallest(n, tuple(at)) > 1 - prob).mean()
    error = 5 * math.sqrt(2 * 0.09 / 4_000)
    ties = np.unique(_smallest(n, tuple(at)), return_counts=True)[1].max() / 4_000
    assert 0.9 - error - ties < share < 0.9 + error + ties


def test_p_values_of_uniform_ranks_are_uniform():
    rng = np.random.default_rng(2)
    p = uniformity(rng.integers(0, 100, size=(300, 2_000)), 99)
    for level in (0.01, 0.1, 0.5):
        assert (p < level).mean() < level + 4 * math.sqrt(level * (1 - level) / 2_000)
    assert (p < 0.1).mean() > 0.05  # and not needlessly shy
    p = symmetry(rng.beta(0.5, 0.5, size=(300, 400)))  # symmetric, if not uniform
    assert abs((p < 0.1).mean() - 0.1) < 4 * math.sqrt(0.09 / 400)
    assert symmetry(rng.beta(1.0, 1.5, size=300)) < 0.01


def test_as_json_and_figures(tmp_path):
    c = calibrate(Correlated(0.9), X, datasets=50, draws=19)
    read = json.loads(c.to_json(tmp_path / "c.json"))
    assert set(read["sbc"]) == {"theta[0]", "theta[1]"} and read["datasets"] == 50
    for name, figure in c.figures().items():
        figure.savefig(tmp_path / f"{name}.png")
    again = calibrate(Correlated(0.9), X, datasets=50, draws=19)
    assert all((c.ranks[n] == again.ranks[n]).all() for n in c.ranks)


def test_refusals():
    pair = Correlated(0.5)
    with pytest.raises(ValueError, match="datasets: expected a whole number of at least 10, got 5"):
        calibrate(pair, X, datasets=5)
    with pytest.raises(ValueError, match="lr: only with steps="):
        calibrate(pair, X, lr=0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(pair, X, datasets=10, draws=10).coverage(90)

    def transformed(x):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x.log())

    with pytest.raises(ValueError, match="site 'x': what the model observes there is not one of"):
        calibrate(transformed, AutoNormal(transformed), torch.ones(()), datasets=10)


def test_the_example_runs(tmp_path, capsys):
    path = Path(__file__).parents[2] / "examples" / "calibration.py"
    found = runpy.run_path(str(path))["main"](datasets=20, steps=30, out=str(tmp_path / "c.png"))
    assert {"mu", "tau", "theta[7]"} <= set(found.ranks) and len(found) == 20 and found.fitted
    assert {p.name for p in tmp_path.iterdir()} == {"c.png", "c-ranks.png"}
    assert str(found) in capsys.readouterr().out
