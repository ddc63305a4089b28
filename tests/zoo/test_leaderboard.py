"""The leaderboard: exact densities in the units of the data, errors paired, all in order."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import zoo.report.page as page
from inference import fit
from inference.estimate import Estimate
from zoo.cli import run
from zoo.cli.columns import with_columns
from zoo.cli.leaderboard import compare_models, dequantised, held_out_values
from zoo.data import load
from zoo.report import Subject
from zoo.report.leaderboard import Leaderboard, Row
from zoo.vae import VAE

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(RNG.normal(size=(200, 3)) * [1, 10, 100] + [5, 0, -3], columns=list("abc"))


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Work in an empty folder, and draw nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "png", lambda drawing, theme: b"\x89PNG")
    return tmp_path


def test_numbers_are_in_the_units_of_the_data_whatever_was_standardised():
    """The Gaussian of best fit is equivariant, so its log density is known in both units."""
    data = load(TABLE)
    best = torch.distributions.MultivariateNormal(
        data.train.double().mean(0), torch.cov(data.train.double().mT, correction=0)
    )
    for given in (data, data.standardised()):
        found = compare_models(given, ["gaussian"], seconds=1.0)
        row = next(r for r in found.rows if r.name == "gaussian")
        torch.testing.assert_close(row.values, best.log_prob(data.test.double()), atol=1e-4, rtol=0)
        bits = json.loads(found.to_json())["rows"][found.rows.index(row)]["bits_per_dim"]
        assert bits == pytest.approx(-row.mean.value / 3 / math.log(2))


def test_differences_are_paired_over_data():
    """Two models whose values differ by a constant differ by it exactly, however both vary."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double() * 10
    rows = [Row("a", values), Row("b", values - 0.5), Row("c", values - 0.1 * values.abs())]
    board = Leaderboard("made up", 2, rows, baselines=("a",), flows=("b",))
    assert board.behind(rows[1]).value == pytest.approx(0.5)
    assert board.behind(rows[1]).se == pytest.approx(0, abs=1e-12) and not board.tied(rows[1])
    assert "b does not beat a: 0.50 ± 0.00" in str(board)
    assert Leaderboard("one", 2, rows[:1]).lines_below() == [
        "a is best, by more than two standard errors, paired over data."
    ]


def test_a_bound_is_within_error_as_far_as_its_gap_reaches():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    exact, bound = Row("a", values), Row("b", values - 0.5, kind="≥", gap=Estimate(0.3, 0.1))
    board = Leaderboard("made up", 2, [exact, bound])
    assert not board.within_error(exact, bound) and not board.tied(bound)
    reaching = dataclasses.replace(bound, gap=Estimate(0.6, 0.1))
    board = Leaderboard("made up", 2, [exact, reaching])
    assert board.tied(reaching) and board.like(exact) == [2] and board.like(reaching) == [1]
    row = board.to_dict()["rows"][1]
    assert row["at_most"] == pytest.approx(float(values.mean()) + 0.1)
    assert row["within_error_of"] == ["a"]


@pytest.mark.slow
def test_the_truth_is_between_the_bound_and_its_gap():
    """A VAE with linear networks and unit noise is a Gaussian, whose log p(x) is known."""
    torch.manual_seed(0)
    data = load(TABLE).standardised()
    vae = VAE(3, latent_dim=1, hidden=(), likelihood="gaussian-unit")
    run = fit(vae, data, steps=30, compile=False, progress=False)
    subject = Subject(run.pair, data)
    with torch.no_grad():
        b = run.pair.decoder(torch.zeros(1))
        w = run.pair.decoder(torch.ones(1)) - b
    exact = torch.distributions.MultivariateNormal(b, torch.outer(w, w) + torch.eye(3))
    truth = float(exact.log_prob(data.test).mean()) + data.log_det
    values, kind = held_out_values(subject, run, "test")
    row = with_columns(Row("vae", values, kind), subject, run)
    assert kind == "≥" and row.code_words == "of 1 active"
    low, high = float(values.mean()), float(values.mean()) + row.gap.value
    error = 4 * row.gap.se + 0.02  # of the importance weights beside that of the chains
    assert low - error < truth < high + error and row.gap.value < 0.5


def test_draws_of_a_copy_are_not_told_apart_and_those_of_a_shifted_one_are():
    data = load(pd.DataFrame(RNG.normal(size=(2_000, 2)), columns=["a", "b"]))

    class Normal:
        def __init__(self, shift):
            self.shift = shift

        def sample(self, n):
            return torch.randn(n, 2) + self.shift

    found = [with_columns(Row("n", torch.zeros(9)), Subject(Normal(s), data), None).told_apart
             for s in (0.0, 2.0)]  # fmt: skip
    assert abs(found[0].value - 0.5) < 5 * found[0].se and found[1].value > 0.8


def test_columns_of_few_whole_numbers_are_dequantised():
    data = load(TABLE.assign(k=RNG.integers(0, 4, 200), m=np.arange(200)))
    noisy, names = dequantised(data, seed=0)
    assert names == ["k"]  # m never repeats
    added = noisy.train[:, 3] - data.train[:, 3]
    assert added.min() >= 0 and added.max() < 1 and len(added.unique()) > 100
    assert torch.equal(noisy.train[:, [0, 1, 2, 4]], data.train[:, [0, 1, 2, 4]])


def test_a_model_that_fails_keeps_its_line():
    found = compare_models(load(TABLE), ["gaussian", "made"], seconds=1.0)
    last = found.rows[-1]
    assert last.name == "made" and last.values is None and "binary" in last.why.lower()
    assert found.to_dict()["rows"][-1]["log_px"] is None
    assert "MADE needs binary" in " ".join(str(found).split())


def test_the_command_writes_a_page_and_runs_lists_it(here, capsys):
    TABLE.to_csv(here / "mine.csv", index=False)
    models = "gaussian,ml-mixture,kernel-density"
    assert run(["leaderboard", "--data", "mine.csv", "--models", models, "--minutes", "0.1"]) == 0
    folder = here / "runs" / "leaderboard-mine-001"
    found = json.loads((folder / "leaderboard.json").read_text())
    names = [r["model"] for r in found["rows"]]
    assert {*models.split(",")} < {*names} and "gaussian-mixture (scikit-learn)" in names
    assert [r["log_px"] for r in found["rows"]] == sorted(
        (r["log_px"] for r in found["rows"]), reverse=True
    )
    html = (folder / "report.html").read_text()
    assert "kernel-density" in html and "within error of" in html
    capsys.readouterr()
    assert run(["runs"]) == 0
    assert "leaderboard-mine-001" in capsys.readouterr().out


@pytest.mark.parametrize("argv, message", [
    (["--models", "gan"], "gan has no density"),
    (["--models", "vea"], "did you mean"),
    (["--minutes", "0"], "--minutes: expected a positive number"),
    (["--data", "nowhere.csv"], "there is no file"),
    (["--standardise", "maybe"], "--standardise: expected yes or no"),
])  # fmt: skip
def test_mistakes_are_one_sentence(here, capsys, argv, message):
    assert run(["leaderboard", "--data", "moons", *argv]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_flows_are_fitted_and_bounds_are_marked(here):
    found = compare_models(load(TABLE).standardised(), ["maf", "vae"], seconds=60)
    kinds = {r.name: r.kind for r in found.rows}
    assert kinds["maf"] == "exact" and kinds["vae"] == "≥"
    data = load(TABLE)
    truth = torch.distributions.Normal(torch.tensor([5.0, 0, -3]), torch.tensor([1.0, 10, 100]))
    best = float(truth.log_prob(data.test).sum(1).mean())
    for row in found.rows:  # Gaussian data: nothing can be far above the truth on 20 rows
        gap = truth.log_prob(data.test).sum(1).double() - row.values
        assert float(gap.mean()) > -3 * float(gap.std()) / len(gap) ** 0.5, (row.name, best)
