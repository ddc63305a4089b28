"""The GAN pair: its sites, its output's range, and the ring of eight Gaussians."""

import math

import pyro
import pytest
import torch
from pyro import poutine

from inference.ratios import Critic, density_ratio
from inference.ratios.adversarial import fit_adversarial, generator_loss
from zoo.data import load
from zoo.gan import GAN, BiGAN, ConditionalGAN, GANCritic
from zoo.networks import ConvCritic, largest_singular

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


def linear_bigan(scale=1.0):
    """Generator x = A z, encoder z = scale · A⁻¹ x, and A."""
    a = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    pair = BiGAN(2, latent_dim=2, hidden=())
    with torch.no_grad():
        pair.generator[0].weight.copy_(a)
        pair.encoder[0].weight.copy_(scale * a.inverse())
    return pair, a


def test_linear_joints_match_where_the_encoder_is_the_inverse():
    """A Aᵀ = Σ and B = A⁻¹: no critic tells the joints apart; one does with 1.3 B."""
    torch.manual_seed(0)
    right, a = linear_bigan()
    x = torch.randn(600, 2) @ a.mT
    with torch.no_grad():
        drawn = torch.cat(right.model(600), -1)
        same = density_ratio(torch.cat([x, right.infer(x)], -1), drawn, steps=0)
        wrong, _ = linear_bigan(1.3)
        apart = density_ratio(torch.cat([x, wrong.infer(x)], -1), drawn, steps=0)
    assert same.js_divergence.value < 3 * same.js_divergence.se
    assert apart.js_divergence.value > 5 * apart.js_divergence.se
    torch.testing.assert_close(right.reconstruct(x), x, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_linear_bigan_learns_the_covariance_and_its_inverse():
    """To five standard errors of a covariance of 5,000 rows, 5 √(2 / 5,000) = 10 %."""
    torch.manual_seed(0)
    _, a = linear_bigan()
    x = torch.randn(5_000, 2) @ a.mT
    run = fit_adversarial(
        BiGAN(2, latent_dim=2, hidden=()), x, critic=Critic(4, hidden=()), steps=3_000, lr=5e-3,
        penalty=0.1, compile=False, progress=False, average=0.99,
    )  # fmt: skip
    found = run.generator
    a_found = found.generator[0].weight.detach()
    covariance = a_found @ a_found.mT
    assert (covariance - a @ a.mT).norm() < 0.1 * (a @ a.mT).norm()
    back = found.encoder[0].weight.detach() @ a_found
    assert (back - torch.eye(2)).norm() < 0.1 * math.sqrt(2)


def test_generator_and_encoder_lower_both_terms_of_the_game():
    x, fake = torch.randn(5, 1), torch.randn(5, 1)
    v = lambda rows: rows.squeeze(-1)  # noqa: E731
    soft = torch.nn.functional.softplus
    expected = soft(-fake).mean() + soft(x).mean()
    torch.testing.assert_close(generator_loss(v, fake, "non-saturating", x), expected)
    both = -soft(fake).mean() - soft(-x).mean()
    torch.testing.assert_close(generator_loss(v, fake, "minimax", x), both)
    kl = (1 + x).mean() - fake.exp().mean()  # of the critic's own bound, without its link
    found = generator_loss(lambda r: -r.abs().squeeze(-1), -fake.abs(), "kl", -x.abs())
    assert found.shape == kl.shape and torch.isfinite(found)


def test_encoder_of_ali_draws_and_its_mean_is_the_code():
    ali = BiGAN(3, latent_dim=2, hidden=(8,), posterior="normal")
    x = torch.randn(1, 3).expand(4_000, 3)
    z = ali.infer(x).detach()
    assert z.std(0).min() > 0
    assert ((z.mean(0) - ali.encode(x)[0]).abs() < 5 * z.std(0) / math.sqrt(4_000)).all()


def test_a_short_bigan_on_images_moves_generator_and_encoder():
    data = load("digits")
    pair = BiGAN(64, 4, hidden=(16,), output="sigmoid", networks="conv", image_shape=(1, 8, 8),
                 width=4)  # fmt: skip
    run = fit_adversarial(pair, data, critic=pair.critic(), steps=2, batch_size=8, compile=False,
                          progress=False, average=0)  # fmt: skip
    moved = {k for k, p in run.generator.named_parameters() if (p - pair.get_parameter(k)).any()}
    assert moved >= {"generator.inp.weight", "encoder.out.weight"}
    assert run.sample(3).shape == (3, 64)


def test_conditional_gan_draws_and_judges_conditions():
    x, y = torch.rand(6, 4), torch.tensor([[0.0, 1.5], [1.0, torch.nan]]).repeat(3, 1)
    gan = ConditionalGAN(4, latent_dim=2, hidden=(8,), binary=1, real=1)
    rows = gan.beside(x, y)
    assert rows.shape == (6, 8)
    assert rows[1, 4:].tolist() == [1.0, 0.0, 1.0, 0.0]  # values, then whether they are known
    drawn, told = gan.model(50)
    assert drawn.shape == (50, 4)
    assert (told[:, None] == rows[None, :2, 4:]).all(-1).any(1).all()  # of the training data
    run = fit_adversarial(gan, rows, steps=2, batch_size=4, compile=False, progress=False,
                          valid=rows)  # fmt: skip
    assert run.generator.sample(3, y[:3]).shape == (3, 4)
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        gan.beside(x, y + 0.5)
    with pytest.raises(ValueError, match="2 attributes"):
        gan.beside(x, y[:, :1])


def test_the_spectral_bound_holds_and_is_tight():
    """σ <= bound <= σ r^(1/32), r the smaller side; and its critic has slope 1 before the last."""
    for shape in ((5, 20), (64, 9), (1, 7)):
        w = torch.randn(*shape, dtype=torch.float64)
        exact, found = torch.linalg.matrix_norm(w, 2), largest_singular(w)
        assert exact <= found * (1 + 1e-12)
        assert found <= exact * min(shape) ** (1 / 32) * (1 + 1e-12)
    critic = ConvCritic((1, 8, 8), extra=2, width=4)
    assert critic(torch.rand(3, 5, 66)).shape == (3, 5)


def test_a_critic_without_latents_is_refused_for_ali():
    with pytest.raises(ValueError, match="rows of 4 values"):
        fit_adversarial(BiGAN(2, latent_dim=2), torch.randn(50, 2), critic=GANCritic(2),
                        progress=False)  # fmt: skip
