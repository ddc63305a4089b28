"""Processes that are killed at any moment, and two that want one folder: nothing is lost."""

import multiprocessing
import os
import random
import signal
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import fit
from inference.training import keeping
from inference.training.checkpoint import BEFORE
from inference.training.folders import STATE
from inference.training.saved import read_run

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
STEPS = 40
# a process that has used CUDA cannot be forked
START = multiprocessing.get_context("forkserver" if torch.cuda.is_available() else "fork")


def model(x, size=None):
    scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
    with pyro.plate("data", size or len(x), subsample=x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)


def guide(x, size=None):
    slope = pyro.param("slope", torch.zeros(3))
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("z", dist.Normal(slope * x, 1.0).to_event(1))


def fitted(folder=None, steps=STEPS, **more):
    return fit(
        model, guide, X, steps=steps, batch_size=16, lr=0.05, valid=X[:8], valid_every=9, seed=3,
        compile=False, progress=False, device="cpu", check=False, folder=folder, save_every=1e-9,
        **more,
    )  # fmt: skip


def writing(folder, begun):
    """A fit that writes its state after every step."""
    keeping.SHARE = 0
    begun.set()
    fitted(folder)


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_what_is_killed_at_any_moment_goes_on_as_if_it_had_not_been(kills, tmp_path):
    whole, chance = fitted(), random.Random(kills)
    seconds = None
    ended = []
    for i in range(kills):
        folder, begun = tmp_path / str(i), START.Event()
        process = START.Process(target=writing, args=(folder, begun))
        process.start()
        assert begun.wait(60)
        begin = time.monotonic()
        while not (folder / STATE).exists():
            assert time.monotonic() - begin < 60
            time.sleep(0.001)
        if seconds is None:  # of a fit that is left alone, once
            process.join()
            seconds = time.monotonic() - begin
        else:
            time.sleep(chance.random() * seconds)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        ended.append(read_run(folder).steps)
        found = fitted(folder, resume=folder) if ended[-1] < STEPS else read_run(folder)
        assert found.losses == whole.losses and found.best == whole.best
        assert all(map(torch.equal, found.variables.flat(), whole.variables.flat()))
        assert {p.name for p in folder.iterdir()} <= {STATE, BEFORE}  # nothing half written stays
    assert min(ended) < STEPS, "no kill came in time"


def resuming(folder, go, answers):
    """Resume a folder, slowly."""
    go.wait()
    try:
        fitted(folder, steps=40, resume=folder, callbacks=[lambda run: time.sleep(0.02)])
        answers.put("made")
    except (FileExistsError, ValueError) as error:
        answers.put(str(error))


def test_of_two_that_resume_one_folder_one_is_refused(tmp_path):
    folder, go, answers = tmp_path / "run", START.Event(), START.SimpleQueue()
    fitted(folder, steps=5)
    work = [START.Process(target=resuming, args=(folder, go, answers)) for _ in range(2)]
    for process in work:
        process.start()
    go.set()
    made, refused = sorted((answers.get() for _ in work), key=len)
    for process in work:
        process.join()
    assert made == "made" and refused.startswith("folder: another run is writing into")
    assert read_run(folder).steps == 40


def test_a_state_that_another_has_gone_on_from_is_stale(tmp_path):
    fitted(tmp_path / "run", steps=3)
    saved = read_run(tmp_path / "run")
    fitted(tmp_path / "run", steps=5, resume=saved)
    with pytest.raises(ValueError, match=r"meanwhile, from step 3 to 5\. Resume the folder again"):
        fitted(tmp_path / "run", steps=7, resume=saved)
