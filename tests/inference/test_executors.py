"""Independent work is the same wherever it is done: here, in other processes, on a cluster."""

import multiprocessing
from concurrent.futures import Executor, Future, ProcessPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import calibrate, compare, elbo, fit_guides, fit_many, make_guide, optim
from inference.executors import spread

X = torch.randn(12, generator=torch.Generator().manual_seed(0)) + 1.0
QUIET = {"compile": False, "steps": 6, "lr": 0.05}


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("mean", dist.Normal(loc, pyro.param("scale", torch.ones(()) / 3)))


class Here(Executor):
    """An executor without workers: every call is made at once, from bytes."""

    calls = 0

    def submit(self, fn, /, *args, **kwargs):
        self.calls += 1
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def same_runs(a, b):
    assert len(a) == len(b) and a.steps == b.steps and a.history.rows[0]["loss"] == pytest.approx(
        b.history.rows[0]["loss"], rel=1e-6
    )  # fmt: skip
    assert np.array_equal(a.losses, b.losses)
    assert all(map(torch.equal, a.variables.flat(), b.variables.flat()))
    assert all(torch.equal(a.params[k], b.params[k]) for k in a.params)


def whole(executor):
    """Every function that takes an executor, by it: blocks, calibration, guides, estimators."""
    many = fit_many(model, guide, X, fits=5, valid=X[:4], executor=executor, **QUIET)
    ranks = calibrate(model, guide, X[:3], datasets=10, draws=10, executor=executor, **QUIET)
    table = fit_guides(model, X, ["mean-field", "full-rank"], draws=50, executor=executor, **QUIET)
    found = compare(
        model, guide, X, [elbo.Trace(), elbo.IWAE(4)], draws=40, executor=executor
    )  # fmt: skip
    return many, ranks, table, found


def check(executor):
    many, ranks, table, found = whole(executor)
    here = fit_many(model, guide, X, fits=5, valid=X[:4], block=1, **QUIET)
    same_runs(many, here)
    assert many.elbo == pytest.approx(here.elbo) and many.best_step == here.best_step
    assert many[3].losses == [float(row[3]) for row in here.losses]
    again = calibrate(model, guide, X[:3], datasets=10, draws=10, block=2, **QUIET)
    assert all(np.array_equal(ranks.ranks[k], again.ranks[k]) for k in again.ranks)
    alone = fit_guides(model, X, ["mean-field", "full-rank"], draws=50, **QUIET)
    for name, row in alone.items():
        assert (table[name].elbo, table[name].khat) == (row.elbo, row.khat)
        assert table.runs[name].losses == alone.runs[name].losses
    assert list(found.particles.values) == [1, 4]
    exact = dist.MultivariateNormal(torch.zeros(12), torch.eye(12) + 1.0).log_prob(X)
    value, se = float(found.value[0]), float(found.value_se[0])
    assert se > 0 and abs(value - float(exact - elbo_gap())) < 5 * se and found.attrs["draws"] == 40


def elbo_gap():
    """KL(q || p(mean | x)), q = N(0, 1/9), the posterior N(Σx/13, 1/13)."""
    q, p = dist.Normal(0.0, 1 / 3), dist.Normal(X.sum() / 13, 13**-0.5)
    return float(torch.distributions.kl_divergence(q, p))


def test_an_executor_changes_no_number():
    executor = Here()
    check(executor)
    assert executor.calls == 5 + 5 + 2 + 2


@pytest.mark.slow
def test_a_process_pool_changes_no_number():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        check(executor)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_dask_cluster_of_two_workers_changes_no_number():
    distributed = pytest.importorskip("distributed")
    pytest.importorskip("cloudpickle").register_pickle_by_value(__import__(__name__))
    cluster = distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        check(client.get_executor())


def test_blocks_stop_by_themselves_and_stacked_data_are_cut():
    x = X.reshape(6, 2)
    many = fit_many(model, guide, x, stacked=[0], block=4, optimiser=optim.SGD(0.1), **QUIET)
    assert len(many) == 6 and [float(many[i].example[0][0]) for i in range(6)] == x[:, 0].tolist()
    # Σx/3 is the posterior's mean; SGD by the expected gradient moves straight to it
    found = many.params["loc"]
    assert torch.corrcoef(torch.stack([found, x.sum(1)]))[0, 1] > 0.9


@pytest.mark.parametrize("name", ["folder", "resume"])
def test_blocks_are_not_kept_as_they_go(name, tmp_path):
    run = fit_many(model, guide, X, fits=2, **QUIET)
    value = {"folder": tmp_path / "run", "resume": run}[name]
    more = {**QUIET, "steps": 9, name: value}
    with pytest.raises(ValueError, match=f"{name}: fits that are made in blocks"):
        fit_many(model, guide, X, fits=2, block=1, **more)


def test_what_cannot_be_sent_is_named(monkeypatch):
    with pytest.raises(TypeError, match=r"executor: expected a concurrent.futures.Executor, got"):
        fit_many(model, guide, X, fits=2, executor=4, **QUIET)
    lock = multiprocessing.get_context("spawn").Lock()
    with pytest.raises(TypeError, match=r"fit_many: executor: the pair.*must be sent"):
        fit_many(
            model, guide, X, fits=2, executor=Here(), callbacks=[lambda run: lock], **QUIET
        )  # fmt: skip


def test_the_error_of_a_worker_is_the_caller_s():
    def bad(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
        raise ValueError("bad: expected good.")

    with pytest.raises(ValueError, match="bad: expected good"):
        spread(Here(), bad, [(X,)], "test")


def test_guides_made_by_name_can_be_sent():
    table = fit_guides(
        model, X, {"mine": make_guide("mean-field", model)}, draws=50, executor=Here(), **QUIET
    )  # fmt: skip
    assert list(table) == ["mine"] and table.best.steps == 6
