"""Quality of a fitted pair on data it has not seen: bounds, their parts, active units, k-hat."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..draws import measures
from ..draws.arrays import Variable, named_arrays
from ..draws.density import missing_density, missing_spread
from ..draws.psis import EQUAL, GOOD
from ..draws.sampler import Chunk, conditions, data_plate, label_of, sample
from ..estimate import Estimate
from ..pairs.gate import admit
from ..results.result import Result
from ..results.table import Table
from ..training.run import Run
from .annealing import AnnealedEvidence, annealed_at
from .surgery import Surgery, operate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Evaluation", "Surgery", "evaluate"]

ROWS = 100_000  # particles times data in one run of the pair; keeps memory bounded
GROUPS = ("posterior", "sample_stats", "divergence", "divergence_per_dim")
AIS_ROWS, CHAINS = 100, 16  # rows that annealed chains are run of, and chains of each
DIGITS = 3  # decimals of nats
Groups = dict[str, dict[str, Tensor]]  # group -> name -> (k, b, ...)
Averages = dict[str, dict[str, tuple[Tensor, Tensor]]]  # the same -> mean and variance, (B, ...)


def _known(name: str, part: str, doc: str) -> Any:
    """A property that reads the value or the error of a named estimate: a float, or None."""
    return property(lambda self: getattr(self.estimates[name], part), doc=doc)


@dataclass(repr=False)
class Evaluation(Result):
    """Averages over data of a pair's bounds, all in `unit` (nats per datum, or nats in all).

    The properties give the values of `estimates` and, with `_se`, their standard errors over data
    and draws; None where there is no estimate, and the estimate says why.

    Attributes:
        estimates: `elbo` = E_q[log p(x, z) - log q(z | x)]; `reconstruction` = E_q[log p(x | z)];
            `log_px` = log 1/K Σ_k p(x, z_k) / q(z_k | x), a lower bound that rises to log p(x) with
            K; `gap` = log p(x) - ELBO = KL(q(z | x) || p(z | x)), from below as log_px is;
            `bits_per_dim`.
        kl_estimates: latent -> E_q[log q(z) - log p(z)]; "latents" for all together where the guide
            draws several at once.
        kl_per_dim: latent -> (L,), where prior and guide are diagonal normals.
        log_px_mc_se: the part of log_px's error that comes from K being finite.
        label: what log_px is of: "log p(x)", or "log p(x | y)" of a model that is told y.
        exact: whether the model has no latent, so that log_px is no bound.
        surgery: kl parted into the latents' mutual information with the data and the divergence of
            the averaged guide from the prior; None where a latent lies outside the data plate.
        active_units: latent -> how many dimensions have Var_x(E_q[z]) > 0.01.
        khat: Pareto k-hat of the importance weights, one per datum, or one for joint weights; None
            where there is none, and `khat_because` says why.
        log_px_per_datum: (N,), or one number for joint weights.
        particles, n: K draws for each of N data.
        ais: log p(x) between a lower and an upper bound, by annealed chains; None where it was not
            asked for. Its `gap` is the error that can be trusted.
    """

    estimates: dict[str, Estimate]
    kl_estimates: dict[str, Estimate]
    particles: int
    n: int
    unit: str = "nats per datum"
    label: str = "log p(x)"
    exact: bool = False
    log_px_mc_se: float | None = None
    active_units: dict[str, int] = field(default_factory=dict)
    surgery: Surgery | None = None
    kl_per_dim: dict[str, Tensor] = field(repr=False, default_factory=dict)
    khat: Tensor | None = field(repr=False, default=None)
    khat_because: str = ""
    log_px_per_datum: Tensor | None = field(repr=False, default=None)
    ais: AnnealedEvidence | None = None

    file_name: ClassVar[str] = "evaluation"

    elbo = _known("elbo", "value", "E_q[log p(x, z) - log q(z | x)].")
    elbo_se = _known("elbo", "se", "Its standard error.")
    reconstruction = _known("reconstruction", "value", "E_q[log p(x | z)].")
    reconstruction_se = _known("reconstruction", "se", "Its standard error.")
    log_px = _known("log_px", "value", "log 1/K Σ_k w_k, a lower bound on log p(x).")
    log_px_se = _known("log_px", "se", "Its standard error over data, taken as a sample.")
    gap = _known("gap", "value", "log p(x) - ELBO, from below.")
    gap_se = _known("gap", "se", "Its standard error.")
    bits_per_dim = _known("bits_per_dim", "value", "-log₂ p(x) / D.")

    @property
    def kl(self) -> dict[str, float]:
        """Latent -> E_q[log q(z) - log p(z)]."""
        return {k: e.value for k, e in self.kl_estimates.items() if e.value is not None}

    @property
    def kl_se(self) -> dict[str, float]:
        """Latent -> the standard error of its divergence."""
        return {k: e.se for k, e in self.kl_estimates.items() if e.se is not None}

    @property
    def khat_above(self) -> float | None:
        """The share of k-hat above 0.7, where importance sampling is not to be trusted."""
        return None if self.khat is None else float((self.khat > GOOD).double().mean())

    def to_dict(self) -> dict[str, Any]:
        """A flat table, ready for JSON: `unknown` says why what is missing has no estimate."""
        named = {**self.estimates, **{f"kl_{k}": e for k, e in self.kl_estimates.items()}}
        if (parts := self.surgery) is not None:
            named |= {"mutual_information": parts.mutual_information}
            named |= {"marginal_kl": parts.marginal_kl}
        if (between := self.ais) is not None:
            named |= {"ais_lower": between.lower, "ais_upper": between.upper}
            named |= {"ais_gap": between.gap}
        known = {k: e for k, e in named.items() if e}
        table: dict[str, Any] = {name: e.value for name, e in known.items()}
        table |= {f"{name}_se": e.se for name, e in known.items() if e.se is not None}
        if "log_px" in known and self.log_px_mc_se is not None:
            table["log_px_mc_se"] = self.log_px_mc_se
        if self.surgery is not None:
            table["surgery_n"] = self.surgery.n
        table |= {f"active_units_{k}": v for k, v in self.active_units.items()}
        if self.khat is not None:
            table |= {"khat_median": float(self.khat.median()), "khat_above_0.7": self.khat_above}
        table |= {"particles": self.particles, "n": self.n, "unit": self.unit, "label": self.label}
        unknown = {k: e.because for k, e in named.items() if not e}
        if self.khat is None:
            unknown["khat"] = self.khat_because
        return {**table, "unknown": unknown}

    def picture(self) -> Figure | None:
        """The log p(x) of each datum."""
        values = self.log_px_per_datum
        if values is None or len(values) < 2:
            return None
        from .pictures import log_evidence

        return log_evidence(values.detach().cpu(), self.label)

    def table(self) -> Table:
        """A number to a line, with what it is."""
        e, rows = self.estimates, []

        def row(name: str, estimate: Estimate, note: str = "", digits: int = DIGITS) -> None:
            known = estimate.number(digits) if estimate else "–"
            rows.append([name, known, note if estimate else estimate.number()])

        row("ELBO", e["elbo"], self.unit)
        row("  reconstruction", e["reconstruction"])
        for name, kl in self.kl_estimates.items():
            row(f"  - KL({name} to its prior)", kl)
        how = "exact" if self.exact else f"K = {self.particles:,}"
        bound = "" if self.exact or not e["log_px"] else " ≥"
        row(f"{self.label}{bound}", e["log_px"], f"{self.unit}, {how}")
        if not self.exact and e["log_px"]:
            row("  - ELBO: KL to the posterior ≥", e["gap"])
        if self.ais is not None:
            rows.extend([list(line) for line in self.ais.table().rows])
        if e["bits_per_dim"]:
            row("  bits per dimension", e["bits_per_dim"], digits=4)
        if (parts := self.surgery) is not None:
            limit = f"{parts.n:,} rows, at most {math.log(parts.n):.2f}"
            row("KL = I(x; z)", parts.mutual_information, limit)
            row("  + KL(q(z) || p(z))", parts.marginal_kl)
        for name, units in self.active_units.items():
            width = f"of {len(self.kl_per_dim[name])}" if name in self.kl_per_dim else ""
            rows.append([f"active units of {name}", str(units), width])
        if self.khat is not None:
            many = self.khat.numel() > 1
            share = f"{100 * (self.khat_above or 0):.0f} % above {GOOD}"
            name, note = ("k-hat, median", share) if many else ("k-hat", f"limit {GOOD}")
            rows.append([name, f"{float(self.khat.median()):.2f}", note])
        elif not self.exact:
            row("k-hat", Estimate.none(self.khat_because))
        return Table(["", f"{self.n:,} data" if self.n else "", ""], rows, left=(0, 2))


def evaluate(
    run: Run | Any,
    *data: Any,
    particles: int = 1_000,
    seed: int = 0,
    rows: int = ROWS,
    surgery: int = 1_000,
    ais: bool | int = False,
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
        ais: bound log p(x) from both sides too, by annealed chains (`inference.judging.annealing`)
            of the first 100 independent rows, or of all data jointly; a number is how many
            temperatures they pass, True finds it.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: K < 1, or NaN in the data; `ais` of a guide that draws a discrete latent.

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
    axis, label = data_plate(two, pair.rows), label_of(observed, told)
    plate = next((p.name for p in two.plates if p.dim == axis), None)
    parts = sample(
        pair, particles, partial(_per_block, plate=plate), seed=seed, by_rows=True, most=rows
    )
    log_w, averages = _averaged(parts)
    blocks = log_w.shape[1]
    elbo, log_px = measures.elbo(log_w), measures.evidence(log_w)
    khat = measures.pareto_khat(log_w)
    divergence = {n: _estimate(*of, particles) for n, of in averages["divergence"].items()}
    reconstruction = divergence.pop("reconstruction")
    kl = {name.removeprefix("kl:"): e for name, e in divergence.items()}
    exact = not any(t.is_latent for t in two.model.values())
    exact &= all(t.observed for t in two.guide.values())
    names = [p.name for p in two.plates]
    inside = any(p.scale != 1 and p.name not in names for _, t in two.terms() for p in t.plates)
    if because := missing_density(two):
        elbo = log_px = khat = Estimate.none(because)
        kl = dict.fromkeys(kl, elbo)
    elif inside:  # the exponential of weights whose plate is subsampled is biased
        log_px = khat = Estimate.none("a subsampled plate lies inside the weights")
    elif exact:
        khat = Estimate.none(f"there is no latent, and {label} is exact")
    elif (same := missing_spread(two)) and float((log_w - log_w[:1]).abs().max()) < EQUAL:
        log_px = khat = Estimate.none(same)
    per_block, gap = measures.log_evidence(log_w), log_px - elbo
    if gap and blocks > 1:  # else the errors of its two numbers are taken as independent
        gap = Estimate.of(per_block - log_w.mean(0))
    operated = None
    if plate is not None and surgery > 1 and not because:
        some = pair.take(slice(surgery))
        operated = next(sample(some, 1, partial(operate, rows=rows), seed=seed))
    active = {
        name: measures.active_variance(mean, variance, particles) > measures.ACTIVE
        for name, (mean, variance) in averages["posterior"].items()
        if particles > 1 and len(mean) > 1
    }
    per_dim = {n: mean.mean(0) for n, (mean, _) in averages["divergence_per_dim"].items()}
    per = "datum" if plate is not None and len(names) == 1 else f"element of {' × '.join(names)}"
    numbers = sum(v.numel() for v in observed.values()) / blocks or 1
    between = None
    if ais is not False:
        few = pair.take(slice(AIS_ROWS)) if plate is not None else pair
        count = None if ais is True else ais
        between = annealed_at(few, chains=CHAINS, temperatures=count, seed=seed)
    mc_se = float(measures.evidence_error(log_w).square().sum().sqrt()) / blocks
    return Evaluation(
        estimates={
            "elbo": elbo, "reconstruction": reconstruction, "log_px": log_px, "gap": gap,
            "bits_per_dim": measures.bits_per_dim(log_px, numbers),
        },
        kl_estimates=kl,
        particles=particles,
        n=pair.rows,
        unit=f"nats per {per}" if names else "nats",
        label=label,
        exact=exact,
        log_px_mc_se=mc_se if particles > 1 else None,
        active_units={n: int(of.sum()) for n, of in active.items()},
        surgery=operated,
        kl_per_dim=per_dim if plate is not None else {},
        khat=None if isinstance(khat, Estimate) else khat,
        khat_because=khat.because if isinstance(khat, Estimate) else "",
        log_px_per_datum=per_block if log_px else None,
        ais=between,
    )  # fmt: skip


def _per_block(chunk: Chunk, plate: str | None) -> tuple[int, Groups]:
    """The first row, and by group and name what the chunk says of each block: (k, b, ...)."""
    tree = named_arrays(chunk, GROUPS)
    shared = tree["sample_stats"]["log_weight"].dims
    order = sorted(shared, key=lambda d: d != plate)  # the rows first, so that parts can be joined

    def blocks(v: Variable) -> Tensor:  # (k, b, everything else)
        axes = [1 + v.dims.index(d) for d in order]
        moved = v.array.movedim(axes, list(range(1, 1 + len(axes))))
        size = math.prod(moved.shape[1 : 1 + len(axes)])
        return moved.reshape(len(moved), size, -1)

    def is_local(name: str, v: Variable) -> bool:
        inside = plate is not None and set(order) <= set(v.dims) and v.array.is_floating_point()
        term = chunk.weights.model.get(name)  # None of what was summed out
        return inside and term is not None and term.is_latent

    return chunk.rows.start, {
        "sample_stats": {"log_weight": blocks(tree["sample_stats"]["log_weight"])[..., 0]},
        "divergence": {n: blocks(v)[..., 0] for n, v in tree["divergence"].items()},
        "divergence_per_dim": {n: v.array for n, v in tree["divergence_per_dim"].items()},
        "posterior": {
            n: blocks(v).double() for n, v in tree["posterior"].items() if is_local(n, v)
        },
    }


def _averaged(parts: Iterable[tuple[int, Groups]]) -> tuple[Tensor, Averages]:
    """Log weights of all draws and blocks (K, B); means and variances over draws: (B, ...)."""
    weights: dict[int, list[Tensor]] = {}
    moments: dict[str, dict[str, dict[int, measures.Moments]]] = {}
    for row, groups in parts:
        log_weight = groups.pop("sample_stats")["log_weight"]
        weights.setdefault(row, []).append(log_weight)
        for group, named in groups.items():
            found = moments.setdefault(group, {})
            for name, v in named.items():
                of = found.setdefault(name, {}).setdefault(row, measures.Moments())
                of.add(v.expand(len(log_weight), *v.shape[1:]))

    def joined(by_row: dict[int, measures.Moments]) -> tuple[Tensor, Tensor]:
        mean, variance = zip(*((m.mean, m.variance) for m in by_row.values()))
        return torch.cat(mean), torch.cat(variance)

    averages = {g: {n: joined(m) for n, m in named.items()} for g, named in moments.items()}
    return torch.cat([torch.cat(w) for w in weights.values()], 1), averages


def _estimate(mean: Tensor, variance: Tensor, draws: int) -> Estimate:
    """The mean over blocks with its error over them, or of one block with that over its draws."""
    found = Estimate.of(mean)
    if found and len(mean) == 1 and draws > 1:
        return Estimate(found.value, float((variance / draws).sqrt()))
    return found
