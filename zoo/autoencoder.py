"""Autoencoders as pairs: a guide that is a point mass, so that the same `fit` trains them.

The ELBO of a guide N(code(x), s² I) is E log p(x | z) - KL(q || p). As s → 0 the first term becomes
log p(x | code(x)); the KL keeps -log p(code(x)) and the entropy of the guide, which is infinite
but depends on no parameter. Dropping that constant leaves the objective of every class here:

    log p(x | z) + log p(z)   at z = code(x)

With a flat p(z) this is reconstruction alone, the β = 0 end of a VAE; with a Laplace p(z) it
is a sparse autoencoder. It is not a bound on log p(x), as the dropped constant is -∞.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from inference.networks import MLP
from zoo.likelihoods import Likelihood
from zoo.likelihoods import likelihood as head
from zoo.networks import check_rows, check_sizes


class Autoencoder(nn.Module):
    """Deep autoencoder (Hinton & Salakhutdinov 2006, Science 313:504), a deterministic code.

        z        ~ flat                                   (B, L)
        x | z    ~ likelihood(decoder(z))                 (B, D)
        q(z | x) = point mass at encoder(x)

    Sites: z, x. Plates: data. Truth: with a VAE's weights, the reconstruction term of its ELBO as
    the guide's standard deviation goes to zero.

    Args:
        data_dim: D, the width of a datum.
        latent_dim: L, the width of the code.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        likelihood: what the decoder's output means (`zoo.likelihoods`); "gaussian-unit" is half
            the squared error.
        act: the activation's name.

    Raises:
        ValueError: a width below 1, or (when called) x is not (..., data_dim).
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 8,
        hidden: Sequence[int] = (200, 200),
        likelihood: str | Likelihood = "gaussian-unit",
        act: str = "tanh",
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, latent_dim=latent_dim, hidden=hidden)
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.likelihood = head(likelihood)
        self.encoder = MLP(data_dim, hidden, latent_dim, act)
        self.decoder = MLP(latent_dim, hidden[::-1], self.likelihood.outputs * data_dim, act)

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(z) p(x | z) for a mini-batch x (B, D) of `size` data."""
        pyro.module("autoencoder", self)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            self.corrupt(x)  # draws the guide's noise site, if there is one, so that it cancels
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Put a point mass at the code of x, or of its corrupted copy."""
        pyro.module("autoencoder", self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            z = self.encoder(self.corrupt(x))  # (K, B, L)
            # Masked: the infinite constant of the point mass is left out, and z is never compared
            # with itself in floating point, which a compiler may round in two ways.
            pyro.sample("z", dist.Delta(z, event_dim=1).mask(False))

    def prior(self, x: Tensor) -> TorchDistribution:
        """p(z) over (B, L). Flat here: a normal, so that it can be drawn, without its density."""
        zeros = x.new_zeros(x.shape[-2], self.latent_dim)
        return dist.Normal(zeros, 1.0).to_event(1).mask(False)

    def corrupt(self, x: Tensor) -> Tensor:
        """Return the input of the encoder for x, (..., D); here x itself."""
        return x

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless the rows of x (B, D) are D wide and the likelihood allows them.

        Reads the values, so it belongs before a fit and not into one.
        """
        check_rows(x, self.data_dim)
        self.likelihood.validate(x)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the code of x: (..., D) -> (..., L)."""
        check_rows(x, self.data_dim)
        return self.encoder(x)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """E[x | z]: (..., L) -> (..., D)."""
        return self.likelihood.mean(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at the code of x: (..., D) -> (..., D)."""
        return self.decode(self.encode(x))


class LinearAutoencoder(Autoencoder):
    """Affine encoder and decoder under squared error: principal component analysis.

    Every minimum spans the first L principal directions (Baldi & Hornik 1989, "Neural networks
    and principal component analysis", Neural Networks 2:53, fact 4); their order and scale are
    free. Sites and plates as for `Autoencoder`. Truth: `projector` is that of PCA.

    Subtract the mean from the data first: left to the biases, it slows gradient descent down
    several times.
    """

    def __init__(self, data_dim: int, latent_dim: int = 8):
        super().__init__(data_dim, latent_dim, hidden=(), likelihood="gaussian-unit")
        if latent_dim > data_dim:
            raise ValueError(
                f"latent_dim: a linear code of {latent_dim} has no use beyond the {data_dim} "
                f"dimensions of the data. Give latent_dim <= {data_dim}."
            )

    @torch.no_grad()
    def projector(self) -> Tensor:
        """Return the orthogonal projector onto the decoder's columns, (D, D)."""
        basis, _ = torch.linalg.qr(self.decoder[0].weight)  # (D, L)
        return basis @ basis.mT


class SparseAutoencoder(Autoencoder):
    """Sparse autoencoder: a Laplace prior on the code (Olshausen & Field 1996, Nature 381:607).

        z_l      ~ Laplace(0, 1/λ), λ = sparsity
        x | z    ~ likelihood(decoder(z)), whose first layer has columns of length one
        q(z | x) = point mass at softshrink(encoder(x), λ)

    The loss gains λ |z|₁. Columns of length one, because a decoder that scales up would let the
    code shrink for free; the soft threshold because it is the shape of the best code, with true
    zeros. Sites and plates as for `Autoencoder`. Truth: where the decoder is linear with
    orthonormal columns W, the best code is softshrink(Wᵀ (x - b), λ).

    Args:
        data_dim, latent_dim, hidden, likelihood, act: as for `Autoencoder`; by default a linear
            dictionary of 128 directions.
        sparsity: λ > 0, nats per unit of the code.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 128,
        hidden: Sequence[int] = (),
        likelihood: str | Likelihood = "gaussian-unit",
        act: str = "tanh",
        sparsity: float = 0.1,
    ):
        super().__init__(data_dim, latent_dim, hidden, likelihood, act)
        if not sparsity > 0:
            raise ValueError(f"sparsity: expected λ > 0, got {sparsity}. Use Autoencoder for none.")
        self.sparsity = sparsity
        self.encoder.append(nn.Softshrink(sparsity))
        nn.utils.parametrize.register_parametrization(self.decoder[0], "weight", _UnitColumns())

    def prior(self, x: Tensor) -> TorchDistribution:
        """Laplace(0, 1/λ) over (B, L)."""
        zeros = x.new_zeros(x.shape[-2], self.latent_dim)
        return dist.Laplace(zeros, 1.0 / self.sparsity).to_event(1)


class _UnitColumns(nn.Module):
    """A weight with each column divided by its length; assigning one keeps its directions."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.norm(dim=0, keepdim=True)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class DenoisingAutoencoder(Autoencoder):
    """Denoising autoencoder (Vincent et al. 2010, JMLR 11:3371, eq. 7): code a damaged x.

        noise           ~ N(0, I) or Uniform(0, 1)^D, in model and guide alike   (B, D)
        q(z | x, noise) = point mass at encoder(corrupted x)
        x | z           ~ likelihood(decoder(z)), the undamaged x

    Corrupted is x + level · noise ("gaussian"), or x where noise > level and zero elsewhere
    ("mask"). The noise is a site of both halves with one density, which cancels: what remains is
    the reconstruction of x. Sites: noise, z, x. Plates: data. Truth: the best linear one under
    Gaussian noise shrinks each principal direction by s² / (s² + level²), s² its variance.

    Args:
        data_dim, latent_dim, hidden, likelihood, act: as for `Autoencoder`.
        noise: "gaussian" or "mask".
        level: the noise's standard deviation, in units of x; or the share of x set to zero.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 32,
        hidden: Sequence[int] = (200,),
        likelihood: str | Likelihood = "gaussian-unit",
        act: str = "tanh",
        noise: str = "gaussian",
        level: float = 0.3,
    ):
        super().__init__(data_dim, latent_dim, hidden, likelihood, act)
        if noise not in ("gaussian", "mask"):
            raise ValueError(f"noise: expected gaussian or mask, got {noise!r}.")
        if not level > 0 or (noise == "mask" and not level < 1):
            raise ValueError(
                f"level: expected {'0 < level < 1' if noise == 'mask' else 'level > 0'} for "
                f"{noise} noise, got {level}."
            )
        self.noise, self.level = noise, level

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """(reconstruct(x) − x) / level², the score of the noisy data at the optimum: (B, D).

        Source: Vincent 2011, "A connection between score matching and denoising autoencoders";
        Alain & Bengio 2014 (arXiv:1211.4246, theorem 1).

        Raises:
            ValueError: the noise is a mask, which has no score.
        """
        if self.noise != "gaussian":
            raise ValueError(f"score: expected noise='gaussian', got {self.noise!r}.")
        return (self.reconstruct(x) - x) / self.level**2

    def corrupt(self, x: Tensor) -> Tensor:
        """x after its noise, (B, D) or (K, B, D); inside a plate of the data."""
        zeros = torch.zeros_like(x)
        if self.noise == "gaussian":
            return x + self.level * pyro.sample("noise", dist.Normal(zeros, 1.0).to_event(1))
        u = pyro.sample("noise", dist.Uniform(zeros, 1.0).to_event(1))
        return x * (u > self.level).to(x.dtype)
