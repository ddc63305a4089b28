"""Metropolis within Gibbs: for any pair whose guide infers the latents of whole rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from inference.weights import log_q_at, log_weights, no_validation

STEPS = 200  # moves of each chain


def complete(
    model: Any, x: Tensor, given: Tensor, conditions: tuple, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (K, B, D), log p(rest | part) and its error, (B,) each, of a pair with latents.

    A chain holds z and the rest. It proposes z' ~ q(z | part, rest), accepts by the Metropolis-
    Hastings ratio of the pair's own log weights, and draws the rest from p(x | z) anew: its
    stationary distribution is p(z, rest | part), however poor the guide (Mattei & Frellsen 2018,
    arXiv:1802.04826, algorithm 1). K chains run beside each other, and their ends are the draws.

    log p(part) is importance-sampled from the mixture of the guides at all K completions of the
    row, log p(x) from the guide at x; both are bounds from below in the mean.

    Raises:
        ValueError: the likelihood does not factorise over columns.
    """
    with no_validation():
        return _run(model, x, given, conditions, draws)


def _run(
    model: Any, x: Tensor, given: Tensor, conditions: tuple, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(x)
    flat = x.repeat(draws, 1)  # chain-major: (K B, D)
    more = tuple(c.repeat(draws, *[1] * (c.ndim - 1)) for c in conditions)

    def weigh(now: Tensor, z: dict | None = None) -> Any:
        return log_weights(model.model, model.guide, now, *more, nesting=1, given=z)

    # the first rest is a draw from the model's prior predictive
    now = torch.where(given, flat, model.sample(len(flat)).to(flat))
    z, accepted = None, None
    for _ in range(STEPS):
        proposed = weigh(now)
        values = {n: t.value for n, t in proposed.guide.items()}
        if z is None:
            z = values
        else:
            ratio = proposed.log_weight()[0] - weigh(now, z).log_weight()[0]  # (K B,)
            accepted = torch.rand_like(ratio).log() < ratio
            z = {n: _where(accepted, v, z[n]) for n, v in values.items()}
        rest = weigh(now, z).model["x"].fn.sample().reshape(flat.shape)
        now = torch.where(given, flat, rest.to(flat))

    w = log_weights(model.model, model.guide, x, *conditions, particles=draws).log_weight()
    log_x, error_x = _evidence(w)
    log_part, error_part = _evidence(_of_part(model, now, more, weigh(now), given, draws, rows))
    out = now.reshape(draws, rows, -1)
    return out, log_x - log_part, (error_x**2 + error_part**2).sqrt()


def _of_part(
    model: Any, now: Tensor, more: tuple, weights: Any, given: Tensor, draws: int, rows: int
) -> Tensor:
    """log p(part, z_k) - log 1/K Σ_s q(z_k | completion s), (K, B)."""
    fn = weights.model["x"].fn
    if not hasattr(fn, "base_dist") or fn.base_dist.batch_shape[-1:] != now.shape[-1:]:
        raise ValueError(
            f"the likelihood {type(fn).__name__} does not factorise over columns: log p(part | z) "
            "is not known."
        )
    columns = fn.base_dist.log_prob(now).reshape(draws, rows, -1)
    log_p = columns[..., given].sum(-1)
    for t in weights.model.values():
        if t.is_latent:
            log_p = log_p + t.log_prob.reshape(draws, rows)
    mixed = []  # each completion's latents under the guides of all, a shift at a time
    for shift in range(draws):
        moved = {
            n: t.value.reshape(draws, rows, -1).roll(shift, 0).reshape(t.value.shape)
            for n, t in weights.guide.items()
        }
        q = log_q_at(model.guide, moved, now, *more, nesting=1)
        log_q = torch.stack([t.log_prob.reshape(draws, rows) for t in q.values()]).sum(0)
        mixed.append(log_q.roll(-shift, 0))  # of z_k under the guide at completion k + shift
    return log_p - (torch.stack(mixed).logsumexp(0) - math.log(draws))


def _where(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    inner = new.ndim - 1 if new.shape[0] == len(accepted) else new.ndim - 2
    return torch.where(accepted.reshape(-1, *[1] * inner), new, old)


def _evidence(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the mean weight (K, B) and its error to first order, (B,) each."""
    mean = log_w.logsumexp(0) - math.log(len(log_w))
    return mean, (log_w - mean).exp().std(0) / math.sqrt(len(log_w))
