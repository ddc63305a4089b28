"""The ELBO taken apart in three ways, each an identity that the numbers obey to rounding.

reconstruction_and_kl   ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z))
evidence_and_gap        ELBO = log p(x) - KL(q(z | x) || p(z | x))
surgery                 mean KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || p(z))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .evaluate import ROWS, resolve
from .run import Run
from .weights import LogWeights, Term, log_q_at, log_weights, no_validation, plate_nesting


@dataclass(frozen=True)
class Parts:
    """Named parts of a bound, with the standard errors of their means over data and draws.

    Attributes:
        formula: the identity between them.
        values, errors: name -> number, in `unit`.
        unit: "nats per datum" where every site lies in the data plate, else "nats".
    """

    formula: str
    values: Mapping[str, float]
    errors: Mapping[str, float]
    unit: str

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def __str__(self) -> str:
        width = max(map(len, self.values))
        lines = [
            f"  {name:<{width}}  {value:.4f} ± {self.errors[name]:.2g}"
            for name, value in self.values.items()
        ]
        return "\n".join([f"{self.formula}, in {self.unit}:", *lines])


def reconstruction_and_kl(run: Any, *data: Any, particles: int = 100, seed: int = 0) -> Parts:
    """What the latents explain, and what they cost.

    ELBO = E_q[log p(x | z)] - Σ KL(q(z) || p(z)), one divergence per latent of the model.

    Args:
        run: a `Run`, a pair, or a model followed by its guide.
        data: the pair's arguments.
        particles: draws per datum.
        seed: of the draws.

    Returns:
        Parts "elbo", "reconstruction", and "kl" with one "kl <latent>" for each of several.

    Raises:
        ValueError: the prior of a latent was summed out together with the likelihood.

    Source: Kingma & Welling 2014, arXiv:1312.6114, eq. 3.
    """
    with _drawn(run, data, particles, seed) as (weights, _):
        mixed = [n for p in weights.model.values() for n in p.sites if n in weights.guide]
        if mixed:
            raise ValueError(
                f"the prior of {', '.join(mixed)} was summed out together with the likelihood; "
                "draw the discrete latent in the guide to see its divergence."
            )
        latents = [n for n, p in weights.model.items() if not (p.observed or p.deterministic)]
        kl: dict[str, Tensor] = {n: -_sum(weights, [weights.model[n]]) for n in latents}
        for name, q in weights.guide.items():
            owner = max((n for n in latents if name == n or name.startswith(f"{n}_")),
                        key=len, default=name)  # fmt: skip
            kl[owner] = kl.get(owner, 0.0) + _sum(weights, [q])
        parts = {
            "elbo": weights.log_weight(),
            "reconstruction": _sum(weights, (p for p in weights.model.values() if p.observed)),
            "kl": torch.stack(list(kl.values())).sum(0),
            **({f"kl {n}": v for n, v in kl.items()} if len(kl) > 1 else {}),
        }
        return _averaged("ELBO = reconstruction - KL(q || prior)", weights, parts)


def evidence_and_gap(run: Any, *data: Any, particles: int = 1_000, seed: int = 0) -> Parts:
    """How much of log p(x) the guide loses: the step of variational EM that its family allows.

    ELBO = log p(x) - KL(q(z | x) || p(z | x)); log p(x) by importance sampling with the guide, so
    both it and the gap are estimated from below.

    Args: as for `reconstruction_and_kl`.

    Returns:
        Parts "elbo", "log_px", "gap".

    Source: Neal & Hinton 1998, A view of the EM algorithm that justifies incremental, sparse, and
    other variants, eq. 7; Burda et al. 2016, arXiv:1509.00519, eq. 8.
    """
    with _drawn(run, data, particles, seed) as (weights, _):
        log_w = weights.log_weight()
        log_px = torch.logsumexp(log_w, 0, keepdim=True) - math.log(particles)
        relative = torch.exp(log_w - torch.logsumexp(log_w, 0)) * particles
        noise = (relative.var(0) / particles).sum().sqrt() if particles > 1 else log_w.new_zeros(())
        parts = {"elbo": log_w, "log_px": log_px, "gap": log_px - log_w}
        out = _averaged("ELBO = log p(x) - KL(q || posterior)", weights, parts)
        if not weights.plates:  # one number, whose error is that of importance sampling
            out.errors["log_px"] = float(noise)  # type: ignore[index]
        return out


def surgery(run: Any, *data: Any, seed: int = 0) -> Parts:
    """Where the divergence goes: what z says of x, and how far codes are from the prior.

    With q(z) = 1/N Σ_i q(z | x_i) over the N rows given,

        1/N Σ KL(q(z | x_i) || p(z)) = I(x; z) + KL(q(z) || p(z)),   I(x; z) <= log N

    The sum over all pairs of rows is exact; z is drawn once per row.

    Args:
        run: a `Run`, a pair, or a model followed by its guide.
        data: the pair's arguments.
        seed: of the draws.

    Returns:
        Parts "elbo", "reconstruction", "kl", "mutual_information", "marginal_kl".

    Raises:
        ValueError: a latent lies outside the data plate.

    Source: Hoffman & Johnson 2016, ELBO surgery, NIPS workshop on Advances in Approximate Bayesian
    Inference, eq. 4.
    """
    with _drawn(run, data, 1, seed) as (weights, call):
        if len(weights.plates) != 1:
            raise ValueError(
                "surgery: expected every latent in one data plate, to average the guide over data; "
                f"the sites share {[p.name for p in weights.plates]}."
            )
        log_q = weights.log_q()
        log_marginal = _log_aggregate(weights, call).reshape(log_q.shape)
        log_prior = _sum(weights, (p for p in weights.model.values() if not p.observed))
        parts = {
            "elbo": weights.log_weight(),
            "reconstruction": _sum(weights, (p for p in weights.model.values() if p.observed)),
            "kl": log_q - log_prior,
            "mutual_information": log_q - log_marginal,
            "marginal_kl": log_marginal - log_prior,
        }
        return _averaged("KL(q || prior) = mutual information + marginal KL", weights, parts)


def _log_aggregate(weights: LogWeights, call: _Call) -> Tensor:
    """log 1/N Σ_j q(z_i | x_j) for each row's draw z_i: (N,)."""
    (plate,) = weights.plates
    n, nesting = plate.size, weights.nesting
    drawn = {}
    for name, q in weights.guide.items():
        if q.free and not q.observed:
            event = q.fn.event_dim
            batch = q.value.dim() - event
            shape = (1,) * (nesting - batch) + tuple(q.value.shape)
            drawn[name] = (q.value.reshape(shape), nesting + plate.dim)
    total = torch.full((n,), -math.inf, device=weights.log_q().device, dtype=weights.log_q().dtype)
    chunk = max(1, ROWS // n)
    for start in range(0, n, chunk):
        shifts = range(start, min(n, start + chunk))
        values = {
            k: torch.stack([v.roll(-s, axis) for s in shifts]) if len(shifts) > 1
            else v.roll(-start, axis)
            for k, (v, axis) in drawn.items()
        }  # fmt: skip
        terms = log_q_at(
            call.guide, values, *call.args, particles=len(shifts), nesting=nesting, **call.kwargs
        )
        density = _sum(weights, terms.values()).reshape(-1, n)  # (shift, x): z of row x + shift
        for s, row in zip(shifts, density):
            total = torch.logaddexp(total, row.roll(s))
    return total - math.log(n)


@dataclass(frozen=True)
class _Call:
    """What was run."""

    guide: Any
    args: tuple
    kwargs: dict[str, Any]


@contextmanager
def _drawn(run: Any, data: tuple, particles: int, seed: int) -> Iterator[tuple[LogWeights, _Call]]:
    """Log weights of the data, with nothing changed outside, not even the random state."""
    model, guide, args, context, device = resolve(run, data)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), no_validation(), context():
        torch.manual_seed(seed)
        kwargs: dict[str, Any] = {}
        if isinstance(run, Run) and run.kwargs:
            kwargs["size"] = len(args[0])
        nesting = run.pair_.nesting if isinstance(run, Run) else plate_nesting(model, guide, *args)
        weights = log_weights(model, guide, *args, particles=particles, nesting=nesting, **kwargs)
        yield weights, _Call(guide, args, kwargs)


def _sum(weights: LogWeights, terms: Iterable[Term]) -> Tensor:
    """Some terms summed over the plates that not all sites share: (K, *shared)."""
    zero = torch.zeros_like(weights.log_weight())
    return sum((t.sum_to(weights.plates) for t in terms), start=zero)


def _averaged(formula: str, weights: LogWeights, parts: Mapping[str, Tensor]) -> Parts:
    """Means and standard errors: over data where weights are local, else over draws."""
    values, errors = {}, {}
    for name, part in parts.items():
        each = part.double().mean(0).flatten() if weights.plates else part.double().flatten()
        values[name] = float(each.mean())
        errors[name] = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.nan
    unit = "nats per datum" if weights.plates else "nats"
    return Parts(formula, values, errors, unit)
