"""The corrected posterior: whether there is one, and its draws as a DataTree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import xarray as xr

from ...draws.datatree import datasets, gathered, stacked
from ...draws.psis import ess
from ...draws.sampler import Block, Variable, block
from ...pairs.gate import CheckedPair
from .coordinates import Blocks, chunks
from .finding import Finding
from .matching import Correction, resampled
from .tail import SHARE, good_khat

Corrections = Mapping[int, tuple[Blocks, Correction]]


def correction(
    corrections: Corrections, best: int, draws: int
) -> tuple[Finding, str | None, list[int]]:
    """What the correction achieved, how it is called, and the restarts where it can be used."""
    limit = good_khat(draws)
    above = {i: float((~(c.khat <= limit)).double().mean()) for i, (_, c) in corrections.items()}
    usable = [i for i, share in above.items() if share <= SHARE]
    c = corrections[best][1]
    k, before, moved = c.khat, c.khat_before, bool(c.moved.any())
    numbers = {
        "khat": k.numpy(), "khat_before": before.numpy(), "moved": int(c.moved.sum()),
        "ess": ess(c.log_weight).numpy(), "restarts": usable,
    }  # fmt: skip
    if len(k) == 1:
        change = f"k-hat {float(before):.2f} before and {float(k):.2f} after"
    else:
        share = float((~(before <= limit)).double().mean())
        change = f"{100 * share:.0f} % of the data above {limit:.2f} before, "
        change += f"{100 * above[best]:.0f} % after"
    if best not in usable:
        tried = "importance weights and moment matching leave"
        if not corrections[best][0].invertible:
            tried = "importance weights alone (this guide's draws cannot be moved) leave"
        text = f"none can be relied on: {tried} {change}."
        return Finding("correction", text, False, False, numbers), None, []
    how = "moment matching" if moved else "PSIS"
    text = f"moment matching helps: {change}." if moved else "importance resampling is enough."
    return Finding("correction", text, True, False, numbers), how, usable


def corrected_tree(
    sources: Sequence[CheckedPair],
    corrections: Corrections,
    draws: int,
    groups: Sequence[str],
    guide: xr.DataTree,
    seed: int,
    names: Mapping[str, Any],
) -> xr.DataTree:
    """Resampled draws of the usable restarts, and all that the model says about them.

    The groups are those of the guide's tree; `sample_stats` has log p, and khat and ess (draws) of
    the weights before resampling.
    """
    mine = [g for g in groups if not g.startswith("prior")]
    blocks_ = gathered(_chunks(sources, corrections, draws, mine, seed), draws)
    stats = blocks_["sample_stats"]
    for gone in ("log_q", "log_weight"):
        del stats[gone]
    first = next(iter(corrections.values()))[0]
    shape, axes = tuple(first.plates.values()), ("chain", *first.plates)
    for name, of in (("khat", lambda c: c.khat), ("ess", lambda c: ess(c.log_weight))):
        rows = torch.stack([of(c).reshape(shape) for _, c in corrections.values()])
        stats[name] = Variable(rows.numpy(), axes)
    trees = datasets(blocks_, **names)
    for group in ("prior", "prior_predictive", "observed_data", "constant_data"):
        if group in guide.children:
            trees[group] = guide[group].to_dataset()
    return xr.DataTree.from_dict(trees)


def _chunks(
    sources: Sequence[CheckedPair],
    corrections: Corrections,
    draws: int,
    groups: Sequence[str],
    seed: int,
) -> Iterator[tuple[int, Block]]:
    resample = {}
    for i, (_, c) in corrections.items():
        with sources[i].ready(seed):
            resample[i] = resampled(c, draws)
    any_blocks = next(iter(corrections.values()))[0]
    for start, stop in chunks(draws, any_blocks.per_draw):
        parts = []
        for i, (source, _) in corrections.items():
            with sources[i].ready(seed + 7919 * (start + 1) + i):
                given = source.values(resample[i][start:stop])
                parts.append(block(sources[i], stop - start, groups, given))
        yield start, stacked(parts)
