"""Three fits side by side: the same truths, one table, one figure."""

import math
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import Ellipse

from zoo.em import (
    GaussWishart,
    compare_mixtures,
    expectation_maximization,
    variational_bayes,
)
from zoo.mixture import GaussianMixture
from zoo.vae import VAE

f64 = {"dtype": torch.float64}
QUICK = {"steps": 40, "draws": 200, "restarts": 3, "compile": False}


def clusters(n=60, d=2):
    centres = torch.eye(2, **f64)[:, :d] * 5
    x = centres[torch.randint(2, (n,))] + torch.randn(n, d, **f64)
    return x * torch.logspace(0, 2, d, **f64) + 7


def test_with_one_component_all_agree():
    x = clusters()
    pair = GaussianMixture(2, 1, mean_precision=0.5)
    before = {k: v.clone() for k, v in pair.state_dict().items()}
    found = compare_mixtures(x, pair, **{**QUICK, "steps": 300}, held_out=0).methods
    em, vb, svi = found["EM"], found["VB"], found["SVI"]
    assert em.log_likelihood == pytest.approx(expectation_maximization(x, 1).log_likelihood)
    # the order of the rows is shuffled, so sums round differently
    assert vb.elbo.value == pytest.approx(
        variational_bayes(x, 1, mean_precision=0.5).elbo
    )  # the evidence
    assert svi.elbo.value < vb.elbo.value + 4 * svi.elbo.se
    assert svi.elbo.value == pytest.approx(vb.elbo.value, abs=0.1)
    assert em.elbo.because == "EM bounds no evidence" and not em.held_out
    assert all(m.components_used == 1 for m in found.values())
    # no fit beats the maximum of the likelihood
    assert em.log_likelihood >= max(vb.log_likelihood, svi.log_likelihood)
    for name, value in pair.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_two_clusters(covariance):
    x = clusters(100)
    found = compare_mixtures(x, GaussianMixture(2, 2, covariance), **{**QUICK, "steps": 200})
    assert found.x.shape == (80, 2) and found.held_out.shape == (20, 2)
    for m in found.methods.values():
        assert m.components_used == 2 and m.responsibilities.shape == (80, 2)
        assert torch.allclose(m.responsibilities.sum(-1), torch.ones(80, **f64))
        truth = float(m.mixture.log_prob(found.x).sum())
        assert m.log_likelihood == pytest.approx(truth, rel=1e-12)
        assert m.seconds > 0 and math.isfinite(m.held_out.value) and m.held_out.se > 0
    em, vb, svi = found.methods.values()
    predictive = {
        "EM": em.mixture,
        "VB": vb.result.posterior,
        "SVI": GaussWishart(**svi.result.pair.posterior()),
    }
    for name, law in predictive.items():
        truth = float(law.log_prob(found.held_out).mean())
        assert found.methods[name].held_out.value == pytest.approx(truth, rel=1e-9)
    # the clusters are the same, up to the order of the components, within 4 posterior deviations
    same = torch.cdist(vb.mixture.means, svi.mixture.means).argmin(-1)
    spread = vb.mixture.covariances
    spread = spread.diagonal(dim1=1, dim2=2) if covariance == "full" else spread
    error = (spread / vb.responsibilities.sum(0).unsqueeze(-1)).sqrt()
    assert ((vb.mixture.means - svi.mixture.means[same]).abs() < 4 * error).all()
    text = str(found)
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["EM", "VB", "SVI"]
    assert "2 of 2" in text and "80 data fitted, 20 held out" in text and "–" in text


def test_same_seed_same_numbers():
    x, pair = clusters(), GaussianMixture(2, 2)
    one, other = (compare_mixtures(x, pair, **QUICK, seed=4).methods["SVI"] for _ in range(2))
    assert one.elbo == other.elbo and one.held_out == other.held_out


@pytest.mark.parametrize("d, ellipses", [(1, 0), (2, 4)])  # two ellipses for each component
def test_figure(d, ellipses, tmp_path):
    figure = compare_mixtures(clusters(d=d), GaussianMixture(d, 2), **QUICK).plot()
    assert len(figure.axes) == 6
    assert [a.get_title().split(":")[0] for a in figure.axes[:3]] == ["EM", "VB", "SVI"]
    assert sum(isinstance(p, Ellipse) for p in figure.axes[0].patches) == ellipses
    figure.savefig(tmp_path / "mixtures.png")
    assert not plt.get_fignums()  # nothing is left open


@pytest.mark.parametrize(
    "x, keywords, words",
    [
        (torch.randn(4, 2), {}, "6 for 4 rows"),
        (torch.randn(7, 2), {}, "per fitted datum, got 6 for 5"),
        (torch.full((9, 2), math.nan), {}, "NaN"),
        (torch.randn(9, 2), {"held_out": 1.0}, "held_out"),
        (torch.randn(9, 2), {"draws": 1}, "draws"),
        (torch.randn(9, 3), {}, r"shape \(N, 2\)"),
    ],
)
def test_refuses(x, keywords, words):
    held_out = {"held_out": 0.4} if len(x) == 7 else {}
    with pytest.raises(ValueError, match=words):
        compare_mixtures(x, GaussianMixture(2), **{**QUICK, **held_out, **keywords})


def test_refuses_another_pair():
    with pytest.raises(TypeError, match="VAE has no components"):
        compare_mixtures(torch.randn(9, 2), VAE(2, latent_dim=1))


@pytest.mark.parametrize("real", [True, False])
def test_example(real, tmp_path, monkeypatch, request):
    if real:
        request.getfixturevalue("zoo_data")
    else:
        monkeypatch.delenv("ZOO_DATA", raising=False)
    main = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "old_faithful.py"))["main"]
    found = main(components=3, steps=20, out=str(tmp_path / "mixtures.png"))
    assert len(found.x) + len(found.held_out) == 272
    assert (tmp_path / "mixtures.png").stat().st_size > 0
