"""The figures of examples/ that show what the estimators do, and the numbers behind them."""

import itertools
import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from inference import compare, elbo
from inference.draws.measures import Moments
from inference.judging.comparison.gradients import Gradients
from inference.pairs.pair import Pair

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def slope(counts, values):
    return np.polyfit(np.log(counts), np.log(values), 1)[0]


# ---------------------------------------------------------------- Rainforth et al. 2018


def test_rainforth_gap_at_the_optimum():
    """KL(N(m, 2/3 I) || N(m, 1/2 I)) in 20 dimensions: 0.4565 nats; 2/3 as a deviation, 0.0667."""
    eye = torch.eye(20).double()
    posterior = MultivariateNormal(torch.zeros(20).double(), eye / 2)
    for variance, gap in ((2 / 3, 0.4565), (4 / 9, 0.0667)):
        q = MultivariateNormal(torch.zeros(20).double(), variance * eye)
        assert abs(kl_divergence(q, posterior) - gap) < 5e-5
    module = example("rainforth_snr")
    pair, x, _ = module["setting"](n=64)
    with torch.no_grad():
        pair.A.copy_(torch.eye(20) / 2)
        pair.b.copy_(pair.mu / 2)
    found = compare(pair, x, [elbo.Trace()], draws=400, reference=0.0, compile=False)
    log_px = Normal(pair.mu, math.sqrt(2)).log_prob(x).sum().item() / 64
    assert abs(found.value.item() - log_px + 0.4565) < 5 * found.value_se.item()


def gradients(estimator, n, draws):
    """Mean and total variance of the gradients of μ and b."""
    pair, x, _ = example("rainforth_snr")["setting"](n=n)
    sampler = Gradients(Pair(pair.model, pair.guide, (x,)), estimator, (x,), draws=draws)
    moments = Moments()
    while moments.n < draws:
        moments.add(sampler(moments.n)[1])
    return {
        name: (moments.mean[s].norm().item(), moments.variance[s].sum().sqrt().item())
        for name, s in sampler.slices.items()
    }


@pytest.mark.slow
def test_rainforth_slopes():
    """SNR is signal over noise; each has its own power of K.

    The mean of IWAE's gradient is DReG's (test_elbo), whose noise is far below its signal, so the
    signal is measured with DReG and the noise with IWAE, on 64 of the 1,024 data (their number
    moves neither slope).
    """
    counts = (32, 96, 256)
    iwae = [gradients(elbo.IWAE(k), 64, 60) for k in counts]
    dreg = [gradients(elbo.DReG(k), 64, 30) for k in counts]
    signal = slope(counts, [g["b"][0] for g in dreg])
    noise = slope(counts, [g["b"][1] for g in iwae])
    assert abs(signal - noise + 0.5) < 0.05  # the guide under IWAE: K^(-1/2)
    model = slope(counts, [a["mu"][0] / b["mu"][1] for a, b in zip(dreg, iwae)])
    assert abs(model - 0.5) < 0.05
    assert slope(counts, [g["b"][0] / g["b"][1] for g in dreg]) > -0.05  # DReG does not fall
    groups = (1, 4, 16)
    several = [gradients(elbo.MIWAE(m, 16), 64, 200) for m in groups]
    for name in ("mu", "b"):  # the mean does not depend on M
        assert abs(slope(groups, [g[name][1] for g in several]) + 0.5) < 0.05


@pytest.mark.slow
def test_rainforth_example(tmp_path):
    slopes = example("rainforth_snr")["main"](out=tmp_path / "rainforth.png")
    assert abs(slopes["IWAE", "b"] + 0.5) < 0.05
    assert abs(slopes["IWAE", "mu"] - 0.5) < 0.05 and abs(slopes["DReG", "mu"] - 0.5) < 0.05
    assert slopes["DReG", "b"] > -0.05
    assert abs(slopes["MIWAE", "b"] - 0.5) < 0.05 and abs(slopes["MIWAE", "mu"] - 0.5) < 0.05
    assert (tmp_path / "rainforth.png").exists()


@pytest.mark.slow
def test_rainforth_example_runs(tmp_path):
    main = example("rainforth_snr")["main"]
    slopes = main(out=tmp_path / "rainforth.png", particles=(1, 2), groups=(1, 2), draws=8, k=2)
    assert {k for k, _ in slopes} == {"IWAE", "DReG", "MIWAE"}
    assert (tmp_path / "rainforth.png").stat().st_size > 10_000


# ---------------------------------------------------------------- the others


@pytest.mark.slow
def test_bounds_tighten_towards_log_px(tmp_path):
    """ELBO < IWAE_2 < IWAE_8 < IWAE_64 < log p(x), each by several standard errors."""
    found = example("bounds_tighten")["main"](tmp_path / "bounds.png", steps=200)
    assert set(found) == {"VAE of the digits", "linear-Gaussian", "global and local"}
    for name, rows in found.items():
        for (_, low, low_se), (_, high, high_se) in itertools.pairwise(rows):
            assert high - low > 3 * math.hypot(low_se, high_se), name
    assert (tmp_path / "bounds.png").exists()


@pytest.mark.slow
def test_path_derivative_example(tmp_path):
    """No noise at the posterior; without its score IWAE is biased, and DReG is not."""
    main = example("path_derivative")["main"]
    noise, sigmas = main(tmp_path / "path.png", (0.0, 0.4), (1, 4), draws=2_000)
    assert max(noise["STL(1)"][0], noise["DReG(8)"][0]) < 1e-25 < 0.1 < noise["IWAE(8)"][0]
    assert sigmas["StickingIWAE"][1] > 10 and max(map(abs, sigmas["DReG"])) < 4.5
    assert (tmp_path / "path.png").exists()


def test_mini_batches_example(tmp_path):
    found = example("minibatch_iwae")["main"](tmp_path / "batch.png", batches=(4, 64), draws=150)
    ours, pyros = found.values()
    for (_, part, part_se), (_, full, full_se), biased in (
        (*ours, False),
        (*pyros, True),
    ):
        gap = abs(part - full) / math.hypot(part_se, full_se)
        assert gap > 7 if biased else gap < 4.5
    assert (tmp_path / "batch.png").exists()


@pytest.mark.slow
def test_iwae_example_runs_on_digits(tmp_path):
    out = tmp_path / "table.json"
    table = example("iwae_mnist")["main"]("digits", steps=30, seeds=(0,), test=20, out=out)
    assert set(table["log_px"]) == {"VAE", "IWAE-8", "DReG-8"} and table["steps"] == 30
    assert json.loads(out.read_text())["log_px"] == table["log_px"]
