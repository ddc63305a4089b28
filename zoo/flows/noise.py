"""Noise of a flow whose tails and shape are learned: a mixture of Student t distributions."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

DF = 8.0  # degrees of freedom at the start
ROUNDS = 50  # of expectation maximisation


class StudentMixture(TorchDistribution):
    """Σ_k w_k t(u; df_k, loc_k, (F_kᵀ F_k)⁻¹), event shape (D,).

    Args:
        logits: log w_k, up to a constant, (K,).
        loc: (K, D).
        factor: F, lower triangular with a positive diagonal, (K, D, D).
        df: degrees of freedom, (K,).

    Its parameters have no batch shape: an expanded one shares them.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self, logits: Tensor, loc: Tensor, factor: Tensor, df: Tensor,
        batch_shape: Any = (), validate_args: bool | None = None,
    ):  # fmt: skip
        self.logits, self.loc, self.factor, self.df = logits, loc, factor, df
        super().__init__(torch.Size(batch_shape), loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StudentMixture:
        """The same distribution with another batch shape."""
        parts = self.logits, self.loc, self.factor, self.df
        return StudentMixture(*parts, batch_shape=batch_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(u) in nats: (..., D) -> (...)."""
        if self._validate_args:
            self._validate_sample(value)
        log_p = (component_densities(value, self.loc, self.factor, self.df)[0]
                 + self.logits.log_softmax(-1)).logsumexp(-1)  # fmt: skip
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, *batch_shape, D)."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            k = torch.distributions.Categorical(logits=self.logits).sample(shape)
            df = self.df[k].unsqueeze(-1)
            stretch = (df / (2 * torch._standard_gamma(df / 2))).sqrt()  # χ²(df) / df, its root
            normal = torch.randn(*shape, self.loc.shape[-1], 1).to(self.loc)
            moved = torch.linalg.solve_triangular(self.factor[k], normal, upper=False).squeeze(-1)
            return self.loc[k] + stretch * moved


def component_densities(
    u: Tensor, loc: Tensor, factor: Tensor, df: Tensor
) -> tuple[Tensor, Tensor]:
    """log t(u) for each component, and the squared distance from its middle: (..., K) each."""
    d = loc.shape[-1]
    square = torch.einsum("kij,...kj->...ki", factor, u.unsqueeze(-2) - loc).square().sum(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    norm = torch.lgamma((df + d) / 2) - torch.lgamma(df / 2) - d / 2 * torch.log(math.pi * df)
    return norm + log_det - (df + d) / 2 * torch.log1p(square / df), square


class StudentNoise(nn.Module):
    """A `StudentMixture` with parameters, which `initialise` sets by expectation maximisation.

    The parameters are differences from that start, so that weight decay draws a flow to it.

    Args:
        dim: dimension D.
        components: K, at least 1.

    Source: Jaini et al. 2020, Tails of Lipschitz triangular flows, arXiv:1907.04481 (a flow with
    normal noise has tails like a normal's, whatever its layers).
    """

    start_logits: Tensor
    start_loc: Tensor
    start_log_diagonal: Tensor
    start_lower: Tensor
    logits: Tensor
    loc: Tensor
    log_diagonal: Tensor
    lower: Tensor

    def __init__(self, dim: int, components: int):
        super().__init__()
        square = torch.zeros(components, dim, dim)
        for name, value in (
            ("logits", square[:, 0, 0]), ("loc", square[:, 0]), ("log_diagonal", square[:, 0]),
            ("lower", square),
        ):  # fmt: skip
            self.register_buffer(f"start_{name}", value.clone())
            setattr(self, name, nn.Parameter(value.clone()))
        self.log_df = nn.Parameter(torch.zeros(components))

    def distribution(self) -> StudentMixture:
        """The mixture, event shape (D,)."""
        diagonal = (self.start_log_diagonal + self.log_diagonal).exp()
        one = torch.eye(diagonal.shape[-1], dtype=diagonal.dtype, device=diagonal.device)
        factor = diagonal.unsqueeze(-1) * ((self.start_lower + self.lower).tril(-1) + one)
        return StudentMixture(
            self.start_logits + self.logits, self.start_loc + self.loc, factor,
            DF * self.log_df.exp(),
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, u: Tensor, means: Tensor) -> None:
        """Fit the mixture to u (N, D) by expectation maximisation, begun at `means` (K, D).

        Covariances have the one within all components for a prior, worth D data, so that a
        component of few data has one too. The degrees of freedom stay where they begin.

        Source: Peel & McLachlan 2000, Robust mixture modelling using the t distribution, eqs. 18
        to 22; Fraley & Raftery 2007, Bayesian regularization for normal mixture estimation.
        """
        dtype, u, loc = u.dtype, u.double(), means.double()
        n, d = u.shape
        one, df = torch.eye(d).to(u), torch.full_like(loc[:, 0], DF)
        shares = torch.nn.functional.one_hot(torch.cdist(u, loc).argmin(1), len(loc)).to(u)
        pull = shares  # each datum's weight in a component's mean and scatter
        for _ in range(ROUNDS):
            counts = shares.sum(0)
            loc = pull.mT @ u / pull.sum(0).clamp_min(1e-12).unsqueeze(-1)
            apart = [u - m for m in loc]
            scatter = torch.stack([(p[:, None] * a).mT @ a for p, a in zip(pull.mT, apart)])
            within = scatter.sum(0) / n
            within = within + (1e-6 * within.diagonal().mean()).clamp_min(1e-12) * one
            cov = (scatter + d * within) / (counts + d)[:, None, None]
            low = torch.linalg.cholesky(cov)
            factor = torch.linalg.solve_triangular(low, one.expand_as(low), upper=False)
            weights = (counts + 1) / (n + len(loc))
            log_p, square = component_densities(u, loc, factor, df)
            shares = (log_p + weights.log()).softmax(-1)
            pull = shares * (df + d) / (df + square)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        self.start_logits.copy_(weights.log().to(dtype))
        self.start_loc.copy_(loc.to(dtype))
        self.start_log_diagonal.copy_(diagonal.log().to(dtype))
        self.start_lower.copy_((factor / diagonal.unsqueeze(-1)).tril(-1).to(dtype))
        for p in self.parameters():
            p.zero_()
