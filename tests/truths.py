"""Closed forms that the zoo and the inference layer are tested against. Each stands alone."""

import math

import torch
from torch import Tensor


def ppca(x: Tensor, latent_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum-likelihood probabilistic PCA: x = W z + mean + noise, z ~ N(0, I), noise ~ N(0, s²).

    s² is the mean of the discarded eigenvalues of the (1/N) covariance and W = U (Λ - s² I)^½ its
    leading eigenvectors, scaled: the solution whose posterior p(z | x) has a diagonal covariance.

    Args:
        x: (N, D).
        latent_dim: L < D.

    Returns:
        W (D, L), the mean (D,), and s² ().

    Source: Tipping & Bishop 1999, "Probabilistic principal component analysis", eqs. 7 and 8
    (rotation R = I).
    """
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)  # ascending
    d = x.shape[1]
    noise = eigenvalues[: d - latent_dim].mean()
    spread = (eigenvalues[d - latent_dim :] - noise).sqrt()
    return eigenvectors[:, d - latent_dim :] * spread, mean, noise


def ppca_log_likelihood(x: Tensor, latent_dim: int) -> Tensor:
    """The largest mean log-likelihood that probabilistic PCA can give x (N, D): nats per datum.

        -½ (D log 2π + sum_{i <= L} log λ_i + (D - L) log s² + D)

    Source: Tipping & Bishop 1999, eqs. 4 and 8: at the maximum, tr(C⁻¹ S) = D.
    """
    d = x.shape[1]
    centred = x - x.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / len(x))
    noise = eigenvalues[: d - latent_dim].mean()
    log_det = eigenvalues[d - latent_dim :].log().sum() + (d - latent_dim) * noise.log()
    return -0.5 * (d * math.log(2 * math.pi) + log_det + d)


def linear_gaussian_posterior(
    x: Tensor, w: Tensor, b: Tensor
) -> torch.distributions.MultivariateNormal:
    """p(z | x) of z ~ N(0, I), x | z ~ N(W z + b, I), for every row of x (N, D).

    N(P⁻¹ Wᵀ (x - b), P⁻¹), P = I + Wᵀ W.
    """
    covariance = torch.linalg.inv(torch.eye(w.shape[1], dtype=w.dtype) + w.T @ w)
    return torch.distributions.MultivariateNormal((x - b) @ w @ covariance, covariance)
