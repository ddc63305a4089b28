"""Several processes that make one fit: the same numbers, each its share of the work."""

import multiprocessing
import os
import signal
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed

from inference import fit
from inference.training.callbacks import Callback
from inference.training.ranks import Ranks, ranks_of
from inference.training.saved import read_run
from inference.training.state import all_random_states, own_random_state

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
# a process that has used CUDA cannot be forked
START = multiprocessing.get_context("forkserver" if torch.cuda.is_available() else "fork")
OPTIONS = {
    "batch_size": 9, "lr": 0.05, "seed": 3, "steps": 20, "valid": X[:7], "valid_every": 6,
    "compile": False, "progress": False, "device": "cpu", "clip": 1.0,
}  # fmt: skip


def exact_model(x, size=None):
    """No latents: the loss of a batch has no noise."""
    scale = pyro.param("scale", torch.ones(3).double() * 2, constraint=dist.constraints.positive)
    mean = pyro.param("mean", torch.zeros(3).double())
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def nothing(x, size=None):
    pass


def noisy_model(x, size=None):
    with pyro.plate("data", size or len(x), subsample=x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def noisy_guide(x, size=None):
    slope = pyro.param("slope", torch.zeros(3).double())
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("z", dist.Normal(slope * x, 0.7).to_event(1))


def global_model(x):
    mean = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, 1.0).expand([30, 3]).to_event(2), obs=x)


def global_guide(x):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))


def pair(name):
    return {"exact": (exact_model, nothing), "noisy": (noisy_model, noisy_guide),
            "global": (global_model, global_guide)}[name]  # fmt: skip


def summary(run):
    state = {k: p.tolist() for k, p in run.params.items()}
    return state, run.losses, run.best, run.stopped, run.steps, run.compiled


def rank(number, size, work, job, answers):
    """One of so many processes: its answer, or its error."""
    warnings.simplefilter("ignore")
    file = f"file://{work}/meet"
    torch.distributed.init_process_group("gloo", init_method=file, rank=number, world_size=size)
    try:
        answers.put((number, job(number, work)))
    except Exception as error:
        answers.put((number, error))
    finally:
        torch.distributed.destroy_process_group()


def together(size, work, job):
    """What every rank answers."""
    (work / "meet").unlink(missing_ok=True)
    answers = START.SimpleQueue()
    processes = [
        START.Process(target=rank, args=(i, size, work, job, answers)) for i in range(size)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get() for _ in processes)
    for process in processes:
        process.join(30)
    return [found[i] for i in range(size)]


def assert_same(one, other):
    (params, losses, best, *_), (params_, losses_, best_, *_) = one, other
    assert losses == pytest.approx(losses_, rel=1e-12) and best == pytest.approx(best_, rel=1e-12)
    for name, values in params.items():
        assert values == pytest.approx(params_[name], rel=1e-10, abs=1e-12)


def fit_exact(number, work):
    return summary(fit(*pair("exact"), X, **OPTIONS))


def test_two_processes_on_one_batch_are_one_process(tmp_path):
    """Nine rows a batch, shared as four and five; thirty a whole one."""
    first, second = together(2, tmp_path, fit_exact)
    assert first[:3] == second[:3]
    assert_same(first, summary(fit(*pair("exact"), X, **OPTIONS)))


def fit_compiled(number, work):
    return summary(fit(*pair("exact"), X, **{**OPTIONS, "compile": True}))


@pytest.mark.slow
def test_a_compiled_step_adds_gradients_up_too(tmp_path):
    first, second = together(2, tmp_path, fit_compiled)
    assert first[-1] and first[:3] == second[:3]
    assert_same(first, summary(fit(*pair("exact"), X, **OPTIONS)))


def fit_in_parts(number, work):
    """Noisy: as a whole, and stopped, saved and resumed by as many."""

    class Stop(Callback):
        def validation(self, run):
            return run.steps == 12

    whole = fit(*pair("noisy"), X, **OPTIONS)
    folder = work / "run"
    part = fit(*pair("noisy"), X, folder=folder, callbacks=[Stop()], **OPTIONS)
    torch.distributed.barrier()
    more = fit(*pair("noisy"), X, resume=folder, **OPTIONS)
    return summary(whole), summary(part), summary(more), torch.randn(2).tolist()


def test_each_rank_has_its_noise_and_resuming_is_exact(tmp_path):
    found = together(2, tmp_path, fit_in_parts)
    for whole, part, more, _ in found:
        assert part[4] == 12 and part[3] == "a callback asked for it"
        assert more[:3] == whole[:3] == found[0][0][:3]
    # the first rank alone would have drawn the same noise for the first half of each batch twice
    alone = fit(*pair("noisy"), X, **OPTIONS)
    assert alone.losses != found[0][0][1]
    # another number of processes: the same rows, the state as it was
    more = fit(*pair("noisy"), X, resume=tmp_path / "run", **OPTIONS)
    assert more.steps == 20 and more.losses[:12] == found[0][1][1]
    assert more.settings["batch_size"] == 9


def fit_global(number, work):
    run = fit(*pair("global"), X.float(), steps=3, compile=False, progress=False, lr=0.1)
    return summary(run)


def test_without_a_batch_size_the_ranks_share_the_draws(tmp_path):
    first, second = together(2, tmp_path, fit_global)
    assert first[:3] == second[:3]
    alone = fit(*pair("global"), X.float(), steps=3, compile=False, progress=False, lr=0.1)
    assert first[1] != alone.losses  # the mean of two draws


def killed(number, work):
    """The second rank is killed in the middle."""
    calls = []

    def model(x, size=None):
        calls.append(None)
        if number == 1 and len(calls) == 333:
            os.kill(os.getpid(), signal.SIGKILL)
        exact_model(x, size)

    options = {**OPTIONS, "steps": 100_000, "valid": None, "valid_every": None}
    return fit(model, nothing, X, folder=work / "run", check=False, **options)


def test_a_rank_that_is_killed_ends_the_others_at_once_with_a_state(tmp_path):
    answers = START.SimpleQueue()
    processes = [
        START.Process(target=rank, args=(i, 2, tmp_path, killed, answers)) for i in range(2)
    ]
    for process in processes:
        process.start()
    processes[1].join(60)
    assert processes[1].exitcode == -signal.SIGKILL
    begin = time.monotonic()
    number, error = answers.get()
    assert number == 0 and time.monotonic() - begin < 10
    processes[0].join(10)
    assert isinstance(error, ConnectionError) and "another process of the group is gone" in str(
        error
    )
    saved = read_run(tmp_path / "run")
    assert f"Kept: the state of step {saved.steps:,} in" in str(error) and saved.steps > 0
    more = {**OPTIONS, "steps": saved.steps + 3, "valid": None, "valid_every": None}
    assert fit(exact_model, nothing, X, resume=tmp_path / "run", **more).steps == saved.steps + 3


def refused(number, work):
    (work / "taken").mkdir(exist_ok=True)
    texts = []
    for more in ({"folder": work / "taken"}, {"batch_size": 1}, {"group": "all"}):
        try:
            fit(*pair("exact"), X, **{**OPTIONS, **more})
        except (OSError, ValueError, TypeError) as error:
            texts.append(str(error))
    alone = [fit(*pair("noisy"), X, group=False, **OPTIONS)] if number == 0 else []
    return texts, [summary(run) for run in alone]


def test_what_one_rank_refuses_all_refuse(tmp_path):
    first, second = together(2, tmp_path, refused)
    assert first[0] == second[0] and len(first[0]) == 3
    assert first[1] == [summary(fit(*pair("noisy"), X, **OPTIONS))]
    assert "taken exists already" in first[0][0]
    assert "at least one row for each of 2 processes" in first[0][1]
    assert "expected a torch.distributed.ProcessGroup" in first[0][2]


def lost(number, work):
    """The scale falls until its root is none."""

    def model(x, size=None):
        scale = torch.sqrt(pyro.param("a", torch.ones(())) - 0.6)
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=x)

    options = {**OPTIONS, "valid": None, "valid_every": None, "clip": None}
    run = fit(model, nothing, torch.zeros(30, 3), **options)
    return run.stopped, run.steps


def test_a_loss_that_is_not_finite_ends_all_ranks_alike(tmp_path):
    first, second = together(2, tmp_path, lost)
    assert first == second
    assert first[0].startswith(f"loss no longer finite at step {first[1] + 1}, from site 'x' at ro")


def test_states_of_noise_are_one_for_each_rank():
    states = [{"cpu": torch.tensor([i])} for i in range(3)]
    merged = all_random_states(states)
    assert all(int(own_random_state(merged, i)["cpu"]) == i for i in range(3))
    assert own_random_state(merged, 3) is None and own_random_state(None, 0) is None
    assert all_random_states([merged, merged]).keys() == {"cpu", "cpu 1", "cpu 2"}
    parts = [Ranks(i, 4, None, torch.device("cpu")).part(10) for i in range(4)]
    assert [p.stop - p.start for p in parts] == [2, 3, 2, 3] and parts[-1].stop == 10
    assert ranks_of("auto") is None and ranks_of(None) is None
