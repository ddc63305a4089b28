"""Pyro's distributions of a whole sequence, one time after another."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import DiscreteHMM, GaussianHMM
from pyro.ops.gaussian import gaussian_tensordot
from torch import Tensor


def log_prob_in_time(fn: Any, value: Tensor) -> Tensor | None:
    """log p(x_t | x_1 … x_(t-1)) of a hidden Markov model's data, whose sum is `log_prob`.

    Args:
        fn: a distribution; value: (..., T, *event) where it is one of sequences.

    Returns:
        (..., T), nats, by the forward algorithm or the Kalman filter; None for any other `fn`.
    """
    totals = []
    if isinstance(fn, DiscreteHMM):
        seen = fn.observation_dist.log_prob(value.unsqueeze(-1 - fn.observation_dist.event_dim))
        moves = fn.transition_logits + seen.unsqueeze(-2)  # (..., T, old, new)
        state = fn.initial_logits
        for t in range(moves.shape[-3]):
            state = torch.logsumexp(state.unsqueeze(-1) + moves[..., t, :, :], -2)
            totals.append(state.logsumexp(-1))
    elif isinstance(fn, GaussianHMM):
        moves = fn._trans + fn._obs.condition(value).event_pad(left=fn.hidden_dim)
        moves, state = moves.expand(moves.batch_shape), fn._init
        for t in range(moves.batch_shape[-1]):
            state = gaussian_tensordot(state, moves[..., t], dims=fn.hidden_dim)
            totals.append(state.event_logsumexp())
    else:
        return None
    total = torch.stack(torch.broadcast_tensors(*totals), -1)
    return torch.diff(total, dim=-1, prepend=torch.zeros_like(total[..., :1]))
