"""Who may import whom, what may be called what: the rules that `docs/design.md` draws."""

import ast
import importlib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# the rooms of `inference`, lowest first: each imports only what stands before it
ROOMS = (
    "estimate", "results", "randomness", "executors", "optim", "networks", "weights", "pairs",
    "elbo", "graph", "draws", "training", "ratios", "judging", "guides", "testing",
)  # fmt: skip
SHARED = {"networks", "likelihoods", "toys", "tables"}  # what model files may share
COMMAND = {"cli", "__main__", "report", "em", "completion", "sharing"}  # know both sides


def modules(room):
    """Every file of a room, by its dotted name."""
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), path


def imports(name, path):
    """The dotted names that a file imports, relative ones resolved, lazy ones included."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files_imported(room):
    """File -> the files of the same package that it imports; a folder is its `__init__`."""
    known = dict(modules(room))
    out = {}
    for name, path in known.items():
        found = set()
        for imported in imports(name, path):
            if imported in known and imported != name:
                found.add(imported)
        # `from .a import b` names the folder too; where b is a file, only the file is meant
        out[name] = {f for f in found if not any(g.startswith(f + ".") for g in found)}
    return out


@pytest.mark.parametrize("name, path", [pytest.param(*m, id=m[0]) for m in modules("inference")])
def test_a_room_imports_only_what_stands_below_it(name, path):
    parts = name.split(".")
    if len(parts) == 1:  # the public face
        return
    assert parts[1] in ROOMS, f"{name}: a room that the list does not know"
    below = ROOMS[: ROOMS.index(parts[1]) + 1]
    for imported in imports(name, path):
        other = imported.split(".")
        assert other[0] not in ("zoo", "examples", "tests", "benchmarks"), f"{name}: {imported}"
        above = other[0] == "inference" and not {*other[1:2]} <= {*below}
        assert not above, f"{name} imports {imported}, which stands above it"


@pytest.mark.parametrize("room", ["zoo", "inference"])
def test_no_files_import_each_other_in_a_circle(room):
    graph, done = files_imported(room), set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("name, path", [pytest.param(*m, id=m[0]) for m in modules("zoo")])
def test_models_import_networks_alone_and_not_each_other(name, path):
    room = name.partition(".")[2].partition(".")[0]
    if room in COMMAND:
        return
    allowed = SHARED | {room} | ({"data"} if room == "data" else set())
    for imported in imports(name, path):
        top, *inner = imported.split(".")[:2]
        shared = {"inference": {"networks"}, "zoo": allowed}.get(top, {*inner})
        assert {*inner} <= shared and (top != "inference" or inner), f"{name} imports {imported}"


def test_only_weights_handles_pyro_traces():
    tracing = {n for n, path in modules("inference") if ".get_trace(" in path.read_text()}
    assert tracing and {n.split(".")[1] for n in tracing} == {"weights"}, tracing


@pytest.mark.parametrize("room", ["zoo", "inference"])
def test_no_drawer_for_odds_and_ends(room):
    names = {path.stem for _, path in modules(room)}
    assert not names & {"utils", "helpers", "common", "misc"}


def test_random_state_is_forked_in_one_place():
    every = [*modules("inference"), *modules("zoo")]
    assert [n for n, p in every if "fork_rng" in p.read_text()] == ["inference.randomness"]


def test_no_function_hides_the_file_it_comes_from():
    """`import inference.a.b` gives the file b, whatever the folder a exports."""
    every = [name.rpartition(".") for room in ("inference", "zoo") for name, _ in modules(room)]
    for package, _, last in [e for e in every if e[0] and e[2] != "__main__"]:
        importlib.import_module(f"{package}.{last}")
        shown = getattr(importlib.import_module(package), last)
        assert isinstance(shown, types.ModuleType), f"{package}.{last} is {shown!r}"


def test_no_two_classes_share_a_name():
    seen = {}
    for name, path in [*modules("inference"), *modules("zoo")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                seen.setdefault(node.name, []).append(name)
    assert len(seen) > 100
    assert not {name: files for name, files in seen.items() if len(files) > 1}
