"""The figure of a comparison."""

from __future__ import annotations

from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

STYLE = {"model": "-", "guide": "--", "shared": ":"}
MARKERS = "osv^D<>ph*"


def figure(found: xr.Dataset) -> Figure:
    """Four panels: SNR against K, variance against K, efficiency, SNR per module."""
    drawn, axes = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    kinds = list(dict.fromkeys(map(str, found.kind.values)))
    ink = matplotlib.rcParams["text.color"]
    palette = plt.get_cmap("tab10" if len(kinds) <= 10 else "tab20")
    colour = {k: palette(i) for i, k in enumerate(kinds)}
    against_k(axes[0, 0], found, "snr", colour)
    axes[0, 0].set_ylabel("signal-to-noise ratio of the gradient")
    against_k(axes[0, 1], found, "variance", colour)
    axes[0, 1].set_ylabel("variance of the gradient, summed")
    efficiency(axes[1, 0], found)
    profiles(axes[1, 1], found, colour)
    halves = [
        Line2D([], [], color=ink, ls=STYLE[h], marker="o", mfc=_fill(h, ink), label=h)
        for h in _halves(found)
    ]
    lines = [Line2D([], [], color=c, marker="o", label=k) for k, c in colour.items()]
    drawn.legend(handles=[*lines, *halves], loc="outside upper center", ncols=8, fontsize=9)
    return drawn


def against_k(axes: Axes, found: xr.Dataset, variable: str, colour: dict[str, Any]) -> None:
    """One line per kind of estimator and half of the pair, on log axes."""
    for i, (kind, c) in enumerate(colour.items()):
        of_kind = found.isel(estimator=np.flatnonzero(found.kind.values == kind))
        order = np.argsort(of_kind.particles.values, kind="stable")
        for half in _halves(found):
            y = of_kind[variable].sel(group=half).values[order]
            k = of_kind.particles.values[order]
            width = 3.5 - 2.5 * i / max(1, len(colour) - 1)  # where lines coincide, all are seen
            axes.plot(k, y, STYLE[half], lw=width, marker="o", ms=width + 4, color=c,
                      mfc=_fill(half, c))  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="particles K")
    axes.set_xticks(sorted({int(k) for k in found.particles.values}))
    axes.get_xaxis().set_major_formatter("{x:.0f}")
    axes.get_xaxis().set_minor_locator(NullLocator())
    _at_least_a_decade(axes)


def efficiency(axes: Axes, found: xr.Dataset) -> None:
    """Bars of 1/(variance · ms), relative to the best of each half."""
    halves, names = _halves(found), [str(e) for e in found.estimator.values]
    height = 0.8 / len(halves)
    for i, half in enumerate(halves):
        e = found.efficiency.sel(group=half).values
        best = np.max(e[np.isfinite(e)], initial=0) or 1
        bars = np.arange(len(names)) + i * height
        alpha = {"model": 0.7, "guide": 0.35, "shared": 0.2}[half]
        relative = np.where(np.isfinite(e), e, best) / best
        ink = axes.yaxis.label.get_color()
        axes.barh(bars, relative, height, label=half, color=ink, alpha=alpha)
    axes.set_yticks(np.arange(len(names)) + height * (len(halves) - 1) / 2, names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="efficiency 1/(variance x ms), relative to the best")
    axes.set_xlim(left=min(axes.get_xlim()[0], 0.1))
    axes.legend(fontsize=8)


def profiles(axes: Axes, found: xr.Dataset, colour: dict[str, Any]) -> None:
    """SNR of every module, one line per estimator."""
    modules = found.isel(group=np.flatnonzero(~found.is_half.values))
    x = np.arange(modules.sizes["group"])
    for i, name in enumerate(map(str, found.estimator.values)):
        kind = str(found.kind.sel(estimator=name).values)
        y = modules.snr.sel(estimator=name).values
        axes.plot(x, y, ":", marker=MARKERS[i % 10], ms=5, color=colour[kind], label=name)
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
