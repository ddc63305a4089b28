"""A step that is compiled beside the eager ones, by a process of its own.

It is a fork of this one: the pair is there without being pickled. It only writes a program where
the next look into the store finds it; whatever happens to it, the fit goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from ..graph import OutOfBudget, TraceFailure, threads_meant

DEATH = 1  # PR_SET_PDEATHSIG of Linux: a signal to the child when its parent dies
LONGEST = 4_096  # bytes of what the process says


def cores() -> float:
    """Count the processors that this process may use, by its affinity and its container's quota."""
    if not hasattr(os, "sched_getaffinity"):
        return float(os.cpu_count() or 1)
    found = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        found = min(found, float(quota) / float(period))
    return found


def is_possible(device: torch.device) -> bool:
    """Tell whether a process can compile for a device beside the steps, and does not slow them."""
    return sys.platform == "linux" and device.type == "cpu" and cores() >= 2


class Beside:
    """A process that works beside this one.

    Args:
        work: what it does; it may raise `TraceFailure` or `OutOfBudget`.
        seconds: after which it is ended.

    Attributes:
        refused: why another attempt is not worth it, in a sentence; else None.
        failed: whether it ended without having done its work.
    """

    def __init__(self, work: Callable[[], None], seconds: float):
        self._until = time.monotonic() + seconds
        self.refused: str | None = None
        self.failed = False
        threads = torch.get_num_threads()
        self._read, write = os.pipe()
        with warnings.catch_warnings():  # other threads of this process are not in the child
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            os.close(self._read)
            _worked(work, write, threads)
        os.close(write)

    def done(self) -> bool:
        """Tell whether it has ended."""
        if self._pid and time.monotonic() > self._until:
            self.refused = "compiling beside the steps took too long"
            self.end()
        if not self._pid:
            return True
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has waited for it
            pid, status = self._pid, 0
        if pid:
            self._pid = 0
            said = os.read(self._read, LONGEST).decode(errors="replace")
            os.close(self._read)
            self.refused, self.failed = said or None, status != 0
        return bool(pid)

    def end(self) -> None:
        """End it and what it has started."""
        if self._pid:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            os.close(self._read)
            self._pid, self.failed = 0, True


def _worked(work: Callable[[], None], write: int, threads: int) -> None:
    """Work in the child, and leave it without touching what it shares with its parent."""
    status = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C is the parent's
        ctypes.CDLL(None).prctl(DEATH, signal.SIGKILL)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        sys.stdout = sys.stderr = os.fdopen(nowhere, "w")
        with threads_meant(threads):  # a pool of threads does not survive the fork
            work()
        status = 0
    except (TraceFailure, OutOfBudget) as failure:
        os.write(write, str(failure).encode()[:LONGEST])
        status = 0
    finally:
        os._exit(status)
