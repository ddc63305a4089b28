"""The folder of a run: whole or not at all, the last two states, every field checked."""

import json
import logging
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors import safe_open

from inference import elbo, fit, load_run, optim
from inference.training import checkpoint, keeping
from inference.training.callbacks import Callback
from inference.training.folders import STATE, reserve, sweep, temporary, whole_folder
from inference.training.saved import read_run

X = torch.randn(30, generator=torch.Generator().manual_seed(0))
QUIET = {"compile": False, "progress": False}


def model(x, size=None):
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def guide(x, size=None):
    pass


def fitted(**more):
    return fit(model, guide, X, batch_size=10, lr=0.1, **QUIET, **more)


def same(a, b):
    assert a.losses == b.losses and float(a.params["loc"]) == float(b.params["loc"])


def test_a_run_is_saved_and_read_back_with_all_it_was_fitted_with(tmp_path):
    options = dict(elbo=elbo.Beta(2.0, 3, warmup=5), optimiser=optim.SGD(0.03), clip=1.0)
    run = fit(model, guide, X, steps=8, batch_size=10, valid=X[:5], **options, **QUIET)
    run.save(tmp_path / "run")
    again = load_run(tmp_path / "run", model, guide, X, valid=X[:5])
    same(again, run)
    assert again.history.rows == run.history.rows and again.elbo == run.elbo
    assert repr(again.estimator) == repr(run.estimator) and again.estimator.warmup == 5
    assert again.settings["optimiser"] == optim.SGD(0.03) and again.settings["clip"] == 1.0
    more = dict(steps=12, valid=X[:5], **QUIET)
    same(fit(model, guide, X, resume=again, **more), fit(model, guide, X, resume=run, **more))
    with pytest.raises(FileExistsError, match="holds a run"):
        run.save(tmp_path / "run")


def test_what_no_file_can_hold_is_asked_for_again(tmp_path):
    def rate(count):
        return 0.5 + 0 * count

    fitted(steps=3, schedule=rate).save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"schedule: the run had .*Give schedule= again"):
        load_run(tmp_path / "run", model, guide, X)
    assert load_run(tmp_path / "run", model, guide, X, schedule=rate).steps == 3


def test_nothing_is_overwritten_and_nothing_is_half_written(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), whole_folder(tmp_path / "a/b") as inside:
        (inside / "file").write_text("half")
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists already"):
        fitted(steps=2, folder=tmp_path / "mine")
    with pytest.raises(ValueError, match="steps"):
        fitted(steps=0, folder=tmp_path / "new")
    with pytest.raises(ValueError, match="batch_size"):
        fit(model, guide, X, batch_size=99, folder=tmp_path / "deep/new", **QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot be written"):
        fitted(steps=2, folder=tmp_path / "file/run")


def _reserve(parent, barrier, names):
    barrier.wait()
    candidates = (Path(parent) / f"run-{n}" for n in range(100))
    names.put(reserve(candidates, {"a": str(os.getpid()).encode()}).name)


def test_eight_processes_take_eight_names(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, names = context.Barrier(8), context.Queue()
    work = [context.Process(target=_reserve, args=(tmp_path, barrier, names)) for _ in range(8)]
    for process in work:
        process.start()
    found = sorted(names.get(timeout=30) for _ in work)
    for process in work:
        process.join()
    assert found == [f"run-{n}" for n in range(8)]
    assert len({(tmp_path / name / "a").read_text() for name in found}) == 8


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(tmp_path):
    living, dead = temporary(tmp_path), temporary(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = dead.with_name(dead.name.replace(f"-{os.getpid()}-", f"-{process.pid}-"))
    living.mkdir(), dead.mkdir()
    (dead / "half").write_text("")
    (tmp_path / ".zoo-mine").write_text("")
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {living.name, ".zoo-mine"}


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        fitted(steps=2).save(tmp_path / "run")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "run" / STATE).stat().st_mode) == 0o640


def test_states_are_written_as_a_run_goes_and_a_damaged_one_falls_back(
    tmp_path, caplog, monkeypatch
):
    steps = []
    monkeypatch.setattr(keeping, "SHARE", 0)

    class Watch(Callback):
        def saved(self, run):
            steps.append(run.steps)

    whole = fitted(steps=60, callbacks=[Watch()], save_every=1e-9, folder=tmp_path / "run")
    assert steps[:4] == [1, 2, 3, 4] and steps[-1] == 60
    newest, before = (tmp_path / "run" / n for n in (STATE, checkpoint.BEFORE))
    assert {p.name for p in (tmp_path / "run").iterdir()} == {newest.name, before.name}
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1
    newest.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        same(fit(model, guide, X, resume=tmp_path / "run", steps=61, **QUIET),
             fit(model, guide, X, resume=whole, steps=61, **QUIET))  # fmt: skip
    assert "state.safetensors is damaged" in caplog.text and "the state before" in caplog.text
    before.write_bytes(before.read_bytes()[:99])
    with pytest.raises(ValueError, match=r"state.safetensors is damaged: expected a state with"):
        read_run(tmp_path / "run")


def test_a_disk_that_is_full_costs_a_state_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    def mend(run):
        if run.steps == 4:
            monkeypatch.undo()

    monkeypatch.setattr(keeping, "SHARE", 0)
    monkeypatch.setattr("inference.training.checkpoint.write_whole", full)
    run = fitted(steps=9, folder=tmp_path / "run", save_every=1e-9, callbacks=[mend])
    assert "No space left" in caplog.text and "the run goes on" in caplog.text
    same(read_run_as(tmp_path / "run"), run)


def read_run_as(folder):
    return load_run(folder, model, guide, X)


def test_states_take_a_fiftieth_of_the_time_at_most(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(keeping.time, "monotonic", lambda: clock[0])
    keeper = keeping.Keeper(tmp_path, 1.0)

    class Slow:
        steps = 1

        def write(self, folder):
            clock[0] += 3.0

    assert not keeper.due()
    clock[0] = 1.0
    assert keeper.due()
    keeper.write(Slow())
    clock[0] += 149.0
    assert not keeper.due()
    clock[0] += 1.0
    assert keeper.due()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_is_obeyed_after_the_step_and_the_state(name, tmp_path):
    number, come = getattr(signal, name), []
    before = signal.signal(
        number, lambda n, frame: come.append((n, (tmp_path / "run" / STATE).exists()))
    )

    def pressing(x, size=None):
        if not pressing.pressed and signal.getsignal(number) is not handler:
            pressing.pressed = True
            os.kill(os.getpid(), number)
        model(x, size)

    handler, pressing.pressed = signal.getsignal(number), False
    try:
        run = fit(pressing, guide, X, steps=40, check=False, folder=tmp_path / "run", **QUIET)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert come == [(number, True)] and run.stopped == f"ended by {name}" and run.steps < 40
    assert read_run(tmp_path / "run").steps == run.steps


def test_the_parameters_can_be_read_by_safetensors_alone(tmp_path):
    run = fitted(steps=3)
    run.save(tmp_path / "run")
    with safe_open(tmp_path / "run" / STATE, "pt") as file:
        assert float(file.get_tensor("params/loc")) == float(run.variables.params["loc"])


def test_a_link_is_not_followed(tmp_path):
    fitted(steps=2).save(tmp_path / "run")
    os.rename(tmp_path / "run" / STATE, tmp_path / "elsewhere")
    (tmp_path / "run" / STATE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="a symbolic link is not followed"):
        read_run(tmp_path / "run")


def resigned(path, change):
    """Write a state anew with changed fields and the right checksum."""
    with safe_open(path, "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        fields = json.loads(file.metadata()["fields"])
    change(fields)
    checkpoint.write(path.parent, tensors, fields)
    (path.parent / checkpoint.BEFORE).unlink()


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("history", 3, r"state.safetensors: field 'history': expected rows of numbers, got 3"),
        ("seed", "x\x1b[31m", r"field 'seed': expected a whole number, got 'x\\x1b\[31m'"),
        ("settings", {"elbo": {"elbo": ["Estimat", {}]}}, "field 'settings'"),
        ("settings", {"optimiser": {"optim": ["SGD", {"momentum": {"list": []}}]}}, "'settings'"),
        ("kind", None, "field 'kind'"),
        ("logged", [10**6, 0], "field 'logged'"),
    ],
)
def test_a_field_that_is_wrong_is_named(field, value, words, tmp_path):
    fitted(steps=2).save(tmp_path / "run")
    resigned(tmp_path / "run" / STATE, lambda fields: fields.update({field: value}))
    with pytest.raises(ValueError, match=words):
        read_run(tmp_path / "run")


def test_another_pair_is_refused(tmp_path):
    def other(x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.zeros(2)).sum(), 1.0), obs=x)

    fitted(steps=3).save(tmp_path / "run")
    with pytest.raises(ValueError, match="do not fit the pair"):
        load_run(tmp_path / "run", other, guide, X)
