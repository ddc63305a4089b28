import itertools
import math
import runpy
from pathlib import Path

import pytest
import torch
from pair_contract import check_pair
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs

from inference import fit, log_weights, optim
from zoo.networks import CodeChain, CodePrior
from zoo.vqvae import VQVAE, perplexity

SMALL = {"codes": 6, "code_dim": 3, "slots": 2, "hidden": (16,)}


def digits(n=None, dtype=torch.float32):
    return torch.tensor(load_digits().data[:n] / 16.0, dtype=dtype)


def k_means(x, start):
    """Identity networks, with the codebook at `start` (C, D)."""
    pair = VQVAE(x.shape[-1], codes=len(start), code_dim=x.shape[-1], slots=1, networks="identity")
    pair = pair.to(x.dtype)
    pair.codebook.data = start.clone()
    return pair


def sklearn_centroids(x, start):
    fitted = KMeans(len(start), init=start.numpy(), n_init=1, tol=0.0, max_iter=1_000).fit(x)
    return torch.as_tensor(fitted.cluster_centers_)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"likelihood": "bernoulli"},
        {"networks": "conv", "image_shape": (1, 8, 8)},
        {"likelihood": "gaussian-diagonal", "act": "tanh"},
    ],
)
def test_pair_contract(options):
    check_pair(VQVAE(64, **SMALL, **options), digits(32), ["z", "k"])


def test_loss_by_hand():
    """Every term, with the nearest code found by brute force."""
    x = digits(20, torch.float64)
    pair = VQVAE(64, **SMALL, commitment=0.4).double()
    pair.codebook.data.normal_()
    z = pair.encoder(x).unflatten(-1, (2, 3))
    squared = ((z[..., None, :] - pair.codebook) ** 2).sum(-1)  # (B, S, C)
    k = squared.argmin(-1)
    assert torch.equal(k, pair.assign(x)) and len(k.unique()) > 1
    penalty = squared.amin(-1).sum(-1)
    log_px = pair.likelihood(pair.decoder(pair.codebook[k].flatten(-2))).log_prob(x)
    by_hand = log_px - 2 * math.log(6) - 1.4 * penalty
    weights = log_weights(pair.model, pair.guide, x, particles=2)
    assert torch.allclose(weights.log_weight(), by_hand.expand(2, 20), rtol=1e-12)
    kl = weights.guide["k"].log_prob - weights.model["k"].log_prob
    assert torch.allclose(kl, torch.full_like(kl, 2 * math.log(6)), rtol=1e-6)


def test_gradients_go_where_the_paper_says():
    """Straight through from decoder to encoder; the codebook's from its penalty alone (eq. 3)."""
    x = digits(20, torch.float64)
    pair = VQVAE(64, **SMALL, commitment=0.4).double()
    pair.codebook.data.normal_()
    weights = log_weights(pair.model, pair.guide, x)
    grads = torch.autograd.grad(-weights.elbo().sum(), list(pair.parameters()))
    z = pair.encoder(x)
    e = pair.codebook[pair.assign(x)].flatten(-2)
    reached = e.detach().requires_grad_()
    log_px = pair.likelihood(pair.decoder(reached)).log_prob(x).sum()
    to_decoder = torch.autograd.grad(-log_px, [reached, *pair.decoder.parameters()])
    towards_z = to_decoder[0] + 2 * 0.4 * (z - e).detach()
    expected = {
        "codebook": torch.autograd.grad(((z.detach() - e) ** 2).sum(), pair.codebook),
        "encoder": torch.autograd.grad(z, list(pair.encoder.parameters()), towards_z),
        "decoder": to_decoder[1:],
    }
    by_name = dict(zip([n for n, _ in pair.named_parameters()], grads))
    for part, values in expected.items():
        ours = [g for name, g in by_name.items() if name.startswith(part)]
        assert len(ours) == len(values)
        for a, b in zip(ours, values):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_loss_bounds_log_px():
    """log p(x) = log Σ_k p(k) p(x | k), summed over all 6² codes, is above the ELBO."""
    x = digits(20, torch.float64)
    pair = VQVAE(64, **SMALL).double()
    pair.codebook.data.normal_()
    every = torch.tensor(list(itertools.product(range(6), repeat=2)))  # (36, 2)
    h = pair.decoder(pair.codebook[every].flatten(-2))
    log_px = pair.likelihood(h[:, None]).log_prob(x).logsumexp(0) - 2 * math.log(6)
    elbo = log_weights(pair.model, pair.guide, x).log_weight()[0]
    assert (elbo < log_px).all()


def test_lloyd_steps_are_k_means():
    """The same centroids as scikit-learn's, from the same start, to float64 rounding."""
    x = digits(dtype=torch.float64)
    start = x[:10]
    pair = k_means(x, start)
    for _ in range(100):
        before = pair.codebook.detach().clone()
        pair.lloyd_step(x)
        if torch.equal(before, pair.codebook):
            break
    target = sklearn_centroids(x, start)
    assert torch.allclose(pair.codebook, target, rtol=0, atol=1e-12)
    assert torch.equal(pair.usage(x) > 0, torch.ones(10, dtype=torch.bool))


def test_centroids_are_where_the_gradient_vanishes():
    x = digits(dtype=torch.float64)
    pair = k_means(x, sklearn_centroids(x, x[:10]))
    loss = -log_weights(pair.model, pair.guide, x).elbo().sum()
    (grad,) = torch.autograd.grad(loss, [pair.codebook])
    assert grad.abs().max() < 1e-10  # sums of 1,797 float64 numbers below 1
    shifted = k_means(x, pair.codebook.detach() + 1e-6)
    loss = -log_weights(shifted.model, shifted.guide, x).elbo().sum()
    assert torch.autograd.grad(loss, [shifted.codebook])[0].abs().max() > 1e-4


def test_training_identity_networks_is_k_means():
    """Descent on the codebook's penalty ends at scikit-learn's centroids of separated clusters."""
    points, labels = make_blobs(600, centers=5, cluster_std=0.4, random_state=0)
    x = torch.tensor(points)
    start = torch.stack([x[labels == i][0] for i in range(5)])
    pair = k_means(x, start)
    run = fit(pair, x, steps=150, optimiser=optim.SGD(0.5), progress=False)
    # A code with a share p of the data contracts by 1 - 2 lr p = 1 - p a step.
    assert torch.allclose(run.pair.codebook, sklearn_centroids(x, start), rtol=0, atol=1e-3)


def test_perplexity():
    assert perplexity(torch.tensor([1.0, 0.0, 0.0])) == 1.0
    assert torch.allclose(perplexity(torch.full((2, 8), 1 / 8)), torch.tensor(8.0))
    pair = VQVAE(64, **SMALL)
    usage = pair.usage(digits(100))
    assert usage.shape == (6,) and torch.allclose(usage.sum(), torch.tensor(1.0))


def test_shapes_of_samples_codes_and_reconstructions():
    x = digits(7)
    pair = VQVAE(64, **SMALL, likelihood="bernoulli")
    assert pair.sample(5).shape == (5, 64)
    assert pair.assign(x).shape == (7, 2) and pair.encode(x).shape == (7, 6)
    assert torch.equal(pair.reconstruct(x), pair.decode(pair.encode(x)))
    assert pair.reconstruct(x).shape == (7, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VQVAE(64, codes=1), "at least 2 entries, got 1"),
        (lambda: VQVAE(64, slots=0), "slots: expected sizes of at least 1"),
        (lambda: VQVAE(64, commitment=-0.1), "expected β >= 0"),
        (lambda: VQVAE(60, networks="identity"), "Give slots=1, code_dim=60"),
        (lambda: VQVAE(64, networks="conv"), "image_shape"),
        (lambda: VQVAE(64, networks="resnet"), "expected mlp, conv or residual"),
        (lambda: VQVAE(64).model(torch.zeros(3, 63)), "rows of data_dim = 64"),
        (lambda: VQVAE(64, likelihood="bernoulli").assign(torch.full((2, 64), 3.0)), "Bernoulli"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_example_writes_its_picture(tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "vq_digits.py"))["main"]
    run = main(steps=10, out=str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").stat().st_size > 10_000
    assert run.pair.codes == 32


def test_the_learned_prior_of_codes_sums_to_one_and_draws_as_it_says():
    """Over all 3² codes; each slot's logits see only the slots before it."""
    torch.manual_seed(0)
    prior = CodePrior(3, width=8, layers=2)
    p = CodeChain(prior, 2)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    masses = p.log_prob(every).exp().detach()
    assert abs(masses.sum() - 1) < 1e-5
    drawn = p.sample((5_000,))
    shares = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9) / 5_000
    assert ((shares - masses).abs() < 5 * (masses / 5_000).sqrt()).all()
    k = torch.randint(3, (1, 7))
    for s in range(7):
        other = k.clone()
        other[:, s:] = (other[:, s:] + 1) % 3
        torch.testing.assert_close(prior(k)[:, : s + 1], prior(other)[:, : s + 1])


def test_spatial_codes_with_a_learned_prior_are_a_pair():
    vq = VQVAE(64, codes=5, code_dim=3, networks="spatial", image_shape=(1, 8, 8), width=4,
               prior="autoregressive")  # fmt: skip
    x = torch.rand(6, 64)
    assert vq.assign(x).shape == (6, 4) and vq.sample(2).shape == (2, 64)
    weights = log_weights(vq.model, vq.guide, x, particles=2)
    expected = CodeChain(vq.prior, 4).log_prob(vq.assign(x))
    torch.testing.assert_close(weights.model["k"].log_prob.squeeze()[0], expected)
    with pytest.raises(ValueError, match="multiples of 4, got 6 x 6"):
        VQVAE(36, networks="spatial", image_shape=(1, 6, 6))


def test_codes_begin_at_encodings_and_unused_ones_begin_again():
    vq = VQVAE(2, codes=4, code_dim=2, slots=1, networks="identity")
    x = torch.randn(50, 2)
    vq.initialise(x)
    assert (torch.cdist(vq.codebook, x).min(1).values == 0).all()
    with torch.no_grad():
        vq.codebook[2] = 1e3
    again = vq.restarted(x)
    kept = torch.tensor([0, 1, 3])
    assert torch.equal(again[kept], vq.codebook[kept]) and torch.cdist(again[2:3], x).min() == 0
    with pytest.raises(ValueError, match="at most 3"):
        vq.initialise(x[:3])
