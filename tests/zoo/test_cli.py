"""The command: what it writes, what it refuses and how, and that Ctrl-C loses nothing."""

import gzip
import json
import shlex
import shutil

import numpy as np
import pytest
import torch
import xarray
from markupsafe import escape

import zoo.report.page as page
from inference.judging.comparison import Comparison
from inference.training.progress import Progress
from inference.training.saved import read_run
from zoo.cards import CARDS
from zoo.cli import judged, run
from zoo.cli.options import arguments, described, estimator, numbers, option, shown
from zoo.data import SETS
from zoo.report.theme import png

COMMANDS = ("fit", "report", "sample", "list", "mixture", "diagnose", "compare")
TINY = shlex.split("--steps 6 --batch-size 16 --compile no --particles 30 --test-rows 12")
VAE = ["fit", "vae", *TINY, "--hidden", "8", "--latent-dim", "2"]
FEW = shlex.split("--elbo trace --elbo iwae:4 --rows 4 --draws 8")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Work in an empty folder, and draw nothing; `draws` and `fitted` do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "png", lambda drawing, theme: b"\x89PNG")
    monkeypatch.setitem(judged.JUDGE, "steps", 20)


@pytest.fixture
def draws(monkeypatch):
    """Draw small pictures, in light colours only; a call ends it."""
    drawn = {}
    monkeypatch.setattr("zoo.report.theme.DPI", 20)
    monkeypatch.setattr(page, "png", lambda d, theme: drawn.setdefault(d, png(d)))
    return lambda: monkeypatch.setattr(page, "png", lambda drawing, theme: b"\x89PNG")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """One VAE run for every test that only reads it."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.report.theme.DPI", 20)
        assert run([*VAE, "--out", str(folder)]) == 0
    return folder


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def config(folder):
    return json.loads((folder / "config.json").read_text())


def figures(folder):
    """The numbers of `metrics.json`."""
    told = json.loads((folder / "metrics.json").read_text())
    return {k: v for k, v in told.items() if not isinstance(v, str)}


# ---------------------------------------------------------------- lists and help


def test_list_is_one_line_a_model_in_a_pipe(capsys):
    assert run(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["name", "what it is", "paper", "trained by", "known exactly"]
    assert [line.split("\t")[0] for line in lines] == list(CARDS)
    assert all(len(line.split("\t")) == 5 for line in lines)


def test_list_names_data_sets_and_estimators(capsys):
    assert run(["list", "data"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SETS)
    assert run(["list", "estimators"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("trace:", "mean-field:", "beta:", "iwae:", "dreg:"))


@pytest.mark.parametrize("argv", [["--help"], ["fit", "--help"], ["sample", "-h"]])
def test_help_names_the_commands(argv, capsys):
    assert run(argv) == 0
    assert "Usage" in capsys.readouterr().out


def test_help_of_a_model_lists_its_own_options_with_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["fit", "vae", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--latent-dim", "[8; 2 for tables]", "--elbo", "[trace]", "--steps", "[10000]"):
        assert word in out, word


# ---------------------------------------------------------------- a run


def test_a_run_folder_holds_everything(fitted):
    names = tree(fitted)
    files = "config.json metrics.json history.csv state.safetensors posterior.nc report.html"
    pictures = "loss samples reconstructions latent_space latent_grid kl_per_dimension khat"
    assert {*files.split(), *(f"figures/{p}.png" for p in pictures.split())} <= set(names)
    plan = config(fitted)
    assert plan["model"] == "vae" and read_run(fitted).steps == 6
    assert plan["options"]["hidden"] == [8] and plan["options"]["likelihood"] == "bernoulli"
    assert plan["data"].pop("fingerprint") and plan["data"] == {
        "name": "digits", "root": None, "pixels": "dynamic", "table": {},
    }  # fmt: skip
    assert plan["command"].startswith("zoo fit vae --latent-dim 2 --hidden 8 --steps 6")
    numbers = json.loads((fitted / "metrics.json").read_text())
    assert numbers["log_px"] > numbers["elbo"] and numbers["log_px_se"] > 0
    assert numbers["elbo_unit"] == "nats per datum"
    with xarray.open_datatree(fitted / "posterior.nc") as posterior:
        assert posterior["posterior"]["z"].shape == (1, 200, 100, 2)
    html = (fitted / "report.html").read_text()
    assert plan["command"] in html
    assert 'src="http' not in html and "href=" not in html and "<script" not in html


def test_runs_are_numbered_and_never_overwritten(tmp_path, capsys):
    argv = ["fit", "gaussian", "--data", "moons"]
    assert run(argv) == run(argv) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "gaussian-moons-001", "gaussian-moons-002",
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-1] == "runs/gaussian-moons-002/report.html"


def test_the_same_seed_writes_the_same_numbers(fitted, tmp_path):
    assert run([*VAE, "--out", str(tmp_path / "again")]) == 0
    assert figures(fitted) == figures(tmp_path / "again")


@pytest.mark.parametrize(
    "argv, shown",
    [
        (["ml-mixture", "--data", "moons", "--components", "3"], "responsibilities"),
        (["mixture", "--data", "moons", "--components", "3"], "density"),
        (["kernel-density", "--data", "small.csv", "--bandwidth", "0.5"], "density"),
        (["marginals", "--data", "moons"], "density"),
        (["gan", *TINY[:6], "--hidden", "8", "--test-rows", "60"], "critic"),
        (["gan", *TINY[:6], "--data", "digits", "--hidden", "8", "--test-rows", "60"], "nearest"),
        (["diffusion", *TINY, "--timesteps", "6", "--hidden", "8"], "reverse"),
        (["real-nvp", *TINY, "--layers", "2", "--hidden", "8"], "density"),
        (["vqvae", *TINY, "--hidden", "8"], "usage"),
        (["hierarchical-vae", *TINY, "--latent-dims", "3,2", "--hidden", "8/8"], "kl_per_layer"),
        pytest.param(
            ["conditional-vae", *TINY, "--hidden", "8"], "samples", marks=pytest.mark.slow
        ),
        pytest.param(["sparse-autoencoder", *TINY], "reconstructions", marks=pytest.mark.slow),
        pytest.param(["made", *TINY, "--hidden", "8"], "loss", marks=pytest.mark.slow),
        (["implicit-vae", "--steps", "4", "--batch-size", "16", "--compile", "no"], "samples"),
        pytest.param(
            ["mixture", "--trainer", "elbo", "--data", "small.csv", "--components", "2", *TINY],
            "loss",
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_every_family_goes_to_its_trainer_and_its_pictures(argv, shown, tmp_path, draws):
    np.savetxt("small.csv", np.random.default_rng(0).normal(size=(90, 2)), delimiter=",")
    folder = tmp_path / "run"
    assert run(["fit", *argv, "--out", str(folder)]) == 0
    names = tree(folder)
    assert f"figures/{shown}.png" in names
    before = figures(folder)
    assert before
    draws()
    assert run(["report", str(folder)]) == 0  # read back, the same again
    assert figures(folder) == pytest.approx(before, rel=1e-5)


# ---------------------------------------------------------------- draws


def test_sample_writes_pictures_arrays_and_tables(fitted, tmp_path, capsys):
    assert run(["sample", str(fitted), "-n", "9", "--out", "x.npy"]) == 0
    assert np.load("x.npy").shape == (9, 1, 8, 8)
    assert run(["sample", str(fitted), "-n", "9", "--out", "x.csv"]) == 0
    assert np.loadtxt("x.csv", delimiter=",").shape == (9, 64)
    assert run(["sample", str(fitted), "--out", "x.png"]) == 0
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert run(["sample", str(fitted), "--out", "x.png"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_sample_takes_a_label_where_the_model_does(fitted, capsys):
    assert run(["sample", str(fitted), "--label", "7"]) == 2
    assert "conditional-vae does" in capsys.readouterr().err
    assert run(["fit", "conditional-vae", *TINY, "--hidden", "8", "--out", "c"]) == 0
    assert run(["sample", "c", "--label", "7", "-n", "5", "--out", "sevens.npy"]) == 0
    assert np.load("sevens.npy").shape == (5, 1, 8, 8)
    assert run(["sample", "c", "--label", "10"]) == 2
    assert "labels 0 to 9" in capsys.readouterr().err


def test_three_ways_to_fit_a_mixture_side_by_side(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(60, 2)) + np.repeat([[0.0], [9.0]], 30, axis=0)
    np.savetxt("two.csv", x, delimiter=",")
    argv = ["mixture", "--data", "two.csv", "--steps", "5", "--restarts", "2"]
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("EM", "VB", "SVI", "2 of 2", "nats"))
    assert (tmp_path / "runs" / "mixture-two-001.png").read_bytes()[:4] == b"\x89PNG"
    assert run([*argv, "--held-out", "2"]) == 2
    assert "held_out" in capsys.readouterr().err


def test_old_faithful_by_the_command(zoo_data, capsys):
    argv = ["mixture", "--root", str(zoo_data), "--held-out", "0", "--steps", "2"]
    assert run(argv) == 0
    assert "-1130.26" in capsys.readouterr().out


# ---------------------------------------------------------------- verdicts


@pytest.fixture
def mine(fitted, tmp_path, monkeypatch):
    """A copy of the run, to be changed; pictures are small."""
    monkeypatch.setattr("zoo.report.theme.DPI", 20)
    return shutil.copytree(fitted, tmp_path / "mine")


def test_diagnose_puts_its_evidence_on_the_page(mine, tmp_path, capsys):
    page = mine / "report.html"
    before = page.read_text()
    assert 'id="diagnosis"' not in before
    assert run(["diagnose", str(mine), "--rows", "4", "--out", "seen"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(str(page))
    told = json.loads((mine / "diagnosis.json").read_text())
    assert told["verdict"] in ("trust", "trust the corrected posterior", "do not trust")
    assert told == json.loads((tmp_path / "seen" / "diagnosis.json").read_text())
    assert list((tmp_path / "seen").glob("*.png"))
    once = page.read_text()
    for finding in told["findings"]:
        assert escape(finding["what"]) in once
    assert all(escape(reason) in once for reason in told["reasons"])
    names = {p.stem for p in (mine / "figures").glob("diagnosis-*.png")}
    assert {"diagnosis-weights", "diagnosis-gaps", "diagnosis-loss"} <= names
    assert all(f'id="{name}"' in once for name in names)
    assert "On the first 4 test rows." in once


@pytest.mark.slow
def test_a_diagnosis_stands_once_on_a_page_that_is_made_anew(mine, capsys):
    page = mine / "report.html"
    assert run(["diagnose", str(mine), "--rows", "4"]) == 0
    told, once = json.loads((mine / "diagnosis.json").read_text()), page.read_text()
    # again, and the report anew: still once, and the rest of the page as it was
    assert run(["diagnose", str(mine), "--rows", "4"]) == 0 and page.read_text() == once
    assert run(["report", str(mine)]) == 0
    again = page.read_text()
    assert again.count('id="diagnosis"') == 1 and all(escape(r) in again for r in told["reasons"])
    # an old page is not read; the data it is made from are checked
    page.write_text("<html><script>0</script></html>")
    assert run(["diagnose", str(mine), "--rows", "4"]) == 0 and page.read_text() == again
    (mine / "page" / "report.json").write_text("[]")
    assert run(["diagnose", str(mine), "--rows", "4"]) == 2
    assert "report.json" in capsys.readouterr().err
    assert run(["report", str(mine)]) == 0 and page.read_text().count('id="diagnosis"') == 1


def test_compare_puts_the_estimators_named_on_the_page(fitted, tmp_path, capsys):
    mine = tmp_path / "mine"
    shutil.copytree(fitted, mine)
    assert run(["compare", str(mine), *FEW]) == 0
    out = capsys.readouterr().out
    assert "Trace(1)" in out and "IWAE(4)" in out and str(mine / "report.html") in out
    page = mine / "report.html"
    once = page.read_text()
    assert once.count('id="comparison"') == 1 and "IWAE(4)" in once and "Use " in once
    assert {"Trace(1)", "IWAE(4)"} == set(Comparison.read(mine / "comparison.nc").estimator.values)
    assert (mine / "figures" / "comparison-figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_comparison_stands_once_beside_a_diagnosis(mine):
    page = mine / "report.html"
    assert run(["compare", str(mine), *FEW]) == 0
    assert run(["diagnose", str(mine), "--rows", "4"]) == 0
    assert run(["compare", str(mine), *FEW]) == 0 and run(["report", str(mine)]) == 0
    again = page.read_text()
    assert again.count('id="comparison"') == again.count('id="diagnosis"') == 1


@pytest.mark.slow
def test_compare_fits_a_model_first(tmp_path, capsys):
    argv = ["compare", "vae", *FEW, "--steps", "6", "--latent-dim", "2", "--out", "new"]
    assert run(argv) == 0
    assert 'id="comparison"' in (tmp_path / "new" / "report.html").read_text()
    assert read_run("new").steps == 6


# ---------------------------------------------------------------- Ctrl-C


@pytest.fixture
def ctrl_c(monkeypatch):
    """Press Ctrl-C at the first report of a step after the given one; 0 is before the first."""
    real = Progress.update

    def press(after):
        def update(self, step, *args, **kwargs):
            if step > after:
                monkeypatch.setattr(Progress, "update", real)
                raise KeyboardInterrupt
            return real(self, step, *args, **kwargs)

        monkeypatch.setattr(Progress, "update", update)

    return press


def test_ctrl_c_keeps_what_was_reached_and_says_how_to_go_on(ctrl_c, capsys, tmp_path):
    ctrl_c(after=2)
    assert run([*VAE, "--out", "half"]) == 130
    err = capsys.readouterr().err
    assert "interrupted at step 3 of 6" in err and "zoo fit --resume half" in err
    assert read_run("half").stopped == "interrupted"
    assert "Stopped at step 3 of 6" in (tmp_path / "half" / "report.html").read_text()
    assert run(["fit", "--resume", "half", "--out", "whole"]) == 0
    assert read_run("whole").steps == 6
    assert config(tmp_path / "whole")["resumed"] == str(tmp_path / "half")
    assert run([*VAE, "--out", "straight"]) == 0
    straight, whole = read_run("straight"), read_run("whole")
    assert all(map(torch.equal, straight.variables.flat(), whole.variables.flat()))
    assert straight.losses == whole.losses
    assert figures(tmp_path / "straight") == figures(tmp_path / "whole")


def test_ctrl_c_before_the_first_step_writes_nothing(monkeypatch, capsys, tmp_path):
    def press(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("inference.training.steps.EagerStep.__call__", press)
    assert run([*VAE, "--out", "none"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not tree(tmp_path)


def test_a_run_that_is_done_asks_for_more_steps(fitted, capsys):
    assert run(["fit", "--resume", str(fitted)]) == 2
    assert "ask for more" in capsys.readouterr().err
    assert run(["fit", "vae", "--resume", str(fitted)]) == 2


# ---------------------------------------------------------------- bad input

NAN = "1,2\n3,nan\n" + "4,5\n" * 20
WIDE = "\n".join(f"{i},{3 * i}" for i in range(30))


@pytest.mark.parametrize(
    "argv, words",
    [
        (["fti"], ["fit"]),
        (["fit"], ["zoo list"]),
        (["fit", "vea"], ["'vea'", "did you mean vae"]),
        (["fit", "vae", "--latentdim", "3"], ["--latentdim", "--latent-dim"]),
        (["fit", "vae", "--latent-dim", "x"], ["--latent-dim", "integer"]),
        (["fit", "vae", "--latent-dim", "0"], ["latent_dim", "at least 1"]),
        (["fit", "vae", "--hidden", "20,b"], ["--hidden", "200,200"]),
        (["fit", "vae", "--data", "digit"], ["digits"]),
        (["mixture", "--data", "wide.csv", "--components", "90"], ["components", "90"]),
        (["mixture", "--out", "taken/x.gif"], [".png"]),
        (["fit", "vae", "--data", "mnist", "--root", "empty"], ["empty/MNIST/raw", "root"]),
        (["fit", "vae", "--data", "mnist", "--root", "cut"], ["truncated", "download"]),
        (["fit", "vae", "--data", "gone.csv"], ["gone.csv"]),
        (["fit", "vae", "--data", "nan.csv"], ["misses 1 of 22 values", "row 1"]),
        (
            ["fit", "vae", "--data", "wide.csv", "--likelihood", "bernoulli"],
            ["[0, 1]", "likelihood='gaussian'"],
        ),
        (["fit", "vae", "--likelihood", "bernouli"], ["bernoulli"]),
        (["fit", "vae", "--pixels", "dynamo"], ["pixels", "dynamic"]),
        (["fit", "conditional-vae", "--data", "wide.csv"], ["labels"]),
        (["fit", "real-nvp", "--data", "one.csv"], ["at least 2 dimensions"]),
        (["fit", "made", "--pixels", "none"], ["binary"]),
        (["fit", "vae", "--elbo", "trece"], ["trece", "trace"]),
        (["fit", "vae", "--elbo", "iwae:0"], ["particles", "at least 1"]),
        (["fit", "vae", "--elbo", "beta:-1"], ["beta", ">= 0"]),
        (["fit", "vae", "--elbo", "beta:1,warmpu=3"], ["warmup"]),
        (["fit", "vae", "--particles", "0"], ["--particles", "at least 1"]),
        (["fit", "vae", "--steps", "0"], ["--steps", "at least 1"]),
        (["fit", "vae", "--batch-size", "5000"], ["1439", "5000"]),
        (["fit", "vae", "--lr", "-1"], ["lr", "> 0"]),
        (["fit", "vae", "--compile", "maybe"], ["--compile", "auto"]),
        (["fit", "vae", "--device", "cuda:99"], ["cuda:99", "not on this machine"]),
        (["fit", "vae", "--device", "gpu"], ["gpu", "not on this machine"]),
        (["fit", "gan", "--objective", "wassertein"], ["wasserstein"]),
        (["fit", "gan", "--batch-size", "50000"], ["10000"]),
        (["fit", "mixture", "--trainer", "em"], ["variational-bayes or elbo"]),
        (["fit", "mixture", "--lr", "0.1"], ["--lr", "variational-bayes"]),
        (["fit", "ml-mixture", "--data", "one.csv", "--components", "99"], ["components", "99"]),
        (["fit", "gaussian", "--data", "flat.csv"], ["is 7 in every training row", "--drop 2"]),
        (["fit", "vae", "--out", "taken"], ["taken", "exists"]),
        (["fit", "vae", "--out", "taken/file/run"], ["cannot be written", "--out"]),
        (["fit", "--resume", "nowhere"], ["nowhere", "config.json"]),
        (["report", "taken"], ["taken", "config.json"]),
        (["sample", "nowhere"], ["nowhere"]),
        (["list", "modles"], ["models"]),
        (["diagnose", "nowhere"], ["nowhere"]),
        (["diagnose", "FITTED", "--rows", "0"], ["--rows"]),
        (["diagnose", "FITTED", "--out", "taken"], ["taken"]),
        (["compare", "FITTED", "--elbo", "trece", "--elbo", "stl"], ["trece", "trace"]),
        (["compare", "FITTED", "--elbo", "trace"], ["--elbo", "two"]),
        (["compare", "FITTED", *FEW, "--steps", "9"], ["--steps 9", "fitted already"]),
        (["compare", "real-nvp", *FEW], ["real-nvp", "guide"]),
        (["compare", "vea", *FEW], ["vea", "vae"]),
        (["compare", "vae", *FEW, "--stepz", "9"], ["--stepz", "--steps"]),
        (["compare", "./nowhere", *FEW], ["nowhere", "zoo fit"]),
    ],
    ids=lambda value: " ".join(value) if value[0] in COMMANDS else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(argv, words, capsys, tmp_path, fitted):
    argv = [str(fitted) if word == "FITTED" else word for word in argv]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    raw = tmp_path / "cut" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    whole = gzip.compress(b"\x00\x00\x08\x03" + bytes(100))
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(whole[:-9])
    for name, text in (("nan", NAN), ("wide", WIDE), ("one", "\n".join(map(str, range(40)))),
                       ("flat", "\n".join(f"{i},7" for i in range(40)))):  # fmt: skip
        (tmp_path / f"{name}.csv").write_text(text)
    before = tree(tmp_path)

    assert run(argv) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("zoo: "), err
    for word in words:
        assert word in err, (word, err)
    assert tree(tmp_path) == before


def test_a_damaged_run_is_named(fitted, tmp_path, capsys):
    shutil.copytree(fitted, "damaged")
    path = tmp_path / "damaged" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert run(["report", "damaged"]) == 2
    err = capsys.readouterr().err
    assert "state.safetensors" in err and len(err.splitlines()) == 1


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("zoo.cli.catalogue.show", lambda what: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(["list"])


# ---------------------------------------------------------------- options


def test_numbers_and_what_is_shown_are_inverse():
    assert numbers("200,200") == (200, 200) and numbers("none") == () and numbers("(3,)") == (3,)
    assert shown((200, 200)) == "200,200" and shown(()) == "none"
    assert shown(((1, 2), (3,))) == "1,2/3"


def test_a_docstring_explains_several_arguments_at_once():
    doc = (
        "A line.\n\nArgs:\n    a, b: first,\n        and more.\n    c: `x`.\n\nReturns:\n    d: no."
    )
    assert described(doc) == {"a": "first, and more.", "b": "first, and more.", "c": "x."}


def test_options_follow_the_annotations():
    def function(a: int = 1, b: str | None = None, c: tuple[int, ...] = (2,), *, d: bool = False):
        pass

    found = {x.name: x for x in arguments(function)}
    assert [found[n].kind for n in "abcd"] == [int, str, str, bool]
    assert found["d"].typed(True) == ["--d"] and found["d"].typed(False) == ["--no-d"]
    assert option(found["d"]).annotation.__metadata__[0].default == "--d/--no-d"
    assert found["c"].read("4,5") == (4, 5)


@pytest.mark.parametrize(
    "spec, shows",
    [
        ("trace", "Trace(1)"), ("Mean_Field", "MeanField(1)"),
        ("beta:4", "Beta(4, 1)"), ("iwae:8", "IWAE(8)"),
        ("beta:0.5,particles=3", "Beta(0.5, 3)"),
    ],
)  # fmt: skip
def test_estimators_by_name_and_arguments(spec, shows):
    assert repr(estimator(spec)) == shows
    assert estimator("beta:1,warmup=10").warmup == 10


def test_complete_writes_a_picture_and_tells_its_nats(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(["fit", "made", "--steps", "2", "--hidden", "8", "--out", str(folder)]) == 0
    out = tmp_path / "rest.png"
    assert run(["complete", str(folder), "--given", "top", "--rows", "2", "-n", "8",
                "--out", str(out)]) == 0  # fmt: skip
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "log p(rest | part)  −" in capsys.readouterr().out
    assert run(["complete", str(folder), "--given", "1-64"]) == 2
    assert "got all of them" in capsys.readouterr().err
