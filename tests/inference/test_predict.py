"""Predictions for new inputs: those of a linear regression are known in closed form."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import fit, make_guide, predict

X = torch.linspace(-1, 1, 20)
Y = 1 + 2 * X + 0.1 * torch.sin(40 * X)


def line(x, y=None):
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", beta[0] + beta[1] * x)
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def exact(x, y=None):
    """The posterior of `line` on X, Y."""
    design = torch.stack([torch.ones(20), X], 1)
    precision = design.T @ design / 0.25 + torch.eye(2) / 100
    mean = torch.linalg.solve(precision, design.T @ Y / 0.25)
    loc = pyro.param("loc", mean)
    pyro.sample("beta", dist.MultivariateNormal(loc, precision_matrix=precision))


def fitted(model, guide, *args):
    return fit(model, guide, args, steps=1, lr=1e-9, compile=False, progress=False)


@pytest.fixture(scope="module")
def run():
    return fitted(line, exact, X, Y)


def test_predictions_for_new_inputs(run):
    new = torch.tensor([-3.0, 0.5, 4.0])
    n = 4_000
    tree = predict(run, new, draws=n)
    assert set(tree.children) == {"predictions", "predictions_constant_data"}
    y = tree.predictions["y"]
    assert y.dims == ("chain", "draw", "data") and y.shape == (1, n, 3)
    assert tree.predictions["mean"].shape == y.shape
    assert (tree.predictions_constant_data["x"].values == new.numpy()).all()
    design = torch.stack([torch.ones(20), X], 1)
    precision = design.T @ design / 0.25 + torch.eye(2) / 100
    rows = torch.stack([torch.ones(3), new], 1)
    mean = rows @ torch.linalg.solve(precision, design.T @ Y / 0.25)
    variance = (rows @ torch.linalg.inv(precision) * rows).sum(-1) + 0.25
    drawn = torch.as_tensor(y.values[0])
    assert ((drawn.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    assert ((drawn.var(0) / variance - 1).abs() < 5 * (2 / n) ** 0.5).all()
    assert predict(run, (new, None), draws=n).predictions.equals(tree.predictions)


def test_latents_of_new_data_are_drawn_anew():
    """A group's own level is unknown before it is seen: N(mu, 1) and noise 0.1, mu the guide's."""

    def model(x, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            level = pyro.sample("level", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(level + 0 * x, 0.1), obs=y)

    guide = make_guide("mean-field", model, init_scale=0.01)
    run = fitted(model, guide, X, Y)
    y = predict(run, X[:5], draws=2_000).predictions["y"].values
    assert y.shape == (1, 2_000, 5)
    assert abs(y.var() / (1.01 + 0.01**2) - 1) < 5 * (2 / 10_000) ** 0.5


def test_new_inputs_of_another_shape_are_refused(run):
    with pytest.raises(ValueError, match=r"argument 0: expected shape .* got \(3, 2\)"):
        predict(run, torch.zeros(3, 2))
    with pytest.raises(TypeError, match="expected a run"):
        predict(line, X)
    with pytest.raises(TypeError, match=r"takes \(x, y=None\), got 3"):
        predict(run, X, Y, Y)

    def wants_y(x, y):
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(beta[0] + beta[1] * x, 0.5), obs=y)

    with pytest.raises(ValueError, match="does not run on the new arguments"):
        predict(fitted(wants_y, exact, X, Y), X)
