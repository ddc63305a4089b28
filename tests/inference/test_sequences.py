"""Sequences: chains summed out in few operations, and compiling given up where it is long."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.utils._python_dispatch import TorchDispatchMode

import inference.training.choosing
from inference import fit, log_weights, to_datatree
from inference.graph import Budget, OutOfBudget

INITIAL = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.0, 0.5, 0.5]], dtype=torch.float64)
MEANS = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)


def markov(x, means=MEANS):
    """A hidden Markov model as people write it."""
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(INITIAL if z is None else TRANSITION[z]))
        pyro.sample(f"x_{t}", dist.Normal(means[z], 1.0), obs=x[t])


def nothing(x, means=MEANS):
    """A guide of a model whose latents are all summed out."""


def path_densities(x):
    """log p(x, path) of each path of states, (3^T,)."""
    emission = dist.Normal(MEANS, 1.0).log_prob(x[:, None])
    out = []
    for path in itertools.product(range(3), repeat=len(x)):
        steps = itertools.pairwise(path)
        prior = INITIAL[path[0]].log() + sum(TRANSITION[a, b].log() for a, b in steps)
        out.append(prior + sum(emission[t, z] for t, z in enumerate(path)))
    return torch.stack(out)


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_a_chain_is_summed_over_all_its_paths(steps):
    x = torch.linspace(-2.0, 3.0, steps, dtype=torch.float64)
    weights = log_weights(markov, nothing, x)
    truth = torch.logsumexp(path_densities(x), 0)
    assert float(weights.log_p()) == pytest.approx(float(truth), abs=1e-12)


class _Counted(TorchDispatchMode):
    """Count the operations that are made once for each batch of variables summed out."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made += func is torch.ops.aten.amax.default
        return func(*args, **(kwargs or {}))


def test_twice_as_long_a_chain_takes_few_more_operations():
    made = []
    for steps in (32, 64):
        with _Counted() as counted:
            log_weights(markov, nothing, torch.zeros(steps, dtype=torch.float64))
        made.append(counted.made)
    assert made[1] - made[0] <= 3  # one round more: the first, the last and the inner states
    assert made[1] <= 3 * math.log2(64)


def test_the_gradient_of_a_chain_is_the_forward_algorithms():
    x = torch.linspace(-2.0, 3.0, 40, dtype=torch.float64)

    ours, theirs = (MEANS.clone().requires_grad_() for _ in range(2))
    log_weights(markov, nothing, x, means=ours).log_p().sum().backward()
    alpha = INITIAL.log()
    for t in range(40):
        if t:
            alpha = torch.logsumexp(alpha[:, None] + TRANSITION.log(), 0)
        alpha = alpha + dist.Normal(theirs, 1.0).log_prob(x[t])
    torch.logsumexp(alpha, 0).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-11)


def state_space(y):
    """A local level seen with noise: z_t = 0.9 z_(t-1) + N(0, q), y_t = z_t + N(0, 0.5)."""
    q = pyro.sample("q", dist.LogNormal(torch.zeros((), dtype=y.dtype), 1.0))
    zero, one = y.new_zeros(1), y.new_ones(1, 1)
    moved = dist.Normal(zero, q[..., None, None]).to_event(1)
    seen = dist.Normal(zero, 0.5 + zero).to_event(1)
    start = dist.Normal(zero, 2.0 + zero).to_event(1)
    pyro.sample("y", dist.GaussianHMM(start, 0.9 * one, moved, one, seen, duration=len(y)), obs=y)


def kalman(y, q):
    """log p(y | q) by the textbook filter."""
    mean, variance, total = 0.0, 4.0, 0.0
    for value in y[:, 0].tolist():
        mean, variance = 0.9 * mean, 0.81 * variance + q**2
        spread = variance + 0.25
        total -= 0.5 * (math.log(2 * math.pi * spread) + (value - mean) ** 2 / spread)
        mean += variance / spread * (value - mean)
        variance *= 0.25 / spread
    return total


def test_a_linear_state_space_has_the_kalman_filters_likelihood():
    y = torch.sin(torch.arange(30, dtype=torch.float64))[:, None]

    def guide(y):
        return pyro.sample("q", dist.LogNormal(y.new_tensor(0.1), 0.5))

    weights = log_weights(state_space, guide, y, particles=3)
    truth = [kalman(y, float(q)) for q in weights.guide["q"].value]
    assert weights.model["y"].log_prob.tolist() == pytest.approx(truth, rel=1e-10)


def switching(x):
    """A hidden Markov model as one distribution of the whole sequence."""
    mean = pyro.sample("mean", dist.Normal(MEANS, 0.1).to_event(1))
    seen = dist.Normal(mean.unsqueeze(-2), 1.0)
    hmm = dist.DiscreteHMM(torch.zeros(3).to(x), TRANSITION.log(), seen, duration=len(x))
    pyro.sample("x", hmm, obs=x)


@pytest.mark.parametrize("model", [switching, state_space])
def test_the_tree_has_the_likelihood_of_each_time(model):
    x = torch.sin(torch.arange(12, dtype=torch.float64))
    x = x if model is switching else x[:, None]
    guide = AutoNormal(model, init_scale=0.3)
    tree = to_datatree(
        model, guide, x, draws=5, groups=["log_likelihood", "sample_stats", "posterior"]
    )
    per_time = next(iter(tree.log_likelihood.data_vars.values()))
    assert per_time.dims[2:] == (("x_dim",) if model is switching else ("y_dim_0",))
    latents = {k: torch.tensor(v.values[0]) for k, v in tree.posterior.data_vars.items()}
    for i in range(5):
        short = poutine.condition(model, {k: v[i] for k, v in latents.items()})
        whole = [
            float(poutine.trace(short).get_trace(x[:t]).log_prob_sum(lambda n, s: n in ("x", "y")))
            for t in range(1, 13)
        ]
        found = per_time.values[0, i].cumsum()
        assert found == pytest.approx(whole, rel=1e-6)


def line(x):
    """A model whose trace is short."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_a_compile_that_costs_more_than_it_saves_is_given_up(monkeypatch):
    monkeypatch.setattr(inference.training.choosing, "WORTH_COMPILING", 0.0)
    options = {"steps": 12, "progress": False, "check": False}
    eager = fit(line, AutoNormal(line), torch.arange(4.0), compile=False, **options)
    given_up = fit(line, AutoNormal(line), torch.arange(4.0), compile_budget=0.01, **options)
    assert not given_up.compiled
    assert "operations would take about" in given_up.eager_because
    assert given_up.losses == eager.losses


def test_a_lowering_is_begun_only_where_it_is_repaid():
    budget = Budget(ahead=100.0, share=0.1)
    with budget.kept():
        budget.lower(3_000)  # about 36 s
        assert budget.limit == pytest.approx(50.0)
        with pytest.raises(OutOfBudget, match="compiling 6,000 operations would take about 72 s"):
            budget.lower(6_000)


@pytest.mark.parametrize("given", [-0.1, math.nan, "much"])
def test_a_budget_that_is_no_share_is_refused(given):
    with pytest.raises(ValueError, match="compile_budget: expected a number >= 0"):
        fit(line, AutoNormal(line), torch.arange(4.0), compile_budget=given, steps=1)
