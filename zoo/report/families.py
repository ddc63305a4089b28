"""Pictures for particular families: densities, mixtures, processes, codebooks, critics."""

from __future__ import annotations

import numpy as np
import torch

from . import draw, images
from .draw import Ellipse, Picture
from .subject import Subject


def density(s: Subject) -> Picture | None:
    """Draw the density on a grid, for data in the plane."""
    if s.width != 2 or s.conditional:
        return None
    x, _ = s.seen()
    low, high = x.quantile(0.001, 0), x.quantile(0.999, 0)
    margin = 0.15 * (high - low)
    ends = torch.stack([low - margin, high + margin]).mT.tolist()
    xs, ys = (torch.linspace(a, b, 120) for a, b in ends)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)
    log_p = s.log_prob(grid)
    if log_p is None:
        return None
    text = "The model's density on a grid, and the data beside it on the same axes."
    ellipses = _ellipses(s)
    if ellipses:
        text += f" Ellipses: two standard deviations of the {len(ellipses)} components in use."
    drawing = draw.density_map(
        (xs.numpy(), ys.numpy()),
        log_p.exp().reshape(120, 120).numpy(),
        x.numpy(),
        ellipses,
        s.axes,
    )
    return Picture("density", "Density", text, drawing, wide=True)


def components(s: Subject) -> Picture | None:
    """Draw the components and each datum's responsibilities."""
    if not s.offers("responsibilities") or s.width != 2:
        return None
    x, _ = s.seen()
    shares = s.call("responsibilities", x)
    text = "Data in the mixed colours of the components that may have made them."
    return Picture(
        "responsibilities",
        "Responsibilities",
        text,
        draw.responsibilities(x.numpy(), shares.numpy(), _ellipses(s)),
    )


def _ellipses(s: Subject) -> list[Ellipse]:
    if not s.offers("distribution") or s.width != 2:
        return []
    p = s.model.distribution()
    if not hasattr(p, "mixture_distribution"):
        return []
    with torch.no_grad():
        parts = p.component_distribution
        weights = p.mixture_distribution.probs
        covariances = getattr(parts, "covariance_matrix", None)
        covariances = parts.variance.diag_embed() if covariances is None else covariances
        scale = s.original(torch.ones(2)) - s.original(torch.zeros(2))
        means = s.original(parts.mean.detach().float().cpu())
        covariances = covariances.cpu() * scale * scale[:, None]
        numbers = [t.detach().double().cpu().numpy() for t in (weights, means, covariances)]
    return [e for e in zip(*numbers) if e[0] * len(s.data.train) >= 1]


def reverse(s: Subject) -> Picture | None:
    """Draw the stages from noise to data."""
    if not s.offers("reverse"):
        return None
    pixels = s.shape is not None
    path = s.call("reverse", 16 if pixels else 1_000)  # (T + 1, n, D)
    if not pixels and s.width != 2:
        return None
    last = len(path) - 1
    snapshots = {}
    for i in np.linspace(0, last, 6).round().astype(int):
        title = "x" if i == last else f"t = {last - i}"
        snapshots[title] = s.images(path[i]) if pixels else path[i].numpy()
    text = "The reverse process, from noise on the left to draws of x on the right."
    return Picture("reverse", "Reverse process", text, images.stages(snapshots, pixels), wide=True)


def usage(s: Subject) -> Picture | None:
    """Draw the share of slots that each codebook entry takes."""
    if not s.offers("usage"):
        return None
    share = s.call("usage", s.seen()[0])
    used = int((share > 0).sum())
    text = f"Share of all slots that each entry takes; {used} of {len(share)} entries are used."
    return Picture(
        "usage", "Codebook", text, draw.bars({"": share.numpy()}, "share of slots", "entry, sorted")
    )


def nearest(s: Subject) -> Picture | None:
    """Draw draws of images above the training images nearest to them."""
    if s.quality is None or s.shape is None:
        return None
    text = f"Draws, and below each the training image nearest to it in {s.quality.features}."
    pairs = images.image_pairs(
        s.images(s.quality.draws[:32]), s.images(s.quality.nearest[:32]), names=("draw", "near")
    )
    return Picture("nearest", "Nearest training images", text, pairs)


def critic(s: Subject) -> Picture | None:
    """Draw a critic's scores of held-out data and of draws, and its calibration."""
    if s.ratio is None:
        return None
    text = (
        "A fresh critic, trained to tell held-out data from draws. Left: its log ratios; "
        "the more they overlap, the better the draws. Right: whether its probabilities hold."
    )
    names = ("data", "draws")
    return Picture("critic", "Critic", text, lambda theme: s.ratio.plot(names), wide=True)
