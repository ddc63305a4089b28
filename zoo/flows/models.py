"""Flows as Pyro pairs fitted by exact maximum likelihood, and a flow as a guide distribution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from torch import Tensor, nn

from inference.networks import (
    Affine,
    FlowTransform,
    OnePass,
    RationalQuadratic,
    autoregressive_layers,
    with_linear,
)
from zoo.networks import check_rows, check_sizes

from .coupling import Coupling
from .noise import StudentNoise

ROWS = 50_000  # at most, by which a flow is begun


class Flow(nn.Module):
    """A density by change of variables; the base of the flows below.

        u = f_n(... f_1(x)) ~ N(0, I)                              (B, D)
        log p(x) = log N(u; 0, I) + Σ_l log |det df_l|

    or, with `students`, u from a mixture of so many Student t distributions (`StudentNoise`).

    The transforms are given in the direction data -> noise, so that a density is one pass. Nothing
    is latent: the guide is empty, the ELBO is log p(x), and a fit is maximum likelihood.

    Sites: x. Plates: data. Truth: the density integrates to one; at the optimum the mean log p(x)
    is minus the entropy of the data.

    Args:
        data_dim: D. The data should have about unit scale.
        transforms: f_1, ..., f_n.
        students: Student t distributions that the noise is a mixture of; 0 is a standard normal.
    """

    def __init__(self, data_dim: int, transforms: Iterable[FlowTransform], students: int = 0):
        super().__init__()
        if students < 0:
            raise ValueError(f"students: expected 0 (normal noise) or more, got {students}.")
        self.data_dim, self.students = data_dim, students
        self.transforms = nn.ModuleList(transforms)
        self.noise = StudentNoise(data_dim, students) if students else None

    def distribution(self) -> TransformedDistribution:
        """p(x), event shape (D,). A new object, which shares nothing with those before it."""
        steps = [OnePass(t).inv for t in reversed(self.transforms)]
        base = self.noise.distribution() if self.noise else standard_normal(self, self.data_dim)
        return TransformedDistribution(base, steps)

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(x) for a mini-batch x (B, D) of `size` data."""
        pyro.module(type(self).__name__.lower(), self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("x", self.distribution(), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Nothing to infer."""

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless x (B, D) is D wide and finite. Reads the values."""
        check_rows(x, self.data_dim)
        if not torch.isfinite(x).all():
            n = int((~torch.isfinite(x)).sum())
            raise ValueError(f"x: {n} values are NaN or infinite. Drop or impute them first.")

    @torch.no_grad()
    def initialise(self, x: Tensor, means: Tensor | None = None) -> None:
        """Set linear layers so that their output of x (N, D) is standardised, and the noise.

        Args:
            x: data, of which `ROWS` are used.
            means: where the components of the noise begin, (students, D); by default at rows of x.

        Raises:
            ValueError: fewer rows than components of the noise.
        """
        if len(x) < self.students:
            raise ValueError(
                f"students: expected at most one per datum, got {self.students} for {len(x)} rows."
            )
        x = x[:: -(-len(x) // ROWS)]
        means = x[: self.students] if means is None else means
        steps: list[Any] = list(self.transforms)
        for transform in steps:
            if hasattr(transform, "initialise"):
                transform.initialise(x)
            x, means = (transform.call_and_ladj(v)[0] for v in (x, means))
        if self.noise is not None:
            self.noise.initialise(x, means)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats: (..., D) -> (...)."""
        return self.distribution().log_prob(x)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x: (n, D)."""
        return self.distribution().sample((n,))


class RealNVP(Flow):
    """Real NVP: affine coupling layers that take turns on the halves of x.

        (a, b) = x,   u = (a, b exp(s(a)) + m(a))

    Sites, plates, truth as for `Flow`. Density and draw are one pass each.

    Args:
        data_dim: D, at least 2. The data should have about unit scale.
        layers: number of coupling layers.
        hidden: widths of each layer's network.
        act: its activation.
        linear: before each layer: none, norm (activation norm), permutation or lu (a matrix).
        students: Student t distributions that the noise is a mixture of; 0 is a standard normal.
        dropout: probability with which a step leaves out a hidden unit.

    Raises:
        ValueError: one dimension, no layers.

    Source: Density estimation using Real NVP, arXiv:1605.08803, section 3.2.
    """

    def __init__(
        self,
        data_dim: int,
        layers: int = 8,
        hidden: Sequence[int] = (64, 64),
        act: str = "relu",
        linear: str = "none",
        students: int = 0,
        dropout: float = 0.0,
    ):
        check_sizes(data_dim=data_dim, layers=layers, hidden=hidden)
        steps: list[FlowTransform] = [
            Coupling(data_dim, Affine(), hidden, act, swap=i % 2 == 1, dropout=dropout)
            for i in range(layers)
        ]
        super().__init__(data_dim, with_linear(linear, data_dim, steps), students)


class MAF(Flow):
    """Masked autoregressive flow with affine layers, every other one in reversed order.

        u_i = x_i exp(s_i) + m_i,   (m_i, s_i) = net(x_1, ..., x_{i-1})

    Sites, plates, truth as for `Flow`. A density is one pass, a draw D passes; one layer is a
    model of Gaussian conditionals.

    Args:
        data_dim: D. The data should have about unit scale.
        layers: number of autoregressive layers.
        hidden: widths of each layer's network.
        act: its activation.
        linear: before each layer: none, norm (activation norm), permutation or lu (a matrix).
        students: Student t distributions that the noise is a mixture of; 0 is a standard normal.
        dropout: probability with which a step leaves out a hidden unit.

    Raises:
        ValueError: no layers.

    Source: Masked autoregressive flow for density estimation, arXiv:1705.07057, section 3.1
    (with s = -α and m = -μ exp(-α)).
    """

    def __init__(
        self,
        data_dim: int,
        layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        act: str = "relu",
        linear: str = "none",
        students: int = 0,
        dropout: float = 0.0,
    ):
        check_sizes(data_dim=data_dim, layers=layers, hidden=hidden)
        steps = autoregressive_layers(data_dim, Affine(), layers, hidden, act, dropout=dropout)
        super().__init__(data_dim, with_linear(linear, data_dim, steps), students)


class NeuralSplineFlow(Flow):
    """Neural spline flow: rational-quadratic splines, autoregressive or in coupling layers.

        u_i = spline(x_i; net(x_1, ..., x_{i-1}))    on [-bound, bound], the identity outside

    Sites, plates, truth as for `Flow`. A density is one pass; a draw is D passes, or one pass with
    coupling layers.

    Args:
        data_dim: D; at least 2 for coupling layers. The data should have about unit scale: beyond
            ±bound the density is the standard normal's.
        layers: number of layers; their orders, or the halves they act on, take turns.
        hidden: widths of each layer's network.
        bins: bins of each spline, at least 2.
        bound: half the width of the interval on which a spline acts, in units of x.
        transform: `"autoregressive"` or `"coupling"`.
        act: the networks' activation.
        linear: before each layer: none, norm (activation norm), permutation or lu (a matrix).
        students: Student t distributions that the noise is a mixture of; 0 is a standard normal.
        dropout: probability with which a step leaves out a hidden unit.

    Raises:
        ValueError: fewer than 2 bins, no layers, another transform, coupling on one dimension.

    Source: Neural spline flows, arXiv:1906.04032, section 3.
    """

    def __init__(
        self,
        data_dim: int,
        layers: int = 3,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        bound: float = 5.0,
        transform: str = "autoregressive",
        act: str = "relu",
        linear: str = "none",
        students: int = 0,
        dropout: float = 0.0,
    ):
        check_sizes(data_dim=data_dim, layers=layers, hidden=hidden)
        spline = RationalQuadratic(bins, bound)
        if transform == "autoregressive":
            steps = autoregressive_layers(data_dim, spline, layers, hidden, act, dropout=dropout)
        elif transform == "coupling":
            steps = [
                Coupling(data_dim, spline, hidden, act, swap=i % 2 == 1, dropout=dropout)
                for i in range(layers)
            ]
        else:
            raise ValueError(f"transform: expected autoregressive or coupling, got {transform!r}.")
        super().__init__(data_dim, with_linear(linear, data_dim, steps), students)


class IAF(nn.Module):
    """Inverse autoregressive flow: a distribution to use in a guide.

        z_0 ~ base,   z_l = z_{l-1} exp(s_l) + m_l,   (m_l, s_l)_i = net_l(z_{l-1, 1..i-1}, c)

    A draw and its log density are one pass together; the density of a value from elsewhere costs
    D passes. It starts as its base.

        def guide(self, x, size=None):
            ...
            z = pyro.sample("z", self.flow())                        # or, amortised:
            z = pyro.sample("z", self.flow(dist.Normal(loc, scale).to_event(1), context))

    Args:
        latent_dim: L, the event size.
        layers: number of layers; every other one has the reversed order.
        hidden: widths of each layer's network.
        context_dim: width of the context c, 0 for none.
        act: the networks' activation.

    Raises:
        ValueError: no layers; a context where none was announced, or the other way round.

    Source: Improving variational inference with inverse autoregressive flow, arXiv:1606.04934,
    section 4 (with an affine step instead of the gated one).
    """

    def __init__(
        self,
        latent_dim: int,
        layers: int = 2,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
        act: str = "relu",
    ):
        super().__init__()
        check_sizes(latent_dim=latent_dim, layers=layers, hidden=hidden)
        self.latent_dim, self.context_dim = latent_dim, context_dim
        self.transforms = nn.ModuleList(
            autoregressive_layers(latent_dim, Affine(), layers, hidden, act, context_dim)
        )

    def forward(
        self, base: TorchDistribution | None = None, context: Tensor | None = None
    ) -> TransformedDistribution:
        """q(z | c), event shape (L,), batch shape the base's.

        Args:
            base: distribution of z_0 with event shape (L,); by default N(0, I).
            context: c (..., context_dim), broadcast against the base's batch shape.
        """
        if (context is not None) != (self.context_dim > 0):
            raise ValueError(
                f"context: this IAF was made with context_dim={self.context_dim}, and was called "
                f"{'without one' if context is None else 'with one'}. Make the two agree."
            )
        if base is None:
            base = standard_normal(self, self.latent_dim)
        return TransformedDistribution(base, [OnePass(t, context) for t in self.transforms])


def standard_normal(module: nn.Module, dim: int) -> TorchDistribution:
    """N(0, I) with event shape (dim,), of the module's dtype and on its device."""
    like = next(module.parameters())
    return dist.Normal(like.new_zeros(dim), like.new_ones(dim)).to_event(1)
