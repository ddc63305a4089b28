"""Variational Bayes against conjugate evidence, Bishop's terms one by one, and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.mixture import BayesianGaussianMixture
from torch import tensor
from torch.distributions import Dirichlet, MultivariateNormal, StudentT, Wishart

from zoo.em import (
    GaussWishart,
    expectation_maximization,
    variational_bayes,
    weak_prior,
)

f64 = {"dtype": torch.float64}
KINDS = ["full", "diagonal"]


def clusters(n=150, d=2):
    centres = torch.randn(3, d, **f64) * 4
    x = centres[torch.randint(3, (n,))] + torch.randn(n, d, **f64)
    return x * torch.logspace(0, 2, d, **f64) + 7


def log_evidence_full(x, prior):
    """log p(x) of one Gaussian with a Gauss-Wishart prior, nats.

    Source: Murphy, Conjugate Bayesian analysis of the Gaussian distribution (2007), eq. 266.
    """
    n, d = x.shape
    beta0, nu0, s0 = prior["mean_precision"], prior["degrees"], prior["scale"]
    beta, nu = beta0 + n, nu0 + n
    if n == 0:
        return 0.0
    centred = x - x.mean(0)
    shift = (x.mean(0) - prior["mean"]).unsqueeze(-1)
    s = s0 + centred.T @ centred + beta0 * n / beta * shift @ shift.T
    gamma = torch.special.multigammaln(tensor([nu / 2, nu0 / 2], **f64), d)
    return float(
        -n * d / 2 * math.log(math.pi)
        + gamma[0] - gamma[1]
        + nu0 / 2 * s0.logdet() - nu / 2 * s.logdet()
        + d / 2 * math.log(beta0 / beta)
    )  # fmt: skip


def log_evidence(x, prior, covariance):
    """The same for either kind: a diagonal covariance is one Gaussian per column."""
    if covariance == "full":
        return log_evidence_full(x, prior)
    columns = (
        {**prior, "mean": prior["mean"][[i]], "scale": prior["scale"][i].reshape(1, 1)}
        for i in range(x.shape[1])
    )
    return sum(log_evidence_full(x[:, [i]], column) for i, column in enumerate(columns))


@pytest.mark.parametrize("covariance", KINDS)
def test_with_one_component_the_bound_is_the_evidence(covariance):
    x = clusters()
    prior = {**weak_prior(x, 1, covariance), "mean": tensor([3.0, -8.0], **f64)}
    fit = variational_bayes(x, 1, covariance=covariance, **prior)
    assert fit.elbo == pytest.approx(log_evidence(x, prior, covariance), rel=1e-11)


@pytest.mark.parametrize("covariance", KINDS)
def test_predictive_density_is_a_ratio_of_evidences(covariance):
    x, new = clusters(), clusters(n=5)
    prior = {**weak_prior(x, 1, covariance), "mean": tensor([3.0, -8.0], **f64)}
    fit = variational_bayes(x, 1, covariance=covariance, **prior)
    before = log_evidence(x, prior, covariance)
    truth = [log_evidence(torch.cat([x, row[None]]), prior, covariance) - before for row in new]
    assert torch.allclose(fit.log_prob(new), tensor(truth, **f64), rtol=1e-9)


@pytest.mark.parametrize("covariance", KINDS)
def test_below_the_evidence_summed_over_all_assignments(covariance):
    x = torch.cat([torch.randn(4, 2, **f64), torch.randn(4, 2, **f64) + 2])
    prior = weak_prior(x, 2, covariance)
    a = prior["concentration"]
    terms = []
    for k in itertools.product((0, 1), repeat=len(x)):
        k = torch.tensor(k)
        counts = k.bincount(minlength=2).double()
        log_k = (  # Dirichlet-multinomial
            math.lgamma(2 * a) - math.lgamma(2 * a + len(x))
            + float(torch.lgamma(counts + a).sum()) - 2 * math.lgamma(a)
        )  # fmt: skip
        terms.append(log_k + sum(log_evidence(x[k == c], prior, covariance) for c in (0, 1)))
    truth = float(tensor(terms, **f64).logsumexp(0))
    fit = variational_bayes(x, 2, covariance=covariance, **prior)
    assert fit.restarts.max() < truth
    assert truth - fit.elbo < 2 * len(x) * math.log(2)  # the bound is not vacuous either


def test_the_bound_is_the_sum_of_bishops_seven_terms():
    x = clusters()
    prior = weak_prior(x, 3)
    fit = variational_bayes(x, 3, **prior, restarts=1, max_iter=3)  # not at the optimum
    q = fit.posterior
    d, r = 2, fit.responsibilities
    digamma = torch.digamma((q.degrees.unsqueeze(-1) - torch.arange(2)) / 2).sum(-1)
    w = q.scale.inverse()
    log_precision = digamma + d * math.log(2) + w.logdet()  # 10.65
    log_weight = torch.digamma(q.concentration) - torch.digamma(q.concentration.sum())  # 10.66
    apart = x.unsqueeze(1) - q.mean  # (N, C, D)
    square = d / q.mean_precision + q.degrees * torch.einsum("ncd,cde,nce->nc", apart, w, apart)

    def log_b(scale, nu):  # B.79, with W⁻¹ = scale
        return (
            nu / 2 * scale.logdet()
            - nu * d / 2 * math.log(2)
            - torch.special.multigammaln(torch.as_tensor(nu, **f64) / 2, d)
        )

    shift = q.mean - prior["mean"]
    beta0, nu0, s0 = (prior[k] for k in ("mean_precision", "degrees", "scale"))
    terms = [
        0.5 * (r * (log_precision - square - d * math.log(2 * math.pi))).sum(),  # 10.71
        (r * log_weight).sum(),  # 10.72
        Dirichlet(torch.full((3,), prior["concentration"], **f64)).log_prob(
            tensor([1 / 3] * 3, **f64)
        )
        + (prior["concentration"] - 1) * (log_weight.sum() + 3 * math.log(3)),  # 10.73
        0.5 * (
            d * math.log(beta0 / (2 * math.pi)) + log_precision - d * beta0 / q.mean_precision
            - beta0 * q.degrees * torch.einsum("cd,cde,ce->c", shift, w, shift)
        ).sum()
        + 3 * log_b(s0, nu0)
        + (nu0 - d - 1) / 2 * log_precision.sum()
        - 0.5 * (q.degrees * torch.einsum("de,ced->c", s0, w)).sum(),  # 10.74
        -torch.special.xlogy(r, r).sum(),  # 10.75
        Dirichlet(q.concentration).entropy(),  # 10.76
        -(
            0.5 * log_precision + d / 2 * (q.mean_precision / (2 * math.pi)).log() - d / 2
        ).sum()
        + Wishart(q.degrees, precision_matrix=q.scale).entropy().sum(),  # 10.77
    ]  # fmt: skip
    assert fit.elbo == pytest.approx(float(sum(terms)), rel=1e-11)


@pytest.mark.parametrize("covariance", KINDS)
def test_never_falls_and_superfluous_components_die(covariance):
    x = clusters(300)
    fit = variational_bayes(x, 8, covariance=covariance, concentration=1e-3)
    assert (fit.history.diff() > -1e-12 * abs(fit.elbo)).all()
    assert fit.converged and fit.components_used == 3
    dead = fit.responsibilities.sum(0) < 1e-3
    assert int(dead.sum()) == 5
    # A component that has given its data up is the prior again.
    prior = weak_prior(x, 8, covariance)
    assert torch.allclose(fit.posterior.mean[dead], prior["mean"], rtol=1e-2)
    assert torch.allclose(fit.posterior.degrees[dead], tensor(prior["degrees"], **f64), rtol=1e-3)
    assert fit.elbo > variational_bayes(x, 2, covariance=covariance, concentration=1e-3).elbo


@pytest.mark.parametrize("covariance", KINDS)
def test_a_fixed_point_of_scikit_learn_is_ours(covariance):
    x = clusters()
    prior = weak_prior(x, 4, covariance)
    theirs = BayesianGaussianMixture(
        n_components=4,
        covariance_type=covariance.removesuffix("onal"),
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=prior["concentration"],
        mean_precision_prior=prior["mean_precision"],
        mean_prior=prior["mean"].numpy(),
        # scikit-learn's diagonal prior has half a degree of freedom per half a count, as here
        degrees_of_freedom_prior=prior["degrees"],
        covariance_prior=prior["scale"].numpy(),
        reg_covar=0,
        tol=1e-12,
        max_iter=20_000,
        random_state=0,
    ).fit(x.numpy())
    start = tensor(theirs.predict_proba(x.numpy()))
    ours = variational_bayes(x, 4, covariance=covariance, **prior, start=start, max_iter=1)
    assert torch.allclose(ours.responsibilities, start, atol=1e-5)
    assert torch.allclose(ours.weights, tensor(theirs.weights_), atol=1e-6)
    assert torch.allclose(ours.means, tensor(theirs.means_), rtol=1e-5)
    assert torch.allclose(ours.covariances, tensor(theirs.covariances_), rtol=1e-4)


def test_draws_of_q_average_to_the_predictive_density():
    q = GaussWishart(
        concentration=tensor([3.0, 2.0], **f64),
        mean_precision=tensor([4.0, 0.7], **f64),
        mean=tensor([[0.0, 1.0], [2.0, -1.0]], **f64),
        degrees=tensor([5.0, 7.0], **f64),
        scale=tensor([[[2.0, 0.5], [0.5, 3.0]], [[4.0, -1.0], [-1.0, 2.0]]], **f64),
    )
    x = tensor([[0.0, 0.0], [2.0, 1.0]], **f64)
    n = 40_000
    weights = Dirichlet(q.concentration).sample((n,))
    laws = [scipy.stats.wishart(float(nu), s.inverse()) for nu, s in zip(q.degrees, q.scale)]
    precision = tensor(np.stack([w.rvs(n, random_state=i) for i, w in enumerate(laws)], 1))
    means = MultivariateNormal(
        q.mean, precision_matrix=q.mean_precision[:, None, None] * precision
    ).sample()
    density = MultivariateNormal(means, precision_matrix=precision).log_prob(x[:, None, None]).exp()
    draws = (weights * density).sum(-1)  # (N, n)
    error = draws.std(-1) / math.sqrt(n)
    assert ((draws.mean(-1) - q.log_prob(x).exp()).abs() < 4 * error).all()
    # and the expected log joint, whose draws are lighter
    log_joint = weights.log() + MultivariateNormal(means, precision_matrix=precision).log_prob(
        x[:, None, None]
    )
    error = log_joint.std(1) / math.sqrt(n)
    assert ((log_joint.mean(1) - q.expected_log_joint(x).T).abs() < 4 * error).all()


def test_one_column_is_the_same_full_or_diagonal():
    x = clusters(d=1)
    full, diagonal = (variational_bayes(x, 3, covariance=c, seed=2) for c in KINDS)
    assert full.elbo == pytest.approx(diagonal.elbo, rel=1e-12)
    assert torch.allclose(full.log_prob(x), diagonal.log_prob(x), rtol=1e-9)
    t = StudentT(3.0, tensor(0.0, **f64), tensor(1.0, **f64))
    unit = GaussWishart(*(tensor(v, **f64) for v in ([1.0], [1e30], [[0.0]], [3.0], [[3.0]])))
    assert torch.allclose(unit.log_prob(x), t.log_prob(x).squeeze(), rtol=1e-12)


def test_units_do_not_matter():
    x = clusters()
    factor = tensor([1e-3, 250.0], **f64)
    one, other = (variational_bayes(v, 4, restarts=1) for v in (x, x * factor))
    shift = -len(x) * float(factor.log().sum())
    assert other.elbo == pytest.approx(one.elbo + shift, rel=1e-10)
    assert torch.allclose(one.responsibilities, other.responsibilities, atol=1e-8)


@pytest.mark.parametrize(
    "keywords, words",
    [
        ({"components": 0}, "at least 1"),
        ({"components": 99}, "99 for 30 rows"),
        ({"mean": torch.zeros(3)}, r"mean: expected shape \(2,\)"),
        ({"scale": torch.ones(2)}, r"scale: expected shape \(2, 2\)"),
        ({"scale": torch.ones(2, 2)}, "positive definite"),
        ({"concentration": 0.0}, "concentration: expected more than 0"),
        ({"mean_precision": -1.0}, "mean_precision"),
        ({"degrees": 1.0}, "degrees: expected more than 1"),
    ],
)
def test_refuses(keywords, words):
    with pytest.raises(ValueError, match=words):
        variational_bayes(torch.randn(30, 2), **{"components": 2, **keywords})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("covariance", KINDS)
@pytest.mark.parametrize("method", [variational_bayes, expectation_maximization])
def test_same_on_cuda(method, covariance):
    x = clusters()
    start = torch.rand(len(x), 3, **f64)
    start = start / start.sum(-1, keepdim=True)
    here = method(x, 3, covariance=covariance, start=start)
    there = method(x.cuda(), 3, covariance=covariance, start=start.cuda())
    assert there.means.is_cuda and there.responsibilities.is_cuda
    # both stop where an update gains 1e-9 nats per datum
    assert torch.allclose(here.means, there.means.cpu(), rtol=1e-3)
    assert torch.allclose(here.history[-1], there.history[-1].cpu(), atol=1e-5)
    assert method(x.cuda(), 3, covariance=covariance, restarts=4).restarts.shape == (4,)
