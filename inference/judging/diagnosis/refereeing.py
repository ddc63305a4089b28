"""The No-U-Turn sampler as a referee of a fitted guide, or of its corrected draws."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.autoguide import AutoContinuous

from ...draws.joint import LogJoint
from ...pairs.gate import CheckedPair
from ...randomness import forked
from ...results.finding import Finding
from ..referee.verdict import Referee, refereed
from .correction import Correction, resampled

MOST = 4_000  # draws that are judged
SECONDS = 120.0


def refereed_guide(
    pair: CheckedPair, made: Correction | None, how: str | None, seed: int
) -> tuple[Finding, Referee | None]:
    """Let the referee judge what would be handed out: the corrected draws where there are some.

    Args:
        pair: at its parameters.
        made: its draws on the real line, and their weights; None where there are none.
        how: the correction that can be relied on, or None.
        seed: of the chains.
    """
    if made is None or made.u.shape[1] != 1:
        why = "the guide's draws have no coordinates" if made is None else "each datum has its own"
        return Finding.of("referee", f"none was asked, because {why}."), None
    with pair.bound():
        try:
            joint = LogJoint(pair.model, pair.args, pair.kwargs)
        except (ValueError, NotImplementedError) as why:
            said = str(why).splitlines()[0]
            return Finding.of("referee", f"none was asked, because {said}", None), None
        order = [made.source.names.index(n) for n in joint.names if n in made.source.names]
        if len(order) != len(joint.names):
            return Finding.of("referee", "none was asked, because the latents differ."), None
        with forked(seed):
            drawn = resampled(made, MOST) if how else made.source.u[:MOST]
        u = drawn[:, 0][:, torch.tensor(order)]
        return refereed(joint, u, guide=posterior_of(pair.guide), seconds=SECONDS, seed=seed)


def posterior_of(guide: Any) -> Any:
    """The distribution of an autoguide's packed latents; None of any other guide."""
    if not isinstance(guide, AutoContinuous):
        return None
    try:
        return guide.get_posterior()
    except (NotImplementedError, TypeError):
        return None
