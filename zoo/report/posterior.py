"""The page of a posterior of latents that belong to all data: marginals, pairs, numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from inference.results.table import Table
from inference.training.folders import write_whole

from .draw import Picture, histograms, new_figure
from .numbers import Metric
from .theme import ACCENT, WIDTH, Theme

if TYPE_CHECKING:
    from inference.judging.diagnosis import Diagnosis

PANELS, PAIRED, LINES = 12, 5, 60  # most marginals, latents in pairs, lines of the table


def labelled(tree: Any, labels: Mapping[str, Sequence[str]]) -> Any:
    """Return a DataTree whose axes have the names of columns and categories as coordinates.

    An axis is named after the one set of labels of its size whose name it begins with, or after
    the only one of its size.

    Args:
        tree: as `inference.to_datatree` returns.
        labels: argument of the model -> names of its columns, or of its categories.
    """
    tree = tree.copy()
    for node in tree.subtree:
        found = {}
        for dim, size in node.sizes.items():
            fitting = [k for k, v in labels.items() if len(v) == size]
            own = [k for k in fitting if str(dim).startswith(k)] or fitting
            if dim not in ("chain", "draw", "data") and len(own) == 1:
                found[dim] = list(labels[own[0]])
        if found:
            node.dataset = node.to_dataset(inherit=False).assign_coords(found)
    return tree


def scalars(tree: Any) -> dict[str, np.ndarray]:
    """Every scalar of the posterior by its name, such as `beta[age]`: (draws,)."""
    out: dict[str, np.ndarray] = {}
    for name, values in tree.posterior.data_vars.items():
        flat = values.stack(sample=("chain", "draw")).transpose(..., "sample")
        dims = [d for d in flat.dims if d != "sample"]
        for at in np.ndindex(*(flat.sizes[d] for d in dims)):
            where = [str(flat[d].values[i]) if d in flat.coords else str(i)
                     for d, i in zip(dims, at)]  # fmt: skip
            out[f"{name}[{', '.join(where)}]" if at else str(name)] = flat.values[at]
    return out


def summary(tree: Any) -> Table:
    """Mean, standard deviation and quantiles of every scalar."""
    rows = []
    every = scalars(tree)
    for name, x in list(every.items())[:LINES]:
        sd = float(x.std())
        digits = 0 if sd == 0 else max(0, min(8, 2 - int(np.floor(np.log10(sd)))))
        numbers = (x.mean(), sd, *np.quantile(x, [0.05, 0.5, 0.95]))
        rows.append([name, *(f"{v:,.{digits}f}".replace("-", "−") for v in numbers)])
    if len(every) > LINES:
        rows.append([f"and {len(every) - LINES} more, in posterior.nc", *[""] * 5])
    return Table(["latent", "mean", "sd", "5 %", "median", "95 %"], rows)


def pictures(tree: Any) -> list[Picture]:
    """The marginals, and the most dependent latents in pairs."""
    every = scalars(tree)
    found = {n: x for n, x in every.items() if x.std() > 0}
    if not found:
        return []
    first = dict(list(found.items())[:PANELS])
    text = "Draws from the posterior" + (
        f": the first {PANELS} of {len(found)} latents." if len(found) > PANELS else "."
    )
    drawn = histograms({n: {"posterior": x} for n, x in first.items()})
    made = [Picture("posterior", "Posterior", text, drawn, wide=True)]
    if len(found) > 1:
        chosen = _dependent(found)
        text = "Draws in pairs" + (
            f": the {PAIRED} latents that depend on each other most."
            if len(found) > PAIRED
            else "; each diagonal has the marginal."
        )
        made.append(Picture("pairs", "Pairs", text, _pairs(chosen), wide=True))
    return made


def _dependent(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The latents with the largest rank correlations, in their order."""
    names = list(found)[:200]
    ranks = np.stack([found[n].argsort().argsort() for n in names]).astype(float)
    strength = np.abs(np.corrcoef(ranks)) - np.eye(len(names))
    best = sorted(np.argsort(-strength.max(1), kind="stable")[:PAIRED])
    return {names[i]: found[names[i]] for i in best}


def _pairs(found: Mapping[str, np.ndarray], most: int = 800) -> Any:
    def draw(theme: Theme) -> Figure:
        n = len(found)
        figure = new_figure(WIDTH, min(WIDTH, 2.0 * n))
        grid = figure.subplots(n, n, squeeze=False, sharex="col")
        for i, (below, y) in enumerate(found.items()):
            for j, (left, x) in enumerate(found.items()):
                axes = grid[i, j]
                if j > i:
                    axes.set_axis_off()
                elif i == j:
                    axes.hist(x, 40, density=True, color=ACCENT, alpha=0.6)
                    axes.set_yticks([])
                else:
                    axes.scatter(x[:most], y[:most], s=3, lw=0, alpha=0.5, color=ACCENT)
                if i == n - 1:
                    axes.set_xlabel(left)
                if j == 0 and i > 0:
                    axes.set_ylabel(below)
                axes.tick_params(labelsize=8)
        return figure

    return draw


def numbers(diagnosis: Diagnosis | None, evidence: Any = None) -> list[Metric]:
    """The evidence, the ELBO and the k-hat of a posterior."""
    out: list[Metric] = []
    if evidence is not None:
        note = "" if evidence else f"none, because {evidence.because}"
        out.append(Metric("log_px", "log p(x)", evidence.value, "nats", evidence.se,
                          note or "the evidence, from importance weights"))  # fmt: skip
    found = {} if diagnosis is None else dict(diagnosis["importance weights"].numbers)
    if found.get("elbo") is not None:
        note = "a lower bound on log p(x)"
        out.append(Metric("elbo", "ELBO", found["elbo"], "nats", found.get("elbo_se"), note))
    if isinstance(found.get("khat"), float):
        note = "above 0.7 the guide's tails are too light to be corrected"
        out.append(Metric("khat", "Pareto k-hat", round(found["khat"], 3), "", None, note))
    return out


def store_tree(tree: Any, folder: Path) -> None:
    """Write `posterior.nc`, whole."""
    with tempfile.TemporaryDirectory() as elsewhere:
        path = Path(elsewhere) / "posterior.nc"
        tree.to_netcdf(path, engine="h5netcdf")
        write_whole(folder / "posterior.nc", path.read_bytes())
