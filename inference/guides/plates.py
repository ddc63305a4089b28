"""Guides that follow the model's plates: one small distribution for each element of a plate.

    q = ∏ over blocks b, elements i of q(u_bi | u of the blocks around it)

A block is all sites that share their plates, an element of it one vector u_bi. What describes its
distribution is a parameter for each element, or the output of a network that is shown the element's
data (amortised).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from torch import Tensor, nn
from torch.distributions import biject_to

from ..networks import MLP
from ..pairs.arguments import has_rows, rows_of
from ..weights.supports import Following
from .packed import flow_normal, layers

FLOWS = ("iaf", "spline")
FAMILIES = ("mean-field", "low-rank", "full-rank", "structured", *FLOWS)


@dataclass
class Block:
    """Sites in the same plates, packed per element.

    Attributes:
        plates: their names, outermost batch dimension first.
        batch: batch shape that the plates make, ones for dimensions without a plate.
        sites: name -> (support, event dimension, unconstrained event shape).
        starts: the sites' unconstrained values at the start, (*batch, numbers) each.
        parents: the blocks whose plates are among these, for a guide that depends on them.
    """

    plates: tuple[str, ...]
    batch: torch.Size
    sites: dict[str, tuple[Any, int, torch.Size]]
    starts: list[Tensor]
    parents: tuple[Block, ...] = ()

    @property
    def dim(self) -> int:
        """L, numbers in one element."""
        return sum(math.prod(shape) for _, _, shape in self.sites.values())

    @property
    def above(self) -> int:
        """Count the numbers in the parents' elements together."""
        return sum(p.dim for p in self.parents)


class PlateGuide(Following):
    """Normal or flow guides per element of each plate.

    "structured" adds a linear dependence on the blocks around: q(z_i | θ) = N(m_i + A_i θ, S_i) for
    the latents z_i of a plate given global latents θ, which is the form of every linear-Gaussian
    hierarchy's posterior, with a number of parameters that grows as the plate does and not as its
    square.

    Args:
        model: a Pyro model with continuous latents in vectorised plates.
        family: "mean-field", "low-rank", "full-rank" or "structured" (normal distributions), "iaf"
            or "spline" (flows).
        amortized: compute the distributions of the latents in the data plate from the data, or
            learn parameters for each.
        encoder: a module (B, features) -> (B, outputs), or a function (features, outputs) that
            makes one; None is an MLP. Features are all arguments with a row per datum, flattened,
            concatenated, and standardised by the first batch.
        hidden: widths of that MLP.
        depth: layers of a flow.
        rank: of "low-rank".
        init_scale: standard deviation of every latent at the start.

    Raises:
        ValueError: an unknown family; no plate that matches the data's rows; latents in the data
            plate and another one (amortised); parameters per element, and only some of them given.

    Source: Kingma & Welling 2014, arXiv:1312.6114 (amortisation); Agrawal & Domke 2021,
    "Amortized variational inference for simple hierarchical models", arXiv:2111.03144.
    """

    def __init__(
        self,
        model: Callable,
        family: str = "structured",
        amortized: bool = False,
        encoder: Any = None,
        hidden: Sequence[int] = (64, 64),
        depth: int = 2,
        rank: int = 2,
        init_scale: float = 0.1,
    ):
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}.")
        self._names = _argument_names(model)
        super().__init__(InitMessenger(init_to_median)(model))
        self.family, self.amortized = family, amortized
        self._given = (encoder,)  # not yet a part of this module
        self.hidden, self.depth, self.rank, self.init_scale = hidden, depth, rank, init_scale

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.data_plate = None
        if self.amortized:
            self.data_plate, features = self._find_data_plate(args), self._features(args)
            spread = features.std(0, correction=0)
            self.register_buffer("shift", features.mean(0))
            self.register_buffer("spread", torch.where(spread > 0, spread, 1.0))
        self._blocks = self._packed()
        self.raws = nn.ParameterDict()
        self.flows: Any = nn.ModuleDict()
        self.encoders = nn.ModuleDict()
        for i, block in enumerate(self._blocks):
            raw, context = self._start(block), 0
            if self.data_plate in block.plates:
                context = len(self.shift)
                start = raw.flatten(0, -2).mean(0)
                self.encoders[str(i)] = self._encoder(context, start).to(raw)
            else:
                self.raws[str(i)] = nn.Parameter(raw)
            if self.family in FLOWS:
                flow = layers(block.dim, self.family, self.depth, context_dim=context)
                self.flows[str(i)] = flow.to(raw)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent: site -> value."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._plates(args, kwargs)
        drawn: dict[tuple[str, ...], Tensor] = {}
        out: dict[str, Tensor] = {}
        for i, block in enumerate(self._blocks):
            context = None
            if self.data_plate in block.plates:
                ones = (1,) * (len(block.batch) - 1)  # the plate's dimension may not be the last
                context = (self._features(args) - self.shift) / self.spread
                context = context.reshape(len(context), *ones, -1)
            q = self._element(i, block, [drawn[p.plates] for p in block.parents], context)
            name = f"_{self._pyro_name}_{'_'.join(block.plates) or 'global'}"
            with ExitStack() as stack:
                for plate in block.plates:
                    stack.enter_context(plates[plate])
                u = pyro.sample(name, q, infer={"is_auxiliary": True})  # (..., plates, L)
                drawn[block.plates] = u
                out |= _unpacked(block, u)
        return out

    def _packed(self) -> list[Block]:
        """The model's latents by plates, blocks with fewer plates first."""
        groups: dict[tuple, Block] = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            frames = sorted((f for f in site["cond_indep_stack"]), key=lambda f: f.dim)
            for f in frames:
                if not self.amortized and f.full_size not in (None, f.size):
                    raise ValueError(
                        f"site {name!r}: this guide has parameters for each element of plate "
                        f"{f.name!r}, which is told {f.full_size} and given {f.size}. Fit on all "
                        "data, or use amortized=True."
                    )
            key, fn = tuple(f.name for f in frames), site["fn"]
            start = biject_to(fn.support).inv(site["value"].detach())
            group = groups.setdefault(key, Block(key, fn.batch_shape, {}, []))
            group.sites[name] = fn.support, fn.event_dim, start.shape[len(fn.batch_shape) :]
            group.starts.append(start.reshape(*group.batch, -1))
        blocks = sorted(groups.values(), key=lambda b: len(b.plates))
        for block in blocks:
            if self.data_plate in block.plates and len(block.plates) > 1:
                sites, plates = ", ".join(block.sites), ", ".join(block.plates)
                raise ValueError(
                    f"sites {sites}: they lie in plates {plates}; an amortised guide takes latents "
                    f"in plate {self.data_plate!r} alone. Declare the other dimension with "
                    ".to_event(1), or write the guide by hand."
                )
            if self.family == "structured":
                block.parents = tuple(b for b in blocks if set(b.plates) < set(block.plates))
        return blocks

    def _start(self, block: Block) -> Tensor:
        """The numbers that describe the elements at the start, (*batch, outputs)."""
        length = block.dim
        pairs = length * (length - 1) // 2
        more = {
            "full-rank": pairs,
            "structured": pairs + length * block.above,
            "low-rank": length * self.rank,
        }.get(self.family, 0)
        loc = torch.cat(block.starts, -1)
        scale = torch.full_like(loc, math.log(math.expm1(self.init_scale)))
        rest = loc.new_zeros(*block.batch, more)
        if self.family == "low-rank":  # factors of zero would stay there
            rest.normal_(0, self.rank**-0.5)
        return torch.cat([loc, scale, rest], -1)

    def _element(
        self, i: int, block: Block, above: list[Tensor], context: Tensor | None
    ) -> TorchDistribution:
        """The distribution of one block's elements."""
        raw = self.raws[str(i)] if context is None else self.encoders[str(i)](context)
        length = block.dim
        loc, scale, rest = raw.split([length, length, raw.shape[-1] - 2 * length], -1)
        scale = F.softplus(scale)
        if self.family in FLOWS:
            return flow_normal(loc, scale, self.flows[str(i)], context)
        if self.family == "mean-field":
            return dist.Normal(loc, scale).to_event(1)
        if self.family == "low-rank":
            factor = rest.unflatten(-1, (length, self.rank)) * scale.unsqueeze(-1)
            return dist.LowRankMultivariateNormal(loc, factor, scale.square())
        pairs = length * (length - 1) // 2
        if above:
            weight = rest[..., pairs:].unflatten(-1, (length, block.above))
            batch = torch.broadcast_shapes(*(u.shape[:-1] for u in above))
            theta = torch.cat([u.expand(batch + u.shape[-1:]) for u in above], -1)
            loc = loc + (weight * theta.unsqueeze(-2)).sum(-1)
        rows, columns = torch.tril_indices(length, length, -1, device=raw.device)
        lower = torch.diag_embed(torch.ones_like(scale))
        lower[..., rows, columns] = rest[..., :pairs]
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * lower)

    def _encoder(self, features: int, start: Tensor) -> nn.Module:
        """A network of the features whose output starts at `start` wherever it can."""
        (given,) = self._given
        if given is not None:
            return given if isinstance(given, nn.Module) else given(features, len(start))
        network = MLP(features, self.hidden, len(start), "silu")
        with torch.no_grad():
            network[-1].weight.mul_(0.1)  # type: ignore[operator]
            network[-1].bias.copy_(start)  # type: ignore[operator]
        return network

    def _find_data_plate(self, args: tuple) -> str:
        rows, frames = rows_of(args), self._prototype_frames.values()
        mine = [f for f in frames if f.size == rows]
        if not mine:
            there = ", ".join(f"{f.name!r} of {f.size}" for f in frames) or "none with latents"
            raise ValueError(
                f"amortized: no plate of the latents has the {rows} rows of the data (there is: "
                f"{there}). Put the latents of each datum in pyro.plate('data', size, "
                "subsample=x), or use amortized=False."
            )
        return max(mine, key=lambda f: f.dim).name

    def _features(self, args: tuple) -> Tensor:
        """All arguments with a row per datum, (B, features)."""
        rows = rows_of(args)
        mine = [a for a in args if has_rows(a, rows)]
        kind = next((a.dtype for a in mine if a.is_floating_point()), torch.get_default_dtype())
        return torch.cat([a.reshape(rows, -1).to(kind) for a in mine], -1)

    def _plates(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """The model's plates; that of the data holds the rows of this batch."""
        rows = rows_of(args)
        told = {**dict(zip(self._names, args)), **kwargs}.get("size")
        sizes = {n: (f.size, f.size) for n, f in self._prototype_frames.items()}
        if self.data_plate is not None:
            sizes[self.data_plate] = told or rows, rows
        with poutine.block():  # which rows these are is the model's to say
            return {
                name: pyro.plate(
                    name, size, subsample=torch.arange(here), dim=self._prototype_frames[name].dim
                )
                for name, (size, here) in sizes.items()
            }


def _unpacked(block: Block, u: Tensor) -> dict[str, Tensor]:
    """Point masses at the sites of a block, with the density of their transforms."""
    out = {}
    parts = u.split([math.prod(shape) for _, _, shape in block.sites.values()], -1)
    for part, (name, (support, event_dim, shape)) in zip(parts, block.sites.items()):
        free = part.reshape(u.shape[:-1] + shape)
        transform = biject_to(support)
        value = transform(free)
        density = transform.inv.log_abs_det_jacobian(value, free)
        extra = density.dim() - (value.dim() - event_dim)
        if extra:
            density = density.flatten(-extra).sum(-1)
        out[name] = pyro.sample(name, dist.Delta(value, density, event_dim))
    return out


def _argument_names(function: Callable) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []
