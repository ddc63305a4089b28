"""The ascent that EM and variational Bayes share: the start, the loop, and its pass over the data.

Both alternate between responsibilities ∝ exp(a + bᵀz + zᵀQz), one (a, b, Q) for each component, and
parameters that follow from Σ r, Σ r z and Σ r zzᵀ. With the quadratic features (1, z, zzᵀ) of a row
both are matrix products: features times coefficients, responsibilities times features. So one pass
over the data in chunks makes an update, all restarts in the same products, and no array of
responsibilities of all rows is kept. Everything is float64, on the device of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

COVARIANCES = ("full", "diagonal")
NUMBERS_AT_ONCE = 2**20  # of features and responsibilities in a chunk: what stays in a cache


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
        distance = _squared_distance(chosen, x)  # (R, N)
        nearest = torch.minimum(nearest, distance) if seeds else distance
        seeds.append(chosen)
    return torch.stack(seeds, 1)


def _squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """Between rows, exactly 0 between copies: (A, D) and (B, D) -> (A, B)."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").square()


@dataclass
class WeightedMoments:
    """Counts, means and covariances of components under responsibilities, over all data.

    Attributes:
        counts: Σ r, (R, C).
        mean: Σ r z / Σ r, (R, C, D).
        covariance: Σ r (z - mean)(z - mean)ᵀ / Σ r, (R, C, D, D), or its diagonal (R, C, D).
    """

    counts: Tensor
    mean: Tensor
    covariance: Tensor


class Rows:
    """Data as quadratic features, gone through in chunks.

    Args:
        z: (N, D), centred and of unit variance, so that squares lose no digits.
        covariance: `"full"`: features 1, z_i, z_i z_j (i <= j); `"diagonal"`: 1, z_i, z_i².
    """

    def __init__(self, z: Tensor, covariance: str):
        self.z, self.full = z, covariance == "full"
        d = z.shape[1]
        self.upper = tuple(torch.triu_indices(d, d, device=z.device)) if self.full else None
        self.width = 1 + d + (d * (d + 1) // 2 if self.full else d)

    def coefficients(self, constant: Tensor, linear: Tensor, quadratic: Tensor) -> Tensor:
        """Of the features in a + bᵀz + zᵀQz: (..., C), (..., C, D), (..., C, D, D) -> (..., C, F).

        A diagonal Q is (..., C, D).
        """
        if self.upper is not None:
            i, j = self.upper
            quadratic = quadratic[..., i, j] * torch.where(i == j, 1.0, 2.0).to(quadratic)
        return torch.cat([constant.unsqueeze(-1), linear, quadratic], -1)

    def chunks(self, others: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their features (F, n), so few that `others` more numbers a row fit beside."""
        n = max(256, NUMBERS_AT_ONCE // (self.width + others))
        d = self.z.shape[1]
        for start in range(0, len(self.z), n):
            z = self.z[start : start + n].T.contiguous()  # (D, n)
            features = z.new_empty(self.width, z.shape[1])
            features[0] = 1
            features[1 : d + 1] = z
            place = d + 1
            for k in range(d):
                more = z[k:] if self.full else z[k : k + 1]
                torch.mul(more, z[k], out=features[place : place + len(more)])
                place += len(more)
            yield slice(start, start + n), features

    def expectation(self, coefficients: Tensor) -> tuple[WeightedMoments, Tensor]:
        """One pass: moments under r = softmax(scores), and Σ_n logsumexp of the scores, (R,)."""
        r, c, _ = coefficients.shape
        sums, total = torch.zeros_like(coefficients), coefficients.new_zeros(r)
        for _, features in self.chunks(2 * r * c):
            scores = (coefficients.flatten(0, 1) @ features).view(r, c, -1)
            most = scores.amax(1, keepdim=True)
            weights = scores.sub_(most).exp_()
            norm = weights.sum(1, keepdim=True)
            total += (norm.log() + most).sum((1, 2))
            sums += (weights.div_(norm).flatten(0, 1) @ features.T).view_as(sums)
        return self._moments(sums), total

    def responsibilities(self, coefficients: Tensor) -> Tensor:
        """softmax of one restart's scores: (C, F) -> (N, C)."""
        parts = [(coefficients @ f).softmax(0).T for _, f in self.chunks(2 * len(coefficients))]
        return torch.cat(parts)

    def moments(self, responsibilities: Tensor) -> WeightedMoments:
        """Of given responsibilities (R, C, N)."""
        r, c, _ = responsibilities.shape
        sums = self.z.new_zeros(r * c, self.width)
        for rows, features in self.chunks(r * c):
            sums += responsibilities[..., rows].flatten(0, 1) @ features.T
        return self._moments(sums.view(r, c, -1))

    def _moments(self, sums: Tensor) -> WeightedMoments:
        d = self.z.shape[1]
        counts = sums[..., 0]
        share = sums[..., 1:] / counts.clamp_min(torch.finfo(sums.dtype).tiny).unsqueeze(-1)
        mean, second = share[..., :d], share[..., d:]
        if self.upper is None:
            return WeightedMoments(counts, mean, second - mean.square())
        i, j = self.upper
        square = mean.new_empty(*mean.shape, d)
        square[..., i, j] = square[..., j, i] = second
        return WeightedMoments(counts, mean, square - mean.unsqueeze(-1) * mean.unsqueeze(-2))

    def start(
        self, components: int, restarts: int, given: Tensor | None, seed: int
    ) -> WeightedMoments:
        """The moments of the user's responsibilities (..., N, C), else of spheres by k-means++.

        The spheres are as wide as data lie from their nearest mean: hard assignment would give a
        lone datum a component of its own, with no spread.
        """
        if restarts < 1:
            raise ValueError(f"restarts: expected at least 1, got {restarts}.")
        n, d = self.z.shape
        if given is None:
            means = kmeans_plus_plus(self.z, components, restarts, seed)  # (R, C, D)
            nearest = [_squared_distance(m, self.z).amin(0).mean() for m in means]
            spread = torch.stack(nearest).clamp_min(torch.finfo(self.z.dtype).tiny) / d  # (R,)
            half = (-0.5 / spread)[:, None, None].expand_as(means)
            linear = -2 * half * means
            constant = (half * means.square()).sum(-1)
            quadratic = half.diag_embed() if self.full else half
            return self.expectation(self.coefficients(constant, linear, quadratic))[0]
        given = torch.as_tensor(given, dtype=self.z.dtype, device=self.z.device)
        if given.ndim not in (2, 3) or given.shape[-2:] != (n, components):
            raise ValueError(
                f"start: expected responsibilities of shape {(n, components)} or (R, {n}, "
                f"{components}), got {tuple(given.shape)}."
            )
        if not (given >= 0).all() or not torch.allclose(given.sum(-1), given.new_ones(())):
            raise ValueError("start: expected responsibilities >= 0 whose rows sum to 1.")
        return self.moments(given.reshape(-1, n, components).mT)


@dataclass
class Restart:
    """One restart when it stopped: its parameters, the scores' coefficients, its objective."""

    params: dict[str, Tensor]
    coefficients: Tensor
    history: Tensor
    converged: bool

    @property
    def objective(self) -> float:
        """The objective where it stopped, nats."""
        return float(self.history[-1])


# moments -> parameters (each (R, ...)), coefficients of the scores (R, C, F), rest of the objective
Maximise = Callable[[WeightedMoments], tuple[dict[str, Tensor], Tensor, Tensor]]


def ascend(
    maximise: Maximise,
    rows: Rows,
    moments: WeightedMoments,
    *,
    tol: float,
    slack: float,
    max_iter: int,
    objective: str,
) -> list[Restart]:
    """Alternate until every restart's objective, Σ_n logsumexp of the scores + rest, stands still.

    Args:
        maximise: moments -> parameters, the scores they give each row, and the rest (R,), nats.
        rows: the data.
        moments: the start, of R restarts.
        tol: a restart has converged when an update gains less, in nats per datum.
        slack: nats per datum by which rounding may lower the objective.
        max_iter: updates at most.
        objective: its name, for the message.

    Raises:
        ArithmeticError: the objective fell by more than `slack`, or is not finite.
    """
    if max_iter < 1 or tol < 0:
        raise ValueError(f"expected max_iter >= 1 and tol >= 0, got {max_iter} and {tol}.")
    n = len(rows.z)
    alive = list(range(len(moments.counts)))
    done: dict[int, Restart] = {}
    histories: list[list[float]] = [[] for _ in alive]
    for iteration in range(max_iter):
        params, coefficients, rest = maximise(moments)
        moments, values = rows.expectation(coefficients)
        values = values + rest
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
                done[alive[row]] = Restart(mine, coefficients[row], trace, converged)
            else:
                keep.append(row)
        if not keep:
            break
        alive = [alive[row] for row in keep]
        moments = WeightedMoments(
            moments.counts[keep], moments.mean[keep], moments.covariance[keep]
        )
    return [done[i] for i in sorted(done)]
