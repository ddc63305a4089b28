"""The line of the user's own code that is running, or that raised."""

from __future__ import annotations

import linecache
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy
import pyro
import torch

_OURS = str(Path(__file__).resolve().parents[2])
_PYRO = str(Path(pyro.__file__).parent)
_OTHERS = (_OURS, *(str(Path(m.__file__ or "").parent) for m in (torch, numpy)), "<frozen", "<__")
_STANDARD = sysconfig.get_path("stdlib")


def line_here() -> str | None:
    """Return the user's innermost line on the stack, "file.py:12 (code)", or None."""
    return next(iter(lines_here()), None)


def lines_here() -> tuple[str, ...]:
    """Return the user's lines on the stack, the innermost first, up to who called their code."""
    found: list[str] = []
    for frame in _outwards(sys._getframe(1)):
        file = frame.f_code.co_filename
        if _is_users(file):
            found.append(_text(file, frame.f_lineno))
        elif found and file.startswith(_OURS):
            break
    return tuple(found)


def asked_here() -> tuple[str, ...]:
    """Return `lines_here` where the user's code itself calls Pyro, not a module or autoguide."""
    for frame in _outwards(sys._getframe(1)):
        file = frame.f_code.co_filename
        if file.startswith((f"{_PYRO}/nn", f"{_PYRO}/infer")):
            return ()
        if _is_users(file):
            break
    return lines_here()


def line_of(error: BaseException) -> str | None:
    """Return the user's innermost line among those that an exception went through."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    return _text(lines[-1].filename, lines[-1].lineno or 0) if lines else None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_users(file: str) -> bool:
    library = file.startswith((*_OTHERS, _PYRO))
    standard = file.startswith(_STANDARD) and "-packages" not in file
    return not (library or standard)


def _text(file: str, number: int) -> str:
    code = linecache.getline(file, number).strip()
    return f"{Path(file).name}:{number}" + (f" ({code})" if code else "")
