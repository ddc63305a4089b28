"""What was summed out comes back: from its posterior, per datum, and along chains."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import to_datatree
from inference.weights import discrete_posterior

LOG_PI = torch.tensor([0.2, 0.5, 0.3]).log()
Y = torch.tensor([-1.0, 0.2, 1.5, 0.4])
MEANS = torch.tensor([-1.0, 0.0, 2.0])
STEP = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])


def mixture(x):
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=LOG_PI))
        pyro.sample("x", dist.Normal(MEANS[k], s), obs=x)


def chain(x):
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    k = 0
    for t in pyro.markov(range(len(x))):
        k = pyro.sample(f"k_{t}", dist.Categorical(STEP[k]))
        pyro.sample(f"x_{t}", dist.Normal(MEANS[k], s), obs=x[t])


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.1))
    pyro.sample("s", dist.LogNormal(loc, 0.3))


def paths(s):
    """Every path of the chain with its posterior probability, by enumeration."""
    where = list(itertools.product(range(3), repeat=len(Y)))
    logs = []
    for path in where:
        before = (0, *path[:-1])
        lp = sum(STEP[a, b].log() for a, b in zip(before, path))
        logs.append(lp + dist.Normal(MEANS[list(path)], s).log_prob(Y).sum())
    return torch.tensor(where), torch.stack(logs).softmax(0)


@pytest.mark.parametrize("way", ["plate", "vmap", "loop"])
def test_probabilities_of_a_mixture_are_bayes_rule(way):
    s = torch.tensor([[0.5], [1.5]])
    _, found = discrete_posterior(
        mixture, Y, values={"s": s}, particles=2, nesting=1, way=way
    )  # fmt: skip
    for i in range(2):
        exact = (LOG_PI + dist.Normal(MEANS, s[i]).log_prob(Y[:, None])).softmax(-1)
        torch.testing.assert_close(found["k"].values(2, 1)[0][i], exact)


def test_probabilities_along_a_chain_are_those_of_all_paths():
    s = torch.tensor([0.8, 1.4])
    _, found = discrete_posterior(chain, Y, values={"s": s}, particles=2, nesting=0)
    for i in range(2):
        where, p = paths(s[i])
        for t in range(len(Y)):
            exact = torch.stack([p[where[:, t] == c].sum() for c in range(3)])
            torch.testing.assert_close(found[f"k_{t}"].values(2, 0)[0][i], exact)


def test_draws_along_a_chain_are_joint():
    """Whole paths come as often as their probability says, and not state by state."""
    n = 4_000
    drawn, _ = discrete_posterior(
        chain, Y, values={"s": torch.full((n,), 0.8)}, particles=n, nesting=0
    )
    _, p = paths(torch.tensor(0.8))
    path = sum(drawn[f"k_{t}"].values(n, 0)[0] * 3 ** (len(Y) - 1 - t) for t in range(len(Y)))
    counts = torch.bincount(path, minlength=len(p)).double()
    expected = n * p.double()
    often = expected > 5
    chi2 = ((counts - expected) ** 2 / expected)[often].sum()
    free = int(often.sum())
    assert chi2 < free + 5 * (2 * free) ** 0.5  # five standard deviations of chi squared


def test_they_are_in_the_tree():
    tree = to_datatree(mixture, guide, Y, draws=200)
    k = tree.posterior["k"]
    assert k.dims == ("chain", "draw", "data") and set(k.values.ravel()) == {0, 1, 2}
    s = torch.as_tensor(tree.posterior["s"].values[0])
    p = (LOG_PI + dist.Normal(MEANS, s[:, None, None]).log_prob(Y[:, None])).softmax(-1)
    share, se = p[..., 2].mean(0), (p[..., 2] * (1 - p[..., 2])).mean(0).sqrt() / 200**0.5
    assert (abs(torch.as_tensor((k.values[0] == 2).mean(0)) - share) < 5 * se + 1e-3).all()
