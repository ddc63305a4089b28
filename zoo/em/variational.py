"""Gaussian mixtures by coordinate-ascent variational Bayes, batched over restarts.

    w         ~ Dirichlet(concentration)                       (C,)
    Λ_c       ~ Wishart(degrees, scale⁻¹)                      (C, D, D)
    m_c | Λ_c ~ N(mean, (mean_precision Λ_c)⁻¹)                (C, D)
    k_n | w   ~ Categorical(w)
    x_n | k_n ~ N(m_k, Λ_k⁻¹)

and q(k) q(w) ∏_c q(m_c, Λ_c), whose best factors are of the same families. Equation numbers are
those of Bishop, Pattern Recognition and Machine Learning (2006), ch. 10.2. Diagonal covariances
have a one-dimensional Wishart (a Gamma) per column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .ascent import Restart, Rows, WeightedMoments, ascend, check_mixture_data
from .gauss_wishart import GaussWishart


@dataclass
class VariationalFit:
    """The result of variational Bayes: the best of its restarts.

    Attributes:
        posterior: q over weights, means and precisions.
        weights, means, covariances: (C,), (C, D), (C, D, D) or (C, D), at the posterior mean.
        responsibilities: q(k), (N, C).
        elbo: nats; at most log p(x).
        log_likelihood: nats, of the mixture at the posterior mean.
        history: (n_iter,) ELBO after every update.
        converged, n_iter: whether and after how many updates it stood still.
        restarts: (R,) ELBO of every restart.
    """

    posterior: GaussWishart
    weights: Tensor
    means: Tensor
    covariances: Tensor
    responsibilities: Tensor
    elbo: float
    log_likelihood: float
    history: Tensor
    converged: bool
    n_iter: int
    restarts: Tensor

    @property
    def components_used(self) -> int:
        """Components whose responsibilities sum to one datum or more."""
        return int((self.responsibilities.sum(0) >= 1).sum())

    def log_prob(self, x: Tensor) -> Tensor:
        """Posterior predictive log density, nats: (N, D) -> (N,)."""
        return self.posterior.log_prob(x)


def weak_prior(x: Tensor, components: int, covariance: str = "full") -> dict[str, Tensor | float]:
    """Return a prior as wide as the data, worth about one datum to each component.

    Dirichlet 1/C; mean of the data with β = 0.01; ν = D + 2 and W⁻¹ = covariance of the data /
    C^(2/D), so that C components of the prior's mean covariance fill the data's volume
    (Fraley & Raftery, Bayesian regularization for normal mixture estimation and model-based
    clustering, J. Classification 24, 2007, sec. 3.2; diagonal: ν = 3 for each column).

    Returns:
        Keywords for `variational_bayes`.
    """
    d = x.shape[-1]
    if covariance == "full":
        degrees, spread = d + 2.0, torch.atleast_2d(torch.cov(x.mT))
    else:
        degrees, spread = 3.0, x.var(0)
    return {
        "concentration": 1 / components,
        "mean_precision": 0.01,
        "mean": x.mean(0),
        "degrees": degrees,
        "scale": spread / components ** (2 / d),
    }


@torch.no_grad()
def variational_bayes(
    x: Tensor,
    components: int,
    *,
    covariance: str = "full",
    concentration: Tensor | float | None = None,
    mean_precision: float | None = None,
    mean: Tensor | None = None,
    degrees: float | None = None,
    scale: Tensor | None = None,
    restarts: int = 20,
    start: Tensor | None = None,
    tol: float = 1e-9,
    max_iter: int = 5_000,
    seed: int = 0,
) -> VariationalFit:
    """Maximise the ELBO of a Bayesian mixture of Gaussians by coordinate ascent.

    Superfluous components give their data up and fall back to the prior.

    Args:
        x: (N, D), in any units.
        components: C at most, at most N.
        covariance: `"full"` or `"diagonal"`.
        concentration, mean_precision, mean, degrees, scale: the prior α (a number or (C,)), β, m
            (D,), ν and W⁻¹ ((D, D), or (D,) when diagonal); where None, `weak_prior`'s.
        restarts: R starts by k-means++, fitted together.
        start: responsibilities (N, C) or (R, N, C) to start from instead.
        tol: nats per datum; a restart stops when an update gains less.
        max_iter: updates at most.
        seed: of the starts.

    Returns:
        VariationalFit, in float64, in the units of x.

    Raises:
        ValueError: data, prior or `start` that do not fit.
        ArithmeticError: the ELBO fell by more than rounding.

    Source: Bishop (2006), eq. 10.51-10.63 (updates) and 10.70-10.77 (ELBO).
    """
    x = check_mixture_data(x, components, covariance)
    n, d = x.shape
    centre, unit = x.mean(0), x.std(0, correction=0)
    z = (x - centre) / unit
    given = {
        "concentration": concentration,
        "mean_precision": mean_precision,
        "mean": mean,
        "degrees": degrees,
        "scale": scale,
    }
    chosen = weak_prior(x, components, covariance)
    chosen.update({k: v for k, v in given.items() if v is not None})
    prior = _prior(chosen, components, covariance, centre, unit)
    rows, full = Rows(z, covariance), covariance == "full"

    def maximise(m: WeightedMoments) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        beta = prior.mean_precision + m.counts  # eq. 10.60
        shift = m.mean - prior.mean  # (R, C, D)
        each = (..., None, None) if full else (..., None)
        outer = shift.unsqueeze(-1) * shift.unsqueeze(-2) if full else shift.square()
        posterior = {
            "concentration": prior.concentration + m.counts,  # eq. 10.58
            "mean_precision": beta,
            "mean": prior.mean + (m.counts / beta).unsqueeze(-1) * shift,  # eq. 10.61
            "degrees": prior.degrees + m.counts,  # eq. 10.63
            "scale": prior.scale  # eq. 10.62
            + m.counts[each] * m.covariance
            + (prior.mean_precision * m.counts / beta)[each] * outer,
        }
        q = GaussWishart(**posterior)
        # With r = softmax(scores), eq. 10.46, E[log p(x, k)] - E[log q(k)] (eq. 10.71, 10.72 and
        # 10.75) is the sum of the logarithms of its normalisers.
        rest = -q.kl(prior) - n * unit.log().sum()
        return posterior, rows.coefficients(*q.expected_scores()), rest

    spreads = torch.linalg.eigvalsh(prior.scale) if full else prior.scale
    condition = float((spreads.max() + z.square().sum()) / spreads.min())
    fits = ascend(
        maximise,
        rows,
        rows.start(components, restarts, start, seed),
        tol=tol,
        slack=8 * d * torch.finfo(x.dtype).eps * condition,
        max_iter=max_iter,
        objective="the ELBO",
    )
    return _result(x, rows, fits, centre, unit)


def _prior(
    chosen: dict[str, Tensor | float], c: int, covariance: str, centre: Tensor, unit: Tensor
) -> GaussWishart:
    """Return the prior in units of standard deviations, one row for each component, checked."""
    d = len(unit)
    full = covariance == "full"
    t = {k: torch.as_tensor(v, dtype=unit.dtype, device=unit.device) for k, v in chosen.items()}
    shapes = {"mean": (d,), "scale": (d, d) if full else (d,)}
    for name, shape in shapes.items():
        if t[name].shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(t[name].shape)}.")
    least = d - 1 if full else 0
    for name, low in {"concentration": 0, "mean_precision": 0, "degrees": least}.items():
        if not (t[name] > low).all():
            raise ValueError(f"{name}: expected more than {low}, got {chosen[name]}.")
    scale = t["scale"] / (unit.unsqueeze(-1) * unit if full else unit.square())
    if torch.linalg.cholesky_ex(scale if full else scale.diag()).info:
        raise ValueError(
            "scale: expected a positive definite matrix. With fewer data than columns, give one, "
            "for example diag(x.var(0)), or choose covariance='diagonal'."
        )
    return GaussWishart(
        concentration=t["concentration"].expand(c),
        mean_precision=t["mean_precision"].expand(c),
        mean=((t["mean"] - centre) / unit).expand(c, d),
        degrees=t["degrees"].expand(c),
        scale=scale.expand(c, *scale.shape),
    )


def _result(
    x: Tensor, rows: Rows, fits: list[Restart], centre: Tensor, unit: Tensor
) -> VariationalFit:
    best = max(fits, key=lambda f: f.objective)
    posterior = GaussWishart(**best.params)
    posterior.mean = posterior.mean * unit + centre
    square = unit.unsqueeze(-1) * unit if posterior.covariance == "full" else unit.square()
    posterior.scale = posterior.scale * square
    mixture = posterior.mixture()
    return VariationalFit(
        posterior=posterior,
        weights=mixture.weights,
        means=mixture.means,
        covariances=mixture.covariances,
        responsibilities=rows.responsibilities(best.coefficients),
        elbo=best.objective,
        log_likelihood=float(mixture.log_prob(x).sum()),
        history=best.history,
        converged=best.converged,
        n_iter=len(best.history),
        restarts=x.new_tensor([f.objective for f in fits]),
    )
