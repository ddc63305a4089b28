"""`zoo list`: models, data sets, estimators."""

from __future__ import annotations

import difflib
import inspect
import itertools
import sys
from collections.abc import Callable

from zoo.cards import CARDS


def show(what: str) -> None:
    """Print a catalogue: laid out on a terminal, with tabs between columns in a pipe.

    Raises:
        ValueError: it is none of models, data, estimators.
    """
    if what not in CATALOGUES:
        near = difflib.get_close_matches(what, CATALOGUES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"list: expected {' or '.join(CATALOGUES)}, got {what!r}.{hint}")
    CATALOGUES[what]()


def models() -> None:
    """Name, what it is, paper, how it is trained, what is known exactly."""
    if not sys.stdout.isatty():
        print("name\twhat it is\tpaper\ttrained by\tknown exactly")
        for c in CARDS.values():
            print(c.name, c.summary, c.paper, c.trained, c.exact, sep="\t")
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for family, cards in itertools.groupby(CARDS.values(), key=lambda c: c.family):
        table = Table(title=family, title_justify="left", title_style="bold", box=None,
                      show_header=False, padding=(0, 2, 0, 0), pad_edge=False)  # fmt: skip
        table.add_column(style="cyan", no_wrap=True, width=max(map(len, CARDS)))
        table.add_column()
        for c in cards:
            table.add_row(c.name, c.summary)
            table.add_row("", f"[dim]{c.paper}; training: {c.trained}[/dim]")
            table.add_row("", f"[dim]exact: {c.exact}[/dim]")
        console.print(table)
        console.print()
    console.print("[dim]zoo fit MODEL --help lists a model's options.[/dim]")


def data() -> None:
    """Names of the data sets, and what they are."""
    from zoo.data import SETS

    _pairs(SETS)


def estimators() -> None:
    """Names of the ELBO estimators, their arguments, and what they are."""
    from .options import estimators as known
    from .options import takes

    lines = {}
    for name, cls in known().items():
        options = [a for a in takes(cls) if a != "vectorized"]
        lines[f"{name}:{','.join(options)}"] = (inspect.getdoc(cls) or "").splitlines()[0]
    _pairs(lines)


def _pairs(lines: dict[str, str]) -> None:
    wide = max(map(len, lines)) if sys.stdout.isatty() else 0
    for name, text in lines.items():
        print(f"{name:<{wide}}  {text}" if wide else f"{name}\t{text}")


CATALOGUES: dict[str, Callable[[], None]] = {
    "models": models, "data": data, "estimators": estimators,
}  # fmt: skip
