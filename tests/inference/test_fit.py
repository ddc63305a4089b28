import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from inference import compare, elbo, evaluate, fit, optim
from inference.training.batches import Batches
from zoo.data import load
from zoo.gan import GAN
from zoo.vae import VAE, ConditionalVAE

N = 60
X = torch.randn(N, generator=torch.Generator().manual_seed(0)) + 2


def told(x, size=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def hard_coded(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


@pytest.mark.parametrize("model", [told, pytest.param(hard_coded, marks=pytest.mark.slow)])
def test_minibatches_are_scaled_to_all_data_and_the_prior_is_not(model):
    guide = AutoNormal(model)
    run = fit(
        model, guide, X, batch_size=20, steps=3000, lr=0.02, schedule="cosine", compile=False,
        progress=False,
    )  # fmt: skip
    # conjugate: N(Σx / (N + 1), 1 / (N + 1)); a wrong scale would give sd (21)^(-1/2)
    assert abs(float(run.params["AutoNormal.locs.mu"]) - float(X.sum() / (N + 1))) < 0.05
    assert float(run.params["AutoNormal.scales.mu"]) == pytest.approx((N + 1) ** -0.5, rel=0.1)
    exact = dist.MultivariateNormal(torch.zeros(N), torch.eye(N) + torch.ones(N, N)).log_prob(X)
    assert run.unit == "nats"
    assert abs(run.elbo - float(exact)) < 0.02 * abs(float(exact))


def test_every_row_once_per_epoch_in_batches_of_one_shape():
    x = torch.arange(10.0)
    batches = Batches((x,), 4, seed=0)
    drawn = torch.cat([batches.next()[0][0] for _ in range(5)])
    assert drawn.shape == (20,)
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == x.tolist()
    stacked, shared = batches.next(3)
    assert stacked[0].shape == (3, 4) and not shared


def test_same_seed_same_run():
    runs = [fit(told, AutoNormal(told), X, batch_size=10, steps=30, seed=s, compile=False,
                progress=False).losses for s in (1, 1, 2)]  # fmt: skip
    assert runs[0] == runs[1] != runs[2]


def test_resume_goes_on_as_if_never_stopped():
    kwargs = dict(batch_size=10, compile=False, progress=False)
    whole = fit(told, AutoNormal(told), X, steps=40, **kwargs)
    half = fit(told, AutoNormal(told), X, steps=15, **kwargs)
    rest = fit(told, AutoNormal(told), X, steps=40, resume=half, **kwargs)
    assert rest.losses == whole.losses


def test_interrupting_keeps_what_was_reached():
    def stop(run):
        if len(run.history) >= 3:
            raise KeyboardInterrupt

    run = fit(
        told, AutoNormal(told), X, steps=1000, compile=False, progress=False, callbacks=[stop]
    )
    assert run.stopped == "interrupted"
    assert 0 < len(run.losses) < 1000


def test_data_set_validation_early_stop_and_best_parameters():
    digits = load("digits", pixels="dynamic")
    run = fit(
        VAE(64, 2, hidden=(16,)), digits, steps=600, lr=0.05, valid_every=20, patience=2,
        compile=False, progress=False,
    )  # fmt: skip
    assert run.unit == "nats per datum"
    values = run.history["valid_elbo"]
    assert run.best == pytest.approx(np.nanmax(values))
    assert {"kl_z", "valid_elbo", "loss", "seconds"} <= set(run.history.columns)
    assert "validation" in run.stopped
    kept = run.pair.encoder if hasattr(run.pair, "encoder") else run.pair
    assert all(torch.isfinite(p).all() for p in kept.parameters())


def test_annealed_beta_logs_the_untempered_elbo_beside():
    digits = load("digits", pixels="dynamic")
    run = fit(
        VAE(64, 2, hidden=(16,)), digits, elbo=elbo.Beta(2.0, warmup=50), steps=60,
        valid_every=30, compile=False, progress=False,
    )  # fmt: skip
    assert (run.history["valid_bound"][-1:] < run.history["valid_elbo"][-1:]).all()


def test_clipping_bounds_the_gradient():
    run = fit(
        hard_coded, AutoNormal(hard_coded), X, steps=1, lr=1.0, clip=0.5, compile=False,
        progress=False, optimiser=optim.SGD(1.0),
    )  # fmt: skip
    moved = sum(
        float((run.variables.params[k] - v).square().sum()) for k, v in run.pair_.params.items()
    )
    assert moved**0.5 == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(batch_size=100), "batch_size: expected 1 .. 60"),
        (dict(steps=0), "steps"),
        (dict(device="cuda:9"), "not on this machine"),
        (dict(schedule="cosin"), "schedule"),
        (dict(lr=-1.0), "lr: expected a number > 0"),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        fit(told, AutoNormal(told), X, progress=False, **kwargs)


def test_nan_in_the_data_is_named():
    x = X.clone()
    x[7] = float("nan")
    with pytest.raises(ValueError, match=r"1 values that are NaN .* first at \(7,\)"):
        fit(told, AutoNormal(told), x, progress=False)


def test_a_diverging_run_says_what_to_do(caplog):
    run = fit(told, AutoNormal(told), X * 1e18, steps=200, lr=1e18, compile=False, progress=False)
    assert "no longer finite at step" in caplog.text and "Lower lr" in caplog.text
    assert "kept: the state of step" in run.stopped and run.steps < 200
    assert all(p.isfinite().all() for p in run.params.values())


def test_wrong_kinds():
    with pytest.raises(TypeError, match="methods `model` and `guide`"):
        fit(told, X)
    with pytest.raises(FileNotFoundError, match="data: digits: expected a file, found none"):
        fit(told, AutoNormal(told), "digits")
    with pytest.raises(TypeError, match=r"GAN has no guide\..*fit_adversarial"):
        fit(GAN(2), X)
    labelled = ConditionalVAE(3, latent_dim=2, hidden=(4,))
    for judge in (fit, evaluate):
        with pytest.raises(TypeError, match=r"got 1 argument: missing .* 'y'"):
            judge(labelled, torch.ones(5, 3))
    with pytest.raises(TypeError, match=r"got 1 argument: missing .* 'y'"):
        compare(labelled.model, labelled.guide, torch.ones(5, 3), [elbo.Trace()])


@pytest.mark.parametrize(
    "optimiser",
    [lambda p: torch.optim.Adam(p, 0.05), pyro.optim.Adam({"lr": 0.05})],
    ids=["torch.optim", "pyro.optim"],
)
def test_any_other_optimiser_runs_eagerly_and_says_so(optimiser, capfd):
    ours = fit(told, AutoNormal(told), X, steps=30, lr=0.05, compile=False, progress=False)
    run = fit(told, AutoNormal(told), X, steps=30, optimiser=optimiser, compile=True)
    assert run.losses == pytest.approx(ours.losses, rel=1e-4)
    assert not run.compiled and "inference.optim" in capfd.readouterr().err


@pytest.mark.parametrize("model", [told, hard_coded])
def test_a_batch_in_chunks_has_the_same_gradient(model):
    """With a guide that draws nothing the gradient is exact, so chunks must sum to it."""

    def exact(x, **size):
        with pyro.plate("data", size.get("size", len(x)), subsample=x):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0), obs=x)

    def sized(x, size=None):
        exact(x, size=size or len(x))

    pair = sized if model is told else exact
    silent = (lambda x, size=None: None) if model is told else (lambda x: None)
    kwargs = dict(batch_size=20, steps=20, lr=0.1, compile=False, progress=False)
    whole = fit(pair, silent, X, **kwargs)
    parts = fit(pair, silent, X, chunk=5, **kwargs)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    assert float(parts.params["loc"]) == pytest.approx(float(whole.params["loc"]), rel=1e-4)
    uneven = fit(pair, silent, X, chunk=7, **kwargs)  # 7, 7 and 6 rows
    assert uneven.losses == pytest.approx(whole.losses, rel=1e-5)
