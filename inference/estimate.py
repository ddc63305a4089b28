"""A Monte Carlo estimate: a mean with its standard error, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate and its standard error, nats; unpacks as `value, se`.

    Attributes:
        value: the estimate, or None where there is none.
        se: its standard error, 0 for an exact number, None where it is not known.
        because: why there is no estimate, in words.
    """

    value: float | None
    se: float | None = None
    because: str = ""

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """The mean of independent values (N,); no standard error where there is only one."""
        if not len(values):
            return cls.none("there are no values")
        if not bool(values.isfinite().all()):
            return cls.none("some of its values are infinite or undefined")
        se = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(float(values.mean()), se)

    @classmethod
    def none(cls, because: str) -> Estimate:
        """No estimate, and why."""
        return cls(None, None, because)

    def __iter__(self) -> Iterator[float | None]:
        return iter((self.value, self.se))

    def __bool__(self) -> bool:
        return self.value is not None

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference, the two errors taken as independent."""
        if self.value is None or other.value is None:
            return Estimate.none(self.because or other.because)
        se = None if self.se is None or other.se is None else math.hypot(self.se, other.se)
        return Estimate(self.value - other.value, se)

    def number(self, digits: int | None = None) -> str:
        """The value with its standard error, without a unit.

        Args:
            digits: decimals of both; by default four significant ones, and two of the error.
        """
        if self.value is None:
            return f"no estimate, because {self.because}"
        formats = (".4g", ".2g") if digits is None else (f".{digits}f", f".{digits}f")
        value = format(self.value, formats[0])
        if self.se is None:
            return f"{value} (one draw, no error)"
        return f"{value} ± {format(self.se, formats[1])}"

    def __str__(self) -> str:
        return f"{self.number()} nats" if self else self.number()
