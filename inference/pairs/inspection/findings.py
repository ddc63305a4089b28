"""What `check` returns: findings in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from ...results.finding import Finding

__all__ = ["Finding", "Findings"]

ORDER = ("error", "warning", "note")


class Findings(Sequence[Finding]):
    """Findings, errors first. `str()` reads as advice.

    True when there is any finding, as for a list: `if check(...)` asks whether there is something
    to read, and `if check(...).errors` whether a fit would be refused.
    """

    def __init__(self, findings: Iterable[Finding] = ()):
        unique = dict.fromkeys(findings)
        self._all = tuple(sorted(unique, key=lambda f: ORDER.index(f.level)))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those with which a fit does not start."""
        return tuple(f for f in self._all if f.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Those with which a fit may come out wrong."""
        return tuple(f for f in self._all if f.level == "warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Those that are good to know."""
        return tuple(f for f in self._all if f.level == "note")

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self._all[index]

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._all)

    def __str__(self) -> str:
        if not self._all:
            return "Nothing found: the pair looks fit to be fitted."
        return "\n".join(map(str, self._all))

    def __repr__(self) -> str:
        counts = [f"{sum(f.level == k for f in self._all)} {k}s" for k in ORDER]
        return f"Findings({', '.join(counts)})"
