"""Discrete latents: exact sums, score functions and VIMCO on a model of 2^10 states.

Ten binary causes k_j ~ Bernoulli(σ(a_j)) of one effect, x | k ~ N(Σ_j w_j k_j, 1/2), with a
factorised amortised guide. Enum averages over all 1,024 states; Score (Ranganath et al. 2014,
arXiv:1401.0118) draws K of them, with and without a baseline; VIMCO (Mnih & Rezende 2016,
arXiv:1602.06725) draws K for the tighter IWAE bound.

python examples/discrete_estimators.py --out discrete.png
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import nn

from inference import compare, elbo


class Causes(nn.Module):
    """The pair: sites k_0 .. k_9 and x, plate data."""

    def __init__(self, causes=10):
        super().__init__()
        self.log_odds = nn.Parameter(torch.linspace(-1.5, 0.5, causes, dtype=torch.float64))
        self.effect = nn.Parameter(torch.linspace(-1, 1.2, causes, dtype=torch.float64))
        self.slope = nn.Parameter(self.effect.detach() / 2)
        self.offset = nn.Parameter(self.log_odds.detach() - 0.2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            mean = 0.0
            for j in range(len(self.effect)):
                k = pyro.sample(f"k_{j}", dist.Bernoulli(logits=self.log_odds[j]))
                mean = mean + self.effect[j] * k
            pyro.sample("x", dist.Normal(mean, 0.5**0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            for j in range(len(self.effect)):
                pyro.sample(f"k_{j}", dist.Bernoulli(logits=self.offset[j] + self.slope[j] * x))


def main(out="discrete.png", particles=(2, 4, 8, 16), draws=2_000):
    """Compare and draw; returns the comparison."""
    x = torch.tensor([-1.0, 0.4, 1.6], dtype=torch.float64)
    several = [e(k) for e in (elbo.Score, elbo.VIMCO) for k in particles]
    plain = [elbo.Score(k, baseline=None) for k in particles]
    found = compare(Causes(), x, [elbo.Enum(), *several, *plain], draws=draws, compile=False)
    kinds = {"Score, no baseline": plain, "Score": several[: len(particles)],
             "VIMCO": several[len(particles) :]}  # fmt: skip
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, listed in kinds.items():
        of = found.sel(estimator=[repr(e) for e in listed])
        left.loglog(particles, of.variance.sel(group="guide"), marker="o", label=name)
        right.errorbar(particles, of.bias, 3 * of.bias_se, marker="o", capsize=3, label=name)
    left.set(xlabel="particles K", ylabel="variance of the guide's gradient (Enum: 0)")
    right.axhline(found.bias.sel(estimator="Enum(1)").item(), color="k", ls=":", label="Enum")
    right.axhline(0, color="k", label="log p(x), exact")
    right.set(xscale="log", xlabel="particles K", ylabel="value - log p(x), nats per datum")
    for axes in (left, right):
        axes.set_xticks(particles, [str(k) for k in particles])
        axes.minorticks_off()
        axes.legend()
    figure.savefig(out, dpi=120)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="discrete.png")
    parser.add_argument("--draws", type=int, default=2_000)
    print(main(**vars(parser.parse_args())))
