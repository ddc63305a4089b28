"""What is known of a pair on data it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ...draws.psis import GOOD
from .surgery import Surgery


@dataclass(repr=False)
class Evaluation:
    """Averages over data of a pair's bounds, all in `unit` (nats per datum, or nats in all).

    Attributes:
        elbo, elbo_se: E_q[log p(x, z) - log q(z | x)], its standard error over data and draws.
        reconstruction, reconstruction_se: E_q[log p(x | z)], with its standard error.
        kl, kl_se: latent -> E_q[log q(z) - log p(z)], with its standard error; "latents" for all
            together where the guide draws several at once.
        kl_per_dim: latent -> (L,), where prior and guide are diagonal normals.
        log_px: log 1/K Σ_k p(x, z_k) / q(z_k | x), a lower bound that rises to log p(x) with K;
            NaN (as all that follows from it) where a plate inside the weights is subsampled, which
            makes a logarithm of their mean meaningless.
        log_px_se: standard error of its mean over data (which are taken as a sample).
        log_px_mc_se: the part of it that comes from K being finite.
        gap, gap_se: log p(x) - ELBO = KL(q(z | x) || p(z | x)), estimated from below as log_px is;
            its standard error over data.
        surgery: kl parted into the latents' mutual information with the data and the divergence of
            the averaged guide from the prior; None where a latent lies outside the data plate.
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
    gap: float = math.nan
    gap_se: float = math.nan
    surgery: Surgery | None = None

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
            **({"gap": self.gap, "gap_se": self.gap_se} if self.kl else {}),
            **(
                {}
                if self.surgery is None
                else {
                    "mutual_information": self.surgery.mutual_information,
                    "mutual_information_se": self.surgery.mutual_information_se,
                    "marginal_kl": self.surgery.marginal_kl,
                    "marginal_kl_se": self.surgery.marginal_kl_se,
                    "surgery_n": self.surgery.n,
                }
            ),
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
            f"minus KL to the prior {kl or 'none'}",
            *(
                []
                if math.isnan(self.gap) or not self.kl
                else [
                    f"  log p(x) {self.log_px:.3f}, minus KL to the posterior "
                    f"{self.gap:.3f} ± {self.gap_se:.3f}"
                ]
            ),
            *([] if self.surgery is None else [f"  {self.surgery}"]),
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

    __repr__ = __str__  # what a notebook shows
