"""Invertible maps of R^D for guides, and the distribution that they make of standard normal noise.

Plain torch, without a branch or an index that depends on data, so that a step with them can be
compiled. Every map has `forward(x, context)` and `inverse(y, context)`, which return the other end
and log |det dy/dx|.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Transform, constraints

STRETCH = 3.0  # the logarithm of an affine layer's scale stays within ± this


class MaskedMLP(nn.Module):
    """A network whose outputs for variable i see only the variables before it in `order`.

    Args:
        dim: D, the variables.
        hidden: widths of the hidden layers.
        outputs: numbers given for each variable.
        order: rank of each variable, a permutation of 0 .. D - 1.
        context_dim: width of a context that every output may see.

    Source: Germain et al. 2015, MADE, arXiv:1502.03509, eqs. 12 and 13.
    """

    def __init__(
        self, dim: int, hidden: Sequence[int], outputs: int, order: Tensor, context_dim: int = 0
    ):
        super().__init__()
        self.outputs = outputs
        ranks = [order, *(torch.arange(h) % max(1, dim - 1) for h in hidden)]
        masks = [b.unsqueeze(-1) >= a for a, b in itertools.pairwise(ranks)]
        masks.append((order.unsqueeze(-1) > ranks[-1]).repeat(outputs, 1))
        linear = [nn.Linear(m.shape[1], m.shape[0]) for m in masks]
        self.context = nn.Linear(context_dim, len(masks[0]), bias=False) if context_dim else None
        for i, (mask, layer) in enumerate(zip(masks, linear)):
            self.register_buffer(f"mask_{i}", mask.to(layer.weight.dtype))
        nn.init.zeros_(linear[-1].weight)  # start at the identity
        nn.init.zeros_(linear[-1].bias)
        self.layers = nn.ModuleList(linear)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., outputs, D)."""
        layer: Any
        for i, layer in enumerate(self.layers):
            x = F.linear(x, layer.weight * getattr(self, f"mask_{i}"), layer.bias)
            if i == 0 and self.context is not None:
                x = x + self.context(context)
            if i + 1 < len(self.layers):
                x = F.silu(x)
        return x.unflatten(-1, (self.outputs, -1))


class Autoregressive(nn.Module):
    """y_i = u(x_i; net(x_j : j before i, context)), affine, or a spline and then affine.

    From noise to a draw in one pass, as a guide needs it; the inverse takes D passes.

    Args:
        dim: D.
        kind: "affine" (an inverse autoregressive flow) or "spline".
        hidden: widths of the network.
        reverse: go through the variables from the last to the first.
        context_dim: width of the context.
        bins: of a spline, whose ends lie at ± `bound`; outside it is the identity.

    Source: Kingma et al. 2016, arXiv:1606.04934, section 3; Durkan et al. 2019, arXiv:1906.04032.
    """

    def __init__(
        self,
        dim: int,
        kind: str,
        hidden: Sequence[int] = (64, 64),
        reverse: bool = False,
        context_dim: int = 0,
        bins: int = 8,
        bound: float = 4.0,
    ):
        super().__init__()
        order = torch.arange(dim)
        self.dim, self.kind, self.bins, self.bound = dim, kind, bins, bound
        outputs = 2 if kind == "affine" else 3 * bins + 1
        self.net = MaskedMLP(dim, hidden, outputs, order.flip(0) if reverse else order, context_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (..., D) and log |det dy/dx| (...)."""
        y, slope = self._each(x, self.net(x, context), inverse=False)
        return y, slope.sum(-1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (..., D) and log |det dy/dx| (...). Pass n gets n variables right."""
        x = torch.zeros_like(y)
        slope = x
        for _ in range(self.dim):
            x, slope = self._each(y, self.net(x, context), inverse=True)
        return x, slope.sum(-1)

    def _each(self, v: Tensor, h: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        shift, raw = h[..., 0, :], h[..., 1, :]
        log_scale = STRETCH * torch.tanh(raw / STRETCH)
        if inverse:
            v = (v - shift) * torch.exp(-log_scale)
        bent = torch.zeros_like(log_scale)
        if self.kind == "spline":
            knots = h[..., 2:, :].movedim(-2, -1)
            v, bent = spline(v, knots, self.bins, self.bound, inverse)
        if not inverse:
            v = v * torch.exp(log_scale) + shift
        return v, log_scale + bent


def spline(v: Tensor, h: Tensor, bins: int, bound: float, inverse: bool) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline of [-bound, bound], the identity outside.

    Args:
        v: (..., D), x or, for the inverse, y.
        h: (..., D, 3 bins - 1): unnormalised widths, heights, and slopes at the inner knots; h = 0
            is the identity.

    Returns:
        The other end (..., D), and log dy/dx (..., D).

    Source: Durkan et al. 2019, arXiv:1906.04032, eqs. 4, 5 and 6-8.
    """
    least = 1e-3  # of a bin's share and of a slope

    def knots(raw: Tensor) -> Tensor:
        share = least + (1 - least * bins) * raw.softmax(-1)
        inner = 2 * bound * share[..., :-1].cumsum(-1) - bound
        end = torch.full_like(inner[..., :1], bound)
        return torch.cat([-end, inner, end], -1)  # (..., D, bins + 1)

    widths, heights, slopes = h.split([bins, bins, bins - 1], -1)
    xs, ys = knots(widths), knots(heights)
    one = torch.ones_like(slopes[..., :1])
    ds = least + (1 - least) * F.softplus(slopes + math.log(math.e - 1))  # 1 at 0
    ds = torch.cat([one, ds, one], -1)

    inside = (v > -bound) & (v < bound)
    at = v.clamp(-bound, bound).unsqueeze(-1)
    index = (at >= (ys if inverse else xs)[..., 1:-1]).sum(-1, keepdim=True)  # the bin

    def pick(values: Tensor, i: Tensor) -> Tensor:
        return values.gather(-1, i).squeeze(-1)

    x0, x1 = pick(xs, index), pick(xs, index + 1)
    y0, y1 = pick(ys, index), pick(ys, index + 1)
    d0, d1 = pick(ds, index), pick(ds, index + 1)
    w, t = x1 - x0, y1 - y0
    s = t / w
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = at.squeeze(-1) - y0
        a = t * (s - d0) + rise * bend
        b = t * d0 - rise * bend
        c = -s * rise
        root = (b.square() - 4 * a * c).clamp(min=0.0).sqrt()
        xi = (2 * c / (-b - root)).clamp(0.0, 1.0)
        out = x0 + xi * w
    else:
        xi = (at.squeeze(-1) - x0) / w
        out = y0 + t * (s * xi.square() + d0 * xi * (1 - xi)) / (s + bend * xi * (1 - xi))
    slope = s.square() * (d1 * xi.square() + 2 * s * xi * (1 - xi) + d0 * (1 - xi).square())
    log_slope = slope.log() - 2 * (s + bend * xi * (1 - xi)).log()
    return torch.where(inside, out, v), torch.where(inside, log_slope, torch.zeros_like(v))


class Chain(nn.Module):
    """Maps one after the other.

    Takes maps of this file, `torch.distributions.Transform`s, and modules that have torch's
    `call_and_ladj` and `inv_and_ladj`.
    """

    def __init__(self, *maps: Any):
        super().__init__()
        self.maps = maps
        self.owned = nn.ModuleList(m for m in maps if isinstance(m, nn.Module))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (..., D) and log |det dy/dx| (...)."""
        total = x.new_zeros(x.shape[:-1])
        for each in self.maps:
            x, ladj = _ahead(each, x, context)
            total = total + ladj
        return x, total

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (..., D) and log |det dy/dx| (...)."""
        total = y.new_zeros(y.shape[:-1])
        for each in reversed(self.maps):
            y, ladj = _back(each, y, context)
            total = total + ladj
        return y, total


def _ahead(each: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    if hasattr(each, "call_and_ladj"):
        return each.call_and_ladj(x, context)
    if isinstance(each, Transform):
        y = each(x)
        return y, _summed(each, each.log_abs_det_jacobian(x, y))
    return each(x, context)


def _back(each: Any, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    if hasattr(each, "inv_and_ladj"):
        return each.inv_and_ladj(y, context)
    if isinstance(each, Transform):
        x = each.inv(y)
        return x, _summed(each, each.log_abs_det_jacobian(x, y))
    return each.inverse(y, context)


def _summed(transform: Transform, ladj: Tensor) -> Tensor:
    return ladj.sum(-1) if transform.domain.event_dim == 0 else ladj


def layers(dim: int, kind: str, hidden: Sequence[int], depth: int, context_dim: int = 0) -> Chain:
    """`depth` autoregressive layers, every other one in reversed order."""
    return Chain(
        *(Autoregressive(dim, kind, hidden, i % 2 == 1, context_dim) for i in range(depth))
    )


class FlowNormal(TorchDistribution):
    """u = loc + scale * flow(ε), ε ~ N(0, I).

    The density of a value that this object has drawn is remembered with it; others go through the
    inverse.

    Args:
        loc, scale: (..., D).
        flow: a map of R^D; `context` (..., C) is passed to it.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, flow: Any, context: Tensor | None = None):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.flow, self.context = flow, context
        self._drawn: tuple[Tensor, Tensor] | None = None
        batch = self.loc.shape[:-1]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        super().__init__(batch, self.loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowNormal:
        """The same for more batch dimensions."""
        batch = torch.Size(batch_shape)
        loc, scale = (t.expand(batch + t.shape[-1:]) for t in (self.loc, self.scale))
        context = self.context
        if context is not None:
            context = context.expand(batch + context.shape[-1:])
        return FlowNormal(loc, scale, self.flow, context)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """A draw, (*sample_shape, ..., D)."""
        eps = torch.randn(
            self.shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device
        )
        y, ladj = self.flow(eps, self.context)
        value = self.loc + self.scale * y
        self._drawn = value, self._density(eps, ladj)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, nats."""
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return self._density(*self.flow.inverse((value - self.loc) / self.scale, self.context))

    def _density(self, eps: Tensor, ladj: Tensor) -> Tensor:
        normal = -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1)
        return normal - ladj - self.scale.log().sum(-1)
