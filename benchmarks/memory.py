"""Peak memory of the compiled step beside the eager one's, each in a process of its own.

What a process holds before there are data and variables is taken off; libraries are loaded and a
small pair is compiled by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import torch

from inference.elbo import IWAE, Trace
from inference.training.steps import CompiledStep, EagerStep
from zoo.vae import VAE

from . import ours

PAIRS = {
    "VAE 784-200-200-50, B = 20,000": (20_000, Trace()),
    "IWAE K = 8 on it, B = 2,000": (2_000, IWAE(8)),
}
LARGEST = 1.1  # times the eager step's


def _status(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most since `_reset`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _reset() -> None:
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc: give back what nobody holds
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _step(rows: int, width: int, hidden: tuple, estimator, compiled: bool):
    pair, x = VAE(width, 50, hidden=hidden), torch.rand(rows, width).round()
    kind = CompiledStep if compiled else EagerStep
    step = ours.step(kind, pair.model, pair.guide, (x,), estimator)
    return lambda: step((x,))


def peaks(name: str, compiled: bool) -> tuple[float, float]:
    """MiB at most while making steps, and while the first was made (traced, compiled, proved)."""
    rows, estimator = PAIRS[name]
    _step(4, 8, (4,), estimator, True)()
    _reset()
    before = _status("VmRSS")
    step = _step(rows, 784, (200, 200), estimator, compiled)
    step()
    first = _status("VmHWM") - before
    _reset()
    for _ in range(5):
        step()
    return _status("VmHWM") - before, first


def report() -> str:
    """Both steps' peaks, and their ratio against its target."""
    lines = []
    for name in PAIRS:
        found = {}
        for which in ("eager", "compiled"):
            command = [sys.executable, "-m", "benchmarks.memory", name, which]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[which] = [float(v) for v in out.split()]
        ratio = found["compiled"][0] / found["eager"][0]
        mark = "reached" if ratio <= LARGEST else "MISSED"
        lines += [
            f"\npeak memory: {name}",
            *(f"  {k:<34} {v[0]:9.0f} MiB   (first step {v[1]:.0f})" for k, v in found.items()),
            f"  vs eager {ratio:33.2f} x   (at most {LARGEST:g} x: {mark})",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(*peaks(sys.argv[1], sys.argv[2] == "compiled"))
