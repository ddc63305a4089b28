"""Every estimator and every model on a CUDA device, through the captured step.

Run them with `pytest -m cuda` on a machine that has one. `ZOO_DEVICE=cpu pytest tests/test_cuda.py`
runs the same calls without, and launches again where a GPU replays.
"""

import os

import captures
import numpy as np
import pytest
import torch

from inference import elbo, fit
from inference.optim import Adam
from inference.pairs.pair import Pair
from inference.testing.toys import LinearGaussian
from inference.training.steps import CompiledStep
from inference.training.update import Update, Variables
from zoo.cards import CARDS
from zoo.cli import run

DEVICE = os.environ.get("ZOO_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]


@pytest.fixture(autouse=True)
def capturing(monkeypatch):
    """Without a GPU, all but the capture itself is as on one."""
    if DEVICE == "cpu":
        captures.use(monkeypatch)


ESTIMATORS = [
    elbo.Trace(2), elbo.MeanField(2), elbo.Beta(4.0), elbo.STL(2), elbo.Score(2), elbo.Enum(2),
    elbo.IWAE(3), elbo.MIWAE(2, 3), elbo.CIWAE(0.3, 3), elbo.Renyi(0.5, 3), elbo.DReG(3),
    elbo.VIMCO(3), elbo.WakeSleep(3), elbo.ForwardKL(4), elbo.CUBO(2.0, 4),
    elbo.ThermodynamicVI(4), elbo.MMD(1.0), elbo.TotalCorrelation(2.0),
]  # fmt: skip
STEPLESS = ("closed-form", "em", "variational-bayes")
TRAINED = [(n, t) for n, c in CARDS.items() for t in c.trainers if t not in STEPLESS]


def test_no_estimator_is_forgotten():
    told = {type(e).__name__ for e in ESTIMATORS}
    classes = [c for c in vars(elbo).values() if isinstance(c, type)]
    assert told == {c.__name__ for c in classes if issubclass(c, elbo.Estimator)} - {"Estimator"}


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_estimators(estimator):
    """The compiled steps are proved against the eager ones when they are made."""
    pair = LinearGaussian()
    got = fit(
        pair, pair.data(), elbo=estimator, steps=6, compile=True, device=DEVICE, progress=False
    )
    assert got.compiled, got.eager_because
    assert all(np.isfinite(got.losses))
    assert all(p.device.type == torch.device(DEVICE).type for p in got.params.values())


@pytest.mark.parametrize("repeats", [1, 5])
def test_a_step_never_waits_for_the_device(repeats):
    pair = LinearGaussian().to(DEVICE)
    x = pair.data().to(DEVICE)
    update = Update(Pair(pair.model, pair.guide, (x,)), elbo.IWAE(3), Adam())
    variables = Variables.start(update.pair, update.optimiser)
    step = CompiledStep(update, variables, torch.tensor(1e-3, device=DEVICE), repeats)
    step((x,))
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        losses = torch.stack([step((x,)) for _ in range(3)])
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert len(losses.unique()) == losses.numel()  # new noise for each


@pytest.mark.parametrize("compile", [False, True])
def test_held_out_data_leave_the_noise_alone(compile):
    pair = LinearGaussian()
    x = pair.data()
    runs = [
        fit(
            pair, x, valid=v, valid_every=2, steps=10, compile=compile, device=DEVICE,
            progress=False,
        )
        for v in (None, x)
    ]  # fmt: skip
    assert np.allclose(runs[0].losses, runs[1].losses, rtol=1e-4)


@pytest.mark.parametrize("name, trainer", TRAINED)
def test_models(name, trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = ["--trainer", trainer] if len(CARDS[name].trainers) > 1 else []
    argv = ["fit", name, *chosen, "--steps", "4", "--device", DEVICE]
    assert run([*argv, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").exists()
