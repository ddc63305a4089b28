"""The VAE of Burda et al. 2016 (784-200-200-50), IWAE on it, and a two-layer hierarchy."""

from __future__ import annotations

import pyro.infer
import torch
from torch import nn

from inference import elbo
from inference.training.choosing import LOOP
from zoo.hierarchical import HierarchicalVAE
from zoo.vae import VAE

from . import numpyro_peers, ours
from .pairs import images
from .timing import Row


class HandWritten(nn.Module):
    """What somebody writes who has never heard of Pyro."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 100)
        )
        self.decoder = nn.Sequential(
            nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784)
        )

    def forward(self, x):
        mean, log_sd = self.encoder(x).chunk(2, -1)
        z = mean + log_sd.exp() * torch.randn_like(mean)
        nll = nn.functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (mean**2 + (2 * log_sd).exp() - 2 * log_sd - 1).sum()
        return (nll + kl) / len(x)


class HandWrittenHierarchy(nn.Module):
    def __init__(self):
        super().__init__()

        def mlp(i, h, o):
            return nn.Sequential(
                nn.Linear(i, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh(), nn.Linear(h, o)
            )

        self.q1, self.q2 = mlp(784, 200, 200), mlp(100, 100, 100)
        self.p1, self.p0 = mlp(50, 100, 200), mlp(100, 200, 784)

    def forward(self, x):
        def draw(h):
            m, s = h.chunk(2, -1)
            e = torch.randn_like(m)
            return m + s.exp() * e, -(0.5 * e**2 + s).sum()

        def density(z, h):
            m, s = h.chunk(2, -1)
            return -(0.5 * ((z - m) / s.exp()) ** 2 + s).sum()

        z1, q1 = draw(self.q1(x))
        z2, q2 = draw(self.q2(z1))
        nll = nn.functional.binary_cross_entropy_with_logits(self.p0(z1), x, reduction="sum")
        return (nll + q1 + q2 + 0.5 * (z2**2).sum() - density(z1, self.p1(z2))) / len(x)


def hand_written(module, x, compiled):
    """Eager PyTorch with a fused Adam, the loss compiled or not."""
    optimiser = torch.optim.Adam(module.parameters(), 1e-3, fused=True)
    loss = torch.compile(module) if compiled else module

    def run(n):
        for _ in range(n):
            optimiser.zero_grad()
            loss(x).backward()
            optimiser.step()
        return n

    return run


def vae_row(batch, targets):
    x = images(batch)
    vae = VAE(784, 50, hidden=(200, 200))
    fast, eager, seconds = ours.steps(
        vae.model, vae.guide, (x,), elbo.Trace(), divide=batch, repeats=LOOP
    )
    contenders = {
        "compiled pair": fast,
        "eager pair": eager,
        "pyro.infer.SVI": ours.pyro_svi(vae.model, vae.guide, (x,), pyro.infer.Trace_ELBO()),
        "hand-written": hand_written(HandWritten(), x, False),
        "hand-written, torch.compile": hand_written(HandWritten(), x, True),
        **numpyro_peers.vae(x),
    }
    peers = [
        ("pyro.infer.SVI",), ("hand-written", "hand-written, torch.compile"),
        ("numpyro update",), ("numpyro scan",),
    ]  # fmt: skip
    return Row(
        f"VAE 784-200-200-50, B = {batch}", contenders, list(zip(peers, targets)),
        compile_seconds=seconds, eager="eager pair",
    )  # fmt: skip


def iwae_row():
    x = images(20)
    vae = VAE(784, 50, hidden=(200, 200))
    fast, eager, seconds = ours.steps(
        vae.model, vae.guide, (x,), elbo.IWAE(8), divide=20, repeats=LOOP
    )
    renyi = pyro.infer.RenyiELBO(
        alpha=0, num_particles=8, vectorize_particles=True, max_plate_nesting=1
    )
    return Row(
        "IWAE K = 8 on it, B = 20",
        {
            "compiled pair": fast,
            "eager pair": eager,
            "pyro.infer.SVI RenyiELBO": ours.pyro_svi(vae.model, vae.guide, (x,), renyi),
            **numpyro_peers.vae(x, particles=8),
        },
        [(("pyro.infer.SVI RenyiELBO",), 3.0), (("numpyro update",), 1.2)],
        compile_seconds=seconds,
        eager="eager pair",
    )


def hierarchy_row():
    x = images(20)
    pair = HierarchicalVAE(784, (100, 50), hidden=((200, 200), (100, 100)))
    fast, eager, seconds = ours.steps(
        pair.model, pair.guide, (x,), elbo.Trace(), divide=20, repeats=LOOP
    )
    return Row(
        "hierarchical VAE 784-200-200-100, 100-100-100-50, B = 20",
        {
            "compiled pair": fast,
            "eager pair": eager,
            "pyro.infer.SVI": ours.pyro_svi(pair.model, pair.guide, (x,), pyro.infer.Trace_ELBO()),
            "hand-written": hand_written(HandWrittenHierarchy(), x, False),
            "hand-written, torch.compile": hand_written(HandWrittenHierarchy(), x, True),
            **numpyro_peers.hierarchy(x),
        },
        [(("pyro.infer.SVI",), 4.0), (("numpyro update",), 1.3), (("numpyro scan",), 1.1)],
        compile_seconds=seconds,
        eager="eager pair",
    )


ROWS = {
    "vae-20": lambda: vae_row(20, (4.0, 1.5, 1.4, 1.3)),
    "vae-128": lambda: vae_row(128, (1.9, 1.1, 1.1, 1.0)),
    "iwae": iwae_row,
    "hierarchy": hierarchy_row,
}
