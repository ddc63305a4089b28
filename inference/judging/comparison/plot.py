"""The figure of a comparison."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ..pictures import ink, panels

STYLE = {"model": "-", "guide": "--", "shared": ":"}
OPACITY = {"model": 0.7, "guide": 0.35, "shared": 0.2}
MARKERS = "osv^D<>ph*"


def figure(found: xr.Dataset) -> Figure:
    """Four panels: SNR against K, variance against K, efficiency, SNR per module."""
    drawn, (snr, variance, bars, modules) = panels(6, 4.25, 4, 2)
    kinds = list(dict.fromkeys(map(str, found.kind.values)))
    palette = matplotlib.colormaps["tab10" if len(kinds) <= 10 else "tab20"]
    colour = {k: palette(i) for i, k in enumerate(kinds)}
    against_k(snr, found, "snr", colour)
    snr.set_ylabel("signal-to-noise ratio of the gradient")
    against_k(variance, found, "variance", colour)
    variance.set_ylabel("variance of the gradient, summed")
    efficiency(bars, found)
    profiles(modules, found, colour)
    halves = [
        Line2D([], [], color=ink(), ls=STYLE[h], marker="o", mfc=_fill(h, ink()), label=h)
        for h in _halves(found)
    ]
    lines = [Line2D([], [], color=c, marker="o", label=k) for k, c in colour.items()]
    drawn.legend(handles=[*lines, *halves], loc="outside upper center", ncols=8, fontsize=9)
    return drawn


def against_k(axes: Axes, found: xr.Dataset, variable: str, colour: dict[str, Any]) -> None:
    """One line per kind of estimator and half of the pair, on log axes."""
    for i, (kind, c) in enumerate(colour.items()):
        of_kind = found.isel(estimator=np.flatnonzero(found.kind.values == kind))
        of_kind = of_kind.sortby("particles")
        width = 3.5 - 2.5 * i / max(1, len(colour) - 1)  # where lines coincide, all are seen
        for half in _halves(found):
            y = of_kind[variable].sel(group=half)
            axes.plot(of_kind.particles, y, STYLE[half], lw=width, marker="o", ms=width + 4,
                      color=c, mfc=_fill(half, c))  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="particles K")
    axes.set_xticks(np.unique(found.particles))
    axes.get_xaxis().set_major_formatter("{x:.0f}")
    axes.get_xaxis().set_minor_locator(NullLocator())
    _at_least_a_decade(axes)


def efficiency(axes: Axes, found: xr.Dataset) -> None:
    """Bars of 1/(variance · ms), relative to the best of each half."""
    halves, names = _halves(found), [str(e) for e in found.estimator.values]
    height, place = 0.8 / len(halves), np.arange(len(names))
    for i, half in enumerate(halves):
        e = found.efficiency.sel(group=half).values
        best = np.max(e[np.isfinite(e)], initial=0) or 1
        relative = np.where(np.isfinite(e), e, best) / best
        axes.barh(
            place + i * height, relative, height, label=half, color=ink(), alpha=OPACITY[half]
        )
    axes.set_yticks(place + height * (len(halves) - 1) / 2, names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="efficiency 1/(variance x ms), relative to the best")
    axes.set_xlim(left=min(axes.get_xlim()[0], 0.1))
    axes.legend(fontsize=8)


def profiles(axes: Axes, found: xr.Dataset, colour: dict[str, Any]) -> None:
    """SNR of every module, one line per estimator."""
    modules = found.isel(group=np.flatnonzero(~found.is_half.values))
    x = np.arange(modules.sizes["group"])
    for i, name in enumerate(map(str, found.estimator.values)):
        at = modules.sel(estimator=name)
        axes.plot(x, at.snr, ":", marker=MARKERS[i % 10], ms=5, color=colour[str(at.kind.values)],
                  label=name)  # fmt: skip
    labels = [f"{g}\n{h}" for g, h in zip(modules.group.values, modules.half.values)]
    axes.set_xticks(x, labels, fontsize=8, rotation=90 if len(labels) > 8 else 0)
    axes.set_xlim(-0.5, len(labels) + 0.4 * len(labels))  # room for the legend
    axes.set(yscale="log", ylabel="signal-to-noise ratio per module")
    _at_least_a_decade(axes)
    axes.legend(fontsize=7, loc="center right")


def _halves(found: xr.Dataset) -> list[str]:
    return [str(g) for g in found.group.values[found.is_half.values]]


def _fill(half: str, colour: Any) -> Any:
    return colour if half == "model" else matplotlib.rcParams["axes.facecolor"]


def _at_least_a_decade(axes: Axes) -> None:
    low, high = axes.get_ylim()
    if low > 0 and high / low < 10:
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 10**0.5, middle * 10**0.5)
