"""The figures of a diagnosis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ...draws.psis import psis, tail_size
from ..panels import ecdf_less_uniform, ink, panels
from .tail import good_khat

GUIDE, TRUTH = "C0", "C1"


def figures(diagnosis: Any) -> dict[str, Figure]:
    """Name -> figure, for each finding that has something to show."""
    drawers = {
        "weights": _weights, "marginals": _marginals, "data": _pointwise,
        "loo-pit": _loo_pit, "predictive": _predictive, "loss": _loss, "gaps": _gaps,
        "latents": _latents, "worst-data": _worst_data,
    }  # fmt: skip
    drawn = {name: draw(diagnosis) for name, draw in drawers.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _weights(d: Any) -> Figure | None:
    """The tail of the weights of a joint posterior, or k-hat of every datum."""
    blocks = d.evidence.get("blocks")
    if blocks is None:
        return None
    figure, (axes,) = panels()
    raw = blocks.log_p - blocks.log_q
    s = len(raw)
    if raw.shape[1] > 1:
        k = psis(raw)[1].clamp(min=-1).numpy()
        axes.hist(k, bins=40, color=GUIDE)
        axes.axvline(good_khat(s), color=ink(), linestyle="--")
        axes.set(xlabel="k-hat of a datum", ylabel="data", title="Importance weights")
        return figure
    smooth, shape = psis(raw)
    m = tail_size(s)
    w = torch.softmax(raw[:, 0], 0).sort(descending=True)[0][:m]
    v = smooth[:, 0].exp().sort(descending=True)[0][:m]
    rank = np.arange(1, m + 1)
    axes.loglog(rank, w.numpy(), ".", color=GUIDE, label="weights")
    axes.loglog(rank, v.numpy(), color=TRUTH, label=f"Pareto tail, k-hat {float(shape):.2f}")
    axes.set(xlabel="rank", ylabel="share of all weight", title=f"The {m} heaviest of {s:,} draws")
    axes.legend(frameon=False)
    return figure


def _marginals(d: Any) -> Figure | None:
    """Guide and corrected posterior of the coordinates that differ most."""
    blocks = d.evidence.get("blocks")
    if blocks is None or blocks.u.shape[1] > 1:
        return None
    c = d.evidence["corrections"][d.evidence["best"]][1]
    mean, sd = (m[0] for m in c.moments())
    u = blocks.u[:, 0]
    score = ((u.mean(0) - mean) / sd).abs() + (u.std(0) / sd).log().abs()
    chosen = score.argsort(descending=True)[:6].tolist()
    figure, grid = panels(3, 2.6, len(chosen), 3)
    w = c.log_weight[:, 0].exp().numpy()
    label = "corrected" if d.corrected is not None else "weighted, not to be relied on"
    for axes, i in zip(grid, chosen):
        a, b = u[:, i].numpy(), c.u[:, 0, i].numpy()
        low, high = np.quantile(np.concatenate([a, b]), [0.0005, 0.9995]).tolist()
        edges = np.linspace(low, high, 60)
        axes.hist(a, edges, density=True, color=GUIDE, alpha=0.5, label="guide")
        axes.hist(b, edges, weights=w, density=True, histtype="step", color=TRUTH, label=label)
        axes.set(title=blocks.names[i], yticks=[])
    grid[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Marginals on the real line")
    return figure


def _pointwise(d: Any) -> Figure | None:
    pointwise = d.evidence.get("pointwise")
    if pointwise is None:
        return None
    figure, (left, right) = panels(4.5, 3.4, 2)
    k, elpd = pointwise.khat.values.ravel(), pointwise.elpd.values.ravel()
    draws = d.datatree.posterior.sizes["draw"] * d.datatree.posterior.sizes["chain"]
    left.plot(k, ".", color=GUIDE)
    left.axhline(good_khat(draws), color=ink(), linestyle="--")
    left.set(ylabel="k-hat", title="Weights per observation")
    right.plot(elpd, ".", color=GUIDE)
    right.set(ylabel="elpd, nats", title="Predictive density")
    (dim, *more) = pointwise.khat.dims
    for axes in (left, right):
        axes.set_xlabel(", ".join([str(dim), *map(str, more)]))
        if dim in pointwise.coords and not more and len(k) <= 30:
            axes.set_xticks(range(len(k)), [str(v) for v in pointwise[dim].values])
    return figure


def _loo_pit(d: Any) -> Figure | None:
    """ECDF of the values less the uniform one, with its simultaneous 99 % band."""
    pit = d.evidence.get("pit")
    if pit is None:
        return None
    figure, (axes,) = panels()
    at = np.linspace(0, 1, 201)[1:-1]
    ecdf = np.searchsorted(np.sort(pit), at, side="right") / len(pit)
    ecdf_less_uniform(axes, at, ecdf, len(pit), color=GUIDE, drawstyle="steps-post")
    axes.axhline(0, color=ink(), linewidth=0.5)
    axes.set(xlabel="LOO-PIT", ylabel="ECDF less uniform", title="Left-out data")
    axes.legend(frameon=False)
    return figure


def _predictive(d: Any) -> Figure | None:
    tree = d.corrected if d.corrected is not None else d.datatree
    if "posterior_predictive" not in tree.children:
        return None
    names = list(tree.observed_data.data_vars)
    figure, grid = panels(5, 3.4, len(names))
    for axes, name in zip(grid, names):
        seen = tree.observed_data[name].values.ravel().astype(float)
        drawn = tree.posterior_predictive[name].values
        drawn = drawn.reshape(-1, seen.size)[:: max(1, len(drawn[0]) // 50)].astype(float)
        height = (np.arange(seen.size) + 1) / seen.size
        for row in drawn[:50]:
            axes.step(np.sort(row), height, color=GUIDE, alpha=0.2, linewidth=0.8)
        axes.step(np.sort(seen), height, color=ink(), label="data")
        axes.set(title=f"{name}: data and 50 replications", ylabel="ECDF")
        axes.legend(frameon=False, loc="upper left")
    return figure


def _loss(d: Any) -> Figure | None:
    if "loss_trace" not in d.datatree.children:
        return None
    figure, (axes,) = panels()
    loss = d.datatree.loss_trace.loss
    for row in loss.values:
        axes.plot(loss.step.values, row, linewidth=0.8)
    tail = loss.values[:, loss.shape[1] // 10 :]
    low, high = np.nanquantile(tail, [0.001, 0.999])
    axes.set(xlabel="step", ylabel="loss, nats", title="Loss", ylim=(low, high + (high - low) / 10))
    return figure


def _gaps(d: Any) -> Figure | None:
    if d.gaps is None:
        return None
    g = d.gaps
    figure, (axes,) = panels()
    order = (g.log_px - g.amortised).argsort()
    a, b = (g.log_px - g.local)[order].numpy(), (g.local - g.amortised)[order].numpy()
    axes.bar(np.arange(len(a)), a, color=TRUTH, label="approximation gap")
    axes.bar(np.arange(len(b)), b, bottom=a, color=GUIDE, label="amortisation gap")
    axes.set(xlabel="datum", ylabel="log p(x) - ELBO, nats", title="What the guide loses")
    axes.legend(frameon=False)
    return figure


def _latents(d: Any) -> Figure | None:
    found = [f for f in d.findings if f.name == "latents"]
    if not found:
        return None
    numbers = found[0].numbers
    figure, grid = panels(5, 3.4, len(numbers))
    for axes, (name, n) in zip(grid, numbers.items()):
        axes.bar(np.arange(n["of"]), np.maximum(np.sort(n["variance"])[::-1], 1e-4), color=GUIDE)
        axes.axhline(0.01, color=ink(), linestyle="--")
        axes.set(title=f"{name}: {n['active']} of {n['of']} active", yscale="log")
        axes.set(xlabel="dimension", ylabel="variance of the mean over data")
    return figure


def _worst_data(d: Any) -> Figure | None:
    """The least likely data as images, above their mean reconstruction, where they are images."""
    places = d.evidence.get("worst")
    names = list(d.datatree.observed_data.data_vars)
    if not places or len(names) != 1:
        return None
    seen = d.datatree.observed_data[names[0]]
    shape = _image_shape(d.evidence["image_shape"], seen.values)
    if shape is None:
        return None
    rows = [("data", [seen.values[p] for p in places])]
    if "posterior_predictive" in d.datatree.children:
        mean = d.datatree.posterior_predictive[names[0]].mean(("chain", "draw")).values
        rows.append(("mean prediction", [mean[p] for p in places]))
    figure, grid = panels(1.2, 1.4, len(places) * len(rows), len(places))
    for axes, image in zip(grid, [image for _, images in rows for image in images]):
        axes.imshow(image.reshape(shape).transpose(1, 2, 0).squeeze(), "gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
    for axes, (title, _) in zip(grid[:: len(places)], rows):
        axes.set_ylabel(title)
    figure.suptitle("Least likely data")
    return figure


def _image_shape(given: Any, values: np.ndarray) -> tuple[int, ...] | None:
    """(channels, height, width): given, or one grey square where values in [0, 1] allow it."""
    if given is not None:
        return tuple(given)
    side = math.isqrt(values.shape[-1]) if values.ndim == 2 else 0
    grey = values.min() >= 0 and values.max() <= 1
    return (1, side, side) if side >= 7 and side * side == values.shape[-1] and grey else None
