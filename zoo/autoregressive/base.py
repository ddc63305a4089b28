"""The base of autoregressive models of binary data: one variable after the other, no latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.networks import check_rows


class BinaryAutoregressive(nn.Module):
    """p(x) = ∏_i Bernoulli(x_i; sigmoid(h_i(x_j : rank_j < rank_i))); the base of the models below.

    One pass of a masked network gives every h_i. Nothing is latent: the guide is empty, the ELBO is
    log p(x), and a fit is maximum likelihood.

    Sites: x. Plates: data. Truth: ∂h_i / ∂x_j is exactly zero where rank_j >= rank_i, and the
    probabilities of all 2^D outcomes sum to one.

    A subclass gives `logits` and the buffer `rank`, the place 0 .. D - 1 of each variable.
    """

    rank: Tensor

    def __init__(self, data_dim: int, rank: Tensor):
        super().__init__()
        self.data_dim = data_dim
        self.register_buffer("rank", rank)

    def logits(self, x: Tensor) -> Tensor:
        """h(x): (..., D) -> (..., D)."""
        raise NotImplementedError

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(x) for a mini-batch x (B, D) of `size` data."""
        pyro.module(type(self).__name__.lower(), self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("x", dist.Bernoulli(logits=self.logits(x)).to_event(1), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Nothing to infer."""

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless x (B, D) holds zeros and ones. Reads the values."""
        check_rows(x, self.data_dim)
        if not ((x == 0) | (x == 1)).all():
            raise ValueError(
                f"x: {type(self).__name__} needs binary data, 0 or 1, but got values in "
                f"[{x.min():.3g}, {x.max():.3g}]. Binarise: load(..., pixels='static'), 'dynamic' "
                "or 'threshold'."
            )

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats: (..., D) -> (...).

        Raises:
            ValueError: a value of x is neither 0 nor 1.
        """
        self.validate(x)
        return dist.Bernoulli(logits=self.logits(x)).log_prob(x).sum(-1)

    def conditionals(self) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Each order by which the model draws: the rank (D,), and its logits (..., D) of x."""
        return [(self.rank, self.logits)]

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x, one variable after the other (D passes): (n, D)."""
        x = next(self.parameters()).new_zeros(n, self.data_dim)
        for i in self.rank.argsort().tolist():
            x[:, i] = self.logits(x)[:, i].sigmoid().bernoulli()
        return x


def grey_shape(data_dim: int, image_shape: Sequence[int] | None) -> tuple[int, int, int]:
    """Return (1, height, width), by default that of a square image.

    Raises:
        ValueError: it does not give D pixels, or has more than one channel.
    """
    side = math.isqrt(data_dim)
    shape = (1, side, side) if image_shape is None else tuple(image_shape)
    if len(shape) != 3 or shape[0] != 1 or math.prod(shape) != data_dim:
        raise ValueError(
            f"image_shape: expected (1, height, width) with {data_dim} pixels in all, got "
            f"{image_shape}. A set from zoo.data has one; only a square image needs none."
        )
    return 1, shape[1], shape[2]
