"""The rest of x given a part: against finite sums, integrals on a grid, Gaussian conditionals."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from zoo.autoregressive import MADE, PixelCNN
from zoo.completion import complete, part_of
from zoo.density import Gaussian, KernelDensity
from zoo.diffusion import Diffusion
from zoo.flows import NeuralSplineFlow, RealNVP
from zoo.gan import GAN
from zoo.hierarchical import HierarchicalVAE
from zoo.mixture import MaximumLikelihoodMixture
from zoo.vae import VAE

D = 6
PART = torch.tensor([True, False, True, False, False, True])


def shaken(model, by=0.5):
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p += by * torch.randn_like(p)
    return model


def outcomes(n):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["made", "three orders", "pixels"])
def test_binary_parts_against_the_sum_over_all_rests(kind):
    model = shaken({
        "made": lambda: MADE(D, hidden=(20,)),
        "three orders": lambda: MADE(D, hidden=(20,), orders=3),
        "pixels": lambda: PixelCNN(D, (1, 2, 3), channels=4, layers=2),
    }[kind]())  # fmt: skip
    x = torch.tensor([[1.0, 0, 1, 0, 1, 0], [0.0, 1, 0, 0, 1, 1]]).double()
    found = complete(model, x, PART, draws=4_800)
    assert torch.equal(found.draws[..., PART], x[:, PART].expand(4_800, -1, -1))
    for row in range(2):
        every = x[row].repeat(8, 1)
        every[:, ~PART] = outcomes(3)
        with torch.no_grad():
            p = model.log_prob(every).softmax(0)
        own = (outcomes(3) == x[row, ~PART]).all(-1)
        error = max(float(found.se[row]), 1e-12)
        assert abs(found.log_prob[row].exp() / p[own].sum() - 1) < 5 * error  # 8 filters: a t
        code = (found.draws[:, row, ~PART] @ torch.tensor([4.0, 2.0, 1.0]).double()).long()
        share = torch.bincount(code, minlength=8) / len(code)
        # resampled copies are dependent: twice the error of as many independent draws
        assert (share - p).abs().max() < 2 * 4 * math.sqrt(0.25 / len(code))


def test_a_part_that_comes_first_is_exact():
    model, first = shaken(MADE(D, hidden=(20,))), torch.arange(D) < 2
    x = outcomes(D)[torch.tensor([13, 40])]
    found = complete(model, x, first)
    rest = torch.distributions.Bernoulli(logits=model.logits(x)).log_prob(x)[:, 2:].sum(-1)
    torch.testing.assert_close(found.log_prob, rest.detach(), rtol=0, atol=1e-12)
    assert found.se.max() < 1e-12


def test_mixtures_are_exact():
    """Against an integral over the rest on a grid, and the moments of its draws."""
    seen = torch.randn(50, 2).double()
    mixture = shaken(MaximumLikelihoodMixture(2, 3).double().initialise(seen))
    x = torch.tensor([[0.3, -0.5], [-1.0, 2.0]]).double()
    found = complete(mixture, x, torch.tensor([True, False]), draws=4_000)
    axis = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
    for row in range(2):
        grid = torch.stack([x[row, 0].expand_as(axis), axis], -1)
        with torch.no_grad():
            log_p = mixture.distribution().log_prob(grid)
        log_part = log_p.logsumexp(0) + math.log(float(axis[1] - axis[0]))
        truth = mixture.distribution().log_prob(x[row]) - log_part
        assert abs(found.log_prob[row] - truth) < 1e-9
        p = (log_p - log_p.logsumexp(0)).exp()
        mean, drawn = (p * axis).sum(), found.draws[:, row, 1]
        assert abs(drawn.mean() - mean) < 4 * drawn.std() / math.sqrt(4_000)
    for one in (Gaussian(2).double().fit_closed_form(seen), KernelDensity(seen)):
        assert complete(one, x, torch.tensor([False, True])).how == "exactly"
        log_p = _density(one).log_prob(x).detach() - _marginal(one, x[:, 1])
        assert torch.allclose(complete(one, x, torch.tensor([False, True])).log_prob, log_p)


def _density(model):
    return model.distribution() if hasattr(model, "distribution") else model


def _marginal(model, second):
    axis = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    grid = torch.stack(torch.broadcast_tensors(axis[:, None], second), -1)
    with torch.no_grad():
        return _density(model).log_prob(grid).logsumexp(0) + math.log(float(axis[1] - axis[0]))


@pytest.mark.parametrize("flow", [RealNVP, pytest.param(NeuralSplineFlow, marks=pytest.mark.slow)])
def test_flows_against_an_integral_on_a_grid(flow):
    flow = shaken(flow(2, layers=2, hidden=(8,)), by=0.3)
    x = torch.tensor([[0.3, -0.5], [-0.8, 0.7]]).double()
    found = complete(flow, x, torch.tensor([False, True]), draws=200)
    axis = torch.linspace(-12, 12, 4_001, dtype=torch.float64)
    for row in range(2):
        with torch.no_grad():
            log_p = flow.log_prob(torch.stack([axis, x[row, 1].expand_as(axis)], -1))
        log_part = log_p.logsumexp(0) + math.log(float(axis[1] - axis[0]))
        truth = flow.log_prob(x[row]).detach() - log_part
        assert abs(found.log_prob[row] - truth) < 4 * found.se[row] + 1e-3
        p = log_p.softmax(0)
        mean, drawn = (p * axis).sum(), found.draws[:, row, 0]
        assert abs(drawn.mean() - mean) < 5 * drawn.std() / math.sqrt(200)


def linear_vae(pair, w, bias, noise):
    """Probabilistic PCA with its exact posterior as the guide."""
    latent = w.shape[1]
    precision = torch.eye(latent) + w.T @ w / noise
    project = torch.linalg.solve(precision, w.T / noise)
    decoder = getattr(pair, "decoder", None) or pair.decoders[0]
    encoder = getattr(pair, "encoder", None) or pair.encoders[0]
    with torch.no_grad():
        decoder[0].weight.copy_(w), decoder[0].bias.copy_(bias)
        pair.likelihood.log_scale.fill_(math.log(noise) / 2)
        encoder[0].weight.copy_(torch.cat([project, torch.zeros_like(project)]))
        log_sd = -precision.diag().log() / 2
        encoder[0].bias.copy_(torch.cat([-project @ bias, log_sd]))
    return pair


@pytest.mark.parametrize("kind", ["vae", pytest.param("hierarchical", marks=pytest.mark.slow)])
def test_linear_latents_have_a_gaussian_conditional(kind):
    torch.manual_seed(2)
    w, _ = torch.linalg.qr(torch.randn(D, 2).double())  # so that the posterior is diagonal
    w, bias, noise = w * torch.tensor([2.0, 1.0]).double(), torch.randn(D).double(), 0.25
    pair = {
        "vae": lambda: VAE(D, latent_dim=2, hidden=(), likelihood="gaussian"),
        "hierarchical": lambda: HierarchicalVAE(D, (2,), ((),), likelihood="gaussian"),
    }[kind]().double()  # fmt: skip
    pair = linear_vae(pair, w, bias, noise)
    joint = MultivariateNormal(bias, w @ w.T + noise * torch.eye(D).double())
    x = joint.sample((3,))
    found = complete(pair, x, PART, draws=400)
    s, part = (
        joint.covariance_matrix,
        MultivariateNormal(bias[PART], joint.covariance_matrix[PART][:, PART]),
    )
    truth = joint.log_prob(x) - part.log_prob(x[:, PART])
    assert ((found.log_prob - truth).abs() < 4 * found.se + 1e-9).all()
    gain = s[~PART][:, PART] @ torch.linalg.inv(s[PART][:, PART])
    mean = bias[~PART] + (x[:, PART] - bias[PART]) @ gain.T
    variance = (s[~PART][:, ~PART] - gain @ s[PART][:, ~PART]).diag()
    rest = found.draws[..., ~PART]
    assert ((rest.mean(0) - mean).abs() < 4.5 * (variance / 400).sqrt()).all()
    assert ((rest.var(0) / variance - 1).abs() < 4.5 * math.sqrt(2 / 400)).all()


class BestDenoiser(nn.Module):
    """E[x | z] of N(0, S)."""

    def __init__(self, covariance):
        super().__init__()
        self.s = covariance

    def forward(self, z, log_snr):
        alpha2, sigma2 = log_snr.sigmoid()[..., None, None], (-log_snr).sigmoid()[..., None, None]
        v = alpha2 * self.s + sigma2 * torch.eye(len(self.s)).to(z)
        return (alpha2.sqrt() * self.s @ torch.linalg.solve(v, z[..., None])).squeeze(-1)


def test_a_diffusion_of_gaussian_data_has_the_gaussian_conditional():
    s = torch.tensor([[1.0, 0.7], [0.7, 1.0]]).double()
    model = Diffusion(2, timesteps=100, log_snr_max=8.0, log_snr_min=-8.0,
                      denoiser=BestDenoiser(s)).double()  # fmt: skip
    x = torch.tensor([[1.0, 0.0], [-1.5, 0.0]]).double()
    found = complete(model, x, torch.tensor([True, False]), draws=1_600)
    assert found.log_prob is None and not found.mean_log_prob()
    rest = found.draws[..., 1]
    sd = math.sqrt(1 - 0.7**2)
    # 8 groups, each on a path of its own; the decoder's steps are 1/T off
    assert ((rest.mean(0) - 0.7 * x[:, 0]).abs() < 0.1).all()
    assert ((rest.std(0) / sd - 1).abs() < 0.1).all()


def test_parts_are_named():
    image = part_of("left", 12, (1, 3, 4)).view(3, 4)
    assert torch.equal(image, torch.tensor([True, True, False, False]).expand(3, 4))
    assert part_of("bottom", 12, (1, 3, 4)).view(3, 4).sum(1).tolist() == [0, 4, 4]
    assert part_of("1-2,4", 4, None).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, m: complete(m, x, torch.zeros(D) > 0), "got none of them"),
        (lambda x, m: complete(m, x, torch.zeros(D) == 0), "got all of them"),
        (lambda x, m: complete(m, x, PART[:5]), "expected 6 bools"),
        (lambda x, m: complete(m, x, PART, draws=2), "draws: expected at least 8"),
        (lambda x, m: complete(GAN(D), x, PART), "GAN cannot be completed"),
        (lambda x, m: part_of("left", 6, None), "no images; name columns"),
        (lambda x, m: part_of("3-9", 6, None), "columns from 1 to 6"),
        (lambda x, m: part_of("middle", 6, None), "columns from 1 to 6"),
    ],
)
def test_bad_input_is_refused_with_the_fix(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(2, D), MADE(D, hidden=(4,)))
