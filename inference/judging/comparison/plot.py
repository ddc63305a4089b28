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
MARKERS = "osv^D<>ph*"


def figure(found: xr.Dataset) -> Figure:
    """Four panels: SNR and variance of a step, efficiency, SNR per module.

    The first two are drawn against K where some kind of estimator has several, else an estimator to
    a line. What is drawn at one place is drawn side by side; what is zero or infinite, as an arrow
    at the edge.
    """
    many = len(found.estimator)
    drawn, (snr, variance, bars, modules) = panels(6, max(4.25, 0.5 * many), 4, 2)
    kinds = list(dict.fromkeys(map(str, found.kind.values)))
    palette = matplotlib.colormaps["tab10" if len(kinds) <= 10 else "tab20"]
    colour = {k: palette(i) for i, k in enumerate(kinds)}
    shown = against_k if len(kinds) < many else one_by_one
    shown(snr, found, "snr_step", colour, "signal-to-noise ratio of a step's gradient")
    shown(variance, found, "variance_step", colour, "variance of a step's gradient, summed")
    one_by_one(bars, found, "efficiency", colour, "efficiency 1/(variance of a step x seconds)")
    profiles(modules, found, colour)
    halves = [
        Line2D([], [], color=ink(), ls=STYLE[h], marker="o", mfc=_fill(h, ink()), label=h)
        for h in _halves(found)
    ]
    lines = [Line2D([], [], color=c, marker="o", label=k) for k, c in colour.items()]
    drawn.legend(handles=[*lines, *halves], loc="outside upper center", ncols=8, fontsize=9)
    return drawn


def against_k(
    axes: Axes, found: xr.Dataset, variable: str, colour: dict[str, Any], label: str
) -> None:
    """One line per kind of estimator and half of the pair, on log axes."""
    count = max(1, len(colour) - 1)
    lines = []
    for i, (kind, c) in enumerate(colour.items()):
        of_kind = found.isel(estimator=np.flatnonzero(found.kind.values == kind))
        of_kind = of_kind.sortby("particles")
        aside = 1.15 ** (i / count - 0.5)
        for half in _halves(found):
            at = of_kind.sel(group=half)
            lines.append((at.particles.values * aside, at[variable].values,
                          at[f"{variable}_se"].values, half, c))  # fmt: skip
    edges = _edges([y for _, y, *_ in lines])
    for x, y, se, half, c in lines:
        inside = np.clip(y, *edges)
        axes.errorbar(x, inside, np.where(y == inside, np.minimum(se, 0.9 * inside), 0.0),
                      ls=STYLE[half], color=c, lw=1.5, elinewidth=1)  # fmt: skip
        _points(axes, x, y, inside, half, c)
    axes.set(xscale="log", yscale="log", xlabel="particles K", ylabel=label)
    axes.set_xticks(np.unique(found.particles))
    axes.get_xaxis().set_major_formatter("{x:.0f}")
    axes.get_xaxis().set_minor_locator(NullLocator())
    _at_least_a_decade(axes)


def one_by_one(
    axes: Axes, found: xr.Dataset, variable: str, colour: dict[str, Any], label: str
) -> None:
    """One line of the panel per estimator, the halves of the pair below each other."""
    halves, names = _halves(found), [str(e) for e in found.estimator.values]
    colours: Any = [colour[str(k)] for k in found.kind.values]
    edges = _edges([found[variable].sel(group=h).values for h in halves])
    place = np.arange(len(names))
    for i, half in enumerate(halves):
        at = found.sel(group=half)
        y, se = at[variable].values, at[f"{variable}_se"].values
        inside = np.clip(y, *edges)
        rows = place + 0.3 * (i - (len(halves) - 1) / 2)
        se = np.where(y == inside, np.minimum(se, 0.9 * inside), 0.0)
        axes.errorbar(inside, rows, xerr=se, fmt="none", ecolor=colours, elinewidth=1)
        for x, at_row, own, c in zip(inside, rows, y, colours):
            _points(axes, x, own, at_row, half, c, sideways=True, clipped=x)
    axes.set_yticks(place, names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel=label)
    axes.grid(axis="x", alpha=0.3)


def profiles(axes: Axes, found: xr.Dataset, colour: dict[str, Any]) -> None:
    """SNR of every module, one line per estimator, side by side."""
    modules = found.isel(group=np.flatnonzero(~found.is_half.values))
    names = [str(e) for e in found.estimator.values]
    edges = _edges([modules.snr_step.values])
    x = np.arange(modules.sizes["group"])
    for i, name in enumerate(names):
        at = modules.sel(estimator=name)
        aside = 0.6 * (i / max(1, len(names) - 1) - 0.5)
        look = {"marker": MARKERS[i % 10], "color": colour[str(at.kind.values)], "label": name}
        axes.plot(x + aside, np.clip(at.snr_step.values, *edges), ":", lw=0.8, ms=5, **look)
    labels = [f"{g}\n{h}" for g, h in zip(modules.group.values, modules.half.values)]
    axes.set_xticks(x, labels, fontsize=8, rotation=90 if len(labels) > 8 else 0)
    axes.set_xlim(-0.5, len(labels) + 0.4 * len(labels))  # room for the legend
    axes.set(yscale="log", ylabel="signal-to-noise ratio of a step, per module")
    _at_least_a_decade(axes)
    axes.legend(fontsize=7, loc="center right")


def _edges(lines: list[np.ndarray]) -> tuple[float, float]:
    """The places where zero and infinity are drawn: half a decade beyond what is between them."""
    every = np.concatenate([np.ravel(y) for y in lines]) if lines else np.ones(1)
    seen = every[np.isfinite(every) & (every > 0)]
    low, high = (seen.min(), seen.max()) if len(seen) else (1.0, 1.0)
    return low / 3, high * 3


def _points(
    axes: Axes, x: Any, y: Any, inside: Any, half: str, colour: Any, sideways: bool = False,
    clipped: Any = None,
) -> None:  # fmt: skip
    """Markers: filled for the model's half, arrows for what lies beyond the edge."""
    seen = inside if clipped is None else clipped
    for a, own, at, z in zip(*map(np.atleast_1d, (x, y, inside, seen))):
        beyond = own > z, own < z
        arrows = "><" if sideways else "^v"
        marker = arrows[0] if beyond[0] else arrows[1] if beyond[1] else "o"
        axes.plot([a], [at], marker, ms=5, color=colour, mfc=_fill(half, colour))


def _halves(found: xr.Dataset) -> list[str]:
    return [str(g) for g in found.group.values[found.is_half.values]]


def _fill(half: str, colour: Any) -> Any:
    return colour if half == "model" else matplotlib.rcParams["axes.facecolor"]


def _at_least_a_decade(axes: Axes) -> None:
    low, high = axes.get_ylim()
    if low > 0 and high / low < 10:
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 10**0.5, middle * 10**0.5)
