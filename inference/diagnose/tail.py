"""Importance weights of a guide: how heavy their tail is, and which latent makes it so."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..psis import ess, psis
from .blocks import Blocks
from .finding import Finding, listed

BINS = 10  # quantile bins of the guide in which the heaviest draws are counted
SHARE = 0.1  # of the data of an amortised guide that may have a k-hat above the limit


def good_khat(draws: int) -> float:
    """The largest k-hat at which the weights of S draws can be used: min(1 - 1 / log10 S, 0.7).

    Source: Vehtari et al. 2024, arXiv:1507.02646, eq. 13.
    """
    return min(1 - 1 / math.log10(draws), 0.7)


def tail_divergence(u: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """How much each coordinate tells the heaviest draws from the others.

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
    m = max(5, min(int(3 * math.sqrt(s)), s // 5))
    rank = (u.argsort(0).argsort(0) + 0.5) / s  # (S, B, d), quantiles
    heavy = log_weight.topk(m, 0).indices  # (M, B)
    at = rank.gather(0, heavy[..., None].expand(-1, -1, u.shape[-1]))  # (M, B, d)
    count = torch.nn.functional.one_hot((at * BINS).long(), BINS).sum(0) / m  # (B, d, BINS)
    return torch.special.xlogy(count, count * BINS).sum(-1) - (BINS - 1) / (2 * m), at.median(0)[0]


def guilty(source: Blocks, log_weight: Tensor, most: int = 200) -> list[tuple[str, float, str]]:
    """The coordinates in which the heavy draws stand apart, the worst first.

    Args:
        source: the draws.
        log_weight: (S, B), only blocks whose k-hat is too high.
        most: blocks to look at.

    Returns:
        (name, divergence in nats, where the heavy draws are) of each coordinate whose divergence
        could not be chance at the 1 % level and is at least half of the worst one's.
    """
    bad = slice(0, most)
    kl, median = tail_divergence(source.u[:, bad], log_weight[:, bad])
    s, b, d = source.u[:, bad].shape
    m = max(5, min(int(3 * math.sqrt(s)), s // 5))
    # 2 M KL is chi-squared with BINS - 1 degrees of freedom (Wilks); the mean over B blocks
    limit = (stats.chi2.ppf(1 - 0.01 / d, (BINS - 1) * b) / b - (BINS - 1)) / (2 * m)
    mean, where = kl.mean(0), median.mean(0)  # (d,)
    worst = float(mean.max())
    return [
        (source.names[i], float(mean[i]), _where(float(where[i])))
        for i in mean.argsort(descending=True).tolist()
        if mean[i] > limit and mean[i] >= worst / 2
    ]


def _where(quantile: float) -> str:
    if quantile < 0.4:
        return f"small (median at the {100 * quantile:.0f} % quantile of the guide)"
    if quantile > 0.6:
        return f"large (median at the {100 * quantile:.0f} % quantile of the guide)"
    return "far out on both sides"


def importance(source: Blocks, name: str = "") -> Finding:
    """k-hat, effective draws, ELBO, evidence: of one posterior, or of every datum's.

    Source: Yao et al. 2018, "Yes, but did it work?", arXiv:1802.02538, section 3.
    """
    s, b = source.log_p.shape
    limit = good_khat(s)
    raw = source.log_p - source.log_q
    smooth, k = psis(raw)
    size = ess(smooth)
    elbo = raw.mean(0)
    evidence = torch.logsumexp(raw, 0) - math.log(s)
    numbers = {"limit": limit, "draws": s}
    if b == 1:
        se = float((raw - evidence).exp().std()) / math.sqrt(s)
        elbo_se = float(raw.std()) / math.sqrt(s)
        numbers |= {
            "khat": float(k), "ess": float(size), "elbo": float(elbo), "elbo_se": elbo_se,
            "log_evidence": float(evidence), "log_evidence_se": se,
        }  # fmt: skip
        good = bool(k <= limit)
        text = (
            f"k-hat {float(k):.2f} (limit {limit:.2f} at {s:,} draws), {float(size):,.0f} effective "
            f"draws; ELBO {float(elbo):.2f} ± {elbo_se:.2f}, log evidence {float(evidence):.2f} ± "
            f"{se:.2f}, so KL(q || p) is about {float(evidence - elbo):.2f} nats"
        )
        above = torch.tensor([0] if not good else [])
        blamed = [] if good else guilty(source, raw)
    else:
        above = (~(k <= limit)).nonzero()[:, 0]
        share = len(above) / b
        good = share <= SHARE
        numbers |= {
            "khat": k.numpy(), "khat_above": share, "ess": size.numpy(),
            "elbo": float(elbo.mean()), "log_evidence": float(evidence.mean()),
            "elbo_se": float(elbo.std()) / math.sqrt(b),
        }  # fmt: skip
        text = (
            f"k-hat is above {limit:.2f} for {len(above)} of {b} data ({100 * share:.0f} %), median "
            f"{float(k.median()):.2f}; median effective draws {float(size.median()):,.0f} of {s:,}; "
            f"ELBO {float(elbo.mean()):.2f}, log p(x) {float(evidence.mean()):.2f} nats per datum"
        )
        worst = k.argsort(descending=True)
        bad = worst[: len(above)]
        blamed = guilty(_some(source, bad), raw[:, bad]) if len(bad) else []
    if blamed:
        names = listed([n for n, _, _ in blamed])
        text += (
            f". The guide's tail is too light in {names}: the heaviest draws lie where "
            f"{blamed[0][0]} is {blamed[0][2]}"
        )
        numbers["guilty"] = {n: round(v, 3) for n, v, _ in blamed}
    return Finding(name or "importance weights", text + ".", good, True, numbers)


def _some(source: Blocks, which: Tensor) -> Blocks:
    out = Blocks(**vars(source))
    out.u, out.log_p, out.log_q = (
        t[:, which] for t in (source.u, source.log_p, source.log_q)
    )
    return out


def moved(names: list[str], guide: tuple, corrected: tuple, size: float) -> list[str]:
    """Coordinates whose mean or spread the correction changes by more than a tenth.

    Args:
        guide, corrected: (mean (d,), sd (d,)) each.
        size: effective draws of the correction.

    Returns:
        A phrase for each, the worst first.
    """
    (mean, sd), (target, target_sd) = guide, corrected
    shift, ratio = (mean - target) / target_sd, sd / target_sd
    noise = 3 / math.sqrt(size)
    out = []
    for i in np.argsort(-np.maximum(np.abs(shift), np.abs(np.log(ratio)))):
        parts = []
        if abs(shift[i]) > 0.1 + noise:
            parts.append(f"mean {abs(shift[i]):.2f} sd too {'high' if shift[i] > 0 else 'low'}")
        if abs(math.log(ratio[i])) > math.log(1.1) + noise:
            wrong = f"{100 * (1 - ratio[i]):.0f} % too small" if ratio[i] < 1 else (
                f"{100 * (ratio[i] - 1):.0f} % too large")  # fmt: skip
            parts.append(f"sd {wrong}")
        if parts:
            out.append(f"{names[i]} ({', '.join(parts)})")
    return out
