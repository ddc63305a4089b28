import math

import pyro
import pytest
import torch
from pair_contract import Labelled, check_pair
from torch import nn
from truths import ppca, ppca_log_likelihood

from inference import elbo, fit, log_weights
from zoo.data import load
from zoo.likelihoods import LIKELIHOODS, GaussianLikelihood
from zoo.vae import VAE, ConditionalVAE

B, D, L = 6, 5, 3
SMALL = {"latent_dim": L, "hidden": (7,)}
VARIANTS = {
    "unit": {"encoder_variance": "unit"},
    "linear": {"hidden": (), "likelihood": "gaussian"},
    "gaussian-unit": {"likelihood": "gaussian-unit", "act": "softplus"},
    "gaussian-diagonal": {"likelihood": "gaussian-diagonal", "act": "relu"},
    "laplace": {"likelihood": "laplace"},
    "instance": {"likelihood": GaussianLikelihood("learned")},
    "vamp": {"prior": "vamp", "pseudo_inputs": 4},
    "flow-prior": {"prior": "flow"},
    "flow-guide": {"guide_flow": 2},
    "logistic-mixture": {"likelihood": "logistic-mixture"},
    "residual": {"networks": "residual", "image_shape": (1, 5, 1)},
    "conv": {"networks": "conv", "image_shape": (1, 5, 1)},
    "conv-diagonal": {
        "networks": "conv", "image_shape": (5, 1, 1), "likelihood": "gaussian-diagonal"
    },
}  # fmt: skip


def data(n=B, d=D):
    return torch.rand(n, d).round(), torch.arange(n) % 4


@pytest.mark.parametrize("variant", [{}, *VARIANTS.values()], ids=["default", *VARIANTS])
def test_pair(variant):
    pair = VAE(D, **{**SMALL, **variant})
    for p in [*pair.warps.parameters(), *pair.turns.parameters()]:
        p.data += 0.1 * torch.randn_like(p)  # at the identity, the first layers have no gradient
    check_pair(pair, data()[0], ["z"])


@pytest.mark.parametrize("variant", ["default", "unit", "conv", "conv-diagonal"])
def test_conditional_pair(variant):
    x, y = data()
    pair = ConditionalVAE(D, classes=4, **{**SMALL, **VARIANTS.get(variant, {})})
    check_pair(Labelled(pair, y), x, ["z"])


def test_float64():
    x, y = data()
    check_pair(VAE(D, **SMALL).double(), x.double(), ["z"])
    check_pair(Labelled(ConditionalVAE(D, 4, **SMALL).double(), y), x.double(), ["z"])


def test_log_weight_is_the_formula():
    """log p(x, z) - log q(z | x), written out in torch."""
    x, y = data()
    for pair, args in [(VAE(D, **SMALL), (x,)), (ConditionalVAE(D, 4, **SMALL), (x, y))]:
        pair = pair.double()
        args = (x.double(), *args[1:])
        weights = log_weights(pair.model, pair.guide, *args, particles=2)
        z = weights.guide["z"].value
        joined = [torch.eye(4).double()[v] for v in args[1:]]
        h = pair.encoder(torch.cat([args[0], *joined], -1))
        mean, scale = h[:, :L], h[:, L:].exp()
        logits = pair.decoder(torch.cat([z, *(v.expand(2, -1, -1) for v in joined)], -1))
        log_px = -nn.functional.softplus(torch.where(x == 1, -logits, logits)).sum(-1)
        log_pz = -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)
        log_qz = -0.5 * (((z - mean) / scale) ** 2 + math.log(2 * math.pi)).sum(-1)
        expected = log_px + log_pz - (log_qz - scale.log().sum(-1))
        torch.testing.assert_close(weights.log_weight(), expected, rtol=1e-12, atol=1e-12)


def test_flows_begin_as_the_plain_vae():
    x, _ = data()
    plain = VAE(D, **SMALL)
    for options in ({"prior": "flow"}, {"guide_flow": 2}, {"prior": "flow", "guide_flow": 1}):
        pair = VAE(D, **SMALL, **options)
        pair.load_state_dict(plain.state_dict(), strict=False)
        found = []
        for vae in (plain, pair):
            pyro.set_rng_seed(1)
            found.append(log_weights(vae.model, vae.guide, x, particles=3).log_weight())
        torch.testing.assert_close(*found)
        assert torch.equal(pair.encode(x), plain.encode(x))


def test_the_vamp_prior_is_the_mean_of_its_guides():
    pair, z = VAE(D, **SMALL, prior="vamp", pseudo_inputs=2).double(), torch.randn(4, L).double()
    h = pair.encoder(pair.pseudo)
    each = torch.distributions.Normal(h[:, :L], h[:, L:].exp()).log_prob(z[:, None]).sum(-1)
    torch.testing.assert_close(pair.prior().log_prob(z), each.logsumexp(-1) - math.log(2))
    # one pseudo-input, and rows equal to it: the divergence from the prior is zero
    one = VAE(D, **SMALL, prior="vamp", pseudo_inputs=1).double()
    x = one.pseudo.detach().expand(B, D)
    weights = log_weights(one.model, one.guide, x, particles=2)
    torch.testing.assert_close(weights.model["z"].log_prob, weights.guide["z"].log_prob)


def test_a_flow_guide_s_density_is_that_of_its_draws():
    pair, (x, _) = VAE(D, **SMALL, guide_flow=2).double(), data()
    for p in pair.turns.parameters():
        p.data += 0.3 * torch.randn_like(p)
    x = x.double()
    q = log_weights(pair.model, pair.guide, x).guide["z"]
    h = pair.encoder(x)
    z, log_det = q.value.reshape(B, L), 0.0
    for turn in reversed(pair.turns):
        z, ladj = turn.inv_and_ladj(z, h)
        log_det = log_det + ladj
    base = torch.distributions.Normal(h[:, :L], h[:, L:].exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(q.log_prob[0], base - log_det)


def test_modules_of_one_s_own():
    encoder, decoder = nn.Linear(D, 2 * L), nn.Sequential(nn.Linear(L, 4), nn.Linear(4, D))
    pair = VAE(D, latent_dim=L, encoder=encoder, decoder=decoder)
    assert pair.encoder is encoder and pair.decoder is decoder
    check_pair(pair, data()[0], ["z"])
    for bad, words in [
        ({"encoder": nn.Linear(D, L)}, "encoder: expected a module .* came"),
        ({"decoder": nn.Linear(L + 1, D)}, "decoder: expected a module"),
        ({"prior": "student"}, "expected normal, vamp or flow"),
        ({"guide_flow": -1}, "guide_flow: expected 0 layers"),
        ({"pseudo_inputs": 0}, "pseudo_inputs: expected"),
    ]:
        with pytest.raises(ValueError, match=words):
            VAE(D, latent_dim=L, **bad)


def test_linear_vae_with_the_weights_of_probabilistic_pca_has_its_likelihood():
    """The guide is then the exact posterior: every log weight is log p(x), for any z."""
    x = load().train[:300].double()
    w, mean, noise = ppca(x, L)
    vae = VAE(64, latent_dim=L, hidden=(), likelihood="gaussian").double()
    precision = torch.eye(L) + w.T @ w / noise  # diagonal
    with torch.no_grad():
        vae.decoder[0].weight.copy_(w)
        vae.decoder[0].bias.copy_(mean)
        vae.likelihood.log_scale.copy_(noise.log() / 2)
        project = torch.linalg.solve(precision, w.T / noise)
        vae.encoder[0].weight.copy_(torch.cat([project, torch.zeros(L, 64)]))
        vae.encoder[0].bias.copy_(torch.cat([-project @ mean, -precision.diag().log() / 2]))
    weights = log_weights(vae.model, vae.guide, x, particles=4).log_weight()  # (K, N)
    assert (weights - weights[0]).abs().max() < 1e-9
    assert abs(weights.mean() - ppca_log_likelihood(x, L)) < 1e-9


@pytest.mark.slow
def test_linear_vae_reaches_probabilistic_pca():
    """Within 0.5 % of the closed form, and never above it."""
    x = load().train
    truth = ppca_log_likelihood(x.double(), 8)
    vae = VAE(64, latent_dim=8, hidden=(), likelihood="gaussian")
    options = {"steps": 2_000, "lr": 2e-2, "schedule": "cosine", "progress": False}
    run = fit(vae, x, elbo=elbo.MeanField(), **options)
    draws = (
        log_weights(run.pair.model, run.pair.guide, x, particles=100).log_weight().mean(1)
    )  # (K,)
    found, error = draws.mean(), draws.std() / math.sqrt(len(draws))
    assert 0.995 * truth + 5 * error < found < truth + 5 * error


def test_a_decoder_that_ignores_the_label_is_the_vae():
    x, y = data()
    vae, conditional = VAE(D, **SMALL), ConditionalVAE(D, 4, **SMALL)
    state = vae.state_dict()
    for name in ("encoder.0.weight", "decoder.0.weight"):
        state[name] = torch.cat([state[name], torch.zeros(7, 4)], -1)
    conditional.load_state_dict(state)
    pyro.set_rng_seed(1)
    expected = log_weights(vae.model, vae.guide, x, particles=3).log_weight()
    pyro.set_rng_seed(1)
    found = log_weights(conditional.model, conditional.guide, x, y, particles=3).log_weight()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize(
    "spec", [s for s in LIKELIHOODS if s not in ("categorical", "colour-mixture")]
)
def test_convolutional_networks_give_images(size, spec):
    d = size**2
    x, y = torch.randint(0, 256, (B, d)) / 255, torch.arange(B) % 3
    conv = {"networks": "conv", "image_shape": (1, size, size), "likelihood": spec}
    for pair, condition in [(VAE(d, **conv), ()), (ConditionalVAE(d, 3, **conv), (y,))]:
        assert pair.reconstruct(x, *condition).shape == (B, d)
        weights = log_weights(pair.model, pair.guide, x, *condition, particles=2)
        assert torch.isfinite(weights.log_weight()).all()


def test_convolutions_see_the_label_as_constant_planes():
    conv = {"networks": "conv", "image_shape": (2, 3, 4)}
    pair, x, y = ConditionalVAE(24, classes=3, **conv), torch.rand(2, 24), torch.tensor([2, 0])
    planes = pair._join(x, y, pair.copies).reshape(2, 5, 3, 4)
    assert torch.equal(planes[:, :2], x.reshape(2, 2, 3, 4))
    expected = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert torch.equal(planes[:, 2:], expected[:, :, None, None].expand(2, 3, 3, 4))


def test_encode_decode_reconstruct_sample():
    x, _ = data()
    vae = VAE(D, **SMALL)
    z = vae.encode(x)
    assert z.shape == (B, L) and not z.requires_grad
    torch.testing.assert_close(vae.decode(z), vae.reconstruct(x))
    assert vae.decode(torch.randn(2, 4, L)).shape == (2, 4, D)
    draws = vae.sample(10)
    assert draws.shape == (10, D) and set(draws.unique().tolist()) <= {0.0, 1.0}
    assert VAE(D, likelihood="gaussian").double().sample(3).dtype == torch.float64


def test_samples_are_the_model_s():
    """A linear Gaussian model's draws have mean b and covariance W Wᵀ + s² I."""
    vae = VAE(2, latent_dim=1, hidden=(), likelihood="gaussian")
    with torch.no_grad():
        vae.decoder[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        vae.decoder[0].bias.copy_(torch.tensor([3.0, -1.0]))
        vae.likelihood.log_scale.fill_(math.log(0.5))
    n = 20_000
    x = vae.sample(n)
    expected = torch.tensor([[1.25, 2.0], [2.0, 4.25]])
    assert ((x.mean(0) - torch.tensor([3.0, -1.0])).abs() < 5 * (expected.diag() / n).sqrt()).all()
    variances = expected.diag()[:, None] * expected.diag() + expected**2  # of n cov_ij (Isserlis)
    assert ((x.T.cov() - expected).abs() < 5 * (variances / n).sqrt()).all()


def test_conditional_sample_and_reconstruct():
    x, y = data()
    pair = ConditionalVAE(D, classes=4, **SMALL)
    with torch.no_grad():  # the label y makes pixel y black and all others white
        for p in pair.decoder.parameters():
            p.zero_()
        pair.decoder[0].weight[:4, L:] = torch.eye(4)
        pair.decoder[2].weight[:4, :4] = 2e3 * torch.eye(4)
        pair.decoder[2].bias.fill_(-1e3)
    assert pair.sample(3, y=2).tolist() == [[0, 0, 1, 0, 0]] * 3
    assert pair.sample(2, y=torch.tensor([3, 0])).argmax(-1).tolist() == [3, 0]
    assert pair.sample(6).argmax(-1).tolist() == [0, 1, 2, 3, 0, 1]
    assert pair.decode(torch.randn(2, L), 1).argmax(-1).tolist() == [1, 1]
    assert pair.reconstruct(x, y).argmax(-1).tolist() == y.tolist()
    for wrong in (4, -2, torch.tensor([0, 7])):
        with pytest.raises(ValueError, match="y: expected labels 0 to 3"):
            pair.sample(2, y=wrong)
    with pytest.raises(ValueError, match=r"one label or 2 of them, got shape \(3,\)"):
        pair.sample(2, y=torch.tensor([0, 1, 2]))


def test_published_net_has_the_published_sizes():
    vae = VAE(784, latent_dim=50, hidden=(200, 200), act="tanh")
    widths = [m.weight.shape[0] for m in vae.modules() if isinstance(m, nn.Linear)]
    assert widths == [200, 200, 100, 200, 200, 784]


@pytest.mark.parametrize("spec", ["bernoulli", "gaussian"])
def test_data_that_the_likelihood_cannot_explain(spec):
    x, y = data()
    vae, conditional = VAE(D, likelihood=spec), ConditionalVAE(D, 4, likelihood=spec)
    vae.validate(x)
    conditional.validate(x, y)
    for bad in [x * float("nan")] if spec == "gaussian" else [x * 16, x - 0.5, x / 0]:
        for call in (vae.validate, vae.encode, vae.reconstruct):
            with pytest.raises(ValueError, match=r"^x: "):
                call(bad)
        with pytest.raises(ValueError, match=r"^x: "):
            conditional.reconstruct(bad, y)


def test_mistakes_in_a_call():
    x, y = data()
    vae, conditional = VAE(D), ConditionalVAE(D, 4)
    for bad in (x[0], x[:, :3], x.reshape(B, D, 1)):
        for call in (vae.model, vae.guide, vae.validate):
            with pytest.raises(ValueError, match=r"x: expected rows of data_dim = 5"):
                call(bad)
    for bad in (y[:2], y[:, None], y.float()):
        for call in (conditional.model, conditional.guide, conditional.validate):
            with pytest.raises(ValueError, match=r"y: expected \(6,\) integer labels"):
                call(x, bad)
    with pytest.raises(ValueError, match=r"labels 0 to 3, got 0 to 9.*classes=10"):
        conditional.validate(x, torch.tensor([0, 1, 2, 3, 0, 9]))
    with pytest.raises(ValueError, match="at least one draw"):
        vae.sample(0)


@pytest.mark.parametrize(
    "mistake, message",
    [
        ({"latent_dim": 0}, "latent_dim"),
        ({"hidden": (200, 0)}, "hidden"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
        ({"encoder_variance": "full"}, "expected unit or diagonal"),
        ({"networks": "cnn"}, "expected mlp, conv or residual"),
        ({"networks": "conv"}, "image_shape: .* 5 values"),
        ({"networks": "conv", "image_shape": (1, 28, 28)}, "image_shape: .* 5 values"),
        ({"act": "gelu"}, "activation: expected one of"),
    ],
)
@pytest.mark.parametrize("family", [VAE, ConditionalVAE])
def test_mistakes_in_the_sizes(family, mistake, message):
    with pytest.raises(ValueError, match=message):
        family(D, **mistake)
    with pytest.raises(ValueError, match="data_dim"):
        family(0)
    with pytest.raises(ValueError, match="classes"):
        ConditionalVAE(D, classes=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    images = load(pixels="dynamic").to("cuda")
    x, y = images.transform(images.train[:B]), images.train_labels[:B]
    check_pair(VAE(64, **SMALL).cuda(), x, ["z"])
    pair = ConditionalVAE(64, **SMALL).cuda()
    check_pair(Labelled(pair, y), x, ["z"])
    for images in (pair.sample(3, y=7), pair.reconstruct(x, y), pair.decode(pair.encode(x, y), 7)):
        assert images.is_cuda and images.shape[-1] == 64


def test_attributes_stand_in_the_place_of_a_label():
    """Unknown attributes are zeros with a mark: the decoder's first layer then reads z alone."""
    pair = ConditionalVAE(D, binary=2, real=1, latent_dim=L, hidden=(8,))
    x, _ = data()
    y = torch.tensor([[0.0, 1.0, -2.5], [torch.nan, 0.0, torch.nan]]).repeat(3, 1)
    weights = log_weights(pair.model, pair.guide, x, y, particles=3)
    assert weights.log_weight().squeeze().shape == (3, 6)
    blind = pair.decoder[0].weight[:, L:] @ torch.cat([torch.zeros(3), torch.ones(3)])
    assert blind.abs().max() > 0
    with torch.no_grad():
        pair.decoder[0].weight[:, L:].zero_()
    z = torch.randn(6, L)
    torch.testing.assert_close(pair.decode(z, y), pair.decode(z, torch.full((6, 3), torch.nan)))
    assert pair.sample(4).shape == (4, D) and pair.sample(6, y).shape == (6, D)
    for wrong, message in (
        (y[:, :2], "3 attributes"), (y + 1, "0, 1 or NaN"), (y.double() * torch.inf, "0, 1 or NaN"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pair.validate(x, wrong)
