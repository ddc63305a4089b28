"""`python -m benchmarks [ROW ...] [--rounds N]`: our steps beside their peers', interleaved."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

import torch

from . import (
    bayes,
    compare,
    em,
    flows,
    memory,
    posterior,
    referee,
    sequences,
    start,
    vae,
    ways,
    whole_way,
)
from .timing import measure, report

ROWS = {**vae.ROWS, **bayes.ROWS, **flows.ROWS, **compare.ROWS, **em.ROWS}
LINES = {
    "posterior": lambda rounds: posterior.lines(seeds=min(3, rounds)),
    "referee": lambda rounds: referee.lines(),
    "sequences": lambda rounds: sequences.lines(),
    "ways": ways.lines,
    "whole-way": lambda rounds: whole_way.lines(),
}
NAMES = [*ROWS, "memory", "start", *LINES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    told = f"of {', '.join(NAMES)}; all of them"
    parser.add_argument("rows", nargs="*", metavar="ROW", help=told)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (medians)")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in NAMES]
    if unknown:
        parser.error(f"unknown row {', '.join(unknown)}; the rows are {', '.join(NAMES)}.")
    versions = []
    for name in ("torch", "pyro-ppl", "numpyro", "jax", "zuko", "scikit-learn"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
          f"{', '.join(versions)}")  # fmt: skip
    for name in options.rows or NAMES:
        if name == "memory":
            print(memory.report(), flush=True)
            continue
        if name == "start":
            print(start.report(), flush=True)
            continue
        if name in LINES:
            for line in LINES[name](options.rounds):
                print(line, flush=True)
            continue
        row = ROWS[name]()
        measure(row, options.rounds)
        print(report(row), flush=True)


if __name__ == "__main__":
    main()
