"""The ascent that EM and variational Bayes share: the start, the loop, and the blocks.

Everything is batched over R restarts, so that R fits are one tensor program, and is done in
float64 on the device of the data.

Blocks let one set of formulas serve both kinds of covariance: a full covariance is G = 1 block of
P = D dimensions, a diagonal one is G = D independent blocks of P = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COVARIANCES = ("full", "diagonal")
NUMBERS_AT_ONCE = 2**24

# responsibilities (A, C, N) -> parameters, new responsibilities, objectives (A,)
Update = Callable[[Tensor], tuple[dict[str, Tensor], Tensor, Tensor]]


def check_mixture_data(x: Tensor, components: int, covariance: str) -> Tensor:
    """`x` in float64, or a ValueError that names what no mixture of Gaussians can be fitted to."""
    x = torch.as_tensor(x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"x: expected shape (N, D), got {tuple(x.shape)}. One row is one datum; turn a vector "
            "of numbers into a column with x[:, None]."
        )
    if not torch.isfinite(x).all():
        n = int((~torch.isfinite(x)).sum())
        raise ValueError(f"x: {n} values are NaN or infinite. Drop or impute them first.")
    if components < 1:
        raise ValueError(f"components: expected at least 1, got {components}.")
    if components > len(x):
        raise ValueError(
            f"components: expected at most one per datum, got {components} for {len(x)} rows. "
            "Ask for fewer components or give more data."
        )
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance: expected one of {COVARIANCES}, got {covariance!r}.")
    constant = (x == x[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"x: columns {constant} are constant. Drop them.")
    return x.detach().to(torch.float64)


def blocks(x: Tensor, covariance: str) -> Tensor:
    """(..., N, D) -> (..., G, N, P)."""
    return x.unsqueeze(-3) if covariance == "full" else x.mT.unsqueeze(-1)


def kmeans_plus_plus(x: Tensor, components: int, restarts: int, seed: int = 0) -> Tensor:
    """Seeds for C clusters: each next one a datum drawn with probability ∝ squared distance.

    Args:
        x: (N, D), in units in which distances mean something.
        components: C.
        restarts: R independent sets of seeds.
        seed: of the draws.

    Returns:
        (R, C, D), rows of x.

    Source: Arthur & Vassilvitskii, k-means++: the advantages of careful seeding (SODA 2007).
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    nearest = x.new_ones(restarts, len(x))  # the first seed is uniform
    seeds: list[Tensor] = []
    for _ in range(components):
        # Copies of a seed have distance 0; when only copies are left, all are alike.
        chance = torch.where(nearest.sum(-1, keepdim=True) > 0, nearest, torch.ones_like(nearest))
        chosen = x[torch.multinomial(chance, 1, generator=generator).squeeze(-1)]  # (R, D)
        distance = (x - chosen.unsqueeze(1)).square().sum(-1)  # (R, N)
        nearest = torch.minimum(nearest, distance) if seeds else distance
        seeds.append(chosen)
    return torch.stack(seeds, 1)


def soft_assignment(x: Tensor, means: Tensor) -> Tensor:
    """Responsibilities of spheres around `means`, as wide as data lie from their nearest mean.

    Hard assignment would give a lone datum a component of its own, with no spread. (N, D) and
    (R, C, D) -> (R, C, N).
    """
    distance = torch.cdist(means, x).square()  # (R, C, N)
    spread = distance.amin(1).mean(-1) / x.shape[-1]  # (R,)
    spread = spread.clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]
    return torch.softmax(-0.5 * distance / spread, 1)


def starting_responsibilities(
    x: Tensor, components: int, restarts: int, start: Tensor | None, seed: int
) -> Tensor:
    """(R, C, N): the user's `start` (..., N, C) if there is one, else from k-means++."""
    if restarts < 1:
        raise ValueError(f"restarts: expected at least 1, got {restarts}.")
    if start is None:
        return soft_assignment(x, kmeans_plus_plus(x, components, restarts, seed))
    start = torch.as_tensor(start, dtype=x.dtype, device=x.device)
    expected = (len(x), components)
    if start.ndim not in (2, 3) or start.shape[-2:] != expected:
        raise ValueError(
            f"start: expected responsibilities of shape {expected} or (R, {len(x)}, {components}), "
            f"got {tuple(start.shape)}."
        )
    if not (start >= 0).all() or not torch.allclose(start.sum(-1), start.new_ones(())):
        raise ValueError("start: expected responsibilities >= 0 whose rows sum to 1.")
    return start.reshape(-1, *expected).mT


@dataclass
class Restart:
    """One restart when it stopped: its parameters, responsibilities (C, N) and objective."""

    params: dict[str, Tensor]
    responsibilities: Tensor
    history: Tensor
    converged: bool

    @property
    def objective(self) -> float:
        """The objective where it stopped, nats."""
        return float(self.history[-1])


def ascend(
    update: Update,
    responsibilities: Tensor,
    *,
    columns: int,
    tol: float,
    slack: float,
    max_iter: int,
    objective: str,
) -> list[Restart]:
    """Alternate until every restart's objective stands still.

    As many restarts are taken together as fit 128 MiB for each temporary of C·N·D numbers.

    Args:
        update: responsibilities (A, C, N) -> parameters (each (A, ...)), new responsibilities and
            objectives (A,) in nats, for any number A of restarts.
        responsibilities: (R, C, N), the start.
        columns: D of the data.
        tol: a restart has converged when an update gains less, in nats per datum.
        slack: nats per datum by which rounding may lower the objective.
        max_iter: updates at most.
        objective: its name, for the message.

    Raises:
        ArithmeticError: the objective fell by more than `slack`, or is not finite.
    """
    if max_iter < 1 or tol < 0:
        raise ValueError(f"expected max_iter >= 1 and tol >= 0, got {max_iter} and {tol}.")
    together = max(1, NUMBERS_AT_ONCE // (responsibilities[0].numel() * columns))
    options: dict[str, Any] = {"tol": tol, "slack": slack, "max_iter": max_iter}
    options["objective"] = objective
    return [
        restart
        for part in responsibilities.split(together)
        for restart in _ascend_together(update, part, **options)
    ]


def _ascend_together(
    update: Update,
    responsibilities: Tensor,
    *,
    tol: float,
    slack: float,
    max_iter: int,
    objective: str,
) -> list[Restart]:
    n = responsibilities.shape[-1]
    alive = list(range(len(responsibilities)))
    done: dict[int, Restart] = {}
    histories: list[list[float]] = [[] for _ in alive]
    for iteration in range(max_iter):
        params, responsibilities, values = update(responsibilities)
        keep = []
        for row, value in enumerate(values.tolist()):
            history = histories[alive[row]]
            gain = value - history[-1] if history else math.inf
            if not math.isfinite(value) or gain < -slack * n:
                raise ArithmeticError(
                    f"{objective} of a restart went from "
                    f"{history[-1] if history else math.nan:.10g} to {value:.10g} nats at update "
                    f"{iteration + 1}; it can only rise. Please report this with the data."
                )
            history.append(value)
            converged = gain < tol * n
            if converged or iteration + 1 == max_iter:
                mine = {k: v[row] for k, v in params.items()}
                trace = torch.tensor(history, dtype=values.dtype)
                done[alive[row]] = Restart(mine, responsibilities[row], trace, converged)
            else:
                keep.append(row)
        if not keep:
            break
        alive = [alive[row] for row in keep]
        responsibilities = responsibilities[keep]
    return [done[i] for i in sorted(done)]
