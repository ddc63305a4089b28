"""Semi-supervised learning with a generative model: the label is a latent where it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from inference.networks import MLP, activation
from zoo.likelihoods import Likelihood
from zoo.likelihoods import likelihood as head
from zoo.networks import (
    ConvDecoder,
    ConvEncoder,
    check_image_shape,
    check_rows,
    check_sizes,
    mean_and_scale,
)

MISSING = -1  # the label of a row that has none
IMPOSSIBLE = -1e3  # nats; its exponential is zero, and zero times it is zero


class SemiSupervisedVAE(nn.Module):
    """Semi-supervised VAE, M2 (Kingma et al. 2014, arXiv:1406.5298, eqs. 6 to 9).

        y_i            ~ uniform over the classes                         (B,)
        z_i            ~ N(0, I)                                          (B, L)
        x_i | y_i, z_i ~ likelihood(decoder(z_i, y_i))                    (B, D)
        q(y_i | x_i)      = classifier(x_i) where the label is missing, else a point mass at it
        q(z_i | x_i, y_i) = N(mean(x_i, y_i), diag sd(x_i, y_i)²)

    Fitted by `elbo.Enum()`, which averages over y exactly: with a label the bound is one on
    log p(x, y), without one on log p(x). The factor `label`, α log q(y_i | x_i) where the label is
    given, lets the labels teach the classifier; it is at most zero, so that the bound stays one.

    Sites: y, z, x, label. Plates: data. Truth: without labels the bound is
    Σ_y q(y | x) (bound(x, y) − log q(y | x)); a decoder that ignores z is a mixture of
    `classes` products, whose log p(x) is a finite sum.

    Args:
        data_dim: D.
        classes: the number of labels.
        latent_dim: L.
        hidden: widths of the hidden layers of classifier, encoder and (reversed) decoder.
            Convolutional networks have widths of their own.
        alpha: α >= 0, the weight of the classifier's log-probability of each label that is given.
            The paper's is a tenth of the number of all rows for each row with a label.
        likelihood: what the decoder's output means (`zoo.likelihoods`).
        networks: "mlp" or "conv", which needs `image_shape`.
        image_shape: (channels, height, width) of a row.
        act: the activation's name.
        classifier: a module (..., D) -> (..., classes), the logits of q(y | x), in place of one
            like the encoder.

    Raises:
        ValueError: a size below 1, one class, α < 0, an unknown name; when called, labels that are
            not one per row. A label out of range is found by `validate`.
    """

    def __init__(
        self,
        data_dim: int,
        classes: int = 10,
        latent_dim: int = 16,
        hidden: Sequence[int] = (200,),
        alpha: float = 10.0,
        likelihood: str | Likelihood = "bernoulli",
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        act: str = "softplus",
        classifier: nn.Module | None = None,
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, latent_dim=latent_dim, hidden=hidden)
        if classes < 2:
            raise ValueError(f"classes: expected at least 2, got {classes}.")
        if not alpha >= 0:
            raise ValueError(f"alpha: expected a weight of at least 0, got {alpha}.")
        self.data_dim, self.classes, self.latent_dim = data_dim, classes, latent_dim
        self.alpha = alpha
        self.likelihood = head(likelihood)
        outputs = self.likelihood.outputs
        own: nn.Module
        width = hidden[-1] if hidden else data_dim
        if networks == "mlp":
            own = MLP(data_dim, hidden, classes, act)
            trunk: nn.Module = MLP(data_dim, hidden[:-1], width, act)
            self.decoder: nn.Module = MLP(
                latent_dim + classes, hidden[::-1], outputs * data_dim, act
            )
        else:
            shape = check_image_shape(networks, image_shape, data_dim)
            own = ConvEncoder(shape, classes, act=act)
            trunk = ConvEncoder(shape, width, act=act)
            self.decoder = ConvDecoder(latent_dim + classes, shape, outputs, act=act)
        self.classifier = own if classifier is None else classifier
        self.trunk = nn.Sequential(trunk, activation(act))  # of x alone: once for all labels
        self.encoder = MLP(width + classes, (width,), 2 * latent_dim, act)

    def model(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> None:
        """p(y) p(z) p(x | y, z) for a mini-batch x (B, D) of `size` data.

        Args:
            y: labels (B,), −1 where there is none; None where no row has one.
        """
        pyro.module("semisupervised", self)
        self._check(x, y)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            label = pyro.sample("y", dist.Categorical(logits=x.new_zeros(self.classes)))
            zero = x.new_zeros(self.latent_dim)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            if y is not None:
                log_q = self.classifier(x).log_softmax(-1)
                given = log_q.gather(-1, y.clamp(min=0)[..., None]).squeeze(-1)
                pyro.factor("label", self.alpha * torch.where(y >= 0, given, 0.0))
            pyro.sample("x", self.likelihood(self.decoder(self._join(z, label))), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> None:
        """q(y | x) q(z | x, y)."""
        pyro.module("semisupervised", self)
        self._check(x, y)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            logits = self.classifier(x)
            if y is not None:
                is_y = y[..., None] == torch.arange(self.classes, device=y.device)
                point = torch.where(is_y, 0.0, IMPOSSIBLE).to(logits)
                logits = torch.where(y[..., None] >= 0, point, logits)
            label = pyro.sample("y", dist.Categorical(logits=logits))
            mean, scale = mean_and_scale(self.encoder(self._join(self.trunk(x), label)))
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    def validate(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise ValueError unless x (B, D) fits the likelihood and y (B,) holds labels or −1."""
        self._check(x, y)
        self.likelihood.validate(x)
        if y is not None and ((y < MISSING) | (y >= self.classes)).any():
            raise ValueError(
                f"y: expected labels 0 to {self.classes - 1}, or −1 where there is none, got "
                f"{int(y.min())} to {int(y.max())}. Renumber the labels from 0, or build the pair "
                f"with classes={int(y.max()) + 1}."
            )

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Return q(y | x): (B, D) -> (B, classes)."""
        self.validate(x)
        return self.classifier(x).softmax(-1)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z | x, y) at the likeliest label: (B, D) -> (B, L)."""
        label = self.classify(x).argmax(-1)
        return self.encoder(self._join(self.trunk(x), label))[..., : self.latent_dim]

    @torch.no_grad()
    def decode(self, z: Tensor, y: Tensor | int) -> Tensor:
        """E[x | y, z]: (..., L) and labels (...), or one for all -> (..., D)."""
        y = torch.as_tensor(y, device=z.device)
        return self.likelihood.mean(self.decoder(self._join(z, y)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | y, z] at the likeliest label and the guide's mean of z: (B, D) -> (B, D)."""
        return self.decode(self.encode(x), self.classify(x).argmax(-1))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | int | None = None) -> Tensor:
        """`n` draws of x given y: (n, D).

        Args:
            y: one label for all, or labels (n,). By default 0, 1, ..., classes - 1, 0, 1, ...
        """
        like = next(self.parameters())
        y = torch.arange(n) % self.classes if y is None else torch.as_tensor(y)
        if (y.ndim and y.shape != (n,)) or (y < 0).any() or (y >= self.classes).any():
            raise ValueError(
                f"y: expected one label or {n} of them, each 0 to {self.classes - 1}, got {y!r}."
            )
        z = torch.randn(n, self.latent_dim, dtype=like.dtype, device=like.device)
        return self.likelihood(self.decoder(self._join(z, y.to(like.device)))).sample()

    def _join(self, v: Tensor, y: Tensor) -> Tensor:
        """v (..., width) with the one-hot label y (...) behind it; their leading axes broadcast."""
        one_hot = (y[..., None] == torch.arange(self.classes, device=y.device)).to(v.dtype)
        lead = torch.broadcast_shapes(v.shape[:-1], one_hot.shape[:-1])
        return torch.cat([v.expand(*lead, -1), one_hot.expand(*lead, -1)], -1)

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        check_rows(x, self.data_dim)
        if y is not None and (y.shape != x.shape[:-1] or y.is_floating_point()):
            raise ValueError(
                f"y: expected {tuple(x.shape[:-1])} integer labels, one for each row of x and −1 "
                f"where there is none, got {y.dtype} of shape {tuple(y.shape)}."
            )
