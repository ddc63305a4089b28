"""The site: every block of Python in the documents runs, every command exists, pages are made."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import blocks

from zoo.cards import CARDS
from zoo.cli import run

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "generated" not in p.parts)
QUICK = ("tables.md",)  # the others fit something
EACH = [
    pytest.param(p, id=p.name, marks=() if p.name in QUICK else pytest.mark.slow)
    for p in PAGES
    if blocks(p.read_text(), "python") and p.name != "design.md"  # test_design has that one
]


@pytest.mark.parametrize("page", EACH)
def test_the_python_of_a_page_runs(page, monkeypatch, tmp_path):
    """Its blocks follow each other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    source = "\n".join(blocks(page.read_text(), "python"))
    names = {"__name__": page.stem}
    exec(compile(source, page.name, "exec"), names)
    assert len(names) > 2  # what it imported is there: it ran to its end


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_is_one(page, capsys):
    lines = [line.split("#")[0] for b in blocks(page.read_text(), "sh") for line in b.splitlines()]
    for words in (shlex.split(line)[1:] for line in lines if line.startswith("zoo ")):
        named = len(words) > 1 and words[0] == "fit" and words[1] in CARDS
        assert run([*words[: 1 + named], "--help"]) == 0, words
        told = capsys.readouterr().out
        own = [w for w in words if w.startswith("--")] if named or words[0] != "fit" else []
        fitting = words[0] in ("check", "compare", "diagnose")  # these take options of zoo fit too
        assert all(w in told or fitting for w in own), words


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere():
    told = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/-]+\.md", told))
    assert {str(p.relative_to(DOCS)) for p in PAGES} == {
        n for n in named if not n.startswith("generated/")
    }
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            made = "generated" in target
            assert made or (page.parent / target).exists(), (page.name, target)


def test_pictures_are_described():
    for page in PAGES:
        assert "![](" not in page.read_text(), page.name


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path):
    pytest.importorskip("material", reason="pip install 'pyro-zoo[docs]'")
    runpy.run_path(str(DOCS / "make_pages.py"), run_name="__main__")
    made = {p.stem for p in (DOCS / "generated" / "models").glob("*.md")}
    assert made == set(CARDS)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "site" / "index.html").read_text()
    assert "fonts.googleapis" not in html  # read without a network
