"""Importance weights of a guide: how heavy their tail is, and which latent makes it so."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from ...draws import measures
from ...draws.psis import ess, psis, tail_size
from ...results.finding import Finding, listed
from .coordinates import Blocks

BINS = 10  # quantile bins of the guide in which the heaviest draws are counted
SHARE = 0.1  # of the data of an amortised guide that may have a k-hat above the limit


def good_khat(draws: int) -> float:
    """The largest k-hat at which the weights of S draws can be used: min(1 - 1 / log10 S, 0.7).

    Source: Vehtari et al. 2024, arXiv:1507.02646, eq. 13.
    """
    return min(1 - 1 / math.log10(draws), 0.7)


def tail_divergence(u: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Measure how much each coordinate tells the heaviest draws from the others.

    The M = 3 √S draws with the largest weights, those that k-hat is made from, are counted in the
    guide's own decile bins of a coordinate: KL(their histogram || uniform), less its expectation
    (BINS - 1) / 2M where the coordinate plays no part. A guide whose tail is too light along one
    coordinate has all heavy draws at its end.

    Args:
        u: (S, B, d) draws; log_weight: (S, B).

    Returns:
        (B, d) nats; and (B, d), the median of the heavy draws as a quantile of the guide.
    """
    s = len(u)
    m = tail_size(s)
    rank = (u.argsort(0).argsort(0) + 0.5) / s  # (S, B, d), quantiles
    heavy = log_weight.topk(m, 0).indices  # (M, B)
    at = rank.gather(0, heavy[..., None].expand(-1, -1, u.shape[-1]))  # (M, B, d)
    count = torch.nn.functional.one_hot((at * BINS).long(), BINS).sum(0) / m  # (B, d, BINS)
    return torch.special.xlogy(count, count * BINS).sum(-1) - (BINS - 1) / (2 * m), at.median(0)[0]


def guilty(
    source: Blocks, log_weight: Tensor, bad: Tensor, most: int = 200
) -> list[tuple[str, float, str]]:
    """The coordinates in which the heavy draws stand apart, the worst first.

    Args:
        source: the draws.
        log_weight: (S, B).
        bad: the blocks whose k-hat is too high, the worst first.
        most: of these to look at.

    Returns:
        (name, divergence in nats, where the heavy draws are) of each coordinate whose divergence
        could not be chance at the 1 % level and is at least half of the worst one's.
    """
    u = source.u[:, bad[:most]]
    kl, median = tail_divergence(u, log_weight[:, bad[:most]])
    s, b, d = u.shape
    m = tail_size(s)
    # 2 M KL is chi-squared with BINS - 1 degrees of freedom (Wilks); the mean over B blocks
    limit = (stats.chi2.ppf(1 - 0.01 / d, (BINS - 1) * b) / b - (BINS - 1)) / (2 * m)
    mean, where = kl.mean(0), median.mean(0)  # (d,)
    worst = float(mean.max())
    return [
        (source.names[i], float(mean[i]), _place(float(where[i])))
        for i in mean.argsort(descending=True).tolist()
        if mean[i] > limit and mean[i] >= worst / 2
    ]


def _place(quantile: float) -> str:
    if 0.4 <= quantile <= 0.6:
        return "far out on both sides"
    size = "small" if quantile < 0.4 else "large"
    return f"{size} (median at the {100 * quantile:.0f} % quantile of the guide)"


def importance(raw: Tensor, source: Blocks | None, because: str = "") -> Finding:
    """k-hat, effective draws, ELBO, evidence: of one posterior, or of every datum's.

    Args:
        raw: (S, B) log weights.
        source: the draws that they are of; None where they have no coordinates to blame.
        because: why not.

    Source: Yao et al. 2018, "Yes, but did it work?", arXiv:1802.02538, section 3.
    """
    s, b = raw.shape
    limit = good_khat(s)
    smooth, k = psis(raw)
    size = ess(smooth)
    bad = k.argsort(descending=True)[: int((~(k <= limit)).sum())]  # the worst first
    elbo, evidence = measures.elbo(raw), measures.evidence(raw)
    numbers: dict[str, Any] = {
        "limit": limit, "draws": s, "elbo": elbo.value, "elbo_se": elbo.se,
        "log_evidence": evidence.value, "log_evidence_se": evidence.se,
    }  # fmt: skip
    if b == 1:
        # of the maximum-likelihood shape: (1 + k) / √M, Smith 1987, "Estimating tails"
        k_se = (1 + float(k)) / math.sqrt(tail_size(s))
        numbers |= {"khat": float(k), "ess": float(size)}
        good = bool(k <= limit)
        special = {math.inf: "infinite", -math.inf: "none: equal weights"}
        tail = special.get(float(k), f"{float(k):.2f} ± {k_se:.2f}")
        text = (
            f"k-hat {tail} (limit {limit:.2f}), {float(size):,.0f} effective of {s:,} draws; "
            f"ELBO {elbo.number(2)}, log evidence {evidence.number(2)}"
        )
        if (divergence := evidence - elbo).value is not None:
            text += f", KL(q || p) about {divergence.value:.2f} nats"
    else:
        share = len(bad) / b
        good = share <= SHARE
        numbers |= {"khat": k.numpy(), "khat_above": share, "ess": size.numpy()}
        text = (
            f"k-hat is above {limit:.2f} for {len(bad)} of {b} data ({100 * share:.0f} %), "
            f"median {float(k.median()):.2f}; {float(size.median()):,.0f} effective of {s:,} draws "
            f"(median); ELBO {elbo.number(2)}, log p(x) ≥ {evidence.number(2)} nats per datum"
        )
    if source is None:
        text += f"; no latent can be blamed and no correction made, because {because}"
    elif blamed := guilty(source, raw, bad) if len(bad) else []:
        text += (
            f". The guide's tail is too light in {listed([n for n, _, _ in blamed])}: the heaviest "
            f"draws lie where {blamed[0][0]} is {blamed[0][2]}"
        )
        numbers["guilty"] = {n: round(v, 3) for n, v, _ in blamed}
    return Finding.of("importance weights", text + ".", good, True, numbers)
