"""Models and data of several rows; nothing of a peer is imported here."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
S = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("J", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)


def images(batch):
    generator = torch.Generator().manual_seed(0)
    return torch.bernoulli(torch.full((batch, 784), 0.13), generator=generator)
