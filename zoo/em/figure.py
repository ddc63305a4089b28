"""Mixtures to look at: data coloured by responsibilities, components as ellipses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

from .maximum_likelihood import MixtureDensity


def draw_mixtures(
    x: Tensor,
    panels: Mapping[str, tuple[MixtureDensity, Tensor]],
    columns: Sequence[str] = ("column 1", "column 2"),
) -> Figure:
    """Return a column for each panel: above the data and components, below the responsibilities.

    Above, a datum's colour mixes the colours of its components, and ellipses enclose one and two
    standard deviations, in the first two columns of x (for one column: densities). Below, the data
    stand side by side in the order of their projection on the widest direction.

    Args:
        x: (N, D).
        panels: title -> (mixture, responsibilities (N, C)).
        columns: labels of the first two columns of x.

    Returns:
        A matplotlib figure.
    """
    data = x.detach().cpu()
    figure = Figure(figsize=(4.2 * len(panels), 5.6), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, height_ratios=[3, 1], sharex="row",
                           sharey="row")  # fmt: skip
    for column, (title, (mixture, responsibilities)) in zip(axes.T, panels.items()):
        r = responsibilities.detach().cpu()
        mixture = MixtureDensity(
            mixture.weights.cpu(), mixture.means.cpu(), mixture.covariances.cpu()
        )
        colours = _colours(mixture.means, r)
        draw = _densities if data.shape[1] == 1 else _ellipses
        draw(column[0], data, mixture, r, colours)
        column[0].set(title=title, xlabel=columns[0])
        _bands(column[1], data, r, colours)
    axes[0, 0].set_ylabel("density" if data.shape[1] == 1 else columns[1])
    axes[1, 0].set_ylabel("p(k | x)")
    return figure


def _colours(means: Tensor, r: Tensor) -> np.ndarray:
    """Return a colour for each component in use, ordered by the first column; grey for the rest."""
    colours = np.full((len(means), 3), 0.75)
    used = [c for c in means[:, 0].argsort().tolist() if r[:, c].sum() >= 1]
    palette = matplotlib.colormaps["tab10" if len(used) <= 10 else "turbo"]
    for i, c in enumerate(used):
        colours[c] = palette(i if len(used) <= 10 else i / (len(used) - 1))[:3]
    return colours


def _ellipses(
    axis: Axes, x: Tensor, mixture: MixtureDensity, r: Tensor, colours: np.ndarray
) -> None:
    axis.scatter(
        x[:, 0].numpy(), x[:, 1].numpy(), c=(r.numpy() @ colours).clip(0, 1), s=9, linewidths=0
    )
    full = mixture.covariances if mixture.covariance == "full" else mixture.covariances.diag_embed()
    for c, covariance in enumerate(full[:, :2, :2]):
        if r[:, c].sum() < 1:
            continue
        centre = tuple(mixture.means[c, :2].tolist())
        variances, vectors = torch.linalg.eigh(covariance)
        angle = math.degrees(math.atan2(float(vectors[1, 1]), float(vectors[0, 1])))
        for deviations in (1, 2):
            width, height = (2 * deviations * variances.flip(0).sqrt()).tolist()
            axis.add_patch(
                Ellipse(centre, width, height, angle=angle, fill=False,
                        edgecolor=colours[c], linewidth=2.0 / deviations)
            )  # fmt: skip


def _densities(
    axis: Axes, x: Tensor, mixture: MixtureDensity, r: Tensor, colours: np.ndarray
) -> None:
    axis.hist(x[:, 0].numpy(), bins="auto", density=True, color="0.85")
    margin = 0.1 * (x.max() - x.min())
    grid = torch.linspace(float(x.min() - margin), float(x.max() + margin), 400, dtype=x.dtype)
    joint = mixture.log_joint(grid.unsqueeze(-1)).exp()
    axis.plot(grid, joint.sum(-1), color="black", linewidth=1.5)
    for c, line in enumerate(joint.T):
        if r[:, c].sum() >= 1:
            axis.plot(grid, line, color=colours[c])


def _bands(axis: Axes, x: Tensor, r: Tensor, colours: np.ndarray) -> None:
    white = (x - x.mean(0)) / x.std(0)
    widest = torch.linalg.svd(white, full_matrices=False).Vh[0]
    widest = widest * torch.sign(widest[widest.abs().argmax()])
    order = (white @ widest).argsort()
    axis.stackplot(range(len(x)), r[order].T.numpy(), colors=colours, linewidth=0)
    axis.set(xlim=(0, len(x) - 1), ylim=(0, 1), xlabel="data, in order")
