"""A Monte Carlo estimate: a mean with its standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error, nats."""

    value: float
    se: float

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """The mean of independent values (N,); its error is NaN where there is only one."""
        se = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), se)

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.se:.2g} nats"
