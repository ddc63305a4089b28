"""Checks of the fit itself: restarts, loss, latents in use, sensitivity to the prior."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr

from ...draws.measures import ACTIVE, active_variance
from ...results.finding import Finding, listed

RHAT = 1.01  # Vehtari et al. 2021, arXiv:1903.08008
LARGE = 500  # scalars above which prior sensitivity is not asked for


def restarts(tree: xr.DataTree) -> Finding | None:
    """Check that restarts found one posterior: R-hat over chains, ELBO of each.

    Source: Vehtari et al. 2021, arXiv:1903.08008 (rank-normalised split R-hat; draws within a
    chain are independent here, so only the chains themselves can differ).
    """
    if tree.posterior.sizes["chain"] < 2:
        return None
    from arviz_stats import rhat as rank_rhat

    rhat = rank_rhat(tree.posterior.ds)
    by_name = {n: float(v.max()) for n, v in rhat.data_vars.items()}
    worst = max(by_name, key=lambda n: by_name[n])
    lw = tree.sample_stats.log_weight
    total = lw.sum([d for d in lw.dims if d not in ("chain", "draw")])
    elbo = total.mean("draw").values
    se = total.std("draw").values / math.sqrt(total.sizes["draw"])
    good = by_name[worst] <= RHAT
    differ = sorted((n for n, v in by_name.items() if v > RHAT), key=lambda n: -by_name[n])
    text = (
        f"{len(elbo)} restarts, ELBO {elbo.min():.2f} to {elbo.max():.2f} nats (± {se.max():.2f})"
    )
    text += f", largest R-hat {by_name[worst]:.3f} ({worst}; limit {RHAT})"
    text += "." if good else f". They differ in {listed(differ)}: several optima, or too few steps."
    return Finding.of(
        "restarts", text, good, True,
        {"rhat": by_name, "elbo": elbo.tolist(), "elbo_se": se.tolist()},
    )  # fmt: skip


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
    return Finding.of(
        "loss", text + ("." if good else ": it still falls, go on with fit(..., resume=run)."),
        good, False, {"drop": float(drop), "se": se},
    )  # fmt: skip


def collapse(tree: xr.DataTree, chain: int, kl: Mapping[str, float]) -> Finding | None:
    """Find dimensions and layers of amortised latents that say nothing about the data.

    A dimension is active when Var_x(E_q[z]) > 0.01; the variance that a finite number of draws adds
    to the means is taken off. A layer has collapsed when it has no active dimension, or when
    E_q[log q - log p] of it is below 0.01 nats per datum.

    Args:
        kl: site -> that divergence, nats per datum.

    Source: Burda et al. 2016, arXiv:1509.00519, section 5.2.
    """
    local = [d for d in tree.sample_stats.log_weight.dims if d not in ("chain", "draw")]
    if not local:
        return None
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
    if local or scalars > LARGE or not tree.log_likelihood.data_vars:
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
    conflict = [str(i) for i, d in table.diagnosis.items() if "conflict" in d]
    strong = [str(i) for i, d in table.diagnosis.items() if "strong prior" in d]
    prior = table["prior"].astype(float)
    if prior.isna().all():
        return Finding.of("prior sensitivity", "not computed: the prior hardly varies.")
    worst = prior.idxmax()
    text = f"power-scaling moves {worst} most (prior {float(prior[worst]):.2f}, limit 0.05)"
    if conflict:
        text += f". Prior and data pull apart: {listed(conflict)}"
    if strong:
        text += f". The prior rules: {listed(strong)}"
    numbers = {
        str(i): {"prior": float(r["prior"]), "likelihood": float(r["likelihood"])}
        for i, r in table.iterrows()
    }
    return Finding.of("prior sensitivity", text + ".", not conflict, False, numbers)
