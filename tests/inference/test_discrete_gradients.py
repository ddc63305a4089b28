"""Gradients of discrete sites against exact expectations; baselines of a site's own."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference import elbo, fit
from inference.elbo import discrete
from inference.pairs.pair import Pair
from inference.testing.toys import Switch

X = torch.tensor([0.9], dtype=torch.float64)
M = 4_000  # midpoints of the uniform noise, one to a row


def gradient(pair, scalar):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(pair.parameters()))])


def truth(pair):
    """∇ Σ_k q(k) (log p(x, k) - log q(k)), by Enum."""
    return gradient(pair, elbo.Enum().value_and_surrogate(pair.model, pair.guide, X)[1])


def probability(pair):
    return torch.sigmoid(pair.guide_["s"] * X + pair.guide_["t"]).detach()


@pytest.mark.parametrize("shift", [-2.0, 1.5])
def test_disarm_over_all_pairs_of_draws(monkeypatch, shift):
    """Every b, and both ends of the noise that its antithetic draw is made from."""
    pair = Switch()
    with torch.no_grad():
        pair.guide_["t"] += shift
    p = float(probability(pair))
    total = 0.0
    for b, high in itertools.product([0.0, 1.0], [False, True]):
        draw = {"k": torch.tensor([b], dtype=torch.float64)}
        end = 1 - 1e-9 if high else 1e-9
        monkeypatch.setattr(discrete, "_uniform", lambda like, v=end: torch.full_like(like, v))
        weights = elbo.DisARM().draw(pair.model, pair.guide, X, given=draw)
        other = float(weights.others["k"].guide["k"].value)
        both = {(1, 1): max(0, 2 * p - 1), (0, 0): max(0, 1 - 2 * p)}  # P(b, b')
        share = both.get((b, other), min(p, 1 - p))
        ends = 1 if (p > 0.5) == (b == 1) else 2  # both ends of the noise give one b'
        total = total + share / ends * gradient(pair, elbo.DisARM().surrogate(weights))
    assert torch.allclose(total, truth(pair), rtol=1e-8, atol=1e-10)


def over_the_noise(monkeypatch, pair, estimator, draws):
    """The mean gradient at midpoints of the uniform noise, each with a row of its own."""
    grid = (torch.arange(M, dtype=torch.float64) + 0.5) / M
    monkeypatch.setattr(discrete, "_uniform", lambda like: grid.expand(like.shape))
    many, total = X.expand(M), 0.0
    for b, share in draws:
        given = {} if b is None else {"k": torch.full((M,), b, dtype=torch.float64)}
        weights = estimator.draw(pair.model, pair.guide, many, given=given)
        total = total + share * gradient(pair, estimator.surrogate(weights)) / M
    return total


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "scale": 0.7}])
def test_rebar_over_all_draws(monkeypatch, options):
    pair = Switch()
    p = float(probability(pair))
    found = over_the_noise(monkeypatch, pair, elbo.Rebar(**options), [(1.0, p), (0.0, 1 - p)])
    assert torch.allclose(found, truth(pair), atol=2e-5)  # of the midpoint rule


class Relaxed(Switch):
    """With a network on the relaxed draw, as RELAX has."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def control(self):
        class Control(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net

            def forward(self, z):
                return self.net(z.unsqueeze(-1)).squeeze(-1)

        return Control(self.net)

    def guide(self, x, size=None):
        with self.rows(x, size):
            logits = self.guide_["s"] * x + self.guide_["t"]
            pyro.sample("k", dist.Bernoulli(logits=logits), infer={"control": self.control()})


def test_relax_is_unbiased_whatever_its_network_says(monkeypatch):
    pair = Relaxed()
    p = float(probability(pair))
    own = sum(q.numel() for n, q in pair.named_parameters() if not n.startswith("net"))
    found = over_the_noise(monkeypatch, pair, elbo.Rebar(), [(1.0, p), (0.0, 1 - p)])
    assert torch.allclose(found[:own], truth(Switch()), atol=2e-5)
    assert (found[own:] != 0).any()  # and its network learns


def test_the_bias_of_a_relaxed_path_is_measured(monkeypatch):
    """Straight-through: apart from the exact gradient by far more than the midpoint rule."""
    pair = Switch()
    exact = truth(pair)
    apart = [
        over_the_noise(monkeypatch, pair, elbo.GumbelSoftmax(temperature=t), [(None, 1.0)]) - exact
        for t in (1.0, 0.5)
    ]
    assert all(float(a.norm()) > 0.05 * float(exact.norm()) for a in apart)
    assert float(apart[0][:2].norm()) < 1 / M  # the model's half has none: its draws are hard


def test_sites_that_cannot_be_relaxed_or_paired_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(k.double(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.ones(3) / 3))

    for estimator in (elbo.DisARM(), elbo.Rebar()):
        with pytest.raises(ValueError, match="guide site 'k' is a Categorical; expected Bernoulli"):
            estimator.differentiable_loss(model, guide, X)

    def chained(x):
        with pyro.plate("data", len(x)):
            j = pyro.sample("j", dist.Bernoulli(torch.tensor(0.5).double()))
            pyro.sample("k", dist.Bernoulli(0.2 + 0.6 * j))

    def chain(x):
        with pyro.plate("data", len(x)):
            j = pyro.sample("j", dist.Bernoulli(torch.tensor(0.5).double()))
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4).double()))
            pyro.sample("x", dist.Normal(j + k, 1.0), obs=x)

    with pytest.raises(ValueError, match="'k' depends on another discrete draw"):
        elbo.Rebar().differentiable_loss(chain, chained, X)
    assert elbo.DisARM().loss(chain, chained, X) > 0


# ---------------------------------------------------------------- baselines


class Based(Switch):
    """Its guide's site has a baseline of its own."""

    def __init__(self, **baseline):
        super().__init__()
        self.baseline = baseline
        self.net = nn.Linear(1, 1).double()

    def options(self, x):
        return self.baseline or {
            "nn_baseline": lambda y: self.net(y).squeeze(-1), "nn_baseline_input": x[:, None],
        }  # fmt: skip

    def guide(self, x, size=None):
        with self.rows(x, size):
            logits = self.guide_["s"] * x + self.guide_["t"]
            infer = {"baseline": self.options(x)}
            pyro.sample("k", dist.Bernoulli(logits=logits), infer=infer)


@pytest.mark.parametrize(
    "options", [{}, {"baseline_value": torch.tensor(-3.0)}, {"use_decaying_avg_baseline": True}]
)
@pytest.mark.parametrize("estimator", [elbo.Trace(), elbo.Score(1, baseline=None)], ids=repr)
def test_a_baseline_leaves_the_mean_gradient(options, estimator):
    pair = Based(**options)
    p = float(probability(pair))
    own, total = sum(q.numel() for q in Switch().parameters()), 0.0
    for b, share in ((1.0, p), (0.0, 1 - p)):
        estimator._averages["k"] = torch.tensor(-2.0).double()  # before each of the two draws
        draw = {"k": torch.tensor([b], dtype=torch.float64)}
        weights = estimator.draw(pair.model, pair.guide, X, given=draw)
        params = list(pair.parameters())
        g = torch.autograd.grad(estimator.surrogate(weights), params, allow_unused=True)
        total = total + share * torch.cat([v.flatten() for v in g[: own if own < 9 else 4]])
    assert torch.allclose(total[:4], truth(Switch())[:4], rtol=1e-9)


def test_a_network_is_fitted_to_the_signal():
    pair = Based()
    weights = elbo.Trace().draw(pair.model, pair.guide, X)
    surrogate = elbo.Trace().surrogate(weights)
    (bias,) = torch.autograd.grad(surrogate, [pair.net.bias])
    signal = float(weights.log_weight().detach())
    guess = float(pair.net(X[:, None]).detach())
    assert float(bias) == pytest.approx(2 * (signal - guess))  # of -(signal - guess)²


def test_a_running_mean_is_a_part_of_the_fit():
    x = Switch().data()
    options = {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}
    run = fit(Based(**options), x, steps=20, lr=1e-9, progress=False, compile=False)
    mean = float(run.buffers["baseline.k"])
    assert -3.0 < mean < -0.5  # of each row's log weight, about -1.8
    more = fit(Based(**options), x, steps=40, lr=1e-9, progress=False, compile=False, resume=run)
    assert float(more.buffers["baseline.k"]) != mean
    whole = fit(Based(**options), x, steps=40, lr=1e-9, progress=False, compile=False)
    assert float(whole.buffers["baseline.k"]) == float(more.buffers["baseline.k"])
    assert Pair(Based(**options).model, Based(**options).guide, (x,)).buffers["baseline.k"] == 0


def test_baselines_that_are_none_are_refused():
    def loss(**options):
        pair = Based(**options)
        return elbo.Trace().differentiable_loss(pair.model, pair.guide, Switch().data())

    with pytest.raises(ValueError, match="has 'nn_baselin'"):
        loss(nn_baselin=1)
    with pytest.raises(ValueError, match=r"its baseline has shape \(5, 1\)"):
        loss(baseline_value=torch.zeros(5, 1))

    class Peeking(Based):
        def guide(self, x, size=None):
            options = {}
            with self.rows(x, size):
                logits = self.guide_["s"] * x + self.guide_["t"]
                k = pyro.sample("k", dist.Bernoulli(logits=logits), infer={"baseline": options})
            options["baseline_value"] = k

    with pytest.raises(ValueError, match="changes with the draw that it is meant for"):
        pair = Peeking()
        elbo.Trace().differentiable_loss(pair.model, pair.guide, Switch().data())
