import math
import runpy
from pathlib import Path

import pyro
import pytest
import torch
from pair_contract import check_gradient, check_pair
from sklearn.datasets import load_digits

from inference import elbo, evaluate, fit, log_weights
from zoo.data import load
from zoo.hierarchical import HierarchicalVAE, LadderVAE
from zoo.vae import VAE

BOTH = pytest.mark.parametrize("cls", [HierarchicalVAE, LadderVAE])


def digits(n=32, dtype=torch.float32):
    return torch.tensor(load_digits().data[:n] / 16.0, dtype=dtype)


@BOTH
@pytest.mark.parametrize(
    "layers", [pytest.param(n, marks=[] if n == 2 else pytest.mark.slow) for n in (1, 2, 3)]
)
def test_pair_contract(cls, layers):
    sizes = {"latent_dims": (6, 4, 3)[:layers], "hidden": ((16, 12), (8,), (5,))[:layers]}
    check_pair(cls(64, **sizes), digits(), [f"z_{i}" for i in range(1, layers + 1)])
    check_gradient(cls(64, **sizes), digits())


@pytest.mark.slow
@BOTH
def test_every_likelihood_is_an_argument(cls):
    for name in ("gaussian", "gaussian-diagonal", "laplace"):
        vae = cls(64, (4, 2), ((8,), (6,)), likelihood=name)
        check_pair(vae, digits(), ["z_1", "z_2"])


@BOTH
def test_one_layer_is_the_vae(cls):
    """The same weights and noise give the VAE's log weight, datum by datum, to rounding."""
    x = digits(dtype=torch.float64)
    stack = cls(64, latent_dims=(5,), hidden=((7, 6),)).double()
    vae = VAE(64, latent_dim=5, hidden=(7, 6), likelihood="bernoulli", act="tanh").double()
    ladder = cls is LadderVAE
    up = [stack.climb, stack.evidence] if ladder else [stack.encoders]
    ours = [p for networks in (*up, stack.decoders) for p in networks.parameters()]
    theirs = [*vae.encoder.parameters(), *vae.decoder.parameters()]
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    assert len(ours) == len(list(stack.parameters())) == len(list(vae.parameters()))
    for p, q in zip(ours, theirs):
        p.data = torch.randn_like(p)
        q.data = p.data.clone()
    weights = []
    for pair in (stack, vae):
        pyro.set_rng_seed(0)
        weights.append(log_weights(pair.model, pair.guide, x, particles=4).log_weight())
    assert torch.allclose(*weights, rtol=1e-12, atol=0)


@BOTH
def test_elbo_is_the_formula(cls):
    """log p(x, z) - log q(z | x) equals the products of the docstring, written out by hand."""
    x = digits(dtype=torch.float64)
    pair = cls(64, (4, 3, 2), ((6,), (5,), (4,)), likelihood="gaussian-unit").double()
    guide = pyro.poutine.trace(pair.guide).get_trace(x)
    model = pyro.poutine.trace(pyro.poutine.replay(pair.model, trace=guide)).get_trace(x)
    z = {i: guide.nodes[f"z_{i}"]["value"] for i in (1, 2, 3)}

    def normal(value, mean, scale):
        return (
            -0.5 * ((value - mean) / scale) ** 2 - torch.log(scale) - 0.5 * math.log(2 * math.pi)
        ).sum(-1)

    def split(h):
        mean, log_scale = h.chunk(2, -1)
        return mean, log_scale.exp()

    one = torch.ones((), dtype=x.dtype)
    log_p = normal(z[3], 0.0, one) + normal(x, pair.decoders[0](z[1]), one)
    log_p = log_p + normal(z[1], *split(pair.decoders[1](z[2])))
    log_p = log_p + normal(z[2], *split(pair.decoders[2](z[3])))
    if cls is HierarchicalVAE:
        parts = {i: split(pair.encoders[i - 1]({0: x, **z}[i - 1])) for i in (1, 2, 3)}
    else:
        d1 = pair.climb[0](x)
        d2 = pair.climb[1](d1)
        d3 = pair.climb[2](d2)
        parts = {3: split(pair.evidence[2](d3))}
        for i, d in ((2, d2), (1, d1)):
            m, s = split(pair.evidence[i - 1](d))
            mean, scale = split(pair.decoders[i](z[i + 1]))
            weight = s**-2 / (s**-2 + scale**-2)
            parts[i] = (weight * m + (1 - weight) * mean, (s**-2 + scale**-2) ** -0.5)
    log_q = sum(normal(z[i], *parts[i]) for i in (1, 2, 3))
    assert abs(model.log_prob_sum() - guide.log_prob_sum() - (log_p - log_q).sum()) < 1e-9


def test_ladder_without_evidence_follows_the_prior():
    """s → ∞ below the top: q(z_1 | z_2, x) = p(z_1 | z_2), so the layer's KL is zero."""
    x = digits(dtype=torch.float64)
    pair = LadderVAE(64, (4, 3), ((6,), (5,))).double()
    with torch.no_grad():
        pair.evidence[0][0].weight.zero_()
        pair.evidence[0][0].bias.fill_(10.0)  # s = e^10 against the prior's scale of about 1
    weights = log_weights(pair.model, pair.guide, x, particles=8)
    gap = weights.model["z_1"].log_prob - weights.guide["z_1"].log_prob
    # with r = e^-20: a precision off by r, a mean off by 10 r, in 4 dimensions, few deviations out
    assert gap.abs().max() < 1e3 * math.exp(-20)
    bottom_up = HierarchicalVAE(64, (4, 3), ((6,), (5,))).double()
    other = log_weights(bottom_up.model, bottom_up.guide, x)
    assert (other.model["z_1"].log_prob - other.guide["z_1"].log_prob).abs().max() > 1e-2


@BOTH
def test_shapes_of_samples_codes_and_reconstructions(cls):
    x = digits()
    pair = cls(64, (6, 4), ((16,), (8,)))
    assert pair.sample(5).shape == (5, 64) and set(pair.sample(5).unique().tolist()) <= {0.0, 1.0}
    assert pair.encode(x).shape == (32, 6) and pair.encode(x, layer=2).shape == (32, 4)
    assert pair.reconstruct(x).shape == x.shape
    assert pair.reconstruct(x.expand(3, 32, 64)).shape == (3, 32, 64)
    assert torch.equal(pair.reconstruct(x), pair.decode(pair.encode(x)))
    below = pair.decoders[1](torch.ones(3, 4))[:, :6]
    assert torch.equal(pair.decode(torch.ones(3, 4), layer=2), pair.decode(below))
    for call in (lambda: pair.encode(x, layer=3), lambda: pair.decode(torch.ones(3, 4), layer=0)):
        with pytest.raises(ValueError, match="layer: expected 1 to 2, got"):
            call()


@BOTH
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"latent_dims": (100, 50), "hidden": ((200, 200),)},
            "one tuple of hidden widths for each",
        ),
        ({"latent_dims": (), "hidden": ()}, "0 latents"),
        ({"latent_dims": (10,), "hidden": (200, 200)}, "Give one tuple for each of the 1 latents"),
        ({"latent_dims": (10, 0), "hidden": ((8,), (8,))}, "expected sizes of at least 1"),
    ],
)
def test_sizes_that_do_not_chain(cls, sizes, message):
    with pytest.raises(ValueError, match=message):
        cls(64, **sizes)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one width for each layer"):
        LadderVAE(64, (4, 2), ((8,), ()))
    for cls in (HierarchicalVAE, LadderVAE):
        pair = cls(784)
        for call in (pair.guide, pair.model, pair.encode, pair.validate):
            with pytest.raises(ValueError, match=r"data_dim = 784 values, .* got shape \(32, 64\)"):
                call(digits())
        with pytest.raises(ValueError, match="values in"):
            pair.validate(torch.full((2, 784), 2.0))


@pytest.mark.slow
def test_example_writes_its_picture(tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "hierarchy_digits.py"))[
        "main"
    ]
    judged = main(steps=20, out=str(tmp_path / "out.png"), particles=10)
    assert (tmp_path / "out.png").stat().st_size > 10_000
    assert set(judged["Markov"].kl) == {"z_1", "z_2"}


@pytest.mark.slow
def test_two_layers_beat_one_on_mnist(zoo_data):
    """Same steps, batches and optimiser: log p(x) of 1,000 test images is higher by > 2 s.e.

    ELU, because tanh units of this depth saturate at this learning rate; the KL is warmed up.
    """
    images = load("mnist", root=zoo_data, pixels="dynamic")
    pairs = (
        VAE(784, latent_dim=50, act="elu"),
        HierarchicalVAE(784, act="elu"),
        LadderVAE(784, act="elu"),
    )
    log_px = []
    for pair in pairs:
        run = fit(
            pair,
            images,
            elbo=elbo.Beta(1.0, warmup=2_000),
            steps=10_000,
            batch_size=100,
            lr=3e-3,
            schedule="cosine",
            progress=False,
        )
        judged = evaluate(run, images.test[:1_000], particles=1_000)
        print(f"{type(pair).__name__}: {run.seconds:.0f} s\n{judged}")
        log_px.append(judged.log_px_per_datum)
    for better in log_px[1:]:
        gain = better - log_px[0]  # datum by datum
        standard_error = gain.std() / math.sqrt(len(gain))
        print(f"gain {gain.mean():.2f} ± {standard_error:.2f} nats")
        assert gain.mean() > 2 * standard_error
