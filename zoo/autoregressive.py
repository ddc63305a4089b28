"""Autoregressive models of binary data: MADE, and PixelCNN for images. No latent, exact nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from inference.networks import AutoregressiveMLP, ranks
from zoo.networks import check_rows, check_sizes


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


class MADE(BinaryAutoregressive):
    """Masked autoencoder for distribution estimation, in one order or the average of several.

        h = b + V σ(c + W x) + A x,   W, V and A masked so that h_i sees what comes before x_i

    With `orders=n` the same weights serve n orders, drawn once. A step draws one of them for all
    its rows, which is the site `order` (the same in model and guide): the ELBO is
    1/n Σ_k log p_k(x), the order-agnostic training of section 4.2. Judged, and drawn from, is the
    average of the orders, p(x) = 1/n Σ_k p_k(x), whose log_prob is never below the ELBO.

    Sites, plates, truth as for `BinaryAutoregressive`, for each order and for their average.

    Args:
        data_dim: D.
        hidden: widths of the hidden layers.
        order: `"natural"`, `"reversed"`, `"random"`, or the variables' indices, first one first.
        seed: draws the random order.
        act: name of the activation σ (`inference.networks.ACTIVATIONS`).
        direct: with the weights A from inputs straight to outputs, or without them.
        orders: n, how many orders are trained at once and averaged; the first is `order`, the
            others are drawn from `seed`.

    Raises:
        ValueError: an order that is not a permutation, a size below 1.

    Source: MADE: masked autoencoder for distribution estimation, arXiv:1502.03509, section 4. The
    degrees of the hidden units are spread evenly here, not drawn.
    """

    def __init__(
        self,
        data_dim: int,
        hidden: Sequence[int] = (500,),
        order: str | Sequence[int] = "natural",
        seed: int = 0,
        act: str = "relu",
        direct: bool = True,
        orders: int = 1,
    ):
        check_sizes(data_dim=data_dim, hidden=hidden, orders=orders)
        net = AutoregressiveMLP(data_dim, hidden, 1, order=order, seed=seed, act=act, direct=direct)
        super().__init__(data_dim, net.rank)
        self.net, self.orders = net, orders
        others = [ranks("random", data_dim, seed + k) for k in range(1, orders)]
        self.register_buffer("ranks", torch.stack([net.rank, *others]))

    def logits(self, x: Tensor) -> Tensor:
        """h(x) in the first order: (..., D) -> (..., D)."""
        return self.net(x).squeeze(-2)

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(x), or p_k(x) for an order k that is drawn, for a mini-batch x (B, D) of `size`."""
        if self.orders == 1:
            return super().model(x, size)
        pyro.module("made", self)
        check_rows(x, self.data_dim)
        h = self._logits(self.ranks[self._order(x)], x)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("x", dist.Bernoulli(logits=h).to_event(1), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Nothing to infer; one of several orders is drawn as in the model."""
        if self.orders > 1:
            self._order(x)

    def _order(self, x: Tensor) -> Tensor:
        u = pyro.sample("order", dist.Uniform(x.new_zeros(()), 1.0))  # () or (K, 1)
        k = (u * self.orders).long().clamp(max=self.orders - 1)
        return k.squeeze(-1) if k.ndim else k

    def _logits(self, rank: Tensor, x: Tensor) -> Tensor:
        return self.net.in_order(x, rank).squeeze(-2)

    def conditionals(self) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Each order by which the model draws: the rank (D,), and its logits (..., D) of x."""
        return [(rank, partial(self._logits, rank)) for rank in self.ranks]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, of the average over orders: (..., D) -> (...).

        Raises:
            ValueError: a value of x is neither 0 nor 1.
        """
        self.validate(x)
        log_p = [
            dist.Bernoulli(logits=logits(x)).log_prob(x).sum(-1)
            for _, logits in self.conditionals()
        ]
        return torch.stack(log_p).logsumexp(0) - math.log(self.orders)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x, each in one of the orders, one variable after the other: (n, D)."""
        if self.orders == 1:
            return super().sample(n)
        counts = torch.randint(self.orders, (n,)).bincount(minlength=self.orders).tolist()
        parts = []
        for (rank, logits), count in zip(self.conditionals(), counts):
            x = next(self.parameters()).new_zeros(count, self.data_dim)
            for i in rank.argsort().tolist():
                x[:, i] = logits(x)[:, i].sigmoid().bernoulli()
            parts.append(x)
        return torch.cat(parts)[torch.randperm(n)]


class PixelCNN(BinaryAutoregressive):
    """Gated PixelCNN of binary images, pixel after pixel, row by row.

    Two stacks of masked convolutions: the vertical one sees the rows above a pixel, the horizontal
    one the pixels to its left and the vertical one. Together they see every pixel before it,
    without the blind spot of a single masked stack (arXiv:1601.06759).

        (a, b) = W * h,   h <- h + V (tanh(a) sigmoid(b))

    Sites, plates, truth as for `BinaryAutoregressive`.

    Args:
        data_dim: D = height · width, one channel, flat.
        image_shape: (1, height, width); by default a square image.
        channels: width of both stacks.
        layers: number of gated layers; each reaches `kernel // 2` pixels further.
        kernel: odd size of a convolution, at least 3; the first has twice the reach.

    Raises:
        ValueError: a shape that does not give D, more than one channel, an even kernel.

    Source: Conditional image generation with PixelCNN decoders, arXiv:1606.05328, eq. 2, figure 2.
    """

    def __init__(
        self,
        data_dim: int,
        image_shape: Sequence[int] | None = None,
        channels: int = 32,
        layers: int = 6,
        kernel: int = 3,
    ):
        check_sizes(data_dim=data_dim, channels=channels, layers=layers)
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number from 3, got {kernel}; 3 is usual.")
        side = math.isqrt(data_dim)
        shape = (1, side, side) if image_shape is None else tuple(image_shape)
        if len(shape) != 3 or shape[0] != 1 or math.prod(shape) != data_dim:
            raise ValueError(
                f"image_shape: expected (1, height, width) with {data_dim} pixels in all, got "
                f"{image_shape}. A set from zoo.data has one; only a square image needs none."
            )
        super().__init__(data_dim, torch.arange(data_dim))
        self.shape = shape
        kernels = [2 * kernel - 1] + [kernel] * (layers - 1)
        self.layers = nn.ModuleList(
            GatedLayer(channels if i else 1, channels, k, first=i == 0)
            for i, k in enumerate(kernels)
        )
        self.out = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 1, 1)
        )

    def logits(self, x: Tensor) -> Tensor:
        """h(x): (..., D) -> (..., D)."""
        above = left = x.reshape(-1, *self.shape)
        for layer in self.layers:
            above, left = layer(above, left)
        return self.out(left).reshape(x.shape)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x, pixel after pixel: (n, D).

        Every feature depends on pixels before its own only, so each is computed once, when these
        are drawn: a row at a time in the vertical stack, a pixel at a time in the horizontal one.
        All of it costs about one pass over n images.
        """
        _, height, width = self.shape
        x = next(self.parameters()).new_zeros(n, 1, height, width)
        layers: list[Any] = list(self.layers)
        above = [x[:, :, 0:0], *(x.new_zeros(n, m.channels, 0, width) for m in layers)]
        for r in range(height):
            above[0] = x[:, :, :r]  # rows that are known at each level of the vertical stack
            left = [x[:, :, r], *(x.new_zeros(n, m.channels, width) for m in layers)]
            given = []  # what the vertical stack tells the horizontal one about this row
            for i, layer in enumerate(layers):
                rows = layer.next_row(above[i])  # (n, 2 channels, 1, W)
                above[i + 1] = torch.cat([above[i + 1], gate(rows)], 2)[:, :, -layer.seen :]
                given.append(layer.down(rows)[:, :, 0])
            for c in range(width):
                for i, layer in enumerate(layers):
                    left[i + 1][..., c] = layer.next_pixel(left[i], given[i], c)
                h = left[-1][..., c]
                for layer in self.out:
                    h = at_one_pixel(layer, h) if isinstance(layer, nn.Conv2d) else layer(h)
                x[:, 0, r, c] = h[:, 0].sigmoid().bernoulli()
        return x.flatten(1)


class GatedLayer(nn.Module):
    """One layer of both stacks: (above, left) -> (above, left), each (B, channels, H, W).

    At a pixel `above` knows the rows above it, and `left` these and the pixels to its left. The
    first layer reads the image itself, so its masks leave out the pixel's own row and the pixel.
    """

    def __init__(self, inputs: int, channels: int, kernel: int, first: bool):
        super().__init__()
        middle = kernel // 2
        last = middle if first else middle + 1
        square, row = torch.zeros(kernel, kernel), torch.zeros(1, kernel)
        square[:last] = 1
        row[:, :last] = 1
        self.above = MaskedConv2d(inputs, 2 * channels, square)
        self.left = MaskedConv2d(inputs, 2 * channels, row)
        self.down = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.first, self.seen, self.channels = first, last, channels

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """(above, left) -> (above, left)."""
        rows = self.above(above)
        h = self.out(gate(self.left(left) + self.down(rows)))
        return gate(rows), h if self.first else left + h

    def next_row(self, above: Tensor) -> Tensor:
        """The vertical stack's row before its gate, from the rows known: (B, 2 channels, 1, W)."""
        known = above[:, :, -self.seen :]
        known = nn.functional.pad(known, (0, 0, self.seen - known.shape[2], 0))
        weight = self.above.weight[:, :, : self.seen]
        sides = self.above.weight.shape[3] // 2
        return nn.functional.conv2d(known, weight, self.above.bias, padding=(0, sides))

    def next_pixel(self, left: Tensor, given: Tensor, column: int) -> Tensor:
        """The horizontal stack at one column of a row (B, inputs, W): (B, channels)."""
        end = column if self.first else column + 1
        known = left[..., max(0, end - self.seen) : end]
        weight = self.left.weight[:, :, 0, self.seen - known.shape[2] : self.seen]
        fresh = nn.functional.linear(known.flatten(1), weight.flatten(1), self.left.bias)
        h = fresh + given[..., column]
        h = at_one_pixel(self.out, gate(h))
        return h if self.first else left[..., column] + h


class MaskedConv2d(nn.Conv2d):
    """A convolution that keeps the image's size; its kernel is multiplied by a 0/1 mask (h, w)."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: Tensor):
        height, width = mask.shape
        super().__init__(inputs, outputs, (height, width), padding=(height // 2, width // 2))
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self._conv_forward(input, self.weight * self.mask, self.bias)


def at_one_pixel(conv: nn.Conv2d, h: Tensor) -> Tensor:
    """A convolution of one pixel: (B, inputs) -> (B, outputs). A product is the faster call."""
    return nn.functional.linear(h, conv.weight.flatten(1), conv.bias)


def gate(h: Tensor) -> Tensor:
    """tanh(a) sigmoid(b) for h = (a, b) along the channels (eq. 2)."""
    a, b = h.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()
