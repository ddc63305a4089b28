"""Nobody waits for a compiler, and a busy machine does not stop a fit."""

import os
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from inference import fit
from inference.graph import TraceFailure
from inference.training import choosing, threads
from inference.training.beside import Beside, cores
from inference.training.threads import TIMED, Threads

X = torch.randn(30, generator=torch.Generator().manual_seed(0)) + 2


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def waited(beside):
    """Wait until a process beside this one has ended."""
    while not beside.done():
        time.sleep(0.01)
    return beside


def test_the_loop_changes_over_when_the_program_is_there(monkeypatch):
    """With the losses of eager steps to rounding, wherever that happens."""
    options = {"steps": 400, "lr": 0.05, "progress": False, "check": False}
    fit(model, AutoNormal(model), X, **{**options, "steps": 130}, compile=True)  # now it is known
    monkeypatch.setattr(choosing, "WORTH_BESIDE", 0.0)
    monkeypatch.setattr(choosing, "WORTH_RECALLING", 10**9)
    monkeypatch.setattr(choosing, "is_possible", lambda device: True)
    begun = []

    def beside(work, seconds):
        begun.append(Beside(work, 60.0))
        return begun[-1]

    def wait(run):
        if begun and begun[0]._pid:
            os.waitid(os.P_PID, begun[0]._pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(choosing, "Beside", beside)
    run = fit(model, AutoNormal(model), X, **options, callbacks=[wait])
    eager = fit(model, AutoNormal(model), X, **options, compile=False)
    assert len(begun) == 1 and run.compiled
    assert run.losses == pytest.approx(eager.losses, rel=1e-4)


def refuse():
    raise TraceFailure("it depends on a value")


def test_a_process_beside_says_why_it_refuses():
    beside = waited(Beside(refuse, 20.0))
    assert beside.refused == "it depends on a value" and not beside.failed


def test_a_process_beside_that_fails_or_hangs_is_no_harm(capfd):
    begin = time.monotonic()
    failed = waited(Beside(lambda: print("unseen") or 1 / 0, 20.0))
    hung = waited(Beside(lambda: time.sleep(60), 0.2))
    assert failed.failed and failed.refused is None
    assert hung.failed and "too long" in hung.refused and time.monotonic() - begin < 30
    assert capfd.readouterr().out == ""


def test_what_is_beside_ends_with_the_fit(monkeypatch):
    begun = []

    def beside(work, seconds):
        begun.append(Beside(lambda: time.sleep(60), 60.0))
        return begun[-1]

    monkeypatch.setattr(choosing, "WORTH_BESIDE", 0.0)
    monkeypatch.setattr(choosing, "WORTH_RECALLING", 10**9)
    monkeypatch.setattr(choosing, "is_possible", lambda device: True)
    monkeypatch.setattr(choosing, "Beside", beside)
    fit(model, AutoNormal(model), X, steps=30, progress=False)
    assert begun[0].done()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_processors_are_counted():
    assert 0 < cores() <= os.cpu_count()


class Clock:
    """A clock that the steps move."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    found = Clock()
    monkeypatch.setattr(threads, "time", found)
    yield found
    torch.set_num_threads(before)


def timed(chosen, clock, made, seconds):
    """Make steps until the threads are known; the steps made by then."""
    while chosen.timed(made) is None:
        clock.now += seconds[torch.get_num_threads()]
        made += 1
    return made


@pytest.mark.parametrize(("each", "best"), [(100e-3, 1), (3e-3, 4), (9e-3, 4), (13e-3, 1)])
def test_the_faster_number_of_threads_is_taken(clock, each, best):
    chosen = Threads(vary=True)
    made = timed(chosen, clock, 0, {4: each, 1: 10e-3})
    assert chosen.now == torch.get_num_threads() == best
    assert made == 2 * (TIMED + 1)
    chosen.lend()
    assert torch.get_num_threads() == min(best, 3)
    chosen.take_back()
    assert torch.get_num_threads() == best
    chosen.restore()
    assert torch.get_num_threads() == 4


def test_slow_steps_are_looked_at_again(clock):
    chosen = Threads(vary=True)
    made = timed(chosen, clock, 0, {4: 3e-3, 1: 10e-3})
    for _ in range(2_000):  # six seconds of the usual
        clock.now += 3e-3
        made += 1
        assert not chosen.again(made)
    slow = 0
    while not chosen.again(made):
        clock.now += 0.3
        made, slow = made + 1, slow + 1
    assert slow < 10
    timed(chosen, clock, made, {4: 0.3, 1: 20e-3})
    assert chosen.now == 1


def test_threads_are_left_alone_where_they_are_not_ours_to_choose(clock):
    chosen = Threads(vary=False)
    assert timed(chosen, clock, 0, {4: 1.0, 1: 1e-3}) == TIMED + 1
    assert torch.get_num_threads() == 4
    clock.now += 1_000
    assert not chosen.again(50)
