"""The implicit pair: its sites, its draws, a short fit."""

import pytest
import torch

from inference.ratios.implicit import fit_implicit
from inference.weights import log_weights
from zoo.data import load
from zoo.implicit import ImplicitVAE


def test_sites_and_particles():
    vae = ImplicitVAE(5, latent_dim=2, noise_dim=3, hidden=(8,))
    x = torch.rand(6, 5).round()
    weights = log_weights(vae.model, vae.guide, x, particles=4)
    assert set(weights.guide) == {"eps", "z"} and set(weights.model) == {"z", "x"}
    assert weights.guide["eps"].auxiliary
    z = weights.guide["z"].value
    assert z.shape == (4, 6, 2)
    noise = weights.guide["eps"].value
    torch.testing.assert_close(z, vae.encoder(torch.cat([x.expand(4, 6, 5), noise], -1)))
    assert log_weights(vae.model, vae.guide, x, 12).scale == 2.0


def test_draws_and_pictures():
    vae = ImplicitVAE(5, latent_dim=2, hidden=())
    x = torch.rand(6, 5)
    assert vae.draw(x, 7).shape == (7, 6, 2)
    assert vae.encode(x).shape == (6, 2)
    # affine: the mean over noise is the encoder at noise zero, to 5 standard errors
    at_zero = vae.encoder(torch.cat([x, torch.zeros(6, 8)], -1)).detach()
    draws = vae.draw(x, 2_000)
    assert ((draws.mean(0) - at_zero).abs() < 5 * draws.std(0) / 2_000**0.5).all()
    assert vae.reconstruct(x).shape == x.shape == vae.sample(6).shape
    assert ((vae.reconstruct(x) > 0) & (vae.reconstruct(x) < 1)).all()


def test_short_fit_on_digits():
    digits = load("digits", pixels="static")
    vae = ImplicitVAE(64, hidden=(64,))
    run = fit_implicit(
        vae, digits, steps=60, lr=5e-3, batch_size=64, critic_steps=1, compile=False, progress=False
    )
    start, end = run.history["elbo"][0], run.evaluate(digits.test, draws=5).elbo
    assert end.value > start + 5
    assert isinstance(run.pair, ImplicitVAE) and not run.is_bound


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ImplicitVAE(0), "data_dim: expected sizes of at least 1"),
        (lambda: ImplicitVAE(3, latent_dim=4, noise_dim=2), "noise_dim: expected at least"),
        (lambda: ImplicitVAE(3, likelihood="bernouli"), "bernoulli"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
