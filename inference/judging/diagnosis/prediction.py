"""Predictions of the fit: left-out data, replicated data, the data that it finds least likely."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from ...draws.measures import log_evidence
from ...draws.psis import psis
from ...results.finding import Finding, listed
from .tail import good_khat

SURPRISE = 0.01  # two-sided tail probability of a test statistic that is worth a word
ALPHA = 0.01  # level of the LOO-PIT's test of uniformity


def leave_one_out(tree: xr.DataTree) -> tuple[Finding, xr.Dataset | None] | None:
    """Expected log predictive density of left-out data, and the k-hat of each.

    By `arviz_stats.loo_approximate_posterior`, for joint weights. Where every datum has latents of
    its own the others say nothing about it, and its left-out density is its evidence: see
    `evidence`.

    Returns:
        The finding, and a data set of `elpd` (nats) and `khat` per observation.

    Source: Magnusson et al. 2019, arXiv:1904.10679, eq. 9.
    """
    likelihood = tree.log_likelihood.ds
    if len(likelihood.data_vars) != 1 or tree.sample_stats.log_weight.ndim > 2:
        return None
    (name,) = likelihood.data_vars
    if likelihood[name].ndim < 3:
        return None
    from arviz_stats import loo_approximate_posterior

    s = tree.sample_stats
    try:
        with warnings.catch_warnings():  # what it warns of is in the finding
            warnings.simplefilter("ignore", UserWarning)
            loo = loo_approximate_posterior(tree, s.log_p, s.log_q, pointwise=True, var_name=name)
    except ValueError as why:  # too few different draws for a tail
        return Finding.of("leave-one-out", f"not computed: {why}."), None
    few = loo.n_data_points < 2
    if few or not (math.isfinite(loo.elpd) and math.isfinite(loo.se)):
        why = "the densities of some observations are infinite or undefined"
        why = "one observation left out leaves none to compare it with" if few else why
        return Finding.of("leave-one-out", f"no estimate, because {why}."), None
    pointwise = xr.Dataset({"elpd": loo.elpd_i, "khat": loo.pareto_k})
    k, limit = loo.pareto_k.values.ravel(), good_khat(loo.n_samples)
    above = int((~(k <= limit)).sum())
    text = (
        f"elpd_loo {loo.elpd:.2f} ± {loo.se:.2f} nats over {len(k)} observations, {loo.p:.2f} "
        f"effective parameters; k-hat above {limit:.2f} for {above}"
    )
    if above:
        text += f" ({listed(_labels(loo.pareto_k, np.argsort(-k)[:above]))}): refit without those"
    numbers = {
        "elpd": float(loo.elpd), "se": float(loo.se), "p": float(loo.p), "khat_above": above
    }  # fmt: skip
    return Finding.of("leave-one-out", text + ".", above == 0, False, numbers), pointwise


def log_weights(tree: xr.DataTree, chain: int) -> Tensor:
    """Log weights of a chain's draws, (S, B): of every element of the shared plates, or joint."""
    raw = torch.as_tensor(tree.sample_stats.log_weight.values[chain]).double()
    return raw.reshape(len(raw), -1)


def evidence(tree: xr.DataTree, chain: int) -> xr.Dataset:
    """log p(x) (nats, as `elpd`) and k-hat of every element of the shared plates."""
    khat = tree.sample_stats.khat.isel(chain=chain, drop=True)
    elpd = log_evidence(log_weights(tree, chain)).reshape(khat.shape)
    return xr.Dataset({"elpd": khat.copy(data=elpd.numpy()), "khat": khat})


def predictive(tree: xr.DataTree) -> Finding | None:
    """Check that replicated data look like the data: mean, spread and extremes of each site."""
    if "posterior_predictive" not in tree.children:
        return None
    numbers: dict[str, Any] = {}
    odd = []
    for name, seen in tree.observed_data.data_vars.items():
        drawn = tree.posterior_predictive[name]
        axes = tuple(range(2, drawn.ndim))
        values, y = drawn.values.astype(float), seen.values.astype(float)
        for what, f in (("mean", np.mean), ("sd", np.std), ("min", np.min), ("max", np.max)):
            replicated, observed = f(values, axis=axes), f(y)
            p = float(((replicated > observed) + 0.5 * (replicated == observed)).mean())
            numbers[f"{what}({name})"] = p
            if min(p, 1 - p) < SURPRISE / 2:
                odd.append(f"{what}({name}) (p = {p:.3f})")
    shown = ", ".join(f"{n} {p:.2f}" for n, p in numbers.items())
    text = f"P(T(replicated) > T(data)) of T = {shown}"
    if odd:
        text += f". The model does not reproduce {listed(odd)}"
    return Finding.of("posterior predictive", text + ".", not odd, False, numbers)


def loo_pit(tree: xr.DataTree, seed: int = 0) -> tuple[Finding, np.ndarray] | None:
    """Check that left-out data fall uniformly into their predictive distributions.

    The weights of the draws are the leave-one-out ones of the guide, smoothed; ties of discrete
    data are broken at random.

    Source: Gelfand et al. 1992; Vehtari et al. 2017, arXiv:1507.04544; Säilynoja et al. 2022,
    arXiv:2103.10522 (the band in the figure).
    """
    if "posterior_predictive" not in tree.children or len(tree.log_likelihood.data_vars) != 1:
        return None
    if tree.sample_stats.log_weight.ndim > 2:
        return None  # other data say nothing about a datum with latents of its own
    (name,) = tree.log_likelihood.data_vars
    if name not in tree.observed_data.data_vars:
        return None
    ll = tree.log_likelihood[name]
    data = [d for d in ll.dims if d not in ("chain", "draw")]
    drawn = tree.posterior_predictive[name]
    if set(data) != set(drawn.dims) - {"chain", "draw"}:
        return None  # many numbers per observation, such as the pixels of an image
    lw = tree.sample_stats.log_weight.broadcast_like(ll).transpose(*ll.dims)
    weights, _ = psis(_flat(lw) - _flat(ll))
    y = torch.as_tensor(tree.observed_data[name].transpose(*data).values).double().reshape(-1)
    replicated = _flat(drawn.transpose(*ll.dims))
    w = weights.exp()
    below, same = ((c(replicated, y) * w).sum(0) for c in (torch.lt, torch.eq))
    u = torch.rand(len(y), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pit = (below + u * same).clamp(0, 1).numpy()
    test = stats.kstest(pit, "uniform")
    good = bool(test.pvalue > ALPHA)
    text = f"{len(pit)} LOO-PIT values against the uniform law: p = {test.pvalue:.3f}"
    text += "." if good else ": the predictive distributions have the wrong place or width."
    return Finding.of("LOO-PIT", text, good, False, {"p": float(test.pvalue)}), pit


def worst_data(pointwise: xr.Dataset, most: int = 8) -> tuple[Finding, list[tuple]]:
    """The observations that the model finds least likely, and their places in the data."""
    elpd = pointwise.elpd
    order = np.argsort(elpd.values.ravel())[:most]
    places = [tuple(int(i) for i in np.unravel_index(o, elpd.shape)) for o in order]
    typical = float(elpd.median())
    named = [f"{n} ({elpd.values.ravel()[o]:.1f})" for n, o in zip(_labels(elpd, order), order)]
    text = f"least likely, nats (median {typical:.1f}): {', '.join(named)}."
    numbers = {"places": places, "elpd": elpd.values.ravel()[order]}
    return Finding.of("worst data", text, None, False, numbers), places


def _flat(array: xr.DataArray) -> Tensor:
    """(chain, draw, ...) -> (draws, everything else), float64."""
    values = torch.as_tensor(np.ascontiguousarray(array.values)).double()
    return values.reshape(values.shape[0] * values.shape[1], -1)


def _labels(array: xr.DataArray, order: np.ndarray) -> list[str]:
    """`school C`, `data 17`, … of flat places in an array."""
    out = []
    for o in order:
        index = np.unravel_index(int(o), array.shape)
        names = [
            f"{d} {array[d].values[i] if d in array.coords else i}"
            for d, i in zip(array.dims, index)
        ]
        out.append(", ".join(names))
    return out
