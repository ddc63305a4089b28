"""M2: the label's exact average, finite sums, labels that are hidden, and what is refused."""

import math

import pytest
import torch
from pair_contract import Labelled, check_pair
from torch import nn

from inference import elbo, evaluate, fit
from zoo.data import hide_labels, load
from zoo.semisupervised import SemiSupervisedVAE

B, D, C, L = 6, 5, 3, 2
SMALL = {"classes": C, "latent_dim": L, "hidden": (7,)}


def rows(n=B):
    return torch.rand(n, D).round().double()


def pair(**options):
    return SemiSupervisedVAE(D, **SMALL, **options).double()


def bound(m2, *args, seed=1):
    torch.manual_seed(seed)
    return elbo.Enum(particles=2).draw(m2.model, m2.guide, *args).log_weight().mean(0)


def test_a_pair_without_labels():
    check_pair(Labelled(pair(), None), rows(), ["y", "z"])


def test_a_pair_with_some_labels():
    y = torch.tensor([0, -1, 2, 1, -1, -1])
    check_pair(Labelled(pair(), y), rows(), ["y", "z"])


def test_a_decoder_that_ignores_z_is_a_finite_mixture():
    """The guide is the exact posterior of y and z: every bound is log Σ_y p(y) p(x | y)."""
    m2, x = pair(), rows()
    with torch.no_grad():
        m2.decoder[0].weight[:, :L] = 0
        m2.encoder[-1].weight.zero_(), m2.encoder[-1].bias.zero_()
        logits = torch.stack(
            [m2.decoder(m2._join(x.new_zeros(L), torch.tensor(c))) for c in range(C)]
        )
    bernoulli = torch.distributions.Bernoulli(logits=logits[:, None])
    joint = bernoulli.log_prob(x).sum(-1) - math.log(C)  # (C, B)
    m2.classifier = _Fixed(joint.softmax(0).log().mT)
    torch.testing.assert_close(bound(m2, x), joint.logsumexp(0), rtol=0, atol=1e-12)
    y = torch.arange(B) % C
    m2.alpha = 0.0
    torch.testing.assert_close(bound(m2, x, y), joint.gather(0, y[None])[0], rtol=0, atol=1e-9)


class _Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x):
        return self.logits


def test_without_a_label_the_bound_is_the_average_over_labels():
    """Σ_y q(y | x) (bound(x, y) − log q(y | x)), the same noise of z for every label."""
    m2, x = pair(alpha=0.0), rows()
    q = m2.classify(x).mT  # (C, B)
    torch.manual_seed(1)
    eps = torch.randn(C, 2, B, L, dtype=torch.float64)
    label = torch.arange(C)[:, None, None]
    h = m2.encoder(m2._join(m2.trunk(x), label))
    mean, scale = h[..., :L], h[..., L:].exp()
    z = mean + scale * eps
    log_px = (
        torch.distributions.Bernoulli(logits=m2.decoder(m2._join(z, label))).log_prob(x).sum(-1)
    )
    kl = (0.5 * (eps**2 - z**2) + scale.log()).sum(-1)
    inner = (log_px + kl).mean(1) - math.log(C)
    torch.testing.assert_close(bound(m2, x), (q * (inner - q.log())).sum(0), rtol=0, atol=1e-12)


def test_a_label_costs_the_classifier_what_it_did_not_expect():
    x, y = rows(), torch.tensor([0, -1, 2, 1, -1, -1])
    free, bought = pair(alpha=0.0), pair(alpha=7.0)
    bought.load_state_dict(free.state_dict())
    log_q = free.classify(x).log().gather(1, y.clamp(min=0)[:, None])[:, 0]
    expected = bound(free, x, y) + 7 * log_q * (y >= 0)
    torch.testing.assert_close(bound(bought, x, y), expected, rtol=0, atol=1e-12)


def test_labels_are_hidden_class_by_class():
    data = hide_labels(load(), 40, seed=3)
    kept = data.train_labels[data.train_labels >= 0]
    assert torch.equal(torch.bincount(kept), torch.full((10,), 4))
    assert (data.valid_labels == -1).all() and (data.test_labels >= 0).all()
    whole = load()
    assert torch.equal(kept, whole.train_labels[data.train_labels >= 0])
    assert not torch.equal(data.train_labels, hide_labels(whole, 40, seed=4).train_labels)


def test_rows_without_labels_teach_the_classifier():
    """Three clusters, five labels each."""
    centres = 4 * torch.tensor([[0.0, 1.0], [0.87, -0.5], [-0.87, -0.5]])
    truth = torch.arange(600) % 3
    x = centres[truth] + torch.randn(600, 2)
    y = torch.where(torch.arange(600) < 15, truth, -1)
    sizes = {"classes": 3, "latent_dim": 1, "hidden": (16,), "act": "tanh"}
    m2 = SemiSupervisedVAE(2, alpha=40.0, likelihood="gaussian", **sizes)
    run = fit(m2, (x, y), elbo=elbo.Enum(), steps=100, lr=5e-2, progress=False, compile=False)
    right = (run.pair.classify(x).argmax(-1) == truth).double().mean()
    assert right > 0.97  # Bayes: 0.995; chance would be a third
    found = evaluate(run, x[:50], particles=20)
    assert found.label == "log p(x)" and found.log_px > found.elbo


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SemiSupervisedVAE(4, classes=1), "classes: expected at least 2"),
        (lambda: SemiSupervisedVAE(4, alpha=-1.0), "alpha: expected a weight"),
        (lambda: pair().model(rows(), torch.zeros(B)), "integer labels, one for each row"),
        (lambda: pair().validate(rows(), torch.full((B,), 3)), "labels 0 to 2, or −1"),
        (lambda: hide_labels(load("moons"), 1, 0), "at least one of each of the 2 classes"),
        (lambda: hide_labels(load(), 10**6, 0), "has 1,439 with a label"),
        (lambda: pair().sample(2, y=3), "each 0 to 2"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_fix(call, words):
    with pytest.raises(ValueError, match=words):
        call()
