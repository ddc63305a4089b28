"""Six pairs with different winners, each with its data and the estimators that may race on it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from inference import elbo
from inference.networks import MLP
from zoo.data import load
from zoo.hierarchical import HierarchicalVAE
from zoo.vae import VAE

from .pairs import S, Y, schools


class BinaryVAE(nn.Module):
    """z_i ~ Bernoulli(1/2)^L, x_i | z_i ~ Bernoulli(σ(decoder(z_i))); q(z_i | x_i) factorised.

    A deep sigmoid network of one layer (Mnih & Gregor 2014, arXiv:1402.0030). Sites z, x.
    """

    def __init__(self, data_dim: int = 64, latent_dim: int = 20, hidden: int = 100):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(latent_dim))
        self.encoder = MLP(data_dim, (hidden,), latent_dim)
        self.decoder = MLP(latent_dim, (hidden,), data_dim)

    def model(self, x, size=None):
        pyro.module("binary_vae", self)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            prior = dist.Bernoulli(logits=self.prior.expand(x.shape[-2], -1))
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x, size=None):
        pyro.module("binary_vae", self)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


class DrawnMixture(nn.Module):
    """k_i ~ Categorical(π), x_i | k_i ~ N(m_k, s_k); an amortised guide draws k_i."""

    def __init__(self, components: int = 4):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.linspace(40, 95, components))
        self.scales = nn.Parameter(torch.full((components,), 2.5))
        self.encoder = MLP(1, (16,), components)

    def model(self, x, size=None):
        pyro.module("mixture", self)
        with pyro.plate("data", size or len(x), subsample=x):
            k = pyro.sample("k", dist.Categorical(logits=self.weights))
            pyro.sample("x", dist.Normal(self.means[k], self.scales[k].exp()), obs=x)

    def guide(self, x, size=None):
        pyro.module("mixture", self)
        with pyro.plate("data", size or len(x), subsample=x):
            logits = self.encoder(((x - 70) / 14).unsqueeze(-1))
            pyro.sample("k", dist.Categorical(logits=logits))


def state_space(y):
    """z_t ~ N(0.9 z_t-1, s), y_t ~ N(z_t, 1), written with its innovations."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("time", len(y)):
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        decay = 0.9 ** (torch.arange(len(y)).unsqueeze(-1) - torch.arange(len(y))).clamp(min=0)
        z = scale * (torch.tril(decay) * noise.unsqueeze(-2)).sum(-1)
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def _series():
    generator = torch.Generator().manual_seed(0)
    z, out = torch.zeros(()), []
    for _ in range(40):
        z = 0.9 * z + 0.5 * torch.randn((), generator=generator)
        out.append(z + torch.randn((), generator=generator))
    return torch.stack(out)


SMOOTH = [elbo.Trace(), elbo.Trace(8), elbo.STL(), elbo.IWAE(8), elbo.IWAE(50), elbo.DReG(8)]
GLOBAL = [elbo.Trace(), elbo.Trace(16), elbo.STL(4), elbo.MeanField(), elbo.ForwardKL(16)]
DISCRETE = [elbo.Trace(2), elbo.Score(8), elbo.VIMCO(8), elbo.OVIS(8), elbo.WakeSleep(8)]
BINARY = [*DISCRETE, elbo.DisARM(), elbo.Rebar(), elbo.GumbelSoftmax()]


def pairs():
    """Name -> (pair, data, batch size, estimators, learning rate), made anew at each call."""
    digits = load("digits")
    x = digits.train
    waiting = load("old-faithful").train[:, 1]
    return {
        "small VAE": ((VAE(64, latent_dim=4, hidden=(64,)),), (x,), 64, SMOOTH, 1e-3),
        "two-layer hierarchy": (
            (HierarchicalVAE(64, latent_dims=(8, 4)),), (x,), 64, SMOOTH, 1e-3,
        ),
        "eight schools": ((schools, AutoNormal(schools)), (Y, S), None, GLOBAL, 1e-2),
        "binary VAE": ((BinaryVAE(),), (x,), 64, BINARY, 1e-3),
        "mixture, drawn": ((DrawnMixture(),), (waiting,), 64, [*DISCRETE, elbo.Enum()], 1e-2),
        "state space": (
            (state_space, AutoNormal(state_space)), (_series(),), None, GLOBAL, 1e-2,
        ),
    }  # fmt: skip
