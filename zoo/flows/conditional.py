"""A flow whose layers are told a label or attributes."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from torch import Tensor, nn

from inference.networks import Affine, OnePass, RationalQuadratic, Univariate, autoregressive_layers
from zoo.networks import Condition, check_rows, check_sizes

from .models import standard_normal


class ConditionalFlow(nn.Module):
    """Masked autoregressive flow under a condition (arXiv:1705.07057, section 3.4).

        u = f_n(... f_1(x; y); y) ~ N(0, I)                         (B, D)
        log p(x | y) = log N(u; 0, I) + Σ_l log |det df_l|

    Sites: x. Plates: data. Truth: the density integrates to one for each y; where the data given a
    label are Gaussian, one affine layer is exact.

    Args:
        data_dim: D. The data should have about unit scale.
        classes: the number of labels, where there are no attributes.
        layers: number of autoregressive layers.
        hidden: widths of each layer's network.
        act: its activation.
        bins: of rational-quadratic splines on [-5, 5]; 0 takes affine layers.
        binary, real: how many attributes are 0 or 1, and how many are real numbers.

    Raises:
        ValueError: a size below 1; conditions of another shape or range.
    """

    def __init__(
        self,
        data_dim: int,
        classes: int = 2,
        layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        act: str = "relu",
        bins: int = 0,
        binary: int = 0,
        real: int = 0,
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, layers=layers, hidden=hidden)
        self.data_dim, self.condition = data_dim, Condition(classes, binary, real)
        self.classes = self.condition.classes
        each: Univariate = RationalQuadratic(bins, 5.0) if bins else Affine()
        width = self.condition.width
        steps = autoregressive_layers(data_dim, each, layers, hidden, act, width)
        self.transforms = nn.ModuleList(steps)

    def distribution(self, y: Tensor) -> TorchDistribution:
        """p(x | y), batch shape that of y's rows, event shape (D,)."""
        told = self.condition.features(y, next(self.parameters()))
        steps = [OnePass(t, told).inv for t in reversed(self.transforms)]
        return TransformedDistribution(standard_normal(self, self.data_dim), steps)

    def model(self, x: Tensor, y: Tensor, size: int | None = None) -> None:
        """p(x | y) for a mini-batch x (B, D), y (B,) or (B, A) of `size` data."""
        pyro.module("conditional_flow", self)
        check_rows(x, self.data_dim)
        self.condition.check(y, x.shape[:-1])
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("x", self.distribution(y), obs=x)

    def guide(self, x: Tensor, y: Tensor, size: int | None = None) -> None:
        """Nothing to infer."""

    def validate(self, x: Tensor, y: Tensor) -> None:
        """Raise ValueError unless x (B, D) is finite and y holds conditions of its rows."""
        check_rows(x, self.data_dim)
        if not torch.isfinite(x).all():
            raise ValueError("x: values are NaN or infinite. Drop or impute them first.")
        self.condition.check(y, x.shape[:-1])
        self.condition.validate(y)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y) in nats: (B, D), (B,) or (B, A) -> (B,)."""
        return self.distribution(y).log_prob(x)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | int | None = None) -> Tensor:
        """`n` draws of x given y: (n, D).

        Args:
            y: one condition for all, or `n` of them; by default the labels 0, 1, ..., in turn, and
                unknown attributes.
        """
        like = next(self.parameters())
        if y is None and self.classes:
            y = torch.arange(n) % self.classes
        elif y is None:
            y = self.condition.unknown(n)
        y = torch.as_tensor(y, device=like.device)
        self.condition.validate(y)
        rows = y.expand(n, *y.shape[y.ndim - (self.condition.attributes > 0) :])
        return self.distribution(rows).sample((n,))
