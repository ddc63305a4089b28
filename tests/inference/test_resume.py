"""One loop: stopped anywhere and resumed, every trainer goes on as if it had never stopped."""

import inspect
import os
import re
import signal
import threading

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from inference import elbo, fit, fit_many, make_guide, optim
from inference.ratios import density_ratio
from inference.ratios.adversarial import fit_adversarial
from inference.ratios.implicit import fit_implicit
from inference.training.batches import Batches
from inference.training.update import even_parts
from zoo.implicit import ImplicitVAE
from zoo.vae import VAE

X = torch.randn(60, generator=torch.Generator().manual_seed(0)) + 2
QUIET = {"compile": False, "progress": False}


def model(x, size=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


class LocationScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))

    def model(self, n):
        with pyro.plate("data", n):
            return pyro.sample("x", dist.Normal(self.loc, self.scale.exp()).to_event(1))


OPTIMISERS = {
    "ours": None,
    "torch": lambda params: torch.optim.Adam(params, 0.05),
    "pyro": pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}),
}


def fitted(optimiser):
    return lambda **more: fit(
        model, AutoNormal(model), X, optimiser=OPTIMISERS[optimiser], lr=0.05, batch_size=10,
        schedule="cosine", clip=3.0, elbo=elbo.Trace(3), valid=X[:31], valid_every=5, **more,
    )  # fmt: skip


TRAINERS = {
    **{name: fitted(name) for name in OPTIMISERS},
    "many": lambda **more: fit_many(
        model, AutoNormal(model), X, fits=3, batch_size=10, schedule="linear", valid=X[:31],
        valid_every=5, **more,
    ),
    "adversarial": lambda **more: fit_adversarial(
        LocationScale(), X.reshape(30, 2), objective="wasserstein", batch_size=8, critic_steps=2,
        valid=X.reshape(30, 2), valid_every=5, **more,
    ),
    "implicit": lambda **more: fit_implicit(
        ImplicitVAE(2, hidden=(4,), likelihood="gaussian"), X.reshape(30, 2), batch_size=8,
        settle=6, **more,
    ),
}  # fmt: skip


def rows(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.history.rows]


def same(found, whole):
    """Bit for bit, seconds aside."""
    assert found.steps == whole.steps and found.stopped == whole.stopped
    assert np.array_equal(found.losses, whole.losses)
    assert rows(found) == rows(whole) and found.since_best == whole.since_best
    assert found.best_step == whole.best_step
    kept = [[*run.variables.flat(), *(run.best_params or {}).values()] for run in (found, whole)]
    assert len(kept[0]) == len(kept[1]) and all(map(torch.equal, *kept))
    states = [{**run.batches, **run.random_state} for run in (found, whole)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in ("order", "cpu"))


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("at", [67])
def test_stopped_anywhere_and_resumed_is_bit_for_bit_the_run_that_never_stopped(
    name, at, monkeypatch, tmp_path
):
    """Rows of the history come every second step or third, validation every fifth."""
    train = TRAINERS[name]
    torch.manual_seed(0)  # of a pair's own weights
    whole = train(steps=100, **QUIET)
    torch.manual_seed(0)
    real, calls = Batches.next, []

    def pressing(self, repeats=1):
        calls.append(repeats)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, repeats)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "next", pressing)
        half = train(steps=100, folder=tmp_path / "run", **QUIET)
    assert half.steps == at == half.history.rows[-1]["step"] and half.stopped == "interrupted"
    before = [t.clone() for t in half.variables.flat()]
    same(train(steps=100, resume=half, **QUIET), whole)
    torch.manual_seed(0)
    same(train(resume=tmp_path / "run", **QUIET), whole)
    assert all(torch.equal(a, b) for a, b in zip(before, half.variables.flat()))
    assert half.steps == at


@pytest.mark.parametrize("train", [fit, fit_many, fit_adversarial, fit_implicit, density_ratio])
def test_signature_and_help_show_every_option_once(train):
    options = inspect.signature(train).parameters.values()
    named = re.findall(r"^ {8}((?:\w+, )*\w+): ", train.__doc__.split("Returns:")[0], re.M)
    explained = [n for names in named for n in names.split(", ")]
    missing = {p.name for p in options if p.kind is p.KEYWORD_ONLY} - set(explained)
    assert not missing and len(explained) == len(set(explained)) and "options" not in explained
    assert inspect.signature(train).parameters["lr"].default > 0


def test_an_unknown_option_is_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected.*'step'.*mean 'steps'"):
        fit(model, AutoNormal(model), X, step=3)


def test_a_learning_rate_given_anew_holds_for_the_run_s_own_optimiser_only():
    run = fit(model, AutoNormal(model), X, steps=2, optimiser=optim.SGD(0.1), **QUIET)
    same = fit(model, AutoNormal(model), X, steps=4, resume=run, **QUIET)
    anew = fit(model, AutoNormal(model), X, steps=4, resume=run, lr=0.3, **QUIET)
    own = fit(model, AutoNormal(model), X, steps=2, optimiser=optim.SGD(0.1), lr=0.3, **QUIET)
    rates = [r.settings["optimiser"].lr for r in (same, anew, own)]
    assert rates == [r.settings["lr"] for r in (same, anew, own)] == [0.1, 0.3, 0.1]


def test_resuming_takes_the_run_s_own_settings():
    run = fit(model, AutoNormal(model), X, elbo=elbo.IWAE(8), steps=5, lr=0.03, clip=2.0, **QUIET)
    more = fit(model, AutoNormal(model), X, steps=8, resume=run, **QUIET)
    assert repr(more.estimator) == "IWAE(8)"
    assert more.settings["optimiser"].lr == 0.03 and more.settings["clip"] == 2.0
    assert repr(run.estimator) == "IWAE(8)" and len(run.losses) == 5


def twin(x, size=None):
    """As `model`, with another prior."""
    mu = pyro.sample("mu", dist.Normal(1.0, 1.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


def other(x, size=None):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("x", dist.Normal(mu.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize(
    "again, message",
    [
        (lambda r: fit(other, AutoNormal(other), X, steps=9, resume=r, **QUIET), "do not fit the"),
        (lambda r: fit(model, AutoNormal(model), X[:9], steps=9, resume=r, **QUIET), "60 rows"),
        (lambda r: fit(model, AutoNormal(model), X + 1, steps=9, resume=r, **QUIET), "fingerprint"),
        (
            lambda r: fit(model, AutoNormal(model), X, steps=9, resume=r, batch_size=7, **QUIET),
            "batches of 60, got 7",
        ),
        (lambda r: fit(model, AutoNormal(model), X, steps=9, resume=r, seed=1, **QUIET), "seed 0"),
        (
            lambda r: fit(twin, AutoNormal(twin), X, steps=9, resume=r, **QUIET),
            "Give the pair that was fitted",
        ),
        (
            lambda r: fit(
                model, AutoNormal(model), X, steps=9, resume=r, optimiser=optim.SGD(0.1), **QUIET
            ),
            "of no use",
        ),
        (
            lambda r: fit(
                model, AutoNormal(model), X, steps=9, resume=r, optimiser=torch.optim.SGD, **QUIET
            ),
            "cannot go on",
        ),
        (lambda r: fit(model, AutoNormal(model), X, resume=r, **QUIET), "ask for more"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(again, message):
    run = fit(model, AutoNormal(model), X, steps=4, **QUIET)
    with pytest.raises(ValueError, match=message):
        again(run)


def test_what_is_no_run_of_the_same_trainer_is_not_resumed():
    run = fit(model, AutoNormal(model), X, steps=2, **QUIET)
    with pytest.raises(TypeError, match=r"expected a run .*, got int"):
        fit(model, AutoNormal(model), X, steps=4, resume=3, **QUIET)
    with pytest.raises(TypeError, match=r"expected a run .*, got int"):
        fit_many(model, AutoNormal(model), X, fits=2, steps=4, resume=3, **QUIET)
    with pytest.raises(FileNotFoundError, match=r"nowhere/state"):
        fit(model, AutoNormal(model), X, steps=4, resume="nowhere", **QUIET)
    with pytest.raises(TypeError, match=r"expected a Runs .*, got Run"):
        fit_many(model, AutoNormal(model), X, fits=2, steps=4, resume=run, **QUIET)


def test_fitting_a_run_s_model_and_guide_starts_from_its_parameters():
    run = fit(model, AutoNormal(model), X, steps=30, lr=0.05, **QUIET)
    again = fit(run.model, run.guide, X, steps=1, lr=1e-12, **QUIET)
    assert again.params.keys() == run.params.keys()
    for name, value in run.params.items():
        torch.testing.assert_close(again.params[name], value)
    vae = fit(VAE(3, 2, hidden=(4,), likelihood="gaussian"), torch.randn(20, 3), steps=3, **QUIET)
    more = fit(vae.model, vae.guide, torch.randn(20, 3), steps=3, **QUIET)
    assert more.pair is not vae.pair


def test_fitting_again_where_the_prior_is_flat():
    """Nothing can be drawn from it, so that a model on its own does not run."""

    def flat(x):
        m = pyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    run = fit(flat, make_guide("full-rank", flat), X, steps=5, **QUIET)
    again = fit(run.model, run.guide, X, steps=1, lr=1e-12, **QUIET)
    for name, value in run.params.items():
        torch.testing.assert_close(again.params[name], value)


@pytest.mark.parametrize("name", ["torch", "pyro"])
def test_the_schedule_scales_the_rate_of_other_optimisers(name):
    """A factor of zero leaves every parameter where it is."""
    still = lambda count: 0.0 * count  # noqa: E731
    kwargs = dict(optimiser=OPTIMISERS[name], steps=3, schedule=still, **QUIET)
    run = fit(model, AutoNormal(model), X, **kwargs)
    assert all(torch.equal(run.variables.params[k], v) for k, v in run.pair_.params.items())


def test_a_step_is_never_torn_by_ctrl_c():
    """The signal arrives in the middle of the 12th run of the model; the step is finished."""
    calls, handler = [], signal.getsignal(signal.SIGINT)

    def pressing(x, size=None):
        calls.append(0)
        if len(calls) == 12:
            os.kill(os.getpid(), signal.SIGINT)
        model(x, size)

    run = fit(pressing, AutoNormal(model), X, steps=500, check=False, **QUIET)
    assert run.stopped == "interrupted" and run.steps == len(run.losses) < 12
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_raises():
    before = signal.getsignal(signal.SIGINT)

    def pressing(x, size=None):
        if signal.getsignal(signal.SIGINT) is not before:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        model(x, size)

    with pytest.raises(KeyboardInterrupt):
        fit(pressing, AutoNormal(model), X, steps=500, check=False, **QUIET)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_fits_without_a_handler():
    found = []
    work = threading.Thread(
        target=lambda: found.append(fit(model, AutoNormal(model), X, steps=3, **QUIET))
    )
    work.start()
    work.join()
    assert found[0].steps == 3


def test_validation_comes_at_the_steps_asked_for():
    run = fit(model, AutoNormal(model), X, steps=2_000, lr=1e-3, valid=X, valid_every=10,
              callbacks=[lambda run: run.steps >= 60], **QUIET)  # fmt: skip
    looks = [r["step"] for r in run.history.rows if "valid_elbo" in r]
    assert looks == [10, 20, 30, 40, 50, 60]


def test_validation_and_callbacks_leave_the_noise_of_training_alone():
    plain = fit(model, AutoNormal(model), X, steps=20, batch_size=7, **QUIET)
    looked = fit(model, AutoNormal(model), X, steps=20, batch_size=7, valid=X[:13], valid_every=3,
                 callbacks=[lambda run: torch.randn(3) is None], **QUIET)  # fmt: skip
    assert plain.losses == looked.losses


def test_parts_are_even():
    assert [p.stop - p.start for p in even_parts(13, 6)] == [4, 4, 5]
    assert [p.stop - p.start for p in even_parts(101, 100)] == [50, 51]
    assert even_parts(5, 9) == [slice(0, 5)]


@pytest.mark.parametrize("estimator", [elbo.TotalCorrelation(2.0), elbo.MMD(1.0)])
def test_a_last_chunk_of_one_row_is_merged(estimator):
    x = torch.randn(33, 3)
    run = fit(VAE(3, 2, hidden=(4,), likelihood="gaussian"), x, elbo=estimator, batch_size=16,
              steps=4, valid=x, valid_every=2, **QUIET)  # fmt: skip
    values = run.history["valid_elbo"]
    assert torch.isfinite(torch.as_tensor(values[1::2])).all() and run.best_step is not None


def test_a_validation_of_nan_is_said_and_never_best(monkeypatch):
    scores = iter([float("nan"), -3.0, float("nan"), -2.0])

    def values(*args, ranks):
        score = torch.tensor(next(scores))
        return score, {"valid_elbo": float(score)}

    monkeypatch.setattr("inference.training.fitting.held_out_values", values)
    with pytest.warns(UserWarning, match="held-out value is NaN") as told:
        run = fit(model, AutoNormal(model), X, steps=8, valid=X, valid_every=2, **QUIET)
    assert len(told) == 2 and run.best == -2.0 and run.best_step == 8


def test_patience_without_validation_is_refused():
    with pytest.raises(ValueError, match="patience"):
        fit(model, AutoNormal(model), X, steps=3, patience=2, **QUIET)


@pytest.mark.parametrize("clip", [-1.0, 0.0])
def test_clip_must_leave_a_gradient(clip):
    with pytest.raises(ValueError, match="clip"):
        fit(model, AutoNormal(model), X, steps=3, clip=clip, **QUIET)


def falling(x, size=None):
    """A density that is not finite for the rows above 3, once the scale has moved."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = pyro.param("scale", torch.tensor(0.0))
    with pyro.plate("data", size or len(x), subsample=x):
        log_prob = dist.Normal(mu, scale.exp()).log_prob(x)
        lost = (x > 3.0) & (scale > 0.06)
        pyro.factor("x", torch.where(lost, torch.full_like(x, float("nan")), log_prob))


def test_a_loss_that_is_not_finite_goes_back_and_names_site_and_rows(tmp_path, caplog):
    options = dict(lr=1e-3, batch_size=None, elbo=elbo.Trace(), **QUIET)
    run = fit(falling, AutoNormal(falling), X, steps=2_000, folder=tmp_path / "run", **options)
    rows_above = [int(i) for i in (X > 3.0).nonzero()]
    words = ", ".join(map(str, rows_above[:5]))
    assert f"from site 'x' at rows {words}" in run.stopped and "Lower lr" in caplog.text
    assert 0 < run.steps == len(run.losses) == run.history.rows[-1]["step"]
    assert np.isfinite(run.losses).all() and all(t.isfinite().all() for t in run.variables.flat())
    straight = fit(falling, AutoNormal(falling), X, steps=run.steps, **options)
    assert straight.losses == run.losses and straight.params.keys() == run.params.keys()
    assert all(map(torch.equal, straight.variables.flat(), run.variables.flat()))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_that_are_not_finite_are_left_out_and_counted(compiled):
    """Of 30 batches of one row, those whose row is NaN change nothing."""

    def broken(x, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size or len(x), subsample=x):
            fine = dist.Normal(mu, 1.0).log_prob(x)
            pyro.factor("x", torch.where(x > 3.0, torch.full_like(x, float("inf")), fine))

    options = dict(batch_size=1, check=False, progress=False, compile=compiled)
    run = fit(broken, AutoNormal(broken), X, steps=60, not_finite="skip", **options)
    assert run.skipped == int((X > 3.0).sum()) > 0 and run.steps == 60 == len(run.losses)
    assert all(t.isfinite().all() for t in run.variables.flat())
    assert int(run.variables.optim["count"][0]) == 60 - run.skipped
    with pytest.raises(ValueError, match="not_finite"):
        fit_many(broken, AutoNormal(broken), X, fits=2, steps=3, not_finite="skip", check=False)
