"""Guides that begin near the posterior, and whose parameters move in its whitened coordinates.

A quasi-Newton path gives a Gaussian N(loc, A Aᵀ) close to the posterior. With u = loc + A v the
posterior of v is close to N(0, I), whatever the scales and correlations of u are: there a step of
one learning rate suits every parameter of every model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms import LowerCholeskyAffine
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from ..draws.joint import LogJoint, continuous
from ..weights.sites import at_zero
from ..weights.supports import Following
from .packed import flow_normal, layers
from .paths import Normal, Paths, pathfinder

STARTS = ("pathfinder", "laplace")
FAMILIES = ("mean-field", "low-rank", "full-rank", "iaf", "spline")


class PlacedGuide(AutoContinuous, Following):
    """A normal distribution or a flow that begins where a quasi-Newton path found the posterior.

        full-rank       u = loc + A (m + T ε), T lower triangular
        mean-field      u = loc + A m + s ε, s begins where the path's precision puts it
        low-rank        u = loc + A (m + √d ε + W η)
        iaf, spline     u = loc + A flow(ε)
        mixture         Σ π_c N(loc_c, A_c A_cᵀ), as it is: nothing is learned

    ε, η ~ N(0, I); all begin at N(loc, A Aᵀ), but mean-field, which has no correlations. loc and A
    stay what they are, and so does the meaning of the other parameters.

    Args:
        model: a Pyro model with continuous latents; discrete ones are summed out.
        family: of those above.
        start: "pathfinder": the Gaussian of the highest ELBO along several paths up the log joint;
            "laplace": its peak and curvature there; a `Normal`; or `Paths`, for a mixture.
        rank: of "low-rank".
        hidden, depth: of a flow.
        seed: of the paths.

    Raises:
        ValueError: (when first called) the log joint is infinite at every start, has no peak
            ("laplace"), or the model's latents cannot all be placed on the real line.

    Source: Zhang et al. 2022, arXiv:2108.03782; Tierney & Kadane 1986.
    """

    loc0: Tensor
    scale0: Tensor

    def __init__(
        self,
        model: Callable,
        family: str = "full-rank",
        start: str | Normal | Paths = "pathfinder",
        rank: int | None = None,
        hidden: Sequence[int] | None = None,
        depth: int = 3,
        seed: int = 0,
    ):
        if not isinstance(start, Normal | Paths) and start not in STARTS:
            raise ValueError(f"start: expected {' or '.join(map(repr, STARTS))}, got {start!r}.")
        self._whole = (model,)  # with its discrete latents
        super().__init__(continuous(model), init_loc_fn=at_zero)
        self.family, self.start, self.seed = family, start, seed
        self.rank, self.hidden, self.depth = rank, hidden, depth

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        like = self._init_loc()
        if isinstance(self.start, Paths):
            each, shares = self.start.each, self.start.shares
            self.register_buffer("shares", shares.to(like))
            self.register_buffer("locs", torch.stack([n.loc for n in each]).to(like))
            self.register_buffer("scales", torch.stack([n.scale for n in each]).to(like))
            return
        place = self._place(args, kwargs)
        d, zeros = self.latent_dim, torch.zeros_like(like)
        self.register_buffer("loc0", place.loc.to(like))
        self.register_buffer("scale0", place.scale.to(like))
        self.shift = nn.Parameter(zeros.clone())
        if self.family == "mean-field":
            if place.scale.dim() == 2:  # 1 / √ of the precision's diagonal: the best factors of it
                inverse = torch.linalg.inv(place.scale)
                spread = inverse.square().sum(0).rsqrt()
            else:
                spread = place.scale
            self.register_buffer("spread0", spread.to(like))
        if self.family in ("mean-field", "full-rank", "low-rank"):
            self.log_scale = nn.Parameter(zeros.clone())
        if self.family == "full-rank":
            self.lower = nn.Parameter(zeros.new_zeros(d * (d - 1) // 2))
        elif self.family == "low-rank":
            rank = self.rank or max(1, round(d**0.5))
            self.factor = nn.Parameter(0.01 * torch.randn(d, rank).to(like))
        elif self.family in ("iaf", "spline"):
            self.flow = layers(d, self.family, self.depth, self.hidden).to(like)

    def _place(self, args: tuple, kwargs: dict) -> Normal:
        if isinstance(self.start, Normal):
            return self.start
        (model,) = self._whole
        with poutine.block():  # whoever called the guide is not concerned
            found = pathfinder(LogJoint(model, args, kwargs), seed=self.seed)
        if self.start == "pathfinder":
            return found.best
        if found.laplace is None:
            raise ValueError(
                f"laplace: {found.improper or found.away or 'the curvature is not positive'}. "
                "There is no peak, and no Laplace approximation; 'pathfinder' needs none."
            )
        return found.laplace

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The distribution of the packed latents."""
        if isinstance(self.start, Paths):
            parts = dist.MultivariateNormal(self.locs, scale_tril=self.scales)
            return dist.MixtureSameFamily(dist.Categorical(self.shares), parts)
        if self.family in ("mean-field", "full-rank"):
            loc, scale = self._moments()
            if scale.dim() == 1:
                return dist.Normal(loc, scale).to_event(1)
            return dist.MultivariateNormal(loc, scale_tril=scale)
        if self.family == "low-rank":
            scale = self.log_scale.exp()
            base = dist.LowRankMultivariateNormal(self.shift, self.factor, scale.square())
            return dist.TransformedDistribution(base, [self._affine()])
        base = flow_normal(self.shift, torch.ones_like(self.shift), self.flow)
        return dist.TransformedDistribution(base, [self._affine()])

    def _affine(self) -> Any:
        if self.scale0.dim() == 1:
            return AffineTransform(self.loc0, self.scale0, event_dim=1, cache_size=1)
        return LowerCholeskyAffine(self.loc0, self.scale0, cache_size=1)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Location, and standard deviations or a lower triangular factor."""
        a, whole = self.scale0, self.scale0.dim() == 2
        loc = self.loc0 + (a @ self.shift if whole else a * self.shift)
        if self.family == "mean-field":
            return loc, self.spread0 * self.log_scale.exp()
        d = self.latent_dim
        rows, columns = torch.tril_indices(d, d, -1, device=a.device)
        lower = torch.diag_embed(self.log_scale.exp())
        lower = lower.index_put((rows, columns), self.lower)
        return loc, (a @ lower if whole else a[:, None] * lower)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.family not in ("mean-field", "full-rank"):
            raise NotImplementedError(f"{self.family}: no quantiles in closed form; draw from it.")
        loc, scale = self._moments()
        return loc, scale if scale.dim() == 1 else scale.square().sum(-1).sqrt()
