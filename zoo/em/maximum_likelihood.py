"""Gaussian mixtures by expectation maximisation, batched over restarts, monotone by check."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .ascent import ascend, blocks, check_mixture_data, starting_responsibilities


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
    zb = blocks(z, covariance)  # (G, N, P)

    def update(r: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        counts = r.sum(-1)  # (R, C)
        share = r / counts.clamp_min(torch.finfo(r.dtype).tiny).unsqueeze(-1)
        means = share.unsqueeze(-2).unsqueeze(-2) @ zb  # (R, C, G, 1, P)
        apart = zb - means  # (R, C, G, N, P)
        scatter = (apart * share[:, :, None, :, None]).mT @ apart  # (R, C, G, P, P)
        variances, axes = torch.linalg.eigh(scatter)
        floored = (variances < floor).flatten(2).any(-1)
        variances = variances.clamp_min(floor)
        covariances = axes * variances.unsqueeze(-2) @ axes.mT
        square = (apart @ axes / variances.sqrt().unsqueeze(-2)).square().sum((-3, -1))  # (R, C, N)
        log_det = variances.log().sum((-2, -1))
        log_weights = (counts / n).log() - 0.5 * (log_det + d * math.log(2 * math.pi))
        log_joint = log_weights.unsqueeze(-1) - 0.5 * square
        log_likelihood = log_joint.logsumexp(1).sum(-1) - n * unit.log().sum()
        params = {
            "weights": counts / n,
            "means": means.squeeze(-2),  # (R, C, G, P)
            "covariances": covariances,
            "floored": floored,
        }
        return params, log_joint.softmax(1), log_likelihood

    fits = ascend(
        update,
        starting_responsibilities(z, components, restarts, start, seed),
        columns=d,
        tol=tol,
        # eigh errs by rounding of the largest eigenvalue, which is relative to the floored one:
        slack=8 * d * torch.finfo(x.dtype).eps / floor,
        max_iter=max_iter,
        objective="the log-likelihood",
    )
    best = max(fits, key=lambda f: (not bool(f.params["floored"].any()), f.objective))
    covariances = best.params["covariances"]  # (C, G, P, P)
    if covariance == "full":
        covariances = covariances.squeeze(1) * unit.unsqueeze(-1) * unit
    else:
        covariances = covariances.flatten(1) * unit.square()
    return MaximumLikelihoodFit(
        weights=best.params["weights"],
        means=best.params["means"].flatten(1) * unit + centre,
        covariances=covariances,
        responsibilities=best.responsibilities.mT,
        log_likelihood=best.objective,
        history=best.history,
        converged=best.converged,
        n_iter=len(best.history),
        floored=best.params["floored"],
        restarts=x.new_tensor([f.objective for f in fits]),
    )
