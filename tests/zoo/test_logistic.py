"""Discretised logistic mixtures: masses of all levels, colours, draws."""

import itertools
import math

import pytest
import torch

from zoo.likelihoods import LogisticMixtureLikelihood
from zoo.networks.logistic import ColourMixture, log_mass
from zoo.vae import VAE


def test_the_masses_of_256_levels_sum_to_one_however_narrow():
    levels = torch.arange(256, dtype=torch.float64) / 255
    for log_scale in (-12.0, -7.0, -3.0, 1.0):
        for mean in (-0.4, 0.0, 0.3, 1.0, 1.7):
            mean_, scale_ = torch.tensor([mean, log_scale], dtype=torch.float64)
            total = log_mass(levels, mean_, scale_, 256).exp().sum()
            assert abs(total - 1) < 256 * 1e-15 * math.exp(-min(log_scale, 0)), (mean, log_scale)


def test_a_mass_is_the_difference_of_two_distribution_functions():
    x, mean, scale = torch.tensor([0.4, 0.25, 0.1], dtype=torch.float64)
    cdf = lambda v: torch.sigmoid((v - mean) / scale)  # noqa: E731
    expected = (cdf(x + 0.5 / 255) - cdf(x - 0.5 / 255)).log()
    torch.testing.assert_close(log_mass(x, mean, scale.log(), 256), expected, rtol=1e-12, atol=0)


def test_a_mixture_over_levels_sums_to_one_and_its_draws_are_levels():
    head = LogisticMixtureLikelihood(3, levels=16)
    p = head(torch.randn(4, 9 * 5, dtype=torch.float64))
    levels = torch.arange(16, dtype=torch.float64) / 15
    masses = torch.stack([p.base_dist.log_prob(v.expand(4, 5)) for v in levels]).exp()
    torch.testing.assert_close(masses.sum(0), torch.ones(4, 5, dtype=torch.float64))
    x = p.sample((2_000,))
    head.validate(x)
    mean = (masses * levels[:, None, None]).sum(0)
    assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / math.sqrt(2_000)).all()


def test_the_colours_of_a_pixel_sum_to_one_together():
    """The 4³ colours of one pixel, with coefficients; and draws have their mean."""
    torch.manual_seed(0)
    parts = torch.randn(4, 3, 2, dtype=torch.float64)  # 3 P = 3 values, C = 2
    p = ColourMixture(parts[0], parts[1] / 3 + 0.5, parts[2] - 2, parts[3].tanh(), levels=4)
    colours = torch.tensor(list(itertools.product(range(4), repeat=3)), dtype=torch.float64) / 3
    masses = p.log_prob(colours).exp()
    assert abs(masses.sum() - 1) < 1e-12
    x = p.sample((4_000,))
    expected = (masses[:, None] * colours).sum(0)
    assert ((x.mean(0) - expected).abs() < 5 * x.std(0) / math.sqrt(4_000)).all()
    alone = ColourMixture(parts[0], parts[1] / 3 + 0.5, parts[2] - 2, 0 * parts[3], levels=4)
    assert (p.log_prob(colours) - alone.log_prob(colours)).abs().max() > 0.01


def test_a_vae_takes_the_likelihood_and_refuses_other_values():
    x = torch.randint(0, 256, (5, 12)) / 255
    for spec in ("logistic-mixture", "colour-mixture"):
        vae = VAE(12, latent_dim=2, hidden=(4,), likelihood=spec)
        vae.validate(x)
        assert vae.sample(3).shape == (3, 12) and vae.reconstruct(x).shape == (5, 12)
        with pytest.raises(ValueError, match="256 levels"):
            vae.validate(x * 255)
    with pytest.raises(ValueError, match="1 or 3"):
        LogisticMixtureLikelihood(channels=2)
