"""Interleaved timing: every contender once a round, so that drift of the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Row:
    """One line of the table.

    contenders: name -> a function that makes about so many steps and returns how many; the first
        one is ours.
    targets: peers (one name or several, of which the fastest counts) and the ratio to reach.
    """

    name: str
    contenders: dict[str, Callable[[int], int]]
    targets: list[tuple[tuple[str, ...], float]]
    steps: int = 200
    compile_seconds: float = 0.0
    eager: str | None = None  # the contender whose steps compiling saves
    milliseconds: dict[str, list[float]] = field(default_factory=dict)


def measure(row: Row, rounds: int = 7) -> None:
    """Fill `row.milliseconds`, a list per contender, one entry per round."""
    names = list(row.contenders)
    budget = {}
    for name in names:  # warm up, and find out how many steps are a fair slice
        row.contenders[name](3)
        start = time.perf_counter()
        made = row.contenders[name](16)
        each = (time.perf_counter() - start) / made
        budget[name] = max(8, min(row.steps * 20, int(0.4 / max(each, 1e-7))))
        row.milliseconds[name] = []
    for r in range(rounds):
        for i in range(len(names)):
            name = names[(i + r) % len(names)]
            n = budget[name]
            start = time.perf_counter()
            made = row.contenders[name](n)
            row.milliseconds[name].append((time.perf_counter() - start) / made * 1e3)


def report(row: Row) -> str:
    """The row as text: medians, spreads, ratios against their targets, when compiling pays."""
    medians = {k: statistics.median(v) for k, v in row.milliseconds.items()}
    ours = next(iter(row.contenders))
    lines = [f"\n{row.name}"]
    for name, ms in row.milliseconds.items():
        lines.append(
            f"  {name:<34} {medians[name]:9.4f} ms a step   [{min(ms):.4f}, {max(ms):.4f}]"
        )
    for peers, least in row.targets:
        there = [p for p in peers if p in medians]
        if not there:
            lines.append(f"  vs {' / '.join(peers)}: not installed")
            continue
        peer = min(there, key=medians.__getitem__)
        ratios = [a / b for a, b in zip(row.milliseconds[peer], row.milliseconds[ours])]
        ratio = statistics.median(ratios)
        mark = "reached" if ratio >= least else "MISSED"
        lines.append(f"  vs {peer:<31} {ratio:8.2f} x   (at least {least:g} x: {mark})")
    if row.eager and row.compile_seconds:
        saved = (medians[row.eager] - medians[ours]) / 1e3
        pays = row.compile_seconds / saved if saved > 0 else float("inf")
        lines.append(
            f"  compiling took {row.compile_seconds:.1f} s and pays from {pays:,.0f} steps on"
        )
    return "\n".join(lines)
