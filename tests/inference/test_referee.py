"""The referee: exact chains, draws that are right and wrong, and what it says of them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import diagnose, make_guide, posterior
from inference.draws.joint import LogJoint
from inference.judging.referee import verdict
from inference.judging.referee.turns import no_u_turn
from inference.judging.referee.verdict import refereed

COV = torch.tensor([[1.0, 0.9], [0.9, 2.0]], dtype=torch.float64)
MEAN = torch.tensor([3.0, -1.0], dtype=torch.float64)


def gaussian():
    pyro.sample("z", dist.MultivariateNormal(MEAN, COV))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(verdict, "WARMUP", 15)
    monkeypatch.setattr(verdict, "DRAWS", 20)


def draws(seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2_000, 2, generator=generator, dtype=torch.float64)
    return MEAN + shift + scale * noise @ torch.linalg.cholesky(COV).T


def test_the_sampler_has_the_moments_of_its_density():
    torch.manual_seed(0)
    precision = torch.linalg.inv(COV)

    def density(v):
        away = v - MEAN
        return -0.5 * (away @ precision * away).sum(-1), -away @ precision

    found = no_u_turn(density, MEAN + torch.randn(32, 2, dtype=torch.float64), 60, 30)
    assert found.finished and found.divergences == 0 and found.draws.shape == (32, 60, 2)
    u = found.draws.flatten(0, 1)
    # trajectories of a Gaussian that turn are nearly independent: half of the draws count at least
    n = len(u) / 2
    assert ((u.mean(0) - MEAN).abs() < 4 * (COV.diagonal() / n).sqrt()).all()
    error = torch.sqrt((COV.square() + torch.outer(COV.diagonal(), COV.diagonal())) / n)
    assert ((u.T.cov() - COV).abs() < 4 * error).all()


@pytest.mark.parametrize(
    "wrong, good", [({}, True), ({"shift": 0.5}, False), ({"scale": 0.6}, False)]
)
def test_right_draws_pass_and_wrong_ones_do_not(wrong, good):
    found, chains = refereed(LogJoint(gaussian, ()), draws(**wrong))
    assert found.good is good and found.decides and chains.rhat.max() < verdict.RHAT
    for word in ("divergences", "R-hat", "a classifier tells", "effective"):
        assert word in found.what
    assert ("the draws are off in z[" in found.what) is (not good)


def test_a_budget_too_small_tells_nothing():
    found, chains = refereed(LogJoint(gaussian, ()), draws(), seconds=0.0)
    assert found.good is None and chains is None and "too few to tell" in found.what


def test_chains_of_a_flow_move_in_its_noise():
    guide = make_guide("iaf", gaussian, start="pathfinder")
    guide()
    found, chains = refereed(LogJoint(gaussian, ()), draws(), guide=guide.get_posterior())
    assert chains.coordinates == "the flow's own noise (NeuTra)" and found.good
    u = chains.draws.flatten(0, 1)
    error = 4 * (COV.diagonal() / chains.effective).sqrt()
    assert ((u.mean(0) - MEAN).abs() < error).all()


def test_diagnose_and_posterior_ask_it():
    def guide():
        pyro.sample("z", dist.MultivariateNormal(MEAN, COV))

    found = diagnose(gaussian, guide, (), draws=500, referee="nuts")
    assert found.trust and found["referee"].good and found.evidence["referee"] is not None
    with pytest.raises(ValueError, match="referee: expected one of \\['nuts'\\], got 'hmc'"):
        diagnose(gaussian, guide, (), referee="hmc")
    with pytest.raises(ValueError, match="referee: expected one of"):
        posterior(gaussian, referee=True)


def test_each_datum_s_own_posterior_is_not_refereed():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    found = diagnose(model, guide, torch.zeros(3), draws=50, gap=0, referee="nuts")["referee"]
    assert found.good is None and "each datum has its own" in found.what


@pytest.mark.slow
def test_a_referee_agrees_with_posterior_on_eight_schools(zoo_data, monkeypatch):
    from schools import SIGMA, Y, non_centred

    monkeypatch.setattr(verdict, "WARMUP", 50)
    monkeypatch.setattr(verdict, "DRAWS", 50)
    found = posterior(non_centred, Y, SIGMA, referee="nuts", seconds=120)
    assert found.trust and any("referee" in n for n in found.notes)
    assert found.referee.rhat.max() < verdict.RHAT
