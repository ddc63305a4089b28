"""Hierarchical VAEs: latents stacked in layers, z_1 nearest the data.

One model, two guides: `HierarchicalVAE` infers upwards, each layer from the one below; `LadderVAE`
infers downwards, in the order in which the model generates, and uses the model's networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from inference.networks import MLP, activation
from zoo.likelihoods import Likelihood
from zoo.likelihoods import likelihood as head
from zoo.networks import check_rows, check_sizes, mean_and_scale

Draw = Callable[[int, Tensor, Tensor], Tensor]  # (layer, mean, scale) -> z_layer


class _Hierarchy(nn.Module):
    """The model that both classes share, and what follows from any order of inference."""

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int],
        hidden: Sequence[Sequence[int]],
        likelihood: str | Likelihood,
        act: str,
    ):
        super().__init__()
        check_sizes(data_dim=data_dim)
        _check_chain(latent_dims, hidden)
        self.data_dim, self.latent_dims = data_dim, tuple(latent_dims)
        self.likelihood = head(likelihood)
        outputs = [self.likelihood.outputs * data_dim, *(2 * n for n in latent_dims[:-1])]
        self.decoders = nn.ModuleList(  # decoders[l - 1]: z_l -> the layer below it
            MLP(n, widths[::-1], out, act) for n, widths, out in zip(latent_dims, hidden, outputs)
        )

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(z_L) ∏ p(z_{l-1} | z_l) p(x | z_1) for a mini-batch x (B, D) of `size` data."""
        pyro.module("hierarchical", self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            mean = x.new_zeros(x.shape[-2], self.latent_dims[-1])
            scale = torch.ones_like(mean)
            for layer in range(len(self.latent_dims), 1, -1):
                z = _draw(layer, mean, scale)  # (K, B, L_layer)
                mean, scale = mean_and_scale(self.decoders[layer - 1](z))
            z = _draw(1, mean, scale)
            pyro.sample("x", self.likelihood(self.decoders[0](z)), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """q(z_1, ..., z_L | x), drawn in the class's order."""
        pyro.module("hierarchical", self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            self._infer(x, _draw)

    def _infer(self, x: Tensor, draw: Draw) -> None:
        """Walk through the layers, calling `draw(layer, mean, scale)` at each of them."""
        raise NotImplementedError

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless the rows of x (B, D) are D wide and the likelihood allows them.

        Reads the values, so it belongs before a fit and not into one.
        """
        check_rows(x, self.data_dim)
        self.likelihood.validate(x)

    @torch.no_grad()
    def encode(self, x: Tensor, layer: int = 1) -> Tensor:
        """Return the guide's mean of z_`layer`, given the means of the layers inferred before it.

        Args:
            x: data, (..., D).
            layer: 1, nearest the data, to L.

        Returns:
            (..., L_layer).

        Raises:
            ValueError: there is no such layer.
        """
        self._check_layer(layer)
        check_rows(x, self.data_dim)
        means: dict[int, Tensor] = {}
        self._infer(x, lambda i, mean, scale: means.setdefault(i, mean))
        return means[layer]

    @torch.no_grad()
    def decode(self, z: Tensor, layer: int = 1) -> Tensor:
        """E[x | z_1], with z_1 the mean, layer by layer, below a given z_`layer`.

        Args:
            z: (..., L_layer).
            layer: 1, nearest the data, to L.

        Returns:
            (..., D).

        Raises:
            ValueError: there is no such layer.
        """
        self._check_layer(layer)
        for decoder in reversed(self.decoders[1:layer]):
            z, _ = mean_and_scale(decoder(z))
        return self.likelihood.mean(self.decoders[0](z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z_1] at the guide's mean of z_1: (..., D) -> (..., D)."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x through z_L, ..., z_1: (n, D)."""
        like = next(self.decoders.parameters())
        z = torch.randn(n, self.latent_dims[-1], dtype=like.dtype, device=like.device)
        for decoder in reversed(self.decoders[1:]):
            z = dist.Normal(*mean_and_scale(decoder(z))).sample()
        return self.likelihood(self.decoders[0](z)).sample()

    def _check_layer(self, layer: int) -> None:
        if not 1 <= layer <= len(self.latent_dims):
            raise ValueError(f"layer: expected 1 to {len(self.latent_dims)}, got {layer}.")


class HierarchicalVAE(_Hierarchy):
    """Stacked latents with a Markov guide (Burda et al. 2016, arXiv:1509.00519, eqs. 1 and 4).

        z_L           ~ N(0, I)                                          (B, L_L)
        z_{l-1} | z_l ~ N(mean_l(z_l), diag sd_l(z_l)²)                  (B, L_{l-1})
        x | z_1       ~ likelihood(decoder_1(z_1))                       (B, D)
        q(z | x)      = q(z_1 | x) ∏_l q(z_l | z_{l-1}), diagonal normals

    ELBO = E_q log [p(z_L) ∏ p(z_{l-1} | z_l) p(x | z_1) / (q(z_1 | x) ∏ q(z_l | z_{l-1}))].

    Sites: z_1, ..., z_L, x. Plates: data. Truth: with one layer, the VAE's loss.

    Args:
        data_dim: D, the width of a datum.
        latent_dims: the widths of z_1, ..., z_L, for any number of layers.
        hidden: for each layer the widths of its networks' hidden layers, from the data upwards;
            decoders mirror encoders. The default is the paper's, 784-200-200-100 and
            100-100-100-50.
        likelihood: what the decoder's output means (`zoo.likelihoods`).
        act: the activation's name.

    Raises:
        ValueError: the sizes do not chain, or (when called) x is not (..., data_dim).
    """

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int] = (100, 50),
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        likelihood: str | Likelihood = "bernoulli",
        act: str = "tanh",
    ):
        super().__init__(data_dim, latent_dims, hidden, likelihood, act)
        inputs = [data_dim, *latent_dims[:-1]]
        self.encoders = nn.ModuleList(  # encoders[l - 1]: z_{l-1} -> z_l, where z_0 = x
            MLP(n, widths, 2 * out, act) for n, widths, out in zip(inputs, hidden, latent_dims)
        )

    def _infer(self, x: Tensor, draw: Draw) -> None:
        """q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})."""
        z = x
        for layer, encoder in enumerate(self.encoders, 1):
            z = draw(layer, *mean_and_scale(encoder(z)))


class LadderVAE(_Hierarchy):
    """The same model with a top-down guide (Sønderby et al. 2016, arXiv:1602.02282, section 2).

        d_0 = x, d_l = network_l(d_{l-1})                                no noise, upwards
        q(z | x) = q(z_L | x) ∏_l q(z_{l-1} | z_l, x), diagonal normals  downwards

    At each layer the evidence N(m, s²), read off d_l, meets the model's own prior given the layer
    above; the guide is their normalised product: precisions add, and the mean is weighted by them
    (eqs. 18 and 19). A layer about which the data say nothing (s → ∞) follows its prior at no
    cost. The top layer is the evidence alone.

    Sites, plates, arguments and errors as for `HierarchicalVAE`.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dims: Sequence[int] = (100, 50),
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        likelihood: str | Likelihood = "bernoulli",
        act: str = "tanh",
    ):
        super().__init__(data_dim, latent_dims, hidden, likelihood, act)
        if not all(hidden):
            raise ValueError(
                f"hidden: expected at least one width for each layer, got {hidden!r}. A ladder "
                "climbs through its hidden layers."
            )
        inputs = [data_dim, *(widths[-1] for widths in hidden[:-1])]
        self.climb = nn.ModuleList(  # climb[l - 1]: d_{l-1} -> d_l
            nn.Sequential(MLP(n, widths[:-1], widths[-1], act), activation(act))
            for n, widths in zip(inputs, hidden)
        )
        self.evidence = nn.ModuleList(  # evidence[l - 1]: d_l -> m, s of z_l
            MLP(widths[-1], (), 2 * out, act) for widths, out in zip(hidden, latent_dims)
        )

    def _infer(self, x: Tensor, draw: Draw) -> None:
        """q(z_L | x) q(z_{L-1} | z_L, x) ... q(z_1 | z_2, x)."""
        d = [x]
        for network in self.climb:
            d.append(network(d[-1]))
        top = len(self.latent_dims)
        z = draw(top, *mean_and_scale(self.evidence[top - 1](d[top])))
        for layer in range(top - 1, 0, -1):
            evidence = mean_and_scale(self.evidence[layer - 1](d[layer]))
            prior = mean_and_scale(self.decoders[layer](z))
            z = draw(layer, *_product(*evidence, *prior))


def _draw(layer: int, mean: Tensor, scale: Tensor) -> Tensor:
    return pyro.sample(f"z_{layer}", dist.Normal(mean, scale).to_event(1))


def _product(m: Tensor, s: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of N(m, s²) N(mean, scale²), normalised."""
    precision = s**-2 + scale**-2
    return (m * s**-2 + mean * scale**-2) / precision, precision.rsqrt()


def _check_chain(latent_dims: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
    """Raise ValueError unless each latent has its tuple of hidden widths."""
    if any(isinstance(widths, int) for widths in hidden):
        raise ValueError(
            f"hidden: expected the widths of each layer's networks, such as ((200, 200), (100,)), "
            f"got {hidden!r}. Give one tuple for each of the {len(latent_dims)} latents."
        )
    if not latent_dims or len(latent_dims) != len(hidden):
        raise ValueError(
            f"latent_dims, hidden: expected one tuple of hidden widths for each latent, got "
            f"{len(latent_dims)} latents {tuple(latent_dims)} and {len(hidden)} tuples "
            f"{tuple(hidden)}. Two layers need, say, latent_dims=(100, 50) and "
            "hidden=((200, 200), (100, 100))."
        )
    check_sizes(latent_dims=latent_dims, hidden=[n for widths in hidden for n in widths])
