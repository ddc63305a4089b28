"""Vector-quantised VAE: the code of a datum is a few entries of a learned codebook."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from zoo.likelihoods import Likelihood
from zoo.likelihoods import likelihood as head
from zoo.networks import (
    CodeChain,
    CodePrior,
    SpatialDecoder,
    SpatialEncoder,
    check_image_shape,
    check_rows,
    check_sizes,
    decoder_for,
    encoder_for,
)


class VQVAE(nn.Module):
    """Vector-quantised VAE (van den Oord et al. 2017, arXiv:1711.00937, eq. 3).

        k_s      ~ uniform over the C entries of the codebook, for each of S slots, or
                   p(k_s | k_1 .. k_{s-1}), learned                                   (B, S)
        x | k    ~ likelihood(decoder(e_{k_1}, ..., e_{k_S}))                         (B, D)
        q(k | x) = point mass: k_s is the entry nearest to z_s, z = encoder(x)        (B, S·d)

    Loss: -log p(x | k) + S log C + |sg(z) - e_k|² + β |z - sg(e_k)|², sg stopping the gradient.
    The third term moves the codebook to the encodings, the fourth (the factor "commitment") the
    encodings to the codebook, and the decoder's gradient goes straight through from e_k to z.
    z is a site with a flat prior, so that it is computed once and can be looked at.

    Sites: z, k, codebook, commitment, x. Plates: data. Truth: the loss bounds -log p(x) from
    above, since -log p(x) <= -log p(x | k) + S log C for any k and the penalties are >= 0. KL(q
    || p) = S log C whatever the data, and −log p(k) under a learned prior, which is trained by the
    same loss and sums to one over all C^S codes. With identity networks it is k-means.

    Args:
        data_dim: D, the number of values in a row of data.
        codes: C, the number of vectors in the codebook.
        code_dim: d, their width.
        slots: S, how many of them make up one datum's code.
        hidden: widths of the encoder's hidden layers, reversed for the decoder.
        commitment: β >= 0; the paper's 0.25.
        likelihood: what the decoder's output means (`zoo.likelihoods`).
        networks: "mlp", "conv" or "residual" (which need `image_shape`), or "identity", where a
            datum is its own encoding and S·d must be D; or "spatial", convolutions that give each
            patch of 4 x 4 pixels a slot, so that S = H W / 16.
        image_shape: (channels, height, width) of a row.
        act: the activation's name.
        prior: "uniform", or "autoregressive" (`zoo.networks.CodePrior`).
        width: channels of spatial networks.

    Raises:
        ValueError: sizes below 1, fewer than two codes, β < 0, identity networks whose sizes do
            not fit, images whose sides spatial codes do not divide; when called, rows of x that are
            not D wide. `initialise` refuses more codes than there are encodings.
    """

    def __init__(
        self,
        data_dim: int,
        codes: int = 64,
        code_dim: int = 8,
        slots: int = 8,
        hidden: Sequence[int] = (200,),
        commitment: float = 0.25,
        likelihood: str | Likelihood = "gaussian-unit",
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        act: str = "elu",
        prior: str = "uniform",
        width: int = 32,
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, code_dim=code_dim, slots=slots, hidden=hidden, width=width)
        if prior not in ("uniform", "autoregressive"):
            raise ValueError(f"prior: expected uniform or autoregressive, got {prior!r}.")
        shape: Sequence[int] = ()
        if networks == "spatial":
            shape = check_image_shape("conv", image_shape, data_dim)
            slots = max(1, shape[1] // 4 * (shape[2] // 4))
        if codes < 2:
            raise ValueError(f"codes: a codebook needs at least 2 entries, got {codes}.")
        if not commitment >= 0:
            raise ValueError(f"commitment: expected β >= 0, got {commitment}.")
        self.data_dim, self.codes, self.code_dim, self.slots = data_dim, codes, code_dim, slots
        self.commitment = commitment
        self.likelihood = head(likelihood)
        codes_wide, outputs = slots * code_dim, self.likelihood.outputs
        self.encoder: nn.Module
        self.decoder: nn.Module
        if networks == "identity":
            if (codes_wide, outputs) != (data_dim, 1):
                raise ValueError(
                    f"networks: identity needs slots · code_dim = {data_dim} and a likelihood "
                    f"with one number for each value, got {slots} · {code_dim} and {outputs}. "
                    f"Give slots=1, code_dim={data_dim}, likelihood='gaussian-unit' for k-means."
                )
            self.encoder, self.decoder = nn.Identity(), nn.Identity()
        elif networks == "spatial":
            self.encoder = SpatialEncoder(shape, code_dim, width, act)
            self.decoder = SpatialDecoder(shape, code_dim, outputs, width, act)
        else:
            self.encoder = encoder_for(networks, data_dim, hidden, codes_wide, image_shape, act)
            self.decoder = decoder_for(
                networks, codes_wide, hidden, data_dim, outputs, image_shape, act
            )
        # Close to the origin, so that no entry starts out of every encoding's reach.
        self.codebook = nn.Parameter(torch.empty(codes, code_dim).uniform_(-1 / codes, 1 / codes))
        self.prior = CodePrior(codes) if prior == "autoregressive" else None

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(k) p(x | k), less the two penalties, for a mini-batch x (B, D) of `size` data."""
        pyro.module("vqvae", self)
        check_rows(x, self.data_dim)
        batch = x.shape[-2]
        with pyro.plate("data", size or batch, subsample=x):
            flat = dist.Normal(x.new_zeros(batch, self.slots * self.code_dim), 1.0)
            z = pyro.sample("z", flat.to_event(1).mask(False))  # (K, B, S·d)
            k = pyro.sample("k", self._codes(x, batch))  # (K, B, S)
            e = self.codebook[k].flatten(-2)  # (K, B, S·d)
            pyro.factor("codebook", -((z.detach() - e) ** 2).sum(-1))
            pyro.factor("commitment", -self.commitment * ((z - e.detach()) ** 2).sum(-1))
            through = z + (e - z).detach()  # the value of e, the gradient of z
            pyro.sample("x", self.likelihood(self.decoder(through)), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Point masses at the encoding and at the entries nearest to it."""
        pyro.module("vqvae", self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            # Masked: z is no random variable, its point mass has no density to account for.
            z = pyro.sample("z", dist.Delta(self.encoder(x), event_dim=1).mask(False))
            pyro.sample("k", dist.Delta(self.nearest(z), event_dim=1))

    def _codes(self, x: Tensor, batch: int) -> TorchDistribution:
        """p(k) of `batch` rows."""
        if self.prior is not None:
            return CodeChain(self.prior, self.slots, (batch,))
        uniform = dist.Categorical(logits=x.new_zeros(batch, self.slots, self.codes))
        return uniform.to_event(1)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Return the entry nearest to each slot of z: (..., S·d) -> (..., S), int64."""
        slots = z.unflatten(-1, (self.slots, self.code_dim))
        # |z - e|² without |z|², which is the same for every entry
        return ((self.codebook**2).sum(-1) - 2 * slots @ self.codebook.mT).argmin(-1)

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless the rows of x (B, D) are D wide and the likelihood allows them.

        Reads the values, so it belongs before a fit and not into one.
        """
        check_rows(x, self.data_dim)
        self.likelihood.validate(x)

    @torch.no_grad()
    def assign(self, x: Tensor) -> Tensor:
        """Return the codes of x: (B, D) -> (B, S), int64."""
        self.validate(x)
        return self.nearest(self.encoder(x))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the codebook's vectors for x, as the decoder sees them: (B, D) -> (B, S·d)."""
        return self.codebook[self.assign(x)].flatten(-2)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """E[x | k] at the entries nearest to z: (..., S·d) -> (..., D)."""
        return self.likelihood.mean(self.decoder(self.codebook[self.nearest(z)].flatten(-2)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | k] at the codes of x: (B, D) -> (B, D)."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x through codes of the prior: (n, D)."""
        k = self._codes(self.codebook, n).sample()
        return self.likelihood(self.decoder(self.codebook[k].flatten(-2))).sample()

    @torch.no_grad()
    def usage(self, x: Tensor) -> Tensor:
        """Return the share of all slots of x (B, D) that each entry takes: (C,), summing to 1."""
        counts = torch.bincount(self.assign(x).flatten(), minlength=self.codes)
        return counts / counts.sum()

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Let the entries begin at random encodings of x (N, D), so that all can be reached.

        Raises:
            ValueError: fewer encodings than entries.
        """
        some = x[torch.randperm(len(x))[: max(2_000, self.codes)]]
        z = self.encoder(some).reshape(-1, self.code_dim)
        if len(z) < self.codes:
            raise ValueError(
                f"codes: expected at most {len(z):,}, the encodings of the data ({len(x):,} rows, "
                f"{self.slots} slots each), got {self.codes}."
            )
        self.codebook.copy_(z[torch.randperm(len(z))[: self.codes]])

    @torch.no_grad()
    def restarted(self, x: Tensor) -> Tensor:
        """Return the codebook with what x (B, D) leaves unused moved to random encodings of x.

        Source: Dhariwal et al. 2020, "Jukebox" (arXiv:2005.00341, section 3.1).
        """
        dead = self.usage(x) == 0
        z = self.encoder(x).reshape(-1, self.code_dim)
        fresh = z[torch.randint(len(z), (self.codes,), device=z.device)]
        return torch.where(dead[:, None], fresh, self.codebook)

    @torch.no_grad()
    def lloyd_step(self, x: Tensor) -> None:
        """Move each entry to the mean of the encodings of x (B, D) nearest to it.

        The minimiser of the codebook's penalty for the codes as they are; entries that are not
        used stay. With identity networks, one iteration of k-means (Lloyd 1982, "Least squares
        quantization in PCM", IEEE Trans. Inf. Theory 28:129).
        """
        z = self.encoder(x).reshape(-1, self.code_dim)  # (B·S, d)
        one_hot = nn.functional.one_hot(self.assign(x).flatten(), self.codes).to(z.dtype)
        counts = one_hot.sum(0)[:, None]
        means = one_hot.mT @ z / counts.clamp(min=1)
        self.codebook.copy_(torch.where(counts > 0, means, self.codebook))


def perplexity(usage: Tensor) -> Tensor:
    """Return the effective number of entries used: exp(-Σ_c p_c log p_c), from 1 to C.

    Args:
        usage: the shares p of the entries, (..., C), summing to 1 (`VQVAE.usage`).

    Returns:
        (...).
    """
    return torch.special.entr(usage).sum(-1).exp()
