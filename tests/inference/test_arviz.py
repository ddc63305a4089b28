import runpy
import warnings
from pathlib import Path

import arviz_plots
import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from schools import NAMES, SIGMA, Y, centred, non_centred
from scipy import stats

from inference import elbo, fit, fit_many
from inference.draws.arrays import GROUPS
from inference.draws.datatree import to_datatree, write_datatree
from zoo.vae import VAE, ConditionalVAE

DATA = (Y, SIGMA)
OPTIONS = {"progress": False, "compile": False}


def fitted(model, guide, steps=100, seed=0):
    return fit(model, guide(model), DATA, steps=steps, lr=0.05, seed=seed, **OPTIONS)


@pytest.fixture(scope="module")
def run():
    return fitted(non_centred, AutoMultivariateNormal, steps=300)


@pytest.fixture(scope="module")
def tree(run):
    return to_datatree(run, DATA, draws=1_000, coords={"school": NAMES})


def test_groups_dims_and_coords(tree):
    assert set(tree.children) == {*GROUPS, "observed_data", "constant_data", "loss_trace"}
    assert dict(tree.posterior.theta.sizes) == {"chain": 1, "draw": 1_000, "school": 8}
    assert tree.posterior.mu.dims == ("chain", "draw")
    for group in ("posterior", "log_likelihood", "prior", "observed_data", "constant_data"):
        assert list(tree[group].school.values) == NAMES
    assert set(tree.posterior.data_vars) == {"mu", "tau", "z", "theta"}
    assert set(tree.unconstrained_posterior.data_vars) == {"mu", "tau", "z"}
    assert set(tree.log_prior.data_vars) == {"mu", "tau", "z"}
    assert tree.observed_data.y.values.tolist() == Y.tolist()
    assert tree.constant_data.sigma.values.tolist() == SIGMA.tolist()
    assert tree.loss_trace.loss.shape == (1, 300)
    assert tree.sample_stats.khat.dims == tree.sample_stats.ess.dims == ("chain",)


def test_densities_are_the_formulas(tree):
    """float32 densities against float64 formulas: 18 terms of at most 1e2, each rounded to 6e-8."""
    p = tree.posterior
    np.testing.assert_allclose(p.theta, p.mu + p.tau * p.z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tree.unconstrained_posterior.tau, np.log(p.tau), atol=1e-5)
    expected = stats.norm.logpdf(Y.numpy(), p.theta, SIGMA.numpy())
    np.testing.assert_allclose(tree.log_likelihood.y, expected, rtol=1e-5)
    log_p = expected.sum(-1) + stats.norm.logpdf(p.z).sum(-1)
    log_p += stats.norm.logpdf(p.mu, 0, 5) + stats.halfcauchy.logpdf(p.tau, 0, 5)
    np.testing.assert_allclose(tree.sample_stats.log_p, log_p, atol=2e-4)
    total = sum(tree.log_prior[n].sum([d for d in tree.log_prior[n].dims if d == "school"])
                for n in tree.log_prior)  # fmt: skip
    np.testing.assert_allclose(total + tree.log_likelihood.y.sum("school"), log_p, atol=2e-4)


def test_log_q_is_the_guide_s(run, tree):
    """A full-rank Gaussian on (mu, log tau, z), and 1/tau for the change of variables."""
    u = tree.unconstrained_posterior
    flat = np.concatenate([u.mu.values[..., None], u.tau.values[..., None], u.z.values], -1)
    loc, scale, tril = (
        run.params[f"AutoMultivariateNormal.{n}"].double() for n in ("loc", "scale", "scale_tril")
    )
    q = torch.distributions.MultivariateNormal(loc, scale_tril=scale[:, None] * tril)
    expected = q.log_prob(torch.as_tensor(flat).double()).numpy() - u.tau.values
    s = tree.sample_stats
    np.testing.assert_allclose(s.log_q, expected, atol=2e-3)
    np.testing.assert_allclose(s.log_weight, s.log_p - s.log_q, atol=1e-4)


def test_predictive_draws(tree):
    """(y - theta) / sigma is standard normal; prior draws are the prior's."""
    noise = (tree.posterior_predictive.y - tree.posterior.theta) / tree.constant_data.sigma
    assert stats.kstest(noise.values.ravel(), "norm").pvalue > 1e-3
    noise = (tree.prior_predictive.y - tree.prior.theta) / tree.constant_data.sigma
    assert stats.kstest(noise.values.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(tree.prior.mu.values.ravel() / 5, "norm").pvalue > 1e-3
    assert stats.kstest(tree.prior.tau.values.ravel() / 5, "halfcauchy").pvalue > 1e-3


def test_khat_and_ess(tree):
    s = tree.sample_stats
    lw = s.log_weight.values[0].astype(float)
    np.testing.assert_allclose(s.khat, array_stats.psislw(-lw)[1], rtol=1e-4)
    w = np.exp(lw - lw.max())
    np.testing.assert_allclose(s.ess, w.sum() ** 2 / (w**2).sum(), rtol=1e-4)


def test_restarts_are_chains():
    many = fit_many(centred, AutoNormal(centred), DATA, fits=3, steps=200, compile=False)
    loss = to_datatree(many, DATA, draws=4).loss_trace.loss
    assert loss.shape == (3, 50) and loss.step.values.tolist() == list(range(4, 201, 4))
    runs = [fitted(centred, AutoNormal, 50, seed=s) for s in range(2)]
    tree = to_datatree(runs, DATA, draws=50)
    assert tree.posterior.theta.shape == (2, 50, 8) and tree.loss_trace.loss.shape == (2, 50)
    assert tree.sample_stats.khat.shape == (2,)
    assert float(arviz_stats.rhat(tree)["mu"]) > 0
    alone = to_datatree(runs[0], DATA, draws=50)
    xr.testing.assert_equal(alone.posterior.ds.isel(chain=0), tree.posterior.ds.isel(chain=0))


def test_the_same_seed_gives_the_same_draws(run):
    state = torch.random.get_rng_state()
    a, b, c = (to_datatree(run, DATA, draws=5, seed=s).posterior.ds for s in (0, 0, 1))
    xr.testing.assert_equal(a, b)
    assert not a.equals(c)
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_amortised_pair_has_weights_per_datum():
    x = (torch.rand(30, 6) > 0.5).float()
    vae = VAE(6, latent_dim=2, hidden=(5,))
    tree = to_datatree(vae, x, draws=40)
    assert tree.posterior.z.dims == ("chain", "draw", "data", "z_dim")
    assert tree.posterior_predictive.x.dims == ("chain", "draw", "data", "x_dim")
    assert tree.posterior_predictive.x.dtype.kind == tree.observed_data.x.dtype.kind == "i"
    assert tree.log_likelihood.x.dims == ("chain", "draw", "data")
    s = tree.sample_stats
    assert s.log_weight.dims == ("chain", "draw", "data") and s.khat.shape == (1, 30)
    assert s.log_p.dims == s.log_q.dims == ("chain", "draw")
    np.testing.assert_allclose(s.log_weight.sum("data"), s.log_p - s.log_q, atol=1e-3)
    conditional = ConditionalVAE(6, classes=3, latent_dim=2, hidden=(5,))
    y = torch.arange(30) % 3
    tree = to_datatree(conditional.model, conditional.guide, x, y, draws=2)
    assert tree.constant_data.y.dims == ("data",) and tree.observed_data.x.shape == (30, 6)


def test_a_mini_batch_fit_is_asked_about_all_of_the_data_it_is_given():
    x = (torch.rand(30, 6) > 0.5).float()
    run = fit(VAE(6, latent_dim=2, hidden=(5,)), x, steps=5, batch_size=10, **OPTIONS)
    s = to_datatree(run, x[:20], draws=3).sample_stats
    np.testing.assert_allclose(s.log_weight.sum("data"), s.log_p - s.log_q, atol=1e-3)


def test_supports_and_discrete_latents():
    """A simplex, a sum over a discrete latent, a count; the likelihood keeps the site's name."""
    x = torch.tensor([0.0, 1.0, 4.0, 5.0, 6.0])

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rate[..., k] if rate.dim() == 1 else rate.gather(
                -1, k.expand(*rate.shape[:-2], len(x)))), obs=x)  # fmt: skip

    blocked = pyro.poutine.block(model, hide=["k"])
    tree = to_datatree(model, AutoNormal(blocked), x, draws=7, vectorized=False)
    assert set(tree.posterior.data_vars) == {"weights", "rate", "k"}
    assert tree.posterior.weights.dims == ("chain", "draw", "weights_dim")
    assert tree.unconstrained_posterior.weights.shape == (1, 7, 2)
    assert tree.log_likelihood.x.dims == ("chain", "draw", "data")
    assert tree.observed_data.x.values.tolist() == [0, 1, 4, 5, 6]
    assert tree.posterior_predictive.x.dtype.kind == "i"
    p, rate = (tree.posterior[n].values[0, :, None] for n in ("weights", "rate"))
    mixture = np.log((p * stats.poisson.pmf(x.numpy()[:, None], rate)).sum(-1))
    np.testing.assert_allclose(tree.log_likelihood.x.values[0], mixture, atol=1e-4)


def test_one_by_one_is_the_same_tree(run):
    tree = to_datatree(run, DATA, draws=3, vectorized=False)
    other = to_datatree(run, DATA, draws=3)
    for group in GROUPS:
        for name, v in other[group].data_vars.items():
            assert tree[group][name].dims == v.dims and tree[group][name].shape == v.shape
    p = tree.posterior
    np.testing.assert_allclose(p.theta, p.mu + p.tau * p.z, rtol=1e-5, atol=1e-5)


def test_a_point_guide():
    tree = to_datatree(non_centred, AutoDelta(non_centred), DATA, draws=30)
    assert "khat" not in tree.sample_stats  # one point: all weights are the same
    assert np.ptp(tree.posterior.mu.values) == 0


@pytest.mark.parametrize("chunk", [9, 20])
def test_written_in_chunks(run, tmp_path, chunk):
    options = {"draws": 20, "chunk": chunk, "coords": {"school": NAMES}}
    path = write_datatree(tmp_path / "fit.nc", run, DATA, **options)
    held = to_datatree(run, DATA, **options)
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert set(tree.children) == set(held.children)
        for group in held.children:
            xr.testing.assert_equal(tree[group].ds, held[group].ds)
    with pytest.raises(FileExistsError):
        write_datatree(path, run, DATA)


def test_written_as_zarr(run, tmp_path):
    path = write_datatree(tmp_path / "fit.zarr", run, DATA, draws=100, chunk=30)
    held = to_datatree(run, DATA, draws=100, chunk=30)
    with xr.open_datatree(path, engine="zarr", consolidated=False) as tree:
        for group in held.children:
            xr.testing.assert_equal(tree[group].ds, held[group].ds)


def test_chunks_bound_the_draws_per_run(run, monkeypatch):
    import inference.pairs.gate as module

    seen = []
    real = module.log_weights
    monkeypatch.setattr(
        module, "log_weights", lambda *a, **k: seen.append(k.get("particles", 1)) or real(*a, **k)
    )
    to_datatree(run, DATA, draws=25, chunk=10)
    assert [k for k in seen if k > 2] == [10, 10, 5]  # two at a time are looks at the pair


def test_names_can_be_given(run):
    tree = to_datatree(
        run, DATA, draws=2, dims={"theta": ["place"]}, coords={"place": list("abcdefgh")}
    )
    assert tree.posterior.theta.dims == ("chain", "draw", "place")
    assert tree.posterior.z.dims == ("chain", "draw", "school")


def test_plates_that_clash_with_names():
    def model(data):
        with pyro.plate("draw", 3), pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data + 1)

    tree = to_datatree(model, AutoNormal(model), torch.zeros(2, 3), draws=4)
    assert tree.posterior.z.dims == ("chain", "draw", "data", "draw_plate")
    assert tree.observed_data.x.dims == ("data", "draw_plate")
    assert tree.constant_data.data.dims == ("data_plate", "data_dim")


def test_refusals(run, tmp_path):
    with pytest.raises(ValueError, match="draws: expected a whole number of at least 1"):
        to_datatree(run, DATA, draws=0)
    with pytest.raises(ValueError, match="groups: expected some of posterior"):
        to_datatree(run, DATA, groups=["postrior"])
    with pytest.raises(ValueError, match=r"'school' of site '.*' has 8 elements, got 2 labels"):
        to_datatree(run, DATA, draws=2, coords={"school": ["a", "b"]})
    with pytest.raises(ValueError, match=r"ends in .nc or .zarr"):
        write_datatree(tmp_path / "fit.h5", run, DATA)
    with pytest.raises(TypeError, match="set with splits"):
        from zoo.data import load

        to_datatree(VAE(64), load("digits"))
    with pytest.raises(ValueError, match="at least one run"):
        to_datatree([], DATA)


@pytest.mark.slow
def test_arviz_takes_it_unchanged():
    import matplotlib

    matplotlib.use("agg")
    run = fit(non_centred, AutoMultivariateNormal(non_centred), DATA, elbo=elbo.Trace(4),
              steps=1_000, lr=0.02, schedule="cosine", **OPTIONS)  # fmt: skip
    tree = to_datatree(run, DATA, draws=2_000, coords={"school": NAMES})
    s = tree.sample_stats
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        loo = arviz_stats.loo_approximate_posterior(tree, s.log_p, s.log_q, pointwise=True)
    # the reference draws give -30.69; a school is off by 0.4 / √200 nats with an ESS of 200
    assert abs(loo.elpd + 30.69) < 4 * 0.4 * (8 / 200) ** 0.5
    names = {"var_names": ["mu", "tau"]}
    drawn = [
        arviz_plots.plot_khat(loo),
        arviz_plots.plot_ppc_dist(tree),
        arviz_plots.plot_prior_posterior(tree, **names),
        arviz_plots.plot_forest(tree),
        arviz_plots.plot_psense_dist(tree, **names),
        arviz_plots.plot_loo_pit(tree),
    ]
    for figure in drawn:
        figure.savefig("/dev/null", format="png")
        matplotlib.pyplot.close("all")


@pytest.mark.slow
def test_the_gallery_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(arviz_plots, "plot_psense_dist", arviz_plots.plot_forest)  # slow: see above
    path = Path(__file__).parents[2] / "examples" / "arviz_gallery.py"
    tree = runpy.run_path(str(path))["main"](steps=200, out=str(tmp_path / "gallery"))
    names = {"khat", "ppc_dist", "prior_posterior", "forest", "psense_dist", "loo_pit"}
    assert {p.stem for p in (tmp_path / "gallery").glob("*.png")} == names
    assert tree.posterior.school.values[0] == "Choate" and "elpd_loo" in capsys.readouterr().out
