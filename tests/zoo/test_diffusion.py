import math
import runpy
from pathlib import Path

import pyro
import pytest
import torch
from pair_contract import check_gradient, check_pair

from inference import elbo, fit, log_weights
from zoo.diffusion import (
    ConditionalDiffusion,
    Denoiser,
    Diffusion,
    DiffusionHierarchy,
    log_snr_schedule,
)

BOTH = pytest.mark.parametrize("cls", [Diffusion, DiffusionHierarchy])


def ring(n=16):
    angle = torch.linspace(0, 6, n)
    return 2 * torch.stack([angle.cos(), angle.sin()], -1)


def optimal(cls, timesteps, scale, dim=1, **options):
    """The best denoiser of N(0, scale² I): a network that is zero."""
    pair = cls(dim, timesteps, hidden=(4,), data_scale=scale, **options).double()
    for p in pair.denoiser.network[-1].parameters():
        torch.nn.init.zeros_(p)
    return pair


def exact_elbo(pair, x):
    """No Monte Carlo: with a linear denoiser each term is quadratic in each coordinate's noise.

    A standard normal has the mean and the variance of a fair ±1.
    """
    ones = torch.ones(pair.timesteps, *x.shape, dtype=x.dtype)
    return (pair.terms(x, ones).elbo() + pair.terms(x, -ones).elbo()) / 2


def exact_gap(pair, scale):
    """E[log p(x)] - E[ELBO] over x ~ N(0, scale²), by the same ±1: nats."""
    x = scale * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    log_px = -0.5 - math.log(scale) - 0.5 * math.log(2 * math.pi)
    return (log_px - exact_elbo(pair, x).mean()).item()


def standard_error(draws):
    return draws.std() / math.sqrt(draws.numel())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("draws", [1, 3])
def test_pair_contract(schedule, draws):
    make = lambda: Diffusion(  # noqa: E731
        2, 6, hidden=(16, 8), schedule=schedule, fourier=draws - 1, draws=draws
    )
    check_pair(make(), ring(), ["noise_1", "time", "noise"])
    check_gradient(make(), ring())


def test_pair_contract_of_the_hierarchy():
    make = lambda: DiffusionHierarchy(2, 4, hidden=(16, 8))  # noqa: E731
    check_pair(make(), ring(), ["z_1", "z_2", "z_3", "z_4"])
    check_gradient(make(), ring())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_encoder_only_adds_noise(schedule):
    """Chained, q(z_t | z_{t-1}) gives q(z_t | x) = N(α_t x, σ_t²) at every t."""
    pair = DiffusionHierarchy(1, 9, schedule=schedule).double()
    x = torch.tensor([[1.7]], dtype=torch.float64)
    sites = pyro.poutine.trace(pair.guide).get_trace(x).nodes
    mean, variance = x, torch.zeros((), dtype=x.dtype)
    for t in range(1, 10):
        step = sites[f"z_{t}"]["fn"].base_dist
        before = x if t == 1 else sites[f"z_{t - 1}"]["value"]
        factor = step.mean / before
        mean, variance = factor * mean, factor**2 * variance + step.variance
        alpha2 = torch.sigmoid(pair.log_snr[t - 1])
        assert torch.allclose(mean, alpha2.sqrt() * x, rtol=1e-12)
        assert torch.allclose(variance, 1 - alpha2, rtol=1e-12)


def test_steps_are_the_divergences_of_the_decoder():
    """Each step's term is a KL of two normals: q(z_s | z_t, x) by Bayes' rule, and the decoder."""
    pair = DiffusionHierarchy(2, 5, hidden=(8,), schedule="cosine").double()
    x, noise = ring(3).double(), torch.randn(5, 3, 2, dtype=torch.float64)
    terms = pair.terms(x, noise)
    alpha2 = torch.sigmoid(pair.log_snr)
    for t in range(2, 6):
        a2, a2_before = alpha2[t - 1], alpha2[t - 2]
        z = a2.sqrt() * x + (1 - a2).sqrt() * noise[t - 1]
        ratio2 = a2 / a2_before
        step = 1 - a2 - ratio2 * (1 - a2_before)  # variance of q(z_t | z_s)
        precision = 1 / (1 - a2_before) + ratio2 / step
        mean = (a2_before.sqrt() * x / (1 - a2_before) + ratio2.sqrt() * z / step) / precision
        q = torch.distributions.Normal(mean, precision.rsqrt())
        p = pair._decode(z, t - 1).base_dist
        kl = torch.distributions.kl_divergence(q, p).sum(-1)
        assert torch.allclose(terms.steps[t - 2], kl, rtol=1e-9)
    top = torch.distributions.Normal(alpha2[-1].sqrt() * x, (1 - alpha2[-1]).sqrt())
    unit = torch.distributions.Normal(torch.zeros_like(x), 1.0)
    kl = torch.distributions.kl_divergence(top, unit).sum(-1)
    assert torch.allclose(terms.prior, kl, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.7, 3.0])
def test_elbo_rises_to_log_px(scale):
    """N(0, s²) data with the best denoiser: the gap falls in T, in the end as 1 / (T - 1).

    The bound's steps are a sum of (SNR_s - SNR_t) mmse(SNR_t) / 2 for the integral of mmse over
    SNR, mmse(γ) = s² / (1 + γ s²) (Guo et al. 2005, arXiv:cs/0412108, eq. 1).
    """
    gaps = {}
    for timesteps in (4, 16, 64, 256, 1024):
        pair = optimal(Diffusion, timesteps, scale)
        snr = pair.log_snr.exp()
        steps = 0.5 * ((snr[:-1] - snr[1:]) * scale**2 / (1 + snr[1:] * scale**2)).sum()
        integral = 0.5 * torch.log((1 + snr[0] * scale**2) / (1 + snr[-1] * scale**2))
        gaps[timesteps] = exact_gap(pair, scale)
        # What the integral leaves out: p(x | z_1) ∝ q(z_1 | x) has no prior, z_T is not yet noise.
        prior = pair.terms(
            torch.tensor([[scale]], dtype=torch.float64), torch.zeros(timesteps, 1, 1)
        )
        ends = 0.5 * (torch.log1p(1 / (snr[0] * scale**2)) - torch.log1p(snr[-1] * scale**2))
        assert abs(gaps[timesteps] - (steps - integral + ends + prior.prior)) < 1e-9
    values = list(gaps.values())
    assert values == sorted(values, reverse=True) and values[-1] > 0
    # With λ in equal steps Δ = 20 / (T - 1), the gap's first order is Δ / 4 times the integral of
    # (γ s² / (1 + γ s²))² over λ, in closed form; the next order is Δ / 2 of it or less.
    f = lambda lam: math.log1p(scale**2 * math.exp(lam)) + 1 / (1 + scale**2 * math.exp(lam))  # noqa: E731
    for timesteps in (256, 1024):
        delta = 20 / (timesteps - 1)
        first = delta / 4 * (f(10) - f(-10))
        assert abs(gaps[timesteps] - first) < delta / 2 * first


def test_cosine_elbo_rises_as_well():
    gaps = [exact_gap(optimal(Diffusion, t, 1.0, schedule="cosine"), 1.0) for t in (16, 64, 256)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] > 0


def test_sampled_times_are_unbiased_for_the_bound():
    """The mean log weight is the exact T-step bound, datum by datum, within 4 standard errors."""
    x = torch.tensor([[0.3, -1.0], [2.5, 0.1]], dtype=torch.float64)
    for draws in (1, 3):
        pair = optimal(Diffusion, 5, 1.3, 2, draws=draws, log_snr_max=4.0, log_snr_min=-4.0)
        weights = log_weights(pair.model, pair.guide, x, particles=20_000).log_weight().squeeze()
        error = weights.std(0) / math.sqrt(20_000)
        assert ((weights.mean(0) - exact_elbo(pair, x)).abs() < 4 * error).all()
        assert (error < 0.02 * exact_elbo(pair, x).abs()).all()  # a lost factor would be 50 s.e.


def test_sampled_times_are_unbiased_for_any_network():
    """The same against the bound of all terms, both by Monte Carlo, and for the gradient."""
    pair = Diffusion(2, 5, hidden=(8,)).double()
    x = ring(2).double()
    with torch.no_grad():
        sampled = log_weights(pair.model, pair.guide, x, particles=20_000).elbo()
        full = pair.terms(x, torch.randn(5, 20_000, *x.shape, dtype=x.dtype)).elbo().sum(-1)
    error = (standard_error(sampled) ** 2 + standard_error(full) ** 2).sqrt()
    assert (sampled.mean() - full.mean()).abs() < 4 * error


def test_the_hierarchy_has_the_same_bound():
    """E[log weight] of all T latents = the sum of terms; E[weight] = p(x), in closed form."""
    scale, x = 1.3, torch.tensor([[0.4], [-2.0]], dtype=torch.float64)
    pair = optimal(DiffusionHierarchy, 12, scale, log_snr_max=4.0, log_snr_min=-4.0)
    weights = log_weights(pair.model, pair.guide, x, particles=20_000).log_weight()
    error = weights.std(0) / math.sqrt(20_000)
    assert ((weights.mean(0) - exact_elbo(pair, x)).abs() < 4 * error).all()
    log_px = torch.distributions.Normal(0.0, marginal_variance(pair).sqrt()).log_prob(x[:, 0])
    ratio = (weights - log_px).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / math.sqrt(20_000)).all()
    assert (exact_elbo(pair, x) < log_px).all()


def marginal_variance(pair):
    """Var x under the model, where each step is z_s = a z_t + noise: 1-D, linear denoiser."""
    variance = torch.ones((), dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    for t in range(pair.timesteps - 1, 0, -1):
        step = pair._decode(one, t).base_dist
        variance = step.mean.squeeze() ** 2 * variance + step.variance.squeeze()
    head = pair._head(one).base_dist
    return head.mean.squeeze() ** 2 * variance + head.variance.squeeze()


@BOTH
def test_ancestral_samples(cls):
    pair = optimal(cls, 12, 1.3)
    x = pair.sample(20_000).squeeze()
    variance = marginal_variance(pair)
    assert x.mean().abs() < 4 * (variance / 20_000).sqrt()
    assert (x.var() - variance).abs() < 4 * variance * math.sqrt(2 / 20_000)
    path = pair.reverse(3)
    assert path.shape == (13, 3, 1)


def test_hierarchy_shares_the_denoiser():
    pair = Diffusion(2, 7, hidden=(8,), schedule="cosine", log_snr_max=6.0)
    other = pair.hierarchy()
    assert other.denoiser is pair.denoiser and torch.equal(other.log_snr, pair.log_snr)
    noise = torch.randn(7, 16, 2)
    assert torch.equal(other.terms(ring(), noise).elbo(), pair.terms(ring(), noise).elbo())


def test_multi_sample_bounds_are_refused():
    """A logarithm of a mean of weights with drawn steps is no bound on log p(x)."""
    pair = Diffusion(2, 5, hidden=(8,))
    with pytest.raises(ValueError, match="steps"):
        elbo.IWAE(4).loss(pair.model, pair.guide, ring())
    other = pair.hierarchy()
    assert math.isfinite(elbo.IWAE(4).loss(other.model, other.guide, ring()))


@pytest.mark.slow
def test_training_improves_the_bound():
    x = ring(64)
    pair = Diffusion(2, 64, hidden=(32, 32), log_snr_max=4.0, log_snr_min=-6.0)
    run = fit(pair, x, steps=400, lr=1e-2, progress=False)
    before, after = (p.elbo(x, draws=50).mean() for p in (pair, run.pair))
    # A Gaussian of the ring's variance, 2 in each direction, has -(1 + log(2π · 2)) = -3.53 nats.
    assert after > -3.53 > before


def test_waves_are_of_the_standardised_place():
    """Shifted by the longest wavelength, 4 standard deviations, the waves of z are the same."""
    denoiser = Denoiser(1, (), data_scale=3.0, fourier=4).double()
    with torch.no_grad():
        denoiser.network[0].weight[:, 0] = 0  # what is left of z are its waves
    log_snr, z = torch.tensor([0.3], dtype=torch.float64), torch.randn(1, 1, dtype=torch.float64)
    alpha2 = log_snr.sigmoid()
    v = 9 * alpha2 + 1 - alpha2
    shifted = denoiser(z + 4 * v.sqrt(), log_snr) - denoiser(z, log_snr)
    torch.testing.assert_close(shifted, (4 * 9 * alpha2.sqrt() / v.sqrt())[:, None])


def test_schedules():
    for schedule in ("linear", "cosine"):
        log_snr = log_snr_schedule(9, schedule, 8.0, -6.0)
        assert (log_snr.diff() < 0).all()
        assert torch.allclose(log_snr[[0, -1]], torch.tensor([8.0, -6.0]))
    alpha = torch.sigmoid(log_snr_schedule(101, "cosine", 20.0, -20.0)).sqrt()
    u = torch.linspace(0, 1, 101)  # the ends are within e^-10 of 0 and 1
    assert torch.allclose(alpha, torch.cos(math.pi / 2 * u), atol=1e-4)


@pytest.mark.parametrize("fourier", [0, 3])
def test_denoiser_starts_near_the_best_linear_one(fourier):
    """|x̂ - α s² z / v| is at most the posterior deviation s σ / √v times the network's output."""
    denoiser = Denoiser(2, (8,), data_scale=2.0, fourier=fourier)
    z, log_snr = torch.randn(5, 2), torch.linspace(-8, 8, 5)
    alpha2 = torch.sigmoid(log_snr)[:, None]
    v = 4 * alpha2 + 1 - alpha2
    linear = 4 * alpha2.sqrt() * z / v
    unit = (denoiser(z, log_snr) - linear) / (2 * (1 - alpha2).sqrt() / v.sqrt())
    assert unit.abs().max() < 5 and unit.abs().max() > 1e-3


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 1}, "expected T >= 2, got 1"),
        ({"schedule": "quadratic"}, "expected linear or cosine, got 'quadratic'"),
        ({"log_snr_max": -3.0, "log_snr_min": 3.0}, "expected max > min"),
        ({"data_scale": 0.0}, "data's standard deviation"),
        ({"hidden": (8, 0)}, "sizes of at least 1"),
        ({"fourier": -1}, "fourier: expected 0 octaves or more, got -1"),
    ],
)
def test_bad_options(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(2, **options)


@BOTH
def test_bad_input(cls):
    pair = cls(2, 4)
    for call in (pair.model, pair.guide, pair.elbo, pair.validate):
        with pytest.raises(ValueError, match="rows of data_dim = 2"):
            call(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="NaN"):
        pair.validate(torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match="expected 4 draws along the first axis"):
        pair.terms(torch.zeros(5, 2), torch.zeros(3, 5, 2))
    with pytest.raises(ValueError, match="at least one draw"):
        pair.sample(0)
    with pytest.raises(ValueError, match="expected 1 to 3"):
        Diffusion(2, 4, draws=4)


@pytest.mark.slow
def test_example_writes_its_picture(tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "diffusion_2d.py"))["main"]
    run = main(steps=10, out=str(tmp_path / "out.png"), draws=1)
    assert (tmp_path / "out.png").stat().st_size > 10_000
    assert run.pair.sample(5).shape == (5, 2)


class OfLabels(torch.nn.Module):
    """The best denoiser where x | y ~ N(3 (−1)^y, 1), y even odds or unknown."""

    def forward(self, z, log_snr, told):
        alpha, sigma2 = torch.sigmoid(log_snr).sqrt()[..., None], torch.sigmoid(-log_snr)[..., None]
        sign = (told[..., :1] - told[..., 1:]).to(z.dtype)  # 0 where unknown
        sign = sign + (1 - sign.abs()) * torch.tanh(3 * alpha * z)  # alpha² + sigma² = 1
        return sigma2 * 3 * sign + alpha * z


def test_under_a_label_the_bound_is_that_of_its_gaussian():
    pair = ConditionalDiffusion(1, classes=2, timesteps=64, hidden=(4,)).double()
    pair.denoiser = OfLabels()
    ones = torch.ones(64, 4, 1, dtype=torch.float64)
    x, y = torch.tensor([[3.0], [2.0], [-3.5], [-1.0]]).double(), torch.tensor([0, 0, 1, 1])
    mean = torch.tensor([[3.0], [3.0], [-3.0], [-3.0]]).double()
    plain = optimal(Diffusion, 64, 1.0).terms(x - mean, ones)
    torch.testing.assert_close(pair.under(y).terms(x, ones).steps, plain.steps)
    assert torch.isfinite(pair.elbo(x, y)).all()


def test_guidance_moves_from_without_to_with_the_condition():
    torch.manual_seed(0)
    pair = ConditionalDiffusion(1, classes=2, timesteps=64, hidden=(4,))
    pair.denoiser = OfLabels()
    given = pair.sample(1_000, 0)
    assert abs(given.mean() - 3) < 5 * standard_error(given)
    without = pair.sample(1_000, 0, guidance=0.0)
    assert abs(without.sign().mean()) < 5 / math.sqrt(1_000)
    guess = [
        pair.under(torch.tensor(1), w).denoiser(torch.ones(2, 1), torch.zeros(2))
        for w in (0.0, 1.0, 3.0)
    ]
    torch.testing.assert_close(guess[2], guess[0] + 3 * (guess[1] - guess[0]))


def test_conditions_of_diffusion_are_hidden_sometimes_and_checked():
    x = torch.randn(64, 2)
    pair = ConditionalDiffusion(2, timesteps=4, hidden=(8,), binary=1, real=1, hide=0.5)
    y = torch.stack([torch.ones(64), torch.randn(64)], 1)
    with pyro.plate("data", 64):
        known = pair._shown(x, y)[:, 2]  # one draw for each row
    assert abs(known.mean() - 0.5) < 5 * 0.5 / math.sqrt(64)
    weights = log_weights(pair.model, pair.guide, x, y, particles=3)
    assert torch.isfinite(weights.log_weight()).all()
    with pytest.raises(ValueError, match="2 attributes"):
        pair.validate(x, y[:, :1])
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        pair.validate(x, y + 0.5)
    with pytest.raises(ValueError, match="hide"):
        ConditionalDiffusion(2, hide=1.0)


def test_a_u_net_denoises_images_and_refuses_sides_it_cannot_halve():
    pair = Diffusion(64, 8, networks="unet", image_shape=(1, 8, 8), width=4)
    assert pair.sample(2).shape == (2, 64) and pair.elbo(torch.rand(3, 64)).shape == (3,)
    z, zero = torch.randn(5, 64), torch.zeros(5)  # it begins at the best denoiser of N(0, I)
    torch.testing.assert_close(pair.denoiser(z, zero), torch.sigmoid(zero).sqrt()[:, None] * z)
    with pytest.raises(ValueError, match="multiples of 4, got 7 x 7"):
        Diffusion(49, networks="unet", image_shape=(1, 7, 7))


def test_the_bound_is_judged_in_pieces(monkeypatch):
    pair, x = optimal(Diffusion, 16, 1.0), torch.randn(30, 1).double()
    whole = pair.elbo(x, 100)
    monkeypatch.setattr("zoo.diffusion.process.PIECE", 7 * 16)
    pieces = pair.elbo(x, 100)
    assert whole.shape == pieces.shape == (30,)
    assert abs(whole.mean() - pieces.mean()) < 5 * (whole - pieces).std() / math.sqrt(30)
