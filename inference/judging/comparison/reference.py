"""log p(x) of the batch that estimators are compared with, and whether it can be relied on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...draws.density import missing_density
from ...draws.measures import EFFECTIVE, evidence
from ...draws.psis import GOOD, ess, khat
from ...draws.sampler import Chunk, sample
from ...elbo import IWAE
from ...estimate import Estimate
from ...pairs.gate import CheckedPair
from ...weights import LogWeights, log_weights

TIGHT = 1_000, 8  # particles and draws of the bound that stands in for log p(x)
FEW_BAD = 0.05  # share of the data whose weights may be bad


def log_evidence_of(pair: CheckedPair, given: Any, seed: int) -> tuple[str, Estimate]:
    """Find log p(x) of the batch, summed: in which way, and its estimate.

    By importance sampling it is a lower bound with an error only where the weights are good
    (k-hat up to 0.7, five effective draws); else there is no estimate, and it says why.

    Raises:
        ValueError: what was given is not one number, or one with its standard error.
    """
    if given is not None:
        return "given by the user", _number_given(given)
    exact = _by_enumeration(pair)
    if exact is not None:
        return "exact sum over the discrete latents", Estimate(exact, 0.0)
    with pair.ready(seed):
        because = missing_density(pair.weights(2))
    if because:
        return because, Estimate.none(because)
    particles, repeats = TIGHT
    tight, parts = IWAE(particles), []

    def log_w(chunk: Chunk) -> tuple[Tensor, LogWeights]:
        return tight.log_w(chunk.weights), chunk.weights

    try:
        for i in range(repeats):
            drawn, weights = zip(*sample(pair, particles, log_w, seed=[seed, i]))
            parts.append(torch.cat(drawn))
    except ValueError as refusal:
        return str(refusal), Estimate.none(str(refusal))
    every = torch.cat(parts).reshape(particles * repeats, -1).double()  # (K, data)
    values = torch.stack([weights[0].total(tight.per_datum(p.double())) for p in parts])
    if because := _bad(every):
        return because, Estimate.none(because)
    return f"IWAE({particles}), a lower bound, mean of {repeats} draws", Estimate.of(values)


def _bad(log_w: Tensor) -> str:
    """Why importance weights (K, B) say too little of log p(x); empty where they do not."""
    if log_w.shape[1] == 1:
        return evidence(log_w).because
    bad = (khat(log_w) > GOOD) | (ess(log_w) < EFFECTIVE)
    share = float(bad.double().mean())
    if share <= FEW_BAD:
        return ""
    few = f"fewer than {EFFECTIVE:.0f} effective draws of {len(log_w):,}"
    return (
        f"importance weights of {100 * share:.0f} % of the data are bad (k-hat above {GOOD}, or "
        f"{few}); give reference=..., or see evaluate(..., ais=True)"
    )


def _number_given(given: Any) -> Estimate:
    value, se = given if isinstance(given, tuple) and len(given) == 2 else (given, 0.0)
    try:
        one, error = (torch.as_tensor(v, dtype=torch.float64).squeeze() for v in (value, se))
    except (TypeError, ValueError, RuntimeError):
        one = error = torch.zeros(0)
    if one.dim() or error.dim() or not bool(torch.isfinite(one) & (error >= 0)):
        shape = f" of shape {tuple(given.shape)}" if torch.is_tensor(given) else f" {given!r}"
        raise ValueError(
            "reference: expected log p(x) of the batch, summed over its rows, in nats: one number, "
            f"or (number, standard error); got{shape}. Sum it: reference=log_px.sum()."
        )
    return Estimate(float(one), float(error))


def _by_enumeration(pair: CheckedPair) -> float | None:
    """log p(x) where the model's latents are few and discrete, else None."""
    with pair.ready(0):
        latents = [t for t in pair.weights().guide.values() if not t.observed]
        if not all(getattr(t.fn, "has_enumerate_support", False) for t in latents):
            return None
        if any(t.fn.event_dim for t in latents):
            return None
        if math.prod(len(t.fn.enumerate_support(expand=False)) for t in latents) > 2**16:
            return None

        def nothing(*args: Any, **kwargs: Any) -> None:
            pass

        alone = log_weights(pair.model, nothing, *pair.args, nesting=pair.nesting, **pair.kwargs)
    return float(alone.elbo()) if all(t.observed for t in alone.model.values()) else None
