"""Supports that depend on other latents, as `beta ~ Uniform(0, 1 - alpha)` in Stan's guide."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import AffineTransform, biject_to, constraints

from inference import check, diagnose, fit, log_weights, make_guide, posterior, to_datatree
from inference.draws.joint import LogJoint

KINDS = "mean-field", "full-rank", "low-rank", "structured", "mixture", "iaf", "pathfinder"
Y = torch.tensor([0.4, 1.9, 1.1, 2.0, -0.2, 0.7, 1.5, 0.9])


def triangle(y):
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1 - a))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a + 2 * b, 1.0), obs=y)


@functools.cache
def by_quadrature():
    """Log evidence and the means of a and b, by the midpoint rule in a and b / (1 - a)."""
    grid = (torch.arange(300).double() + 0.5) / 300
    a, fraction = torch.meshgrid(grid, grid, indexing="ij")
    b = fraction * (1 - a)
    log_p = dist.Normal((a + 2 * b)[..., None], 1.0).log_prob(Y.double()).sum(-1)
    share = log_p.flatten().softmax(0).reshape(a.shape)
    evidence = float(log_p.flatten().logsumexp(0)) - 2 * math.log(300)
    return evidence, float((share * a).sum()), float((share * b).sum())


def stretched(y):
    """By hand: a Beta, stretched to what a leaves."""
    c = pyro.param("c", torch.full((4,), 2.0), constraint=constraints.positive)
    a = pyro.sample("a", dist.Beta(c[0], c[1]))
    to = AffineTransform(0.0, 1 - a)
    pyro.sample("b", dist.TransformedDistribution(dist.Beta(c[2], c[3]), [to]))


def bijected(y):
    """By hand: normals, taken to the supports as the model has them."""
    loc = pyro.param("loc", torch.zeros(2))
    to = biject_to(constraints.interval(0.0, 1.0))
    a = pyro.sample("a", dist.TransformedDistribution(dist.Normal(loc[0], 1.0), [to]))
    to = biject_to(constraints.interval(torch.zeros_like(a), 1 - a))
    pyro.sample("b", dist.TransformedDistribution(dist.Normal(loc[1], 1.0), [to]))


@pytest.mark.parametrize("kind", [*KINDS, stretched, bijected])
def test_weights_have_the_evidence_as_their_mean(kind):
    torch.manual_seed(0)
    wide = {} if kind == "pathfinder" else {"init_scale": 1.5}
    guide = kind if callable(kind) else make_guide(kind, triangle, Y, **wide)
    with torch.no_grad():
        found = log_weights(triangle, guide, Y, particles=4_000, nesting=1)
    a, b = (found.model[n].value.flatten() for n in ("a", "b"))
    assert a.std() > 0.01 and b.std() > 0.01 and (a + b).max() < 1.001
    weight = (found.elbo().double() - by_quadrature()[0]).exp()
    assert abs(weight.mean() - 1) < 4 * weight.std() / math.sqrt(4_000)
    assert weight.std() / math.sqrt(4_000) < 0.1


def sticks(sizes):
    with pyro.plate("sticks", len(sizes)):
        a = pyro.sample("a", dist.Uniform(0.0, sizes))
        b = pyro.sample("b", dist.Uniform(a, sizes))
        pyro.sample("c", dist.Uniform(b, sizes))


@pytest.mark.parametrize("kind", ["mean-field", "full-rank", "structured"])
def test_supports_in_a_plate_follow_one_after_another(kind):
    """There are no data: the evidence is 1."""
    torch.manual_seed(0)
    sizes = torch.tensor([1.0, 2.0, 5.0])
    guide = make_guide(kind, sticks, sizes, init_scale=2.5)
    with torch.no_grad():
        found = log_weights(sticks, guide, sizes, particles=4_000, nesting=1)
    a, b, c = (found.model[n].value for n in "abc")
    assert ((a < b) & (b < c) & (c < sizes)).double().mean() > 0.999
    weight = found.elbo().double().exp()
    assert abs(weight.mean() - 1) < 4 * weight.std() / math.sqrt(4_000)


def test_the_log_joint_follows_too():
    joint = LogJoint(triangle, (Y,))
    u = torch.tensor([[0.3, -1.0], [-2.0, 0.5]], dtype=torch.float64)
    s = u.sigmoid()
    a, b = s[:, 0], s[:, 1] * (1 - s[:, 0])
    log_p = dist.Normal((a + 2 * b)[:, None], 1.0).log_prob(Y.double()).sum(-1) - (1 - a).log()
    log_det = (s * (1 - s)).log().sum(-1) + (1 - a).log()
    assert torch.allclose(joint(u), log_p + log_det, rtol=1e-9)


def test_check_names_pyro_s_autoguides_and_no_guide_that_follows():
    (found,) = check(triangle, AutoNormal(triangle), Y)
    assert (found.level, found.site) == ("warning", "b") and "make_guide" in found.fix
    for guide in (make_guide("mean-field", triangle, Y), stretched, bijected):
        assert not check(triangle, guide, Y)


@pytest.mark.slow
def test_from_fit_to_the_corrected_posterior():
    run = fit(
        triangle, make_guide("mean-field", triangle, Y), Y,
        steps=300, lr=0.03, compile=False, progress=False,
    )  # fmt: skip
    found = diagnose(run, Y, draws=400)
    assert found.verdict == "trust the corrected posterior" or found.trust
    tree = found.corrected if found.corrected is not None else to_datatree(run, Y, draws=20_000)
    posterior = tree["posterior"]
    assert float((posterior.a + posterior.b).max()) < 1.001
    for name, truth in zip("ab", by_quadrature()[1:]):
        draws = posterior[name].values.ravel()
        # as many draws as the weights are worth, a tenth of them at the least
        assert abs(draws.mean() - truth) < 4 * draws.std() / math.sqrt(len(draws) / 10)


def test_what_cannot_follow_says_so():
    def model(y):
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            b = pyro.sample("b", dist.Uniform(0.0, 1 - a))
            pyro.sample("y", dist.Normal(b, 1.0), obs=y[rows])

    with pytest.raises(ValueError, match=r"site 'b'.*support depends.*Uniform\(0, 1\)"):
        make_guide("mean-field", model, Y, start={})
    guide = make_guide("mean-field", triangle, Y, start={})
    guide(Y)
    with pytest.raises(NotImplementedError, match="draw from the guide"):
        guide.quantiles([0.5])


def returns(days):
    """GARCH(1, 1) of unit start, alpha0 = 0.3, alpha1 = 0.5, beta1 = 0.3."""
    at = torch.Generator().manual_seed(0)
    y, variance = [], 1.0
    for noise in torch.randn(days, generator=at).tolist():
        y.append(5.0 + math.sqrt(variance) * noise)
        variance = 0.3 + 0.5 * (y[-1] - 5.0) ** 2 + 0.3 * variance
    return torch.tensor(y)


def garch(y, sigma1):
    """As Stan's user guide and posteriordb's garch11 write it."""
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = pyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    beta1 = pyro.sample("beta1", dist.Uniform(0.0, 1 - alpha1))
    sigma = [sigma1 + 0 * mu]
    for t in range(1, len(y)):
        square = alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * sigma[-1] ** 2
        sigma.append(square.sqrt())
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(sigma, -1)), obs=y)


def test_a_sequence_in_a_plate_is_not_called_coupled():
    y = returns(40)
    assert not check(garch, make_guide("mean-field", garch, y, torch.tensor(1.0)), y, 1.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no prior groups")
def test_garch_goes_the_whole_way():
    args = returns(80), torch.tensor(1.0)
    guide = make_guide("full-rank", garch, *args, start="pathfinder")
    run = fit(garch, guide, args, steps=200, lr=0.01, progress=False)
    found = diagnose(run, *args, draws=200)
    tree = found.corrected if found.corrected is not None else to_datatree(run, *args)
    draws = tree["posterior"]
    assert float((draws.alpha1 + draws.beta1).max()) < 1.001
    for name, truth in (("mu", 5.0), ("alpha0", 0.3), ("alpha1", 0.5), ("beta1", 0.3)):
        assert abs(float(draws[name].mean()) - truth) < 4 * float(draws[name].std()), name


@pytest.mark.slow
def test_posterior_without_knobs():
    found = posterior(triangle, Y, seconds=60)
    assert found.trust, found
    for name, truth in zip("ab", by_quadrature()[1:]):
        draws = found.datatree["posterior"][name].values.ravel()
        assert abs(draws.mean() - truth) < 4 * draws.std() / math.sqrt(len(draws) / 10)
