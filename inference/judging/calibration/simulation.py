"""Data sets that the model makes, and what a guide says about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...draws.arrays import is_same
from ...draws.sampler import sample, sample_each
from ...pairs.gate import CheckedPair
from ...training.many import fit_many
from ...weights import LogWeights, Term
from ...weights.simulation import is_computed, is_latent, values

Sites = dict[str, Tensor]


@dataclass
class DataSets:
    """R data sets from a model.

    Attributes:
        truths: site -> (R, ...), the latents that made them.
        args: the pair's arguments; those in `stacked` have a leading axis of R.
        local: whether a data set is one row of the data plate, so that one run has them all.
    """

    truths: Sites
    args: tuple
    stacked: tuple[int, ...]
    local: bool

    def __len__(self) -> int:
        return len(next(iter(self.truths.values())))


def simulated(chain: CheckedPair, datasets: int) -> DataSets:
    """Latents from the prior, and data given them. Call it inside `chain.ready(seed)`.

    Where all sites lie in the data plate a data set is one datum, and other arguments (labels)
    take the rows of those given, over and over.

    Raises:
        ValueError: the model observes something that is not one of its arguments as it stands.
    """
    local = any(p.dim == -1 and p.size == chain.rows for p in chain.weights(1).plates)
    if local:
        chain = chain.take(torch.arange(datasets) % chain.rows)
    k = 1 if local else datasets
    terms, observed = chain.simulate(k)
    drawn = {n: values(t, k, chain.nesting)[0] for n, t in terms.items()}
    if local:
        drawn = {n: v[0] for n, v in drawn.items()}
    args_, stacked = list(chain.args), []
    for name, seen in observed.items():
        i = next((i for i, a in enumerate(chain.args) if is_same(a, seen)), None)
        if i is None or drawn[name].shape[not local :] != chain.args[i].shape:
            raise ValueError(
                f"site {name!r}: what the model observes there is not one of its arguments as it "
                "stands, so simulated data cannot take its place. Observe the argument itself."
            )
        args_[i] = drawn[name].to(chain.args[i].dtype)
        stacked.append(i)
    truths = {
        n: drawn[n]
        for n, t in terms.items()
        if n not in observed and (is_latent(t) or is_computed(t))
    }
    return DataSets(truths, tuple(args_), tuple(stacked), local)


def posteriors(
    chain: CheckedPair, sets: DataSets, draws: int, fitting: Mapping[str, Any] | None, seed: int
) -> Sites:
    """The guide's draws for every data set: site -> (R, draws, ...).

    Args:
        fitting: keywords of `fit_many`, which fits the guide to every data set; None asks the
            guide as it is.
    """
    if sets.local:
        rows = replace(chain, args=sets.args, kwargs=dict.fromkeys(chain.kwargs, len(sets)))
        parts = list(sample(rows, draws, lambda chunk: _sites(chunk.weights), seed=seed))
        return {n: torch.cat([p[n] for p in parts]).transpose(0, 1) for n in parts[0]}
    if fitting is None:
        pair, buffers, own = chain.pair, chain.buffers, None
        params = {k: p.detach().requires_grad_() for k, p in chain.params.items()}  # vmap cannot
    else:
        many = fit_many(
            chain.model, chain.guide, sets.args, stacked=sets.stacked, jitter=0.0, seed=seed,
            check=False, **fitting,
        )  # fmt: skip
        if many.stopped == "interrupted":
            raise KeyboardInterrupt
        pair, params, buffers, own = many.first.pair_, many.params, many.variables.buffers, 0
    every = replace(chain, pair=pair, params=params, buffers=buffers, args=sets.args)
    vary = tuple(0 if i in sets.stacked else None for i in range(len(sets.args)))
    return sample_each(every, len(sets), draws, _sites, axes=(own, own, vary), seed=seed)


def _sites(weights: LogWeights) -> Sites:
    """Draws of the guide, and what the model computes from them: site -> (K, *plates, *event)."""

    def wanted(term: Term) -> bool:
        return is_computed(term) or (is_latent(term) and term.name in weights.guide)

    return {
        n: values(t, weights.particles, weights.nesting)[0]
        for n, t in weights.model.items()
        if wanted(t)
    }
