"""Guides over all continuous latents, packed into one unconstrained vector.

They share Pyro's packing (`AutoContinuous`): sites, transforms to their supports, and plates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from pyro.distributions.constraints import softplus_positive
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median, init_to_sample
from pyro.nn import PyroParam
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import AffineTransform

from ..networks import Affine, Composed, OnePass, RationalQuadratic, autoregressive_layers
from ..weights.supports import Following

AFFINE = Affine(log_scale_bound=3.0)
UNIVARIATES: dict[str, Any] = {
    "iaf": AFFINE,
    "spline": Composed(RationalQuadratic(bins=8, bound=4.0), AFFINE),
}


def layers(
    dim: int, kind: str, depth: int, hidden: Sequence[int] | None = None, context_dim: int = 0
) -> nn.ModuleList:
    """`depth` autoregressive layers, every other one in reversed order.

    From noise to a draw in one pass, as a guide needs it; the inverse takes `dim` passes.

    Args:
        dim: D.
        kind: "iaf", affine layers, or "spline", splines of which each is followed by an affine map.
        hidden: widths of each layer's network; None is two of max(16, 4 D), at most 128.
        context_dim: width of the context.

    Source: Kingma et al. 2016, arXiv:1606.04934, section 3; Durkan et al. 2019, arXiv:1906.04032.
    """
    hidden = hidden or (min(128, max(16, 4 * dim)),) * 2
    made = autoregressive_layers(dim, UNIVARIATES[kind], depth, hidden, "silu", context_dim)
    return nn.ModuleList(made)


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
    steps: list[Transform] = []
    for f in maps:
        foreign = isinstance(f, Transform) and not hasattr(f, "call_and_ladj")
        steps.append(f if foreign else OnePass(f, context))
    place = AffineTransform(loc, scale, event_dim=1, cache_size=1)
    return TransformedDistribution(base, [*steps, place])


class MixtureGuide(AutoContinuous, Following):
    """q(u) = Σ_c π_c N(loc_c, diag scale_c²), for posteriors with several modes.

    A component k is drawn, then u from it. The weight divides by the whole mixture's density,
    whichever component u came from; gradients reach loc and scale through u, and π through the
    score function of k (use several particles: they make its baseline). The components start at
    draws from the prior, so that they differ, and their weights are learned ten times more slowly
    than their places: a component far from the posterior is not given up before it has moved.

    Args:
        model: a Pyro model with continuous latents.
        components: C.
        init_scale: their standard deviation at the start.

    Source: Jaakkola & Jordan 1998, "Improving the mean field approximation via the use of mixture
    distributions".
    """

    scale: Any  # in its own support when read

    def __init__(self, model: Callable, components: int = 8, init_scale: float = 0.3):
        super().__init__(model, init_loc_fn=init_to_sample)
        self.components, self.init_scale = components, init_scale

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        starts = []
        for _ in range(self.components):
            super()._setup_prototype(*args, **kwargs)
            starts.append(self._init_loc())
        loc = torch.stack(starts)  # (C, D)
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(loc, self.init_scale), softplus_positive)
        self.logits = nn.Parameter(loc.new_zeros(self.components))

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """The packed latents, (..., D)."""
        name = f"_{self._pyro_name}"
        helps: Any = {"is_auxiliary": True}
        logits, loc, scale = self._log_weights(), self.loc, self.scale
        k = pyro.sample(f"{name}_component", dist.Categorical(logits=logits), infer=helps)
        mine = dist.Normal(_row(loc, k), _row(scale, k)).to_event(1)
        u = pyro.sample(f"{name}_draw", mine, infer=helps)
        parts = dist.Normal(loc, scale).log_prob(u.unsqueeze(-2)).sum(-1) + logits  # (..., C)
        part = parts.gather(-1, k.unsqueeze(-1)).squeeze(-1)
        whole = dist.Delta(u, log_density=parts.logsumexp(-1) - part, event_dim=1)
        return pyro.sample(f"{name}_latent", whole, infer=helps)

    def _log_weights(self) -> Tensor:
        return (0.1 * self.logits).log_softmax(-1)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        weight = self._log_weights().exp().unsqueeze(-1)
        loc = (weight * self.loc).sum(0)
        second = (weight * (self.loc.square() + self.scale.square())).sum(0)
        return loc, (second - loc.square()).sqrt()


def _row(table: Tensor, k: Tensor) -> Tensor:
    """table[k], where k without dimensions does not have to be read on the host."""
    return table.index_select(0, k.flatten()).reshape(*k.shape, -1)


class FlowGuide(AutoContinuous, Following):
    """u = loc + scale * flow(ε), ε ~ N(0, I): a normalizing flow over the packed latents.

    Args:
        model: a Pyro model with continuous latents.
        transform: "iaf", "spline", or a function of the number of latents D that returns an
            invertible map or a list of them: a `torch.distributions.Transform`, a module that has
            `call_and_ladj` and `inv_and_ladj`, or one that has `forward` and `inverse`, returning
            the other end and log |det dy/dx|.
        hidden: widths of the networks; None is two layers of max(16, 4 D), at most 128.
        depth: autoregressive layers.
        init_scale: standard deviation of every latent at the start.

    Source: Rezende & Mohamed 2015, arXiv:1505.05770; Kingma et al. 2016, arXiv:1606.04934; Durkan
    et al. 2019, arXiv:1906.04032.
    """

    scale: Any  # in its own support when read

    def __init__(
        self,
        model: Callable,
        transform: str | Callable[[int], Any] = "iaf",
        hidden: Sequence[int] | None = None,
        depth: int = 3,
        init_scale: float = 0.1,
    ):
        super().__init__(model, init_loc_fn=init_to_median)
        self.transform, self.hidden, self.depth = transform, hidden, depth
        self.init_scale = init_scale

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.loc = nn.Parameter(self._init_loc())
        self.scale = PyroParam(torch.full_like(self.loc, self.init_scale), softplus_positive)
        dim = self.latent_dim
        if callable(self.transform):
            made = self.transform(dim)
        else:
            made = layers(dim, self.transform, self.depth, self.hidden)
        self.maps = list(made) if isinstance(made, (list, tuple, nn.ModuleList)) else [made]
        self.flow = nn.ModuleList(m for m in self.maps if isinstance(m, nn.Module)).to(self.loc)

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The flow's distribution over the packed latents."""
        return flow_normal(self.loc, self.scale, self.maps)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a flow has no quantiles in closed form: draw from it.")
