"""The figures of a calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..panels import GREY, ecdf_less_uniform, panels
from ..uniformity import band, places


def ecdf(calibration: Any, most: int) -> Figure:
    """ECDF of the ranks less the uniform one, the worst quantities first, with the 99 % band."""
    p = calibration.uniform()
    names = sorted(p, key=lambda n: p[n])[:most]
    j = places(calibration.draws)
    figure, grid = panels(2.6, 2.3, len(names), 4, sharex=True, sharey=True)
    for axes, name in zip(grid, names):
        seen = (calibration.ranks[name][:, None] < j).mean(0)
        ecdf_less_uniform(axes, j / (calibration.draws + 1), seen, len(calibration), color="C0")
        axes.set_title(f"{name} (p = {p[name]:.2g})", fontsize=9)
    figure.supxlabel("rank of the truth / draws")
    figure.supylabel("ECDF less uniform")
    return figure


def coverage(calibration: Any, most: int) -> Figure:
    """Coverage of central intervals, and of TARP's joint regions, against the nominal level."""
    levels = np.linspace(0.01, 0.99, 99)
    p = calibration.uniform()
    names = sorted(p, key=lambda n: p[n])[:most]
    away = np.abs(calibration.pit() - 0.5)
    index = {n: i for i, n in enumerate(calibration.ranks)}
    figure, (axes,) = panels(4.6, 4.4)
    for name in names:
        axes.plot(levels, (away[:, index[name], None] < levels / 2).mean(0), "C0", alpha=0.5)
    axes.plot([], [], "C0", label="central intervals")
    axes.plot(levels, calibration.expected_coverage(levels), "C1", label="joint regions (TARP)")
    low, high = band(len(calibration), levels, 0.99)
    axes.fill_between(levels, low, high, color=GREY, alpha=0.4, label="99 % band")
    axes.plot([0, 1], [0, 1], "k", linewidth=0.5)
    axes.set(xlabel="nominal level", ylabel="holds the truth", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return figure
