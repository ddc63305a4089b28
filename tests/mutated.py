"""Run folders changed at random, and the command on them: `python tests/mutated.py 10000 [SEED]`.

Whatever a folder holds, the command ends with one line, in time, without a traceback; it writes no
byte outside the folder, and runs nothing that stands in it. Half of the changes are of bytes; half
are of fields, with checksums made right again.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from inference.training import checkpoint
from inference.training.folders import STATE
from inference.training.saved import read_run
from zoo.cli import run
from zoo.cli.plan import Plan

VALUES = (
    None, True, -1, 0, 3,
    10**6, 10**12, 10**40, 0.5, float("nan"), float("inf"), "", "vae", "x" * 500,
    "../outside", "/etc/passwd", "\x1b[31mred\x07", "__import__('os').system('touch ran')",
    "<script>0</script>", [], [1], [[2]], {}, {"a": 1}, {"dict": [["a", 1]]}, {"tensor": "count"},
)  # fmt: skip
SECONDS = 60  # of CPU for one command; ten times as many of the clock
FORBIDDEN = [chr(i) for i in range(32) if chr(i) != "\n"]


def places(value, way=()):
    """The way to every value inside nested JSON."""
    yield way
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*way, key))


def changed(value, chance):
    """The same JSON with one value replaced, dropped, renamed or doubled."""
    way = chance.choice(list(places(value))[1:])
    holder = value
    for key in way[:-1]:
        holder = holder[key]
    key, kind = way[-1], chance.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice(("", "x", "\x1b[2J", "__class__"))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = chance.choice(VALUES)
    return value


def mutate(folder, outside, chance):
    """Change a run folder in one way."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    main = [p for p in files if p.name in (STATE, "config.json")]
    path = chance.choice([*files, *main * len(files)])
    kind = chance.randrange(10)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        target = chance.choice((outside / "file", outside, folder, Path("/dev/zero"), path))
        path.symlink_to(target)
    elif kind == 2:
        path.unlink()
        os.mkfifo(path) if chance.random() < 0.5 else path.mkdir()
    elif kind == 3 and (folder / "figures").is_dir():
        name = chance.choice(("figures", "page"))
        shutil.rmtree(folder / name)
        (folder / name).symlink_to(outside)
    elif kind in (4, 5) or (path.suffix != ".json" and path.name != STATE):
        data = bytearray(path.read_bytes())
        for _ in range(chance.choice((1, 1, 8))):
            at = chance.randrange(len(data) or 1)
            data[at : at + 1] = chance.choice((b"", bytes([chance.randrange(256)]), data[:at]))
        path.write_bytes(data[: chance.choice((len(data), len(data), at))])
    elif path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text()), chance)))
    else:
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            fields = json.loads(file.metadata()["fields"])
        if chance.random() < 0.3:
            name = chance.choice(sorted(tensors))
            tensors[name] = chance.choice((
                lambda t: t.double(), lambda t: t.reshape(-1)[:-1], lambda t: t[None],
                lambda t: t.long(), lambda t: t * 0 - 1,
            ))(tensors[name]).clone()  # fmt: skip
        else:
            fields = changed(fields, chance)
        checkpoint.write(folder, tensors, fields)


def tree(folder):
    """Every path below a folder with its content."""
    return {p: p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


BELLS = (
    (signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
    (signal.SIGALRM, signal.ITIMER_REAL, 10 * SECONDS),
)


class Hung(BaseException):
    """A command took too long."""


def alarm(*_):
    raise Hung


def mutant(whole, work, chance):
    """A mutated copy of a run folder, and a folder beside it that must stay as it is."""
    folder, outside = work / "run", work / "outside"
    for path in (folder, outside):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole, folder)
    outside.mkdir()
    (outside / "file").write_text("mine")
    for _ in range(chance.choice((1, 1, 2))):
        with contextlib.suppress(OSError, ValueError, SafetensorError):
            mutate(folder, outside, chance)
    return folder, outside


@contextlib.contextmanager
def watched(work, outside, found, allowed=()):
    """Add to `found` what goes wrong inside the block, in words."""
    before = tree(outside)
    for bell, timer, seconds in BELLS:
        signal.signal(bell, alarm)
        signal.setitimer(timer, seconds)
    try:
        yield
    except allowed as error:
        if any(c in str(error) for c in FORBIDDEN):
            found.append(f"control characters in {error!s:.200}")
    except Hung:
        found.append(f"longer than {SECONDS} s of CPU, or {10 * SECONDS} s")
    except BaseException as error:
        found.append(f"{type(error).__name__}: {error}")
    finally:
        for _, timer, _ in BELLS:
            signal.setitimer(timer, 0)
    if tree(outside) != before or (Path.cwd() / "ran").exists() or (work / "ran").exists():
        found.append("wrote outside")


def faults_of_readers(whole, work, number, seed):
    """What went wrong when the plan and the state in a mutated folder were read; and if they were.

    Cheap: the folder needs no more than its plan and its state.
    """
    folder, outside = mutant(whole, work, random.Random(f"{seed}-{number}"))
    found, read = [], 0
    for reader in (Plan.read, read_run):
        with watched(work, outside, found, (ValueError, FileNotFoundError)):
            reader(folder)
            read += 1
    return [f"{seed}-{number}: {text}" for text in found], read


def faults(whole, work, number, seed):
    """What went wrong with a command on a mutated copy of a run folder; empty where nothing did."""
    chance = random.Random(f"{seed}-{number}")
    folder, outside = mutant(whole, work, chance)
    argv = chance.choice((
        ["report", str(folder)], ["sample", str(folder), "-n", "2", "--out", str(work / "x.csv")],
        ["diagnose", str(folder), "--rows", "0"],
        ["fit", "--resume", str(folder), "--steps", "4", "--out", str(work / "more")],
    ))  # fmt: skip
    found, out, err, code = [], io.StringIO(), io.StringIO(), None
    with (
        watched(work, outside, found), contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):  # fmt: skip
        code = run(argv)
    if any(c in out.getvalue() + err.getvalue() for c in FORBIDDEN):
        found.append("control characters on the terminal")
    if code == 2 and not err.getvalue().rstrip().splitlines()[-1].startswith("zoo: "):
        found.append("no line")
    for path in (work / "x.csv", work / "more"):
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    return [f"{seed}-{number} {argv[0]}: {text}" for text in found], code


def made(folder):
    """A small run to be changed."""
    argv = (
        "fit vae --steps 3 --batch-size 16 --compile no --particles 4 --test-rows 5 --hidden 4 "
        f"--latent-dim 2 --out {folder}"
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert run(argv.split()) == 0
    return folder


def undrawn():
    """Draw no pictures: what is on them is not what is tested."""
    import zoo.report.page as page
    from zoo.cli import runs

    page.png = lambda drawing, theme: b"\x89PNG"
    runs._write_posterior = lambda *_: None


if __name__ == "__main__":
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as name:
        undrawn()
        whole, codes = made(Path(name) / "whole"), {}
        for i in range(count):
            bad, code = faults(whole, Path(name), i, seed)
            codes[code] = codes.get(code, 0) + 1
            for text in bad:
                print(text, flush=True)
        print(f"{count} folders, exit statuses {codes}")
