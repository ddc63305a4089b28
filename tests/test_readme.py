"""What the documents say runs: the README's example, its table, and the skeletons to start from."""

import itertools
import json
import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch

from inference import elbo, fit
from zoo.cards import CARDS, Card
from zoo.cli.fit import fit_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(text, language):
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def table():
    """The catalogue as the README shows it."""
    head = "| name | what it is | paper | trained by | known exactly |\n|---|---|---|---|---|"
    rows = []
    for family, cards in itertools.groupby(CARDS.values(), key=lambda c: c.family):
        rows.append(f"| **{family}** | | | | |")
        cells = ((f"`{c.name}`", c.summary, c.paper, c.trained, c.exact) for c in cards)
        rows += [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells
        ]
    return "\n".join([head, *rows])


def test_the_first_screen_says_how_to_start():
    screen = "\n".join(README.splitlines()[:30])
    assert screen.index("make demo") < screen.index("```python")
    assert screen.index("make test") < screen.index("```python")
    (example,) = blocks(README, "python")
    assert len([line for line in example.splitlines() if line.strip()]) == 6


def test_the_example_runs(capsys):
    (example,) = blocks(README, "python")
    assert "steps=5_000" in example
    exec(compile(example.replace("5_000", "20"), "README.md", "exec"), {})
    assert "nats per datum" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_runs_as_it_stands(capsys):
    (example,) = blocks(README, "python")
    exec(compile(example, "README.md", "exec"), {})
    assert "nats per datum" in capsys.readouterr().out


def test_the_table_is_the_catalogue():
    shown = re.search(r"<!-- catalogue -->\n(.*)\n<!-- /catalogue -->", README, re.S)
    assert shown and shown[1] == table(), (
        "the README's table is stale; write it anew: python tests/test_readme.py"
    )


def test_the_leaderboard_is_what_the_command_found():
    made = runpy.run_path(str(ROOT / "docs" / "make_readme_leaderboard.py"))
    shown = re.search(r"<!-- leaderboard -->\n(.*)\n<!-- /leaderboard -->", README, re.S)
    found = json.loads((ROOT / "docs" / "leaderboard.json").read_text())
    assert shown and shown[1] == made["table"](found), "stale: make readme-leaderboard"
    for board in found["sets"].values():  # what is bold is within error of the best
        assert board["rows"][0]["within_error"]


def test_every_command_in_the_readme_is_one(capsys, monkeypatch, tmp_path):
    """Each `zoo` line names a command and options that exist."""
    import shlex

    from zoo.cli import run

    monkeypatch.chdir(tmp_path)
    assert run(["new", "my_pair"]) == 0  # the pair that some of them are about
    lines = [line.split("#")[0] for block in blocks(README, "sh") for line in block.splitlines()]
    for words in (shlex.split(line)[1:] for line in lines if line.startswith("zoo ")):
        options = [w for w in words if w.startswith("-")]
        command = words[: 2 if words[0] == "fit" and not words[1].startswith("-") else 1]
        assert run([*command, "--help"]) == 0
        told = capsys.readouterr().out
        for name in options:
            assert name in told, (words, name)


@pytest.fixture
def skeleton():
    """The model of CONTRIBUTING.md, as the module it would be."""
    source, card, *_ = blocks(CONTRIBUTING, "python")
    module = types.ModuleType("zoo.factor_analysis")
    sys.modules[module.__name__] = module
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    yield module.FactorAnalysis, eval(card, {"Card": Card, "LATENT": "One layer of latents"})
    del sys.modules[module.__name__]


def test_the_skeleton_of_a_model_is_a_model(skeleton):
    cls, card = skeleton
    run = fit(cls(3), (torch.randn(64, 3),), steps=4, compile=False, progress=False)
    assert run.pair.sample(5).shape == (5, 3)
    told = {p.name: p.help for p in fit_command(card).params}
    assert told["latent_dim"].startswith("L, the number of factors.")


@pytest.mark.slow
def test_the_skeleton_of_a_model_compiles(skeleton):
    cls, _ = skeleton
    assert fit(cls(3), (torch.randn(64, 3),), steps=4, compile=True, progress=False).compiled


def test_the_skeleton_of_an_estimator_is_one():
    from inference.testing.estimators import check_estimator

    _, _, source, _ = blocks(CONTRIBUTING, "python")
    names: dict = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    assert "checks passed" in str(check_estimator(names["Median"](particles=5), draws=2_000))


def test_a_choice_kept_between_bound_and_surrogate_is_one():
    """Bound and surrogate of the skeleton see one coin, draw by draw."""
    from inference.testing.toys import LinearGaussian

    *_, source = blocks(CONTRIBUTING, "python")
    names: dict = {"elbo": elbo, "torch": torch}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    toy, estimator = LinearGaussian(), names["EitherHalf"](4)
    for _ in range(8):
        value, surrogate = estimator.value_and_surrogate(toy.model, toy.guide, toy.data())
        assert float(value) == float(surrogate.detach())


if __name__ == "__main__":
    start, end = "<!-- catalogue -->\n", "\n<!-- /catalogue -->"
    before, rest = README.split(start)
    after = rest.split(end.lstrip("\n"))[1]
    (ROOT / "README.md").write_text(before + start + table() + end + after)
