"""MADE: a masked network over binary variables, in one order or the average of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from inference.networks import AutoregressiveMLP, ranks
from zoo.networks import check_rows, check_sizes

from .base import BinaryAutoregressive


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
        dropout: probability with which a step leaves out a hidden unit.
        orders: n, how many orders are trained at once and averaged; the first is `order`, the
            others are drawn from `seed`.

    Raises:
        ValueError: an order that is not a permutation, a size below 1.

    Source: MADE: masked autoencoder for distribution estimation, arXiv:1502.03509, section 4. The
    degrees of the hidden units are spread evenly here, not drawn.
    """

    ranks: Tensor  # of each order, (orders, D)

    def __init__(
        self,
        data_dim: int,
        hidden: Sequence[int] = (500,),
        order: str | Sequence[int] = "natural",
        seed: int = 0,
        act: str = "relu",
        direct: bool = True,
        orders: int = 1,
        dropout: float = 0.0,
    ):
        check_sizes(data_dim=data_dim, hidden=hidden, orders=orders)
        net = AutoregressiveMLP(
            data_dim, hidden, 1, order=order, seed=seed, act=act, direct=direct, dropout=dropout
        )
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
        h = self._logits(self._order(x), x)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("x", dist.Bernoulli(logits=h).to_event(1), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Nothing to infer; one of several orders is drawn as in the model."""
        if self.orders > 1:
            self._order(x)

    def _order(self, x: Tensor) -> Tensor:
        """The rank of each variable in an order that is drawn, (D,), or (K, D) for particles."""
        u = pyro.sample("order", dist.Uniform(x.new_zeros(()), 1.0))  # () or (K, 1)
        k = (u * self.orders).long().clamp(max=self.orders - 1)
        drawn = self.ranks.index_select(0, k.reshape(-1))  # an index of no axes would be read
        return drawn if k.ndim else drawn[0]

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
