"""The lines that the command prints. Names from files bring no control characters with them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..report import Metric


def visible(text: str) -> str:
    """Return a text with its control characters written out, but for the ends of lines."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]",
                  lambda m: ascii(m[0])[1:-1], text)  # fmt: skip


def say(text: object, error: bool = False) -> None:
    """Print a line, on stderr where it is no result."""
    print(visible(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def tell(metrics: Sequence[Metric], page: Path) -> None:
    """Print the numbers, one to a line, and last the path of the page."""
    wide = max((len(m.label) for m in metrics), default=0)
    for m in metrics:
        say(f"{m.label:<{wide}}  {m}" + (f"  ({m.note})" if m.note else ""))
    say(page)
