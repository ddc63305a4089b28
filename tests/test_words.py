"""Plain words: the first lines of docstrings say what a thing is or does, and names say results."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [p for top in ("inference", "zoo") for p in sorted((ROOT / top).rglob("*.py"))]
QUESTIONS = ("What", "How", "Where", "Whether", "Which", "When")
NAMELESS = {"_said", "_told", "_held", "_some", "_there", "_say", "_tell"}


def docstrings(tree):
    """(name, line, first line) of every docstring of a file."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", ""), node.body[0].lineno, text.splitlines()[0]


def wordy(source):
    """(line, fault) of every riddle in a file's text."""
    tree = ast.parse(source)
    found = [(line, first) for _, line, first in docstrings(tree) if first.split()[0] in QUESTIONS]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in NAMELESS:
            found.append((node.lineno, f"{node.name} hides its result"))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_first_lines_say_what_a_thing_is_or_does(path):
    found = [f"{path}:{line}: {fault}" for line, fault in wordy(path.read_text())]
    assert not found, "\n".join(found)


def test_riddles_are_found():
    source = '"""What a file says."""\n\ndef _told():\n    """Whether it was."""\n'
    assert [fault for _, fault in wordy(source)] == [
        "What a file says.", "Whether it was.", "_told hides its result",
    ]  # fmt: skip
