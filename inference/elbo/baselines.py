"""Baselines of a site's own: Pyro's `infer={"baseline": ...}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..pairs.options import AVERAGE, BASELINES, nearest, number
from ..weights import Term


def baseline_of(
    site: Term, signal: Tensor, own: dict[str, Tensor]
) -> tuple[Tensor | float, Tensor | float]:
    """The number that a site's signal is compared with, and the loss by which that is learned.

    - `nn_baseline`, `nn_baseline_input`: a network, fitted to the signal by least squares;
    - `use_decaying_avg_baseline`, `baseline_beta` (0.9): the mean signal so far, the older ones
      weighing `beta` times as much at each step. It is a part of a fit's state;
    - `baseline_value`: a tensor.

    Args:
        site: with its options; `signal`: (K, *plates), what its score is multiplied by.
        own: running means of an estimator that no pair is bound to (plain `pyro.infer.SVI`).

    Raises:
        ValueError: an unknown option; a baseline of another shape than the signal's.

    Source: Mnih & Gregor 2014, Neural variational inference and learning, arXiv:1402.0030,
    section 2.3; Pyro's `TraceGraph_ELBO`.
    """
    options = site.infer.get("baseline") or {}
    for name in options:
        if name not in (*BASELINES, AVERAGE):
            raise ValueError(
                f"site {site.name!r}: infer={{'baseline': ...}} has {name!r}: expected one of "
                f"{', '.join(BASELINES)}.{nearest(name, BASELINES)}"
            )
    signal = signal.detach()
    value: Any = 0.0
    if options.get("use_decaying_avg_baseline"):
        beta = number("baseline_beta", options.get("baseline_beta", 0.9), 0.0, 1.0)
        mean = options.get(AVERAGE)
        if mean is None:
            mean = own.setdefault(site.name, signal.new_zeros(()))
        value = mean.clone()
        now = signal.mean()
        with torch.no_grad():
            batched = torch._C._functorch.is_batchedtensor
            if batched(mean) or not batched(now):  # else many draws at one state, which stays
                mean.copy_(beta * mean + (1 - beta) * now)
    loss: Tensor | float = 0.0
    if (network := options.get("nn_baseline")) is not None:
        guess = _of_shape(site, network(_detached(options.get("nn_baseline_input"))), signal)
        loss = (signal - value - guess).square().sum()
        value = value + guess.detach()
    if (given := options.get("baseline_value")) is not None:
        value = value + _of_shape(site, torch.as_tensor(given), signal).detach()
    return value, loss


def same_baselines(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two runs of a guide, at other values of a site, give it the same baseline."""
    for name in ("nn_baseline_input", "baseline_value"):
        a, b = one.get(name), other.get(name)
        if torch.is_tensor(a) and torch.is_tensor(b) and not torch.equal(a, b):
            return False
    network = one.get("nn_baseline")
    if network is None:
        return True
    with torch.no_grad():
        a, b = (torch.as_tensor(network(x.get("nn_baseline_input"))) for x in (one, other))
    return a.shape == b.shape and bool(torch.allclose(a, b, equal_nan=True))


def _detached(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_detached(v) for v in value)
    return value.detach() if torch.is_tensor(value) else value


def _of_shape(site: Term, value: Tensor, signal: Tensor) -> Tensor:
    """The baseline, one number for each element of the signal or fewer."""
    try:
        fits = torch.broadcast_shapes(value.shape, signal.shape) == signal.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"site {site.name!r}: its baseline has shape {tuple(value.shape)}: expected what "
            f"broadcasts to {tuple(signal.shape)}, (particles, plates): one number per datum, as "
            "net(x).squeeze(-1)."
        )
    return value
