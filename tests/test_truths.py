import math

import torch
from sklearn.decomposition import PCA
from truths import ppca, ppca_log_likelihood


def test_ppca_against_scikit_learn():
    torch.manual_seed(0)
    n, d, latent_dim = 500, 7, 3
    x = torch.randn(n, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64) + 2
    score = PCA(latent_dim, svd_solver="full").fit(x.numpy()).score(x.numpy())
    # scikit-learn divides the covariance by n - 1, which scales C by n / (n - 1) and costs
    # half of d (log n/(n - 1) - 1/n) nats against the maximum.
    cost = 0.5 * d * (math.log(n / (n - 1)) - 1 / n)
    assert abs(ppca_log_likelihood(x, latent_dim) - cost - score) < 1e-10 * abs(score)


def test_ppca_solution_has_the_likelihood_claimed():
    torch.manual_seed(0)
    x = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) - 1
    w, mean, noise = ppca(x, 2)
    marginal = torch.distributions.MultivariateNormal(mean, w @ w.T + noise * torch.eye(5).double())
    expected = ppca_log_likelihood(x, 2)
    assert abs(marginal.log_prob(x).mean() - expected) < 1e-10 * abs(expected)
    # Its posterior precision is diagonal, so a diagonal Gaussian guide can be exact.
    precision = w.T @ w
    assert (precision - precision.diag().diag()).abs().max() < 1e-12 * precision.diag().max()
