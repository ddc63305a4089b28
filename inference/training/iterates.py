"""A stretch of a run's iterates: their averages, R-hat and effective number, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BLOCKS = 8  # of a stretch; the means of the blocks are all that is kept
SEEN = 2**15  # parameters whose spread inside the blocks is kept too, at regular places
TAKEN = 512  # iterates of a stretch, about: those in between say the same

State = dict[str, Any]


def stretch(start: int, length: int) -> State:
    """A stretch of steps of which nothing was taken yet."""
    return {"start": int(start), "length": max(1, int(length)), "next": int(start),
            "counts": [0] * BLOCKS}  # fmt: skip


def take(state: State, step: int, params: Mapping[str, Tensor], whole: bool) -> None:
    """Add the iterate of a step to its block, where the step is in the stretch and one is due.

    Args:
        whole: keep the means of all parameters, and not only of those whose spread is kept.
    """
    if step < state["next"]:
        return
    state["next"] = step + max(1, state["length"] // TAKEN)
    b = min(BLOCKS - 1, (step - state["start"]) * BLOCKS // state["length"])
    flat = torch.cat([p.detach().reshape(-1) for p in params.values()])
    seen = flat[:: places(len(flat))]
    if "origin" not in state:
        # differences from the first iterate are kept: sums of squares do not cancel
        state["origin"] = (flat if whole else seen).clone()
        state["sums"] = flat.new_zeros(BLOCKS, len(state["origin"]))
        state["squares"] = flat.new_zeros(BLOCKS, len(seen))
    away = (flat if len(state["origin"]) == len(flat) else seen) - state["origin"]
    state["sums"][b] += away
    state["squares"][b] += away[:: places(len(away))].square()
    state["counts"][b] += 1


def places(size: int) -> int:
    """The distance of the parameters whose spread is kept."""
    return -(-size // SEEN)


def taken(state: State | None) -> bool:
    """Tell whether every block has an iterate."""
    return state is not None and min(state["counts"]) > 0


def averages(state: State, like: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Means of the iterates in each quarter of the stretch, and last in all of it."""
    counts = torch.tensor(state["counts"]).to(state["sums"])[:, None]
    parts = [slice(2 * i, 2 * i + 2) for i in range(BLOCKS // 2)] + [slice(0, BLOCKS)]
    return [
        unflattened(state["origin"] + state["sums"][p].sum(0) / counts[p].sum(), like)
        for p in parts
    ]


def unflattened(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One vector as parameters by name."""
    pieces = flat.split([p.numel() for p in like.values()])
    return {k: v.reshape(p.shape).to(p) for (k, p), v in zip(like.items(), pieces)}


def spread(state: State) -> dict[str, Tensor]:
    """R-hat, effective number, way and evenness of each parameter whose spread is kept, (D,).

    R-hat is that of the two halves of the stretch as chains; a way is the distance between the
    means of the first and the last quarter, where all quarters lie in one order, else 0; it is even
    where its last part is as long as its first, their ratio.

    Source: Gelman et al. 2013, "Bayesian data analysis", section 11.4 (split R-hat and effective
    number); Welandawe et al. 2022, arXiv:2203.15945, section 3.2 (of the iterates of a fit).
    """
    n = torch.tensor(state["counts"]).to(state["sums"])[:, None]
    sums, squares = state["sums"][:, :: places(state["sums"].shape[1])], state["squares"]
    half = BLOCKS // 2

    def chain(part: slice) -> tuple[Tensor, Tensor]:
        mean = sums[part].sum(0) / n[part].sum()
        return mean, (squares[part].sum(0) / n[part].sum() - mean.square()).clamp(min=0)

    (m1, v1), (m2, v2) = chain(slice(0, half)), chain(slice(half, BLOCKS))
    within, between = (v1 + v2) / 2, (m1 - m2).square() / 2
    tiny = torch.finfo(within.dtype).tiny
    rhat = ((within + between) / within.clamp(min=tiny)).sqrt()
    rhat = torch.where(between > 0, rhat, torch.ones_like(rhat))
    means = sums / n
    effective = BLOCKS * (within + between) / means.var(0).clamp(min=tiny)
    quarters = torch.stack([means[2 * i : 2 * i + 2].mean(0) for i in range(half)])
    steps = quarters.diff(dim=0)
    one_way = (steps > 0).all(0) | (steps < 0).all(0)
    way = torch.where(one_way, quarters[-1] - quarters[0], torch.zeros_like(rhat))
    even = torch.where(one_way, steps[-1] / steps[0].where(one_way, torch.ones_like(way)), 0.0)
    return {"rhat": rhat, "effective": effective, "way": way, "even": even}


def name_of(place: int, size: int, params: Mapping[str, Tensor]) -> str:
    """The parameter at a place of those whose spread is kept: `loc[3]`."""
    at, total = place * places(size), 0
    for name, p in params.items():
        if at < total + p.numel():
            index = at - total
            short = name.removeprefix("guide.").removeprefix("model.")
            return short if p.numel() == 1 else f"{short}[{index}]"
        total += p.numel()
    return "a parameter"


def size_of(params: Mapping[str, Tensor]) -> int:
    """Count the numbers that the parameters are."""
    return sum(math.prod(p.shape) for p in params.values())
