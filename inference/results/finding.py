"""One thing to know: about a pair before a fit, or about a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["error", "warning", "note", "good"]


@dataclass(frozen=True)
class Finding:
    """The observation of one check.

    Attributes:
        level: "error": a fit would be wrong or stop; "warning": it may be, or the check failed;
            "note": good to know; "good": as it should be.
        site: the sample site it is about, or None.
        what: what it saw, in one line, numbers with units.
        expected: what should be there.
        found: what is there.
        fix: what to do.
        name: of the check.
        decides: whether the verdict on a guide depends on it.
        numbers: the same as a table.
    """

    level: Level
    site: str | None
    what: str
    expected: str = ""
    found: str = ""
    fix: str = ""
    name: str = ""
    decides: bool = False
    numbers: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        what: str,
        good: bool | None = None,
        decides: bool = False,
        numbers: Mapping[str, Any] | None = None,
    ) -> Finding:
        """The finding of a check of a fit; `good` is None where there is nothing to judge."""
        level: Level = "note" if good is None else "good" if good else "warning"
        return cls(level, None, what, name=name, decides=decides, numbers=dict(numbers or {}))

    @property
    def good(self) -> bool | None:
        """True where all is as it should be; None where there is nothing to judge."""
        return {"good": True, "note": None}.get(self.level, False)

    def __str__(self) -> str:
        where = f"site {self.site!r}: " if self.site else ""
        lines = (("expected", self.expected), ("found", self.found), ("fix", self.fix))
        body = [f"  {name:<9} {text}" for name, text in lines if text]
        return "\n".join([f"{self.name or self.level}: {where}{self.what}", *body])


def listed(items: Sequence[str], most: int = 5) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
