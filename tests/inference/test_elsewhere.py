"""Draws of Pyro's own samplers in ArviZ, and what a run lends of its guide."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from arviz_stats import loo
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal
from schools import SIGMA, Y, centred, non_centred
from scipy import stats

from inference import fit, to_datatree
from inference.draws.datatree import write_datatree

QUIET = {"progress": False, "compile": False}
SHARED = ("theta", "mu", "tau")


@pytest.fixture(scope="module")
def mcmc():
    torch.manual_seed(0)
    found = MCMC(NUTS(non_centred, max_tree_depth=4), 60, 30, disable_progbar=True)
    found.run(Y, SIGMA)
    return found


def test_mcmc_becomes_the_tree_of_a_run(mcmc, tmp_path):
    tree = to_datatree(mcmc, Y, SIGMA)
    p, s = tree.posterior, tree.sample_stats
    for name, value in mcmc.get_samples().items():
        assert np.array_equal(p[name].values[0], value.squeeze().numpy())
    assert set(p.data_vars) == {"mu", "tau", "z", "theta"}
    assert dict(p.z.sizes) == {"chain": 1, "draw": 60, **dict.fromkeys(p.z.dims[2:], 8)}
    np.testing.assert_allclose(p.theta, p.mu + p.tau * p.z, rtol=1e-5, atol=1e-5)
    expected = stats.norm.logpdf(Y.numpy(), p.theta, SIGMA.numpy())
    np.testing.assert_allclose(tree.log_likelihood.y, expected, rtol=1e-5)
    assert set(s.data_vars) == {"log_p", "diverging"}
    indices = mcmc.diagnostics()["divergences"]["chain 0"]
    assert np.flatnonzero(s.diverging.values[0]).tolist() == list(indices)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter")  # of thirty draws
        assert np.isfinite(loo(tree).elpd)
    written = write_datatree(tmp_path / "tree.nc", mcmc, Y, SIGMA, chunk=25)
    with xarray.open_datatree(written) as again:
        np.testing.assert_array_equal(again["posterior"]["theta"], p.theta)


def test_samples_by_name_and_predictive(mcmc):
    samples = mcmc.get_samples(group_by_chain=True)
    by_hand = to_datatree(non_centred, samples, Y, SIGMA, groups=["posterior"])
    predictive = Predictive(non_centred, mcmc.get_samples())
    theirs = to_datatree(predictive, Y, SIGMA, groups=["posterior"])
    assert by_hand.posterior.ds.equals(theirs.posterior.ds)


def test_what_was_predicted_is_kept():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    x = torch.arange(3.0)
    torch.manual_seed(1)
    found = Predictive(model, {"w": torch.randn(7)}, return_sites=("w", "y"))(x)
    tree = to_datatree(model, found, x, x + 1)
    assert np.array_equal(tree.posterior_predictive.y.values[0], found["y"].numpy())
    assert tree.observed_data.y.values.tolist() == [1.0, 2.0, 3.0]


def test_a_mixture_of_mcmc_has_its_assignments():
    """p(k_i = 1 | m, x_i) of two normals in closed form, at each draw."""
    x = torch.tensor([-2.0, 0.1, 2.5])

    def mixture(x):
        m = pyro.sample("m", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(torch.where(k == 1, m[..., 1], m[..., 0]), 1.0), obs=x)

    m = torch.tensor([[-2.0, 2.0]]).repeat(2_000, 1)
    k = to_datatree(mixture, {"m": m}, x, groups=["posterior"]).posterior.k.mean(("chain", "draw"))
    truth = torch.sigmoid(4 * x)  # log N(x; 2) - log N(x; -2)
    assert np.abs(k.values - truth.numpy()).max() < 5 * 0.5 / np.sqrt(2_000)


def test_flat_priors_and_bad_samples_are_named():
    def flat(x):
        m = pyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    x = torch.arange(3.0)
    with pytest.warns(UserWarning, match="no prior groups"):
        tree = to_datatree(flat, {"m": torch.zeros(5)}, x)
    assert tree.log_likelihood.x.shape == (1, 5, 3)
    with pytest.raises(ValueError, match=r"no site 'tau'.*expected some of m, x"):
        to_datatree(flat, {"tau": torch.zeros(5)}, x)
    with pytest.raises(ValueError, match=r"'m' has shape \(\) in the model.*got \(5, 2, 2\)"):
        to_datatree(flat, {"m": torch.zeros(5, 2, 2)}, x)
    with pytest.raises(ValueError, match="draws of every latent of the model, got none of 'tau'"):
        to_datatree(centred, {"mu": torch.zeros(5)}, Y, SIGMA)
    with pytest.raises(TypeError, match="that has not run"):
        to_datatree(MCMC(NUTS(flat), 5), x)


def test_a_run_lends_the_methods_of_its_guide():
    """An AutoNormal of a LogNormal-like scale: its median is exp(loc), its quantiles follow."""
    run = fit(centred, AutoNormal(centred), (Y, SIGMA), steps=20, lr=0.1, **QUIET)
    loc = run.params["AutoNormal.locs.tau"]
    scale = run.params["AutoNormal.scales.tau"]
    torch.testing.assert_close(run.guide.median()["tau"], loc.exp())
    low, high = run.guide.quantiles([0.1, 0.9])["tau"]
    z = stats.norm.ppf(0.9)
    torch.testing.assert_close(
        torch.stack([low, high]), (loc + z * scale * torch.tensor([-1.0, 1])).exp()
    )
    torch.testing.assert_close(run.guide.locs.tau, loc)
    assert len(pyro.get_param_store()) == 0
    before = AutoNormal(centred)
    before(Y, SIGMA)
    assert not torch.allclose(before.median()["tau"], loc.exp())
