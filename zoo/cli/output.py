"""The lines that the command prints when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..report import Metric


def tell(metrics: Sequence[Metric], page: Path) -> None:
    """Print the numbers, one to a line, and last the path of the page."""
    wide = max((len(m.label) for m in metrics), default=0)
    for m in metrics:
        print(f"{m.label:<{wide}}  {m}" + (f"  ({m.note})" if m.note else ""))
    print(page)
