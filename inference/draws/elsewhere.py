"""Draws that were made elsewhere: by Pyro's MCMC, by `Predictive`, or by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, Predictive
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ..pairs.arguments import checked_arguments
from ..pairs.gate import CheckedPair
from ..pairs.pair import Pair, own_copy
from ..weights.sites import dry_run, is_discrete, is_latent
from .arrays import Tree, Variable

OF_A_GUIDE = ("log_q", "log_weight")  # what draws without a guide have none of


@dataclass(frozen=True)
class GivenDraws:
    """A model, and draws of its latents in place of a guide.

    Attributes:
        pair: the model; its "guide" draws the latents at the values that it is given.
        values: site -> (chains, draws, ...), as in `Term.value`.
        predicted: observed site -> (chains, draws, ...), where they were drawn too.
        diverging: (chains, draws), of a Hamiltonian sampler, or None.
    """

    pair: CheckedPair
    values: dict[str, Tensor]
    predicted: dict[str, Tensor]
    diverging: np.ndarray | None

    @property
    def shape(self) -> tuple[int, int]:
        """The number of chains, and of draws in each."""
        chains, draws = next(iter(self.values.values())).shape[:2]
        return chains, draws

    def completed(
        self, parts: Iterator[tuple[slice, list[Tree]]]
    ) -> Iterator[tuple[slice, list[Tree]]]:
        """Take out of the trees of chunks what only a guide has, and add what the draws bring."""
        for here, trees in parts:
            for i, tree in enumerate(trees):
                stats = tree.get("sample_stats", {})
                for name in OF_A_GUIDE:
                    stats.pop(name, None)
                if stats and self.diverging is not None:
                    stats["diverging"] = Variable(self.diverging[i, here], ())
                drawn = tree.get("posterior_predictive", {})
                for name in self.predicted.keys() & drawn.keys():
                    known = self.predicted[name][i, here]
                    drawn[name] = Variable(known.reshape(drawn[name].array.shape), drawn[name].dims)
            yield here, trees


def given_draws(source: Any, data: tuple) -> GivenDraws | None:
    """Return the draws that a user brings, or None where it is a run or a pair.

    Args:
        source: a `pyro.infer.MCMC` that has run, a `pyro.infer.Predictive` with posterior samples,
            or a model; the latter is followed by a dict of samples, site -> (draws, ...) or
            (chains, draws, ...).
        data: the model's arguments, or one tuple of them.

    Raises:
        TypeError: MCMC without a model, or that has not run.
        ValueError: samples of no site of the model, not of all its latents, or of other shapes.
    """
    diagnostics: Mapping[str, Any] = {}
    grouped = not isinstance(source, Predictive)
    if isinstance(source, MCMC):
        model = getattr(source.kernel, "model", None)
        if model is None or not getattr(source, "_samples", None):
            raise TypeError(
                "expected an MCMC of a model that has run, got one "
                f"{'of a potential function' if model is None else 'that has not run'}. "
                "Write MCMC(NUTS(model), ...), and mcmc.run(*data) first."
            )
        samples, diagnostics = source.get_samples(group_by_chain=True), source.diagnostics()
    elif isinstance(source, Predictive):
        if not source.posterior_samples:
            return None
        model, samples = source.model, source.posterior_samples
    elif callable(source) and data and isinstance(data[0], Mapping):
        model, samples, data = source, data[0], data[1:]
    else:
        return None
    args = checked_arguments(model, data[0] if len(data) == 1 else data)
    return _matched(model, args, samples, grouped, diagnostics.get("divergences"))


def _matched(
    model: Callable, args: tuple, samples: Mapping[str, Any], grouped: bool,
    divergences: Mapping | None,
) -> GivenDraws:  # fmt: skip
    """Match samples, which may be grouped by chain, with the model's sites."""
    model, _ = own_copy(model, _nothing)
    tensors = {n: torch.as_tensor(v) for n, v in samples.items()}
    sampled = dry_run(model, *args)
    latent = {n: s for n, s in sampled.items() if is_latent(s)}
    if unknown := [n for n in tensors if n not in sampled]:
        raise ValueError(
            f"samples: the model has no site {unknown[0]!r}: expected some of {', '.join(sampled)}."
        )
    if missing := [n for n, s in latent.items() if n not in tensors and not is_discrete(s)]:
        raise ValueError(
            f"samples: expected draws of every latent of the model, got none of {missing[0]!r}. "
            "Add them: Predictive needs return_sites with all of them."
        )
    shapes = {n: tuple(torch.as_tensor(sampled[n]["value"]).shape) for n in tensors if n in sampled}
    chained = grouped and all(tensors[n].dim() - len(shape) == 2 for n, shape in shapes.items())
    shaped = {n: _in_chains(n, tensors[n], shape, chained) for n, shape in shapes.items()}
    if len({v.shape[:2] for v in shaped.values()}) > 1:
        got = ", ".join(f"{n} {tuple(v.shape[:2])}" for n, v in shaped.items())
        raise ValueError(f"samples: expected as many chains and draws of each site, got {got}.")
    values = {n: v for n, v in shaped.items() if n in latent}
    if not values:
        raise ValueError(f"samples: expected draws of {', '.join(latent)}, got none of them.")
    guide = poutine.block(_DrawnFrom(values)(model), expose=list(values))
    pair = Pair(model, guide, args, present=True)
    way = pair.find_way(pair.params, pair.buffers, args, {})
    device = next(iter(values.values())).device
    checked = CheckedPair(pair, args, {}, dict(pair.params), dict(pair.buffers), device, way)
    padded = {}
    for n, v in values.items():
        batch = len(getattr(latent[n]["fn"], "batch_shape", ()))
        padded[n] = v.reshape(*v.shape[:2], *(1,) * (pair.nesting - batch), *v.shape[2:])
    return GivenDraws(
        checked,
        padded,
        {n: v for n, v in shaped.items() if n not in latent},
        None if divergences is None else _diverging(divergences, *v.shape[:2]),
    )


class _DrawnFrom(Messenger):
    """Latents are drawn from their samples, whatever plates they are in."""

    def __init__(self, samples: Mapping[str, Tensor]):
        super().__init__()
        self.samples = samples

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.samples and not msg["is_observed"]:
            samples = self.samples[msg["name"]].flatten(0, 1)
            msg["fn"] = _OneOf(samples, samples.dim() - 1 - msg["fn"].event_dim)


class _OneOf(dist.TorchDistribution):
    """One of n values shaped (*batch, *event), drawn anew for each axis that it is expanded by."""

    arg_constraints: Any = MappingProxyType({})

    def __init__(self, values: Tensor, batch_dim: int, front: tuple[int, ...] = ()):
        self.values, self.batch_dim = values, batch_dim
        shape = values.shape[1:]
        batch = torch.Size((*front, *shape[:batch_dim]))
        super().__init__(batch, shape[batch_dim:], validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _OneOf:
        """The same values; the last axes of the batch are theirs."""
        front = tuple(batch_shape)[: len(batch_shape) - self.batch_dim]
        return _OneOf(self.values, self.batch_dim, front)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """(*sample_shape, *batch, *event)."""
        front = (*sample_shape, *self.batch_shape[: len(self.batch_shape) - self.batch_dim])
        return self.values[torch.randint(len(self.values), front)]

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero: these draws come without a density."""
        return value.new_zeros(self.batch_shape)


def _in_chains(name: str, value: Tensor, shape: tuple[int, ...], chained: bool) -> Tensor:
    """Samples of a site as (chains, draws, *shape)."""
    front = value.shape[:2] if chained else (1, *value.shape[:1])
    if value.numel() != math.prod((*front, *shape)) or value.shape[-len(shape) :] != shape != ():
        raise ValueError(
            f"samples: site {name!r} has shape {shape} in the model: expected samples shaped "
            f"(draws, *{shape}) or (chains, draws, *{shape}), got {tuple(value.shape)}."
        )
    return value.reshape(*front, *shape)  # Predictive leaves axes of length one between them


def _diverging(divergences: Mapping[str, Any], chains: int, draws: int) -> np.ndarray:
    """Pyro's indices of divergent transitions as one truth value for each draw."""
    out = np.zeros((chains, draws), bool)
    for i, indices in enumerate(divergences.values()):
        out[i, list(indices)] = True
    return out


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A guide of nothing."""
