"""Generators without a density: a latent pushed through a network; and a critic for them."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from inference.networks import MLP
from zoo.networks import check_sizes

OUTPUTS = {"linear": lambda h: h, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


class GAN(nn.Module):
    """Generative adversarial network (Goodfellow et al. 2014, arXiv:1406.2661).

        z_i ~ N(0, I)                     (n, L)
        x_i = generator(z_i)              (n, D)

    Sites: z, and x, which is deterministic and has no density. Plates: data. There is no guide:
    `inference.ratios.fit_adversarial` fits it against a critic. Truth: where the generator is
    right, the best critic is zero and the game's value E[log D] + E[log(1 − D)] is −log 4.

    Args:
        data_dim: D.
        latent_dim: L.
        hidden: widths of the generator's hidden layers.
        act: name of the activation (`inference.networks.ACTIVATIONS`).
        output: `"linear"`, `"sigmoid"` for data in [0, 1], or `"tanh"` for data in [-1, 1].

    Raises:
        ValueError: a size below 1, an unknown name.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 8,
        hidden: Sequence[int] = (128, 128),
        act: str = "relu",
        output: str = "linear",
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, latent_dim=latent_dim, hidden=hidden)
        if output not in OUTPUTS:
            raise ValueError(f"output: expected one of {list(OUTPUTS)}, got {output!r}.")
        self.data_dim, self.latent_dim, self.output = data_dim, latent_dim, output
        self.generator = MLP(latent_dim, hidden, data_dim, act)

    def decode(self, z: Tensor) -> Tensor:
        """x = generator(z): (..., L) -> (..., D)."""
        return OUTPUTS[self.output](self.generator(z))

    def model(self, n: int) -> Tensor:
        """Draw z and x for n data; returns x (n, D)."""
        pyro.module("gan", self)
        zero = next(self.parameters()).new_zeros(self.latent_dim)
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))  # (K, n, L)
            return pyro.deterministic("x", self.decode(z), event_dim=1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x: (n, D)."""
        return self.decode(next(self.parameters()).new_empty(n, self.latent_dim).normal_())


class GANCritic(nn.Module):
    """A network v(x) that tells data from the generator's draws: (..., D) -> (...).

    Where it is trained on a divergence, v estimates log p_data(x) / p_generator(x) in nats.

    Args:
        data_dim: D.
        hidden: widths of the hidden layers.
        act: name of the activation.
    """

    def __init__(self, data_dim: int, hidden: Sequence[int] = (128, 128), act: str = "silu"):
        super().__init__()
        check_sizes(data_dim=data_dim, hidden=hidden)
        self.network = MLP(data_dim, hidden, 1, act)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (...)."""
        return self.network(x).squeeze(-1)
