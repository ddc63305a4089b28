"""Tighter bounds, fainter gradients: signal-to-noise against K on the model of Rainforth et al.

z ~ N(μ, I), x | z ~ N(z, I), q(z | x) = N(A x + b, 2/3 I), D = 20, 1,024 data, every parameter a
little off its optimum (Rainforth et al. 2018, arXiv:1802.04537, section 4). Under IWAE the guide's
signal-to-noise falls as K^(-1/2) while the model's rises as K^(1/2); DReG's (Tucker et al. 2019,
arXiv:1810.04152) does not fall. Averaging M bounds raises both as M^(1/2).

python examples/rainforth_snr.py --out rainforth.png
"""

import argparse
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import nn

from inference import compare, elbo


class Rainforth(nn.Module):
    """The pair; its optimum is μ = E[x], A = I/2, b = μ/2."""

    def __init__(self, mean, off=0.01):
        super().__init__()
        d = len(mean)
        self.mu = nn.Parameter(mean + off * torch.randn(d))
        self.A = nn.Parameter(torch.eye(d) / 2 + off * torch.randn(d, d))
        self.b = nn.Parameter(mean / 2 + off * torch.randn(d))

    def model(self, x):  # noqa: D102
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):  # noqa: D102
        with pyro.plate("data", len(x)):
            q = dist.Normal(x @ self.A.T + self.b, math.sqrt(2 / 3))  # 2/3 is the variance
            pyro.sample("z", q.to_event(1))


def setting(n=1_024, d=20):
    """The pair near its optimum, and its data."""
    torch.manual_seed(0)
    mean = torch.randn(d)
    return Rainforth(mean), mean + math.sqrt(2) * torch.randn(n, d)


def log_px(pair, x):
    """log Π N(x; μ, 2 I), nats."""
    return dist.Normal(pair.mu, math.sqrt(2)).log_prob(x).sum().item()


def main(out="rainforth.png", particles=(8, 16, 32, 64, 128), groups=(1, 2, 4, 8, 16), draws=200):
    """Measure, fit the slopes, draw; returns {(estimator, parameter): slope}."""
    pair, x = setting()
    known = {"draws": draws, "reference": log_px(pair, x)}
    by_k = compare(pair, x, [e(k) for e in (elbo.IWAE, elbo.DReG) for k in particles], **known)
    by_m = compare(pair, x, [elbo.MIWAE(m, 8) for m in groups], **known)
    figure, slopes = Figure(figsize=(10, 4), layout="constrained"), {}
    for axes, found, count in zip(figure.subplots(1, 2), (by_k, by_m), ("K", "M")):
        for kind in dict.fromkeys(found.kind.values):
            of = found.isel(estimator=found.kind.values == kind)
            m = of.particles.values if count == "K" else of.particles.values // 8
            for group, style in (("mu", "-"), ("b", "--")):
                snr = of.snr.sel(group=group).values
                slope = slopes[kind, group] = np.polyfit(np.log(m), np.log(snr), 1)[0]
                axes.loglog(m, snr, style, marker="o", label=f"{kind}, {group}: slope {slope:+.2f}")
        axes.set(xlabel=count, ylabel="signal-to-noise ratio of the gradient")
        axes.legend(fontsize=8)
    figure.savefig(out, dpi=120)
    return slopes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="rainforth.png")
    parser.add_argument("--draws", type=int, default=200)
    for key, slope in main(**vars(parser.parse_args())).items():
        print(*key, f"{slope:+.3f}")
