"""Gradients for binary latents on digits: variance times time of each, and a race between them.

A VAE whose 20 latents are binary (Mnih & Gregor 2014, arXiv:1402.0030), 8x8 digits. The score
function with other draws as baseline, VIMCO, OVIS, DisARM, REBAR and the biased straight-through
path: what a second of each buys, and the held-out bound after equal time.

python examples/discrete_digits.py --seconds 20 --out discrete_digits.png
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from inference import compare, elbo
from inference.networks import MLP
from zoo.data import load

ESTIMATORS = [elbo.Trace(2), elbo.Score(8), elbo.VIMCO(8), elbo.OVIS(8), elbo.DisARM(),
              elbo.Rebar(), elbo.GumbelSoftmax()]  # fmt: skip


class BinaryVAE(nn.Module):
    """z_i ~ Bernoulli(σ(a)), x_i | z_i ~ Bernoulli(σ(decoder(z_i))); sites z, x; plate data."""

    def __init__(self, latent_dim=20, hidden=100):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(latent_dim))
        self.encoder = MLP(64, (hidden,), latent_dim)
        self.decoder = MLP(latent_dim, (hidden,), 64)

    def model(self, x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            prior = dist.Bernoulli(logits=self.prior.expand(len(x), -1))
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


def main(out="discrete_digits.png", seconds=20.0, seeds=3, rows=None, draws=200, compile=False):
    """Race and draw; returns the comparison."""
    torch.manual_seed(0)
    digits = load("digits")
    x, valid = digits.train[:rows], digits.valid[:rows]
    found = compare(
        BinaryVAE(), x, ESTIMATORS, race=seconds, valid=valid, seeds=seeds, batch_size=64,
        draws=draws, compile=compile,
    )  # fmt: skip
    found.plot(out)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="discrete_digits.png")
    parser.add_argument("--seconds", type=float, default=20.0)
    print(main(**vars(parser.parse_args())))
