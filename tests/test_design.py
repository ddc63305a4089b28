"""`docs/design.md` is the map: its table is the list of rooms, and its Python runs."""

import importlib
import re
from pathlib import Path

import pytest
from test_architecture import ROOMS
from test_readme import README, blocks

ROOT = Path(__file__).parent.parent
DESIGN = (ROOT / "docs" / "design.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_table_is_the_list_of_rooms():
    table = re.search(r"<!-- rooms -->\n(.*)\n<!-- /rooms -->", DESIGN, re.S)[1]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.M)) == ROOMS


def test_the_readme_leads_to_it():
    assert "(docs/design.md)" in README


def test_every_file_it_names_exists():
    named = re.findall(r"`((?:zoo|inference|tests)/[\w/.]+)`", DESIGN)
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]


def test_its_python_runs(capsys):
    """The blocks follow each other, as a reader would type them."""
    source = "\n".join(blocks(DESIGN, "python"))
    names = {"__name__": "design"}
    exec(compile(source, "docs/design.md", "exec"), names)
    assert "nats" in capsys.readouterr().out
    mean = names["posterior"].posterior["mean"].values
    # N(0, 10²) prior and 100 data of unit noise: the posterior is N(Σ x / 100.01, 1 / 100.01); the
    # fit's own noise is a fraction of that standard deviation
    assert mean.mean() == pytest.approx(float(names["x"].sum()) / 100.01, abs=0.1)


def test_what_moved_is_where_the_changelog_says():
    table = re.search(r"<!-- moved -->\n(.*)\n<!-- /moved -->", CHANGELOG, re.S)[1]
    new = [row.strip("| ").split(" | ")[1].strip("`") for row in table.splitlines()[2:]]
    assert len(new) > 10 and all(map(importlib.import_module, new))
