"""Good neighbours: what is global is after every public call as it was before."""

import gc
import logging
import os
import random
import resource
import signal
import threading
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

import inference
from inference import elbo, fit, make_guide
from tests import mutated

X = torch.randn(12, generator=torch.Generator().manual_seed(0)) + 1.0
QUIET = {"compile": False, "progress": False, "steps": 5}


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


OF_TORCH = ("TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK")  # set where inductor is imported


def everything():
    """What a process has once."""
    loggers = {"": logging.getLogger(), **logging.Logger.manager.loggerDict}
    known = {n: lg for n, lg in loggers.items() if isinstance(lg, logging.Logger)}
    store = pyro.get_param_store()
    return {
        "torch's validation": torch.distributions.Distribution._validate_args,
        "Pyro's validation": (pyro.infer.util._VALIDATION_ENABLED, pyro.poutine.util.is_validating)
        if hasattr(pyro.poutine.util, "is_validating")
        else pyro.infer.util.is_validation_enabled(),
        "mixin": TorchDistributionMixin.expand_by,
        "settings": {k: pyro.settings.get(k) for k in pyro.settings.get()},
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "store": {n: (id(v), v.tolist()) for n, v in store._params.items()},
        "store itself": id(store),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "TF32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch's noise": torch.random.get_rng_state().tolist(),
        "numpy's noise": str(np.random.get_state()),
        "numpy's errors": np.geterr(),
        "Python's noise": random.getstate(),
        "filters": list(warnings.filters),
        "loggers": {n: (lg.level, lg.disabled, list(lg.handlers)) for n, lg in known.items()},
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "figures": (dict(matplotlib.rcParams), matplotlib.pyplot.get_fignums()),
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k not in OF_TORCH},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run():
    guide = make_guide("mean-field", model)
    return fit(model, guide, X, elbo=elbo.Trace(2), **QUIET)


def of_run(name, *args, **options):
    return lambda run: getattr(inference, name)(run, X, *args, **options)


def failing_fit():
    with pytest.raises(ValueError, match="NaN"):
        fit(model, make_guide("mean-field", model), X * float("nan"), **QUIET)


def drawn(run):
    """Draws follow torch's generators, as those of torch itself."""
    with torch.random.fork_rng():
        inference.log_weights(run.model, run.guide, X, particles=3)


CALLS = {
    "fit": lambda run: fit(model, make_guide("mean-field", model), X, **QUIET),
    "fit_many": lambda run: inference.fit_many(
        model, make_guide("mean-field", model), X, fits=2, **QUIET
    ),
    "a fit that fails": lambda run: failing_fit(),
    "check": lambda run: inference.check(model, make_guide("mean-field", model), X),
    "log_weights": lambda run: drawn(run),
    "evaluate": of_run("evaluate"),
    "diagnose": of_run("diagnose", draws=200),
    "compare": of_run("compare", [elbo.Trace(), elbo.IWAE(2)], draws=8),
    "calibrate": of_run("calibrate", datasets=10, draws=10),
    "to_datatree": of_run("to_datatree", draws=20),
    "predict": of_run("predict", draws=20),
    "fit_guides": lambda run: inference.fit_guides(
        model, X, ["mean-field"], draws=50, steps=5, compile=False
    ),
    "figures": lambda run: inference.evaluate(run, X).to_dict(),
}


@pytest.fixture
def busy():
    """A process with settings and parameters of its own."""
    pyro.param("mine", torch.tensor(3.0))
    pyro.enable_validation(False)
    logging.getLogger("pyro").setLevel(logging.ERROR)
    import matplotlib.pyplot  # noqa: F401

    yield
    pyro.enable_validation(True)
    logging.getLogger("pyro").setLevel(logging.NOTSET)


@pytest.mark.parametrize("name", CALLS)
def test_a_public_call_leaves_the_process_as_it_was(name, run, busy):
    before = everything()
    CALLS[name](run)
    after = everything()
    new = set(after["loggers"]) - set(before["loggers"])  # of modules imported now
    after["loggers"] = {n: v for n, v in after["loggers"].items() if n not in new}
    assert [k for k in before if before[k] != after[k]] == []


def test_the_command_leaves_the_process_as_it_was(tmp_path, busy, monkeypatch):
    monkeypatch.setattr("zoo.report.page.png", lambda drawing, theme: b"\x89PNG")
    monkeypatch.setattr("zoo.cli.runs._write_posterior", lambda *_: None)
    folder = mutated.made(tmp_path / "run")
    before = everything()
    assert mutated.run(["report", str(folder)]) == 0
    after = everything()
    new = set(after["loggers"]) - set(before["loggers"])
    after["loggers"] = {n: v for n, v in after["loggers"].items() if n not in new}
    assert [k for k in before if before[k] != after[k]] == []


def test_two_threads_have_the_numbers_of_one(run):
    alone = [fit(model, make_guide("mean-field", model), X, seed=s, **QUIET) for s in (0, 1)]
    found = {}

    def work(seed):
        found[seed] = fit(model, make_guide("mean-field", model), X, seed=seed, **QUIET)

    threads = [threading.Thread(target=work, args=(s,)) for s in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, run in enumerate(alone):
        assert found[seed].losses == run.losses


def resident():
    """Megabytes of memory, after what is not used has gone."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.slow
def test_memory_stays_flat_over_many_fits_and_steps():
    guide = make_guide("mean-field", model)
    options = {**QUIET, "steps": 70}
    for _ in range(10):
        fit(model, guide, X, **options)
    start = resident()
    for _ in range(190):
        fit(model, guide, X, **options)
    assert resident() - start < 190 * 0.02  # megabytes
    options["compile"] = True
    options["steps"] = 1_000
    fit(model, guide, X, **options)
    start = resident()
    fit(model, guide, X, **{**options, "steps": 100_000})
    assert resident() - start < 24  # 100,000 losses as Python's floats are 3.2
