"""What a fitted critic says of two samples: divergences, calibration, a figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..estimate import Estimate
from .divergences import LOG_2, divergence


class Calibration(NamedTuple):
    """Reliability of the critic's probability that a point comes from P, a bin each.

    predicted, observed: mean probability and share of P (each sample counts one half in all), `se`
    its standard error; `error`: the mean |observed − predicted| over all points.
    """

    predicted: Tensor
    observed: Tensor
    se: Tensor
    error: float


@dataclass
class DensityRatio:
    """A critic fitted to samples of P and Q, and what held-out samples say of it.

    Attributes:
        critic: (..., D) -> (...), its output is log p/q in nats.
        log_p, log_q: its values at samples of P and of Q that neither trained nor chose it.
        history: `step` and `valid`, the loss −JS at the choosing points, nats.
        kept: the step whose weights were kept (0: the linear and quadratic terms alone).
        seed, seconds, interrupted: how it came about.
    """

    critic: nn.Module
    log_p: Tensor
    log_q: Tensor
    history: dict[str, list[float]]
    kept: int
    seed: int
    seconds: float
    interrupted: bool = field(default=False)

    @torch.no_grad()
    def log_ratio(self, x: Tensor) -> Tensor:
        """log p(x)/q(x), nats: (..., D) -> (...)."""
        return self.critic(x)

    def divergence(self, name: str = "js") -> Estimate:
        """The variational bound on D_f(P || Q) by held-out samples (`DIVERGENCES`).

        Its expectation is below the divergence; the standard error is that of the two means and
        does not know how far the critic is from the log ratio.
        """
        row = divergence(name)
        t, c = row.activation(self.log_p).double(), row.penalty(self.log_q).double()
        se = (t.var() / len(t) + c.var() / len(c)).sqrt()
        return Estimate(float(t.mean() - c.mean()), float(se))

    @property
    def js_divergence(self) -> Estimate:
        """The Jensen-Shannon divergence, between 0 and log 2 nats (a lower bound)."""
        return self.divergence("js")

    @property
    def kl(self) -> Estimate:
        """KL(P || Q) = E_P[ℓ] over held-out samples of P, nats. Not a bound."""
        return Estimate.of(self.log_p.double())

    @property
    def objective(self) -> Estimate:
        """E_P[log D] + E_Q[log(1 − D)] = 2 JS − log 4, D = sigmoid(ℓ): −log 4 where P = Q.

        Source: Goodfellow et al. 2014 (arXiv:1406.2661), theorem 1.
        """
        js = self.js_divergence
        return Estimate(2 * js.value - 2 * LOG_2, 2 * js.se)

    def calibration(self, bins: int = 10) -> Calibration:
        """Reliability of D(x) = sigmoid(ℓ(x)) in bins of equal numbers of held-out points."""
        n_p, n_q = len(self.log_p), len(self.log_q)
        d = torch.cat([self.log_p, self.log_q]).sigmoid().double().cpu()
        y = torch.cat([torch.ones(n_p), torch.zeros(n_q)]).to(d)
        w = torch.where(y > 0, 0.5 / n_p, 0.5 / n_q).to(d)
        rows, error = [], 0.0
        for i in d.argsort().chunk(bins):
            share = w[i] / w[i].sum()
            predicted, observed = share @ d[i], share @ y[i]
            rows.append(
                torch.stack([predicted, observed, ((share * (y[i] - observed)) ** 2).sum().sqrt()])
            )
            error += float(w[i].sum() * (observed - predicted).abs())
        predicted, observed, se = torch.stack(rows, 1)
        return Calibration(predicted, observed, se, error)

    def plot(self) -> Figure:
        """Held-out log ratios under P and under Q, and the reliability of the critic."""
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        log_p, log_q = self.log_p.cpu(), self.log_q.cpu()
        both = torch.cat([log_p, log_q])
        low, high = (float(v) for v in both.quantile(torch.tensor([0.002, 0.998])))
        for name, values in (("P", log_p), ("Q", log_q)):
            left.hist(
                values.clamp(low, high),
                bins=60,
                range=(low, high),
                density=True,
                alpha=0.6,
                label=name,
            )
        left.set(xlabel="log p/q (nats)", ylabel="density of held-out points")
        left.set_title(f"Jensen-Shannon divergence {self.js_divergence}")
        left.legend()
        reliability = self.calibration()
        right.plot([0, 1], [0, 1], color="grey", lw=1)
        right.errorbar(
            reliability.predicted, reliability.observed, 2 * reliability.se, fmt="o", ms=4
        )
        right.set(xlabel="critic's probability of P", ylabel="share of P (2 s.e.)")
        right.set_title(f"calibration error {reliability.error:.3f}")
        return figure
