"""Models of tutorials and papers, each broken as people break it: they extend `broken_guides`."""

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from broken_guides import param, positive
from broken_pairs import broken, gaussian_site, rows
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import constraints

# ---------------------------------------------------------------- item response: two plates

PEOPLE, ITEMS = 6, 4
ANSWERS = (rows(PEOPLE, ITEMS) > 0).float()


def item_response(y):
    people, items = pyro.plate("people", PEOPLE, dim=-2), pyro.plate("items", ITEMS, dim=-1)
    with people:
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with items:
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
    with people, items:
        pyro.sample("y", dist.Bernoulli(logits=ability - difficulty), obs=y)


def abilities(shape, dim=-2, name="people"):
    with pyro.plate(name, PEOPLE, dim=dim):
        pyro.sample("ability", dist.Normal(param("a", torch.zeros(shape)), 1.0))


def difficulties():
    with pyro.plate("items", ITEMS, dim=-1):
        pyro.sample("difficulty", dist.Normal(param("d", torch.zeros(ITEMS)), 1.0))


@broken("error", "ability", "plate 'people'", "size 4", "to_event")
def abilities_of_the_items_number():
    def guide(y):
        abilities((ITEMS, 1))
        difficulties()

    return item_response, guide, (ANSWERS,)


@broken("error", "ability", "different plates", "dim=-2", "dim=-1")
def abilities_along_the_items():
    def guide(y):
        abilities((PEOPLE,), dim=-1)
        difficulties()

    return item_response, guide, (ANSWERS,)


@broken("error", "ability", "different shapes", "(6, 1)")
def abilities_without_their_axis():
    def guide(y):
        abilities((PEOPLE,))
        difficulties()

    return item_response, guide, (ANSWERS,)


@broken("error", "items", "makes plate 'items' twice", "once", "with items:")
def plate_made_twice():
    def model(y):
        with pyro.plate("items", ITEMS):
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        with pyro.plate("items", ITEMS):
            pyro.sample("y", dist.Bernoulli(logits=difficulty), obs=y)

    return model, lambda y: difficulties(), (ANSWERS[0],)


# ---------------------------------------------------------------- survival, counts, rates

DAYS = rows(12, 1).squeeze(-1).exp()
Z = rows(12, 3)


def weights_site():
    pyro.sample("w", dist.Normal(param("w_loc", [0.0] * 3), 0.1).to_event(1))


@broken("error", "days", "rate of Exponential", "positive", "exp")
def hazard_without_a_link():
    def model(z, days):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("patients", len(z)):
            pyro.sample("days", dist.Exponential((z * w.unsqueeze(-2)).sum(-1)), obs=days)

    return model, lambda z, days: weights_site(), (Z, DAYS)


@broken("warning", "rate", "may leave its range", "concentration", "constraint")
def gamma_of_raw_parameters():
    def model(days):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("patients", len(days)):
            pyro.sample("days", dist.Weibull(rate, 1.5), obs=days)

    def guide(days):
        pyro.sample("rate", dist.Gamma(param("shape", 2.0), param("inverse", 2.0, positive)))

    return model, guide, (DAYS,)


@broken("error", "n", "lie outside", "Poisson")
def log_counts_for_a_poisson():
    def model(n):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(n)):
            pyro.sample("n", dist.Poisson(rate), obs=n)

    def guide(n):
        pyro.sample("rate", dist.LogNormal(param("loc", 0.0), 0.1))

    return model, guide, (rows(12, 1).squeeze(-1),)


@broken("error", "a", "index out of range", "groups are 1 to 3")
def groups_counted_from_one():
    def model(group, y):
        with pyro.plate("groups", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a[..., group], 1.0), obs=y)

    def guide(group, y):
        with pyro.plate("groups", 3):
            pyro.sample("a", dist.Normal(param("a_loc", [0.0] * 3), 1.0))

    return model, guide, (torch.arange(12) % 3 + 1, DAYS)


# ---------------------------------------------------------------- covariances and probabilities


def three(x):
    w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w.unsqueeze(-2), 1.0).to_event(1), obs=x)


@broken("warning", "w", "may leave its range", "scale_tril", "lower_cholesky")
def factor_without_a_constraint():
    def guide(x):
        tril = param("tril", torch.eye(3))
        pyro.sample("w", dist.MultivariateNormal(param("loc", [0.0] * 3), scale_tril=tril))

    return three, guide, (Z,)


@broken("warning", "w", "may leave its range", "covariance_matrix", "constraint")
def covariance_without_a_constraint():
    def guide(x):
        cov = param("cov", torch.eye(3))
        pyro.sample("w", dist.MultivariateNormal(param("loc", [0.0] * 3), covariance_matrix=cov))

    return three, guide, (Z,)


@broken("warning", "x", "may leave its range", "probs", "simplex")
def transition_of_raw_numbers():
    def model(x):
        probs = param("probs", torch.full((3,), 1 / 3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(probs=probs), obs=x)

    return model, lambda x: None, (torch.arange(12) % 3,)


@broken("warning", "theta", "may leave its range", "concentration")
def topics_of_a_raw_network():
    net = nn.Linear(5, 3)
    with torch.no_grad():
        net.bias.fill_(2.0)
        net.weight.mul_(0.1)

    def model(counts):
        topics = param("topics", torch.full((3, 5), 0.2), constraints.simplex)
        with pyro.plate("documents", len(counts)):
            theta = pyro.sample("theta", dist.Dirichlet(torch.ones(3)))
            words = dist.Multinomial(5, theta @ topics, validate_args=False)
            pyro.sample("counts", words, obs=counts)

    def guide(counts):
        pyro.module("net", net)
        with pyro.plate("documents", len(counts)):
            pyro.sample("theta", dist.Dirichlet(net(counts)))

    return model, guide, (torch.ones(6, 5),)


# ---------------------------------------------------------------- Bayesian networks as modules


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, z, y):
        mean = self.linear(z).squeeze(-1)
        with pyro.plate("data", len(z)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def weight_and_bias(weight, bias, events=2):
    def guide(z, y):
        loc = param("weight_loc", torch.zeros(1, 3))
        pyro.sample(weight, dist.Normal(loc, 0.1).to_event(events))
        pyro.sample(bias, dist.Normal(param("bias_loc", [0.0]), 0.1).to_event(1))

    return guide


@broken("error", "linear.weight", "forgets a latent", "'weight'")
def weight_by_its_short_name():
    return Regression(), weight_and_bias("weight", "linear.bias"), (Z, DAYS)


@broken("error", "linear.weight", "event dim", "to_event(2)")
def weight_with_one_event_dimension():
    return Regression(), weight_and_bias("linear.weight", "linear.bias", 1), (Z, DAYS)


# ---------------------------------------------------------------- states in time


def local_level(y):
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    z = 0.0
    for t in range(len(y)):
        z = pyro.sample(f"z_{t}", dist.Normal(z, s))
        pyro.sample(f"y_{t}", dist.Normal(z, 1.0), obs=y[t])


@broken("error", "z_5", "forgets a latent", "add the site")
def one_state_too_few():
    def guide(y):
        pyro.sample("s", dist.LogNormal(param("s_loc", 0.0), 0.1))
        for t in range(len(y) - 1):
            gaussian_site(f"z_{t}")

    return local_level, guide, (DAYS[:6],)


@broken("error", None, "GRUCell", "anew")
def recurrent_cell_made_in_the_guide():
    def guide(y):
        pyro.sample("s", dist.LogNormal(param("s_loc", 0.0), 0.1))
        cell, h = nn.GRUCell(1, 2), torch.zeros(1, 2)
        pyro.module("cell", cell)
        for t in range(len(y)):
            h = cell(y[t].reshape(1, 1), h)
            pyro.sample(f"z_{t}", dist.Normal(h[0, 0], 0.1))

    return local_level, guide, (DAYS[:6],)


@broken("error", None, "h0", "not a parameter", "pyro.param")
def first_state_as_a_bare_tensor():
    cell, h0 = nn.GRUCell(1, 2), torch.zeros(1, 2, requires_grad=True)

    def guide(y):
        pyro.module("cell", cell)
        pyro.sample("s", dist.LogNormal(param("s_loc", 0.0), 0.1))
        h = h0
        for t in range(len(y)):
            h = cell(y[t].reshape(1, 1), h)
            pyro.sample(f"z_{t}", dist.Normal(h[0, 0], 0.1))

    return local_level, guide, (DAYS[:6],)


@broken("error", "rate", "different lengths", "pad_sequence")
def sequences_of_different_lengths():
    def model(sequences):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        y = torch.stack(sequences)
        with pyro.plate("sequences", len(y)):
            pyro.sample("y", dist.Normal(0.0, rate).expand(y.shape[1:]).to_event(1), obs=y)

    def guide(sequences):
        pyro.sample("rate", dist.LogNormal(param("loc", 0.0), 0.1))

    return model, guide, ([DAYS[:5], DAYS[:7]],)


# ---------------------------------------------------------------- networks


class Net(nn.Module):
    """A VAE of its own."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def heads(self, x):
        pyro.module("encoder", self.encoder)
        return self.encoder(x).chunk(2, -1)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.heads(x)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@broken("error", "z", "out of range", "softplus or exp")
def log_scale_for_a_scale():
    class Broken(Net):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(*self.heads(x)).to_event(1))

    pair = Broken()
    return pair.model, pair.guide, (Z,)


@broken("error", "z", "scale it differently", "of 8 in the guide and 12 in the model")
def batch_size_written_down():
    class Broken(Net):
        def guide(self, x):
            with pyro.plate("data", 8):
                loc, log_scale = self.heads(x)
                pyro.sample("z", dist.Normal(loc[:8], log_scale[:8].exp()).to_event(1))

    pair = Broken()
    return pair.model, pair.guide, (Z,)


@broken("warning", "z", "part of the gradient", "detach")
def scale_detached():
    class Broken(Net):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                loc, log_scale = self.heads(x)
                pyro.sample("z", dist.Normal(loc, log_scale.exp().detach()).to_event(1))

    pair = Broken()
    return pair.model, pair.guide, (Z,)


@broken("warning", "x", "rows of a batch are coupled", "of all data once")
def targets_standardised_in_the_model():
    class Broken(Net):
        def model(self, x):
            super().model((x - x.mean(0)) / x.std(0))

    pair = Broken()
    return pair.model, pair.guide, (Z,)


@broken("error", "label", "the guide observes", "remove the site")
def labels_observed_by_both():
    classify = nn.Linear(3, 2)

    def model(x, label):
        with pyro.plate("data", len(x)):
            k = pyro.sample("label", dist.OneHotCategorical(torch.ones(2)), obs=label)
            pyro.sample("x", dist.Normal(k @ torch.ones(2, 3), 1.0).to_event(1), obs=x)

    def guide(x, label):
        pyro.module("classify", classify)
        with pyro.plate("data", len(x)):
            pyro.sample("label", dist.OneHotCategorical(logits=classify(x)), obs=label)

    return model, guide, (Z, F.one_hot(torch.arange(12) % 2, 2).float())


@broken("error", "mu", "different plates", "no plate")
def global_latent_indented_too_far():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        loc = param("loc", 0.0)
        with pyro.plate("data", len(x)):
            pyro.sample("mu", dist.Normal(loc, 1.0))

    return model, guide, (DAYS,)


@broken("error", "theta", "computes", "pyro.deterministic")
def computed_site_drawn_in_the_guide():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu.exp())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    def guide(x):
        gaussian_site("mu")
        pyro.sample("theta", dist.LogNormal(param("t", 0.0), 0.1))

    return model, guide, (DAYS,)


@broken("warning", "p", "may leave its range", "unit interval")
def mixing_share_of_a_raw_parameter():
    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2.0 * p, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            share = param("share", torch.full((12,), 0.5))
            pyro.sample("p", dist.Bernoulli(share), infer={"enumerate": "parallel"})

    return model, guide, (DAYS,)


@broken("error", "z", "mask it differently")
def objects_masked_on_one_side():
    def model(x, there):
        with pyro.plate("objects", len(x)), poutine.mask(mask=there):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, there):
        with pyro.plate("objects", len(x)):
            pyro.sample("z", dist.Normal(param("loc", torch.zeros(12)), 0.5))

    return model, guide, (DAYS, torch.arange(12) < 8)


@broken("error", "u", "two sites called")
def layers_without_numbers():
    def model(x):
        z = 0.0
        for _ in range(2):
            z = z + pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model, lambda x: gaussian_site("u"), (DAYS,)


@broken("error", "share", "cannot have", "unit interval")
def normal_guide_for_a_share():
    def model(x):
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(share), obs=x)

    return model, lambda x: gaussian_site("share"), ((DAYS > 1).float(),)
