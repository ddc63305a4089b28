"""The small figures of docs/theory.md, made by the library's own functions, into docs/figures/."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import nn

from inference import elbo, fit, log_weights
from inference.draws.psis import khat
from inference.ratios import density_ratio
from zoo.autoencoder import Autoencoder, LinearAutoencoder
from zoo.em import expectation_maximization
from zoo.flows import MAF
from zoo.report.draw import new_figure
from zoo.report.theme import ACCENT, LIGHT, saved, themed
from zoo.toys import moons
from zoo.vae import VAE

OUT = Path(__file__).resolve().parent / "figures"
X = torch.tensor([1.0])


class Known(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1); guide N(m, s²), exact at m = x / 2, s² = 1 / 2."""

    def __init__(self, m: float, s: float):
        super().__init__()
        self.m, self.s = m, s

    def model(self, x: torch.Tensor) -> None:
        """p(z) p(x | z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """q(z)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.tensor(self.m), self.s))


def bound(m: float, s: float, particles: int, estimator: elbo.Estimator) -> float:
    """A bound at a guide, from many particles."""
    torch.manual_seed(0)
    pair = Known(m, s)
    weights = log_weights(pair.model, pair.guide, X, particles=particles)
    return float(estimator.bound(weights))


LOG_PX = float(dist.Normal(0.0, math.sqrt(2.0)).log_prob(X))


def over_guides() -> Figure:
    """The ELBO over m, for three s."""
    figure = new_figure(5.2, 3.0)
    ax = figure.subplots()
    ms = np.linspace(-0.6, 1.6, 23)
    for s in (0.4, math.sqrt(0.5), 1.2):
        ax.plot(ms, [bound(m, s, 2_000, elbo.Trace(2_000)) for m in ms], label=f"s = {s:.2f}")
    ax.axhline(LOG_PX, color=LIGHT.ink, ls="--", lw=1, label="log p(x)")
    ax.set(xlabel="mean of the guide", ylabel="ELBO, nats")
    ax.legend()
    return figure


def over_particles() -> Figure:
    """The importance-weighted bound over K, at a guide that is off."""
    figure = new_figure(5.2, 3.0)
    ax = figure.subplots()
    pair, ks = Known(-0.3, 0.8), [1, 2, 4, 8, 16, 32, 64, 128]
    torch.manual_seed(0)
    w = log_weights(pair.model, pair.guide, X, particles=128 * 400).log_weight().reshape(-1)
    means = [float((w.reshape(-1, k).logsumexp(1) - math.log(k)).mean()) for k in ks]
    ax.semilogx(ks, means, "o-", color=ACCENT, base=2)
    ax.axhline(LOG_PX, color=LIGHT.ink, ls="--", lw=1, label="log p(x)")
    ax.set(xlabel="K", ylabel="bound, nats")
    ax.legend()
    return figure


def rising() -> Figure:
    """Log-likelihood of Old Faithful by EM."""
    root = Path(os.environ.get("ZOO_DATA", "")) / "old_faithful" / "faithful.csv"
    x = torch.tensor(np.loadtxt(root, delimiter=",", skiprows=1))
    found = expectation_maximization(x, 2, restarts=1, seed=0)
    figure = new_figure(5.2, 3.0)
    ax = figure.subplots()
    ax.plot(np.arange(1, len(found.history) + 1), found.history.numpy(), "o-", ms=3, color=ACCENT)
    ax.axhline(-1130.264, color=LIGHT.ink, ls="--", lw=1, label="−1130.264, published")
    ax.set(xlabel="update", ylabel="log-likelihood, nats")
    ax.legend()
    return figure


def likelihood() -> Figure:
    """The mean log-likelihood of some data over a Gaussian's mean: highest at theirs."""
    x = torch.tensor([-0.5, 0.2, 0.9, 1.4, 2.5])
    means = np.linspace(-1.0, 3.0, 81)
    values = [float(dist.Normal(float(m), x.std(correction=0)).log_prob(x).mean()) for m in means]
    figure = new_figure(5.2, 3.0)
    ax = figure.subplots()
    ax.plot(means, values, color=ACCENT)
    ax.axvline(float(x.mean()), color=LIGHT.ink, ls="--", lw=1, label="sample mean")
    ax.set(xlabel="mean of the Gaussian", ylabel="log-likelihood, nats per datum")
    ax.legend()
    return figure


def four_ways() -> Figure:
    """One code for points near an arc: a line, a curve, a curve with draws around it."""
    generator = torch.Generator().manual_seed(0)
    angle = 3.0 * torch.rand(400, generator=generator)
    arc = torch.stack([angle.cos(), angle.sin() - 0.6], -1)
    x = arc + 0.08 * torch.randn(400, 2, generator=generator)
    torch.manual_seed(0)
    pairs = {
        "linear-autoencoder": LinearAutoencoder(2, 1),
        "autoencoder": Autoencoder(2, 1, hidden=(16,)),
        "vae": VAE(2, latent_dim=1, hidden=(16,), likelihood="gaussian"),
    }
    figure = new_figure(7.5, 2.7)
    for ax, (name, pair) in zip(figure.subplots(1, 3, sharex=True, sharey=True), pairs.items()):
        run = fit(pair, (x,), steps=800, lr=0.01, batch_size=100, compile=False, progress=False)
        z = run.pair.encode(x)
        path = run.pair.decode(torch.linspace(float(z.min()), float(z.max()), 100)[:, None])
        ax.scatter(*x.T, s=2, color=LIGHT.ink, alpha=0.4, lw=0)
        if name == "vae":
            torch.manual_seed(0)
            ax.scatter(*run.pair.sample(300).T, s=3, color=ACCENT, alpha=0.4, lw=0)
        ax.plot(*path.T, color=ACCENT, lw=2)
        ax.set(title=name, xticks=[], yticks=[])
    return figure


def warped() -> Figure:
    """A flow's density of two moons, normalised by its log-determinant."""
    x, _ = moons(2_000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    flow = MAF(2, layers=4, hidden=(32,))
    flow.initialise(x)
    flow = fit(flow, (x,), steps=800, lr=5e-3, batch_size=200, compile=False, progress=False).pair
    low, high = x.min(0).values - 0.3, x.max(0).values + 0.3
    axes = [torch.linspace(float(a), float(b), 80) for a, b in zip(low, high)]
    grid = torch.cartesian_prod(*axes)
    with torch.no_grad():
        density = flow.log_prob(grid).exp().reshape(80, 80)
    figure = new_figure(5.2, 3.0)
    ax = figure.subplots()
    ax.contourf(*axes, density.T, 12, cmap="Blues")
    ax.scatter(*x[:300].T, s=2, color=LIGHT.ink, lw=0)
    ax.set(xlabel="x₁", ylabel="x₂")
    return figure


def ratio() -> Figure:
    """The logit of a classifier between two Gaussians, and the exact log ratio."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2_000, 1, generator=generator) * s + m for m, s in ((0.5, 1.0), (0.0, 1.5)))
    critic = density_ratio(p, q, steps=200, seed=0, compile=False, progress=False)
    grid = torch.linspace(-3, 3, 101)[:, None]
    exact = dist.Normal(0.5, 1.0).log_prob(grid) - dist.Normal(0.0, 1.5).log_prob(grid)
    figure = new_figure(5.2, 3.0)
    ax = figure.subplots()
    with torch.no_grad():
        ax.plot(grid, critic.log_ratio(grid), color=ACCENT, label="classifier")
    ax.plot(grid, exact, color=LIGHT.ink, ls="--", lw=1, label="log p(x) / q(x)")
    ax.set(xlabel="x", ylabel="log ratio, nats")
    ax.legend()
    return figure


def tails() -> Figure:
    """The k-hat of a guide with the right mean and another width, of a standard normal."""
    widths = np.linspace(0.4, 1.6, 25)
    torch.manual_seed(0)
    noise = torch.randn(20_000, dtype=torch.float64)
    weights = [-0.5 * (s * noise) ** 2 + 0.5 * noise**2 + math.log(s) for s in widths]
    figure = new_figure(5.2, 3.0)
    ax = figure.subplots()
    ax.plot(widths, [float(khat(w)) for w in weights], "o-", ms=3, color=ACCENT)
    ax.axhline(0.7, color=LIGHT.ink, ls="--", lw=1, label="limit of correction")
    ax.set(xlabel="sd of the guide (the posterior's is 1)", ylabel="Pareto k-hat")
    ax.legend()
    return figure


def main() -> None:
    """Write all of them."""
    OUT.mkdir(exist_ok=True)
    figures = {
        "likelihood": likelihood, "elbo": over_guides, "em": rising, "autoencoders": four_ways,
        "iwae": over_particles, "flow": warped, "ratio": ratio, "tails": tails,
    }  # fmt: skip
    for name, draw in figures.items():
        with themed(LIGHT):
            (OUT / f"theory-{name}.png").write_bytes(saved(draw()))


if __name__ == "__main__":
    main()
