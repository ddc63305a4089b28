"""The figures of a calibration and of a diagnosis, and the panels that they stand in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..draws.measures import ACTIVE
from ..draws.psis import psis, tail_size
from .diagnosis.tail import good_khat
from .uniformity import band, places

GREY, GUIDE, TRUTH = "0.6", "C0", "C1"


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


def ecdf_of_ranks(calibration: Any, most: int) -> Figure:
    """ECDF of the ranks less the uniform one, the worst quantities first, with the 99 % band."""
    p, n = calibration.uniform(), len(calibration)
    names = sorted(p, key=lambda name: p[name])[:most]
    j = places(calibration.draws)
    figure, grid = panels(2.6, 2.3, len(names), 4, sharex=True, sharey=True)
    for axes, name in zip(grid, names):
        seen = (calibration.ranks[name][:, None] < j).mean(0)
        ecdf_less_uniform(axes, j / (calibration.draws + 1), seen, n, color="C0")
        axes.set_title(f"{name} (p = {p[name]:.2g})", fontsize=9)
    figure.supxlabel("rank of the truth / draws")
    figure.supylabel("ECDF less uniform")
    return figure


def coverage(calibration: Any, most: int) -> Figure:
    """Coverage of central intervals, and of TARP's joint regions, against the nominal level."""
    levels = np.linspace(0.01, 0.99, 99)
    worst = np.argsort(list(calibration.uniform().values()), kind="stable")[:most]
    away = np.abs(calibration.pit()[:, worst] - 0.5)  # (R, most)
    figure, (axes,) = panels(4.6, 4.4)
    axes.plot(levels, (away[:, None] < levels[:, None] / 2).mean(0), "C0", alpha=0.5)
    axes.plot([], [], "C0", label="central intervals")
    axes.plot(levels, calibration.expected_coverage(levels), "C1", label="joint regions (TARP)")
    axes.fill_between(levels, *band(len(calibration), levels, 0.99), color=GREY, alpha=0.4,
                      label="99 % band")  # fmt: skip
    axes.plot([0, 1], [0, 1], "k", linewidth=0.5)
    axes.set(xlabel="nominal level", ylabel="holds the truth", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


def first_of_diagnosis(d: Any) -> Figure | None:
    """The marginals of a joint posterior, or the k-hat of each datum; None without weights."""
    if (correction := d.evidence.get("correction")) is None:
        return None
    raw = correction.source.log_p - correction.source.log_q
    if raw.shape[1] > 1:
        return _khat_of_data(raw)
    return _marginals(correction, usable=d.corrected is not None)


def log_evidence(values: Tensor, label: str) -> Figure:
    """A histogram of log p(x) of each datum, and its mean."""
    figure, (axes,) = panels(4.6, 2.4)
    axes.hist(values.numpy(), 40, color=GUIDE, alpha=0.7)
    axes.axvline(float(values.mean()), color=ink(), linestyle="--", label="mean")
    axes.set(xlabel=f"{label} of a datum, nats", yticks=[])
    axes.legend(frameon=False)
    return figure


def of_diagnosis(d: Any) -> dict[str, Figure]:
    """Name -> figure, for each finding that has something to show."""
    tree, best_tree = d.datatree, d.datatree if d.corrected is None else d.corrected
    drawn: dict[str, Figure | None] = {}
    if (correction := d.evidence.get("correction")) is not None:
        raw = correction.source.log_p - correction.source.log_q
        if raw.shape[1] > 1:
            drawn["weights"] = _khat_of_data(raw)
        else:
            drawn["weights"] = _weights(raw)
            drawn["marginals"] = _marginals(correction, usable=d.corrected is not None)
    if (pointwise := d.evidence.get("pointwise")) is not None:
        drawn["data"] = _pointwise(pointwise, tree.posterior.sizes)
    if (pit := d.evidence.get("pit")) is not None:
        drawn["loo-pit"] = _loo_pit(pit)
    if "posterior_predictive" in best_tree.children:
        drawn["predictive"] = _predictive(best_tree)
    if "loss_trace" in tree.children:
        drawn["loss"] = _loss(tree.loss_trace.loss)
    if d.gaps is not None:
        drawn["gaps"] = _gaps(d.gaps)
    for finding in d.findings:
        if finding.name == "latents":
            drawn["latents"] = _latents(finding.numbers)
    if "worst" in d.evidence and len(tree.observed_data.data_vars) == 1:
        drawn["worst-data"] = _worst_data(tree, d.evidence["worst"], d.evidence["image_shape"])
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _khat_of_data(raw: torch.Tensor) -> Figure:
    figure, (axes,) = panels()
    axes.hist(psis(raw)[1].clamp(min=-1).numpy(), bins=40, color=GUIDE)
    axes.axvline(good_khat(len(raw)), color=ink(), linestyle="--")
    axes.set(xlabel="k-hat of a datum", ylabel="data", title="Importance weights")
    return figure


def _weights(raw: torch.Tensor) -> Figure:
    """The tail of the weights of a joint posterior, and the Pareto tail fitted to it."""
    smooth, k = psis(raw)
    m = tail_size(len(raw))
    w, v = (t[:, 0].exp().topk(m)[0].numpy() for t in (raw.log_softmax(0), smooth))
    figure, (axes,) = panels()
    rank, title = np.arange(1, m + 1), f"The {m} heaviest of {len(raw):,} draws"
    axes.loglog(rank, w, ".", color=GUIDE, label="weights")
    axes.loglog(rank, v, color=TRUTH, label=f"Pareto tail, k-hat {float(k):.2f}")
    axes.set(xlabel="rank", ylabel="share of all weight", title=title)
    axes.legend(frameon=False)
    return figure


def _marginals(c: Any, usable: bool) -> Figure:
    """Guide and corrected posterior of the coordinates that differ most."""
    mean, sd = (m[0] for m in c.moments())
    u = c.source.u[:, 0]
    score = ((u.mean(0) - mean) / sd).abs() + (u.std(0) / sd).log().abs()
    chosen = score.argsort(descending=True)[:6].tolist()
    figure, grid = panels(3, 2.6, len(chosen), 3)
    w = c.log_weight[:, 0].exp().numpy()
    label = "corrected" if usable else "weighted, not to be relied on"
    for axes, i in zip(grid, chosen):
        a, b = u[:, i].numpy(), c.u[:, 0, i].numpy()
        low, high = np.quantile(np.concatenate([a, b]), [0.0005, 0.9995])
        edges = np.linspace(low, high, 60).tolist()
        axes.hist(a, edges, density=True, color=GUIDE, alpha=0.5, label="guide")
        axes.hist(b, edges, weights=w, density=True, histtype="step", color=TRUTH, label=label)
        axes.set(title=c.source.names[i], yticks=[])
    grid[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Marginals on the real line")
    return figure


def _pointwise(pointwise: Any, sizes: Any) -> Figure:
    """k-hat and log predictive density of every observation."""
    figure, (left, right) = panels(4.5, 3.4, 2)
    khat, dims = pointwise.khat, pointwise.khat.dims
    left.plot(khat.values.ravel(), ".", color=GUIDE)
    left.axhline(good_khat(sizes["draw"] * sizes["chain"]), color=ink(), linestyle="--")
    left.set(ylabel="k-hat", title="Weights per observation")
    right.plot(pointwise.elpd.values.ravel(), ".", color=GUIDE)
    right.set(ylabel="elpd, nats", title="Predictive density")
    for axes in (left, right):
        axes.set_xlabel(", ".join(map(str, dims)))
        if len(dims) == 1 and dims[0] in pointwise.coords and khat.size <= 30:
            axes.set_xticks(range(khat.size), [str(v) for v in pointwise[dims[0]].values])
    return figure


def _loo_pit(pit: np.ndarray) -> Figure:
    """ECDF of the values less the uniform one, with its simultaneous 99 % band."""
    figure, (axes,) = panels()
    at = np.linspace(0, 1, 201)[1:-1]
    ecdf = (pit[:, None] <= at).mean(0)
    ecdf_less_uniform(axes, at, ecdf, len(pit), color=GUIDE, drawstyle="steps-post")
    axes.axhline(0, color=ink(), linewidth=0.5)
    axes.set(xlabel="LOO-PIT", ylabel="ECDF less uniform", title="Left-out data")
    axes.legend(frameon=False)
    return figure


def _predictive(tree: Any) -> Figure:
    """ECDF of each observed site, among those of fifty replications."""
    names = list(tree.observed_data.data_vars)
    figure, grid = panels(5, 3.4, len(names))
    for axes, name in zip(grid, names):
        seen = tree.observed_data[name].values.ravel().astype(float)
        drawn = tree.posterior_predictive[name].values
        drawn = drawn.reshape(-1, seen.size)[:: max(1, len(drawn[0]) // 50)].astype(float)
        for row in drawn[:50]:
            axes.ecdf(row, color=GUIDE, alpha=0.2, linewidth=0.8)
        axes.ecdf(seen, color=ink(), label="data")
        axes.set(title=f"{name}: data and 50 replications", ylabel="ECDF")
        axes.legend(frameon=False, loc="upper left")
    return figure


def _loss(loss: Any) -> Figure:
    """The loss of every restart, without its first and largest values."""
    figure, (axes,) = panels()
    axes.plot(loss.step, loss.T, linewidth=0.8)
    low, high = np.nanquantile(loss.values[:, loss.shape[1] // 10 :], [0.001, 0.999])
    axes.set(xlabel="step", ylabel="loss, nats", title="Loss", ylim=(low, high + (high - low) / 10))
    return figure


def _gaps(g: Any) -> Figure:
    """Both gaps of every datum, stacked, the largest sum last."""
    figure, (axes,) = panels()
    order = (g.log_px - g.amortised).argsort()
    a, b = (g.log_px - g.local)[order].numpy(), (g.local - g.amortised)[order].numpy()
    axes.bar(np.arange(len(a)), a, color=TRUTH, label="approximation gap")
    axes.bar(np.arange(len(b)), b, bottom=a, color=GUIDE, label="amortisation gap")
    axes.set(xlabel="datum", ylabel="log p(x) - ELBO, nats", title="What the guide loses")
    axes.legend(frameon=False)
    return figure


def _latents(numbers: Any) -> Figure:
    """The variance over data of each dimension's mean, and the limit of those in use."""
    figure, grid = panels(5, 3.4, len(numbers))
    for axes, (name, n) in zip(grid, numbers.items()):
        axes.bar(np.arange(n["of"]), np.maximum(np.sort(n["variance"])[::-1], 1e-4), color=GUIDE)
        axes.axhline(ACTIVE, color=ink(), linestyle="--")
        axes.set(title=f"{name}: {n['active']} of {n['of']} active", yscale="log",
                 xlabel="dimension", ylabel="variance of the mean over data")  # fmt: skip
    return figure


def _worst_data(tree: Any, at: Sequence[tuple], image_shape: Any) -> Figure | None:
    """The least likely data as images, above their mean prediction, where they are images."""
    ((name, seen),) = tree.observed_data.data_vars.items()
    shape = _image_shape(image_shape, seen.values)
    if shape is None:
        return None
    rows = {"data": seen.values}
    if "posterior_predictive" in tree.children:
        rows["mean prediction"] = tree.posterior_predictive[name].mean(("chain", "draw")).values
    figure, grid = panels(1.2, 1.4, len(at) * len(rows), len(at))
    for axes, image in zip(grid, [values[p] for values in rows.values() for p in at]):
        axes.imshow(image.reshape(shape).transpose(1, 2, 0).squeeze(), "gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[:: len(at)], rows):
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
