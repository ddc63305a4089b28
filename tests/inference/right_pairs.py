"""Pairs that are right, Pyro's own examples and tutorials among them: `check` must be silent.

Each is as its source writes it, on data of its shape. A note that something is summed out, has no
reparameterisation or no closed form is no alarm; a warning is.
"""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
import torch.nn.functional as F
from broken_guides import (
    COUNTS,
    LABELLED,
    LENGTHS,
    XY,
    chain,
    loc_site,
    local,
    logistic,
    many,
    mixture,
    param,
    positive,
    rate_model,
    regression,
    rows,
    shares,
    unit,
    vae,
    w_site,
)
from broken_pairs import AE, D, L, N, gaussian_site, location_scale, normal_data, positive_site
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.infer.autoguide.initialization import init_to_median
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from torch import nn
from torch.distributions import constraints

RIGHT = {}


def right(make):
    RIGHT[make.__name__] = make
    return make


Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@right
def eight_schools_by_hand():
    """Pyro, examples/eight_schools/svi.py."""

    def model(y, sigma):
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)).to_event(1))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)).to_event(1))
        tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)).to_event(1))
        theta = mu + tau * eta
        pyro.sample("obs", dist.Normal(theta, sigma).to_event(1), obs=y)

    def guide(y, sigma):
        loc_eta = param("loc_eta", [0.1] * 8)
        scale_eta = param("scale_eta", [0.1] * 8, positive)
        loc_mu, scale_mu = param("loc_mu", [0.2]), param("scale_mu", [0.1], positive)
        loc, scale = param("loc_logtau", [0.3]), param("scale_logtau", [0.1], positive)
        pyro.sample("eta", dist.Normal(loc_eta, scale_eta).to_event(1))
        pyro.sample("mu", dist.Normal(loc_mu, scale_mu).to_event(1))
        log_tau = dist.TransformedDistribution(dist.Normal(loc, scale), [T.ExpTransform()])
        pyro.sample("tau", log_tau.to_event(1))

    return model, guide, (Y, SIGMA)


@right
def eight_schools_by_an_autoguide():
    return schools, AutoNormal(schools), (Y, SIGMA)


@right
def eight_schools_not_centred():
    model = poutine.reparam(schools, config={"theta": LocScaleReparam(0.0)})
    return model, AutoMultivariateNormal(model, init_loc_fn=init_to_median), (Y, SIGMA)


@right
def eight_schools_two_latents_at_once():
    """A joint draw of mu and log tau, split by Deltas that count their Jacobian."""

    def guide(y, sigma):
        tril = param("tril", [[0.5, 0.0], [0.1, 0.5]], constraints.lower_cholesky)
        joint = dist.MultivariateNormal(param("loc", [0.0, 0.0]), scale_tril=tril)
        u = pyro.sample("u", joint, infer={"is_auxiliary": True})
        mu = pyro.sample("mu", dist.Delta(u[..., 0]))
        tau = pyro.sample("tau", dist.Delta(u[..., 1].exp(), log_density=-u[..., 1]))
        with pyro.plate("schools", len(y)):
            precision = 1 / tau**2 + 1 / sigma**2
            mean = (mu / tau**2 + y / sigma**2) / precision
            pyro.sample("theta", dist.Normal(mean, precision.rsqrt()))

    return schools, guide, (Y, SIGMA)


@right
def coin():
    """Pyro, SVI tutorial, part I."""

    def model(x):
        f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(f), obs=x)

    def guide(x):
        alpha, beta = param("alpha_q", 15.0, positive), param("beta_q", 15.0, positive)
        pyro.sample("latent_fairness", dist.Beta(alpha, beta))

    return model, guide, (COUNTS.clamp(max=1),)


@right
def coin_in_mini_batches():
    """Pyro, SVI tutorial, part II: a subsample that the plate draws."""
    guide, (x,) = coin()[1:]

    def model(x):
        f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("data", len(x), subsample_size=5) as i:
            pyro.sample("obs", dist.Bernoulli(f), obs=x.index_select(0, i))

    return model, guide, (x,)


@right
def local_latents_in_mini_batches():
    """Pyro, SVI tutorial, part II: a parameter for each datum, those of the drawn rows used."""

    def guide(y):
        gaussian_site("mu")
        loc, scale = param("loc", [0.0] * len(y)), param("scale", [1.0] * len(y), positive)
        with pyro.plate("data", len(y), subsample_size=10) as i:
            pyro.sample("z", dist.Normal(loc[i], scale[i]))

    return local, guide, (many(),)


@right
def local_latents_with_event_dim():
    def guide(y):
        gaussian_site("mu")
        with pyro.plate("data", len(y), subsample_size=10):
            loc = pyro.param("loc", lambda: torch.zeros(len(y)), event_dim=0)
            pyro.sample("z", dist.Normal(loc, 1.0))

    return local, guide, (many(),)


@right
def local_latents_by_an_autoguide():
    return local, AutoNormal(local), (many(),)


@right
def local_latents_amortised():
    net = nn.Linear(1, 2)

    def guide(y):
        pyro.module("net", net)
        gaussian_site("mu")
        with pyro.plate("data", len(y), subsample_size=10) as i:
            loc, raw = net(y[i, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, F.softplus(raw)))

    return local, guide, (many(),)


@right
def score_function_guide():
    """Pyro, SVI tutorial, part III: a discrete guide, by the score function."""

    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(p))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        pyro.sample("p", dist.Beta(param("a", 2.0, positive), param("b", 2.0, positive)))
        pyro.sample("k", dist.Bernoulli(param("q", 0.5, unit)))

    return model, guide, (normal_data(),)


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](D, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, D]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


@right
def bayesian_regression():
    """Pyro, Bayesian regression tutorial, part I."""
    model = Regression()
    return model, AutoDiagonalNormal(model), (rows(), normal_data())


@right
def rugged_terrain():
    """Pyro, Bayesian regression tutorial, part II, with its guide."""

    def model(is_africa, rugged, gdp):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b_a = pyro.sample("bA", dist.Normal(0.0, 1.0))
        b_r = pyro.sample("bR", dist.Normal(0.0, 1.0))
        b_ar = pyro.sample("bAR", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = a + b_a * is_africa + b_r * rugged + b_ar * is_africa * rugged
        with pyro.plate("data", len(rugged)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=gdp)

    def guide(is_africa, rugged, gdp):
        loc, scale = param("a_loc", 0.1), param("a_scale", 1.0, positive)
        sigma_loc = param("sigma_loc", 1.0, positive)
        weights_loc, weights_scale = (
            param("weights_loc", [0.1] * 3),
            param("weights_scale", [1.0] * 3, positive),
        )
        pyro.sample("a", dist.Normal(loc, scale))
        pyro.sample("bA", dist.Normal(weights_loc[0], weights_scale[0]))
        pyro.sample("bR", dist.Normal(weights_loc[1], weights_scale[1]))
        pyro.sample("bAR", dist.Normal(weights_loc[2], weights_scale[2]))
        to = [T.SigmoidTransform(), T.AffineTransform(0.0, 10.0)]
        pyro.sample("sigma", dist.TransformedDistribution(dist.Normal(sigma_loc, 0.5), to))

    return model, guide, ((normal_data() > 0).float(), rows(N, 2)[:, 1], normal_data())


@right
def gaussian_mixture():
    """Pyro, Gaussian mixture tutorial: MAP of the globals, assignments summed out."""

    @config_enumerate
    def model(data):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            k = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(Vindex(locs)[..., k], scale), obs=data)

    guide = AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    return model, guide, (normal_data(),)


@right
def mixture_by_hand():
    return (
        mixture(lambda loc, k: torch.where(k == 0, loc[..., :1], loc[..., 1:])),
        loc_site,
        (normal_data(),),
    )


@right
def vae_tutorial():
    """Pyro, VAE tutorial."""
    return vae()


@right
def vae_told_the_size():
    net = AE()

    def model(x, size=None):
        pyro.module("decoder", net.decoder)
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net.decoder(z)).to_event(1), obs=x)

    def guide(x, size=None):
        pyro.module("encoder", net.encoder)
        with pyro.plate("data", size or len(x), subsample=x):
            loc, scale = net.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide, ((rows() > 0).float(),)


@right
def vae_with_layernorm_and_dropout():
    def make(self):
        self.norm = nn.Sequential(nn.LayerNorm(D), nn.Dropout(0.2))

    return vae(lambda self, x: self.encoder(self.norm(x)), make=make)


@right
def vae_with_batchnorm_at_rest():
    def make(self):
        self.norm = nn.BatchNorm1d(D).eval()

    return vae(lambda self, x: self.encoder(self.norm(x)), make=make)


@right
def vae_with_relu():
    def make(self):
        self.more = nn.Sequential(nn.Linear(D, 32), nn.ReLU(), nn.Linear(32, D))

    return vae(lambda self, x: self.encoder(self.more(x)), make=make)


@right
def vae_with_a_learned_noise():
    def make(self):
        self.log_noise = nn.Parameter(torch.zeros(D))

    return vae(decode=lambda self, z: dist.Normal(self.decoder(z), self.log_noise.exp()), make=make)


@right
def semi_supervised_vae():
    """Pyro, SS-VAE tutorial: the label is known to the guide, or drawn by it and summed out."""
    encode_y, encode_z, decode = nn.Linear(D, 3), nn.Linear(D + 3, 2 * L), nn.Linear(L + 3, D)

    def model(x):
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(len(x), 3) / 3))
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), L), 1.0).to_event(1))
            batch = torch.broadcast_shapes(y.shape[:-1], z.shape[:-1])
            h = torch.cat([y.expand(*batch, 3), z.expand(*batch, L)], -1)
            pyro.sample("x", dist.Normal(decode(h), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encode_y", encode_y), pyro.module("encode_z", encode_z)
        with pyro.plate("data", len(x)):
            y = pyro.sample(
                "y", dist.OneHotCategorical(logits=encode_y(x)), infer={"enumerate": "parallel"}
            )
            batch = torch.broadcast_shapes(y.shape[:-1], x.shape[:-1])
            h = torch.cat([x.expand(*batch, D), y.expand(*batch, 3)], -1)
            loc, raw = encode_z(h).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(raw)).to_event(1))

    return model, guide, (rows(),)


@right
def deep_markov_model():
    """Pyro, DMM tutorial, small: masks in both halves, a recurrent guide."""
    rnn, combine = nn.RNN(1, 4, batch_first=True), nn.Linear(5, 2)
    move, emit = nn.Linear(1, 2), nn.Linear(1, 1)

    def model(x):
        pyro.module("move", move), pyro.module("emit", emit)
        with pyro.plate("data", 3):
            z = torch.zeros(3, 1)
            for t in pyro.markov(range(1, 5)):
                with poutine.mask(mask=t <= LENGTHS):
                    loc, raw = move(z).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, F.softplus(raw)).to_event(1))
                    pyro.sample(
                        f"x_{t}", dist.Normal(emit(z), 1.0).to_event(1), obs=x[:, t - 1, None]
                    )

    def guide(x):
        pyro.module("rnn", rnn), pyro.module("combine", combine)
        h, _ = rnn(x.flip(1).unsqueeze(-1))
        with pyro.plate("data", 3):
            z = torch.zeros(3, 1)
            for t in pyro.markov(range(1, 5)):
                with poutine.mask(mask=t <= LENGTHS):
                    hidden = h[:, 4 - t].expand(*z.shape[:-1], 4)
                    loc, raw = combine(torch.cat([z, hidden], -1)).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, F.softplus(raw)).to_event(1))

    return model, guide, (rows(3, 4),)


@right
def chain_with_its_mask():
    def guide(x):
        with pyro.plate("sequences", 3):
            for t in range(4):
                with poutine.mask(mask=t < LENGTHS):
                    fn = dist.Normal(param(f"l_{t}", [0.1] * 3), param(f"s_{t}", 0.5, positive))
                    pyro.sample(f"z_{t}", fn)

    return chain, guide, (rows(3, 4),)


@right
def hidden_markov_model():
    """Pyro, examples/hmm.py, model 1 on one sequence: states are summed out."""

    def model(x):
        probs = pyro.sample("probs", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        k = 0
        for t in pyro.markov(range(5)):
            k = pyro.sample(f"k_{t}", dist.Categorical(Vindex(probs)[..., k, :]))
            pyro.sample(f"x_{t}", dist.Normal(Vindex(loc)[..., k], 1.0), obs=x[t])

    hidden = poutine.block(model, hide_fn=lambda site: site["name"].startswith("k_"))
    return model, AutoDelta(hidden), (normal_data(),)


@right
def hidden_markov_model_at_once():
    def model(x):
        start = pyro.param("start", torch.full((2,), 0.5), constraint=constraints.simplex)
        move = pyro.param("move", torch.full((2, 2), 0.5), constraint=constraints.simplex)
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        hmm = dist.DiscreteHMM(
            start.log(), move.log(), dist.Normal(loc.unsqueeze(-2), 1.0), duration=len(x)
        )
        pyro.sample("x", hmm, obs=x)

    return model, AutoNormal(model), (normal_data(),)


@right
def latent_dirichlet_allocation():
    """Pyro, examples/lda.py, small: words summed over topics."""

    def model(words):
        with pyro.plate("topics", 2):
            topics = pyro.sample("topic_words", dist.Dirichlet(torch.ones(6) / 2))
        with pyro.plate("documents", words.shape[-1]):
            doc = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(2)))
            with pyro.plate("words", len(words)):
                z = pyro.sample("z", dist.Categorical(doc))
                pyro.sample("w", dist.Categorical(Vindex(topics)[..., z, :]), obs=words)

    def guide(words):
        with pyro.plate("topics", 2):
            start = torch.rand(2, 6, generator=torch.Generator().manual_seed(0)) + 0.5
            pyro.sample("topic_words", dist.Dirichlet(pyro.param("t", start, constraint=positive)))
        with pyro.plate("documents", words.shape[-1]):
            q = pyro.param("d", torch.ones(words.shape[-1], 2), constraint=positive)
            pyro.sample("doc_topics", dist.Dirichlet(q))

    words = torch.randint(0, 6, (7, 5), generator=torch.Generator().manual_seed(0))
    return model, guide, (words,)


@right
def forecasting():
    """A local level with a seasonal part, as Pyro's forecasting tutorial builds it."""

    def model(x):
        t = len(x)
        drift = pyro.sample("drift_scale", dist.LogNormal(-1.0, 1.0))
        bias = pyro.sample("bias", dist.Normal(0.0, 10.0))
        with pyro.plate("season", 4, dim=-1):
            season = pyro.sample("seasonal", dist.Normal(0.0, 1.0))
        with pyro.plate("time", t, dim=-1):
            step = pyro.sample("drift", dist.Normal(0.0, 1.0))
            level = (drift * step).cumsum(-1)
            pyro.sample(
                "x", dist.Normal(bias + level + season[..., torch.arange(t) % 4], 0.5), obs=x
            )

    return model, AutoNormal(model), (normal_data(),)


@right
def item_response():
    def model(y):
        with pyro.plate("items", 4, dim=-2):
            a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("people", 6, dim=-1):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("items_", 4, dim=-2):
                pyro.sample("y", dist.Bernoulli(logits=a * (theta - b)), obs=y)

    return model, AutoNormal(model), ((rows(4, 6) > 0).float(),)


@right
def horseshoe():
    def model(x, y):
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("features", D):
            lam = pyro.sample("lam", dist.HalfCauchy(1.0))
            b = pyro.sample("b", dist.Normal(0.0, tau * lam))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * b.unsqueeze(-2)).sum(-1), 1.0), obs=y)

    return (
        model,
        AutoLowRankMultivariateNormal(model, init_loc_fn=init_to_median),
        (rows(), normal_data()),
    )


def funnel():
    y = pyro.sample("y", dist.Normal(0.0, 3.0))
    with pyro.plate("parts", 9):
        return pyro.sample("z", dist.Normal(0.0, (y / 2).exp()))


@right
def funnel_of_neal_with_data():
    def model(x):
        with poutine.scale(scale=1.0):
            z = funnel()
        with pyro.plate("data", 9):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    model = poutine.reparam(model, config={"z": LocScaleReparam(0.0)})
    return model, AutoDiagonalNormal(model), (normal_data(9),)


@right
def transformed_prior():
    def model(x):
        fn = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [T.ExpTransform()])
        s = pyro.sample("s", fn)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, s), obs=x)

    model = poutine.reparam(model, config={"s": TransformReparam()})
    return model, AutoNormal(model), (normal_data(),)


@right
def hierarchical_regression():
    def guide(x, y):
        a0 = gaussian_site("a0")
        positive_site("tau"), gaussian_site("b")
        with pyro.plate("groups", 4):
            loc, scale = param("a_loc", [0.0] * 4), param("a_scale", [0.1] * 4, positive)
            pyro.sample("a", dist.Normal(a0 + loc, scale))

    return regression, guide, XY


@right
def structured_autoguide():
    return regression, AutoStructured(
        regression, conditionals={"a0": "normal", "tau": "normal", "b": "normal", "a": "normal"},
        dependencies={"a": {"tau": "linear"}},
    ), XY  # fmt: skip


@right
def logistic_regression():
    return logistic, lambda x, y: w_site(), LABELLED


@right
def logistic_regression_by_laplace():
    return logistic, AutoLaplaceApproximation(logistic), LABELLED


@right
def flow_guide():
    flow = affine_autoregressive(D, hidden_dims=[8])

    def guide(x, y):
        pyro.module("flow", flow)
        base = dist.Normal(param("loc", [0.1] * D), param("s", [0.5] * D, positive)).to_event(1)
        pyro.sample("w", dist.TransformedDistribution(base, [flow]))

    return logistic, guide, LABELLED


@right
def inverse_autoregressive_autoguide():
    return logistic, AutoIAFNormal(logistic, hidden_dim=[8]), LABELLED


@right
def affine_delta_with_its_jacobian():
    def guide(x, y):
        loc, scale = param("loc", [0.1] * D), param("s", [0.5] * D, positive)
        noise = dist.Normal(torch.zeros(D), 1.0).to_event(1)
        u = pyro.sample("u", noise, infer={"is_auxiliary": True})
        pyro.sample("w", dist.Delta(loc + scale * u, log_density=-scale.log().sum(-1), event_dim=1))

    return logistic, guide, LABELLED


@right
def auxiliary_variable_with_its_density():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.sample("a", dist.Normal(param("back", 0.3) * mu, param("back_s", 1.0, positive)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("mu", dist.Normal(param("slope", 0.5) * a, param("s", 0.3, positive)))

    return model, guide, (normal_data(),)


@right
def dependent_support_by_fractions():
    def guide(x):
        a = pyro.sample("a", dist.Beta(param("a1", 2.0, positive), param("a0", 2.0, positive)))
        u = dist.Normal(param("b_loc", 0.0), param("b_scale", 1.0, positive))
        to = [T.SigmoidTransform(), T.AffineTransform(torch.zeros(()), 1 - a)]
        pyro.sample("b", dist.TransformedDistribution(u, to))

    return shares, guide, (normal_data(),)


@right
def gamma_poisson():
    def guide(x):
        pyro.sample(
            "rate", dist.Gamma(param("shape", 2.0, positive), param("inverse", 1.0, positive))
        )

    return rate_model, guide, (COUNTS,)


@right
def negative_binomial_regression():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        phi = pyro.sample("phi", dist.Gamma(2.0, 0.5))
        with pyro.plate("data", len(x)):
            mean = (x * w).sum(-1).exp()
            pyro.sample("y", dist.NegativeBinomial(phi, logits=(mean / phi).log()), obs=y)

    guide = AutoGuideList(model)
    guide.append(AutoMultivariateNormal(poutine.block(model, expose=["w"])))
    guide.append(AutoDelta(poutine.block(model, expose=["phi"])))
    return model, guide, (rows(), COUNTS)


@right
def normal_by_map():
    def guide(x):
        pyro.sample("mu", dist.Delta(param("mu_map", 0.0)))
        pyro.sample("sigma", dist.Delta(param("sigma_map", 1.0, positive)))

    return location_scale, guide, (normal_data(),)


class Encoder(PyroModule):
    """A guide as a PyroModule with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.zeros(D))
        self.scale = PyroParam(torch.ones(D), constraint=positive)

    def forward(self, x, y):
        scale = self.scale * 0.5 + self.scale * 0.5
        return pyro.sample("w", dist.Normal(self.loc, scale).to_event(1))


@right
def guide_as_a_module():
    return logistic, Encoder(), LABELLED


@right
def gaussian_process_by_hand():
    def model(x, y):
        scale = pyro.sample("length", dist.LogNormal(0.0, 1.0))
        k = torch.exp(-0.5 * (x.unsqueeze(-1) - x).pow(2) / scale[..., None, None] ** 2)
        cov = k + 0.1 * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), cov), obs=y)

    return model, lambda x, y: positive_site("length"), XY


@right
def mixed_membership_counts():
    """Zero-inflated counts, with a factor."""

    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.ZeroInflatedPoisson(rate=rate, gate=p), obs=x)
        pyro.factor("penalty", -0.1 * rate)

    def guide(x):
        pyro.sample("p", dist.Beta(param("a", 1.0, positive), param("b", 1.0, positive)))
        positive_site("rate")

    return model, guide, (COUNTS,)
