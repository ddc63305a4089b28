"""The leaderboard: exact densities in the units of the data, errors paired, all in order."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import zoo.report.page as page
from zoo.cli import run
from zoo.cli.leaderboard import compare_models, dequantised
from zoo.data import load
from zoo.report.leaderboard import Leaderboard, Row

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
    assert "kernel-density" in html and "tied" in html
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
