"""One piece of evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Finding:
    """What one check saw.

    Attributes:
        name: of the check.
        text: what it saw, in words and numbers with units.
        good: whether that is as it should be; None where there is nothing to judge.
        decides: whether the verdict on the guide depends on it.
        numbers: the same as a table.
    """

    name: str
    text: str
    good: bool | None = None
    decides: bool = False
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: infinite and undefined numbers are None."""
        return {
            "name": self.name, "good": self.good, "decides": self.decides, "text": self.text,
            "numbers": plain(self.numbers),
        }  # fmt: skip


def plain(value: Any) -> Any:
    """Python's own types for JSON, None for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def listed(items: list[str], most: int = 5) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
