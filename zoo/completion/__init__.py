"""Completion: draws of the rest of x given any part of it, and log p(rest | part).

`complete(model, x, given)` asks what the model offers and takes the sharpest way there is:

    mixtures of Gaussians         the conditional mixture, exactly             `gaussians`
    binary autoregressive         a particle filter along the order            `filters`
    diffusion                     a particle filter along the noise            `filters`
    latents and a guide           Metropolis within Gibbs                      `chains`
    a density (flows)             annealing from a Gaussian conditional        `annealing`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from inference.estimate import Estimate
from inference.randomness import forked

from . import annealing, chains, filters, gaussians

HALVES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Completion:
    """Draws of x that share the given part.

    Attributes:
        draws: (K, B, D), equally weighted; the given part is x's own.
        given: bool, (D,).
        log_prob: log p(rest | part) of x's own rest, nats, (B,); None where the model has none.
        se: its standard error, (B,); zero where it is exact.
        how: the way it was made, in words.
    """

    draws: Tensor
    given: Tensor
    log_prob: Tensor | None
    se: Tensor | None
    how: str

    def mean_log_prob(self) -> Estimate:
        """The mean of log p(rest | part) over rows, nats per datum, with its standard error."""
        if self.log_prob is None:
            return Estimate.none("the model has no density of a part of x")
        return Estimate.of(self.log_prob.double())


def complete(
    model: Any, x: Tensor, given: Tensor, *conditions: Tensor, draws: int = 64, seed: int = 0
) -> Completion:
    """Draw the rest of each row of x given a part of it.

    Args:
        model: a fitted model: a pair, a density, a distribution, a diffusion.
        x: data, (B, D); of its rest only log p(rest | part) is told.
        given: bool, (D,), true for the columns that are given.
        conditions: further arguments of the model, such as labels (B,).
        draws: K for each row, at least 8.
        seed: of the draws.

    Raises:
        ValueError: nothing or everything is given; too few draws; the model has no way to be
            conditioned on a part of x.
    """
    if given.dtype != torch.bool or given.shape != x.shape[1:]:
        raise ValueError(
            f"given: expected {x.shape[1]} bools, one for each column of x, got {given.dtype} of "
            f"shape {tuple(given.shape)}."
        )
    if given.all() or not given.any():
        raise ValueError(
            f"given: expected a part of the {len(given)} columns, got "
            f"{'all' if given.all() else 'none'} of them. Give some, and leave some to draw."
        )
    if draws < 8:
        raise ValueError(f"draws: expected at least 8, got {draws}: weights need some to choose.")
    with forked(seed), torch.no_grad():
        if (mixture := gaussians.mixture_of(model)) is not None:
            found = gaussians.complete(*mixture, x, given, draws)
            return Completion(*found[:1], given, *found[1:], "exactly")
        if hasattr(model, "conditionals"):
            found = filters.along_the_order(model, x, given, draws)
            return Completion(*found[:1], given, *found[1:], "by a particle filter along the order")
        if hasattr(model, "denoiser"):
            made = filters.along_the_noise(model, x, given, draws)
            return Completion(made, given, None, None, "by a particle filter along the noise")
        if hasattr(model, "log_prob") and not isinstance(model, Distribution):
            found = annealing.complete(model, x, given, draws)
            return Completion(*found[:1], given, *found[1:], "by annealing from a Gaussian")
        if hasattr(model, "guide") and hasattr(model, "reconstruct"):
            found = chains.complete(model, x, given, conditions, draws)
            return Completion(*found[:1], given, *found[1:], "by Metropolis within Gibbs")
    raise ValueError(
        f"{type(model).__name__} cannot be completed: it has neither a density, nor latents with a "
        "guide, nor an order in which its columns are drawn."
    )


def part_of(spec: str, data_dim: int, image_shape: tuple[int, int, int] | None) -> Tensor:
    """Return the columns that a word or a list names, as bools (D,).

    Args:
        spec: `left`, `right`, `top` or `bottom` half of an image, or columns counted from 1, such
            as `1-3,7`.

    Raises:
        ValueError: the word is none of these, a column does not exist, the set has no images.
    """
    given = torch.zeros(data_dim, dtype=torch.bool)
    if spec in HALVES:
        if image_shape is None:
            raise ValueError(
                f"--given {spec}: these data are no images; name columns, as in 1-3,7."
            )
        side = given.view(image_shape)
        _, h, w = image_shape
        across = slice(None, w // 2) if spec == "left" else slice(w // 2, None)
        down = slice(None, h // 2) if spec == "top" else slice(h // 2, None)
        if spec in ("left", "right"):
            side[:, :, across] = True
        else:
            side[:, down] = True
        return given
    try:
        for part in spec.split(","):
            first, _, last = part.partition("-")
            ends = int(first), int(last or first)
            if not 1 <= ends[0] <= ends[1] <= data_dim:
                raise ValueError
            given[ends[0] - 1 : ends[1]] = True
    except ValueError:
        raise ValueError(
            f"--given: expected {', '.join(HALVES)} or columns from 1 to {data_dim}, such as "
            f"1-3,7, got {spec!r}."
        ) from None
    return given
