"""A table as text and as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = (
    "border-collapse:collapse;color:inherit;background:transparent;"
    "font-variant-numeric:tabular-nums;text-align:right"
)
CELL = "padding:.2em .7em;border-bottom:1px solid color-mix(in srgb,currentColor 25%,transparent)"


WIDTH = 100  # columns at which long text in the last column goes on in the next line


@dataclass(frozen=True)
class Table:
    """Cells under headings.

    Attributes:
        head: the headings.
        rows: the cells of each row, already written.
        left: columns that are set to the left; the others are numbers, set to the right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)

    def __str__(self) -> str:
        lines = [list(line) for line in (self.head, *self.rows)]
        last = len(self.head) - 1
        if last in self.left:
            before = sum(max(len(line[i]) for line in lines) + 2 for i in range(last))
            wrapped = ((line, textwrap.wrap(line[-1], max(30, WIDTH - before))) for line in lines)
            lines = [
                [*line[:-1], text] if i == 0 else [*[""] * last, text]
                for line, texts in wrapped
                for i, text in enumerate(texts or [""])
            ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i in self.left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        )

    def html(self) -> str:
        """A `<table>` in the colours of the page around it, light or dark."""

        def row(cells: Sequence[str], tag: str) -> str:
            return "".join(
                f'<{tag} style="{CELL}{";text-align:left" if i in self.left else ""}">'
                f"{escape(cell)}</{tag}>"
                for i, cell in enumerate(cells)
            )

        body = "".join(f"<tr>{row(r, 'td')}</tr>" for r in self.rows)
        head = f"<thead><tr>{row(self.head, 'th')}</tr></thead>" if any(self.head) else ""
        return f'<table style="{STYLE}">{head}<tbody>{body}</tbody></table>'
