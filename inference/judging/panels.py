"""Panels of a figure, and the ECDF of what should be uniform in one of them."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .uniformity import band

GREY = "0.6"


def panels(
    width: float = 6, height: float = 3.6, count: int = 1, columns: int = 0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, each of that size in inches, in rows of `columns` (or in one)."""
    columns = min(columns or count, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axes in every[count:]:
        axes.set_axis_off()
    return figure, list(every[:count])


def ink() -> str:
    """The colour of data and limits: matplotlib's colour of text, which is seen on dark paper."""
    return str(matplotlib.rcParams["text.color"])


def ecdf_less_uniform(axes: Axes, at: np.ndarray, ecdf: np.ndarray, n: int, **line: Any) -> None:
    """An ECDF of n values at some points in (0, 1), less the uniform law, in its 99 % band."""
    low, high = band(n, at, 0.99)
    axes.fill_between(at, low - at, high - at, color=GREY, alpha=0.4, label="99 % band")
    axes.plot(at, ecdf - at, **line)
