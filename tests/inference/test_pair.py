import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from inference import fit, log_weights
from inference.pairs.pair import Pair, own_copy

X = torch.randn(12, generator=torch.Generator().manual_seed(0)) + 2


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.net = nn.Linear(1, 1)

    def forward(self, x):
        w = self.weight
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + self.net(x[:, None])[:, 0], self.noise), obs=x)


def test_finds_bare_params_and_keeps_the_store_empty():
    pair = Pair(model, guide, (X,))
    assert set(pair.params) == {"loc", "scale"}
    assert len(pyro.get_param_store()) == 0
    assert pair.constrained({"loc": torch.tensor(0.0), "scale": torch.tensor(0.0)})["scale"] == 1.0


def test_finds_parameters_of_pyro_modules_and_autoguides():
    net = Regression()
    m, g = own_copy(net, AutoNormal(net))
    pair = Pair(m, g, (X,))
    assert {
        "model.noise_unconstrained",
        "model.net.weight",
        "AutoNormal.locs.weight_unconstrained",
    } <= set(pair.params)
    assert len(pyro.get_param_store()) == 0


def test_finds_modules_registered_inside_a_function():
    net = nn.Linear(1, 1)

    def with_net(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None])[:, 0], 1.0), obs=x)

    pair = Pair(with_net, lambda x: None, (X,))
    assert set(pair.params) == {"net.weight", "net.bias"}
    with pair.bind({"net.weight": torch.zeros(1, 1), "net.bias": torch.ones(1)}, {}):
        assert net(torch.randn(3, 1)).eq(1).all()
    assert not net.bias.eq(1).all()


def test_bind_puts_everything_back():
    pair = Pair(model, guide, (X,))
    pyro.param("loc", torch.tensor(7.0))  # the user's own store
    with pair.bind({"loc": torch.tensor(3.0), "scale": torch.tensor(0.0)}, {}):
        weights = log_weights(model, guide, X)
    assert torch.isfinite(weights.elbo()).all()
    assert pyro.param("loc").item() == 7.0


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_own_copy_leaves_the_autoguide_its_model(autoguide):
    original = autoguide(model)
    _, copied = own_copy(model, original)
    assert original.model is not None and copied.model is not None
    original(X), copied(X)
    pyro.clear_param_store()


def test_a_function_and_a_method_keep_the_module_they_share():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.slope = nn.Linear(1, 1), nn.Linear(1, 1)

        def guide(self, x):
            pyro.module("half", self)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc(x.unsqueeze(-1)).squeeze(-1), 1.0))

    half = Half()
    before = half.slope.weight.detach().clone()

    def uses_half(x):
        pyro.module("half", half)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(half.slope(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    run = fit(uses_half, half.guide, X, steps=5, lr=0.1, progress=False)
    assert (run.params["guide.slope.weight"] - before).abs() > 0.1
    assert torch.equal(half.slope.weight, run.params["guide.slope.weight"])


def test_two_fits_never_touch_each_other():
    one = fit(model, guide, (X,), steps=50, lr=0.1, compile=False, progress=False)
    before = one.params["loc"].clone()
    fit(model, guide, (X + 10,), steps=50, lr=0.1, compile=False, progress=False)
    torch.testing.assert_close(one.params["loc"], before)
    net = Regression()
    fit(net, AutoNormal(net), (X,), steps=5, compile=False, progress=False)
    fresh = Regression()
    assert net.noise.item() == fresh.noise.item()  # the user's module is as it was
    assert len(pyro.get_param_store()) == 0


def test_constrained_parameters_stay_in_their_support():
    run = fit(model, guide, (X,), steps=100, lr=1.0, compile=False, progress=False)
    assert run.params["scale"] > 0


def test_run_functions_carry_their_parameters():
    run = fit(model, guide, (X,), steps=400, lr=0.05, compile=False, progress=False)
    weights = log_weights(run.model, run.guide, X, particles=200)
    exact = dist.MultivariateNormal(torch.zeros(12), torch.eye(12) + torch.ones(12, 12))
    gap = (exact.log_prob(X) - weights.elbo().mean()).item()
    assert -0.05 < gap < 0.2  # the guide's family holds the posterior; Adam's noise is left
