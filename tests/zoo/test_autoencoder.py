import math
import runpy
from pathlib import Path

import pyro
import pytest
import torch
from pair_contract import check_gradient, check_pair
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from inference import fit, log_weights
from zoo.autoencoder import (
    Autoencoder,
    DenoisingAutoencoder,
    LinearAutoencoder,
    SparseAutoencoder,
)
from zoo.vae import VAE


def digits(n=None, dtype=torch.float32):
    return torch.tensor(load_digits().data[:n] / 16.0, dtype=dtype)


@pytest.mark.parametrize(
    ("make", "latents"),
    [
        (lambda: LinearAutoencoder(64, 5), ["z"]),
        (lambda: Autoencoder(64, 3, (16, 8)), ["z"]),
        (lambda: Autoencoder(64, 3, (16,), likelihood="bernoulli"), ["z"]),
        (lambda: SparseAutoencoder(64, 32, sparsity=0.01), ["z"]),
        (lambda: SparseAutoencoder(64, 32, (16,), sparsity=0.01), ["z"]),
        (lambda: DenoisingAutoencoder(64, 8, (16,)), ["noise", "z"]),
        (lambda: DenoisingAutoencoder(64, 8, (16,), noise="mask", level=0.5), ["noise", "z"]),
    ],
)
def test_pair_contract(make, latents):
    check_pair(make(), digits(32), latents)
    check_gradient(make(), digits(32))


@pytest.mark.parametrize("likelihood", ["gaussian-unit", "bernoulli", "gaussian"])
def test_objective_is_the_reconstruction(likelihood):
    x = digits(20, torch.float64)
    pair = Autoencoder(64, 3, (16,), likelihood=likelihood).double()
    weights = log_weights(pair.model, pair.guide, x, particles=2)
    by_hand = pair.likelihood(pair.decoder(pair.encoder(x))).log_prob(x)
    assert torch.equal(weights.log_weight(), by_hand.expand(2, 20))


def test_deterministic_limit_of_the_vae():
    """As the guide's s → 0, E log p(x | z) of a VAE goes to the autoencoder's, linearly in s."""
    x = digits(20, torch.float64)
    vae = VAE(64, latent_dim=3, hidden=(16,), likelihood="gaussian-unit").double()
    pair = Autoencoder(64, 3, (16,)).double()
    pair.decoder.load_state_dict(vae.decoder.state_dict())
    pair.encoder.load_state_dict(vae.encoder.state_dict() | _first_rows(vae.encoder[-1], "2.", 3))
    target = log_weights(pair.model, pair.guide, x).log_weight()
    gaps = []
    for log_s in (-6.0, -8.0):
        with torch.no_grad():
            vae.encoder[-1].weight[3:].zero_()
            vae.encoder[-1].bias[3:].fill_(log_s)
        pyro.set_rng_seed(0)
        gaps.append(log_weights(vae.model, vae.guide, x).model["x"].log_prob - target)
    size = [g.abs().max().item() for g in gaps]
    assert size[1] < 10 * math.exp(-8)
    assert abs(size[1] / size[0] - math.exp(-2)) < 0.01 * math.exp(-2)


def _first_rows(linear, prefix, n):
    return {prefix + k: v[:n] for k, v in linear.state_dict().items()}


def test_linear_is_pca():
    """Trained by gradient, its decoder spans the principal directions: projectors to 1e-3.

    4 components, because there the spectrum has its widest gap: what is left decays at its rate.
    """
    x = digits(dtype=torch.float64)
    x = x - x.mean(0)
    pair = LinearAutoencoder(64, 4).double()
    pair = fit(pair, x, steps=600, lr=0.03, schedule="cosine", progress=False).pair
    components = torch.as_tensor(PCA(4, svd_solver="full").fit(x).components_)
    assert torch.linalg.norm(pair.projector() - components.mT @ components) < 1e-3
    error = ((pair.reconstruct(x) - x) ** 2).sum(-1).mean()
    best = (torch.linalg.svdvals(x)[4:] ** 2).sum() / len(x)
    assert 0 <= error - best < 1e-6 * best  # second order in the projector's error


def test_pca_is_a_stationary_point_of_the_linear_one():
    x = digits(dtype=torch.float64)
    pair = LinearAutoencoder(64, 7).double()
    pca = PCA(7, svd_solver="full").fit(x)
    w, mean = torch.as_tensor(pca.components_), x.mean(0)
    with torch.no_grad():
        pair.encoder[0].weight.copy_(w)
        pair.encoder[0].bias.copy_(-w @ mean)
        pair.decoder[0].weight.copy_(w.mT)
        pair.decoder[0].bias.copy_(mean)
    assert torch.allclose(pair.projector(), w.mT @ w, atol=1e-12)
    loss = -log_weights(pair.model, pair.guide, x).elbo().mean() / len(x)
    grads = torch.autograd.grad(loss, list(pair.parameters()))
    assert max(g.abs().max() for g in grads) < 1e-12  # sums of 1,797 float64 numbers below 10


def test_sparse_code_is_the_best_one():
    """Linear orthonormal decoder: no code has a higher log p(x | z) + log p(z) than the guide's."""
    x = digits(40, torch.float64)
    pair = SparseAutoencoder(64, 10, sparsity=0.3).double()
    w, _ = torch.linalg.qr(torch.randn(64, 10, dtype=x.dtype))
    b = torch.randn(64, dtype=x.dtype)
    with torch.no_grad():
        pair.decoder[0].weight = w * torch.rand(10, dtype=x.dtype)  # lengths do not matter
        pair.decoder[0].bias.copy_(b)
        pair.encoder[0].weight.copy_(w.mT)
        pair.encoder[0].bias.copy_(-w.mT @ b)
    best = log_weights(pair.model, pair.guide, x).log_weight()
    z = pair.encode(x)
    assert 0 < (z == 0).sum() < z.numel()
    for size in (1e-6, 1e-3, 1e-1):
        for _ in range(20):
            moved = z + size * torch.randn_like(z)
            trace = pyro.poutine.trace(pyro.condition(pair.model, {"z": moved})).get_trace(x)
            trace.compute_log_prob()
            other = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
            assert (other <= best + 1e-12 * best.abs()).all()


def test_sparse_prior_is_laplace():
    x = digits(10, torch.float64)
    pair = SparseAutoencoder(64, 16, sparsity=0.25).double()
    term = log_weights(pair.model, pair.guide, x).model["z"].log_prob
    by_hand = 16 * math.log(0.125) - 0.25 * pair.encode(x).abs().sum(-1)
    assert torch.allclose(term, by_hand, rtol=1e-13)


@pytest.mark.parametrize("noise", ["gaussian", "mask"])
def test_noise_cancels(noise):
    """The log weight is log p(x | code of the corrupted x); the noise's density is in neither."""
    x = digits(10, torch.float64)
    pair = DenoisingAutoencoder(64, 5, (8,), noise=noise, level=0.4).double()
    weights = log_weights(pair.model, pair.guide, x, particles=3)
    drawn = weights.guide["noise"].value  # (3, 10, 64)
    assert drawn.shape == (3, 10, 64)
    seen = x + 0.4 * drawn if noise == "gaussian" else x * (drawn > 0.4)
    by_hand = pair.likelihood(pair.decoder(pair.encoder(seen))).log_prob(x)
    assert torch.allclose(weights.log_weight(), by_hand, rtol=1e-12)
    assert torch.equal(pair.encode(x), pair.encoder(x))  # at use, x is seen as it is


def test_best_linear_denoiser_is_the_wiener_filter():
    """At A = S (S + level² I)⁻¹ the expected gradient is zero (5 standard errors); at A = I not."""
    x = torch.randn(200, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    x = x - x.mean(0)
    cov = x.mT @ x / len(x)
    eye = torch.eye(3, dtype=x.dtype)
    scores = []
    for filtered in (cov @ torch.linalg.inv(cov + 0.25 * eye), eye):
        pair = DenoisingAutoencoder(3, 3, (), level=0.5).double()
        with torch.no_grad():
            pair.encoder[0].weight.copy_(filtered)
            pair.decoder[0].weight.copy_(eye)
        draws = []
        for _ in range(20):  # batches of 50 particles
            loss = -log_weights(pair.model, pair.guide, x, particles=50).elbo().mean()
            draws.append(torch.autograd.grad(loss, pair.encoder[0].weight)[0])
        draws = torch.stack(draws)
        scores.append((draws.mean(0) / (draws.std(0) / math.sqrt(len(draws)))).abs().max())
    assert scores[0] < 5 < 50 < scores[1]


def test_shapes_of_codes_and_reconstructions():
    x = digits(6)
    pair = Autoencoder(64, 3, (16,), likelihood="bernoulli")
    assert pair.encode(x).shape == (6, 3)
    out = pair.reconstruct(x)
    assert out.shape == (6, 64) and out.min() > 0 and out.max() < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Autoencoder(64, 0), "latent_dim: expected sizes of at least 1, got 0"),
        (lambda: Autoencoder(64, likelihood="gausian"), "Did you mean 'gaussian'"),
        (lambda: LinearAutoencoder(4, 5), "Give latent_dim <= 4"),
        (lambda: SparseAutoencoder(4, sparsity=0.0), "Use Autoencoder for none"),
        (lambda: DenoisingAutoencoder(4, noise="salt"), "expected gaussian or mask, got 'salt'"),
        (lambda: DenoisingAutoencoder(4, level=-1.0), "expected level > 0"),
        (lambda: DenoisingAutoencoder(4, noise="mask", level=1.5), "expected 0 < level < 1"),
        (lambda: Autoencoder(64).guide(torch.zeros(3, 8, 8)), "Flatten images"),
        (lambda: Autoencoder(64).validate(torch.full((3, 64), math.nan)), "NaN"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_example_writes_its_picture(tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "autoencoders.py"))["main"]
    error = main(steps=10, out=str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").stat().st_size > 10_000
    assert len(error) == 10 and all(math.isfinite(e) for e in error.values())
