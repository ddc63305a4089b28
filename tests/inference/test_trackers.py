"""Trackers write what the history says, and never harm a run."""

import logging
import sys
import types

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import fit
from inference.training.trackers import MLflow, TensorBoard, WandB

X = torch.randn(12, generator=torch.Generator().manual_seed(0))
OPTIONS = {"steps": 20, "lr": 0.1, "valid": X[:4], "valid_every": 10, "compile": False}


def model(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def guide(x):
    pass


def fitted(tracker):
    return fit(model, guide, X, callbacks=[tracker], progress=False, **OPTIONS)


def logged(run, name):
    """Step and value of every row that has one."""
    return [(int(r["step"]), r[name]) for r in run.history.rows if name in r]


class Recorder(types.ModuleType):
    """A library that notes how it is called."""

    def __init__(self, name, calls):
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call

    info = entities = property(lambda self: self)
    Metric = staticmethod(lambda *values: values)
    summary = property(lambda self: self.__dict__.setdefault("noted", {}))


def test_mlflow_gets_parameters_and_a_metric_a_row(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "mlflow", Recorder("mlflow", calls))
    run = fitted(MLflow("moons", "first", "file:here"))
    assert calls[0] == ("MlflowClient", (), {"tracking_uri": "file:here"})
    parameters = {args[1]: args[2] for name, args, _ in calls if name == "log_param"}
    assert parameters["steps"] == "20" and parameters["elbo"] == "Trace(1)"
    metrics = [m for n, _, kwargs in calls if n == "log_batch" for m in kwargs["metrics"]]
    assert [(m[3], m[1]) for m in metrics if m[0] == "loss"] == logged(run, "loss")
    assert [(m[3], m[1]) for m in metrics if m[0] == "valid_elbo"] == logged(run, "valid_elbo")
    assert calls[-1][0] == "set_terminated"


def test_wandb_gets_a_configuration_and_rows(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", Recorder("wandb", calls))
    run = fitted(WandB("moons", mode="offline"))
    name, _, kwargs = calls[0]
    assert name == "init" and kwargs["mode"] == "offline" and kwargs["config"]["lr"] == "0.1"
    rows = [(kwargs["step"], args[0]["loss"]) for n, args, kwargs in calls if n == "log"]
    assert rows == logged(run, "loss") and calls[-1][0] == "finish"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_back_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fitted(TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss", "valid_elbo"):
        read = [(e.step, e.value) for e in events.Scalars(name)]
        assert read == [(s, pytest.approx(v, rel=1e-6)) for s, v in logged(run, name)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_itself(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run = fitted(MLflow("moons", uri=f"sqlite:///{tmp_path}/here.db"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/here.db")
    (found,) = client.search_runs([client.get_experiment_by_name("moons").experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == logged(run, "loss")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_offline(tmp_path):
    pytest.importorskip("wandb")
    fitted(WandB("moons", mode="offline", dir=str(tmp_path)))
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_tracker_that_fails_does_not_end_a_run(monkeypatch, caplog):
    calls = []
    broken = Recorder("wandb", calls)
    monkeypatch.setitem(sys.modules, "wandb", broken)
    tracker = WandB("moons")

    def fails(*args, **kwargs):
        raise OSError("the network is down")

    monkeypatch.setattr(tracker, "write", fails)
    with caplog.at_level(logging.WARNING):
        run = fitted(tracker)
    assert run.steps == 20 and caplog.text.count("not tracked from here on: OSError") == 1
    assert not any(name == "finish" for name, _, _ in calls)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"WandB needs wandb: pip install 'pyro-zoo\[trackers\]'"):
        fitted(WandB("moons"))
