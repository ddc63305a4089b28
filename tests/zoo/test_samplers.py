"""The flow ODE, deterministic and Langevin steps of a diffusion, on Gaussian data: closed forms."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.func import jacrev, vmap

from zoo.autoencoder import DenoisingAutoencoder
from zoo.diffusion import Diffusion, samplers


def optimal(scale=2.0, dim=1, timesteps=64, **options):
    """The best denoiser of N(0, scale² I): a network that is zero."""
    pair = Diffusion(dim, timesteps, hidden=(4,), data_scale=scale, **options).double()
    for p in pair.denoiser.network[-1].parameters():
        torch.nn.init.zeros_(p)
    return pair


def variance(pair, level, scale=2.0):
    return pair.log_snr[level].sigmoid() * scale**2 + torch.sigmoid(-pair.log_snr[level])


def test_the_score_is_that_of_the_noisy_data():
    pair, z = optimal(dim=3), torch.randn(5, 3).double()
    for level in (0, 30, 63):
        log_snr = pair.log_snr[level].expand(5)
        torch.testing.assert_close(pair.score(z, log_snr), -z / variance(pair, level))


def test_the_flow_s_density_converges_at_fourth_order():
    """The map is linear, z_T = z_1 √(v_T / v_1): its density is Gaussian, and known."""
    pair, x = optimal(), torch.tensor([[0.5], [-3.0]]).double()
    v_1, v_t, alpha2 = variance(pair, 0), variance(pair, -1), pair.log_snr[0].sigmoid()
    truth = torch.distributions.Normal(0.0, (v_1 / v_t / alpha2).sqrt()).log_prob(x[:, 0])
    error = [(samplers.flow_log_prob(pair, x, n) - truth).abs().max() for n in (20, 40, 80)]
    assert error[2] < 1e-7
    for coarse, fine in itertools.pairwise(error):
        assert coarse / fine > 12  # at least fourth order: 2⁴, within the next one
    # and that of the data, but for λ_1 and λ_T being finite
    data = torch.distributions.Normal(0.0, 2.0).log_prob(x[:, 0])
    assert (pair.log_prob(x, steps=80) - data).abs().max() < 1e-3


def test_the_trace_is_the_jacobian_s_and_signs_are_unbiased_for_it():
    pair, z = Diffusion(3, 8, hidden=(16,)).double(), torch.randn(4, 3).double()
    level = pair.log_snr[3]
    whole = vmap(jacrev(lambda v: samplers._drift(pair, v, level, None)[0]))(z)
    _f, trace = samplers._drift(pair, z, level, torch.empty(0, 4, 3).double())
    torch.testing.assert_close(trace, whole.diagonal(dim1=-2, dim2=-1).sum(-1))
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double()[:, None].expand(8, 4, 3)
    torch.testing.assert_close(samplers._drift(pair, z, level, every.contiguous())[1], trace)


def test_draws_of_the_flow_have_its_density():
    """The inverse of the ODE: log p(x) = log N(noise) − log |dx/dnoise|."""
    pair = Diffusion(2, 8, hidden=(16,), log_snr_max=4.0, log_snr_min=-4.0).double()
    noise = torch.randn(3, 2).double()
    x = samplers.flow(pair, noise, 100)
    normal = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    h = 1e-5
    columns = [(samplers.flow(pair, noise + h * e, 100) - samplers.flow(pair, noise - h * e, 100))
               / (2 * h) for e in torch.eye(2).double()]  # fmt: skip
    log_det = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    truth = normal.log_prob(noise) - log_det
    # differences h² and the steps' (8 / 100)⁴
    torch.testing.assert_close(pair.log_prob(x, 100).detach(), truth.detach(), rtol=0, atol=1e-4)


def test_implicit_steps_converge_to_the_flow_at_first_order():
    pair, noise = optimal(timesteps=1025), torch.ones(1, 1).double()
    v_1, v_t, alpha = variance(pair, 0), variance(pair, -1), pair.log_snr[0].sigmoid().sqrt()
    # the last step is the denoiser's: α s² / v of z_1
    truth = (v_1 / v_t).sqrt() * alpha * 4 / v_1
    error = [(samplers.ddim(pair, noise, n + 1) - truth).abs().item() for n in (64, 128, 256)]
    for coarse, fine in itertools.pairwise(error):
        assert 1.6 < coarse / fine < 2.4


def test_langevin_draws_have_the_variance_of_their_linear_recursion():
    pair = optimal(scale=1.0, timesteps=64, log_snr_max=4.0, log_snr_min=-4.0)
    moves, size, n = 20, 0.1, 4_000
    s2 = torch.exp(-pair.log_snr)
    v = s2[-1]
    for level in reversed(range(64)):
        factor = 1 - size / 2 * (1 - 1 / (1 + s2[level]))
        for _ in range(moves):
            v = factor**2 * v + size * s2[level]
    v = v / (1 + s2[0]) ** 2  # the denoiser at the end
    x = samplers.langevin(pair, torch.randn(n, 1).double(), moves, size)
    assert abs(x.var() / v - 1) < 4 * math.sqrt(2 / n)
    assert abs(v - 1) < 0.1  # and it is near the data's


def test_the_best_linear_denoising_autoencoder_knows_the_score():
    pair = DenoisingAutoencoder(2, latent_dim=2, hidden=(), level=0.5).double()
    s2 = torch.tensor([4.0, 1.0]).double()
    with torch.no_grad():
        pair.encoder[0].weight.copy_((s2 / (s2 + 0.25)).diag()), pair.encoder[0].bias.zero_()
        pair.decoder[0].weight.copy_(torch.eye(2)), pair.decoder[0].bias.zero_()
    x = torch.randn(5, 2).double()
    torch.testing.assert_close(pair.score(x), -x / (s2 + 0.25))


def test_bad_input_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="expected one of ancestral, ddim, flow, langevin"):
        optimal().sample(3, "euler")
    with pytest.raises(ValueError, match="at least 2 steps"):
        optimal().sample(3, "ddim", 1)
    with pytest.raises(ValueError, match="noise='gaussian'"):
        DenoisingAutoencoder(2, noise="mask").score(torch.zeros(1, 2))
