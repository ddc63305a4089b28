"""Checks of a fit and of its model: each looks at draws, and returns a finding or none."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from ...draws.measures import ACTIVE, active_variance, log_evidence
from ...draws.psis import psis
from ...results.finding import Finding, listed
from .gap import Gaps
from .tail import good_khat

RHAT = 1.01  # Vehtari et al. 2021, arXiv:1903.08008
LARGE = 500  # scalars above which prior sensitivity is not asked for
SURPRISE = 0.01  # two-sided tail probability of a test statistic that is worth a word
ALPHA = 0.01  # level of the LOO-PIT's test of uniformity


def restarts(tree: xr.DataTree) -> Finding | None:
    """Check that restarts found one posterior: R-hat over chains, ELBO of each.

    Source: Vehtari et al. 2021, arXiv:1903.08008 (rank-normalised split R-hat; draws within a
    chain are independent here, so only the chains themselves can differ).
    """
    if tree.posterior.sizes["chain"] < 2:
        return None
    from arviz_stats import rhat as rank_rhat

    rhat = {n: float(v.max()) for n, v in rank_rhat(tree.posterior.ds).data_vars.items()}
    order = sorted(rhat, key=lambda n: -rhat[n])
    lw = tree.sample_stats.log_weight
    total = lw.sum([d for d in lw.dims if d not in ("chain", "draw")])
    elbo = total.mean("draw").values
    se = total.std("draw").values / math.sqrt(total.sizes["draw"])
    differ = [n for n in order if not rhat[n] <= RHAT]
    text = (
        f"{len(elbo)} restarts, ELBO {elbo.min():.2f} to {elbo.max():.2f} nats (± {se.max():.2f})"
        f", largest R-hat {rhat[order[0]]:.3f} ({order[0]}; limit {RHAT})."
    )
    if differ:
        text += f" They differ in {listed(differ)}: several optima, or too few steps."
    numbers = {"rhat": rhat, "elbo": elbo.tolist(), "elbo_se": se.tolist()}
    return Finding.of("restarts", text, not differ, True, numbers)


def convergence(losses: Sequence[float], unit: str) -> Finding | None:
    """Check that the loss no longer falls: the last tenth of the steps against the tenth before."""
    n = len(losses) // 10
    if n < 5:  # many fits keep about fifty means
        return None
    before, after = np.array(losses[-2 * n : -n]), np.array(losses[-n:])
    drop = before.mean() - after.mean()
    se = math.hypot(before.std(ddof=1), after.std(ddof=1)) / math.sqrt(n)
    good = bool(drop < 3 * se)
    text = f"the loss fell by {drop:.3g} ± {se:.2g} {unit} over the last tenth of the steps"
    text += "." if good else ": it still falls, go on with fit(..., resume=run)."
    return Finding.of("loss", text, good, False, {"drop": float(drop), "se": se})


def settled(run: Any) -> Finding | None:
    """Take the run's own word on whether it had converged; one that still moves decides."""
    if not hasattr(run, "converged"):
        return None
    said = run.converged
    good = False if said.moving else True if said.good else None  # unsettled averages do no harm
    return Finding.of("convergence", said.text, good, said.moving, said.numbers)


def amortisation(gaps: Gaps) -> Finding:
    """Say whether the guide's network, or its family, costs nats."""
    a, b = gaps.amortization, gaps.approximation
    if a.value is None or b.value is None:
        return Finding.of("amortisation gap", f"{gaps}.")
    small = a.value < max(3 * (a.se or 0.0), 0.1)
    advice = "" if small else ": a wider encoder or more training would help"
    if b.value > max(3 * (b.se or 0.0), 0.1, a.value):
        advice += "; the family costs more than the network: try a richer guide"
    return Finding.of("amortisation gap", f"{gaps}{advice}.", small, False, gaps.to_dict())


def collapse(tree: xr.DataTree, chain: int, kl: Mapping[str, float]) -> Finding | None:
    """Find dimensions and layers of amortised latents that say nothing about the data.

    A dimension is active when Var_x(E_q[z]) > 0.01; the variance that a finite number of draws adds
    to the means is taken off. A layer has collapsed when it has no active dimension, or when
    E_q[log q - log p] of it is below 0.01 nats per datum.

    Args:
        kl: site -> that divergence, nats per datum.

    Source: Burda et al. 2016, arXiv:1509.00519, section 5.2.
    """
    local = tree.sample_stats.log_weight.dims[2:]
    phrases, numbers, dead = [], {}, []
    for name, z in tree.posterior.data_vars.items():
        if not set(local) <= set(z.dims) or z.dtype.kind != "f":
            continue
        draws = z.isel(chain=chain).transpose("draw", *local, ...)
        flat = torch.as_tensor(draws.values).double().flatten(1, len(local))  # (K, B, ...)
        flat = flat.reshape(*flat.shape[:2], -1)
        if flat.shape[1] < 2:
            continue
        spread = active_variance(flat.mean(0), flat.var(0), len(flat)).numpy()
        active = int((spread > ACTIVE).sum())
        rate = kl.get(str(name))  # latents that are drawn jointly have none of their own
        own = "" if rate is None else f" (KL {rate:.2f} nats per datum)"
        phrases.append(f"{name} {active} of {spread.size}{own}")
        numbers[str(name)] = {"active": active, "of": spread.size, "kl": rate, "variance": spread}
        if active == 0 or (rate is not None and rate < ACTIVE):
            dead.append(str(name))
    if not phrases:
        return None
    text = f"active dimensions: {', '.join(phrases)}"
    all_active = all(v["active"] == v["of"] for v in numbers.values())
    if dead:
        text += f". Collapsed: {listed(dead)}; try warm-up or free bits (elbo.Beta)"
    return Finding.of("latents", text + ".", all_active, False, numbers)


def sensitivity(tree: xr.DataTree) -> Finding | None:
    """Measure how much the posterior moves when prior or likelihood is raised to a power.

    Only the priors outside all plates are scaled where there are any: those of a hierarchy's top.

    Source: Kallioinen et al. 2024, arXiv:2107.14054, by `arviz_stats.psense_summary`.
    """
    scalars = sum(math.prod(v.shape[2:]) for v in tree.posterior.data_vars.values())
    stats = tree.sample_stats.ds
    weights = stats["log_weight" if "log_weight" in stats else "khat"]  # corrected draws have none
    local = bool(set(weights.dims) - {"chain", "draw"})
    if local or scalars > LARGE or "log_likelihood" not in tree.children:
        return None
    from arviz_stats import psense_summary

    top = [str(n) for n, v in tree.log_prior.data_vars.items() if v.ndim == 2]
    logger = logging.getLogger("arviz_stats.psense")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # what it logs is in the finding
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tails too short to fit
            table = psense_summary(tree, prior_var_names=top or None)
    except ValueError as why:
        return Finding.of("prior sensitivity", f"not computed: {why}.")
    finally:
        logger.setLevel(level)
    conflict, strong = (
        [str(i) for i, d in table.diagnosis.items() if kind in d]
        for kind in ("conflict", "strong prior")
    )
    prior = table["prior"].astype(float)
    if prior.isna().all():
        return Finding.of("prior sensitivity", "not computed: the prior hardly varies.")
    worst = prior.idxmax()
    text = f"power-scaling moves {worst} most (prior {float(prior[worst]):.2f}, limit 0.05)"
    if conflict:
        text += f". Prior and data pull apart: {listed(conflict)}"
    if strong:
        text += f". The prior rules: {listed(strong)}"
    numbers = table[["prior", "likelihood"]].astype(float).to_dict("index")
    return Finding.of("prior sensitivity", text + ".", not conflict, False, numbers)


def leave_one_out(tree: xr.DataTree) -> tuple[Finding | None, xr.Dataset | None]:
    """Expected log predictive density of left-out data, and the k-hat of each.

    By `arviz_stats.loo_approximate_posterior`, for joint weights. Where every datum has latents of
    its own the others say nothing about it, and its left-out density is its evidence: see
    `evidence`.

    Returns:
        The finding, and a data set of `elpd` (nats) and `khat` per observation; None for what
        cannot be.

    Source: Magnusson et al. 2019, arXiv:1904.10679, eq. 9.
    """
    if "log_likelihood" not in tree.children:  # all data are in factors
        return None, None
    likelihood = tree.log_likelihood.ds
    if len(likelihood.data_vars) != 1 or tree.sample_stats.log_weight.ndim > 2:
        return None, None
    (name,) = likelihood.data_vars
    if likelihood[name].ndim < 3:
        return None, None
    from arviz_stats import loo_approximate_posterior

    s = tree.sample_stats
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", UserWarning)  # what it warns of is in the finding
            loo = loo_approximate_posterior(tree, s.log_p, s.log_q, pointwise=True, var_name=name)
    except ValueError as refusal:  # too few different draws for a tail
        return Finding.of("leave-one-out", f"not computed: {refusal}."), None
    why = "" if loo.n_data_points > 1 else "one observation left out leaves none to compare it with"
    if not (math.isfinite(loo.elpd) and math.isfinite(loo.se)):
        why = why or "the densities of some observations are infinite or undefined"
    if why:
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
    numbers = {"elpd": float(loo.elpd), "se": float(loo.se), "p": float(loo.p)}
    numbers["khat_above"] = above
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


def loo_pit(tree: xr.DataTree, seed: int) -> tuple[Finding | None, np.ndarray | None]:
    """Check that left-out data fall uniformly into their predictive distributions.

    The weights of the draws are the leave-one-out ones of the guide, smoothed; ties of discrete
    data are broken at random.

    Source: Gelfand et al. 1992; Vehtari et al. 2017, arXiv:1507.04544; Säilynoja et al. 2022,
    arXiv:2103.10522 (the band in the figure).
    """
    if not {"posterior_predictive", "log_likelihood"} <= set(tree.children):
        return None, None
    if len(tree.log_likelihood.data_vars) != 1:
        return None, None
    if tree.sample_stats.log_weight.ndim > 2:
        return None, None  # other data say nothing about a datum with latents of its own
    ((name, ll),) = tree.log_likelihood.data_vars.items()
    data = ll.dims[2:]
    if name not in tree.observed_data.data_vars:
        return None, None
    drawn = tree.posterior_predictive[name]
    if set(ll.dims) != set(drawn.dims):
        return None, None  # many numbers per observation, such as the pixels of an image
    raw = (tree.sample_stats.log_weight - ll).transpose(*ll.dims)
    smooth, _ = psis(torch.as_tensor(raw.values).flatten(0, 1))
    weight, y = raw.copy(data=smooth.exp().reshape(raw.shape).numpy()), tree.observed_data[name]
    below, same = (
        (weight * of).sum(("chain", "draw")).transpose(*data).values.ravel()
        for of in (drawn < y, drawn == y)
    )
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(len(below), generator=generator, dtype=torch.float64).numpy()
    pit = (below + u * same).clip(0, 1)
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
    lowest = elpd.values.ravel()[order]
    named = [f"{n} ({v:.1f})" for n, v in zip(_labels(elpd, order), lowest)]
    text = f"least likely, nats (median {float(elpd.median()):.1f}): {', '.join(named)}."
    numbers = {"places": places, "elpd": lowest}
    return Finding.of("worst data", text, None, False, numbers), places


def _labels(array: xr.DataArray, order: np.ndarray) -> list[str]:
    """`school C`, `data 17`, … of flat places in an array."""
    places = [zip(array.dims, np.unravel_index(int(o), array.shape)) for o in order]
    return [
        ", ".join(f"{d} {array[d].values[i] if d in array.coords else i}" for d, i in place)
        for place in places
    ]
