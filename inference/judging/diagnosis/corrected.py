"""The corrected posterior: whether there is one, and its draws as a DataTree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr

from ...draws.arrays import Variable, gathered
from ...draws.datatree import datasets, side_by_side
from ...draws.psis import ess
from ...pairs.gate import CheckedPair
from ...randomness import forked
from ...results.finding import Finding
from .coordinates import Blocks
from .matching import Correction, resampled
from .tail import SHARE, good_khat

Corrections = Mapping[int, tuple[Blocks, Correction]]


def correction(
    corrections: Corrections, best: int, draws: int
) -> tuple[Finding, str | None, list[int]]:
    """Judge the correction: what it achieved, its name, and the restarts where it can be used."""
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
        return Finding.of("correction", text, False, False, numbers), None, []
    how = "moment matching" if moved else "PSIS"
    text = f"moment matching helps: {change}." if moved else "importance resampling is enough."
    return Finding.of("correction", text, True, False, numbers), how, usable


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
    chains = []
    for i, (blocks, c) in corrections.items():
        with forked(seed):
            given = blocks.values(resampled(c, draws))
        chains.append({"pair": sources[i], "seed": [seed, 1, i], "given": given})
    blocks_ = gathered(side_by_side(chains, draws, mine), draws)
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
