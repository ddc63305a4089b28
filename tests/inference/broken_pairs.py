"""Pairs that are wrong as people really write them, and what `check` must say about each.

Those with a number are from Pyro's own issues (github.com/pyro-ppl/pyro/issues/N).
"""

from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)
from torch import nn
from torch.distributions import constraints

N, D, L = 20, 3, 2


@dataclass
class Broken:
    """A function that makes (model, guide, arguments), and the finding it must lead to."""

    make: object
    level: str
    site: str | None
    says: tuple
    size: int | None = None  # rows of all data, where the pair is given a mini-batch
    options: dict = field(default_factory=dict)


BROKEN: dict[str, Broken] = {}


def broken(level, site, *says, size=None, **options):
    def register(make):
        BROKEN[make.__name__] = Broken(make, level, site, says, size, options)
        return make

    return register


def rows(n=N, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(5))


def normal_data(n=N):
    return rows(n, 1).squeeze(-1)


def location_scale(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, sigma), obs=x)


def gaussian_site(name, **kwargs):
    loc = pyro.param(f"{name}_loc", torch.tensor(0.5))
    scale = pyro.param(f"{name}_scale", torch.tensor(0.1), constraint=constraints.positive)
    return pyro.sample(name, dist.Normal(loc, scale), **kwargs)


def positive_site(name):
    loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
    scale = pyro.param(f"{name}_scale", torch.tensor(0.1), constraint=constraints.positive)
    return pyro.sample(name, dist.LogNormal(loc, scale))


class Encoder(nn.Module):
    def __init__(self, d=D, latent=L):
        super().__init__()
        self.body, self.loc, self.scale = (
            nn.Linear(d, 8),
            nn.Linear(8, latent),
            nn.Linear(8, latent),
        )

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.loc(h), F.softplus(self.scale(h)) + 1e-3


class AE(nn.Module):
    """A small VAE that is right; the broken ones override one half."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), nn.Linear(L, D)

    def model(self, x):
        pyro.module("ae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("ae", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


# ---------------------------------------------------------------- names


@broken("error", "sigma", "forgets a latent", "'mu'", "prior without a word", "add the site")
def forgets_a_site():
    """2288: a guide statement is forgotten, and the fit runs on silently with the prior."""

    def guide(x):
        gaussian_site("mu")

    return location_scale, guide, (normal_data(),)


@broken("error", "weight", "forgets a latent", "rename the guide's 'weights'")
def misspelt_site():
    def model(x, y):
        w = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    def guide(x, y):
        gaussian_site("weights")

    return model, guide, (normal_data(), normal_data())


@broken("error", "nu", "does not have", "'mu', 'sigma'", "remove it", "a density in the model")
def site_of_an_older_model():
    def guide(x):
        gaussian_site("mu")
        positive_site("sigma")
        positive_site("nu")

    return location_scale, guide, (normal_data(),)


@broken("error", "width", "makes no latent", "no bound on log p(x)")
def noise_of_which_nothing_is_computed():
    """Its value would stand log 5 above log p(x)."""

    def guide(x):
        pyro.sample("width", dist.Uniform(0.0, 5.0), infer={"is_auxiliary": True})
        gaussian_site("mu")
        positive_site("sigma")

    return location_scale, guide, (normal_data(),)


@broken("error", "x", "observes data", "remove the site from the guide")
def guide_copied_from_the_model():
    def guide(x):
        mu = gaussian_site("mu")
        sigma = positive_site("sigma")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, sigma), obs=x)

    return location_scale, guide, (normal_data(),)


@broken("error", "x", "draws what the model observes", "data belong to the model")
def guide_draws_the_data():
    def guide(x):
        mu = gaussian_site("mu")
        sigma = positive_site("sigma")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, sigma))

    return location_scale, guide, (normal_data(),)


@broken("error", "y", "forgets a latent", "or obs= in the model")
def forgot_obs():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mu, 1.0))  # obs=x is missing

    def guide(x):
        gaussian_site("mu")

    return model, guide, (normal_data(),)


@broken("warning", None, "observes nothing", "'mu'")
def nothing_observed():
    def model(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    def guide(x):
        gaussian_site("mu")

    return model, guide, (normal_data(),)


@broken("error", "w", "two sites called 'w'", "f-string")
def loop_without_names():
    """398: the same name in every round of a loop."""

    def model(x):
        w = [pyro.sample("w", dist.Normal(0.0, 1.0)) for _ in range(2)]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w[0] + w[1], 1.0), obs=x)

    def guide(x):
        gaussian_site("w")

    return model, guide, (normal_data(),)


@broken("error", "mu", "both as a", "mu_loc")
def parameter_named_like_its_site():
    def guide(x):
        loc = pyro.param("mu", torch.tensor(0.0))
        pyro.sample("mu", dist.Normal(loc, 1.0))
        positive_site("sigma")

    return location_scale, guide, (normal_data(),)


@broken("error", None, "two modules are registered as 'net'", "net_guide")
def one_name_for_two_networks():
    encoder, decoder = Encoder(), nn.Linear(L, D)

    def model(x):
        pyro.module("net", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", encoder)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    encoder.weight = nn.Parameter(torch.zeros(D, L))  # the decoder's parameter names
    return model, guide, (rows(),)


@broken("error", None, "two parameters are called 'loc'", "rename one")
def copied_parameter_name():
    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        pyro.sample("b", dist.Normal(pyro.param("loc", torch.zeros(D)), 1.0).to_event(1))

    return model, guide, (rows(),)


# ---------------------------------------------------------------- shapes


@broken("error", "z", "different plates", "plate 'data'", "no plate", "same plates")
def local_latent_without_its_plate():
    class Broken(AE):
        def guide(self, x):
            pyro.module("ae", self)
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(2))

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("error", "z", "different plates", "dim=-1", "dim=-2")
def plate_on_another_dimension():
    class Broken(AE):
        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x), dim=-2):
                loc, scale = self.encoder(x)
                pyro.sample("z", dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2)).to_event(1))

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("warning", "z", "call its plates differently", "'data'", "'batch'")
def plate_of_another_name():
    class Broken(AE):
        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("batch", len(x)):
                loc, scale = self.encoder(x)
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("error", "w", "event dimensions differently", ".to_event(2)")
def network_priors_with_and_without_to_event():
    """2797: "Model and guide event_dims disagree at site 'module$$$out.weight'"."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(1, D), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x @ w.transpose(-1, -2)).squeeze(-1), 1.0), obs=y)

    def guide(x, y):
        loc = pyro.param("w_loc", torch.zeros(1, D))
        pyro.sample("w", dist.Normal(loc, 1.0))

    return model, guide, (rows(), normal_data())


@broken(
    "error", "z", "does not fit plate 'data'", "size 20", "size 2 at dimension -1", "to_event(1)"
)
def forgot_to_event():
    class Broken(AE):
        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                loc, scale = self.encoder(x)
                pyro.sample("z", dist.Normal(loc, scale))

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("error", "x", "does not declare", "batch shape (20,)", "pyro.plate('data', 20)")
def no_data_plate():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu * torch.ones(len(x)), 1.0), obs=x)

    def guide(x):
        gaussian_site("mu")

    return model, guide, (normal_data(),)


@broken("error", "y", "does not declare", "(N, 1) against a (N,)")
def column_against_row():
    """1409: a network's (N, 1) against targets (N,) makes N² terms."""
    net = nn.Linear(D, 1)

    def model(x, y):
        pyro.module("net", net)
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x), s), obs=y)

    def guide(x, y):
        positive_site("s")

    return model, guide, (rows(), normal_data())


@broken("error", "y", "different shapes", "data of shape (20, 1)", "squeeze")
def targets_with_a_column():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def guide(x, y):
        loc = pyro.param("w_loc", torch.zeros(D))
        pyro.sample("w", dist.Normal(loc, 1.0).to_event(1))

    return model, guide, (rows(), normal_data().unsqueeze(-1))


@broken("error", "z", "different shapes", "(20, 2)", "(20, 5)")
def latent_of_another_width():
    class Broken(AE):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder(latent=5)

        def model(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
                loc = z.sum(-1, keepdim=True).expand(*z.shape[:-1], D)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("error", "z", "model stops after reaching site 'z'", "shapes that fit", "20x2 and 3x3",
        "broken_pairs.py")  # fmt: skip
def decoder_of_another_width():
    class Broken(AE):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(L + 1, D)

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("warning", None, "made one by one", "torch.vmap", "no .item()")
def reads_a_latent_on_the_host():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            scale = 1.0 + abs(w[0].item())
            pyro.sample("x", dist.Normal(x @ torch.diag(w), scale).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("w_loc", torch.zeros(D))
        pyro.sample("w", dist.Normal(loc, 1.0).to_event(1))

    return model, guide, (rows(),)


# ---------------------------------------------------------------- supports and ranges


@broken("error", "sigma", "model cannot have", "positive numbers", "Normal", "LogNormal or Gamma",
        "constraints.positive")  # fmt: skip
def normal_guide_for_a_scale():
    """2047: Normal for a latent that must be positive; here all first draws happen to be."""

    def guide(x):
        gaussian_site("mu")
        loc = pyro.param("sigma_loc", torch.tensor(1.0))
        pyro.sample("sigma", dist.Normal(loc, 0.01))

    return location_scale, guide, (normal_data(),)


@broken("error", "p", "unit interval", "Normal, over real numbers", "Beta",
        "constraints.unit_interval")  # fmt: skip
def normal_guide_for_a_probability():
    def model(x):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def guide(x):
        gaussian_site("p")

    return model, guide, ((normal_data() > 0).float(),)


@broken("error", "w", "a simplex", "Dirichlet", "constraints.simplex")
def normal_guide_for_weights():
    def model(x):
        w = pyro.sample("w", dist.Dirichlet(torch.ones(D)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("w_loc", torch.full((D,), 1 / D))
        pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))

    return model, guide, (rows(),)


@broken("error", "rate", "the interval (1, 5)", "for a parameter, constraints.interval(1, 5)")
def lognormal_guide_for_an_interval():
    def model(x):
        rate = pyro.sample("rate", dist.Uniform(1.0, 5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    def guide(x):
        loc = pyro.param("rate_loc", torch.tensor(0.7))
        pyro.sample("rate", dist.LogNormal(loc, 0.1))

    return model, guide, (normal_data().exp(),)


@broken("warning", "mu", "cannot reach all", "Normal, over real numbers", "positive numbers")
def positive_guide_for_a_real_latent():
    def guide(x):
        positive_site("mu")
        positive_site("sigma")

    return location_scale, guide, (normal_data(),)


@broken("error", "k", "another kind of set", "whole numbers", "summed out exactly")
def continuous_guide_for_a_category():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        gaussian_site("k")

    return model, guide, (normal_data(),)


@broken("warning", "sigma", "may leave the support", "'sigma_map'", "constraints.positive")
def map_without_a_constraint():
    def guide(x):
        pyro.sample("mu", dist.Delta(pyro.param("mu_map", torch.tensor(0.0))))
        pyro.sample("sigma", dist.Delta(pyro.param("sigma_map", torch.tensor(1.0))))

    return location_scale, guide, (normal_data(),)


@broken("error", "z", "scale of Normal is out of range", "positive numbers", "softplus")
def scale_from_a_linear_layer():
    class Broken(AE):
        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                h = torch.tanh(self.encoder.body(x))
                loc, scale = self.encoder.loc(h), self.encoder.scale(h)
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    torch.manual_seed(0)
    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken(
    "error", "x", "first log density of the model that is not finite", "Poisson", "clamp an exp"
)
def rate_overflows():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            rate = torch.exp(40 * x.abs().sum(-1) + w.abs().sum(-1, keepdim=True))
            pyro.sample("x", dist.Poisson(rate), obs=x[..., 0].abs().round())

    def guide(x):
        loc = pyro.param("w_loc", torch.zeros(D))
        pyro.sample("w", dist.Normal(loc, 1.0).to_event(1))

    return model, guide, (rows(),)


@broken("error", "x", "data lie outside", "Gamma, over positive numbers", "another likelihood")
def negative_data_for_a_gamma():
    def model(x):
        a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Gamma(a, 1.0), obs=x)

    def guide(x):
        positive_site("a")

    return model, guide, (normal_data(),)


@broken("error", "x", "data lie outside", "values in [0, 255]", "rescale")
def bytes_for_a_bernoulli():
    class Broken(AE):
        def model(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    pair = Broken()
    x = torch.arange(N * D).reshape(N, D).float()
    return pair.model, pair.guide, (x * 255 / x.max(),)


@broken("warning", "x", "not whole numbers", "a loss, not a log density", "binarise")
def grey_values_for_a_bernoulli():
    model, guide, _ = bytes_for_a_bernoulli()
    return model, guide, (torch.sigmoid(rows()),)


@broken("error", None, "argument 0 holds NaN", "the first at (3, 1)", "poutine.mask")
def missing_values():
    x = rows()
    x[3, 1] = float("nan")
    pair = AE()
    return pair.model, pair.guide, (x,)


# ---------------------------------------------------------------- devices and dtypes


@broken("error", "z", "mixes floating-point types", "float64: argument 0", "x.float()")
def numpy_data():
    pair = AE()
    return pair.model, pair.guide, (rows().double(),)


@broken("warning", None, "mixes floating-point types", "float64: argument 0")
def double_data_for_an_autoguide():
    """As 3213, where no second device is: the guide was first called on data of another kind."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(D), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    guide = AutoNormal(model)
    guide(rows())  # "initialise the guide"
    return model, guide, (rows().double(),)


def autoguide_list(device):
    """3213: an AutoGuideList of AutoDelta and AutoLowRankMultivariateNormal, on two devices."""

    def model(x):
        phi = pyro.sample("phi_scale", dist.LogNormal(x.new_zeros(D), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(D), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, phi).to_event(1), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["phi_scale"])))
    guide.append(AutoLowRankMultivariateNormal(poutine.block(model, expose=["mu"])))
    guide(rows())
    return model, guide.to(device), (rows(),)


@broken("error", "phi_scale", "mixes devices", "meta: ", "cpu: argument 0", "autoguide")
def autoguide_on_another_device():
    return autoguide_list("meta")


# ---------------------------------------------------------------- parameters


@broken("error", None, "module 'encoder' is used but not registered", "pyro.module('encoder'",
        "random starting values", "requires_grad_(False)")  # fmt: skip
def forgot_pyro_module():
    encoder, decoder = Encoder(), nn.Linear(L, D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide, (rows(),)


class PlainVAE:
    """A class that is no nn.Module, as in many notebooks."""

    def __init__(self):
        self.encoder, self.decoder = Encoder(), nn.Linear(L, D)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


@broken("error", None, "module 'PlainVAE.encoder' is used but not registered")
def forgot_pyro_module_in_a_class():
    pair = PlainVAE()
    return pair.model, pair.guide, (rows(),)


@broken("error", None, "tensor 'mu_loc' asks for a gradient", "pyro.param")
def plain_tensors_as_parameters():
    mu_loc = torch.tensor(0.0, requires_grad=True)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(mu_loc, scale))

    return model, guide, (normal_data(),)


@broken("error", None, "has no parameters", "pyro.param")
def no_parameters_at_all():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))

    return model, guide, (normal_data(),)


@broken("error", "z", "the guide learns nothing", "encoder.body.weight", "torch.no_grad()")
def encoder_without_gradient():
    class Broken(AE):
        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                with torch.no_grad():
                    loc, scale = self.encoder(x)
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("warning", None, "get no gradient", "encoder.scale.weight", "freeze")
def unused_head():
    class Broken(AE):
        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                loc, _ = self.encoder(x)
                pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken(
    "error", None, "attribute 'noise' is computed from a parameter only once", "where it is used"
)
def scale_computed_in_init():
    class Broken(AE):
        def __init__(self):
            super().__init__()
            self.log_noise = nn.Parameter(torch.zeros(()))
            self.noise = self.log_noise.exp()

        def model(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=x)

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("warning", "mu", "same values under every seed", "set_rng_seed")
def seed_inside_the_guide():
    def guide(x):
        pyro.set_rng_seed(0)
        gaussian_site("mu")
        positive_site("sigma")

    return location_scale, guide, (normal_data(),)


# ---------------------------------------------------------------- mini-batches


@broken("error", "z", "scale it differently", "5 as in the model", "1 in the guide",
        "of 20 in the guide and 100 in the model")  # fmt: skip
def only_the_model_knows_the_size():
    pair = AE()

    def model(x):
        pyro.module("ae", pair)
        with pyro.plate("data", 100, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(pair.decoder(z), 1.0).to_event(1), obs=x)

    return model, pair.guide, (rows(),)


@broken("error", "z", "scale it differently", "same poutine.scale", "elbo.Beta")
def annealing_on_one_side():
    class Broken(AE):
        def model(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=0.1):
                    z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("warning", None, "bound of a mini-batch is biased", "z = ", "pyro.plate('data', size")
def likelihood_outside_the_plate():
    """The size is told, but the likelihood is added by hand and never scaled by it."""

    def model(x, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.plate("data", size or len(x), subsample=x)
        pyro.factor("x", dist.Normal(mu, 1.0).log_prob(x).sum(-1))

    def guide(x, size=None):
        gaussian_site("mu")

    return model, guide, (normal_data(),)


@broken("error", None, "bound of a mini-batch is biased", "z = ", size=100)
def mean_instead_of_sum():
    def model(x, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size or len(x), subsample=x), poutine.scale(scale=1 / len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x, size=None):
        gaussian_site("mu")

    return model, guide, (normal_data(),)


@broken("warning", None, "bound of a mini-batch is biased", "BatchNorm1d couples the rows",
        "LayerNorm", size=100)  # fmt: skip
def batch_normalisation():
    class Broken(AE):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(D)

        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                h = self.norm(x)
                pyro.sample("z", dist.Normal(20 * h[..., :L], 1.0).to_event(1))

    torch.manual_seed(1)
    pair = Broken()
    return pair.model, pair.guide, (rows() + torch.arange(N).unsqueeze(-1),)


def _local(x, size=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", size or len(x), subsample=x):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@broken("error", "z", "one row for each of a mini-batch", "'z_loc'", "100 rows", "amortised guide",
        size=100)  # fmt: skip
def parameters_for_each_row_of_a_batch():
    def guide(x, size=None):
        gaussian_site("mu")
        with pyro.plate("data", size or len(x), subsample=x):
            loc = pyro.param("z_loc", torch.zeros(len(x)))
            pyro.sample("z", dist.Normal(loc, 1.0))

    return _local, guide, (normal_data(),)


@broken("error", None, "row for each datum of a mini-batch", "z_unconstrained", "amortized=True",
        size=100)  # fmt: skip
def autoguide_on_a_mini_batch():
    """The autoguide makes the parameters of its first batch, and uses them for every other."""
    return _local, AutoNormal(_local), (normal_data(),)


@broken("error", None, "draws its own mini-batch at plate 'data'", "issue 3468", "create_plates")
def autoguide_draws_its_own_rows():
    """3468: the autoguide subsamples by itself, and the model is replayed at its rows."""
    y = normal_data(100)

    def model(i):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample=i) as i:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    return model, AutoNormal(model), (torch.arange(20),)


@broken("error", "x", "one row for each of a mini-batch", "20 rows", "(3, 2)", "issue 3286")
def discrete_autoguide_in_a_subsampled_plate():
    """3286: AutoDiscreteParallel makes 3 rows of parameters for a plate of 20."""

    def model(y):
        with pyro.plate("dummy", 20, subsample_size=3) as i:
            x = pyro.sample("x", dist.Categorical(torch.ones(3, 2)))
            pyro.sample("y", dist.Normal(x.float(), 1.0), obs=y[i])

    return model, AutoDiscreteParallel(config_enumerate(model)), (normal_data(),)


# ---------------------------------------------------------------- calls and estimators


@broken("error", "k", "'baseline': ...} has 'use_decaying_average'", "use_decaying_avg_baseline")
def unknown_baseline():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        pyro.sample("k", dist.Bernoulli(p), infer={"baseline": {"use_decaying_average": True}})

    return model, guide, (normal_data(),)


@broken("error", None, "the guide does not take these arguments", "guide(x)", "one signature")
def guide_with_fewer_arguments():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    def guide(x):
        gaussian_site("w")

    return model, guide, (normal_data(), normal_data())


@broken("error", "mu", "guide stops after reaching site 'mu'", "AttributeError", "scael",
        "fix       mend broken_pairs.py:")  # fmt: skip
def typing_mistake():
    def guide(x):
        mu = gaussian_site("mu")
        pyro.sample("sigma", dist.LogNormal(mu.scael, 1.0))

    return location_scale, guide, (normal_data(),)


@broken("note", None, "mean-field KL does not apply", "elbo.Trace()")
def guide_in_another_order():
    class Ladder(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.top, self.down = nn.Linear(D, L), nn.Linear(L, L), nn.Linear(L, L)

        def model(self, x):
            pyro.module("ladder", self)
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
                z1 = pyro.sample("z1", dist.Normal(self.down(z2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z1.sum(-1), 1.0), obs=x[..., 0])

        def guide(self, x):
            pyro.module("ladder", self)
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(self.up(x), 1.0).to_event(1))
                pyro.sample("z2", dist.Normal(self.top(z1), 1.0).to_event(1))

    pair = Ladder()
    return pair.model, pair.guide, (rows(),)


@broken("note", "k", "no reparameterisation", "Bernoulli", "enumerate")
def discrete_guide():
    """3255: one coin is drawn to learn about another."""

    def model(x):
        with pyro.plate("tosses", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Bernoulli(0.05 + 0.9 * k), obs=x)

    def guide(x):
        p = pyro.param("p", torch.full((len(x),), 0.5), constraint=constraints.unit_interval)
        with pyro.plate("tosses", len(x)):
            pyro.sample("k", dist.Bernoulli(p))

    return model, guide, ((normal_data() > 0).float(),)


@broken("error", "n", "forgets a latent", "'rate'")
def counts_that_cannot_be_enumerated():
    def model(x):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        n = pyro.sample("n", dist.Poisson(rate))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    def guide(x):
        positive_site("rate")

    return model, guide, (normal_data(),)


@broken("note", "k", "guide leaves out", "summed out exactly")
def mixture_without_assignments_in_the_guide():
    """Not a mistake here: the assignments are summed out."""

    def model(x):
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            loc = torch.where(k == 0, means[..., :1], means[..., 1:])
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        pyro.sample("means", dist.Normal(loc, 0.1).to_event(1))

    return model, guide, (normal_data(),)


@broken("note", None, "plate 'data' of the model is a Python loop", "vectorised plate")
def sequential_plate():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x[i])

    def guide(x):
        gaussian_site("mu")

    return model, guide, (normal_data(),)
