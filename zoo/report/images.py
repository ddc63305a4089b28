"""Drawings of images, and of a process in stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .draw import Array, Drawing, new_figure
from .theme import ACCENT, NARROW, WIDTH, Theme


def image_grid(images: Array, columns: int = 8, labels: Sequence[str] | None = None) -> Drawing:
    """Draw images side by side.

    Args:
        images: (n, C, H, W) in [0, 1].
        columns: how many in a row.
        labels: one word for each row.
    """

    def draw(theme: Theme) -> Figure:
        rows = math.ceil(len(images) / columns)
        width = NARROW if columns <= 8 else WIDTH
        figure = new_figure(width, width * rows / columns)
        ax = figure.subplots()
        _show(ax, _mosaic(images, columns))
        if labels:
            h = images.shape[-2] + 1
            ax.set_yticks([h * i + h / 2 for i in range(rows)], labels[:rows])
            ax.tick_params(axis="y", length=0)
        return figure

    return draw


def image_pairs(
    x: Array, reconstructed: Array, columns: int = 8, names: tuple[str, str] = ("x", "x̂")
) -> Drawing:
    """Draw data above their reconstructions, or others of two `names`, (n, C, H, W) each."""

    def draw(theme: Theme) -> Figure:
        pairs = [
            np.concatenate([x[i : i + columns], reconstructed[i : i + columns]])
            for i in range(0, len(x), columns)
        ]
        rows = 2 * len(pairs)
        figure = new_figure(NARROW, NARROW * rows / columns)
        ax = figure.subplots()
        _show(ax, _mosaic(np.concatenate(pairs), columns))
        h = x.shape[-2] + 1
        ax.set_yticks([h * i + h / 2 for i in range(rows)], [*names] * len(pairs))
        ax.tick_params(axis="y", length=0)
        return figure

    return draw


def columns_of_images(columns: Mapping[str, Array], title: str) -> Drawing:
    """Draw images in columns: heading -> (n, C, H, W)."""

    def draw(theme: Theme) -> Figure:
        n, across = len(next(iter(columns.values()))), len(columns)
        figure = new_figure(NARROW * across / 8, NARROW * n / 8 + 0.7)
        ax = figure.subplots()
        each = np.stack(list(columns.values()), 1)  # (n, columns, C, H, W)
        _show(ax, _mosaic(each.reshape(-1, *each.shape[2:]), across))
        w = each.shape[-1] + 1
        ax.set_xticks([w * i + w / 2 for i in range(across)], list(columns))
        ax.tick_params(axis="x", length=0, labelsize=8, top=False, labeltop=True, labelbottom=False)
        if title:
            figure.suptitle(title)
        return figure

    return draw


def stages(snapshots: Mapping[str, Array], images: bool) -> Drawing:
    """Draw a process at several times, side by side: title -> points (n, 2) or images."""

    def draw(theme: Theme) -> Figure:
        n = len(snapshots)
        figure = new_figure(WIDTH, WIDTH / n + 0.5)
        row = figure.subplots(1, n, squeeze=False, sharex=not images, sharey=not images)[0]
        for ax, (title, x) in zip(row, snapshots.items()):
            if images:
                _show(ax, _mosaic(np.clip(x, 0, 1), math.isqrt(len(x))))
            else:
                ax.scatter(*x.T, s=2, lw=0, alpha=0.6, color=ACCENT)
                ax.set_aspect("equal", adjustable="box")
            ax.set_title(title)
        return figure

    return draw


def _mosaic(images: Array, columns: int) -> Array:
    """(n, C, H, W) -> one image (H', W') or (H', W', 3), with a line of NaN between tiles."""
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, c), np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (h + 1) + 1, i % columns * (w + 1) + 1
        sheet[top : top + h, left : left + w] = image.transpose(1, 2, 0)
    return sheet[..., :3] if c >= 3 else sheet[..., 0]


def _show(ax: Axes, sheet: Array) -> None:
    shown = np.nan_to_num(sheet, nan=0.0) if sheet.ndim == 3 else np.ma.masked_invalid(sheet)
    ax.imshow(
        np.clip(shown, 0, 1) if sheet.ndim == 3 else shown,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="equal",
    )
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
