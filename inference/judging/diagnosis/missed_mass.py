"""A check for a part of the posterior where the guide never goes, which weights cannot show."""

from __future__ import annotations

import math

import torch

from ...draws.measures import evidence_error, log_evidence
from ...draws.psis import EQUAL
from ...results.finding import Finding
from .coordinates import Blocks

DRAWS = 4_000
MISSED = 0.1  # nats of log p(x) that may lie beyond
ERRORS = 3.0


def beyond(source: Blocks) -> Finding | None:
    """Look for a part of the posterior around the guide's draws that these do not reach.

    The draws are spread about their mean by 1 + 1/√d: those are draws from a wider density, whose
    weights estimate log p(x) too, from places where the guide may have no density at all. Half of
    a posterior has equal weights, and they tell nothing about the other half; this can.

    Returns:
        None where there is one posterior per datum, or the guide's density at other places is not
        known.

    Source: Owen & Zhou 2000, "Safe and effective importance sampling", section 2 (the defensive
    density); Paananen et al. 2021, arXiv:1906.00980, section 3 (affine maps of draws).
    """
    count, parts, dim = source.u.shape
    if parts != 1 or not source.invertible:
        return None
    u = source.u[torch.linspace(0, count - 1, min(count, DRAWS)).long()]
    log_q = source.log_q[torch.linspace(0, count - 1, min(count, DRAWS)).long()]
    wider = 1 + 1 / math.sqrt(dim)
    mean = u.mean(0)
    log_p, _ = source.densities(mean + wider * (u - mean))
    raw = (log_p - log_q + dim * math.log(wider)).nan_to_num(nan=-math.inf)
    own = source.log_p - source.log_q
    if not bool((raw > -math.inf).any()):
        return None
    missed = float(log_evidence(raw) - log_evidence(own))
    error = math.hypot(float(evidence_error(raw)), float(evidence_error(own)))
    numbers = {"missed": missed, "error": error, "wider": wider}
    good = not missed > max(MISSED, ERRORS * error)
    text = f"draws spread {wider:.2f} times as wide find log p(x) {missed:+.2f} ± {error:.2f} nats"
    if not good:
        equal = float(own.max() - own.min()) < EQUAL
        text += " higher: a part of the posterior lies where the guide never goes"
        text += ", of which its equal weights say nothing" if equal else ""
    return Finding.of("beyond the draws", f"{text}.", good, True, numbers)
