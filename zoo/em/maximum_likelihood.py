"""Gaussian mixtures by expectation maximisation, batched over restarts, monotone by check."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .ascent import Rows, WeightedMoments, ascend, check_mixture_data


@dataclass
class MixtureDensity:
    """A mixture of C Gaussians in D dimensions.

    Attributes:
        weights: (C,).
        means: (C, D).
        covariances: (C, D, D), or (C, D) where they are diagonal.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def covariance(self) -> str:
        """`"full"` or `"diagonal"`."""
        return "full" if self.covariances.ndim == 3 else "diagonal"

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, k), nats: (N, D) -> (N, C)."""
        full = self.covariances if self.covariance == "full" else self.covariances.diag_embed()
        normal = torch.distributions.MultivariateNormal(
            self.means, scale_tril=torch.linalg.cholesky(full)
        )
        x = torch.as_tensor(x, dtype=self.means.dtype, device=self.means.device)
        return self.weights.log() + normal.log_prob(x.unsqueeze(-2))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), nats: (N, D) -> (N,)."""
        return self.log_joint(x).logsumexp(-1)

    def assign(self, x: Tensor) -> Tensor:
        """Responsibilities p(k | x): (N, D) -> (N, C)."""
        return self.log_joint(x).softmax(-1)


@dataclass
class MaximumLikelihoodFit(MixtureDensity):
    """The result of EM: the best of its restarts.

    Attributes:
        responsibilities: (N, C).
        log_likelihood: nats, summed over the data.
        history: (n_iter,) log-likelihood after every update.
        converged: whether the last update gained less than `tol`.
        n_iter: updates made.
        floored: (C,) bool, components whose covariance is held up by the floor: they sit on too
            few distinct data, and their likelihood says nothing.
        restarts: (R,) log-likelihood of every restart.
    """

    responsibilities: Tensor
    log_likelihood: float
    history: Tensor
    converged: bool
    n_iter: int
    floored: Tensor
    restarts: Tensor


@torch.no_grad()
def expectation_maximization(
    x: Tensor,
    components: int,
    *,
    covariance: str = "full",
    restarts: int = 20,
    start: Tensor | None = None,
    floor: float = 1e-6,
    tol: float = 1e-9,
    max_iter: int = 2_000,
    seed: int = 0,
) -> MaximumLikelihoodFit:
    """Maximise Σ_n log Σ_c w_c N(x_n; m_c, S_c) by expectation maximisation.

    The likelihood has no maximum: a component that closes in on one datum sends it to infinity. So
    it is maximised under S_c ⪰ floor · diag(variances of the columns), where the best S_c is the
    weighted covariance with its eigenvalues (in units of the columns' standard deviations) raised
    to the floor. That is an exact M-step, hence monotone, and moves with the units of the data.
    Among the restarts, those that touch the floor are taken only if all do.

    Args:
        x: (N, D), in any units.
        components: C, at most N.
        covariance: `"full"` or `"diagonal"`.
        restarts: R starts by k-means++, fitted together.
        start: responsibilities (N, C) or (R, N, C) to start from instead.
        floor: least variance of a component in any direction, as a share of the data's.
        tol: nats per datum; a restart stops when an update gains less.
        max_iter: updates at most.
        seed: of the starts.

    Returns:
        MaximumLikelihoodFit, in float64, in the units of x.

    Raises:
        ValueError: data, `components` or `start` that do not fit.
        ArithmeticError: the log-likelihood fell by more than rounding.

    Source: Dempster, Laird & Rubin 1977; Bishop, Pattern Recognition and Machine Learning, ch. 9.2;
    start: Arthur & Vassilvitskii 2007.
    """
    x = check_mixture_data(x, components, covariance)
    if not 0 < floor < 1:
        raise ValueError(f"floor: expected a share between 0 and 1, got {floor}.")
    n, d = x.shape
    centre, unit = x.mean(0), x.std(0, correction=0)
    z = (x - centre) / unit
    rows = Rows(z, covariance)

    def maximise(m: WeightedMoments) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        if covariance == "full":
            variances, axes = torch.linalg.eigh(m.covariance)
        else:
            variances, axes = m.covariance, None
        floored = (variances < floor).any(-1)
        variances = variances.clamp_min(floor)  # (R, C, D)
        log_weights = (m.counts / n).log()
        log_det = variances.log().sum(-1)
        if axes is None:
            covariances, quadratic = variances, -0.5 / variances
            linear = m.mean / variances
        else:
            covariances = axes * variances.unsqueeze(-2) @ axes.mT
            quadratic = -0.5 * (axes / variances.unsqueeze(-2) @ axes.mT)
            linear = -2 * (quadratic @ m.mean.unsqueeze(-1)).squeeze(-1)
        square = (m.mean * linear).sum(-1)
        constant = log_weights - 0.5 * (log_det + square + d * math.log(2 * math.pi))
        params = {"weights": m.counts / n, "means": m.mean, "covariances": covariances}
        params["floored"] = floored
        rest = -n * unit.log().sum()
        return params, rows.coefficients(constant, linear, quadratic), rest

    fits = ascend(
        maximise,
        rows,
        rows.start(components, restarts, start, seed),
        tol=tol,
        # eigh errs by rounding of the largest eigenvalue, which is relative to the floored one:
        slack=8 * d * torch.finfo(x.dtype).eps / floor,
        max_iter=max_iter,
        objective="the log-likelihood",
    )
    best = max(fits, key=lambda f: (not bool(f.params["floored"].any()), f.objective))
    square = unit.unsqueeze(-1) * unit if covariance == "full" else unit.square()
    return MaximumLikelihoodFit(
        weights=best.params["weights"],
        means=best.params["means"] * unit + centre,
        covariances=best.params["covariances"] * square,
        responsibilities=rows.responsibilities(best.coefficients),
        log_likelihood=best.objective,
        history=best.history,
        converged=best.converged,
        n_iter=len(best.history),
        floored=best.params["floored"],
        restarts=x.new_tensor([f.objective for f in fits]),
    )
