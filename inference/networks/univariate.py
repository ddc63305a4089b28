"""Increasing functions of one variable, whose parameters a network gives: affine, spline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Univariate(Protocol):
    """An increasing function applied element by element; with h = 0 it is the identity.

    x and y are (..., D), the parameters h (..., outputs, D).
    """

    @property
    def outputs(self) -> int:
        """Parameters per variable."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, both (..., D)."""

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx, both (..., D)."""


def bounded(h: Tensor, bound: float) -> Tensor:
    """h / (1 + |h| / bound): h near zero, never beyond ±bound, and no transcendental function."""
    return h / (1 + h.abs() / bound)


@dataclass(frozen=True)
class Affine:
    """y = x exp(s) + m, with h = (m, s) and |s| < `log_scale_bound`.

    Args:
        log_scale_bound: largest |log dy/dx| of one layer, nats. It keeps an inverse that is found
            step by step from overflowing before its inputs have settled.

    Source: Density estimation using Real NVP, arXiv:1605.08803, section 3.2.
    """

    log_scale_bound: float = 5.0
    outputs = 2  # shift and logarithm of the scale

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx."""
        shift, log_scale = h.unbind(-2)
        log_scale = bounded(log_scale, self.log_scale_bound)
        return x * log_scale.exp() + shift, log_scale

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx."""
        shift, log_scale = h.unbind(-2)
        log_scale = bounded(log_scale, self.log_scale_bound)
        return (y - shift) * (-log_scale).exp(), log_scale


@dataclass(frozen=True)
class RationalQuadratic:
    """A rational-quadratic spline on [-bound, bound], the identity outside of it.

    In the bin [x_k, x_k + w] -> [y_k, y_k + v], with slopes d_0 and d_1 at its ends, s = v / w and
    ξ = (x - x_k) / w,

        y = y_k + v [s ξ² + d_0 ξ (1 - ξ)] / [s + (d_0 + d_1 - 2 s) ξ (1 - ξ)]

    h holds `bins` widths and `bins` heights (through a softmax) and the slopes at the inner knots
    (through an exponential); the slope at ±bound is 1.

    Args:
        bins: number of bins, at least 2.
        bound: half the width of the spline's interval, in units of x.
        smallest: smallest width and height of a bin, as a share of the interval.
        log_slope_bound: largest |log slope| at a knot.

    Raises:
        ValueError: fewer than 2 bins, more than fit, or a bound that is not positive.

    Source: Neural spline flows, arXiv:1906.04032, section 3.1; the inverse, appendix A.
    """

    bins: int = 8
    bound: float = 5.0
    smallest: float = 1e-3
    log_slope_bound: float = 7.0

    def __post_init__(self):
        if self.bins < 2:
            raise ValueError(
                f"bins: expected at least 2, got {self.bins}. One bin between slopes of 1 is the "
                "identity; 8 bins are usual."
            )
        if self.bins * self.smallest >= 1:
            raise ValueError(
                f"bins: {self.bins} bins of at least {self.smallest} of the interval do not fit; "
                f"use fewer than {int(1 / self.smallest)}, or a smaller `smallest`."
            )
        if self.bound <= 0:
            raise ValueError(f"bound: expected a positive number, got {self.bound}; 5.0 is usual.")

    @property
    def outputs(self) -> int:
        """Parameters per variable: widths, heights, inner slopes."""
        return 3 * self.bins - 1

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx."""
        inside = x.abs() < self.bound
        widths, heights, slopes = self._sizes(h)
        # Clamped first: the branch that `where` discards must still have a finite gradient.
        t = x.clamp(-self.bound, self.bound)
        left, w, low, v, d0, d1 = self._bin(t, widths, widths, heights, slopes)
        xi = (t - left) / w
        s, p, curve = v / w, xi * (1 - xi), d0 + d1 - 2 * v / w
        y = low + v * (s * xi * xi + d0 * p) / (s + curve * p)
        log_slope = self._log_slope(xi, s, d0, d1)
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx."""
        inside = y.abs() < self.bound
        widths, heights, slopes = self._sizes(h)
        t = y.clamp(-self.bound, self.bound)
        left, w, low, v, d0, d1 = self._bin(t, heights, widths, heights, slopes)
        # The spline's equation is a ξ² + b ξ + c = 0; this root keeps its digits.
        s, rise = v / w, t - low
        curve = (d0 + d1 - 2 * s) * rise
        a, b, c = v * (s - d0) + curve, v * d0 - curve, -s * rise
        xi = 2 * c / (-b - (b * b - 4 * a * c).clamp(min=0).sqrt())
        log_slope = self._log_slope(xi, s, d0, d1)
        return torch.where(inside, left + xi * w, y), torch.where(inside, log_slope, 0.0)

    def _sizes(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths and heights (..., bins, D), slopes at the inner knots (..., bins - 1, D)."""
        widths, heights, slopes = h.split([self.bins, self.bins, self.bins - 1], dim=-2)
        free = 1 - self.smallest * self.bins
        widths = 2 * self.bound * (self.smallest + free * widths.softmax(-2))
        heights = 2 * self.bound * (self.smallest + free * heights.softmax(-2))
        return widths, heights, bounded(slopes, self.log_slope_bound).exp()

    def _bin(
        self, t: Tensor, along: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor
    ) -> tuple[Tensor, ...]:
        """Left edge, width, lower edge, height and end slopes of the bin that holds t.

        `along` (widths or heights) says on which axis t lies. The bin is picked by sums over 0/1
        weights instead of an index: their gradient is dense, so that it fuses when compiled.
        """
        edges = along.cumsum(-2)[..., :-1, :] - self.bound
        above = (t.unsqueeze(-2) >= edges).to(t.dtype)  # (..., bins - 1, D)
        ends = torch.ones_like(above[..., :1, :])
        here = torch.cat([ends, above], -2) - torch.cat([above, 0 * ends], -2)  # one-hot
        return (
            (above * widths[..., :-1, :]).sum(-2) - self.bound,
            (here * widths).sum(-2),
            (above * heights[..., :-1, :]).sum(-2) - self.bound,
            (here * heights).sum(-2),
            here[..., 0, :] + (here[..., 1:, :] * slopes).sum(-2),
            here[..., -1, :] + (here[..., :-1, :] * slopes).sum(-2),
        )

    @staticmethod
    def _log_slope(xi: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        """log dy/dx at ξ."""
        p = xi * (1 - xi)
        denominator = s + (d0 + d1 - 2 * s) * p
        numerator = s * s * (d1 * xi * xi + 2 * s * p + d0 * (1 - xi) * (1 - xi))
        return (numerator / (denominator * denominator)).log()


@dataclass(frozen=True)
class Composed:
    """y = second(first(x)), the parameters of the first before those of the second in h."""

    first: Univariate
    second: Univariate

    @property
    def outputs(self) -> int:
        """Those of both."""
        return self.first.outputs + self.second.outputs

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx."""
        first, second = h.split([self.first.outputs, self.second.outputs], -2)
        middle, slope = self.first.forward(x, first)
        y, more = self.second.forward(middle, second)
        return y, slope + more

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx."""
        first, second = h.split([self.first.outputs, self.second.outputs], -2)
        middle, slope = self.second.inverse(y, second)
        x, more = self.first.inverse(middle, first)
        return x, slope + more
