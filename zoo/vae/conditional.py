"""A variational autoencoder that is told the label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.likelihoods import Likelihood
from zoo.likelihoods import likelihood as head
from zoo.networks import (
    Condition,
    check_rows,
    check_sizes,
    decoder_for,
    encoder_for,
)

from .plain import check_draws, codes_for, diagonal_or_unit


class ConditionalVAE(nn.Module):
    """Conditional VAE (Kingma et al. 2014, arXiv:1406.5298, eq. 2 with the label observed).

        z_i            ~ N(0, I)                             (B, L)
        x_i | z_i, y_i ~ likelihood(decoder(z_i, y_i))       (B, D)
        q(z_i | x_i, y_i) = N(mean(x_i, y_i), diag sd(x_i, y_i)²)

    The label y_i in {0, ..., classes - 1}, or −1 where unknown, is joined one-hot to the latent and
    to the encoder's input (to convolutions as `classes` constant planes); nothing is assumed
    about p(y). In place of a label, y may be a vector of attributes, NaN where unknown
    (`zoo.networks.Condition`).

    Sites: z, x. Plates: data. Truth: the bound is one on log p(x | y); a decoder that ignores y
    is the VAE.

    Args:
        classes: the number of labels, where there are no attributes.
        binary, real: how many attributes are 0 or 1, and how many are real numbers.

    All others as for `VAE`.

    Raises:
        ValueError: as for `VAE`; when called, labels that are not one per row. A label out of
            range is found by `validate`, `encode`, `decode` and `sample`.
    """

    def __init__(
        self,
        data_dim: int,
        classes: int = 10,
        latent_dim: int = 8,
        hidden: Sequence[int] = (200, 200),
        likelihood: str | Likelihood = "bernoulli",
        encoder_variance: str = "diagonal",
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        act: str = "tanh",
        binary: int = 0,
        real: int = 0,
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, classes=classes, latent_dim=latent_dim, hidden=hidden)
        self.data_dim, self.classes, self.latent_dim = data_dim, classes, latent_dim
        self.likelihood = head(likelihood)
        codes = codes_for(encoder_variance) * latent_dim
        outputs = self.likelihood.outputs
        self.condition = Condition(classes, binary, real)
        told = self.condition.width
        self.copies = 1 if image_shape is None or networks == "mlp" else math.prod(image_shape[1:])
        self.encoder = encoder_for(networks, data_dim, hidden, codes, image_shape, act, told)
        self.decoder = decoder_for(
            networks, latent_dim + told, hidden, data_dim, outputs, image_shape, act
        )

    def model(self, x: Tensor, y: Tensor, size: int | None = None) -> None:
        """p(z) p(x | z, y) for a mini-batch x (B, D), y (B,) of `size` data."""
        pyro.module("conditional_vae", self)
        self._check(x, y)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            zero = x.new_zeros(self.latent_dim)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))  # (K, B, L)
            pyro.sample("x", self.likelihood(self.decoder(self._join(z, y))), obs=x)

    def guide(self, x: Tensor, y: Tensor, size: int | None = None) -> None:
        """q(z | x, y)."""
        pyro.module("conditional_vae", self)
        self._check(x, y)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            h = self.encoder(self._join(x, y, self.copies))
            mean, scale = diagonal_or_unit(h, self.latent_dim)
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    def validate(self, x: Tensor, y: Tensor) -> None:
        """Raise ValueError unless x (B, D) fits the likelihood and y (B,) holds labels."""
        self._check(x, y)
        self.likelihood.validate(x)
        self.condition.validate(y)

    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean of q(z | x, y): (B, D), (B,) -> (B, L)."""
        self.validate(x, y)
        return self.encoder(self._join(x, y, self.copies))[..., : self.latent_dim]

    @torch.no_grad()
    def decode(self, z: Tensor, y: Tensor | int) -> Tensor:
        """E[x | z, y]: (..., L) and labels (...), or one for all -> (..., D)."""
        y = torch.as_tensor(y, device=z.device)
        self.condition.validate(y)
        return self.likelihood.mean(self.decoder(self._join(z, y)))

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """E[x | z, y] at the mean of q(z | x, y): (B, D), (B,) -> (B, D)."""
        return self.decode(self.encode(x, y), y)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | int | None = None) -> Tensor:
        """`n` draws of x given y: (n, D).

        Args:
            y: one label for all, or labels (n,); or attributes (n, A). By default 0, 1, ...,
                classes - 1, 0, 1, ..., and attributes are unknown.
        """
        z = _prior(self, n)
        if y is None:
            labels = torch.arange(n) % max(1, self.classes)
            y = labels if self.condition.classes else self.condition.unknown(n)
        y = torch.as_tensor(y)
        if y.shape[:1] not in ((), (n,)):
            raise ValueError(f"y: expected one label or {n} of them, got shape {tuple(y.shape)}.")
        self.condition.validate(y)
        return self.likelihood(self.decoder(self._join(z, y.to(z.device)))).sample()

    def _join(self, v: Tensor, y: Tensor, copies: int = 1) -> Tensor:
        """v with the condition's numbers behind it, each `copies` times: (..., width)."""
        told = self.condition.features(y, v).repeat_interleave(copies, -1)
        return torch.cat([v, told.expand(*v.shape[:-1], -1)], -1)

    def _check(self, x: Tensor, y: Tensor) -> None:
        check_rows(x, self.data_dim)
        self.condition.check(y, x.shape[:-1])


def _prior(pair: ConditionalVAE, n: int) -> Tensor:
    """(n, L) standard normal draws, where and as the decoder's parameters are."""
    check_draws(n)
    like = next(pair.decoder.parameters())
    return torch.randn(n, pair.latent_dim, dtype=like.dtype, device=like.device)
