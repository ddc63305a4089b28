"""Guides without a density: a latent computed from the datum and from noise."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from inference.networks import MLP
from zoo.likelihoods import Likelihood
from zoo.likelihoods import likelihood as head
from zoo.networks import check_sizes


class ImplicitVAE(nn.Module):
    """Variational autoencoder with an implicit guide (Mescheder et al. 2017, arXiv:1701.04722).

        z_i         ~ N(0, I)                                (B, L)
        x_i | z_i   ~ likelihood(decoder(z_i))               (B, D)
        eps_i       ~ N(0, I),  z_i = encoder(x_i, eps_i)    the guide

    q(z | x) can be sampled and has no density: estimators of the ELBO do not apply, and
    `inference.ratios.fit_implicit` puts a critic in the place of log q(z | x) − log p(z) (their
    eq. 3.3). In Pyro's eyes z is a Delta, whose density of 1 means nothing here.

    Sites: z, x; in the guide the auxiliary eps. Plates: data. Truth: with a linear-Gaussian model
    the posterior is Gaussian and KL(q || p) at the optimum is known.

    Args:
        data_dim: D.
        latent_dim: L.
        noise_dim: E, numbers of noise; at least L for q(z | x) to fill the space.
        hidden: widths of the encoder's hidden layers, reversed for the decoder; `()` makes both
            affine.
        likelihood: what the decoder's output means (`zoo.likelihoods`).
        act: name of the activation (`inference.networks.ACTIVATIONS`).

    Raises:
        ValueError: a size below 1, fewer numbers of noise than latents, an unknown name.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        noise_dim: int = 8,
        hidden: Sequence[int] = (128, 128),
        likelihood: str | Likelihood = "bernoulli",
        act: str = "silu",
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, latent_dim=latent_dim, hidden=hidden)
        if noise_dim < latent_dim:
            raise ValueError(
                f"noise_dim: expected at least latent_dim = {latent_dim}, got {noise_dim}: z would "
                "lie on a surface, where its divergence from the prior is infinite."
            )
        self.data_dim, self.latent_dim, self.noise_dim = data_dim, latent_dim, noise_dim
        self.likelihood = head(likelihood)
        self.encoder = MLP(data_dim + noise_dim, hidden, latent_dim, act)
        self.decoder = MLP(latent_dim, hidden[::-1], self.likelihood.outputs * data_dim, act)

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(z) p(x | z) for a mini-batch x (B, D) of `size` data."""
        pyro.module("implicit_vae", self)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Return a draw of z = encoder(x, eps)."""
        pyro.module("implicit_vae", self)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            noise = dist.Normal(x.new_zeros(self.noise_dim), 1.0).to_event(1)
            eps = pyro.sample("eps", noise, infer={"is_auxiliary": True})  # (K, B, E)
            x = x.expand(*eps.shape[:-1], self.data_dim)
            z = self.encoder(torch.cat([x, eps], -1))  # (K, B, L)
            pyro.sample("z", dist.Delta(z, event_dim=1))

    @torch.no_grad()
    def draw(self, x: Tensor, n: int) -> Tensor:
        """`n` draws of z for each row of x: (B, D) -> (n, B, L)."""
        eps = x.new_empty(n, len(x), self.noise_dim).normal_()
        return self.encoder(torch.cat([x.expand(n, *x.shape), eps], -1))

    def encode(self, x: Tensor, draws: int = 100) -> Tensor:
        """Return the mean of q(z | x), over `draws` draws: (B, D) -> (B, L)."""
        return self.draw(x, draws).mean(0)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """E[x | z]: (..., L) -> (..., D)."""
        return self.likelihood.mean(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at one draw of z: (B, D) -> (B, D)."""
        return self.decode(self.draw(x, 1)[0])

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x through z ~ N(0, I): (n, D)."""
        weight = next(self.decoder.parameters())
        return self.likelihood(
            self.decoder(weight.new_empty(n, self.latent_dim).normal_())
        ).sample()
