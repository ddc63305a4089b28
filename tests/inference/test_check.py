import copy
import random
import re

import broken_guides  # noqa: F401  # these extend the tables of broken and of right pairs
import broken_models  # noqa: F401
import broken_pairs
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import right_models  # noqa: F401
import torch
from broken_pairs import AE, BROKEN, N, normal_data, rows
from pyro import poutine
from pyro.infer import Trace_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGaussian,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
    AutoStructured,
)
from pyro.infer.autoguide.initialization import init_to_median
from right_pairs import RIGHT
from torch import nn
from torch.distributions import AffineTransform, ExpTransform, SigmoidTransform, constraints

from inference import elbo, fit, log_weights
from inference.pairs.inspection import Finding, Findings, check, findings_of, refuse_errors
from zoo.cards import CARDS

PARTICLES = "does not broadcast over particles", "made one by one"  # of a right pair too
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def found_in(name):
    pair = BROKEN[name]
    model, guide, args = pair.make()
    if pair.size is None:
        return check(model, guide, *args)
    return findings_of(model, guide, args, size=pair.size)


def test_there_are_enough_broken_pairs():
    assert len(BROKEN) >= 160
    for issue in ("2288", "3286", "3213"):
        assert any(issue in (b.make.__doc__ or "") for b in BROKEN.values()) or (
            issue in broken_pairs.autoguide_list.__doc__
        )


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pair_is_found_out(name):
    expected = BROKEN[name]
    found = found_in(name)
    hits = [
        f for f in found
        if (f.level, f.site) == (expected.level, expected.site)
        and all(words in str(f) for words in expected.says)
    ]  # fmt: skip
    assert hits, f"expected {expected.level} at {expected.site}: {expected.says}\nfound:\n{found}"
    for finding in hits:
        assert finding.what and finding.found and finding.fix
        assert finding.expected or finding.level == "note"
    assert bool(found.errors) == (expected.level == "error"), found
    for finding in found:  # advice to mend a line names it
        assert bool(re.search(r"\bmend ", finding.fix)) <= bool(re.search(r"\w:\d", finding.fix))


@pytest.mark.parametrize("name", [n for n, b in BROKEN.items() if b.level == "error"])
def test_fit_does_not_start_a_pair_with_errors(name):
    pair = BROKEN[name]
    model, guide, args = pair.make()
    with pytest.raises(ValueError, match="was not fitted") as error:
        refuse_errors(model, guide, args, size=pair.size, elbo=elbo.Trace())
    assert any(words in str(error.value) for words in pair.says)


def test_the_right_one_of_a_broken_pair_passes():
    pair = AE()
    assert not check(pair, rows()).errors
    refuse_errors(pair.model, pair.guide, (rows(),), size=100)
    run = fit(pair, rows(), steps=1, compile=False, progress=False)
    assert not check(run, rows()).errors and not check(run.model, run.guide, rows()).errors


# ---------------------------------------------------------------- pairs that are right


def test_there_are_enough_right_pairs():
    assert len(RIGHT) >= 65


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pair_raises_no_alarm(name):
    model, guide, args = RIGHT[name]()
    found = check(model, guide, *args)
    alarms = [f for f in found if f.level != "note" and not any(p in f.what for p in PARTICLES)]
    assert not alarms, found
    notes = "summed out|guide leaves out|reparameterisation|closed-form"
    assert all(re.search(notes, f.what) for f in found.notes), found


@pytest.mark.parametrize("name", [n for n, c in CARDS.items() if hasattr(c.load(), "guide")])
def test_zoo_pairs_have_no_errors(name):
    card = CARDS[name]
    torch.manual_seed(0)
    pair = card.load()(16, **{k: v for k, v in card.images.items() if k != "latent_dims"})
    x = torch.rand(12, 16).round()
    args = (x, torch.randint(0, 10, (12,))) if "conditional" in name else (x,)
    found = check(pair, *args)
    assert not found.errors and not found.warnings, found
    refuse_errors(pair.model, pair.guide, args, size=120)


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def constrained(y):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    pyro.sample("corr", dist.LKJCholesky(2, 1.0))
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    u = pyro.sample("u", dist.Uniform(2.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w[..., 0] + p + u, 1.0), obs=y)


def in_parts(model):
    """A point for what comes first, normals for the others."""
    first = ["mu", "w"]
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=first)))
    guide.append(AutoNormal(poutine.block(model, hide=first)))
    return guide


def messenger(kind):
    """The mean of HalfCauchy, where Pyro would start, is infinite."""
    return lambda model: kind(model, init_loc_fn=init_to_median)


AUTOGUIDES = {
    "delta": AutoDelta,
    "diagonal": AutoDiagonalNormal,
    "gaussian": lambda m: AutoGaussian(m, backend="dense"),
    "iaf": lambda m: AutoIAFNormal(m, hidden_dim=[16]),
    "laplace": AutoLaplaceApproximation,
    "list": in_parts,
    "low-rank": AutoLowRankMultivariateNormal,
    "messenger": messenger(AutoNormalMessenger),
    "mvn": AutoMultivariateNormal,
    "normal": AutoNormal,
    "regressive messenger": messenger(AutoRegressiveMessenger),
    "structured": AutoStructured,
}


@pytest.mark.parametrize("model, args", [(schools, (Y, SIGMA)), (constrained, (Y,))])
@pytest.mark.parametrize("name", AUTOGUIDES)
def test_autoguides_have_no_errors(name, model, args):
    found = check(model, AUTOGUIDES[name](model), *args)
    assert not found.errors, found


def mixture(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        mine = torch.where(k == 0, loc[..., :1], loc[..., 1:])
        pyro.sample("y", dist.Normal(mine, 1.0), obs=y)


def test_autoguides_of_a_part_of_a_model_have_no_errors():
    part = poutine.block(mixture, hide=["k"])
    found = check(mixture, AutoNormal(part), Y)
    assert not found.errors and not found.warnings, found
    assert [f.site for f in found.notes] == ["k"]
    both = AutoGuideList(mixture)
    both.append(AutoNormal(part))
    both.append(AutoDiscreteParallel(poutine.block(config_enumerate(mixture), expose=["k"])))
    found = check(mixture, both, Y)
    assert not found.errors and not found.warnings, found


@pytest.mark.parametrize("kind", [AutoNormalMessenger, AutoHierarchicalNormalMessenger])
def test_what_a_messenger_guide_observes_is_left_out(kind):
    """It runs the model, data and all; Pyro takes these sites out of its trace, and so do we."""

    def model(y):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(pyro.deterministic("twice", 2 * s), 1.0), obs=y)

    guide = kind(model)
    found = check(model, guide, Y)
    assert not found.errors and not found.warnings, found
    pyro.set_rng_seed(0)
    loss = Trace_ELBO().loss(model, guide, Y)
    pyro.set_rng_seed(0)
    weights = log_weights(model, guide, Y, nesting=1)
    assert list(weights.guide) == ["s"]
    assert torch.allclose(weights.elbo().double(), torch.tensor([-loss], dtype=torch.double))
    assert not check(model, poutine.block(guide, hide=["y"]), Y).errors


def test_a_model_that_draws_its_own_mini_batch_is_not_called_biased():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=4) as rows:
            pyro.sample("y", dist.Normal(m, 1.0), obs=y[rows])

    found = check(model, AutoNormal(model), Y)
    assert not found.errors and not found.warnings, found


def test_a_guide_that_is_built_more_than_once_keeps_its_ties():
    """AutoIAFNormal holds a weight of its network under a second name."""
    found = check(schools, AutoIAFNormal(schools, hidden_dim=[16]), Y, SIGMA)
    assert not found.errors and not found.warnings, found


def test_transforms_that_reach_the_support_pass():
    def model(y):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        u = pyro.sample("u", dist.Uniform(2.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(u, s), obs=y)

    def guide(y, high=5.0):
        loc = dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0)
        to_s = [AffineTransform(1.0, -2.0), ExpTransform()]
        to_u = [SigmoidTransform(), AffineTransform(2.0, high - 2.0)]
        pyro.sample("s", dist.TransformedDistribution(loc, to_s))
        pyro.sample("u", dist.TransformedDistribution(loc, to_u))

    assert not check(model, guide, Y)
    (short,) = check(model, lambda y: guide(y, 4.0), Y).warnings
    assert short.site == "u" and "cannot reach" in short.what and "(2, 4)" in short.found
    (long,) = check(model, lambda y: guide(y, 6.0), Y).errors
    assert long.site == "u" and "cannot have" in long.what and "(2, 6)" in long.found


def test_an_error_without_a_word_is_a_finding():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        if torch._C._functorch.is_batchedtensor(m) or m.shape:
            raise AssertionError
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    (found,) = check(model, lambda y: broken_pairs.gaussian_site("m"), Y).warnings
    assert "one by one" in found.what and found.found == "AssertionError"


# ---------------------------------------------------------------- it leaves no trace


def test_nothing_is_changed():
    class Counting(AE):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(broken_pairs.D)
            self.calls, self.log = 0, []

        def guide(self, x):
            self.calls += 1
            self.log.append(x)
            pyro.set_rng_seed(3)
            np.random.rand(), random.random()
            pyro.clear_param_store()
            torch.set_default_dtype(torch.float64)
            self.norm(x)
            super().guide(x)

    pair, lazy = Counting(), AutoNormal(schools)
    broken = [BROKEN[n].make() for n in ("forgot_pyro_module", "typing_mistake", "missing_values")]
    pyro.param("mine", torch.tensor(3.0))
    before = copy.deepcopy(pair.state_dict())
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    check(pair, rows())
    check(schools, lazy, Y, SIGMA)
    for model, guide, args in broken:
        assert check(model, guide, *args).errors
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]
    assert torch.get_default_dtype() == torch.float32
    assert list(pyro.get_param_store()) == ["mine"]
    assert all(torch.equal(v, before[k]) for k, v in pair.state_dict().items())
    assert pair.calls == 0 and pair.log == [] and pair.norm.num_batches_tracked == 0
    assert lazy.prototype_trace is None and not list(lazy.parameters())
    assert all(p.grad is None for p in pair.parameters())


def test_a_network_in_a_closure_is_put_back():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = copy.deepcopy(net.state_dict())

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x[:, :2])

    def guide(x):
        pass

    assert not check(model, guide, rows()).errors
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_closures_of_any_kind_are_survived():
    class Loop:
        def __init__(self):
            self.itself, self.many = self, [object() for _ in range(20_000)]

    loop = Loop()

    def model(x):
        if len(loop.many) == 0:
            never()
        location_scale_of(x)

    def location_scale_of(x):
        model  # refers back  # noqa: B018
        broken_pairs.location_scale(x)

    def guide(x):
        broken_pairs.gaussian_site("mu")
        broken_pairs.positive_site("sigma")

    found = check(model, guide, normal_data())
    if found is None:
        never = None
    assert not found


def test_the_same_findings_every_time():
    assert [str(found_in("mean_instead_of_sum")) for _ in range(2)].count(
        str(found_in("mean_instead_of_sum"))
    ) == 2


# ---------------------------------------------------------------- what it returns


def test_findings_read_as_advice():
    found = found_in("forgets_a_site")
    assert found and len(found) == 1 and found.errors == tuple(found)
    assert str(found[0]).splitlines()[0] == (
        "error: site 'sigma': the guide forgets a latent of the model"
    )
    assert [line.split()[0] for line in str(found).splitlines()[1:]] == ["expected", "found", "fix"]
    assert repr(found) == "Findings(1 errors, 0 warnings, 0 notes)"
    nothing = check(AE(), rows())
    assert not nothing and "Nothing found" in str(nothing)


def test_findings_are_sorted_and_not_repeated():
    note, error = (
        Finding(level, None, "what", "", "found", "fix") for level in ("note", "error")
    )  # fmt: skip
    found = Findings([note, error, note])
    assert list(found) == [error, note] and found.notes == (note,)


def test_calls_with_something_else_are_refused():
    with pytest.raises(TypeError, match="check: expected a run, a pair with methods"):
        check(rows(), rows())
    with pytest.raises(TypeError, match="methods `model` and `guide`"):
        check(nn.Linear(2, 2), rows())


# ---------------------------------------------------------------- fit calls it


def test_fit_refuses_with_the_finding_and_can_be_told_not_to():
    model, guide, args = broken_pairs.forgets_a_site()
    with pytest.raises(ValueError, match=r"(?s)site 'sigma'.*forgets a latent.*add the site"):
        fit(model, guide, args, steps=2, progress=False)
    model, guide, args = BROKEN["forgot_pyro_module"].make()
    assert len(fit(model, guide, args, steps=2, progress=False, check=False).losses) == 2


def test_a_guide_that_forgets_a_latent_is_refused_even_unchecked():
    model, guide, args = broken_pairs.forgets_a_site()
    with pytest.raises(ValueError, match=r"forgets a latent of the model, site 'sigma'"):
        fit(model, guide, args, steps=2, progress=False, check=False)


def test_fit_refuses_a_closed_form_that_does_not_apply():
    model, guide, args = broken_pairs.guide_in_another_order()
    fit(model, guide, args, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"(?s)mean-field KL does not apply.*elbo\.Trace"):
        fit(model, guide, args, steps=1, progress=False, elbo=elbo.MeanField())


def test_fit_refuses_a_biased_minibatch_but_takes_all_data():
    model, guide, (x,) = broken_pairs.mean_instead_of_sum()
    with pytest.raises(ValueError, match="bound of a mini-batch is biased"):
        fit(model, guide, x, batch_size=N // 2, steps=1, progress=False)
    fit(model, guide, x, steps=1, progress=False)


def test_an_unbiased_minibatch_is_not_called_biased():
    """Twenty seeds of data and starts: |z| > 6 twice in a row has no chance here."""

    def model(x, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    def guide(x, size=None):
        broken_pairs.gaussian_site("mu")
        slope = pyro.param("slope", lambda: torch.randn(()))
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("z", dist.Normal(slope * x, 0.5))

    for seed in range(20):
        torch.manual_seed(seed)
        assert not check(model, guide, 3 * torch.randn(40)), seed


def test_constraints_of_parameters_pass():
    def guide(x):
        pyro.sample("mu", dist.Delta(pyro.param("mu_map", torch.tensor(0.0))))
        start = torch.tensor(1.0)
        sigma = pyro.param("sigma_map", start, constraint=constraints.positive)
        pyro.sample("sigma", dist.Delta(sigma))

    assert not check(broken_pairs.location_scale, guide, normal_data())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_are_told_apart():
    model, guide, (x,) = broken_pairs.autoguide_list("cuda")
    (error, *_) = check(model, guide, x).errors
    assert "devices" in error.what and "cuda:0" in error.found and "cpu" in error.found
    model, guide, (x,) = broken_pairs.autoguide_list("cuda")
    assert not check(model, guide, x.cuda()).errors
    pair = AE()
    found = check(pair, x.cuda()).errors
    assert found and "devices" in found[0].what and "move the module" in found[0].fix
    refuse_errors(pair.model, pair.guide, (x.cuda(),), device=torch.device("cuda"))
    assert next(pair.parameters()).device.type == "cpu"
