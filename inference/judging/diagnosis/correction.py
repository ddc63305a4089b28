"""Importance correction: draws of the guide, moved and weighted until they are the posterior's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ...draws.arrays import Variable, gathered
from ...draws.datatree import datasets, side_by_side
from ...draws.psis import ess, psis
from ...pairs.gate import CheckedPair
from ...randomness import forked
from ...results.finding import Finding, listed
from .coordinates import Blocks
from .tail import SHARE, good_khat


@dataclass
class Correction:
    """Weighted draws, and how good they are.

    Attributes:
        source: the guide's own draws.
        u: (S, B, d), draws on the real line.
        raw: (S, B), their log weights, nats; the log of their mean estimates log p(x).
        log_weight: (S, B), smoothed and normalised.
        khat: (B,) of the weights; khat_before: of the guide's own draws.
        moved: (B,), whether half of the block's draws were moved by moment matching.
    """

    source: Blocks
    u: Tensor
    raw: Tensor
    log_weight: Tensor
    khat: Tensor
    khat_before: Tensor
    moved: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Weighted means and standard deviations of the coordinates, (B, d) each."""
        mean, cov = _moments(self.u, self.log_weight.exp())
        return mean, cov.diagonal(dim1=-2, dim2=-1).sqrt()


def correct(
    source: Blocks, fresh: Blocks, threshold: float, rounds: int = 20, twice: bool = True
) -> Correction:
    """Pareto-smoothed importance weights, after moment matching where k-hat is above the threshold.

    Such a block is moved by the affine map that gives its draws the weighted mean, or else also the
    weighted variances, or else the weighted covariance, again and again while its k-hat falls. The
    maps are found on `source` and used on `fresh`, so that the k-hat reported is not the one made
    small.
    Half of the fresh draws stay where they were, and all are weighted against the mixture of
    guide and moved guide: a map that leaves a part of the posterior cannot hide it.

    The k-hat of one posterior is one noisy number, and a posterior that is moved has failed once
    already. Such a one must pass twice, the second time with the draws' roles exchanged, and the
    larger k-hat is reported. (Over many blocks, good and bad luck even out.)

    Args:
        source, fresh: independent draws of the same guide.
        threshold: k-hat at which a block is left alone.
        rounds: at most so many maps for each block.
        twice: whether a single block that was moved must pass twice.

    Source: Paananen et al. 2021, "Implicitly adaptive importance sampling", arXiv:1906.00980,
    algorithm 1; the mixture is Owen & Zhou 2000, "Safe and effective importance sampling".
    """
    raw = fresh.log_p - fresh.log_q
    log_weight, before = psis(raw)
    matrix, shift = _matched(source, before > threshold, threshold, rounds)
    moved = (matrix != torch.eye(matrix.shape[-1]).to(matrix)).flatten(1).any(1)
    moved |= (shift != 0).any(1)
    if not moved.any():
        return Correction(fresh, fresh.u, raw, log_weight, before, before, moved)
    half = len(fresh.u) // 2
    stay, go = fresh.u[:half], fresh.u[half:]
    gone = _apply(matrix, go) + shift
    back = _apply(torch.linalg.inv(matrix), stay - shift)  # where a moved draw came from
    (p_gone, q_gone), (_, q_back) = fresh.densities(gone), fresh.densities(back)
    q = torch.cat([fresh.log_q[:half], q_gone])
    q_moved = torch.cat([q_back, fresh.log_q[half:]]) - torch.linalg.slogdet(matrix)[1]
    mixture = torch.logaddexp(q, q_moved) - math.log(2)
    raw_after = torch.cat([fresh.log_p[:half], p_gone]) - mixture
    log_weight_after, after = psis(raw_after)
    use = moved & (after < before)
    khat = torch.where(use, after, before)
    if twice and len(use) == 1 and use.all() and (khat <= threshold).all():
        again = correct(fresh, source, threshold, rounds, twice=False)
        khat = torch.maximum(khat, again.khat)
    return Correction(
        source=fresh,
        u=torch.where(use[:, None], torch.cat([stay, gone]), fresh.u),
        raw=torch.where(use, raw_after, raw),
        log_weight=torch.where(use, log_weight_after, log_weight),
        khat=khat, khat_before=before, moved=use,
    )  # fmt: skip


def _matched(source: Blocks, high: Tensor, threshold: float, rounds: int) -> tuple[Tensor, Tensor]:
    """The affine map of every block, matrix (B, d, d) and shift (B, d); the identity by default."""
    u, log_q = source.u, source.log_q
    log_weight, khat = psis(source.log_p - log_q)
    matrix = torch.eye(u.shape[-1]).to(u).repeat(u.shape[1], 1, 1)
    shift = torch.zeros_like(u[0])
    if not source.invertible:
        return matrix, shift
    high = high | (khat > threshold)
    for _ in range(rounds):
        accepted = torch.zeros_like(khat, dtype=torch.bool)
        for find in (_to_mean, _to_variances, _to_covariance):
            todo = high & ~accepted
            if not todo.any():
                break
            a, b = find(u, log_weight.exp())  # (B, d, d), (B, d)
            moved = _apply(a, u) + b
            moved_q = log_q - torch.linalg.slogdet(a)[1]
            new_weight, new_khat = psis(source.densities(moved)[0] - moved_q)
            better = todo & (new_khat < khat)
            matrix = torch.where(better[:, None, None], a @ matrix, matrix)
            shift = torch.where(better[:, None], (a @ shift[..., None])[..., 0] + b, shift)
            u = torch.where(better[:, None], moved, u)
            log_q = torch.where(better, moved_q, log_q)
            log_weight = torch.where(better, new_weight, log_weight)
            khat = torch.where(better, new_khat, khat)
            accepted |= better
        high = accepted
        if not high.any():
            break
    return matrix, shift


def _apply(matrix: Tensor, u: Tensor) -> Tensor:
    return torch.einsum("bij,sbj->sbi", matrix, u)


def _moments(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, d) and covariance (B, d, d) of (S, B, d) under normalised weights (S, B)."""
    mean = torch.einsum("sb,sbi->bi", weight, u)
    centred = u - mean
    return mean, torch.einsum("sb,sbi,sbj->bij", weight, centred, centred)


def _to_mean(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    matrix = torch.eye(u.shape[-1]).to(u).repeat(u.shape[1], 1, 1)
    return matrix, torch.einsum("sb,sbi->bi", weight, u) - u.mean(0)


def _to_variances(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    equal = torch.full_like(weight, 1 / len(u))
    (mean, cov), (target, target_cov) = _moments(u, equal), _moments(u, weight)
    ratio = (target_cov.diagonal(dim1=-2, dim2=-1) / cov.diagonal(dim1=-2, dim2=-1)).sqrt()
    return torch.diag_embed(ratio), target - ratio * mean


def _to_covariance(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    equal = torch.full_like(weight, 1 / len(u))
    (mean, cov), (target, target_cov) = _moments(u, equal), _moments(u, weight)
    low, bad = torch.linalg.cholesky_ex(cov)
    target_low, target_bad = torch.linalg.cholesky_ex(target_cov)
    matrix = torch.linalg.solve_triangular(low, target_low, upper=False, left=False)
    usable = (bad == 0) & (target_bad == 0)  # too few effective draws leave it singular
    matrix = torch.where(usable[:, None, None], matrix, torch.eye(u.shape[-1]).to(u))
    return matrix, target - torch.einsum("bij,bj->bi", matrix, mean)


def resampled(correction: Correction, draws: int) -> Tensor:
    """Equally weighted draws (draws, B, d) by systematic resampling, in random order."""
    s, b = correction.log_weight.shape
    edges = correction.log_weight.exp().cumsum(0)
    edges = (edges / edges[-1]).T.contiguous()  # (B, S)
    start = torch.rand(b, 1, dtype=edges.dtype, device=edges.device)
    at = (torch.arange(draws, dtype=edges.dtype, device=edges.device) + start) / draws
    index = torch.searchsorted(edges, at).clamp(max=s - 1)  # (B, draws)
    order = torch.rand(b, draws, device=edges.device).argsort(-1)
    index = index.gather(1, order).T[..., None]
    return correction.u.gather(0, index.expand(-1, -1, correction.u.shape[-1]))


def against(correction: Correction) -> Finding:
    """Measure how far the guide's means and spreads are from the corrected ones, on the real line.

    Shifts are in standard deviations of the corrected posterior; with one posterior per datum they
    are root mean squares over data (less what the draws' noise adds), ratios geometric means.
    """
    source = correction.source
    use = torch.isfinite(correction.khat) | (correction.khat == -math.inf)
    mean, sd = source.u.mean(0)[use], source.u.std(0)[use]  # (B, d)
    target, target_sd = (m[use] for m in correction.moments())
    size = ess(correction.log_weight)[use].clamp(min=2.0)  # (B,)
    noise = 1 / size + 1 / len(source.u)
    square = (((mean - target) / target_sd) ** 2 - noise[:, None]).mean(0)
    shift = square.clamp(min=0).sqrt().numpy()
    low = ((mean - target).mean(0) < 0).numpy()
    ratio = (sd / target_sd).log().mean(0).exp().numpy()
    spare = 3 / math.sqrt(float(size.sum()))  # the noise of three standard errors
    phrases = []
    for i in np.argsort(-np.maximum(shift, np.abs(np.log(ratio)))):
        parts = []
        if shift[i] > 0.1 + spare:
            way = f"sd too {'low' if low[i] else 'high'}" if len(mean) == 1 else "sd off"
            parts.append(f"mean {shift[i]:.2f} {way}")
        if ratio[i] < 1 / (1.1 + spare):
            parts.append(f"sd {100 * (1 - ratio[i]):.0f} % too small")
        elif ratio[i] > 1.1 + spare:
            parts.append(f"sd {100 * (ratio[i] - 1):.0f} % too large")
        if parts:
            phrases.append(f"{source.names[i]} ({', '.join(parts)})")
    text = (
        f"against the corrected posterior the guide is off in {listed(phrases)}."
        if phrases
        else "means are within 0.1 sd and sds within 10 % of the corrected posterior's."
    )
    numbers = {
        n: {"shift": float(a), "ratio": float(b)} for n, a, b in zip(source.names, shift, ratio)
    }
    return Finding.of("means and spreads", text, not phrases, True, numbers)


def achieved(
    found: Mapping[int, Correction], best: int, draws: int
) -> tuple[Finding, str | None, list[int]]:
    """Judge the corrections of all restarts: the finding, its name, the restarts that can be used.

    Args:
        found: restart -> its correction.
        best: the restart that the verdict is on.
        draws: of each restart.
    """
    limit = good_khat(draws)
    above = {i: float((~(c.khat <= limit)).double().mean()) for i, c in found.items()}
    usable = [i for i, share in above.items() if share <= SHARE]
    c = found[best]
    numbers = {
        "khat": c.khat.numpy(), "khat_before": c.khat_before.numpy(), "moved": int(c.moved.sum()),
        "ess": ess(c.log_weight).numpy(), "restarts": usable,
    }  # fmt: skip
    if len(c.khat) == 1:
        change = f"k-hat {float(c.khat_before):.2f} before and {float(c.khat):.2f} after"
    else:
        before = float((~(c.khat_before <= limit)).double().mean())
        change = f"{100 * before:.0f} % of the data above {limit:.2f} before, "
        change += f"{100 * above[best]:.0f} % after"
    if best not in usable:
        tried = "importance weights and moment matching leave"
        if not c.source.invertible:
            tried = "importance weights alone (this guide's draws cannot be moved) leave"
        text = f"none can be relied on: {tried} {change}."
        return Finding.of("correction", text, False, False, numbers), None, []
    how, text = "PSIS", "importance resampling is enough."
    if c.moved.any():
        how, text = "moment matching", f"moment matching helps: {change}."
    return Finding.of("correction", text, True, False, numbers), how, usable


def corrected_tree(
    sources: Sequence[CheckedPair],
    corrections: Mapping[int, Correction],
    draws: int,
    groups: Sequence[str],
    guide: xr.DataTree,
    seed: int,
    names: Mapping[str, Any],
) -> xr.DataTree:
    """Resampled draws of the usable restarts, and all that the model says about them.

    The groups are those of the guide's tree; `sample_stats` has log p, and khat and ess (draws) of
    the weights before resampling.
    """
    chains = []
    for i, c in corrections.items():
        with forked(seed):
            given = c.source.values(resampled(c, draws))
        chains.append({"pair": sources[i], "seed": [seed, 1, i], "given": given})
    mine = [g for g in groups if not g.startswith("prior")]
    whole = gathered(side_by_side(chains, draws, mine), draws)
    stats, plates = whole["sample_stats"], c.source.plates
    del stats["log_q"], stats["log_weight"]
    for name, of in (("khat", lambda c: c.khat), ("ess", lambda c: ess(c.log_weight))):
        rows = torch.stack([of(c).reshape(tuple(plates.values())) for c in corrections.values()])
        stats[name] = Variable(rows.numpy(), ("chain", *plates))
    trees = datasets(whole, **names)
    for group in ("prior", "prior_predictive", "observed_data", "constant_data"):
        if group in guide.children:
            trees[group] = guide[group].to_dataset()
    return xr.DataTree.from_dict(trees)
