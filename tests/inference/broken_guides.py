"""Guides that run, and are wrong in what they do: families of models, each broken as people do it.

They extend the table of `broken_pairs`, which has what reading names, shapes and supports finds.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from broken_pairs import (
    AE,
    D,
    L,
    N,
    broken,
    gaussian_site,
    location_scale,
    normal_data,
    positive_site,
    rows,
)
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn
from torch.distributions import constraints

positive, unit = constraints.positive, constraints.unit_interval


def param(name, start, constraint=constraints.real):
    return pyro.param(name, torch.as_tensor(start, dtype=torch.float), constraint=constraint)


def many():
    """100 data, of which the pair takes 10 at a time."""
    return normal_data(100)


# ---------------------------------------------------------------- hierarchical regression

GROUP = torch.arange(N) % 4


def regression(x, y):
    a0 = pyro.sample("a0", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 4):
        a = pyro.sample("a", dist.Normal(a0, tau))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a[..., GROUP] + b * x, 1.0), obs=y)


XY = normal_data(), rows(N, 2)[:, 1]


def regression_guide(a=None, tau=None, b=None):
    def guide(x, y):
        gaussian_site("a0")
        (tau or positive_site)("tau")
        (b or gaussian_site)("b")
        with pyro.plate("groups", 4):
            if a is not None:
                a()
            else:
                pyro.sample(
                    "a", dist.Normal(param("a_loc", [0.1] * 4), param("a_scale", 0.1, positive))
                )

    return regression, guide, XY


@broken("warning", "b", "scale of Normal may leave its range", "positive numbers", "b_sd",
        "broken_guides.py", "constraint=")  # fmt: skip
def scale_without_a_constraint():
    return regression_guide(
        b=lambda n: pyro.sample(n, dist.Normal(param("b_mu", 0.0), param("b_sd", 1.0)))
    )


@broken("warning", "a", "scale of Normal may leave its range", "a_sd", "softplus")
def group_scales_without_a_constraint():
    def a():
        pyro.sample("a", dist.Normal(param("a_mu", [0.0] * 4), param("a_sd", [1.0] * 4)))

    return regression_guide(a)


@broken("warning", None, "get no gradient", "b_mu", "detach()")
def mean_detached():
    return regression_guide(
        b=lambda n: pyro.sample(
            n, dist.Normal(param("b_mu", 0.5).detach(), param("b_sd", 1.0, positive))
        )
    )


@broken("warning", "a", "part of the gradient is cut off", "a_loc", "detach()", "broken_guides.py")
def first_groups_detached():
    def a():
        loc = param("a_loc", [0.1, 0.2, 0.3, 0.4])
        loc = torch.cat([loc[:2].detach(), loc[2:]])
        pyro.sample("a", dist.Normal(loc, param("a_scale", 0.1, positive)))

    return regression_guide(a)


@broken("warning", "a", "part of the gradient is cut off", "the draw of a0", "in the guide")
def parent_detached_in_the_guide():
    def guide(x, y):
        a0 = gaussian_site("a0")
        positive_site("tau"), gaussian_site("b")
        with pyro.plate("groups", 4):
            pyro.sample(
                "a", dist.Normal(a0.detach() + param("shift", 0.1), param("s", 0.1, positive))
            )

    return regression, guide, XY


@broken("warning", "y", "part of the gradient is cut off", "the draw of b", "in the model")
def slope_detached_in_the_model():
    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(b.detach() * x, 1.0), obs=y)

    return model, lambda x, y: gaussian_site("b"), XY


@broken(
    "error",
    None,
    "changes parameter 'b_mu' itself",
    "broken_guides.py",
    ".data",
    "a start is given once",
)
def start_set_at_each_call():
    def b(n):
        mu = pyro.param("b_mu", torch.tensor(0.0))
        mu.data.fill_(0.5)
        pyro.sample(n, dist.Normal(mu, 0.1))

    return regression_guide(b=b)


@broken("error", None, "changes parameter 'w' itself", "normal_(")
def weights_drawn_anew_in_place():
    w = nn.Parameter(torch.zeros(D))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = w

        def model(self, x):
            b = pyro.sample("b", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal((b * x).sum(-1), 1.0), obs=x[:, 0])

        def guide(self, x):
            with torch.no_grad():
                self.w.normal_()
            pyro.sample("b", dist.Normal(self.w, 1.0).to_event(1))

    pair = Pair()
    return pair.model, pair.guide, (rows(),)


@broken("error", None, "throws parameter 'b_loc' away", "clear_param_store")
def store_cleared_in_the_guide():
    def b(n):
        pyro.clear_param_store()
        gaussian_site(n)

    def guide(x, y):
        b("b")

    def model(x, y):
        slope = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    return model, guide, XY


@broken("error", None, "new parameters at each call", "b_loc_", "counter")
def parameter_with_a_counter():
    calls = [0]

    def b(n):
        calls[0] += 1
        pyro.sample(n, dist.Normal(param(f"b_loc_{calls[0]}", 0.0), 0.1))

    return regression_guide(b=b)


@broken("warning", None, "given a start at two places", "two names", "broken_guides.py")
def one_parameter_for_two_sites():
    def guide(x, y):
        pyro.sample("a0", dist.Normal(param("loc", 0.1), 0.1))
        pyro.sample("b", dist.Normal(param("loc", 0.1), 0.1))
        positive_site("tau")
        with pyro.plate("groups", 4):
            pyro.sample("a", dist.Normal(param("a_loc", [0.1] * 4), 0.1))

    return regression, guide, XY


@broken("error", "a", "forgets a latent", "add the site")
def groups_forgotten():
    def guide(x, y):
        gaussian_site("a0"), positive_site("tau"), gaussian_site("b")

    return regression, guide, XY


@broken("error", "a", "scale it differently", "of 3 in the guide and 4 in the model")
def too_few_groups():
    def guide(x, y):
        gaussian_site("a0"), positive_site("tau"), gaussian_site("b")
        with pyro.plate("groups", 3):
            pyro.sample("a", dist.Normal(param("a_loc", [0.1] * 3), 0.1))

    return regression, guide, XY


@broken("error", None, "another order", "guide(y, x)", "in the model's order")
def arguments_swapped():
    def guide(y, x):
        gaussian_site("b")

    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)

    return model, guide, XY


@broken("error", "tau", "observes data", "broken_guides.py", "pyro.sample(n, ", "drop obs= there")
def latent_observed_in_the_guide():
    return regression_guide(
        tau=lambda n: pyro.sample(n, dist.LogNormal(param("t", 0.0), 0.1), obs=torch.tensor(0.5))
    )


@broken("warning", None, "get no gradient", "tau_scale")
def scale_as_a_number():
    def tau(n):
        s = param("tau_scale", 0.1, positive).item()
        pyro.sample(n, dist.LogNormal(param("tau_loc", 0.0), s))

    return regression_guide(tau=tau)


@broken("error", None, "module 'net' is used but not registered")
def network_in_a_regression():
    net = nn.Linear(1, 1)

    def guide(x, y):
        pyro.sample("b", dist.Normal(net(x.mean()[None]).squeeze(-1), param("s", 0.1, positive)))

    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)

    return model, guide, XY


@broken("warning", "b", "does not do the same under one seed", "counters", "broken_guides.py")
def own_annealing_counter():
    calls = [0]

    def b(n):
        calls[0] += 1
        return pyro.sample(
            n, dist.Normal(param("b_loc", 0.0), 0.99 ** calls[0] + param("s", 0.1, positive))
        )

    def model(x, y):
        slope = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    return model, lambda x, y: b("b"), XY


# ---------------------------------------------------------------- logistic regression, mini-batches


def logistic(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=(x * w).sum(-1)), obs=y)


def w_site():
    return pyro.sample(
        "w",
        dist.Normal(param("w_loc", [0.1] * D), param("w_scale", [0.1] * D, positive)).to_event(1),
    )


LABELLED = rows(100), (rows(100)[:, 0] > 0).float()


@broken("error", "y", "draws a mini-batch of its own", "10 of the 100 rows of argument 1",
        "subsample_size=10", "broken_guides.py")  # fmt: skip
def private_batch():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        i = torch.randperm(len(x))[:10]
        with pyro.plate("data", 10):
            pyro.sample("y", dist.Bernoulli(logits=(x[i] * w).sum(-1)), obs=y[i])

    return model, lambda x, y: w_site(), LABELLED


@broken(
    "error", "y", "draws a mini-batch of its own", "20 of the 100 rows", "weighs 5 times too little"
)
def private_batch_by_numpy():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        i = torch.as_tensor(np.random.choice(len(x), 20, replace=False))
        with pyro.plate("data", len(i)):
            pyro.sample("y", dist.Bernoulli(logits=(x[i] * w).sum(-1)), obs=y[i])

    return model, lambda x, y: w_site(), LABELLED


@broken("error", "y", "does not follow the rows of plate 'data'", "the data", "x[i]")
def first_rows_of_the_data():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=10):
            pyro.sample("y", dist.Bernoulli(logits=(x[:10] * w).sum(-1)), obs=y[:10])

    return model, lambda x, y: w_site(), LABELLED


@broken("error", "y", "does not follow the rows", "the distribution (Bernoulli)")
def covariates_of_other_rows():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=10) as i:
            pyro.sample("y", dist.Bernoulli(logits=(x[:10] * w).sum(-1)), obs=y[i])

    return model, lambda x, y: w_site(), LABELLED


@broken("error", "y", "probs of Bernoulli is out of range", "the unit interval", "sigmoid")
def probabilities_without_a_link():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(3 + (x * w).sum(-1)), obs=y)

    return model, lambda x, y: w_site(), LABELLED


@broken("error", "y", "data lie outside", "0 or 1")
def labels_of_minus_one():
    return logistic, lambda x, y: w_site(), (LABELLED[0], 2 * LABELLED[1] - 1)


@broken("error", "w", "event dimensions differently", ".to_event(1)")
def coefficients_without_to_event():
    def guide(x, y):
        pyro.sample("w", dist.Normal(param("w_loc", [0.1] * D), 0.1))

    return logistic, guide, LABELLED


def local(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=10) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])


@broken(
    "error",
    "z",
    "does not follow the rows of plate 'data'",
    "the same 10 rows",
    "loc[i]",
    "broken_guides.py",
)
def first_rows_of_the_parameters():
    def guide(y):
        gaussian_site("mu")
        loc = param("loc", [0.0] * len(y))
        with pyro.plate("data", len(y), subsample_size=10):
            pyro.sample("z", dist.Normal(loc[:10], 1.0))

    return local, guide, (many(),)


@broken("error", "z", "does not follow the rows", "loc[i]")
def encoder_of_the_first_rows():
    net = nn.Linear(1, 1)

    def guide(y):
        pyro.module("net", net)
        gaussian_site("mu")
        with pyro.plate("data", len(y), subsample_size=10) as i:
            pyro.sample("z", dist.Normal(net(y[: len(i), None]).squeeze(-1), 1.0))

    return local, guide, (many(),)


@broken(
    "error",
    "z",
    "each draw a mini-batch of their own",
    "'data' (the model)",
    "'batch' (the guide)",
    "one name in both",
)
def two_subsamples():
    def guide(y):
        gaussian_site("mu")
        loc = param("loc", [0.0] * len(y))
        with pyro.plate("batch", len(y), subsample_size=10) as i:
            pyro.sample("z", dist.Normal(loc[i], 1.0))

    return local, guide, (many(),)


@broken("error", "mu", "different sizes", "10 in the model, 100 in the guide", "broken_guides.py")
def guide_of_all_rows():
    def guide(y):
        gaussian_site("mu")
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(param("loc", [0.0] * len(y)), 1.0))

    return local, guide, (many(),)


@broken("error", "z", "does not follow the rows", "loc[i]", size=100)
def first_rows_under_a_given_batch():
    def model(y, i, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size or 100, subsample=i):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(y, i, size=None):
        gaussian_site("mu")
        loc = param("loc", [0.0] * 100)
        with pyro.plate("data", size or 100, subsample=i):
            pyro.sample("z", dist.Normal(loc[: len(y)], 1.0))

    return model, guide, (normal_data(20), torch.arange(20))


# ---------------------------------------------------------------- VAE


def vae(encode=None, decode=None, make=None):
    """A VAE of which one half is replaced."""

    class Broken(AE):
        def __init__(self):
            super().__init__()
            if make is not None:
                make(self)

        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                if encode is None:
                    loc, scale = self.encoder(x)
                else:
                    loc, scale = encode(self, x)
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

        def model(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
                fn = dist.Normal(self.decoder(z), 1.0) if decode is None else decode(self, z)
                pyro.sample("x", fn.to_event(1), obs=x)

    torch.manual_seed(0)
    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("warning", "z", "rows of a batch are coupled in the guide", "BatchNorm1d", "LayerNorm")
def batchnorm_in_the_encoder():
    def make(self):
        self.norm = nn.BatchNorm1d(D)

    return vae(lambda self, x: self.encoder(self.norm(x)), make=make)


@broken(
    "warning", "z", "rows of a batch are coupled in the guide", "x - x.mean(0)", "broken_guides.py"
)
def inputs_centred_by_the_batch():
    return vae(lambda self, x: self.encoder(x - x.mean(0)))


@broken("warning", "z", "rows of a batch are coupled", "of all data once")
def inputs_scaled_by_the_batch():
    return vae(lambda self, x: self.encoder(x / x.abs().amax()))


@broken("warning", "x", "part of the gradient is cut off", "the draw of z", "in the model")
def latent_detached_in_the_decoder():
    return vae(decode=lambda self, z: dist.Normal(self.decoder(z.detach()), 1.0))


@broken("warning", None, "get no gradient", "encoder.body.weight")
def body_detached():
    def encode(self, x):
        h = torch.tanh(self.encoder.body(x)).detach()
        return self.encoder.loc(h), nn.functional.softplus(self.encoder.scale(h))

    return vae(encode)


@broken("warning", "z", "part of the gradient is cut off", "encoder.body")
def body_detached_for_the_scale():
    def encode(self, x):
        h = torch.tanh(self.encoder.body(x))
        return self.encoder.loc(h), nn.functional.softplus(self.encoder.scale(h.detach()))

    return vae(encode)


@broken("warning", "z", "scale of Normal may leave its range", "encoder.scale")
def scale_head_near_one():
    def encode(self, x):
        h = torch.tanh(self.encoder.body(x))
        return self.encoder.loc(h), 1 + 0.1 * self.encoder.scale(h)

    return vae(encode)


@broken("warning", "x", "scale of Normal may leave its range", "noise")
def noise_without_a_constraint():
    def make(self):
        self.noise = nn.Parameter(torch.ones(D))

    return vae(decode=lambda self, z: dist.Normal(self.decoder(z), self.noise), make=make)


@broken("error", None, "builds a Linear anew", "broken_guides.py", "make it once")
def head_built_in_the_guide():
    def guide(x):
        net = nn.Linear(D, L)
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return vae()[0], guide, (rows(),)


@broken("error", None, "builds a Linear anew", "make it once")
def decoder_built_in_the_model():
    def model(x):
        decoder = nn.Sequential(nn.Linear(L, 8), nn.Tanh(), nn.Linear(8, D))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return model, vae()[1], (rows(),)


@broken("error", "z", "stops", "pyro.distributions", "broken_guides.py")
def distribution_of_torch():
    def guide(x):
        scale = param("s", 1.0, positive)
        pyro.sample("z", torch.distributions.Normal(param("loc", 0.0), scale))

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model, guide, (normal_data(),)


@broken(
    "error", "x", "does not fit plate 'data'", "broken_guides.py", "to_event(1)")  # fmt: skip
def likelihood_without_to_event():
    class Broken(AE):
        def model(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0), obs=x)

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


# ---------------------------------------------------------------- auxiliary noise and flows


def scale_model(x):
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, sigma), obs=x)


def delta_guide(log_density=lambda u: 0.0, compute=torch.exp):
    def guide(x):
        base = dist.Normal(param("u_loc", 0.1), param("u_scale", 0.5, positive))
        u = pyro.sample("u", base, infer={"is_auxiliary": True})
        pyro.sample("sigma", dist.Delta(compute(u), log_density=log_density(u)))

    return scale_model, guide, (normal_data(),)


@broken(
    "error", "sigma", "lacks its Jacobian", "log_abs_det_jacobian", "0.000 nats", "broken_guides.py"
)
def delta_without_a_jacobian():
    return delta_guide()


@broken("error", "sigma", "lacks its Jacobian", "TransformedDistribution")
def jacobian_of_the_wrong_sign():
    return delta_guide(lambda u: u)


@broken("error", "z", "lacks its Jacobian", "(eps)")
def shifted_and_scaled_noise():
    class Broken(AE):
        def guide(self, x):
            pyro.module("ae", self)
            with pyro.plate("data", len(x)):
                loc, scale = self.encoder(x)
                noise = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
                eps = pyro.sample("eps", noise, infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(loc + scale * eps, event_dim=1))

    pair = Broken()
    return pair.model, pair.guide, (rows(),)


@broken("error", "w", "lacks its Jacobian", "(u)")
def correlated_noise_without_a_determinant():
    def guide(x, y):
        tril = param("tril", (0.5 * torch.eye(D)).tolist(), constraints.lower_cholesky)
        u = pyro.sample(
            "u", dist.Normal(torch.zeros(D), 1.0).to_event(1), infer={"is_auxiliary": True}
        )
        pyro.sample("w", dist.Delta((tril @ u.unsqueeze(-1)).squeeze(-1), event_dim=1))

    return logistic, guide, LABELLED


@broken("error", "a", "makes no latent", "r given the latents", "broken_guides.py")
def auxiliary_noise_without_its_density():
    def guide(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Normal(param("slope", 0.5) * a, param("s", 0.3, positive)))
        positive_site("sigma")

    return location_scale, guide, (normal_data(),)


@broken("error", "a", "does not have", "a density in the model", "arXiv:1602.05473")
def unmarked_noise_without_its_density():
    def guide(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("mu", dist.Normal(param("slope", 0.5) * a, param("s", 0.3, positive)))
        positive_site("sigma")

    return location_scale, guide, (normal_data(),)


@broken("error", "a", "makes no latent", "remove the site")
def noise_beside_a_delta():
    def guide(x):
        helps = {"is_auxiliary": True}
        u = pyro.sample(
            "u", dist.Normal(param("u_loc", 0.1), param("u_s", 0.3, positive)), infer=helps
        )
        pyro.sample("sigma", dist.Delta(u.exp(), log_density=-u))
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer=helps)
        pyro.sample("mu", dist.Normal(param("slope", 0.5) * a, 1.0))

    return location_scale, guide, (normal_data(),)


@broken("note", "w", "auxiliary noise of another size", "have no density", "one to one")
def semi_implicit_guide():
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, D))

    def guide(x, y):
        pyro.module("net", net)
        u = pyro.sample(
            "u", dist.Normal(torch.zeros(5), 1.0).to_event(1), infer={"is_auxiliary": True}
        )
        pyro.sample("w", dist.Delta(net(u), event_dim=1))

    return logistic, guide, LABELLED


@broken("error", None, "is used but not registered", "'flow'")
def flow_that_is_not_registered():
    flow = T.affine_autoregressive(D, hidden_dims=[8])

    def guide(x, y):
        base = dist.Normal(torch.zeros(D), param("s", [1.0] * D, positive)).to_event(1)
        pyro.sample("w", dist.TransformedDistribution(base, [flow]))

    return logistic, guide, LABELLED


@broken("error", None, "builds a ", "anew at each call", "make it once")
def flow_built_in_the_guide():
    def guide(x, y):
        flow = pyro.module("flow", T.affine_autoregressive(D, hidden_dims=[8]))
        base = dist.Normal(torch.zeros(D), 1.0).to_event(1)
        pyro.sample("w", dist.TransformedDistribution(base, [flow]))

    return logistic, guide, LABELLED


@broken("error", "sigma", "model cannot have", "positive numbers")
def flow_for_a_scale():
    flow = T.spline(1)

    def guide(x):
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        pyro.sample("mu", dist.Normal(param("m", 0.0), 1.0))
        z = dist.TransformedDistribution(
            dist.Normal(param("l", 1.0), 1.0), [T.AffineTransform(0.0, 2.0)]
        )
        pyro.sample("sigma", z), base

    return location_scale, guide, (normal_data(),)


@broken("error", "mu", "noise that no site draws", "torch.randn", "broken_guides.py")
def noise_of_torch_in_a_delta():
    def guide(x):
        noise = torch.randn(())
        pyro.sample("mu", dist.Delta(param("m", 0.1) + param("s", 0.3, positive) * noise))
        positive_site("sigma")

    return location_scale, guide, (normal_data(),)


@broken("warning", "x", "rows of a batch are coupled in the model", "BatchNorm1d", "LayerNorm")
def batchnorm_in_the_decoder():
    def make(self):
        self.norm = nn.BatchNorm1d(D)

    return vae(decode=lambda self, z: dist.Normal(self.norm(self.decoder(z)), 1.0), make=make)


# ---------------------------------------------------------------- mixtures and sequences


def mixture(use):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(use(loc, k), 1.0), obs=x)

    return model


def loc_site(x):
    pyro.sample(
        "loc", dist.Normal(param("l", [-1.0, 1.0]), param("s", [0.1, 0.1], positive)).to_event(1)
    )


@broken("error", None, "several values into one number", "broken_guides.py", "int(k)", "Vindex")
def component_as_an_integer():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc[int(k)], 1.0), obs=x)

    return model, loc_site, (normal_data(),)


@broken("error", None, "several values into one number", "torch.where")
def component_in_an_if():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            mine = loc[..., 0] if k > 0 else loc[..., 1]
            pyro.sample("x", dist.Normal(mine, 1.0), obs=x)

    return model, loc_site, (normal_data(),)


@broken("error", None, "several values into one number", "k.item()")
def states_of_a_chain_as_numbers():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        k = torch.tensor(0)
        for t in pyro.markov(range(4)):
            k = pyro.sample(f"k_{t}", dist.Categorical(torch.tensor([[0.9, 0.1], [0.1, 0.9]])[k]))
            pyro.sample(f"x_{t}", dist.Normal(loc[k.item()], 1.0), obs=x[t])

    return model, loc_site, (normal_data(),)


@broken("error", "k", "several values into one number", "broken_guides.py")
def assignments_as_an_integer():
    return mixture(lambda loc, k: loc[int(k)]), loc_site, (normal_data(),)


@broken(
    "note", "k", "no reparameterisation", "enumerate")  # fmt: skip
def assignments_drawn():
    def guide(x):
        loc_site(x)
        probs = pyro.param("p", torch.full((len(x), 2), 0.5), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(probs))

    return (
        mixture(lambda loc, k: torch.where(k == 0, loc[..., :1], loc[..., 1:])),
        guide,
        (normal_data(),),
    )


@broken("warning", "k", "probs of Bernoulli may leave its range", "the unit interval", "p_free")
def probability_without_a_constraint():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    return model, lambda x: pyro.sample("k", dist.Bernoulli(param("p_free", 0.5))), (normal_data(),)


@broken(
    "error", "loc", "different shapes", "(2,)", "(3,)")  # fmt: skip
def one_component_too_many():
    def guide(x):
        pyro.sample("loc", dist.Normal(param("l", [-1.0, 0.0, 1.0]), 0.1).to_event(1))

    return mixture(lambda loc, k: loc[..., 0] + k), guide, (normal_data(),)


LENGTHS = torch.tensor([4, 2, 3])


def chain(x):
    a = pyro.param("a", torch.tensor(0.5))
    with pyro.plate("sequences", 3):
        z = 0.0
        for t in range(4):
            with poutine.mask(mask=t < LENGTHS):
                z = pyro.sample(f"z_{t}", dist.Normal(a * z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=x[:, t])


@broken(
    "error",
    "z_2",
    "mask it differently",
    "2 elements count in the model, 3 in the guide",
    "poutine.mask",
)
def guide_without_the_mask():
    def guide(x):
        with pyro.plate("sequences", 3):
            for t in range(4):
                pyro.sample(
                    f"z_{t}",
                    dist.Normal(param(f"l_{t}", [0.1] * 3), param(f"s_{t}", 0.5, positive)),
                )

    return chain, guide, (rows(3, 4),)


@broken("error", "z_0", "forgets a latent", "rename the guide's")
def states_by_another_name():
    def guide(x):
        with pyro.plate("sequences", 3):
            for t in range(4):
                pyro.sample(f"z{t}", dist.Normal(param(f"l_{t}", [0.1] * 3), 1.0))

    return chain, guide, (rows(3, 4),)


@broken("warning", "z_1", "part of the gradient is cut off", "the draw of z_0")
def state_detached():
    def guide(x):
        with pyro.plate("sequences", 3):
            z = torch.zeros(3)
            for t in range(4):
                with poutine.mask(mask=t < LENGTHS):
                    loc = param(f"l_{t}", [0.1] * 3) + param("c", 0.5) * z
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, param("s", 0.5, positive))).detach()

    return chain, guide, (rows(3, 4),)


# ---------------------------------------------------------------- counts, shares, supports

COUNTS = normal_data().abs().mul(3).round()


def rate_model(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


@broken("warning", "rate", "concentration of Gamma may leave its range", "shape")
def gamma_without_constraints():
    def guide(x):
        pyro.sample("rate", dist.Gamma(param("shape", 2.0), param("inverse", 1.0, positive)))

    return rate_model, guide, (COUNTS,)


@broken("warning", "p", "concentration1 of Beta may leave its range", "alpha")
def beta_without_constraints():
    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def guide(x):
        pyro.sample("p", dist.Beta(param("alpha", 2.0), param("beta", 2.0)))

    return model, guide, (COUNTS.clamp(max=1),)


@broken("warning", "x", "rate of Poisson may leave its range", "positive", "broken_guides.py")
def counts_without_a_link():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(5 + w * torch.ones(len(x))), obs=x)

    return model, lambda x: gaussian_site("w"), (COUNTS,)


@broken("error", "x", "data lie outside", "rescale or clean")
def negative_counts():
    return rate_model, lambda x: positive_site("rate"), (COUNTS - 3,)


@broken("error", "x", "probs of NegativeBinomial is out of range", "unit interval")
def mean_for_a_probability():
    def model(x):
        mean = pyro.sample("mean", dist.LogNormal(1.0, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.NegativeBinomial(5.0, mean), obs=x)

    return model, lambda x: pyro.sample("mean", dist.LogNormal(param("m", 1.0), 0.1)), (COUNTS,)


def shares(x):
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(torch.zeros(()), 1 - a))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


@broken(
    "warning",
    "b",
    "may draw values that the model cannot have",
    "depends on other sites",
    "fraction",
)
def dependent_support():
    pyro.set_rng_seed(1)
    return shares, AutoNormal(shares), (normal_data(),)


@broken("warning", "b", "may draw values that the model cannot have", "fraction")
def dependent_support_for_a_joint_normal():
    return shares, AutoDiagonalNormal(shares), (normal_data(),)


@broken("error", "b", "model cannot have", "interval")
def dependent_support_by_hand():
    def guide(x):
        for n in "ab":
            c = (param(f"{n}_{i}", 2.0, positive) for i in (1, 0))
            pyro.sample(n, dist.Beta(*c))

    return shares, guide, (normal_data(),)


@broken("error", None, "stops", "poutine.block", "k")
def autoguide_of_a_discrete_latent():
    model = mixture(lambda loc, k: torch.where(k == 0, loc[..., :1], loc[..., 1:]))
    return model, AutoNormal(model), (normal_data(),)
