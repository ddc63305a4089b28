"""How good a fitted pair is on data it has not seen: bounds, log p(x), active units, k-hat."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from .pair import modules_of
from .psis import GOOD, khat
from .run import Run
from .weights import LogWeights, Term, log_weights, no_validation, plate_nesting

ROWS = 100_000  # particles times data in one run of the pair; keeps memory bounded


@dataclass
class Evaluation:
    """Averages over data of a pair's bounds, all in `unit` (nats per datum, or nats in all).

    Attributes:
        elbo, elbo_se: E_q[log p(x, z) - log q(z | x)], its standard error over data and draws.
        reconstruction, reconstruction_se: E_q[log p(x | z)], with its standard error.
        kl, kl_se: latent -> E_q[log q(z) - log p(z)], with its standard error.
        kl_per_dim: latent -> (L,), where prior and guide are diagonal normals.
        log_px: log 1/K Σ_k p(x, z_k) / q(z_k | x), a lower bound that rises to log p(x) with K;
            NaN (as all that follows from it) where a plate inside the weights is subsampled, which
            makes a logarithm of their mean meaningless.
        log_px_se: standard error of its mean over data (which are taken as a sample).
        log_px_mc_se: the part of it that comes from K being finite.
        active_units: latent -> how many dimensions have Var_x(E_q[z]) > 0.01.
        khat: Pareto k-hat of the importance weights, one per datum, or one for joint weights.
        log_px_per_datum: (N,), or one number for joint weights.
    """

    elbo: float
    elbo_se: float
    reconstruction: float
    kl: dict[str, float]
    kl_per_dim: dict[str, Tensor] = field(repr=False)
    log_px: float
    log_px_se: float
    log_px_mc_se: float
    particles: int
    bits_per_dim: float
    active_units: dict[str, int]
    khat: Tensor = field(repr=False)
    log_px_per_datum: Tensor = field(repr=False)
    n: int
    unit: str = "nats per datum"
    reconstruction_se: float = math.nan
    kl_se: dict[str, float] = field(default_factory=dict)

    @property
    def khat_above(self) -> float:
        """The share of k-hat above 0.7, where importance sampling is not to be trusted."""
        return float((self.khat > GOOD).double().mean())

    def metrics(self) -> dict[str, float | int | str]:
        """A flat table, ready for JSON: what could not be estimated is left out."""
        table: dict[str, float | int | str] = {
            "elbo": self.elbo,
            "elbo_se": self.elbo_se,
            "reconstruction": self.reconstruction,
            "reconstruction_se": self.reconstruction_se,
            **{f"kl_{k}": v for k, v in self.kl.items()},
            **{f"kl_{k}_se": v for k, v in self.kl_se.items()},
            "log_px": self.log_px,
            "log_px_se": self.log_px_se,
            "log_px_mc_se": self.log_px_mc_se,
            "particles": self.particles,
            "bits_per_dim": self.bits_per_dim,
            **{f"active_units_{k}": v for k, v in self.active_units.items()},
            "khat_median": float(self.khat.median()),
            "khat_above_0.7": self.khat_above,
            "n": self.n,
            "unit": self.unit,
        }
        return {k: v for k, v in table.items() if not (isinstance(v, float) and math.isnan(v))}

    def __str__(self) -> str:
        kl = ", ".join(f"{k} {v:.2f} ± {self.kl_se[k]:.2f}" for k, v in self.kl.items())
        lines = [
            f"ELBO            {self.elbo:.3f} ± {self.elbo_se:.3f} {self.unit}",
            f"  reconstruction {self.reconstruction:.3f} ± {self.reconstruction_se:.3f}, "
            f"KL {kl or 'none'}",
            "log p(x)        not estimated: a subsampled plate lies inside the weights"
            if math.isnan(self.log_px)
            else f"log p(x)      ≥ {self.log_px:.3f} ± {self.log_px_se:.3f} {self.unit} "
            f"(K = {self.particles}, {self.bits_per_dim:.4f} bits per dimension)",
        ]
        if self.active_units:
            units = ", ".join(
                f"{k} {v}/{len(self.kl_per_dim[k])}" if k in self.kl_per_dim else f"{k} {v}"
                for k, v in self.active_units.items()
            )
            lines.append(f"active units    {units}")
        if not math.isnan(self.log_px):
            lines.append(
                f"k-hat           median {float(self.khat.median()):.2f}, "
                f"{100 * self.khat_above:.0f} % above {GOOD}"
            )
        return "\n".join(lines)


def evaluate(
    run: Run | Any,
    *data: Any,
    particles: int = 1_000,
    seed: int = 0,
    rows: int = ROWS,
) -> Evaluation:
    """Judge a pair on data.

    Args:
        run: a `Run`, a module with methods `model` and `guide`, or a model followed by its guide.
        data: the pair's arguments, as tensors.
        particles: K, draws per datum for log p(x) and k-hat.
        seed: of the draws.
        rows: most particles times data in one run of the pair: memory is bounded by it.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: K < 1, or NaN in the data.

    Source: Burda et al. 2016, arXiv:1509.00519, section 5 and appendix C (log p(x), active units);
    Vehtari et al. 2024, arXiv:1507.02646 (k-hat).
    """
    model, guide, args, context, device = resolve(run, data)
    if particles < 1:
        raise ValueError(f"particles: expected K >= 1, got {particles}.")
    for i, a in enumerate(args):
        if torch.is_tensor(a) and a.is_floating_point() and not torch.isfinite(a).all():
            raise ValueError(f"data: argument {i} holds NaN or infinite values.")
    n = len(args[0])
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), no_validation(), context():
        torch.manual_seed(seed)
        kwargs = {"size": n} if isinstance(run, Run) and run.kwargs else {}
        nesting = run.pair_.nesting if isinstance(run, Run) else plate_nesting(model, guide, *args)
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
    return _joined(parts, particles, n, local, full)


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
        for name, p in weights.model.items():
            if not p.observed:
                pieces = [
                    q for q in weights.guide.values() if q.name in (name, f"{name}_unconstrained")
                ]
                add[f"kl:{name}"] = _shared(weights, pieces) - _shared(weights, [p])
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


def _shared(weights: LogWeights, terms: list[Term]) -> Tensor:
    """The sum of some terms over the plates that not all sites share: (K, *shared)."""
    zero = torch.zeros_like(weights.log_weight())
    return sum((t.sum_to(weights.plates, weights.nesting) for t in terms), start=zero)


def _kl_per_dim(q: Term, p: Term) -> Tensor | None:
    """KL of independent one-dimensional distributions, averaged over particles: (b, L)."""
    if not all(isinstance(t.fn, Independent) and t.fn.event_dim == 1 for t in (q, p)):
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


def _joined(parts: list[dict], particles: int, n: int, local: bool, full: LogWeights) -> Evaluation:
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


def resolve(run: Any, data: tuple) -> tuple[Callable, Callable, tuple, Callable, torch.device]:
    """(model, guide, arguments, context that binds the parameters, device) of what a user gave.

    Raises:
        TypeError: neither a run, nor a pair, nor a model followed by a guide.
    """
    import contextlib

    if isinstance(run, Run):
        model, guide, context, device = run.pair_.model, run.pair_.guide, run.bind, run.device
    else:
        if callable(getattr(run, "model", None)) and callable(getattr(run, "guide", None)):
            model, guide = run.model, run.guide
        elif callable(run) and data and callable(data[0]):
            model, guide, data = run, data[0], data[1:]
        else:
            raise TypeError(
                "expected a run, a pair with methods `model` and `guide`, or a model followed by "
                f"its guide; got {type(run).__name__}."
            )
        context = contextlib.nullcontext
        tensors = [p for f in (model, guide) for m in modules_of(f) for p in m.parameters()]
        device = tensors[0].device if tensors else torch.device("cpu")
    args = data[0] if len(data) == 1 and isinstance(data[0], tuple) else data
    args = tuple(
        torch.as_tensor(a).to(device) if hasattr(a, "__array__") or torch.is_tensor(a) else a
        for a in args
    )
    if not args:
        raise TypeError("no data was given.")
    return model, guide, args, context, device
