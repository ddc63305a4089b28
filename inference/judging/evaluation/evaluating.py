"""Run a pair on data it has not seen, in chunks of bounded memory, and judge it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...draws import measures
from ...draws.arrays import Tree, Variable, named_arrays
from ...draws.density import missing_density, missing_spread
from ...draws.psis import EQUAL
from ...draws.sampler import Chunk, conditions, data_plate, label_of, sample
from ...estimate import Estimate
from ...pairs.gate import CheckedPair, admit
from ...training.run import Run
from ...weights import LogWeights
from ...weights.simulation import is_latent
from .evaluation import Evaluation
from .surgery import Surgery, operate

ROWS = 100_000  # particles times data in one run of the pair; keeps memory bounded
GROUPS = ("posterior", "sample_stats", "divergence", "divergence_per_dim")


def evaluate(
    run: Run | Any,
    *data: Any,
    particles: int = 1_000,
    seed: int = 0,
    rows: int = ROWS,
    surgery: int = 1_000,
) -> Evaluation:
    """Judge a pair on data.

    Args:
        run: a `Run`, a module with methods `model` and `guide`, or a model followed by its guide.
        data: the pair's arguments, as tensors.
        particles: K, draws per datum for log p(x) and k-hat.
        seed: of the draws.
        rows: most particles times data in one run of the pair: memory is bounded by it.
        surgery: over how many of the first rows the guide is averaged, to part the divergence into
            mutual information and marginal divergence; the work grows with its square. 0: none.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: K < 1, or NaN in the data.

    Source: Burda et al. 2016, arXiv:1509.00519, section 5 and appendix C (log p(x), active units);
    Kingma & Welling 2014, arXiv:1312.6114, eq. 3 (reconstruction and divergence); Neal & Hinton
    1998, A view of the EM algorithm that justifies incremental, sparse, and other variants, eq. 7
    (the gap); Hoffman & Johnson 2016, ELBO surgery, eq. 4; Vehtari et al. 2024, arXiv:1507.02646
    (k-hat).
    """
    pair = admit(
        run, *data, who="evaluate", particles=particles, seed=seed, rows=rows, surgery=surgery
    )
    with pair.ready(seed):
        two = pair.weights(2)
        observed, told = conditions(pair, two)
    axis = data_plate(two, pair.rows)
    plate = next((p.name for p in two.plates if p.dim == axis), None)
    reduce = partial(_per_block, plate=plate)
    parts = sample(pair, particles, reduce, seed=seed, by_rows=True, most=rows)
    found = _Folded(parts)
    operated = None
    if plate is not None and surgery > 1:
        some = pair.take(slice(surgery))
        operated = next(sample(some, 1, partial(_operated, rows=rows), seed=seed))
    return _judged(pair, two, found, operated, particles, observed, told, plate is not None)


def _operated(chunk: Chunk, rows: int) -> Surgery | None:
    return operate(chunk.weights, chunk.pair.guide, chunk.pair.args, chunk.pair.kwargs, rows)


def _per_block(chunk: Chunk, plate: str | None) -> tuple[int, dict[str, Tensor]]:
    """The first row, and by name what the chunk says of each block: (k, b), or (k, b, L)."""
    tree: Tree = named_arrays(chunk, GROUPS)
    shared = tree["sample_stats"]["log_weight"].dims
    order = sorted(shared, key=lambda d: d != plate)  # the rows first, so that parts can be joined

    def blocks(v: Variable) -> Tensor:  # (k, b, everything else)
        axes = [1 + v.dims.index(d) for d in order]
        moved = v.array.movedim(axes, list(range(1, 1 + len(axes))))
        size = math.prod(moved.shape[1 : 1 + len(axes)])
        return moved.reshape(len(moved), size, -1)

    per_block = {"log_weight": tree["sample_stats"]["log_weight"], **tree["divergence"]}
    out = {n: blocks(v)[..., 0] for n, v in per_block.items()}
    out |= {f"dim:{n}": v.array for n, v in tree["divergence_per_dim"].items()}
    if plate is not None:
        out |= {
            f"z:{n}": blocks(v).double() for n, v in tree["posterior"].items()
            if set(order) <= set(v.dims) and v.array.is_floating_point()
            and is_latent(chunk.weights.model[n])
        }  # fmt: skip
    return chunk.rows.start, out


class _Folded:
    """Means over draws of all blocks, and what has to be kept draw by draw.

    Attributes:
        log_weight: (K, B), float64.
        mean, variance: name -> (B,) or (B, L), the variance of draws unbiased.
        draws: name -> (K,), where there is one block.
    """

    def __init__(self, parts: Iterable[tuple[int, dict[str, Tensor]]]):
        moments: dict[int, dict[str, measures.Moments]] = {}
        weights: dict[int, list[Tensor]] = {}
        single: dict[str, list[Tensor]] = {}
        for row, chunk in parts:
            log_weight = chunk.pop("log_weight")
            k, b = log_weight.shape
            weights.setdefault(row, []).append(log_weight)
            for name, v in chunk.items():
                v = v.expand(k, *v.shape[1:])
                moments.setdefault(row, {}).setdefault(name, measures.Moments()).add(v)
                if b == 1 and v.dim() == 2:
                    single.setdefault(name, []).append(v[:, 0])
        self.log_weight = torch.cat([torch.cat(w) for w in weights.values()], 1)
        names = next(iter(moments.values()))
        self.mean, self.variance = (
            {n: torch.cat([getattr(m[n], of) for m in moments.values()]) for n in names}
            for of in ("mean", "variance")
        )
        self.draws = {n: torch.cat(v) for n, v in single.items()} if len(weights) == 1 else {}

    def estimate(self, name: str) -> Estimate:
        """The mean over draws and blocks."""
        return measures.mean_over_data(self.mean[name], self.draws.get(name))


def _judged(
    pair: CheckedPair,
    two: LogWeights,
    found: _Folded,
    operated: Surgery | None,
    particles: int,
    observed: dict[str, Tensor],
    told: list[str],
    local: bool,
) -> Evaluation:
    log_w, label = found.log_weight, label_of(observed, told)
    blocks = log_w.shape[1]
    exact = not any(map(is_latent, two.model.values())) and all(
        t.observed for t in two.guide.values()
    )
    elbo, log_px = measures.elbo(log_w), measures.evidence(log_w)
    khat = measures.pareto_khat(log_w)
    kl = {n[3:]: found.estimate(n) for n in found.mean if n.startswith("kl:")}
    if because := missing_density(two):
        elbo = log_px = khat = Estimate.none(because)
        kl = dict.fromkeys(kl, elbo)
    elif _subsampled_inside(two):
        log_px = khat = Estimate.none("a subsampled plate lies inside the weights")
    elif exact:
        khat = Estimate.none(f"there is no latent, and {label} is exact")
    elif (same := missing_spread(two)) and float((log_w - log_w[:1]).abs().max()) < EQUAL:
        log_px = khat = Estimate.none(same)
    numbers = sum(v.numel() for v in observed.values()) / blocks or 1
    errors = measures.evidence_error(log_w)
    names = [p.name for p in two.plates]
    per = "datum" if local and len(names) == 1 else f"element of {' × '.join(names)}"
    active = {
        n[2:]: measures.active_variance(m, found.variance[n], particles) > measures.ACTIVE
        for n, m in found.mean.items()
        if n.startswith("z:") and particles > 1 and len(m) > 1
    }
    return Evaluation(
        estimates={
            "elbo": elbo, "reconstruction": found.estimate("reconstruction"), "log_px": log_px,
            "gap": _gap(log_w, elbo, log_px),
            "bits_per_dim": measures.bits_per_dim(log_px, numbers),
        },
        kl_estimates=kl,
        particles=particles,
        n=pair.rows,
        unit=f"nats per {per}" if names else "nats",
        label=label,
        exact=exact,
        log_px_mc_se=float(errors.square().sum().sqrt()) / blocks if particles > 1 else None,
        active_units={n: int(of.sum()) for n, of in active.items()},
        surgery=None if because else operated,
        kl_per_dim={
            n[4:]: m.mean(0) for n, m in found.mean.items() if n.startswith("dim:") and local
        },
        khat=None if isinstance(khat, Estimate) else khat,
        khat_because=khat.because if isinstance(khat, Estimate) else "",
        log_px_per_datum=measures.log_evidence(log_w) if log_px else None,
    )  # fmt: skip


def _gap(log_w: Tensor, elbo: Estimate, log_px: Estimate) -> Estimate:
    """log p(x) - ELBO; the errors of one posterior's two numbers are taken as independent."""
    if not log_px or not elbo:
        return Estimate.none(log_px.because or elbo.because)
    if log_w.shape[1] > 1:
        return Estimate.of(measures.log_evidence(log_w) - log_w.mean(0))
    se = None if None in (elbo.se, log_px.se) else math.hypot(*(elbo.se, log_px.se))
    return Estimate(log_px.known() - elbo.known(), se)


def _subsampled_inside(weights: LogWeights) -> bool:
    """Tell whether a subsampled plate lies inside the weights, whose exponential is then biased."""
    shared = {p.name for p in weights.plates}
    return any(p.scale != 1 and p.name not in shared for _, t in weights.terms() for p in t.plates)
