"""Rate and distortion: the closed form of linear Gaussian data, and the command."""

import json
import math

import pytest
import torch

from inference import evaluate
from zoo.cli import run
from zoo.cli.rate import betas_of, point
from zoo.vae import VAE


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_a_linear_vae_at_beta_fills_the_water_of_gaussian_data(beta):
    """Best for β: W W' = λ − β, guide N(√(λ − β) x / λ, β / λ). Its rate is Σ ½ log λ / β, and its
    squared error Σ β: the rate–distortion function of N(0, λ) (Cover & Thomas 2006, th. 10.3.3).
    """
    torch.manual_seed(0)
    spread = torch.tensor([9.0, 4.0], dtype=torch.float64)
    vae = VAE(2, latent_dim=2, hidden=(), likelihood="gaussian-unit").double()
    gain = (spread - beta).sqrt()
    with torch.no_grad():
        for p in vae.parameters():
            p.zero_()
        vae.decoder[0].weight.copy_(gain.diag())
        vae.encoder[0].weight[:2].copy_((gain / spread).diag())
        vae.encoder[0].bias[2:] = 0.5 * (beta / spread).log()
    x = torch.randn(3_000, 2, dtype=torch.float64) * spread.sqrt()
    x = (x - x.mean(0)) / x.std(0, correction=0) * spread.sqrt()  # λ exactly
    found = evaluate(vae, x, particles=40, surgery=0)
    rate, told = found.kl_estimates["z"], found.estimates["reconstruction"]
    assert abs(rate.value - float(0.5 * (spread / beta).log().sum())) < 4 * rate.se
    distortion = math.log(2 * math.pi) + 0.5 * 2 * beta
    assert abs(-told.value - distortion) < 4 * told.se


def test_the_command_draws_the_curve_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.report.page.png", lambda drawing, theme: b"\x89PNG")
    tiny = "--steps 2 --batch-size 16 --compile no --particles 30 --test-rows 12 --hidden 8"
    assert run(["curve", "vae", "--betas", "1,4", *tiny.split(), "--out", "c"]) == 0
    found = json.loads((tmp_path / "c/curve.json").read_text())
    assert [p["beta"] for p in found] == [1, 4] and (tmp_path / "c/curve.png").exists()
    for p in found:
        assert p["elbo"] == pytest.approx(-(p["rate"] + p["distortion"]), abs=1e-3)
    capsys.readouterr()
    for argv, words in (
        (["vae", "--betas", "1"], "at least two numbers above 0"),
        (["gan"], "no ELBO of rate"),
        (["vae", "--elbo", "iwae:4"], "set by zoo curve"),
    ):
        assert run(["curve", *argv]) == 2
        assert words in capsys.readouterr().err
    assert betas_of("2, 0.5,1") == [0.5, 1, 2]
    with pytest.raises(ValueError, match="no density"):
        point({"elbo": 1.0})
