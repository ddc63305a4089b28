"""Models of tutorials and papers that are right: they extend `right_pairs`."""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
import torch.nn.functional as F
from broken_guides import param, positive
from broken_models import (
    ANSWERS,
    DAYS,
    ITEMS,
    PEOPLE,
    Net,
    Regression,
    Z,
    difficulties,
    item_response,
    local_level,
    three,
    weight_and_bias,
)
from broken_pairs import rows
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from right_pairs import right
from torch import nn
from torch.distributions import constraints


@right
def two_plates_by_hand():
    def guide(y):
        with pyro.plate("people", PEOPLE, dim=-2):
            pyro.sample("ability", dist.Normal(param("a", torch.zeros(PEOPLE, 1)), 1.0))
        difficulties()

    return item_response, guide, (ANSWERS,)


@right
def two_plates_by_an_autoguide():
    return item_response, AutoNormal(item_response), (ANSWERS,)


@right
def bayesian_network_by_hand():
    return Regression(), weight_and_bias("linear.weight", "linear.bias"), (Z, DAYS)


@right
def factor_with_its_constraint():
    def guide(x):
        tril = param("tril", torch.eye(3), constraints.lower_cholesky)
        pyro.sample("w", dist.MultivariateNormal(param("loc", [0.0] * 3), scale_tril=tril))

    return three, guide, (Z,)


@right
def factor_made_of_parts():
    def guide(x):
        raw = param("raw", torch.zeros(3, 3))
        tril = raw.tril(-1) + raw.diagonal().exp().diag()
        pyro.sample("w", dist.MultivariateNormal(param("loc", [0.0] * 3), scale_tril=tril))

    return three, guide, (Z,)


@right
def covariance_of_a_square():
    def guide(x):
        a = param("a", torch.eye(3))
        cov = a @ a.T + 0.1 * torch.eye(3)
        pyro.sample("w", dist.MultivariateNormal(param("loc", [0.0] * 3), covariance_matrix=cov))

    return three, guide, (Z,)


@right
def states_one_by_one():
    return local_level, AutoNormal(local_level), (DAYS[:6],)


@right
def regression_as_a_matrix_product():
    def model(z, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(z)):
            pyro.sample("y", dist.StudentT(4.0, z @ b, 1.0), obs=y)

    return model, AutoMultivariateNormal(model), (Z, DAYS)


@right
def censored_survival():
    def model(z, days, seen):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        rate = (z * w.unsqueeze(-2)).sum(-1).exp()
        with pyro.plate("patients", len(z)):
            with poutine.mask(mask=seen):
                pyro.sample("days", dist.Exponential(rate), obs=days)
            with poutine.mask(mask=~seen):
                pyro.factor("later", -rate * days)

    return model, AutoNormal(model), (Z, DAYS, torch.arange(12) < 9)


@right
def change_point():
    def model(n):
        early, late = (pyro.sample(f"rate_{i}", dist.Gamma(2.0, 1.0)) for i in (0, 1))
        tau = pyro.sample("tau", dist.Categorical(torch.ones(12)), infer={"enumerate": "parallel"})
        with pyro.plate("days", 12):
            rate = torch.where(torch.arange(12) < tau, early, late)
            pyro.sample("n", dist.Poisson(rate), obs=n)

    return model, AutoNormal(poutine.block(model, hide=["tau"])), (DAYS.round(),)


@right
def zero_inflated_counts():
    def model(n):
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(n)):
            pyro.sample("n", dist.ZeroInflatedPoisson(rate, gate=share), obs=n)

    return model, AutoNormal(model), (DAYS.round(),)


@right
def dirichlet_process_by_sticks():
    def model(x):
        with pyro.plate("sticks", 3):
            beta = pyro.sample("beta", dist.Beta(1.0, 1.0))
        with pyro.plate("components", 4):
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        share = F.pad(beta, (0, 1), value=1.0) * F.pad((1 - beta).cumprod(-1), (1, 0), value=1.0)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu[k], 1.0), obs=x)

    def guide(x):
        kappa = param("kappa", torch.ones(3), positive)
        tau = param("tau", torch.linspace(-1.0, 1.0, 4))
        phi = param("phi", torch.full((12, 4), 0.25), constraints.simplex)
        with pyro.plate("sticks", 3):
            pyro.sample("beta", dist.Beta(torch.ones(3), kappa))
        with pyro.plate("components", 4):
            pyro.sample("mu", dist.Normal(tau, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(phi), infer={"enumerate": "parallel"})

    return model, guide, (DAYS,)


@right
def ordered_answers():
    def model(z, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        base = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        cuts = pyro.sample("cuts", dist.TransformedDistribution(base, [T.OrderedTransform()]))
        with pyro.plate("data", len(z)):
            mean = (z * w.unsqueeze(-2)).sum(-1)
            pyro.sample("y", dist.OrderedLogistic(mean, cuts.unsqueeze(-2)), obs=y)

    return model, AutoNormal(model), (Z, torch.arange(12) % 3)


@right
def topic_model_with_networks():
    """ProdLDA, documents of different lengths."""
    net, topics = nn.Linear(5, 6), nn.Linear(3, 5)

    def model(docs):
        pyro.module("topics", topics)
        with pyro.plate("documents", len(docs)):
            theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            share = topics(theta.softmax(-1)).softmax(-1)
            pyro.sample("docs", dist.Multinomial(int(docs.sum(-1).max()), share), obs=docs)

    def guide(docs):
        pyro.module("net", net)
        loc, log_var = net(docs).chunk(2, -1)
        with pyro.plate("documents", len(docs)):
            pyro.sample("theta", dist.Normal(loc, (0.5 * log_var).exp()).to_event(1))

    return model, guide, (rows(6, 5).abs().ceil(),)


@right
def correlated_scales():
    def model(x):
        corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
        tau = pyro.sample("tau", dist.HalfNormal(torch.ones(3)).to_event(1))
        with pyro.plate("data", len(x)):
            tril = tau.unsqueeze(-1) * corr
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=tril), obs=x)

    return model, AutoNormal(model), (Z,)


@right
def matrix_factors():
    def model(y):
        users, films = pyro.plate("users", PEOPLE, dim=-2), pyro.plate("films", ITEMS, dim=-1)
        with users:
            u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with films:
            v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with users, films:
            pyro.sample("y", dist.Normal((u * v).sum(-1), 1.0), obs=y)

    return model, AutoNormal(model), (ANSWERS,)


@right
def filter_in_closed_form():
    def model(y):
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        eye = torch.eye(1)
        hmm = dist.GaussianHMM(
            dist.MultivariateNormal(torch.zeros(1), eye), eye,
            dist.MultivariateNormal(torch.zeros(1), s.square() * eye), eye,
            dist.MultivariateNormal(torch.zeros(1), eye), duration=len(y),
        )  # fmt: skip
        pyro.sample("y", hmm, obs=y)

    def guide(y):
        pyro.sample("s", dist.LogNormal(param("loc", 0.0), 0.1))

    return model, guide, (DAYS.unsqueeze(-1),)


@right
def recurrent_encoder_of_sequences():
    """One latent a sequence; time is inside a row."""
    gru, head, out = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 4), nn.Linear(2, 5)

    def model(x):
        pyro.module("out", out)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(out(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("gru", gru)
        pyro.module("head", head)
        loc, log_scale = head(gru(x.unsqueeze(-1))[1][0]).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, (rows(12, 5),)


@right
def own_vae():
    pair = Net()
    return pair.model, pair.guide, (Z,)


@right
def capture_and_recapture():
    """Cormack, Jolly and Seber, as Pyro's example has it: alive or not, along time."""

    def model(seen):
        phi = pyro.sample("phi", dist.Beta(2.0, 2.0))
        rho = pyro.sample("rho", dist.Beta(2.0, 2.0))
        with pyro.plate("animals", len(seen), dim=-1):
            z, first = torch.ones(len(seen)), torch.zeros(len(seen), dtype=torch.bool)
            for t in pyro.markov(range(seen.shape[1])):
                with poutine.mask(mask=first):
                    z = pyro.sample(
                        f"z_{t}", dist.Bernoulli(phi * z), infer={"enumerate": "parallel"}
                    )
                    pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=seen[:, t])
                first |= seen[:, t].bool()

    guide = AutoDelta(poutine.block(model, expose=["phi", "rho"]))
    return model, guide, ((rows(6, 4) > -0.5).float(),)
