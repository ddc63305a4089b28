"""The distribution that invertible maps of R^D make of standard normal noise, for guides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import AffineTransform

from ..networks import Affine, Composed, OnePass, RationalQuadratic, autoregressive_layers

AFFINE = Affine(log_scale_bound=3.0)
UNIVARIATES = {"iaf": AFFINE, "spline": Composed(RationalQuadratic(bins=8, bound=4.0), AFFINE)}


def layers(
    dim: int, kind: str, hidden: Sequence[int], depth: int, context_dim: int = 0
) -> nn.ModuleList:
    """`depth` autoregressive layers, every other one in reversed order.

    From noise to a draw in one pass, as a guide needs it; the inverse takes `dim` passes.

    Args:
        dim: D.
        kind: "iaf", affine layers, or "spline", splines of which each is followed by an affine map.
        hidden: widths of each layer's network.
        context_dim: width of the context.

    Source: Kingma et al. 2016, arXiv:1606.04934, section 3; Durkan et al. 2019, arXiv:1906.04032.
    """
    return nn.ModuleList(
        autoregressive_layers(dim, UNIVARIATES[kind], depth, hidden, "silu", context_dim)
    )


def flow_normal(
    loc: Tensor, scale: Tensor, maps: Iterable[Any], context: Tensor | None = None
) -> TransformedDistribution:
    """u = loc + scale * f_n(... f_1(ε)), ε ~ N(0, I); the density of a draw costs no inverse.

    Args:
        loc, scale: (..., D).
        maps: f_1, ..., f_n: `torch.distributions.Transform`s, or what `OnePass` takes.
        context: (..., C), passed to the maps that `OnePass` takes.
    """
    loc, scale = torch.broadcast_tensors(loc, scale)
    base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
    place = AffineTransform(loc, scale, event_dim=1, cache_size=1)
    return TransformedDistribution(base, [*(_transform(f, context) for f in maps), place])


def _transform(each: Any, context: Tensor | None) -> Transform:
    own = isinstance(each, Transform) and not hasattr(each, "call_and_ladj")
    return each if own else OnePass(each, context)


def widths(dim: int) -> tuple[int, int]:
    """Hidden widths for a flow of `dim` variables."""
    width = min(128, max(16, 4 * dim))
    return width, width
