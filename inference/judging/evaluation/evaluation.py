"""The result of `evaluate`: bounds, their parts, and how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ...draws.psis import GOOD
from ...estimate import Estimate
from ...results.result import Result
from ...results.table import Table
from .surgery import Surgery

DIGITS = 3  # decimals of nats


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
        known = {k: e for k, e in named.items() if e}
        table: dict[str, Any] = {}
        for name, e in known.items():
            table[name] = e.value
            if e.se is not None:
                table[f"{name}_se"] = e.se
        if "log_px" in known and self.log_px_mc_se is not None:
            table["log_px_mc_se"] = self.log_px_mc_se
        if self.surgery is not None:
            table |= self.surgery.to_dict()
        table |= {f"active_units_{k}": v for k, v in self.active_units.items()}
        if self.khat is not None:
            table |= {"khat_median": float(self.khat.median()), "khat_above_0.7": self.khat_above}
        table |= {"particles": self.particles, "n": self.n, "unit": self.unit, "label": self.label}
        unknown = {k: e.because for k, e in named.items() if not e}
        if self.khat is None:
            unknown["khat"] = self.khat_because
        return {**table, "unknown": unknown}

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
        if e["bits_per_dim"]:
            row("  bits per dimension", e["bits_per_dim"], digits=4)
        if self.surgery is not None:
            rows += self.surgery.table().rows
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
