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

from inference import elbo, log_weights
from zoo.em import expectation_maximization
from zoo.report.draw import new_figure
from zoo.report.theme import ACCENT, LIGHT, saved, themed

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


def main() -> None:
    """Write all of them."""
    OUT.mkdir(exist_ok=True)
    figures = {"elbo": over_guides, "iwae": over_particles, "em": rising}
    for name, draw in figures.items():
        with themed(LIGHT):
            (OUT / f"theory-{name}.png").write_bytes(saved(draw()))


if __name__ == "__main__":
    main()
