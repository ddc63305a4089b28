"""A pair of the user's own at the command: by file and name, its data by columns."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest
import torch
import xarray

import zoo.report.diagnosis as on_page
import zoo.report.page as page
from zoo.cli import run
from zoo.cli.own import arguments_by_name, own_card
from zoo.cli.skeleton import AUTOENCODER, REGRESSION
from zoo.tables import read_named

TINY = shlex.split("--steps 40 --lr 0.05 --compile no")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Work in an empty folder, and draw nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "png", lambda drawing, theme: b"\x89PNG")
    monkeypatch.setattr(on_page, "_drawn", lambda diagnosis, theme: {})
    monkeypatch.setattr("inference.judging.diagnosis.WEIGHED", 2_000)


@pytest.fixture
def told(capsys):
    """Run the command; its status, and what it printed."""

    def call(text):
        status = run(shlex.split(text))
        return status, capsys.readouterr()

    return call


SCHOOLS = '''
import pyro, pyro.distributions as dist, torch

def model(effect, error, scale: float = 5.0):
    """Eight schools, not centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, scale))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, error), obs=effect)

class NoGuide:
    def model(self, x): ...
'''


def schools(path):
    """The model in a file and the data in another: Rubin 1981."""
    (path / "schools.py").write_text(SCHOOLS)
    table = pd.DataFrame({
        "name": list("ABCDEFGH"), "effect": [28, 8, -3, 7, -1, 1, 18, 12],
        "error": [15, 10, 16, 11, 9, 11, 10, 18],
    })  # fmt: skip
    table.to_csv(path / "schools.csv", index=False)


def test_a_model_and_a_table_become_a_page(told, tmp_path):
    """Columns go to arguments by name, a column that is not asked for is left alone."""
    schools(tmp_path)
    status, out = told("fit schools.py:model --data schools.csv --scale 3 "
                       "--guide mean-field --steps 40 --compile no")  # fmt: skip
    assert status == 0, out.err
    folder = tmp_path / "runs" / "model-schools-001"
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == f"{tmp_path}/schools.py:model" and config["options"]["scale"] == 3
    assert json.loads((folder / "diagnosis.json").read_text())["verdict"]
    html = (folder / "report.html").read_text()
    assert "Posterior" in html and "tau" in html and "8 rows" in out.out
    with xarray.open_datatree(folder / "posterior.nc") as tree:
        assert tree.posterior["mu"].dims == ("chain", "draw")
        assert tree.posterior["z"].sizes["school"] == 8


@pytest.mark.slow
def test_a_run_of_ones_own_is_read_only_when_its_file_is_named(told, tmp_path):
    """A folder names a file; no code is run because a folder says so."""
    schools(tmp_path)
    assert told("fit schools.py:model --data schools.csv --steps 10 --compile no")[0] == 0
    (tmp_path / "schools.py").write_text(
        SCHOOLS + "\nimport pathlib\npathlib.Path('ran').touch()\n"
    )
    status, out = told("diagnose runs/model-schools-001")
    assert status == 2 and "--pair" in out.err and not (tmp_path / "ran").exists()
    assert told("diagnose runs/model-schools-001 --pair schools.py:model")[0] == 0
    assert (tmp_path / "ran").exists()
    both = "--elbo trace --elbo iwae:4 --draws 8"
    assert told(f"compare runs/model-schools-001 --pair schools.py:model {both}")[0] == 0


@pytest.mark.slow
def test_the_posterior_of_a_file(told, tmp_path):
    schools(tmp_path)
    status, out = told("posterior schools.py:model --data schools.csv --seconds 30")
    assert status == 0 and "evidence" in out.out, out.err
    folder = tmp_path / "runs" / "posterior-model-schools-001"
    found = json.loads((folder / "posterior.json").read_text())
    with xarray.open_datatree(folder / "posterior.nc") as tree:
        mu = tree.posterior["mu"].values
    assert found["trust"] and abs(mu.mean() - 4.41) < 0.1 * 3.31  # posteriordb's reference draws


def test_a_class_is_fitted_as_the_catalogue_is(told, tmp_path):
    """Options come from its signature; rows are split, the page is that of a density."""
    (tmp_path / "pair.py").write_text(AUTOENCODER.format(stem="pair", title="Pair"))
    few = "--steps 5 --compile no --hidden 4 --particles 10 --test-rows 5"
    status, out = told(f"fit pair.py:Pair --data pinwheel --latent-dim 1 {few}")
    assert status == 0, out.err
    assert "10,000 training" in out.out and "ELBO" in out.out
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=list("abc"))
    rows.to_csv(tmp_path / "mine.csv", index=False)
    status, out = told(f"fit pair.py:Pair --data mine.csv {few}")
    assert status == 0 and "32 training, 4 validation and 4 test rows of 3 values" in out.out
    assert told("check pair.py:Pair --data mine.csv")[0] == 0


def test_columns_and_categories_name_the_draws(told, tmp_path):
    (tmp_path / "line.py").write_text(REGRESSION.format(stem="line", title="Line"))
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(size=30), "height": rng.normal(size=30)})
    frame["y"] = frame["age"] - frame["height"]
    frame.to_parquet(tmp_path / "line.parquet")
    assert told("fit line.py:model --data line.parquet --steps 30 --compile no")[0] == 0
    with xarray.open_datatree(tmp_path / "runs/model-line-001/posterior.nc") as tree:
        assert tree.posterior["slope_dim"].values.tolist() == ["age", "height"]
    assert "slope[height]" in (tmp_path / "runs/model-line-001/report.html").read_text()


def test_arguments_by_name():
    """Words become codes, whole numbers stay whole only where the model indexes with them."""
    named = read_named(pd.DataFrame({
        "town": ["b", "a", "b"], "k": [2, 0, 1], "a": [0.5, 1.5, 2.5], "y": [1.0, 2.0, 3.0],
    }))  # fmt: skip

    def by_float(x, town, y, size=None): ...

    def by_index(k, y):
        torch.zeros(3)[k]

    x, town, y = arguments_by_name(by_float, named, "mine")
    assert torch.equal(x, torch.tensor([[2, 0.5], [0, 1.5], [1, 2.5]]))
    assert town.tolist() == [1, 0, 1] and town.dtype == torch.int64 and y.tolist() == [1, 2, 3]
    k, _ = arguments_by_name(by_index, named, "mine")
    assert k.dtype == torch.int64 and k.tolist() == [2, 0, 1]


@pytest.mark.parametrize("text, message", [
    ("fit nowhere.py:Pair --data digits", "there is no file"),
    ("fit schools.py:Modell --data digits", "with one of the pairs and models in schools.py"),
    ("fit schools.py --data digits", "expected FILE:NAME"),
    ("fit schools.py:NoGuide --data digits", "has a method model and no guide"),
    ("fit broken.py:model --data digits", "broken.py, line 2 could not be imported: NameError"),
    ("fit no.such.module:Pair --data digits", "could not be imported: No module named 'no'"),
    ("fit schools.py:model --data other.csv", "takes 'effect', which is no column; there are a"),
    ("fit schools.py:model", "--data: name the data of your pair"),
    ("fit schools.py:model --data dates.csv", "column 'effect' holds dates"),
    ("fit schools.py:model --data schools.csv --guide full", "there is no 'full'"),
    ("posterior schools.py:model --data schools.csv --drop x", "has no column 'x'"),
    ("new 3d", "expected a name such as my_pair"),
    ("new schools", "schools.py exists already"),
])  # fmt: skip
def test_mistakes_are_one_sentence(told, tmp_path, text, message):
    schools(tmp_path)
    (tmp_path / "broken.py").write_text("import torch\nmodel = missing\n")
    (tmp_path / "other.csv").write_text("a\n1\n2\n3\n")
    (tmp_path / "dates.csv").write_text("effect,error\n2020-01-01,1\n2020-01-02,2\n")
    status, out = told(text)
    assert status == 2 and message in out.err, out.err
    assert out.err.startswith("zoo: ") and out.err.count("\n") == 1


def test_a_new_pair_is_fitted_and_its_test_is_there(told, tmp_path):
    status, out = told("new mine")
    assert status == 0 and "zoo posterior mine.py:model --data mine.csv" in out.out
    assert {p.name for p in tmp_path.iterdir()} == {"mine.py", "mine.csv", "test_mine.py"}
    assert told("check mine.py:model --data mine.csv")[0] == 0
    assert own_card("mine.py:model").summary.startswith("y_i ~ N(intercept")
    assert told("new other --kind autoencoder")[0] == 0
    assert {a.name for a in own_options("other.py:Pair")} == {"latent_dim", "hidden"}


def own_options(reference):
    from zoo.cli.options import FILLED, arguments

    return arguments(own_card(reference).load(), skip=FILLED)


def test_packages_of_others_are_in_the_catalogue(monkeypatch, told, tmp_path):
    """Entry points: a model, an estimator, a guide."""
    from importlib import metadata

    from inference import elbo, make_guide
    from zoo.cli.options import estimator

    (tmp_path / "theirs.py").write_text(
        AUTOENCODER.format(stem="theirs", title="Theirs")
        + "\nfrom inference import elbo\nclass Mine(elbo.Trace): pass\n"
        + "def guide_of(model, scale=1.0): return ('theirs', model)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    every = [
        metadata.EntryPoint("their-vae", "theirs:Pair", "zoo.models"),
        metadata.EntryPoint("mine", "theirs:Mine", "zoo.estimators"),
        metadata.EntryPoint("odd", "theirs:guide_of", "zoo.guides"),
    ]

    def entry_points(group):
        return [e for e in every if e.group == group]

    for where in ("zoo.cli.own.importlib.metadata", "zoo.cli.options", "inference.guides.make"):
        monkeypatch.setattr(f"{where}.entry_points", entry_points)
    status, out = told("fit their-vae --data pinwheel --steps 3 --compile no --particles 10")
    assert status == 0, out.err
    assert isinstance(estimator("mine:3"), elbo.Trace)
    assert make_guide("odd", own_options)[0] == "theirs"
