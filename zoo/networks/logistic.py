"""Mixtures of logistic distributions over the levels of a pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus


def log_mass(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """log of the mass that a logistic distribution gives to the level x in [0, 1], elementwise.

        σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b−a}),   a = (x + δ − μ) / s, b = (x − δ − μ) / s

    which neither cancels nor underflows (arXiv:1701.05517, eq. 2).
    """
    delta = 0.5 / (levels - 1)
    scale = log_scale.exp()
    a, b = (x + delta - mean) / scale, (x - delta - mean) / scale
    inside = logsigmoid(a) - softplus(b) + torch.log(-torch.expm1(-2 * delta / scale))
    edge = torch.where(x < delta, logsigmoid(a), inside)
    return torch.where(x > 1 - delta, -softplus(b), edge)


class LogisticMixture(TorchDistribution):
    """Σ_c π_c Logistic(μ_c, s_c) in bins around `levels` values in [0, 1]: batch shape (..., D).

    Args:
        logits, mean, log_scale: (..., D, C).
        levels: how many values.
    """

    arg_constraints: ClassVar[dict] = {"logits": constraints.real_vector}
    support = constraints.unit_interval
    has_rsample = False

    def __init__(self, logits: Tensor, mean: Tensor, log_scale: Tensor, levels: int = 256):
        self.logits, self.loc, self.log_scale = torch.broadcast_tensors(logits, mean, log_scale)
        self.levels = levels
        super().__init__(self.logits.shape[:-1], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Σ_c π_c μ_c, kept in [0, 1]: the mean but for what lies beyond the ends."""
        return (self.logits.softmax(-1) * self.loc.clamp(0, 1)).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogisticMixture:
        """The same mixture over a larger batch."""
        shape = (*batch_shape, self.logits.shape[-1])
        logits, loc, log_scale = (t.expand(shape) for t in (self.logits, self.loc, self.log_scale))
        return LogisticMixture(logits, loc, log_scale, self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats: (..., D)."""
        each = log_mass(value[..., None], self.loc, self.log_scale, self.levels)
        return (self.logits.log_softmax(-1) + each).logsumexp(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels in [0, 1]."""
        shape = torch.Size(sample_shape) + self.logits.shape
        choice = _chosen(self.logits.expand(shape))
        mean, log_scale = (t.expand(shape).gather(-1, choice)[..., 0]
                           for t in (self.loc, self.log_scale))  # fmt: skip
        return _rounded(_logistic(mean, log_scale), self.levels)


class ColourMixture(TorchDistribution):
    """A mixture for the three colours of a pixel together: event shape (3 P,), planes R, G, B.

        μ_G = μ_G + a x_R,   μ_B = μ_B + b x_R + c x_G        (arXiv:1701.05517, eq. 3)

    One component is chosen for a pixel; its weights are those that the decoder gives red.

    Args:
        logits, mean, log_scale, coefficients: (..., 3 P, C); the coefficients a, b, c are those at
            red, green and blue.
        levels: how many values.
    """

    arg_constraints: ClassVar[dict] = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.unit_interval, 1)
    has_rsample = False

    def __init__(
        self, logits: Tensor, mean: Tensor, log_scale: Tensor, coefficients: Tensor,
        levels: int = 256,
    ):  # fmt: skip
        self.parts = torch.broadcast_tensors(logits, mean, log_scale, coefficients)
        self.levels = levels
        shape = self.parts[0].shape
        super().__init__(shape[:-2], shape[-2:-1], validate_args=False)

    def _planes(self) -> list[Tensor]:
        return [p.unflatten(-2, (3, -1)) for p in self.parts]  # (..., 3, P, C)

    @property
    def mean(self) -> Tensor:
        """The mean of each value but for what lies beyond the ends: (..., 3 P)."""
        logits, mean, _, c = self._planes()
        weights = logits[..., :1, :, :].softmax(-1)
        red = mean[..., 0, :, :].clamp(0, 1)
        green = (mean[..., 1, :, :] + c[..., 0, :, :] * (red - 0.5)).clamp(0, 1)
        blue = mean[..., 2, :, :] + c[..., 1, :, :] * (red - 0.5) + c[..., 2, :, :] * (green - 0.5)
        return (weights * torch.stack([red, green, blue.clamp(0, 1)], -3)).sum(-1).flatten(-2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ColourMixture:
        """The same mixture over a larger batch."""
        shape = (*batch_shape, *self.parts[0].shape[-2:])
        logits, mean, log_scale, coefficients = (p.expand(shape) for p in self.parts)
        return ColourMixture(logits, mean, log_scale, coefficients, self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), nats: (..., 3 P) -> (...)."""
        logits, mean, log_scale, c = self._planes()
        x = value.unflatten(-1, (3, -1))[..., None]  # (..., 3, P, 1)
        red, green = x[..., 0, :, :] - 0.5, x[..., 1, :, :] - 0.5
        shift = torch.stack([
            torch.zeros_like(c[..., 0, :, :] * red), c[..., 0, :, :] * red,
            c[..., 1, :, :] * red + c[..., 2, :, :] * green,
        ], -3)  # fmt: skip
        each = log_mass(x, mean + shift, log_scale, self.levels).sum(-3)  # (..., P, C)
        return (logits[..., 0, :, :].log_softmax(-1) + each).logsumexp(-1).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels in [0, 1], colour after colour: (..., 3 P)."""
        shape = torch.Size(sample_shape)
        logits, *others = (p.expand(shape + p.shape) for p in self._planes())
        choice = _chosen(logits[..., 0, :, :])[..., None, :, :]
        choice = choice.expand(*others[0].shape[:-1], 1)
        mean, log_scale, c = (p.gather(-1, choice)[..., 0] for p in others)  # (..., 3, P)
        drawn: list[Tensor] = []
        for i in range(3):
            at = mean[..., i, :]
            if i == 1:
                at = at + c[..., 0, :] * (drawn[0] - 0.5)
            elif i == 2:
                at = at + c[..., 1, :] * (drawn[0] - 0.5) + c[..., 2, :] * (drawn[1] - 0.5)
            drawn.append(_rounded(_logistic(at, log_scale[..., i, :]), self.levels))
        return torch.stack(drawn, -2).flatten(-2)


def _chosen(logits: Tensor) -> Tensor:
    """A component for each value, by Gumbel noise: (..., C) -> (..., 1)."""
    u = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    return (logits - (-u.log()).log()).argmax(-1, keepdim=True)


def _logistic(mean: Tensor, log_scale: Tensor) -> Tensor:
    u = torch.rand_like(mean).clamp(1e-6, 1 - 1e-6)
    return mean + log_scale.exp() * (u.log() - (-u).log1p())


def _rounded(x: Tensor, levels: int) -> Tensor:
    """The nearest level in [0, 1]."""
    return (x.clamp(0, 1) * (levels - 1)).round() / (levels - 1)
