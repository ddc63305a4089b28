"""`run.diagnose()` and `run.report()`: the same verdict and page in Python as at the command."""

import json

import pytest
import torch

import inference
from inference import fit, load_run
from zoo.report.of_run import page_of_run
from zoo.vae import VAE

QUIET = {"compile": False, "progress": False}


@pytest.fixture(scope="module")
def joint():
    """A pair whose latent belongs to all data, fitted for a few steps."""
    import pyro
    import pyro.distributions as dist

    x = torch.linspace(-1.0, 2.0, 20)

    def heights(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    guide = inference.make_guide("mean-field", heights)
    return heights, guide, x, fit(heights, guide, x, steps=100, lr=0.1, **QUIET)


def test_a_run_is_diagnosed_on_the_data_of_its_fit(joint, monkeypatch):
    _, _, x, run = joint
    asked = []
    monkeypatch.setattr(inference, "diagnose", lambda *args, **options: asked.append(args[1:]))
    run.diagnose(draws=100)
    run.diagnose(x[:3])
    assert [torch.equal(a, b) for (a,), b in zip(asked, (x, x[:3]))] == [True, True]


def test_mini_batches_keep_no_data(joint):
    x = joint[2]
    pair = VAE(2, latent_dim=1, hidden=(2,))
    run = fit(pair, x.reshape(10, 2).round().abs().clamp(0, 1), steps=2, batch_size=5, **QUIET)
    with pytest.raises(ValueError, match=r"mini-batches and keeps none.*run.report\(x_test\)"):
        run.report()


def test_the_page_of_a_joint_posterior(joint, monkeypatch, tmp_path):
    model, guide, x, run = joint
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.report.page.png", lambda drawing, theme: b"\x89PNG")
    page = page_of_run(run)
    assert str(page) == "runs/heights-001/report.html"
    said = json.loads((page.parent / "page/report.json").read_text())
    assert [t["title"] for t in said["tables"]] == ["Posterior"]
    (mean,) = said["tables"][0]["rows"]
    assert mean[0] == "mean" and abs(float(mean[1]) - 10.0 / 21) < 0.1  # sum x / (1 + n)
    text = page.read_text()
    for part in ("Posterior predictive", "Loss", ">Diagnosis<"):
        assert part in text
    assert load_run(page.parent, model, guide, x).elbo == run.elbo


@pytest.mark.slow
def test_the_page_of_latents_of_single_data(tmp_path):
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(0)).round()
    pair = VAE(6, latent_dim=2, hidden=(8,))
    run = fit(pair, x, steps=20, batch_size=20, **QUIET)
    said = page_of_run(run, x[:30], folder=tmp_path / "mine").parent / "page/report.json"
    told = {m["key"] for m in json.loads(said.read_text())["metrics"]}
    assert {"elbo", "log_px"} <= told


def test_without_pages_the_mend_is_said(joint, monkeypatch):
    monkeypatch.setattr("inference.training.run.entry_points", lambda group: ())
    with pytest.raises(ImportError, match=r"pip install 'pyro-zoo\[command\]'"):
        joint[3].report()
