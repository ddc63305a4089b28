"""The adversarial trainer: losses worked out by hand, moments matched, nothing leaked."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from inference.graph import traced
from inference.ratios import DIVERGENCES, Critic
from inference.ratios.adversarial import (
    OBJECTIVES,
    critic_divergence,
    critic_loss,
    fit_adversarial,
    generator_loss,
)
from inference.ratios.implicit import fit_implicit
from zoo.data import DataSet
from zoo.implicit import ImplicitVAE


class LocationScale(nn.Module):
    """x ~ N(loc, scale²)."""

    def __init__(self, dim=1):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def model(self, n):
        pyro.module("location_scale", self)
        with pyro.plate("data", n):
            return pyro.sample("x", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


def quick(generator, x, **options):
    defaults = {"steps": 30, "compile": False, "progress": False}
    return fit_adversarial(generator, x, **(defaults | options))


def two_clusters(n):
    """0.7 N(−1, 0.6²) + 0.3 N(2, 0.6²)."""
    second = (torch.rand(n, 1) < 0.3).float()
    return -1 + 3 * second + 0.6 * torch.randn(n, 1)


class Watching(nn.Module):
    """A linear critic that keeps the data it has seen."""

    def __init__(self, inputs, dim):
        super().__init__()
        self.linear, self.dim, self.seen = nn.Linear(inputs, 1), dim, []

    def forward(self, x):
        self.seen.append(x.detach()[..., : self.dim].reshape(-1, self.dim).clone())
        return self.linear(x).squeeze(-1)

    def __deepcopy__(self, memo):
        return self  # the test looks at it


@pytest.mark.parametrize("trainer", ["generator", "implicit guide"])
def test_dynamic_pixels_are_drawn_at_every_step(trainer):
    """Data of probability 1/2 everywhere: what the critic sees are zeros and ones, ever others."""
    x = torch.full((40, 6), 0.5)
    data = DataSet("half", x, x[:0], x[:0], pixels="dynamic")
    options = {"steps": 3, "batch_size": 40, "compile": False, "progress": False}
    if trainer == "generator":
        critic = Watching(6, 6)
        fit_adversarial(LocationScale(6), data, critic=critic, **options)
    else:
        critic = Watching(6 + 2, 6)
        fit_implicit(ImplicitVAE(6, latent_dim=2, hidden=(4,)), data, critic=critic, **options)
    drawn = [s for s in critic.seen if len(s) == 40 and bool(((s == 0) | (s == 1)).all())]
    assert len(drawn) >= 3 and any(not torch.equal(drawn[0], s) for s in drawn)
    assert not any(bool((s == 0.5).all()) for s in critic.seen[2:])  # after its shape was checked


# ---------------------------------------------------------------- the losses


@pytest.fixture
def critic():
    return Critic(2, hidden=(8,))


def test_losses_of_a_critic_that_knows_nothing(critic):
    """Its output is zero: D = ½, every divergence 0, E[log D] = −log 2."""
    x = torch.randn(50, 2)
    for objective in OBJECTIVES:
        assert abs(float(critic_divergence(critic, x, x, objective).detach())) < 1e-6
    log_2 = pytest.approx(math.log(2))
    assert float(generator_loss(critic, x, "non-saturating").detach()) == log_2
    assert -float(generator_loss(critic, x, "minimax").detach()) == log_2


def test_losses_by_hand():
    critic, x_real, x_fake = nn.Flatten(0), torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0]])
    js = 0.5 * (2 * math.log(2) - softplus(-x_real).mean() - softplus(x_fake).mean())
    torch.testing.assert_close(critic_loss(critic, x_real, x_fake, "minimax"), -js)
    torch.testing.assert_close(critic_loss(critic, x_real, x_fake, "js"), -js)
    # Wasserstein: −(1.5 − (−1)); slope 1 costs nothing
    w = critic_loss(critic, x_real, x_fake.expand(2, 1), "wasserstein", penalty=10.0)
    torch.testing.assert_close(w.detach(), torch.tensor(-2.5), atol=1e-5, rtol=0)
    # slope 1 everywhere: the zero-centred penalty adds γ/2
    torch.testing.assert_close(
        critic_loss(critic, x_real, x_fake, "js", penalty=3.0).detach(), -js + 1.5
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_generator_lowers_its_share_of_the_bound(name, critic):
    """The gradient for a sample is that of the bound the critic raises."""
    nn.init.normal_(critic.linear.weight)
    x_real, x_fake = torch.randn(9, 2), torch.randn(7, 2, requires_grad=True)
    (a,) = torch.autograd.grad(critic_divergence(critic, x_real, x_fake, name), x_fake)
    (b,) = torch.autograd.grad(generator_loss(critic, x_fake, name), x_fake)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("objective", ["non-saturating", "kl", "wasserstein"])
def test_losses_can_be_traced(objective):
    """One graph with the gradients inside, as the compiled step needs it."""
    critic = Critic(2, hidden=(8,))

    def gradients(x_real, x_fake):
        with torch.enable_grad():
            loss = critic_loss(critic, x_real, x_fake, objective, penalty=1.0)
            fake = x_fake.detach().requires_grad_()
            lower = generator_loss(critic, fake, objective)
            weights = torch.autograd.grad(loss, critic.linear.weight)[0]
            return weights.sum() + torch.autograd.grad(lower, fake)[0].sum()

    x = (torch.randn(5, 2), torch.randn(5, 2))
    again = traced(gradients, list(x))
    torch.manual_seed(1)
    want = gradients(*x)
    torch.manual_seed(1)
    torch.testing.assert_close(again(*x), want)


# ---------------------------------------------------------------- the fit


@pytest.mark.parametrize("name, sd", [("kl", 1.500), ("js", 1.468)])
def test_f_gan_finds_the_gaussian_nearest_to_two_clusters(name, sd):
    """KL(data || N) is least at the data's moments; JS (by quadrature over mean and sd) is not.

    Its divergence there, 0.3211 and 0.0881 nats by quadrature, is what the critic reports.
    """
    x = two_clusters(20_000)
    run = quick(
        LocationScale(), x, objective=name, critic=Critic(1, hidden=(32, 32)), steps=800,
        lr=1e-2, batch_size=512, average=0.99, penalty=0.0,
    )  # fmt: skip
    with torch.no_grad():
        scale = float(run.generator.log_scale.exp())
        assert abs(float(run.generator.loc) - float(x.mean())) < 0.05
    assert abs(scale - sd - (float(x.std()) - 1.4998)) < 0.025
    last = run.history["divergence"][-len(run.history) // 5 :]
    assert abs(last.mean() - {"kl": 0.3211, "js": 0.0881}[name]) < 0.015


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_moves_the_generator_to_the_data(objective):
    x = 1 + torch.randn(2_000, 2)
    run = quick(
        LocationScale(2), x, objective=objective, critic=Critic(2, hidden=(16,)), steps=100,
        lr=3e-2, batch_size=128, average=0.9,
    )  # fmt: skip
    assert (run.generator.loc - 1).abs().max() < 0.5
    assert run.history.columns == ["step", "critic_loss", "generator_loss", "divergence", "seconds"]
    assert not run.is_bound and run.stopped is None


def test_one_seed_one_run_and_nothing_leaks():
    x, mine = torch.randn(300, 1), LocationScale()
    before = torch.get_rng_state()
    a, b, c = (quick(mine, x, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.generator.loc, b.generator.loc)
    assert not torch.equal(a.generator.loc, c.generator.loc)
    assert float(mine.loc.detach()) == 0.0 and not pyro.get_param_store().keys()


def test_a_function_with_its_own_parameters():
    def generator(n):
        loc = pyro.param("loc", torch.zeros(1))
        scale = pyro.param("scale", torch.ones(1), constraint=dist.constraints.positive)
        with pyro.plate("data", n):
            return pyro.sample("x", dist.Normal(loc, scale).to_event(1))

    x = 3 + torch.randn(500, 1)
    run = quick(generator, x, steps=150, lr=3e-2, average=0.0, critic=Critic(1, hidden=(16,)))
    assert abs(float(run.sample(1_000).mean()) - 3) < 1.0
    assert not pyro.get_param_store().keys()


def test_interrupt_keeps_what_was_reached():
    class Interrupting(LocationScale):
        calls = 0

        def model(self, n):
            Interrupting.calls += 1
            if Interrupting.calls == 20:
                raise KeyboardInterrupt
            return super().model(n)

    run = quick(Interrupting(), 2 + torch.randn(200, 1), steps=60, lr=1e-2)
    assert run.stopped == "interrupted"
    assert float(run.generator.loc.detach()) > 0
    assert run.sample(5).shape == (5, 1)


def test_critic_moves_more_often_than_the_generator():
    """With five critic steps, ten rounds are fifty updates of the critic and ten of the other."""
    counts = []

    class Counting(LocationScale):
        def model(self, n):
            counts.append(n)
            return super().model(n)

    quick(Counting(), torch.randn(200, 1), steps=10, critic_steps=5)
    extra = len(counts) - 50
    counts.clear()
    quick(Counting(), torch.randn(200, 1), steps=10, critic_steps=1)
    assert len(counts) - 10 == extra  # the same runs before the first step


def test_average_starts_as_a_plain_mean():
    x, seen = 2 + torch.randn(200, 1), []
    name = "generator.model.loc"
    run = quick(LocationScale(), x, steps=4, average=0.999, callbacks=[
        lambda run: seen.append(run.variables.params[name].clone()) and False
    ])  # fmt: skip
    mean = run.variables.buffers[f"average.{name}"]
    torch.testing.assert_close(mean, torch.stack(seen).mean(0))
    torch.testing.assert_close(run.generator.loc.detach(), mean)


def test_figure(tmp_path):
    quick(LocationScale(), torch.randn(100, 1)).plot().savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 5_000


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["non-saturating", "wasserstein"])
def test_compiled_steps_are_the_eager_ones(objective):
    x = 2 + torch.randn(500, 2)
    runs = [
        fit_adversarial(
            LocationScale(2), x, objective=objective, compile=c, steps=20, progress=False
        )
        for c in (False, True)
    ]
    assert runs[1].compiled, runs[1].eager_because
    torch.testing.assert_close(runs[0].generator.loc, runs[1].generator.loc, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- mistakes

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: quick(LocationScale(2), X, objective="wassertein"), "mean 'wasserstein'"),
        (lambda: quick(LocationScale(2), X, objective="total variation"), "expected one of"),
        (lambda: quick(LocationScale(2), X, schedule="cosin"), "mean 'cosine'"),
        (lambda: quick(LocationScale(2), X[:0]), r"data: expected floats of shape \(N, D\)"),
        (lambda: quick(LocationScale(2), X[:, 0]), r"data: expected floats of shape \(N, D\)"),
        (lambda: quick(LocationScale(2), X / 0 * 0), "NaN"),
        (lambda: quick(LocationScale(3), X), r"return x of shape \(40, 2\).*got \(40, 3\)"),
        (lambda: quick(lambda n: None, X), "expected it to return x"),
        (lambda: quick(lambda n: torch.randn(n, 2), X), "no gradient reaches"),
        (lambda: quick(LocationScale(2), X, batch_size=64), "batch_size: expected 1 .. 40"),
        (lambda: quick(LocationScale(2), X, critic=nn.Linear(2, 1)), "one number a row"),
        (lambda: quick(LocationScale(2), X, steps=0), "steps"),
        (lambda: quick(LocationScale(2), X, critic_steps=0), "critic_steps"),
        (lambda: quick(LocationScale(2), X, penalty=-1.0), "penalty"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_that_is_not_finite_returns_the_last_good_state():
    run = quick(LocationScale(2), X, lr=1e30, objective="kl")
    assert "no longer finite at step" in run.stopped and 0 < run.steps == len(run.losses) < 30
    assert all(t.isfinite().all() for t in run.variables.flat())
