"""Tighter bounds, fainter gradients: signal-to-noise against K on the model of Rainforth et al.

z ~ N(μ, I), x | z ~ N(z, I), q(z | x) = N(A x + b, 2/3 I), D = 20, 1,024 data, every parameter a
little off its optimum (Rainforth et al. 2018, arXiv:1802.04537, section 4). Under IWAE the guide's
signal-to-noise falls as K^(-1/2) while the model's rises as K^(1/2); DReG's (Tucker et al. 2019,
arXiv:1810.04152) does not fall. Averaging M bounds raises both as M^(1/2). IWAE's mean gradient
is soon far below its noise; DReG has the same mean, so its draws measure it.

python examples/rainforth_snr.py --out rainforth.png
"""

import argparse
import itertools
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
        self.mu = nn.Parameter(mean + off * torch.randn_like(mean))
        self.A = nn.Parameter(torch.eye(20) / 2 + off * torch.randn(20, 20))
        self.b = nn.Parameter(mean / 2 + off * torch.randn_like(mean))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            q = dist.Normal(x @ self.A.T + self.b, math.sqrt(2 / 3))  # 2/3 is the variance
            pyro.sample("z", q.to_event(1))


def setting(n=1_024):
    """The pair near its optimum, its data, and log p(x) = log Π N(x; μ, 2 I)."""
    torch.manual_seed(0)
    mean = torch.randn(20)
    pair, x = Rainforth(mean), mean + math.sqrt(2) * torch.randn(n, 20)
    return pair, x, dist.Normal(pair.mu, math.sqrt(2)).log_prob(x).sum().item()


def main(out="rainforth.png", particles=(32, 64, 128, 256), groups=(1, 2, 4, 8), draws=60, k=16):
    """Measure, fit the slopes, draw; returns {(estimator, parameter): slope}."""
    pair, x, log_px = setting()
    listed = [e(n) for n in particles for e in (elbo.IWAE, elbo.DReG)]
    listed += [elbo.MIWAE(m, k) for m in groups] + [elbo.DReG(k)]
    found = compare(pair, x, listed, draws=draws, reference=log_px, compile=False)
    figure, slopes = Figure(figsize=(10, 4), layout="constrained"), {}
    panels = {"K": (particles, "IWAE({0})", "DReG({0})"), "M": (groups, f"MIWAE({{0}}, {k})")}
    for axes, (letter, (counts, *names)) in zip(figure.subplots(1, 2), panels.items()):
        for name, (group, style) in itertools.product(names, {"mu": "-", "b": "--"}.items()):
            at, kind = found.sel(group=group), name.split("(")[0]
            same = [f"DReG({k if letter == 'M' else n})" for n in counts]
            noise = at.variance.sel(estimator=[name.format(n) for n in counts]).values ** 0.5
            snr = at.gradient_norm.sel(estimator=same).values / noise
            slopes[kind, group] = s = float(np.polyfit(np.log(counts), np.log(snr), 1)[0])
            axes.loglog(counts, snr, style, marker="o", label=f"{kind}, {group}: {s:+.2f}")
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.xaxis.set_minor_formatter("")
        axes.set(xlabel=letter, ylabel="signal-to-noise ratio of the gradient")
        axes.legend(title="slope", fontsize=8)
    figure.savefig(out, dpi=120)
    return slopes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="rainforth.png")
    for (name, group), slope in main(**vars(parser.parse_args())).items():
        print(f"{name:5} {group:2} slope {slope:+.3f}")
