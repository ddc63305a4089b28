"""Fixtures for every test: one seed, an empty parameter store, and no global flag changed."""

import os
import signal
from pathlib import Path

import pyro
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


SLOW = set(Path(__file__).with_name("slow.txt").read_text().splitlines())  # by `slow_list.py`


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


def global_flags():
    return {
        "distribution validation": torch.distributions.Distribution._validate_args,
        "pyro distribution validation": pyro.distributions.distribution.Distribution
        and pyro.distributions.torch_distribution.TorchDistributionMixin
        and torch.distributions.Distribution._validate_args,
        "pyro validation": pyro.poutine.runtime and pyro.infer.util.is_validation_enabled(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "module local params": pyro.settings.get("module_local_params"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def clean_slate():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    before = global_flags()
    yield
    after = global_flags()
    changed = {k: (before[k], after[k]) for k in before if before[k] != after[k]}
    assert not changed, f"the test changed global flags: {changed}"


@pytest.fixture
def zoo_data():
    root = os.environ.get("ZOO_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("ZOO_DATA does not point at a folder of real data")
    return Path(root)
