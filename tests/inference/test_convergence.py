"""A fit says whether it has converged, and with steps="auto" it ends by itself."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from inference import fit, fit_many, load_run, make_guide, optim
from inference.training import pace
from inference.training.iterates import averages, spread, stretch, take

QUIET = {"compile": False, "progress": False, "check": False}
X = torch.linspace(3.0, 7.0, 20)
PRECISION = 1 / 100 + 20 / 4
MEAN = float(X.sum()) / 4 / PRECISION


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    pyro.sample("x", dist.Normal(mean.unsqueeze(-1), 2.0).expand([20]).to_event(1), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(4.0))
    scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def excess(run):
    """KL(q || p), exactly: what is still to be gained, nats."""
    q = dist.Normal(run.params["loc"].double(), run.params["scale"].double())
    p = dist.Normal(torch.tensor(MEAN).double(), torch.tensor(PRECISION**-0.5).double())
    return float(torch.distributions.kl_divergence(q, p))


def auto(**more):
    options = {"lr": 0.05, **QUIET}
    return fit(model, guide, X, **{**options, **more})


@pytest.fixture(scope="module", autouse=True)
def short_stretches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "FIRST", 64)
        yield


@pytest.fixture(scope="module")
def ended(short_stretches):
    return auto()


def test_auto_is_the_default_and_ends_within_its_tolerance_of_the_exact_optimum(ended):
    assert ended.settings["steps"] == "auto" and ended.stopped is None
    assert ended.converged and excess(ended) < ended.settings["tolerance"] == 0.05
    said = str(ended.converged)
    assert said.startswith("converged to 0.05 nats") and "R-hat of the iterates" in said
    assert said in repr(ended)
    assert ended.pace["falls"] >= 1 and ended.steps < 5_000


def test_auto_resumed_is_the_run_that_never_stopped_and_its_verdict_is_kept(ended, tmp_path):
    half = auto(callbacks=[lambda run: run.steps >= 100], folder=tmp_path / "run")
    assert half.steps < ended.steps and not half.converged
    assert "a callback asked for it" in str(half.converged)
    whole = auto(resume=tmp_path / "run", callbacks=[])
    assert whole.steps == ended.steps and np.array_equal(whole.losses, ended.losses)
    assert all(torch.equal(whole.params[k], ended.params[k]) for k in ended.params)
    again = load_run(whole.save(tmp_path / "ended"), model, guide, X)
    assert str(again.converged) == str(ended.converged) and again.converged.good is True
    assert auto(resume=again).steps == ended.steps  # it has ended


def test_a_rate_too_low_is_raised(capsys):
    def far(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(-30.0)), 0.4))

    stop = [lambda run: run.steps >= 64]
    run = fit(model, far, X, lr=2e-3, callbacks=stop, compile=False, check=False)
    assert "all go one way: rate 0.016" in capsys.readouterr().err
    assert run.pace["rate"] == pytest.approx(0.016)


@pytest.mark.parametrize(
    "options, good, moving, words",
    [
        ({"lr": 1e-3}, False, True, ("raise lr", "more steps", "R-hat")),
        ({"lr": 0.1, "schedule": "cosine"}, True, False, ("converged to 0.05 nats",)),
        ({"lr": 1.0}, False, False, ("cosine", "average")),
    ],
)
def test_fixed_steps_say_whether_they_were_enough(options, good, moving, words, tmp_path):
    run = fit(model, guide, X, steps=200, **{**QUIET, **options})
    found = run.converged
    assert found.good is good and found.moving is moving and bool(found) is good
    assert all(w in str(found) for w in words)
    again = load_run(run.save(tmp_path / "run"), model, guide, X)
    assert str(again.converged) == str(found)


def test_advice_names_what_is_far_from_zero_and_where_to_start():
    years = torch.linspace(1950.0, 2000.0, 30)

    def line(y, x):
        a = pyro.sample("a", dist.Normal(0.0, 1000.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)

    run = fit(line, make_guide("full-rank", line), (0.1 * years, years), steps=100, **QUIET)
    said = str(run.converged)
    assert "centre x (mean 1.98e+03" in said and 'start="pathfinder"' in said
    assert "centre y" not in said  # it is observed


def test_too_few_steps_tell_nothing():
    run = fit(model, guide, X, steps=8, **QUIET)
    assert run.converged.good is None and not run.converged
    assert "too few steps" in str(run.converged)


def test_mini_batches_are_judged_by_their_losses():
    def many(x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.zeros(())), 1.0), obs=x)

    run = fit(many, lambda x, size=None: None, X, batch_size=5, steps=200, lr=0.01, **QUIET)
    assert run.settings["steps"] == 200 and run.converged.moving
    assert "the loss fell by" in str(run.converged)


def test_moments_of_a_stretch():
    """Of a straight line, and of noise: R-hat and means in closed form."""
    n = 8 * 50
    line, noise = torch.arange(n) / n, torch.randn(n, generator=torch.Generator().manual_seed(0))
    state = stretch(0, n)
    for i in range(n):
        take(state, i, {"a": line[i], "b": noise[i : i + 1]}, whole=True)
    found = spread(state)
    # halves of a uniform law on [0, 1]: means 1/4 and 3/4, variances 1/48: 1 + (1/8) / (1/48) = 7
    assert found["rhat"][0] == pytest.approx(math.sqrt(7), rel=1e-3)
    assert found["rhat"][1] == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert found["way"][0] == pytest.approx(0.75, rel=1e-4) and found["way"][1] == 0
    means = averages(state, {"a": line[0], "b": noise[:1]})
    assert [float(m["a"]) for m in means] == pytest.approx(
        [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1 / 2], abs=2 / n
    )
    assert float(means[-1]["b"]) == pytest.approx(float(noise.mean()), abs=1e-5)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"batch_size": 5}, "'auto' with mini-batches judges on held-out data: expected valid="),
        ({"schedule": "cosine"}, "expected no schedule= and no patience="),
        ({"optimiser": torch.optim.SGD}, "takes an optimiser|of an optimiser of inference.optim"),
        ({"tolerance": 0.0}, "tolerance: expected a number > 0"),
    ],
)
def test_auto_is_refused_in_a_sentence(options, why):
    with pytest.raises(ValueError, match=why):
        fit(model, guide, X, steps="auto", **{**QUIET, **options})


def test_auto_is_for_fit_alone():
    with pytest.raises(
        ValueError, match="steps: expected a whole number of at least 1, got 'auto'"
    ):
        fit_many(model, guide, X, fits=2, steps="auto")


def test_other_optimisers_and_batches_keep_their_five_thousand_steps():
    stop = {"callbacks": [lambda run: True], **QUIET}
    foreign = fit(model, AutoNormal(model), X, optimiser=_sgd, **stop)
    assert foreign.settings["steps"] == 5_000
    assert fit(model, guide, X, optimiser=optim.SGD(1e-3), **stop).settings["steps"] == "auto"


def _sgd(params):
    return torch.optim.SGD(params, 1e-3)


def test_a_loss_that_is_lost_lowers_the_rate():
    def steep(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, torch.where(mean > 6, math.nan, 1.0)), obs=x)

    def far(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(5.0)), 0.1))

    stop = [lambda run: run.steps >= 30]
    run = fit(steep, far, torch.tensor(30.0), steps="auto", lr=0.5, callbacks=stop, **QUIET)
    assert run.pace["rate"] < 0.5 and all(map(math.isfinite, run.losses)) and not run.converged


@pytest.mark.slow
def test_mini_batches_end_on_held_out_data_paired_over_data():
    draw = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(400, generator=draw)

    def amortised(x, size=None):
        m = pyro.param("m", torch.zeros(()))
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def encoder(x, size=None):
        a, b = pyro.param("a", torch.tensor(0.1)), pyro.param("b", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("z", dist.Normal(a * x + b, scale))

    run = fit(
        amortised, encoder, x[:300], valid=x[300:], batch_size=50, steps="auto", lr=0.02, **QUIET
    )
    assert run.converged and "paired over data" in str(run.converged)
    # log p(x) = N(m, sqrt 2), reached by the encoder: q = N((x + m) / 2, sqrt 1/2)
    p = run.params
    best = dist.Normal(x[:300].mean(), math.sqrt(2)).log_prob(x[300:]).mean()
    assert float(best) - run.elbo < 2 * 0.05
    assert abs(float(p["a"]) - 0.5) < 0.15 and abs(float(p["scale"]) - 0.5**0.5) < 0.15
