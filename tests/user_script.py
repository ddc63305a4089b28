"""A user's own script, as `mypy --strict` sees it; never run."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from inference import diagnose, elbo, evaluate, fit, load_run, make_guide, optim, posterior
from zoo.data import load
from zoo.vae import VAE


def model(x: Tensor, y: Tensor | None = None) -> None:
    """y_i ~ N(slope x_i, 1)."""
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def main() -> None:
    """Fit, judge, save."""
    x = torch.linspace(-1, 1, 50)
    guide = make_guide("full-rank", model)
    run = fit(model, guide, (x, 2 * x), elbo=elbo.IWAE(8), steps=600, optimiser=optim.Adam(0.02))
    value: float = run.elbo
    print(value, run.diagnose().verdict, run.report(), diagnose(run, x, 2 * x).reasons)
    print(posterior(model, x, 2 * x, seconds=10.0).verdict)
    digits = load("digits", pixels="dynamic")
    run = fit(VAE(64, latent_dim=8), digits, elbo=elbo.Trace(), steps=10)
    print(evaluate(run, digits.test).to_dict(), load_run("folder", VAE(64), digits))
