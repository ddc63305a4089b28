"""Doubts about draws that their weights do not raise, and the evidence of trusted draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..draws import measures
from ..draws.joint import LogJoint
from ..draws.psis import GOOD, psis
from ..estimate import Estimate
from ..judging.diagnosis import Diagnosis
from ..results.finding import Finding
from ..weights.sites import is_flat

UNSEEN = 0.02  # of the posterior's mass, seen from the paths, that the draws may miss


def other_modes(seen: Tensor, drawn: Tensor | None) -> Finding | None:
    """Find mass that the paths saw and the draws do not reach: another mode.

    The draws from the paths' Gaussians are importance-resampled, so they have the posterior's
    shares of every mode that a path found. Outside is what lies further from the draws' mean,
    in their own covariance, than any of them.

    Args:
        seen: (S, D), of the paths, and drawn: those of a guide; on the real line.
    """
    if drawn is None or len(seen) == 0 or len(drawn) < 2 * drawn.shape[1]:
        return None
    mean = drawn.mean(0)
    centred = drawn - mean
    low, bad = torch.linalg.cholesky_ex(centred.T @ centred / len(drawn))
    if bad:
        return None

    def distance(u: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(low, (u - mean).T, upper=False).norm(dim=0)

    share = float((distance(seen) > 1.1 * distance(drawn).max()).double().mean())
    if share <= UNSEEN:
        return None
    what = (
        f"about {100 * share:.0f} % of the posterior's mass that the paths found lies where "
        "the draws never are: there is another mode"
    )
    return Finding.of("other modes", what, False, True, {"share": share})


def supported(diagnosis: Diagnosis) -> Finding:
    """Check that the weights carry spreads too: k-hat of w (z - mean)², in the latents' own space.

    Weights good enough for a mean may not be so for the variance of a latent with a heavy tail.

    Source: Vehtari et al. 2024, arXiv:1507.02646, section 3.2 (k-hat of w h for a function h).
    """
    made = diagnosis.evidence.get("correction")
    if made is None:
        return Finding.of("spreads", "their weights could not be looked at.")
    weight = made.log_weight  # (S, B), smoothed and normalised
    heaviest, where = -math.inf, ""
    for name, value in made.source.values(made.u).items():
        z = value.reshape(len(value), -1).double()
        w = weight if weight.shape[1] == z.shape[1] else weight[:, :1]
        centred = (z - (w.exp() * z).sum(0)).abs().clamp(min=1e-300)
        raw = made.raw if w is weight else made.raw[:, :1]
        k = float(psis(raw + 2 * centred.log())[1].max())
        if k > heaviest:
            heaviest, where = k, name
    text = f"k-hat of w (z - mean)² is at most {heaviest:.2f} ({where}; limit {GOOD})."
    return Finding.of("spreads", text, heaviest <= GOOD, True, {"khat": heaviest})


def evidence(joint: LogJoint, diagnosis: Diagnosis | None, trusted: bool) -> Estimate:
    """log p(x) of the trusted draws' weights."""
    weights = joint.weights(torch.zeros(1, joint.dim, dtype=joint.dtype))
    flat = [n for n, t in weights.model.items() if is_flat(t.fn)]
    if flat:
        return Estimate.none(f"the prior of {', '.join(flat)} is improper")
    if not trusted or diagnosis is None:
        return Estimate.none("the posterior is not trusted")
    made = diagnosis.evidence.get("correction")
    if made is None:
        return Estimate.none("its weights could not be judged")
    raw = made.raw  # (S, B)
    each = [measures.evidence(raw[:, [b]]) for b in range(raw.shape[1])]
    if lost := [e for e in each if not e]:
        return Estimate.none(lost[0].because)
    error = math.hypot(*(e.se or 0.0 for e in each))
    return Estimate(sum(e.value for e in each if e.value is not None), error)
