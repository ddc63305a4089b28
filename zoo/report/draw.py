"""Drawings from arrays. Each function returns a drawing: a function from a theme to a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from .theme import ACCENT, CLASSES, CYCLE, NARROW, WIDTH, Theme

Drawing = Callable[[Theme], Figure]
Array = np.ndarray
Ellipse = tuple[float, Array, Array]  # weight, mean (2,), covariance (2, 2)


@dataclass(frozen=True)
class Picture:
    """A drawing with words: `name` is the file's, `wide` asks for the page's full width."""

    name: str
    title: str
    caption: str
    drawing: Drawing
    wide: bool = False


def new_figure(width: float = NARROW, height: float = 3.5) -> Figure:
    """Return an empty figure of so many inches."""
    return Figure(figsize=(width, height))


def curves(
    step: Array, lines: Mapping[str, Array], ylabel: str, mark: int | None = None
) -> Drawing:
    """Draw lines over the steps of a fit.

    Args:
        step: (T,).
        lines: label -> (T,), NaN where there is no value.
        ylabel: what they are, with the unit.
        mark: a step to point at.
    """

    def draw(theme: Theme) -> Figure:
        figure = new_figure()
        ax = figure.subplots()
        for i, (label, y) in enumerate(lines.items()):
            there = np.isfinite(y)
            colour = CYCLE[i % len(CYCLE)]
            many = there.sum() > 40
            if many:
                ax.plot(step[there], y[there], color=colour, alpha=0.3, lw=1)
            ax.plot(
                step[there],
                _smooth(y[there]) if many else y[there],
                label=label,
                color=colour,
                marker=None if many else "o",
                ms=3,
            )
        # The first tenth may tower over all the rest: show where the curve ends up.
        late = np.concatenate([y[len(y) // 10 :] for y in lines.values()])
        late = late[np.isfinite(late)]
        if len(late) > 3:
            low, high = late.min(), late.max()
            pad = 0.08 * (high - low) or 1.0
            ax.set_ylim(low - pad, high + pad)
        if mark is not None:
            ax.axvline(mark, color=theme.faint, lw=1, ls=":", label=f"kept: step {mark:,}")
        ax.set(xlabel="step", ylabel=ylabel)
        if step[-1] >= 10_000:  # 20k: numbers of six digits would run into each other
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.margins(x=0.02)
        if len(lines) > 1 or mark is not None:
            ax.legend()
        return figure

    return draw


def scatter(
    panels: Mapping[str, tuple[Array, Array | None]],
    axes: tuple[str, str] = ("x₁", "x₂"),
    names: Sequence[str] | None = None,
    shared: bool = True,
) -> Drawing:
    """Draw points in the plane, one panel for each title: (n, 2) and their classes or None."""

    def draw(theme: Theme) -> Figure:
        n = len(panels)
        figure = new_figure(NARROW if n == 1 else WIDTH, NARROW if n == 1 else WIDTH / n)
        row = figure.subplots(1, n, squeeze=False, sharex=shared, sharey=shared)[0]
        for ax, (title, (points, labels)) in zip(row, panels.items()):
            size = _dot(len(points))
            if labels is None:
                ax.scatter(*points.T, s=size, lw=0, alpha=0.6, color=ACCENT)
            else:
                for i, label in enumerate(np.unique(labels)):
                    there = labels == label
                    colour = CLASSES[i % len(CLASSES)]
                    word = names[int(label)] if names else f"{label:g}"
                    ax.scatter(*points[there].T, s=size, lw=0, alpha=0.8, color=colour, label=word)
                if len(np.unique(labels)) <= 12:
                    ax.legend(
                        markerscale=2.0,
                        ncols=1,
                        loc="center left",
                        bbox_to_anchor=(1.0, 0.5),
                        handletextpad=0.1,
                        borderpad=0.0,
                    )
            ax.set(xlabel=axes[0], ylabel=axes[1], title=title)
            if shared:
                ax.set_aspect("equal", adjustable="box" if n > 1 else "datalim")
        return figure

    return draw


def histograms(columns: Mapping[str, Mapping[str, Array]]) -> Drawing:
    """Draw histograms of several samples, one panel for each column: column -> sample -> (n,)."""

    def draw(theme: Theme) -> Figure:
        n = len(columns)
        across = min(n, 4 if n % 4 == 0 else 3)
        down = math.ceil(n / across)
        figure = new_figure(WIDTH if n > 1 else NARROW, 2.6 * down + 0.4)
        row = figure.subplots(down, across, squeeze=False).ravel()
        for ax in row[n:]:
            ax.set_visible(False)
        for ax, (title, samples) in zip(row, columns.items()):
            every = np.concatenate(list(samples.values()))
            low, high = np.quantile(every, [0.002, 0.998])
            bins = np.linspace(low, high if high > low else low + 1, 41)
            for label, values in samples.items():
                ax.hist(values, bins, density=True, alpha=0.55, label=label)
            ax.set(xlabel=title, yticks=[])
        if any(len(samples) > 1 for samples in columns.values()):
            row[0].legend()
        return figure

    return draw


def bars(groups: Mapping[str, Array], ylabel: str, xlabel: str = "dimension, sorted") -> Drawing:
    """Draw sorted bars, one panel for each group: name -> (L,)."""

    def draw(theme: Theme) -> Figure:
        n = len(groups)
        figure = new_figure(NARROW if n == 1 else WIDTH)
        row = figure.subplots(1, n, squeeze=False, sharey=True)[0]
        for i, (ax, (name, values)) in enumerate(zip(row, groups.items())):
            order = np.argsort(-values)
            ax.bar(np.arange(len(values)), values[order], color=CYCLE[i % len(CYCLE)], width=0.8)
            few = len(values) <= 16
            ax.set(
                xlabel=xlabel if few else f"{xlabel} ({len(values)})", title=name if n > 1 else ""
            )
            ax.set_xticks(np.arange(len(values)) if few else [], order + 1 if few else [])
            ax.grid(axis="x", visible=False)
        row[0].set_ylabel(ylabel)
        return figure

    return draw


def amounts(values: Mapping[str, float], xlabel: str) -> Drawing:
    """Draw one horizontal bar for each name."""

    def draw(theme: Theme) -> Figure:
        figure = new_figure(NARROW, 0.9 + 0.42 * len(values))
        ax = figure.subplots()
        names = list(values)
        ax.barh(names[::-1], [values[n] for n in names[::-1]], color=ACCENT, height=0.6)
        ax.set_xlabel(xlabel)
        ax.grid(axis="y", visible=False)
        return figure

    return draw


def khat_plot(khat: Array) -> Drawing:
    """Draw the Pareto k-hat per datum, (N,), with the lines at 0.5 and 0.7."""

    def draw(theme: Theme) -> Figure:
        figure = new_figure()
        ax = figure.subplots()
        k = khat[np.isfinite(khat)]
        for low, high, colour, word in (
            (-np.inf, 0.5, ACCENT, "good"),
            (0.5, 0.7, CYCLE[1], "fair"),
            (0.7, np.inf, CYCLE[6], "not to be trusted"),
        ):
            there = (k > low) & (k <= high)
            label = f"{word}: {there.sum():,}"
            ax.scatter(np.flatnonzero(there), k[there], s=_dot(len(k)), lw=0, alpha=0.85,
                       color=colour, label=label)  # fmt: skip
        for line in (0.5, 0.7):
            ax.axhline(line, color=theme.faint, lw=1, ls="--")
        ax.set(xlabel="datum", ylabel="Pareto k-hat")
        low, high = min([0.0, *k]), max([0.8, *k])
        ax.set_ylim(low - 0.05, high + 0.05)
        figure.legend(loc="outside upper center", ncols=3, markerscale=2.0, handletextpad=0.1)
        return figure

    return draw


def density_map(
    grid: tuple[Array, Array], density: Array, points: Array, ellipses: Sequence[Ellipse] = (),
    axes: tuple[str, str] = ("x₁", "x₂"),
) -> Drawing:  # fmt: skip
    """Draw a density over the plane, and data beside it.

    Args:
        grid: x (W,) and y (H,).
        density: (H, W).
        points: (n, 2).
        ellipses: drawn over both.
        axes: their names.
    """

    def draw(theme: Theme) -> Figure:
        figure = new_figure(WIDTH, WIDTH / 2)
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        top = float(np.quantile(density, 0.998)) or None  # a spike would leave all else pale
        left.pcolormesh(
            *grid, density, cmap=theme.density, shading="auto", rasterized=True, vmin=0, vmax=top
        )
        right.scatter(
            *points.T,
            s=_dot(len(points)),
            lw=0,
            alpha=0.6,
            color=ACCENT,
        )
        for ax, title in ((left, "density of the model"), (right, "data")):
            ax.set(xlabel=axes[0], ylabel=axes[1] if ax is left else "", title=title)
            ax.set(xlim=(grid[0][0], grid[0][-1]), ylim=(grid[1][0], grid[1][-1]))
            ax.grid(visible=False)
            outline(ax, ellipses, theme)
        return figure

    return draw


def outline(ax: Axes, ellipses: Sequence[Ellipse], theme: Theme) -> None:
    """Draw two standard deviations of each component; the wider the line, the more weight."""
    for weight, mean, covariance in ellipses:
        variance, axes = np.linalg.eigh(covariance)
        size = 4 * np.sqrt(np.maximum(variance, 0))
        angle = math.degrees(math.atan2(axes[1, 1], axes[0, 1]))
        ax.add_collection(
            EllipseCollection(
                [size[1]],
                [size[0]],
                [angle],
                units="xy",
                offsets=mean[None],
                facecolors="none",
                offset_transform=ax.transData,
                edgecolors=theme.ink,
                lw=0.5 + 2 * float(weight) ** 0.5,
            )
        )


def responsibilities(points: Array, shares: Array, ellipses: Sequence[Ellipse]) -> Drawing:
    """Draw points coloured by their responsibilities: (n, 2) and (n, C)."""

    def draw(theme: Theme) -> Figure:
        figure = new_figure(NARROW, 4.6)
        ax = figure.subplots()
        colours = np.full((shares.shape[1], 3), 0.5)  # of a component that nothing uses
        for i, c in enumerate(np.flatnonzero(shares.sum(0) >= 1)):
            colours[c] = _rgb(CLASSES[i % len(CLASSES)])
        mixed = np.clip(shares @ colours, 0, 1)
        ax.scatter(points[:, 0], points[:, 1], _dot(len(points)), mixed, lw=0, alpha=0.8)
        outline(ax, ellipses, theme)
        ax.set(xlabel="x₁", ylabel="x₂")
        return figure

    return draw


def _smooth(y: Array, width: int = 9) -> Array:
    """Return the mean over `width` neighbours, fewer at the ends."""
    weight = np.convolve(np.ones_like(y), np.ones(width), "same")
    return np.convolve(y, np.ones(width), "same") / weight


def _dot(n: int) -> float:
    """Return the area of a point among n, in points squared."""
    return float(np.clip(9000 / max(1, n), 3, 16))


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
