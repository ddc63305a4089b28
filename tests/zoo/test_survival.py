"""Runs side by side, judging that fails, and folders that are damaged: nothing is lost."""

import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inference.training.checkpoint import BEFORE
from inference.training.folders import STATE
from tests import mutated
from zoo.cli import run

ROOT = Path(__file__).parents[2]
FIT = shlex.split(
    "fit vae --steps 400 --batch-size 16 --compile no --particles 4 --test-rows 5 --hidden 4 "
    "--latent-dim 2 --save-every 0.001"
)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.report.page.png", lambda drawing, theme: b"\x89PNG")
    monkeypatch.setattr("zoo.cli.runs._write_posterior", lambda *_: None)


@pytest.mark.slow
def test_eight_fits_at_once_have_eight_folders(tmp_path):
    """And whatever they are called, none drops another's."""
    argv = [sys.executable, "-c", EIGHT]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert folders == [f"gaussian-moons-{n:03d}" for n in range(1, 9)]


EIGHT = """
import os
from zoo.cli import run, runs
from zoo.cli.plan import Plan
from zoo.cli.fit import card
entry = card("gaussian")
children = []
for _ in range(8):
    child = os.fork()
    if not child:
        plan = Plan("zoo fit gaussian", entry, {}, "moons", "closed-form")
        with runs.reserved(plan, None):
            os._exit(0)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MemoryError(), ZeroDivisionError("figure")]
)
def test_whatever_fails_after_training_leaves_a_run_that_can_be_judged(error, monkeypatch, capsys):
    def fails(*args):
        raise error

    short = ["3" if word == "400" else word for word in FIT]
    with monkeypatch.context() as patch:
        patch.setattr("zoo.cli.runs.judge", fails)
        assert run([*short, "--out", "run"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.splitlines()[-1].endswith("zoo report run")
    assert run(["report", "run"]) == 0 and Path("run/report.html").exists()


@pytest.mark.parametrize("count", [12, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_mutated_folder_does_harm(count, tmp_path):
    whole = mutated.made(tmp_path / "whole")
    found = [text for i in range(count) for text in mutated.faults(whole, tmp_path, i, 0)[0]]
    assert not found, "\n".join(found)


def test_no_mutated_file_harms_its_reader(tmp_path, caplog):
    """Five hundred, of a folder with no more than a plan and two states."""
    caplog.set_level(logging.ERROR)
    whole = mutated.made(tmp_path / "whole")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", STATE):
        shutil.copy(whole / name, bare / name)
    shutil.copy(bare / STATE, bare / BEFORE)
    outcomes = [mutated.faults_of_readers(bare, tmp_path, i, 0) for i in range(500)]
    found = [text for texts, _ in outcomes for text in texts]
    assert not found, "\n".join(found)
    assert len({read for _, read in outcomes}) == 2, "no file was refused, or none was read"
