"""Importance correction: draws of the guide, moved and weighted until they are the posterior's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...draws.measures import evidence_error, log_evidence
from ...draws.psis import psis
from .coordinates import Blocks


@dataclass
class Correction:
    """Weighted draws, and how good they are.

    Attributes:
        u: (S, B, d), draws on the real line.
        log_weight: (S, B), smoothed and normalised.
        khat: (B,) of the weights; khat_before: of the guide's own draws.
        log_evidence: (B,), log of the mean weight, nats; log_evidence_se its standard error.
        moved: (B,), whether half of the block's draws were moved by moment matching.
    """

    u: Tensor
    log_weight: Tensor
    khat: Tensor
    khat_before: Tensor
    log_evidence: Tensor
    log_evidence_se: Tensor
    moved: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Weighted means and standard deviations of the coordinates, (B, d) each."""
        mean, cov = _moments(self.u, self.log_weight)
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
    before = psis(fresh.log_p - fresh.log_q)[1]
    matrix, shift = _matched(source, before > threshold, threshold, rounds)
    eye = torch.eye(matrix.shape[-1]).to(matrix)
    moved = (matrix != eye).flatten(1).any(1) | (shift != 0).any(1)
    if not moved.any():
        return _weighted(fresh.u, fresh.log_p, fresh.log_q, before, moved)
    log_det = torch.linalg.slogdet(matrix)[1]
    half = len(fresh.u) // 2
    stay, go = fresh.u[:half], fresh.u[half:]
    gone = _apply(matrix, shift, go)
    back = _apply(torch.linalg.inv(matrix), None, stay - shift)  # where a moved draw came from
    (p_gone, q_gone), (_, q_back) = fresh.densities(gone), fresh.densities(back)
    q_stay, q_go = fresh.log_q[:half], fresh.log_q[half:]
    q = torch.cat([q_stay, q_gone])
    q_moved = torch.cat([q_back, q_go]) - log_det
    u, p = torch.cat([stay, gone]), torch.cat([fresh.log_p[:half], p_gone])
    after = _weighted(u, p, torch.logaddexp(q, q_moved) - math.log(2), before, moved)
    alone = _weighted(fresh.u, fresh.log_p, fresh.log_q, before, torch.zeros_like(moved))
    use = moved & (after.khat < before)
    rest = ("log_weight", "khat", "khat_before", "log_evidence", "log_evidence_se")
    chosen = {k: torch.where(use, getattr(after, k), getattr(alone, k)) for k in rest}
    if twice and len(use) == 1 and use.all() and (chosen["khat"] <= threshold).all():
        again = correct(fresh, source, threshold, rounds, twice=False)
        chosen["khat"] = torch.maximum(chosen["khat"], again.khat)
    return Correction(u=torch.where(use[:, None], after.u, alone.u), moved=use, **chosen)


def _weighted(u: Tensor, log_p: Tensor, log_q: Tensor, before: Tensor, moved: Tensor) -> Correction:
    raw = log_p - log_q
    log_weight, khat = psis(raw)
    mean, se = log_evidence(raw), evidence_error(raw)
    return Correction(u, log_weight, khat, before, mean, se, moved)


def _matched(source: Blocks, high: Tensor, threshold: float, rounds: int) -> tuple[Tensor, Tensor]:
    """The affine map of every block, matrix (B, d, d) and shift (B, d); the identity by default."""
    u, log_q = source.u, source.log_q
    log_weight, khat = psis(source.log_p - log_q)
    d = u.shape[-1]
    matrix = torch.eye(d, dtype=u.dtype, device=u.device).repeat(u.shape[1], 1, 1)
    shift = u.new_zeros(u.shape[1], d)
    if not source.invertible:
        return matrix, shift
    high = high | (khat > threshold)
    for _ in range(rounds):
        accepted = torch.zeros_like(khat, dtype=torch.bool)
        for step in (_mean, _mean_and_variance, _mean_and_covariance):
            todo = high & ~accepted
            if not todo.any():
                break
            a, b = step(u, log_weight)  # (B, d, d), (B, d)
            moved = _apply(a, b, u)
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


def _apply(matrix: Tensor, shift: Tensor | None, u: Tensor) -> Tensor:
    moved = torch.einsum("bij,sbj->sbi", matrix, u)
    return moved if shift is None else moved + shift


def _moments(u: Tensor, log_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean (B, d) and covariance (B, d, d) of (S, B, d) under normalised weights (S, B)."""
    w = torch.full_like(u[..., 0], 1 / len(u)) if log_weight is None else log_weight.exp()
    mean = torch.einsum("sb,sbi->bi", w, u)
    centred = u - mean
    return mean, torch.einsum("sb,sbi,sbj->bij", w, centred, centred)


def _mean(u: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    matrix = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device).repeat(u.shape[1], 1, 1)
    return matrix, _moments(u, log_weight)[0] - u.mean(0)


def _mean_and_variance(u: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    (mean, cov), (target, target_cov) = _moments(u, None), _moments(u, log_weight)
    ratio = (target_cov.diagonal(dim1=-2, dim2=-1) / cov.diagonal(dim1=-2, dim2=-1)).sqrt()
    return torch.diag_embed(ratio), target - ratio * mean


def _mean_and_covariance(u: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    (mean, cov), (target, target_cov) = _moments(u, None), _moments(u, log_weight)
    low, bad = torch.linalg.cholesky_ex(cov)
    target_low, target_bad = torch.linalg.cholesky_ex(target_cov)
    matrix = torch.linalg.solve_triangular(low, target_low, upper=False, left=False)
    usable = (bad == 0) & (target_bad == 0)  # too few effective draws leave it singular
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    matrix = torch.where(usable[:, None, None], matrix, eye)
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
