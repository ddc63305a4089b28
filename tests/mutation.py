"""Mutation test: break one expression of a room at a time and count the tests that notice.

    python tests/mutation.py --only inference/weights --only inference/elbo --sample 100 --seed 0

Nothing in the checkout is touched: the run works on a copy of it, and a mutant exists in the memory
of one forked process only. The parent loads torch, Pyro and the other libraries once and nothing of
ours; each fork imports ours with one file mutated and runs those tests that reach the mutated
function, the quickest first, up to the first failure. Which tests these are, one traced run of the
unbroken code tells (`--again` repeats it; otherwise it is kept until a file changes).

A mutant is killed when a test fails, survives when all pass, and counts as timed out (and so as
noticed) when they take far longer than the unbroken code. `EQUIVALENT` names survivors that no test
can notice, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("inference", "zoo")
# folder or file -> the tests that are to notice a fault in it; the first prefix that fits is taken
TESTS = {
    "inference/weights": [
        "test_weights", "test_simulate", "test_bounds", "test_elbo", "test_discrete",
    ],
    "inference/elbo": [
        "test_estimator_arguments", "test_bounds", "test_elbo", "test_discrete",
        "test_decompose", "test_add_estimator",
    ],
    "inference/draws": [
        "test_draws", "test_evaluate", "test_arviz", "test_psis", "test_decompose", "test_diagnose",
    ],
    "inference/training": [
        "test_fit", "test_step", "test_many", "test_checkpoint", "test_optim", "test_adversarial",
        "test_loop", "test_batches",
    ],
    "inference/ratios": ["test_ratio", "test_adversarial", "test_implicit_guides"],
    "inference/judging": ["test_evaluate", "test_compare", "test_diagnose", "test_calibrate"],
    "inference/pairs": ["test_pair", "test_check", "test_gate"],
    "inference/guides": ["test_guides", "test_implicit_guides"],
    "inference/estimate.py": ["test_evaluate", "test_compare", "test_ratio"],
    "inference/optim.py": ["test_optim", "test_fit"],
}  # fmt: skip

UNBROKEN = -1  # the index of no mutation

# (file, mutation as the table shows it) -> why no test can notice it
EQUIVALENT = {
    (
        "inference/weights/sites.py",
        "return 1.0 if isinstance(scale, float) and abs(scale - 1) < 1e-12 else scale  ->  "
        "return 1.0 if isinstance(scale, float) and abs(scale - 1) <= 1e-12 else scale",
    ): "the limit is one of rounding; no scale lies on it",
}


# ---------------------------------------------------------------- mutations

SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclasses.dataclass
class Mutation:
    """One change of a syntax tree: `apply` makes it, in place."""

    line: int
    function: tuple[int, int] | None  # first and last line of the enclosing function
    statement: ast.stmt
    apply: Callable[[], None]
    removes: bool = False  # the statement altogether


def mutations(tree: ast.Module) -> Iterator[Mutation]:
    """Every mutation of a file, in the order of its text; messages and annotations are left out."""
    yield from _of_body(tree.body, None)


def _of_body(body: list[ast.stmt], function: tuple[int, int] | None) -> Iterator[Mutation]:
    for i, node in enumerate(body):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.Raise)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        inner = function
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = (node.lineno, node.end_lineno or node.lineno)
            for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                yield from _of_expression(default, node, inner)
        elif isinstance(node, ast.ClassDef):
            pass
        else:
            if _is_action(node):

                def remove(body: list[ast.stmt] = body, i: int = i) -> None:
                    body[i] = ast.copy_location(ast.Pass(), body[i])

                yield Mutation(node.lineno, function, node, remove, removes=True)
            for field, value in ast.iter_fields(node):
                if field in ("annotation", "body", "orelse", "finalbody", "handlers"):
                    continue
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.expr):
                        yield from _of_expression(child, node, function)
                    elif isinstance(child, ast.withitem):
                        yield from _of_expression(child.context_expr, node, function)
            if isinstance(node, (ast.If, ast.While)) and not _is_not(node.test):

                def negate(node: ast.If | ast.While = node) -> None:
                    node.test = ast.copy_location(
                        ast.UnaryOp(ast.Not(), copy.copy(node.test)), node.test
                    )

                yield Mutation(node.lineno, function, node, negate)
        for name in ("body", "orelse", "finalbody"):
            yield from _of_body(getattr(node, name, []), inner)
        for handler in getattr(node, "handlers", []):
            yield from _of_body(handler.body, inner)


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_action(node: ast.stmt) -> bool:
    """True where a statement can be taken out without leaving a name unknown."""
    if isinstance(node, ast.Assign):
        return any(isinstance(t, (ast.Attribute, ast.Subscript)) for t in node.targets)
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, (ast.Yield, ast.YieldFrom))
    return isinstance(node, (ast.AugAssign, ast.Delete, ast.Continue, ast.Break))


def _of_expression(
    node: ast.expr, statement: ast.stmt, function: tuple[int, int] | None
) -> Iterator[Mutation]:
    def mutation(apply: Callable[[], None]) -> Mutation:
        return Mutation(node.lineno, function, statement, apply)

    if isinstance(node, ast.JoinedStr):  # a message
        return
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in SWAPPED:
                new = SWAPPED[type(op)]()
                yield mutation(lambda i=i, new=new: node.ops.__setitem__(i, new))
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPPED:
        new = SWAPPED[type(node.op)]()
        yield mutation(lambda: setattr(node, "op", new))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        # `+x` for `-x`, and `not not x` for `not x`
        def drop() -> None:
            if isinstance(node.op, ast.USub):
                node.op = ast.UAdd()
            else:
                node.operand = ast.copy_location(ast.UnaryOp(ast.Not(), node.operand), node.operand)

        yield mutation(drop)
    elif isinstance(node, ast.IfExp):

        def swap() -> None:
            node.body, node.orelse = node.orelse, node.body

        yield mutation(swap)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        old = node.value
        changed = (not old) if isinstance(old, bool) else old + 1 if isinstance(old, int) else (
            2 * old if old else 1.0
        )  # fmt: skip
        yield mutation(lambda: setattr(node, "value", changed))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _of_expression(child, statement, function)
        elif isinstance(child, ast.keyword) and child.arg != "repr":
            yield from _of_expression(child.value, statement, function)
        elif isinstance(child, ast.comprehension):
            for part in (child.iter, *child.ifs):
                yield from _of_expression(part, statement, function)
        elif isinstance(child, ast.arguments):  # of a lambda
            for default in (*child.defaults, *filter(None, child.kw_defaults)):
                yield from _of_expression(default, statement, function)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """The `index`-th mutation of a file."""

    path: str
    index: int
    line: int
    function: tuple[int, int] | None
    before: str
    after: str

    @property
    def change(self) -> str:
        """The changed statement, before and after, as far as they differ."""
        return f"{self.before}  ->  {self.after}"


def head(node: ast.stmt) -> str:
    """A statement's own text, without the block under it."""
    node = copy.deepcopy(node)
    for name in ("body", "orelse", "finalbody", "handlers"):
        if getattr(node, name, None):
            setattr(node, name, [ast.Pass()] if name == "body" else [])
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        node.decorator_list = []
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).removesuffix("pass").split())


def mutants(path: str, source: str, indices: list[int]) -> list[Mutant]:
    """Some mutants of a file, by the number of their mutation."""
    found = list(mutations(ast.parse(source)))
    return [
        Mutant(path, i, found[i].line, found[i].function, head(found[i].statement),
               mutated(source, i)[1])
        for i in indices
    ]  # fmt: skip


def mutated(source: str, index: int) -> tuple[ast.Module, str]:
    """The file's tree with one mutation made, and the text of the changed statement."""
    tree = ast.parse(source)
    mutation = next(m for i, m in enumerate(mutations(tree)) if i == index)
    mutation.apply()
    text = "(removed)" if mutation.removes else head(mutation.statement)
    return ast.fix_missing_locations(tree), text


# ---------------------------------------------------------------- a fork with one file mutated


class MutatedFile(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one file from a syntax tree instead of its text; nothing is written."""

    def __init__(self, path: Path, tree: ast.Module):
        self.path, self.tree = path, tree
        parts = path.with_suffix("").parts
        self.name = ".".join(p for p in parts if p != "__init__")

    def find_spec(self, name, path=None, target=None):
        """The mutated module's spec, and None for all others."""
        if name != self.name:
            return None
        package = self.path.name == "__init__.py"
        spec = importlib.machinery.ModuleSpec(
            name, self, origin=str(self.path.resolve()), is_package=package
        )
        if package:
            spec.submodule_search_locations = [str(self.path.parent.resolve())]
        spec.has_location = True
        return spec

    def exec_module(self, module):
        """Run the mutated code in the module."""
        exec(compile(self.tree, str(self.path.resolve()), "exec"), module.__dict__)


def forked(work: Callable[[], int], output: Path) -> int:
    """Start `work` in a child of its own process group with its output in a file; its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = work()
    finally:
        os._exit(code)


def run_tests(arguments: list[str], plugins: list | None = None) -> int:
    """Run pytest in this process; its exit code."""
    import pytest

    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--durations=0", "--tb=line"]
    return int(pytest.main([*quiet, "-m", "not slow and not cuda", *arguments], plugins or []))


def preload() -> None:
    """Load every library that ours imports, and nothing of ours."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        import inference  # noqa: F401
        import zoo.cards  # noqa: F401

        names = [n for n in sys.modules if n.partition(".")[0] not in OURS]
        os.write(writer, json.dumps(names).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        names = json.loads(pipe.read())
    os.waitpid(pid, 0)
    for name in names:
        if name not in sys.modules and name != "__main__":
            try:
                importlib.import_module(name)
            except Exception as error:  # a part that is not importable by its own name
                print(f"not loaded beforehand: {name} ({error!r})", file=sys.stderr)
    import torch

    torch.set_num_threads(1)  # a fork must not inherit a pool of threads


# ---------------------------------------------------------------- which tests reach which function


class Reach:
    """A pytest plugin: for each test its seconds, and the functions of the targets it entered."""

    def __init__(self, folder: Path):
        self.prefix = str(folder) + os.sep
        self.seconds: dict[str, float] = {}
        self.entered: dict[str, list[tuple[str, int]]] = {}
        self.passed: set[str] = set()
        self.seen: set[tuple[str, int]] = set()

    def trace(self, frame, event, argument):
        """Note a function of ours that is entered; None, so that its lines are not traced."""
        code = frame.f_code
        if code.co_filename.startswith(self.prefix):
            self.seen.add((code.co_filename, code.co_firstlineno))

    def pytest_runtest_setup(self, item):
        """Start to note."""
        self.seen = set()
        sys.settrace(self.trace)

    def pytest_runtest_teardown(self, item):
        """Keep what was entered."""
        sys.settrace(None)
        names = ((f.removeprefix(self.prefix), line) for f, line in self.seen)
        self.entered[item.nodeid] = sorted(n for n in names if n[0].startswith(OURS))

    def pytest_runtest_logreport(self, report):
        """Keep a test's time, and whether it passed."""
        if report.when == "call":
            self.seconds[report.nodeid] = report.duration
            if report.passed:
                self.passed.add(report.nodeid)


def reaches(files: list[str], rooms: list[str], keep: Path, again: bool) -> dict[str, dict]:
    """Test -> its seconds and the functions it enters, from one run of the unbroken code."""
    sources = b"".join(path.read_bytes() for room in rooms for path in python_files(room))
    out = {}
    for file in files:
        digest = hashlib.sha256(sources + Path(file).read_bytes()).hexdigest()
        kept = keep / f"{digest[:16]}-{Path(file).stem}.json"
        if again or not kept.is_file():

            def work(file: str = file, kept: Path = kept) -> int:
                plugin = Reach(Path.cwd())
                run_tests([file], [plugin])
                found = {
                    test: {"seconds": plugin.seconds[test], "functions": plugin.entered[test]}
                    for test in plugin.passed
                }
                kept.write_text(json.dumps(found))
                return 0

            start = time.time()
            log = keep / "reach.log"
            os.waitpid(forked(work, log), 0)
            if not kept.is_file():
                sys.exit(f"the unbroken code: {file} could not be run; see {log}")
            print(f"  {file}: {time.time() - start:.0f} s", flush=True)
        out |= json.loads(kept.read_text())
    return out


def tests_for(mutant: Mutant, known: dict[str, dict], files: list[str], budget: float) -> list[str]:
    """The tests that enter the mutated function, the quickest first, within a number of seconds."""
    span = mutant.function
    chosen = []
    for test, row in known.items():
        if test.partition("::")[0] not in files:
            continue
        lines = [line for path, line in row["functions"] if path == mutant.path]
        # a decorated function begins at its decorator; at the level of the file: any test of it
        if lines if span is None else any(span[0] - 3 <= n <= span[1] for n in lines):
            chosen.append((row["seconds"], test))
    out, spent = [], 0.0
    for seconds, test in sorted(chosen):
        spent += seconds
        if out and spent > budget:
            break
        out.append(test)
    return out


# ---------------------------------------------------------------- the run


def outcome(code: int, late: bool) -> str:
    """killed, survived or timed out, by the exit code of a fork."""
    if late or code == -signal.SIGXCPU:
        return "timed out"
    return "survived" if code == 0 else "killed"


def python_files(room: str) -> list[Path]:
    """The file itself, or every Python file of a folder."""
    path = Path(room)
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def test_files(path: str) -> list[str]:
    """The tests that are to notice a fault in a file, those that exist."""
    names = next((v for k, v in TESTS.items() if path.startswith(k)), None)
    if names is None:
        sys.exit(f"{path}: no tests are named for it; add its folder to TESTS.")
    found = [f"tests/inference/{n}.py" for n in names]
    return [f for f in found if Path(f).is_file()]


def main(argv: list[str] | None = None) -> int:
    """Run the mutation test and print its table; 1 where an unexplained mutant survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="PATH",
                        help="a folder or file of ours; may be given several times")  # fmt: skip
    parser.add_argument("--sample", type=int, default=100, help="mutants of each PATH")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--budget", type=float, default=40.0,
                        help="seconds of tests per mutant, the quickest first")  # fmt: skip
    parser.add_argument("--tests", action="append", default=[], metavar="NAME",
                        help="test files to run instead of those in TESTS")  # fmt: skip
    parser.add_argument("--line", type=int, help="only mutants of this line (with one file)")
    parser.add_argument("--again", action="store_true", help="trace the unbroken code again")
    options = parser.parse_args(argv)
    if options.tests:
        TESTS.update(dict.fromkeys(TESTS, options.tests))
    rooms = options.only or [
        "inference/weights", "inference/elbo", "inference/draws", "inference/training",
        "inference/ratios",
    ]  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    keep = Path(tempfile.gettempdir()) / f"mutation-{os.getuid()}"
    keep.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        for name in ("inference", "zoo", "tests", "examples", "benchmarks"):
            shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in ROOT.iterdir():
            if path.is_file() and path.suffix in (".toml", ".md"):
                shutil.copy(path, work)
        os.chdir(work)
        sys.path[:] = [str(work), *(p for p in sys.path if Path(p).resolve() != ROOT / "tests")]
        sys.dont_write_bytecode = True
        return measure(rooms, options, keep)


def measure(rooms: list[str], options: argparse.Namespace, keep: Path) -> int:
    """Draw the mutants of each room, run their tests, print the table."""
    preload()
    drawn: list[Mutant] = []
    for room in rooms:
        files = python_files(room)
        every = [
            (f.as_posix(), i)
            for f in files
            for i, m in enumerate(mutations(ast.parse(f.read_text())))
            if options.line in (None, m.line)
        ]
        picked = random.Random(options.seed).sample(every, min(options.sample, len(every)))
        for f in files:
            indices = sorted(i for p, i in picked if p == f.as_posix())
            drawn += mutants(f.as_posix(), f.read_text(), indices)
        print(f"{room}: {len(picked)} of {len(every)} mutants", flush=True)
    files = sorted({f for m in drawn for f in test_files(m.path)})
    known = reaches(files, rooms, keep, options.again)
    refuse_unless_sound(drawn, known, options.budget, keep)
    results: dict[Mutant, str] = {}
    running: dict[int, tuple[Mutant, float, Path]] = {}
    todo, start = list(reversed(drawn)), time.time()
    while todo or running:
        while todo and len(running) < options.workers:
            mutant = todo.pop()
            chosen = tests_for(mutant, known, test_files(mutant.path), options.budget)
            if not chosen:
                results[mutant] = "survived"
                print(f"no test reaches {mutant.path}:{mutant.line}: {mutant.change}", flush=True)
                continue
            log = keep / f"mutant-{mutant.path.replace('/', '_')}-{mutant.index}.log"
            limit = int(30 + 4 * sum(known[t]["seconds"] for t in chosen))
            pid = forked(lambda m=mutant, c=chosen, n=limit: run_mutant(m, c, n), log)
            running[pid] = (mutant, time.time() + 10 * limit, log)
        for pid, (mutant, deadline, log) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            late = not done and time.time() > deadline
            if late:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if done or late:
                del running[pid]
                results[mutant] = outcome(os.waitstatus_to_exitcode(status), late)
                if results[mutant] == "survived":
                    print(f"survived: {mutant.path}:{mutant.line}: {mutant.change}", flush=True)
                else:
                    log.unlink(missing_ok=True)
        time.sleep(0.02)
    return report(rooms, results, time.time() - start)


def refuse_unless_sound(
    drawn: list[Mutant], known: dict[str, dict], budget: float, keep: Path
) -> None:
    """Exit where a file that is imported from its tree, unbroken, does not pass its own tests."""
    for path in sorted({m.path for m in drawn}):
        first = next(m for m in drawn if m.path == path)
        tests = tests_for(first, known, test_files(path), budget)
        if tests:
            log = keep / "unbroken.log"
            whole = dataclasses.replace(first, index=UNBROKEN)
            pid = forked(lambda m=whole, t=tests: run_mutant(m, t), log)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                sys.exit(f"{path}: its tests fail though nothing is broken; see {log}")


def run_mutant(mutant: Mutant, tests: list[str], seconds: int | None = None) -> int:
    """In a fork: import the mutated file in place of its original and run its tests.

    The limit is one of CPU time, which does not depend on what else the machine does.
    """
    if seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    source = Path(mutant.path).read_text()
    broken = mutant.index != UNBROKEN
    tree = mutated(source, mutant.index)[0] if broken else ast.parse(source)
    sys.meta_path.insert(0, MutatedFile(Path(mutant.path), tree))
    return run_tests(["-x", *tests])


def report(rooms: list[str], results: dict[Mutant, str], seconds: float) -> int:
    """Print killed, survived, timed out for each room, and the survivors nobody explained."""
    print(f"\n{'':24}killed  timed out  explained  survived  noticed")
    unexplained = []
    for room in rooms:
        found = {m: o for m, o in results.items() if m.path.startswith(room)}
        count = Counter(found.values())
        left = [m for m, o in found.items() if o == "survived"]
        known = [m for m in left if (m.path, m.change) in EQUIVALENT]
        unexplained += [m for m in left if m not in known]
        counted = len(found) - len(known)
        noticed = (count["killed"] + count["timed out"]) / max(1, counted)
        print(
            f"{room:24}{count['killed']:6}{count['timed out']:11}{len(known):11}"
            f"{len(left) - len(known):10}{noticed:9.1%}"
        )
    print(f"{len(results)} mutants in {seconds:.0f} s")
    for mutant in unexplained:
        print(f"  {mutant.path}:{mutant.line}: {mutant.change}")
    return bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
