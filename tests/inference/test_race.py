"""Noise of mini-batches, the time of a step, and races, against what they must be."""

import math
import runpy
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference import compare, elbo
from inference.judging.comparison.race import Lane, behind, sureness
from inference.testing.toys import GlobalLocal, LinearGaussian, Switch


def exact_gradients(pair, x):
    """Enum's gradient of each row alone, (rows, P): it has no Monte Carlo noise."""
    rows = []
    for row in x:
        _, surrogate = elbo.Enum().value_and_surrogate(pair.model, pair.guide, row[None])
        g = torch.autograd.grad(surrogate, [pair.p["log_odds"], pair.p["m"]])
        rows.append(torch.stack(g))
    return torch.stack(rows)


def test_noise_of_mini_batches_is_the_variance_between_rows():
    pair = Switch()
    x = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64)
    of_rows = exact_gradients(pair, x).var(0).sum()
    kept = {"draws": 199, "reference": 0.0, "compile": False}
    whole = compare(pair, x, [elbo.Enum()], **kept).sel(group="model").isel(estimator=0)
    assert float(whole.variance) == 0
    for found, truth in (
        (whole, of_rows / 12),  # these rows stand for others
        (
            compare(pair, x, [elbo.Enum()], batch_size=4, **kept)
            .sel(group="model")
            .isel(estimator=0),
            of_rows / 4 * (1 - 4 / 12),  # four of just these, without replacement
        ),
    ):
        assert abs(float(found.variance_batch) - float(truth)) < 5 * float(found.variance_batch_se)
        assert float(found.variance_batch_se) < 0.3 * float(truth)
        assert float(found.variance_step) == float(found.variance_batch)
    all_data = compare(pair, x, [elbo.Enum()], batch_size=12, **kept)
    assert float(all_data.variance_step.sel(group="model").max()) == 0


@pytest.mark.slow
def test_both_parts_are_those_of_steps_that_are_made():
    """Gradients of IWAE on random rows of a large set: their variance is that of a step."""
    toy, generator = LinearGaussian(), torch.Generator().manual_seed(0)
    many = torch.randn(2_000, 3, generator=generator, dtype=torch.float64)
    found = compare(toy, many[:16], [elbo.IWAE(2)], draws=400, compile=False, reference=0.0)
    rows, params = [], list(toy.parameters())
    for _ in range(300):
        x = many[torch.randint(2_000, (16,), generator=generator)]
        _, surrogate = elbo.IWAE(2).value_and_surrogate(toy.model, toy.guide, x, nesting=1)
        g = torch.autograd.grad(surrogate / 16, params)
        rows.append(torch.cat([v.flatten() for v in g]))
    total = float(torch.stack(rows).var(0).sum())
    at = found.isel(estimator=0, group=np.flatnonzero(found.is_half.values))
    measured = float(at.variance_step.sum())
    assert abs(math.log(measured / total)) < 0.6  # 16 rows say what 2,000 vary, and heavy tails
    assert float(at.variance_batch.sum()) > 0.05 * measured
    assert np.allclose(at.variance_step, at.variance + at.variance_batch)


def test_every_number_has_its_error_and_the_table_shows_variance():
    toy = LinearGaussian()
    found = compare(toy, toy.data(), [elbo.Trace(), elbo.DReG(2)], draws=40)
    for name in ("value", "bias", "variance", "snr", "snr_step", "ms", "efficiency"):
        assert (found[f"{name}_se"] >= 0).all() and found[name].dims == found[f"{name}_se"].dims
        assert found[f"{name}_se"].attrs["long_name"].startswith("standard error")
    assert "variance model (batches)" in str(found.table())
    assert list(found.step.values) == ["eager", "eager"]  # few draws: a quick look


def test_a_figure_of_ten_estimators_of_one_k_each_hides_none():
    toy = Switch(exact=True)
    listed = [elbo.Trace(2), elbo.STL(2), elbo.Score(2), elbo.Enum(), elbo.IWAE(2), elbo.VIMCO(2),
              elbo.MIWAE(2, 1), elbo.CIWAE(0.5, 2), elbo.Renyi(0.5, 2),
              elbo.Beta(1.0, 2)]  # fmt: skip
    found = compare(toy, toy.data(), listed, draws=16, reference=0.0)
    assert float(found.variance.min()) == 0  # whose SNR is infinite
    drawn = found.plot()
    snr, _, efficiency, layers = drawn.axes
    assert len(snr.get_yticks()) == len(efficiency.get_yticks()) == len(layers.lines) == 10
    for axes in (snr, efficiency):
        low, high = axes.get_xlim()
        places = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
        assert len(places) == 20 and all(low < p < high for p in places)


def test_a_reference_is_no_bound_where_its_weights_are_bad():
    class Far(nn.Module):
        """The guide lies 6 standard deviations beside the posterior, and is narrow."""

        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(6.0))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc.expand(len(x)), 0.2))

    found = compare(Far(), torch.linspace(-1, 1, 8), [elbo.Trace()], draws=8)
    assert math.isnan(found.attrs["log_px"]) and math.isnan(found.attrs["log_px_se"])
    assert "no estimate, because importance weights of 100 % of the data are bad" in str(found)
    assert "lower bound" not in str(found)


@pytest.mark.parametrize("given", [torch.zeros(5), "high", (1.0, 2.0, 3.0), math.nan, (0.0, -1.0)])
def test_a_reference_is_one_number(given):
    toy = LinearGaussian()
    with pytest.raises(ValueError, match="reference: expected log p"):
        compare(toy, toy.data(), [elbo.Trace()], draws=4, reference=given)


def test_a_race_finds_what_noise_cannot_tell():
    """ForwardKL leaves the model as it is, on data that are four times as wide as it says."""
    toy = LinearGaussian()
    x = 4 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1)).double()
    found = compare(
        toy, x, [elbo.Trace(), elbo.ForwardKL(2)], draws=16, race=2.0, lr=0.1, batch_size=20,
        seeds=2, compile=False,
    )  # fmt: skip
    assert found.recommendation == "Trace(1)" == found.attrs["race_winner"]
    assert found.attrs["race"].startswith("log p(x)") and found.attrs["race_data"] == 40
    at = found.sel(estimator="ForwardKL(2)")  # which does not train the model
    assert float(at.race_behind) > 2 * float(at.race_behind_se) > 0
    assert float(found.race_seconds.sel(estimator="Trace(1)")) == 2.0
    steps = float(found.race_steps.sel(estimator="Trace(1)"))
    assert steps == round(2e3 / float(found.ms.sel(estimator="Trace(1)")))
    assert (
        "it has the best held-out log p(x)" in found.because
        and "so the lead is one, then, with" in found.because
    )
    again = type(found)(found.data_vars, found.coords, found.attrs)
    assert "behind" in str(again.table())


@pytest.mark.slow
def test_a_race_of_latents_for_all_data_is_judged_by_the_elbo():
    toy = GlobalLocal()
    found = compare(
        toy, toy.data(), [elbo.Trace(), elbo.STL()], draws=8, race=2.0, seeds=1, compile=False
    )
    assert found.attrs["race"] == "ELBO" and found.attrs["race_unit"] == "nats"
    assert set(found.race_steps.values) != {0}


def test_leads_are_paired():
    generator = torch.Generator().manual_seed(0)
    data, seeds = torch.randn(1, 400, generator=generator), torch.zeros(2, 1)
    noise = 0.1 * torch.randn(2, 400, generator=generator)
    first, second = Lane(elbo.Trace(), 1.0), Lane(elbo.STL(), 1.0)
    first.scores, second.scores = 5 * data + seeds, 5 * data + seeds - 0.2 + noise
    gap, se = behind(first, second)
    assert abs(gap - 0.2) < 5 * se < 0.2 and se < 0.02  # the data's own spread is 0.25
    assert sureness(gap, se) > 0.999 and sureness(0.0, 1.0) == 0.5


def test_races_that_are_none_are_refused():
    toy = LinearGaussian()
    x = toy.data().repeat(4, 1)
    with pytest.raises(ValueError, match=r"race: expected at least .* in which the held-out rows"):
        compare(toy, x, [elbo.Trace(), elbo.STL()], draws=4, race=1e-5)
    with pytest.raises(ValueError, match="race: expected a number > 0"):
        compare(toy, x, [elbo.Trace()], draws=4, race=-1)
    with pytest.raises(ValueError, match="give race=SECONDS too"):
        compare(toy, x, [elbo.Trace()], draws=4, valid=x)
    with pytest.raises(ValueError, match=r"batch_size: expected 1 \.\. 20"):
        compare(toy, x, [elbo.Trace()], draws=4, batch_size=21)


@pytest.mark.slow
def test_binary_digits_race(tmp_path):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "discrete_digits.py"))
    found = example["main"](
        out=tmp_path / "digits.png", seconds=3.0, seeds=2, rows=300, draws=40
    )  # fmt: skip
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert found.sizes["estimator"] == 7 and (found.race < 0).all()
    product = found.variance_step.sel(group="guide") * found.ms  # what a gradient of a kind costs
    assert float(product.sel(estimator="DisARM(1)")) > 0
