"""Tests that can fail: what the other files of this folder may not contain."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [p for p in sorted((ROOT / "tests").rglob("*.py")) if p.name != "mutation.py"]
MESSAGES = {"ValueError", "TypeError", "RuntimeError", "AssertionError", "Exception",
            "BaseException", "FileNotFoundError", "NotImplementedError"}  # fmt: skip
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def called(node):
    """The last part of the name that a call names."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def asserting(trees):
    """The names of the functions that assert, raise AssertionError, or call one that does."""
    functions = [n for tree in trees for n in ast.walk(tree) if isinstance(n, FUNCTION)]
    out = {"raises", "warns", "fail"}
    grown = True
    while grown:
        found = {f.name for f in functions if asserts(f, out)}
        grown = not found <= out
        out |= found
    return out


def asserts(function, helpers):
    """True where a function asserts, itself or by a helper."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Raise) and "AssertionError" in ast.unparse(node):
            return True
        name = called(node) if isinstance(node, ast.Call) else ""
        if name in helpers or name.startswith("assert_"):
            return True
    return False


def is_test(function):
    return isinstance(function, FUNCTION) and function.name.startswith("test_")


def conditional(node, way=""):
    """Asserts below an `if`, in an `except`, or after an `or True`."""
    for child in ast.iter_child_nodes(node):
        inner = way
        if isinstance(child, ast.ExceptHandler):
            inner = "except"
        elif isinstance(child, ast.If):
            inner = "if"
        elif isinstance(child, (*FUNCTION, ast.Lambda, ast.ClassDef)):
            inner = ""
        if isinstance(child, ast.Assert) and way:
            yield child.lineno, f"an assert under `{way}`: it may never run"
        yield from conditional(child, inner)


def tautologies(tree):
    """Comparisons that hold whatever the code does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for op, right in zip(node.ops, node.comparators):
                both = {"True", "False"} <= {ast.unparse(e) for e in getattr(right, "elts", ())}
                if isinstance(op, ast.In) and both:
                    yield node.lineno, "`in (True, False)` holds for every truth value"
                near = isinstance(right, ast.Call) and called(right) == "approx" and right.args
                right = right.args[0] if near else right
                # `f(x) == f(x)` asks for the same answer twice; with approx it asks for nothing
                twice = not near and any(isinstance(n, ast.Call) for n in ast.walk(right))
                if isinstance(op, ast.Eq) and not twice and ast.dump(right) == ast.dump(node.left):
                    yield node.lineno, f"{ast.unparse(node.left)} is compared with itself"
        elif isinstance(node, ast.Call) and called(node) in ("allclose", "isclose", "equal"):
            if len(node.args) > 1 and ast.dump(node.args[0]) == ast.dump(node.args[1]):
                yield node.lineno, f"{ast.unparse(node.args[0])} is compared with itself"
        elif isinstance(node, ast.Assert) and isinstance(node.test, (ast.Tuple, ast.Constant)):
            yield node.lineno, "an assert of something that is always true"


def loose_refusals(tree):
    """`pytest.raises` of a common exception, its message left open."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if (
                    isinstance(call, ast.Call)
                    and called(call) == "raises"
                    and MESSAGES & {n.id for n in ast.walk(call) if isinstance(n, ast.Name)}
                    and not any(k.arg == "match" for k in call.keywords)
                    and item.optional_vars is None
                ):
                    yield call.lineno, f"{ast.unparse(call)} without match: any mistake will do"


def faults(source, helpers):
    """(line, fault) of every test in a file's text that cannot fail, or fails too seldom."""
    tree = ast.parse(source)
    yield from tautologies(tree)
    yield from loose_refusals(tree)
    yield from conditional(tree)
    for node in ast.walk(tree):
        if is_test(node) and not asserts(node, helpers):
            yield node.lineno, f"{node.name} asserts nothing"


HELPERS = asserting(
    ast.parse(p.read_text()) for p in [*FILES, *sorted((ROOT / "inference/testing").rglob("*.py"))]
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_test_can_fail(path):
    found = [f"{path}:{line}: {fault}" for line, fault in faults(path.read_text(), HELPERS)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "body",
    [
        "assert x in (True, False)",
        "assert f(x) == approx(f(x), rel=1e-3)",
        "assert torch.allclose(x, x)",
        "if x:\n        assert y",
        "try:\n        f()\n    except ValueError:\n        assert y",
        "f()",
        "with pytest.raises(ValueError):\n        f()",
        "with pytest.raises((KeyError, Exception)):\n        f()",
        "assert (x == 1, 'told')",
    ],
)
def test_what_cannot_fail_is_found(body):
    assert list(faults(f"def test_this():\n    {body}\n", {"raises"}))


@pytest.mark.parametrize(
    "body",
    [
        "assert f(x) == approx(f(y))",
        "for y in x:\n        assert y",
        "with pytest.raises(ValueError, match='x'):\n        f()",
        "check_estimator(x)",
    ],
)
def test_what_can_fail_is_left_alone(body):
    source = f"def check_estimator(e):\n    assert e\n\ndef test_this():\n    {body}\n"
    assert not list(faults(source, asserting([ast.parse(source)])))
