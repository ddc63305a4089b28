"""Run a pair on data it has not seen, in chunks of bounded memory, and judge it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ...draws.psis import khat
from ...pairs.gate import admit
from ...training.run import Run
from ...weights import LogWeights, Term, log_weights
from .evaluation import Evaluation
from .surgery import Surgery, operate

ROWS = 100_000  # particles times data in one run of the pair; keeps memory bounded


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
    chain = admit(
        run, *data, who="evaluate", particles=particles, seed=seed, rows=rows, surgery=surgery
    )
    model, guide, args = chain.model, chain.guide, chain.args
    n = len(args[0])
    with chain.ready(seed):
        kwargs, nesting = dict(chain.kwargs), chain.nesting
        full = log_weights(model, guide, *args, nesting=nesting, **kwargs)
        local = bool(full.plates) and full.plates[0].size == n
        step = max(1, min(n, rows // min(particles, 100))) if local else n
        parts = []
        for i in range(0, n, step):
            part = tuple(
                a[i : i + step] if torch.is_tensor(a) and a.dim() and len(a) == n else a
                for a in args
            )
            if kwargs:
                kwargs = {"size": len(part[0])}
            parts.append(_judge(model, guide, part, kwargs, nesting, particles, rows))
        operated = None
        if local and surgery > 1:
            some = _first(args, n, surgery)
            if kwargs:
                kwargs = {"size": len(some[0])}
            drawn = log_weights(model, guide, *some, nesting=nesting, **kwargs)
            operated = operate(drawn, guide, some, kwargs, rows)
    return _joined(parts, particles, n, local, full, operated)


def _first(args: tuple, n: int, rows: int) -> tuple:
    """The arguments cut to their first rows."""
    return tuple(a[:rows] if torch.is_tensor(a) and a.dim() and len(a) == n else a for a in args)


def _judge(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, nesting: int, particles: int,
    rows: int,
) -> dict[str, Any]:  # fmt: skip
    """Log weights and latents' summaries of some rows, K particles in chunks."""
    chunk = max(1, min(particles, rows // max(1, len(args[0]))))
    log_w: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    done = 0
    kl_dims: dict[str, Tensor] = {}
    while done < particles:
        k = min(chunk, particles - done)
        weights = log_weights(model, guide, *args, particles=k, nesting=nesting, **kwargs)
        log_w.append(weights.log_weight().reshape(k, -1).double())  # (k, b)
        add: dict[str, Tensor] = {"elbo": weights.log_weight()}
        add["reconstruction"] = _shared(weights, [t for t in weights.model.values() if t.observed])
        add |= {f"kl:{name}": kl for name, kl in _divergences(weights).items()}
        for name, q in weights.guide.items():
            p = weights.model.get(name)
            if torch.is_tensor(q.value) and p is not None and q.value.is_floating_point():
                add[f"mean:{name}"] = q.value.reshape(
                    k, *q.value.shape[1:] if k > 1 else q.value.shape
                )
                kl = _kl_per_dim(q, p)
                if kl is not None:
                    kl_dims[name] = kl_dims.get(name, torch.zeros_like(kl)) + k * kl
        for name, value in add.items():
            total = value.sum(0).double() if value.shape[:1] == (k,) else k * value.double()
            sums[name] = sums[name] + total if name in sums else total
            if not name.startswith("mean:"):
                again = value.double().square()
                total = again.sum(0) if value.shape[:1] == (k,) else k * again
                squares[name] = squares[name] + total if name in squares else total
        done += k
    out: dict[str, Any] = {name: s / particles for name, s in sums.items()}
    out["var"] = {n: (s / particles - out[n].square()).clamp(min=0) for n, s in squares.items()}
    out["log_w"] = torch.cat(log_w)  # (K, b)
    out["kl_dims"] = {k: v / particles for k, v in kl_dims.items()}
    return out


def _divergences(weights: LogWeights) -> dict[str, Tensor]:
    """Latent -> log q - log p, (K, *shared); one number for "latents" that are drawn jointly."""
    priors = {n: p for n, p in weights.model.items() if not (p.observed or p.deterministic)}
    pieces: dict[str, list[Term]] = {name: [] for name in priors}
    joint = []
    for name, q in weights.guide.items():
        owners = [n for n in priors if name == n or name.startswith(f"{n}_")]
        pieces[max(owners, key=len)].append(q) if owners else joint.append(q)
    if joint and priors:
        every = [q for qs in pieces.values() for q in qs] + joint
        name = "latents" if len(priors) > 1 else next(iter(priors))
        return {name: _shared(weights, every) - _shared(weights, list(priors.values()))}
    return {n: _shared(weights, pieces[n]) - _shared(weights, [p]) for n, p in priors.items()}


def _shared(weights: LogWeights, terms: list[Term]) -> Tensor:
    """The sum of some terms over the plates that not all sites share: (K, *shared)."""
    zero = torch.zeros_like(weights.log_weight())
    return sum((t.sum_to(weights.plates, weights.nesting) for t in terms), start=zero)


def _kl_per_dim(q: Term, p: Term) -> Tensor | None:
    """KL of independent one-dimensional distributions, averaged over particles: (b, L)."""
    if not all(isinstance(t.fn, Independent) and len(t.fn.event_shape) == 1 for t in (q, p)):
        return None
    try:
        kl = kl_divergence(q.fn.base_dist, p.fn.base_dist)
    except NotImplementedError:
        return None
    if kl.dim() < 2 or kl.shape[-1] != q.value.shape[-1]:
        return None
    return kl.reshape(-1, *kl.shape[-2:]).mean(0).double()


def _subsampled_inside(weights: LogWeights) -> bool:
    """Whether a subsampled plate lies inside the weights, so that their exponential is biased."""
    shared = {p.name for p in weights.plates}
    return any(p.scale != 1 and p.name not in shared for _, t in weights.terms() for p in t.plates)


def _joined(
    parts: list[dict], particles: int, n: int, local: bool, full: LogWeights,
    operated: Surgery | None,
) -> Evaluation:  # fmt: skip
    log_w = torch.cat([p["log_w"] for p in parts], 1)  # (K, N) or (K, 1)
    log_px = torch.logsumexp(log_w, 0) - math.log(particles)
    per = log_px.numel()
    relative = torch.exp(log_w - torch.logsumexp(log_w, 0)) * particles  # w / mean(w)
    mc = relative.var(0, correction=1) / particles if particles > 1 else torch.zeros_like(log_px)
    elbo = torch.cat([p["elbo"].reshape(-1) for p in parts])
    se_mc = math.sqrt(float(mc.sum())) / per
    se = math.sqrt(float(log_px.var()) / per) if per > 1 else se_mc
    elbo_se = (
        math.sqrt(float(elbo.var()) / per) if per > 1 else float(log_w.std()) / math.sqrt(particles)
    )

    def mean(name: str) -> float:
        return float(torch.cat([p[name].reshape(-1) for p in parts]).mean())

    def error(name: str) -> float:
        values = torch.cat([p[name].reshape(-1) for p in parts])
        if len(values) > 1:  # data and draws vary together
            return math.sqrt(float(values.var()) / len(values))
        return math.sqrt(float(parts[0]["var"][name]) / max(1, particles - 1))

    gap = log_px - elbo
    gap_se = math.sqrt(float(gap.var()) / per) if per > 1 else math.hypot(se_mc, elbo_se)
    if _subsampled_inside(full):
        log_px = torch.full_like(log_px, math.nan)
        se = se_mc = math.nan
    units = {}
    for key in [k for k, v in parts[0].items() if k.startswith("mean:") and v.dim()]:
        values = torch.cat([p[key].reshape(-1, p[key].shape[-1]) for p in parts])
        if local and len(values) == n:
            units[key[5:]] = int((values.var(0) > 0.01).sum())
    dims = {
        name: torch.cat([p["kl_dims"][name] for p in parts]).mean(0)
        for name in parts[0]["kl_dims"]
        if local
    }
    sizes = [
        math.prod(t.value.shape[-t.fn.event_dim :]) if t.fn is not None and t.fn.event_dim else 1
        for t in full.model.values()
        if t.observed and torch.is_tensor(t.value) and t.value.numel()
    ]
    numbers = sum(sizes) * (1 if local else n) or 1
    return Evaluation(
        elbo=float(elbo.mean()),
        elbo_se=elbo_se,
        reconstruction=mean("reconstruction"),
        kl={k[3:]: mean(k) for k in parts[0] if k.startswith("kl:")},
        kl_per_dim=dims,
        log_px=float(log_px.mean()),
        log_px_se=se,
        log_px_mc_se=se_mc,
        gap=float(log_px.mean()) - float(elbo.mean()),
        gap_se=math.nan if math.isnan(se) else gap_se,
        surgery=operated,
        particles=particles,
        bits_per_dim=-float(log_px.mean()) / (numbers * math.log(2)),
        active_units=units,
        khat=(
            khat(log_w)
            if particles >= 25 and not _subsampled_inside(full)
            else torch.full((per,), math.nan)
        ),
        log_px_per_datum=log_px,
        n=n,
        unit="nats per datum" if local else "nats",
        reconstruction_se=error("reconstruction"),
        kl_se={k[3:]: error(k) for k in parts[0] if k.startswith("kl:")},
    )
