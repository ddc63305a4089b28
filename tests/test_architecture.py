"""Who may import whom: models know no inference, inference no model, the command knows both."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {"networks", "likelihoods", "toys"}  # what model files may share
COMMAND = {"cli", "__main__"}


def modules(room):
    """Every file of a room, by its dotted name."""
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), path


def imports(name, path):
    """The dotted names that a file imports, relative ones resolved."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name, path", [pytest.param(*m, id=m[0]) for m in modules("inference")])
def test_inference_never_imports_the_zoo(name, path):
    found = [i for i in imports(name, path) if i.split(".")[0] in ("zoo", "examples", "tests")]
    assert not found, f"{name} imports {found}"


@pytest.mark.parametrize("name, path", [pytest.param(*m, id=m[0]) for m in modules("zoo")])
def test_models_import_neither_inference_nor_each_other(name, path):
    room = name.partition(".")[2].partition(".")[0]
    if room in COMMAND:
        return
    allowed = SHARED | {room} | ({"data"} if room == "data" else set())
    for imported in imports(name, path):
        parts = imported.split(".")
        assert parts[0] != "inference", f"{name} imports {imported}"
        if parts[0] == "zoo" and len(parts) > 1:
            assert parts[1] in allowed, f"{name} imports {imported}"


def test_only_weights_handles_pyro_traces():
    for name, path in modules("inference"):
        if ".get_trace(" in path.read_text():
            assert name.startswith("inference.weights"), name


@pytest.mark.parametrize("room", ["zoo", "inference"])
def test_no_drawer_for_odds_and_ends(room):
    names = {path.stem for _, path in modules(room)}
    assert not names & {"utils", "helpers", "common", "misc"}


def test_random_state_is_forked_in_one_place():
    for name, path in [*modules("inference"), *modules("zoo")]:
        if "fork_rng" in path.read_text():
            assert name == "inference.randomness", name
