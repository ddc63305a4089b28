"""Variational autoencoders with one layer of latents: priors, guides and networks are arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from inference.networks import Affine, OnePass, autoregressive_layers
from zoo.likelihoods import Likelihood
from zoo.likelihoods import likelihood as head
from zoo.networks import (
    check_rows,
    check_sizes,
    decoder_for,
    encoder_for,
    mean_and_scale,
)


class VAE(nn.Module):
    """Variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114, section 3).

        z_i       ~ N(0, I), or another prior                (B, L)
        x_i | z_i ~ likelihood(decoder(z_i))                 (B, D)
        q(z_i | x_i) = N(mean(x_i), diag sd(x_i)²), or N(mean(x_i), I), or its image under a flow

    Sites: z, x. Plates: data. Truth: with a Gaussian likelihood and linear networks (`hidden=()`),
    the optimum of the ELBO is the maximum likelihood of probabilistic PCA, reached by the diagonal
    guide (Lucas et al. 2019, arXiv:1911.02469). With a unit guide, KL(q || p) = |mean(x)|² / 2.
    Flows begin as the identity, where prior and guide are those of the plain VAE.

    Args:
        data_dim: D, the number of values in a row of data.
        latent_dim: L.
        hidden: widths of the encoder's hidden layers, reversed for the decoder; `()` makes both
            affine. Convolutional networks have widths of their own.
        likelihood: what the decoder's output means (`zoo.likelihoods`).
        encoder_variance: `"diagonal"`, given by the encoder, or `"unit"`.
        networks: `"mlp"`; `"conv"` or `"residual"`, which need `image_shape`.
        image_shape: (channels, height, width) of a row.
        act: name of the activation (`inference.networks.ACTIVATIONS`).
        prior: "normal"; "vamp", the mean of the guides at `pseudo_inputs` learned rows (Tomczak &
            Welling 2018, arXiv:1705.07120, eq. 9); or "flow", a masked autoregressive flow (Chen et
            al. 2017, arXiv:1611.02731).
        pseudo_inputs: C, of the vamp prior.
        guide_flow: layers of inverse autoregressive flow after the guide's normal distribution
            (Kingma et al. 2016, arXiv:1606.04934), which see the encoder's output; 0 for none.
        encoder: a module (..., D) -> (..., 2L), or (..., L) of a unit guide, of your own.
        decoder: a module (..., L) -> (..., outputs·D) of your own.

    The net of Burda et al. 2016 (arXiv:1509.00519, section 5), 784-200-200-50, is
    `VAE(784, latent_dim=50, hidden=(200, 200), act="tanh")`.

    Raises:
        ValueError: a size below 1, an unknown name, an `image_shape` that does not give D values;
            when called, rows of x that are not D wide.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 8,
        hidden: Sequence[int] = (200, 200),
        likelihood: str | Likelihood = "bernoulli",
        encoder_variance: str = "diagonal",
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        act: str = "tanh",
        prior: str = "normal",
        pseudo_inputs: int = 50,
        guide_flow: int = 0,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, latent_dim=latent_dim, hidden=hidden)
        check_sizes(pseudo_inputs=pseudo_inputs)
        if prior not in ("normal", "vamp", "flow"):
            raise ValueError(f"prior: expected normal, vamp or flow, got {prior!r}.")
        if guide_flow < 0:
            raise ValueError(f"guide_flow: expected 0 layers or more, got {guide_flow}.")
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.likelihood = head(likelihood)
        codes = codes_for(encoder_variance) * latent_dim
        outputs = self.likelihood.outputs
        own = encoder_for(networks, data_dim, hidden, codes, image_shape, act)
        self.encoder: nn.Module = own if encoder is None else encoder
        own = decoder_for(networks, latent_dim, hidden, data_dim, outputs, image_shape, act)
        self.decoder: nn.Module = own if decoder is None else decoder
        _check_width("encoder", self.encoder, data_dim, codes)
        _check_width("decoder", self.decoder, latent_dim, outputs * data_dim)
        self.pseudo, self.warps, self.turns = None, nn.ModuleList(), nn.ModuleList()
        if prior == "vamp":
            self.pseudo = nn.Parameter(torch.rand(pseudo_inputs, data_dim))
        elif prior == "flow":  # noise from z is one pass: densities are cheap
            self.warps.extend(autoregressive_layers(latent_dim, Affine(), 2, (64, 64)))
        self.turns.extend(
            autoregressive_layers(latent_dim, Affine(), guide_flow, (64, 64), context_dim=codes)
        )

    def prior(self) -> TorchDistribution:
        """p(z), event shape (L,). A new object, which shares nothing with those before it."""
        like = next(self.parameters())
        if self.pseudo is not None:
            mean, scale = diagonal_or_unit(self.encoder(self.pseudo), self.latent_dim)
            equal = dist.Categorical(logits=like.new_zeros(len(mean)))
            return dist.MixtureSameFamily(equal, dist.Normal(mean, scale).to_event(1))
        normal = dist.Normal(like.new_zeros(self.latent_dim), 1.0).to_event(1)
        if not self.warps:
            return normal
        return dist.TransformedDistribution(normal, [OnePass(t).inv for t in reversed(self.warps)])

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(z) p(x | z) for a mini-batch x (B, D) of `size` data."""
        pyro.module("vae", self)
        check_rows(x, self.data_dim)
        prior = self.prior()
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            z = pyro.sample("z", prior)  # (K, B, L)
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """q(z | x)."""
        pyro.module("vae", self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            h = self.encoder(x)
            q = dist.Normal(*diagonal_or_unit(h, self.latent_dim)).to_event(1)
            if self.turns:
                q = dist.TransformedDistribution(q, [OnePass(t, h) for t in self.turns])
            pyro.sample("z", q)

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless the rows of x (B, D) are D wide and the likelihood allows them.

        Reads the values, so it belongs before a fit and not into one.
        """
        check_rows(x, self.data_dim)
        self.likelihood.validate(x)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z | x), of a flow its image: (B, D) -> (B, L)."""
        self.validate(x)
        h = self.encoder(x)
        z = h[..., : self.latent_dim]
        for turn in self.turns:
            z = OnePass(turn, h)(z)
        return z

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """E[x | z]: (..., L) -> (..., D)."""
        return self.likelihood.mean(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at the mean of q(z | x): (B, D) -> (B, D)."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x through z of the prior: (n, D)."""
        check_draws(n)
        return self.likelihood(self.decoder(self.prior().sample((n,)))).sample()


def codes_for(encoder_variance: str) -> int:
    """Return how many numbers an encoder gives for each latent dimension."""
    if encoder_variance not in ("unit", "diagonal"):
        raise ValueError(f"encoder_variance: expected unit or diagonal, got {encoder_variance!r}.")
    return 2 if encoder_variance == "diagonal" else 1


def diagonal_or_unit(h: Tensor, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Split an encoder's output: (..., L) is a mean with unit variance, (..., 2L) both."""
    return (h, torch.ones_like(h)) if h.shape[-1] == latent_dim else mean_and_scale(h)


def check_draws(n: int) -> None:
    """Raise ValueError unless at least one draw is asked for."""
    if n < 1:
        raise ValueError(f"n: expected at least one draw, got {n}.")


def _check_width(name: str, module: nn.Module, inputs: int, outputs: int) -> None:
    """Raise ValueError unless a module maps (2, inputs) to (2, outputs)."""
    like = next(module.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            shape: Any = tuple(module(like.new_zeros(2, inputs)).shape)
    except RuntimeError as error:
        shape = str(error).splitlines()[0]
    if shape != (2, outputs):
        raise ValueError(
            f"{name}: expected a module (..., {inputs}) -> (..., {outputs}), and of an input of "
            f"shape (2, {inputs}) came {shape}."
        )
