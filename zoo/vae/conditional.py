"""A variational autoencoder that is told the label."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from inference.networks import MLP
from zoo.likelihoods import Likelihood
from zoo.likelihoods import likelihood as head
from zoo.networks import (
    ConvDecoder,
    ConvEncoder,
    check_image_shape,
    check_rows,
    check_sizes,
)

from .plain import check_draws, codes_for, diagonal_or_unit


class ConditionalVAE(nn.Module):
    """Conditional VAE (Kingma et al. 2014, arXiv:1406.5298, eq. 2 with the label observed).

        z_i            ~ N(0, I)                             (B, L)
        x_i | z_i, y_i ~ likelihood(decoder(z_i, y_i))       (B, D)
        q(z_i | x_i, y_i) = N(mean(x_i, y_i), diag sd(x_i, y_i)²)

    The label y_i in {0, ..., classes - 1} is joined one-hot to the latent and to the encoder's
    input (to convolutions as `classes` constant planes); nothing is assumed about p(y).

    Sites: z, x. Plates: data. Truth: the bound is one on log p(x | y); a decoder that ignores y
    is the VAE.

    Args:
        classes: the number of labels. All others as for `VAE`.

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
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, classes=classes, latent_dim=latent_dim, hidden=hidden)
        self.data_dim, self.classes, self.latent_dim = data_dim, classes, latent_dim
        self.likelihood = head(likelihood)
        codes = codes_for(encoder_variance) * latent_dim
        outputs = self.likelihood.outputs
        self.copies = 1  # of the one-hot label in the encoder's input
        if networks == "mlp":
            self.encoder: nn.Module = MLP(data_dim + classes, hidden, codes, act)
            self.decoder: nn.Module = MLP(
                latent_dim + classes, hidden[::-1], outputs * data_dim, act
            )
        else:
            c, h, w = check_image_shape(networks, image_shape, data_dim)
            self.copies = h * w
            self.encoder = ConvEncoder((c + classes, h, w), codes, act=act)
            self.decoder = ConvDecoder(latent_dim + classes, (c, h, w), outputs, act=act)

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
        self._check_range(y)

    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean of q(z | x, y): (B, D), (B,) -> (B, L)."""
        self.validate(x, y)
        return self.encoder(self._join(x, y, self.copies))[..., : self.latent_dim]

    @torch.no_grad()
    def decode(self, z: Tensor, y: Tensor | int) -> Tensor:
        """E[x | z, y]: (..., L) and labels (...), or one for all -> (..., D)."""
        y = torch.as_tensor(y, device=z.device)
        self._check_range(y)
        return self.likelihood.mean(self.decoder(self._join(z, y)))

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """E[x | z, y] at the mean of q(z | x, y): (B, D), (B,) -> (B, D)."""
        return self.decode(self.encode(x, y), y)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | int | None = None) -> Tensor:
        """`n` draws of x given y: (n, D).

        Args:
            y: one label for all, or labels (n,). By default 0, 1, ..., classes - 1, 0, 1, ...
        """
        z = _prior(self, n)
        y = torch.arange(n) % self.classes if y is None else torch.as_tensor(y)
        if y.ndim and y.shape != (n,):
            raise ValueError(f"y: expected one label or {n} of them, got shape {tuple(y.shape)}.")
        self._check_range(y)
        return self.likelihood(self.decoder(self._join(z, y.to(z.device)))).sample()

    def _join(self, v: Tensor, y: Tensor, copies: int = 1) -> Tensor:
        """v with the one-hot label behind it, each entry `copies` times: (..., width)."""
        labels = torch.arange(self.classes, device=y.device).repeat_interleave(copies)
        one_hot = (y[..., None] == labels).to(v.dtype)
        return torch.cat([v, one_hot.expand(*v.shape[:-1], -1)], -1)

    def _check(self, x: Tensor, y: Tensor) -> None:
        check_rows(x, self.data_dim)
        if y.shape != x.shape[:-1] or y.is_floating_point():
            raise ValueError(
                f"y: expected {tuple(x.shape[:-1])} integer labels, one for each row of x, got "
                f"{y.dtype} of shape {tuple(y.shape)}."
            )

    def _check_range(self, y: Tensor) -> None:
        if ((y < 0) | (y >= self.classes)).any():
            low, high = int(y.min()), int(y.max())
            raise ValueError(
                f"y: expected labels 0 to {self.classes - 1}, got {low}"
                f"{f' to {high}' if high > low else ''}. Build the pair with "
                f"classes={high + 1}, or renumber the labels from 0."
            )


def _prior(pair: ConditionalVAE, n: int) -> Tensor:
    """(n, L) standard normal draws, where and as the decoder's parameters are."""
    check_draws(n)
    like = next(pair.decoder.parameters())
    return torch.randn(n, pair.latent_dim, dtype=like.dtype, device=like.device)
