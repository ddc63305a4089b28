"""Programs that were compiled before, in this process or another, by the key of their tape.

A program on disk is a library and a list of what its table of pointers holds. It is used only where
both files and their folder are this user's, nobody else may write to them, and both have the
checksums they were written with; anything else there is as if it were not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import getpass
import hashlib
import json
import os
import platform
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from .replay import Program
from .threads import thread_count

_KNOWN: dict[str, Program | Callable] = {}  # what this process has compiled or loaded


def name_of(key: str, apart: bool = False) -> str:
    """The name of a tape's code on this machine, in these versions, with so many threads."""
    what = (key, apart, _here(), thread_count(), torch.get_float32_matmul_precision())
    return hashlib.sha256(repr(what).encode()).hexdigest()[:40]


def recall(name: str) -> Program | Callable | None:
    """Return the code of a name, if known: a program, or a function to call from Python."""
    if name not in _KNOWN:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            program = _read(name)
            assert program.loop  # a library that cannot be loaded is none
            _KNOWN[name] = program
    return _KNOWN.get(name)


def remember(name: str, code: Program | Callable) -> None:
    """Keep code in this process, and a program on disk, where there is room."""
    new = _KNOWN.get(name) is not code
    _KNOWN[name] = code
    if new and isinstance(code, Program):
        with contextlib.suppress(OSError):
            _write(name, code)


def forget(name: str) -> None:
    """Code that is not proved is not used again."""
    _KNOWN.pop(name, None)
    for suffix in (".json", ".so"):
        with contextlib.suppress(OSError):
            (folder() / f"{name}{suffix}").unlink()


def folder() -> Path:
    """The folder of programs, beside the cache of inductor."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    return Path(given or f"{tempfile.gettempdir()}/torchinductor_{user}") / "pyro_zoo"


@functools.cache
def _here() -> str:
    """Versions, our own code, and the processor with what it can do."""
    ours = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.[ph]*")))
    processor = [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        processor += [x for x in lines if x.startswith(("model name", "flags", "Features"))]
    found = (torch.__version__, torch.version.git_version, hashlib.sha256(ours).hexdigest())
    return repr((found, processor))


def _write(name: str, program: Program) -> None:
    place = folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = Path(program.library).read_bytes()
    fields = {**dataclasses.asdict(program), "library": hashlib.sha256(library).hexdigest()}
    text = json.dumps(fields)
    content = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()
    for suffix, data in ((".so", library), (".json", content)):
        handle, path = tempfile.mkstemp(dir=place)  # readable and writable by this user alone
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        if suffix == ".so":
            os.chmod(path, 0o700)
        os.replace(path, place / f"{name}{suffix}")  # whole or not at all


def _read(name: str) -> Program:
    """The program of a name.

    Raises:
        OSError, ValueError, TypeError, KeyError: there is none, or one that is not to be trusted.
    """
    place = folder()
    _refuse_foreign(place)
    checksum, _, text = _content(place / f"{name}.json").decode().partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise ValueError("another checksum")
    fields = json.loads(text)
    library = place / f"{name}.so"
    if hashlib.sha256(_content(library)).hexdigest() != fields["library"]:
        raise ValueError("another checksum")
    return Program(**{**fields, "library": str(library)})


def _content(path: Path) -> bytes:
    _refuse_foreign(path)
    return path.read_bytes()


def _refuse_foreign(path: Path) -> None:
    """Raise ValueError where somebody else owns a file or folder, or may write to it."""
    found = path.lstat()
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if stat.S_ISLNK(found.st_mode) or not mine or found.st_mode & 0o022:
        raise ValueError(f"{path} is not this user's alone")
