"""The GAN pair: its sites, its output's range, and the ring of eight Gaussians."""

import math

import pyro
import pytest
import torch
from pyro import poutine

from inference.ratios import density_ratio
from inference.ratios.adversarial import fit_adversarial
from zoo.data import load
from zoo.gan import GAN, GANCritic

ANGLES = torch.arange(8) * math.pi / 4
MODES = 4 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def shares(x):
    """The share of points within three standard deviations of each mode."""
    distance, nearest = torch.cdist(x, MODES).min(1)
    return torch.bincount(nearest[distance < 1.5], minlength=8) / len(x)


def test_sites_and_particles():
    gan = GAN(3, latent_dim=2, hidden=(8,))
    trace = poutine.trace(gan.model).get_trace(5)
    assert trace.nodes["z"]["value"].shape == (5, 2)
    x = trace.nodes["x"]["value"]
    assert x.shape == (5, 3) and x is trace.nodes["_RETURN"]["value"]
    torch.testing.assert_close(x, gan.decode(trace.nodes["z"]["value"]))
    assert [f.name for f in trace.nodes["z"]["cond_indep_stack"]] == ["data"]
    with pyro.plate("particles", 4, dim=-2):
        assert gan.model(5).shape == (4, 5, 3)
    assert gan.sample(6).shape == (6, 3)


@pytest.mark.parametrize("output, low, high", [("sigmoid", 0.0, 1.0), ("tanh", -1.0, 1.0)])
def test_output_range(output, low, high):
    x = GAN(4, latent_dim=2, output=output).decode(100 * torch.randn(50, 2))
    assert low <= float(x.min().detach()) and float(x.max().detach()) <= high


def test_critic_reads_the_last_axis():
    critic = GANCritic(3, hidden=(8,))
    assert critic(torch.randn(2, 5, 3)).shape == (2, 5)


@pytest.mark.slow
def test_short_fit_lowers_the_divergence():
    x = load("eight-gaussians").train
    gan = GAN(2, hidden=(32, 32))
    before = density_ratio(gan.sample(2_000), x[:2_000], steps=200).js_divergence
    run = fit_adversarial(
        gan, x, critic=GANCritic(2, hidden=(32, 32)), steps=300, lr=3e-3, compile=False,
        progress=False, average=0.98,
    )  # fmt: skip
    after = density_ratio(run.sample(2_000), x[:2_000], steps=200).js_divergence
    assert before.value - after.value > 5 * (before.se + after.se)
    assert isinstance(run.generator, GAN) and isinstance(run.critic, GANCritic)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("objective", ["non-saturating", "minimax", "kl", "wasserstein"])
def test_ring_of_eight_gaussians(objective, seed):
    """Every mode has at least half its share of 1/8, and nine points of ten lie near a mode
    (of the data, 1 − exp(−9/2) = 98.9 % do)."""
    torch.manual_seed(seed)
    run = fit_adversarial(
        GAN(2), load("eight-gaussians"), objective=objective, steps=5_000, seed=seed,
        progress=False,
    )  # fmt: skip
    got = shares(run.sample(10_000))
    assert got.min() > 1 / 16 and got.sum() > 0.9


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: GAN(0), "sizes of at least 1"),
        (lambda: GAN(2, latent_dim=0), "sizes of at least 1"),
        (lambda: GAN(2, output="softmax"), "output"),
        (lambda: GAN(2, act="gelu"), "activation"),
        (lambda: GANCritic(0), "sizes of at least 1"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
