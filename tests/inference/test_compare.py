"""compare against closed forms: values, biases, groups, references, the recommendation."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn
from torch.distributions import Normal, kl_divergence
from truths import linear_gaussian_posterior
from wrong_estimators import IWAEWithoutScore

from inference import elbo, fit
from inference.judging.comparison import Comparison, compare
from inference.testing.toys import GlobalLocal, LinearGaussian, Switch
from zoo.vae import VAE


@pytest.fixture(scope="module")
def found():
    toy = LinearGaussian()
    x = toy.data()
    listed = [elbo.Trace(), elbo.STL(), elbo.IWAE(2), elbo.IWAE(16), elbo.DReG(2), elbo.DReG(16),
              IWAEWithoutScore(16), elbo.WakeSleep(16)]  # fmt: skip
    with torch.random.fork_rng():
        return compare(toy, x, listed, draws=2_000, reference=toy.log_px(x), compile=False)


def test_it_is_a_dataset(found):
    assert isinstance(found, xr.Dataset) and isinstance(found, Comparison)
    assert found.sizes == {"estimator": 8, "group": 4}
    assert list(found.group.values) == ["model", "guide", "p", "guide_"]
    assert list(found.half.values) == ["model", "guide", "model", "guide"]
    assert list(found.parameters.values) == [9, 10, 9, 10]
    assert found.attrs["unit"] == "nats per datum"
    assert list(found.particles.values) == [1, 1, 2, 16, 2, 16, 16, 16]


def test_a_module_that_is_a_half_counts_its_parameters_once():
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            pyro.sample("z", dist.Normal(self.loc, 1.0))

    def model(x):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    found = compare(model, Guide(), torch.tensor(0.3), [elbo.Trace()], draws=4)
    assert list(found.group.values) == ["guide"] and list(found.parameters.values) == [1]


def test_values_and_their_gap(found):
    toy = LinearGaussian()
    x = toy.data()
    g, p = toy.guide_, toy.p
    posterior = linear_gaussian_posterior(x, p["w"].detach(), p["b"].detach())  # diagonal
    exact = Normal(posterior.mean, posterior.variance.sqrt())
    guide = Normal(x @ g["a"].T + g["c"], g["log_scale"].exp())
    gap = float(kl_divergence(guide, exact).sum(1).mean().detach())
    at = found.sel(estimator="Trace(1)")
    assert abs(float(at.bias) + gap) < 5 * float(at.bias_se)
    assert abs(found.attrs["log_px"] - float(toy.log_px(x)) / 5) < 1e-12
    assert found.attrs["log_px_se"] == 0 and found.attrs["reference"] == "given by the user"
    assert (found.bias < 5 * found.bias_se).all()


def test_bias_is_found_where_it_is(found):
    guide = found.sel(group="guide")
    sigmas = np.abs(guide.gradient_bias) / guide.gradient_bias_se
    of = dict(zip(found.estimator.values, sigmas.values))
    assert of["IWAEWithoutScore(16)"] > 20
    assert of["STL(1)"] < 5 and of["DReG(2)"] < 5 and of["DReG(16)"] < 5
    assert math.isnan(of["WakeSleep(16)"])  # follows no bound
    model = found.sel(group="model", estimator=["STL(1)", "DReG(16)", "IWAEWithoutScore(16)"])
    assert np.allclose(model.gradient_bias, 0, atol=1e-9)  # they differ in the guide only


def test_signal_to_noise_of_the_guide(found):
    snr = found.snr.sel(group="guide")
    assert snr.sel(estimator="IWAE(16)") < snr.sel(estimator="IWAE(2)")
    assert snr.sel(estimator="DReG(16)") > snr.sel(estimator="DReG(2)")
    model = found.snr.sel(group="model")
    assert np.isclose(model.sel(estimator="DReG(16)"), model.sel(estimator="IWAE(16)"))


def test_variance_is_that_of_single_gradients(found):
    toy = LinearGaussian()
    x = toy.data()
    rows = []
    for _ in range(400):
        _, surrogate = elbo.IWAE(2).value_and_surrogate(toy.model, toy.guide, x, nesting=1)
        g = torch.autograd.grad(surrogate / 5, list(toy.guide_.parameters()))
        rows.append(torch.cat([v.flatten() for v in g]))
    total = torch.stack(rows).var(0).sum()
    measured = float(found.variance.sel(group="guide", estimator="IWAE(2)"))
    assert abs(math.log(measured / float(total))) < 0.5  # heavy tails: 400 rows against 2,000


def test_the_recommendation_is_fair_and_explained(found):
    assert found.recommendation not in ("IWAEWithoutScore(16)", "WakeSleep(16)")
    text = str(found)
    assert f"Use {found.recommendation}: " in text and "signal per second of training" in text
    assert "where training with each ends, it cannot know" in text
    assert "not its aim" in text and "2000 draws, batched, on cpu" in text
    assert len(str(found.table()).splitlines()) == 9
    assert (found.ms > 0).all()
    at = found.sel(estimator="Trace(1)", group="guide")
    assert np.isclose(at.efficiency, 1e3 / (at.variance_step * at.ms))


def test_figure(found):
    drawn = found.plot()
    assert len(drawn.axes) == 4
    snr, variance, efficiency, layers = drawn.axes
    for axes in (snr, variance):
        assert axes.get_xscale() == axes.get_yscale() == "log"
    assert len(efficiency.get_yticks()) == 8 and len(layers.lines) == 8


def test_written_and_read_again(found, tmp_path):
    paths = found.save(tmp_path / "run")
    assert [p.name for p in paths] == [f"comparison.{e}" for e in ("nc", "txt", "csv", "png")]
    again = Comparison.read(paths[0])
    assert again.attrs == found.attrs
    plain = [xr.Dataset(d.data_vars, d.coords) for d in (again, found)]
    xr.testing.assert_equal(*plain)
    assert str(again) == str(found) == paths[1].read_text().rstrip("\n")
    assert len(paths[2].read_text().splitlines()) == 1 + 8 * 4


def test_what_is_selected_of_it_can_be_printed_and_written(found, tmp_path):
    assert "Use " in str(found.sel(estimator=["Trace(1)", "STL(1)"]))
    best = found.recommendation
    rest = found.isel(estimator=np.flatnonzero(found.estimator.values != best))
    assert f"Use {best}" not in str(rest) and "Use " in str(rest)
    for part in (found.sel(estimator="Trace(1)"), found.isel(group=0), found.mean("group"),
                 found[["snr"]], found.mean(), found.isel(group=0, estimator=0)):  # fmt: skip
        part.to_csv(tmp_path / "part.csv")
        assert len((tmp_path / "part.csv").read_text().splitlines()) > 1
        assert "xarray.Comparison" in str(part) and repr(part) == str(part)
        assert "snr" in part._repr_html_()


def test_variables_have_names_and_units(found):
    for name, variable in found.data_vars.items():
        assert variable.attrs["long_name"] and variable.attrs["units"], name
    assert found.value.attrs["units"] == "nats per datum" and found.ms.attrs["units"] == "ms"


def test_a_guide_without_a_density_has_no_reference():
    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.3))

        def model(self, x):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Delta(self.loc))

    found = compare(Point(), torch.tensor(0.7), [elbo.Trace()], draws=8)
    assert "no estimate, because the guide gives 'z' as a point" in str(found)
    assert "nan" not in str(found)


def test_discrete_latents_have_an_exact_reference():
    toy = Switch()
    x = toy.data()
    found = compare(toy, x, [elbo.Enum(), elbo.VIMCO(4), elbo.Score(4)], draws=400, compile=False)
    assert found.attrs["reference"] == "exact sum over the discrete latents"
    assert abs(found.attrs["log_px"] * 5 - float(toy.log_px(x))) < 1e-12
    guide = found.sel(group="guide")
    lead = guide.snr_step - guide.snr_step.sel(estimator="Enum(1)")
    error = np.hypot(guide.snr_step_se, guide.snr_step_se.sel(estimator="Enum(1)"))
    assert bool((lead <= -5 * error).drop_sel(estimator="Enum(1)").all())
    assert float(found.variance.sel(estimator="Enum(1)", group="guide")) == 0


def test_a_tight_bound_stands_in_for_log_px():
    toy = LinearGaussian(exact=True)
    x = toy.data()
    found = compare(toy, x, [elbo.Trace()], draws=10)
    assert found.attrs["reference"].startswith("IWAE(1000), a lower bound")
    assert abs(found.attrs["log_px"] * 5 - float(toy.log_px(x))) < 1e-9


def test_global_latents_and_two_functions():
    toy = GlobalLocal()
    x = toy.data()
    found = compare(
        toy.model, toy.guide, (x,), [elbo.Trace(), elbo.DReG(4)], draws=200, compile=False
    )
    assert found.attrs["unit"] == "nats" and set(found.half.values) == {"model", "guide"}
    assert (found.bias.values < 5 * found.bias_se.values).all()


def test_a_run_is_compared_at_its_parameters():
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    vae = VAE(6, latent_dim=2, hidden=(5,))
    run = fit(vae, x, steps=30, lr=0.05, progress=False, batch_size=20)
    of_run = compare(run, x[:8], [elbo.Trace()], draws=400, compile=False)
    of_pair = compare(run.pair, x[:8], [elbo.Trace()], draws=400, compile=False)
    before = compare(vae, x[:8], [elbo.Trace()], draws=400, compile=False)
    assert abs((of_run.value - of_pair.value).item()) < 1e-5
    assert abs((of_run.value - before.value).item()) > 5 * before.value_se.item()
    assert "encoder.0" in of_run.group.values


def test_nothing_outside_is_changed():
    toy = LinearGaussian()
    state, params = torch.random.get_rng_state(), [p.clone() for p in toy.parameters()]
    first = compare(toy, toy.data(), [elbo.STL()], draws=20)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(params, toy.parameters()))
    assert not pyro.get_param_store().keys()
    again = compare(toy, toy.data(), [elbo.STL()], draws=20)
    assert np.array_equal(first.snr, again.snr)  # one seed, the same numbers


def test_a_pair_that_cannot_be_batched_is_drawn_one_by_one():
    class Simplex(nn.Module):
        def __init__(self):
            super().__init__()
            self.rates = nn.Parameter(torch.ones(3).double())

        def model(self, x):
            p = pyro.sample("p", dist.Dirichlet(x.new_ones(3)))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Categorical(p), obs=x.long())

        def guide(self, x):
            pyro.sample("p", dist.Dirichlet(self.rates))

    found = compare(Simplex(), torch.tensor([0.0, 1.0, 2.0]).double(), [elbo.Trace()], draws=10)
    assert found.attrs["how"] == "one by one" and "draws one by one" in found.attrs["notes"]
    assert "Note: Trace(1): draws one by one" in str(found)


@pytest.mark.slow
def test_compiled_draws_have_the_same_law():
    toy = LinearGaussian()
    x = toy.data()
    listed = [elbo.IWAE(4), elbo.DReG(4)]
    eager = compare(toy, x, listed, draws=4_000, compile=False)
    compiled = compare(toy, x, listed, draws=4_000, compile=True)
    assert compiled.attrs["how"] == "recorded"
    assert np.allclose(eager.value, compiled.value, atol=5 * float(eager.value_se.max()))
    assert np.allclose(eager.variance, compiled.variance, rtol=0.3)


def test_mistakes_are_named():
    toy = LinearGaussian()
    x = toy.data()
    with pytest.raises(ValueError, match="estimators: expected a list"):
        compare(toy, x, [])
    with pytest.raises(ValueError, match="draws: expected a whole number of at least 4"):
        compare(toy, x, [elbo.Trace()], draws=1)
    with pytest.raises(TypeError, match="a pair with methods `model` and `guide`"):
        compare(lambda x: None, x, [elbo.Trace()])
    with pytest.raises(ValueError, match="no parameters"):
        compare(lambda x: None, lambda x: None, x, [elbo.Trace()])
    with pytest.raises(ValueError, match="not reparameterised"):
        compare(Switch(), Switch().data(), [elbo.DReG(4)])


def test_estimators_that_refuse_the_pair_are_listed_and_the_others_go_on(tmp_path):
    pair = Switch()
    found = compare(pair, pair.data(), [elbo.DReG(4), elbo.Trace(4), elbo.Enum()], draws=20)
    assert list(found.estimator.values) == ["Trace(4)", "Enum(1)"]
    assert list(found.refused) == ["DReG(4)"] and "not reparameterised" in found.refused["DReG(4)"]
    assert "Left out: DReG(4): guide site" in str(found)
    found.save(tmp_path)
    again = type(found).read(tmp_path / "comparison.nc")
    assert again.refused == found.refused and str(again) == str(found)
