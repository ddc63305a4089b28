"""A density ratio from samples: divergences, calibration, a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..estimate import Estimate
from ..training.game import AVERAGE, named, under
from ..training.state import Training
from .divergences import LOG_2, divergence


class Reliability(NamedTuple):
    """Reliability of the critic's probability that a point comes from P, a bin each.

    predicted, observed: mean probability and share of P (each sample counts one half in all), `se`
    its standard error; `error`: the mean |observed − predicted| over all points.
    """

    predicted: Tensor
    observed: Tensor
    se: Tensor
    error: float


class CrossFitted(nn.Module):
    """The weighted sum of several critics' log ratios, averaged over folds: (..., D) -> (...).

    Args:
        critics: for each fold, its critics; `weights`: one for each of these, and last a constant.
    """

    def __init__(self, critics: Sequence[Sequence[nn.Module]], weights: Tensor):
        super().__init__()
        self.folds: Any = nn.ModuleList(nn.ModuleList(c) for c in critics)
        self.register_buffer("weights", weights)

    weights: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """log p(x)/q(x), nats."""
        w = self.weights.to(x)
        ell = [torch.stack([c(x) for c in critics], -1) @ w[:-1] for critics in self.folds]
        return torch.stack(ell).mean(0) + w[-1]


@dataclass(kw_only=True, repr=False)
class DensityRatio(Training):
    """Critics fitted to samples of P and Q, and every point as the critic sees it that has not.

    `Training` says how it went; `valid` in its history is the loss −JS at the choosing points.

    Attributes:
        critic: (..., D) -> (...), its output is log p/q in nats: the mean of all folds' critics.
        log_p, log_q: log ratios at the samples of P (N_p,) and of Q (N_q,), each by the critic of
            its own fold, `fold_p` and `fold_q`, which was not fitted to it.
        seen_p, seen_q: the same by a critic that was, trained to the end.
        weights: of the start, of the trained critic, and a constant.
    """

    critic: nn.Module = None  # type: ignore[assignment]
    log_p: Tensor = None  # type: ignore[assignment]
    log_q: Tensor = None  # type: ignore[assignment]
    fold_p: Tensor | None = None
    fold_q: Tensor | None = None
    seen_p: Tensor | None = None
    seen_q: Tensor | None = None
    weights: Tensor | None = None

    def kept(self) -> dict[str, Tensor]:
        """The running means of all weights, which are judged instead of these."""
        return named(AVERAGE, under(AVERAGE, self.variables.buffers))

    @torch.no_grad()
    def log_ratio(self, x: Tensor) -> Tensor:
        """log p(x)/q(x), nats: (..., D) -> (...)."""
        return self.critic(x)

    def divergence(self, name: str = "js") -> Estimate:
        """The variational bound on D_f(P || Q) (`DIVERGENCES`), and its standard error.

        Its expectation is below the divergence. The error has two parts: that of the means over
        points, or of the folds' means where these differ by more; and that of the critics, half of
        what they gain at points they were trained on: the divergence is expected between the two.
        """
        row = divergence(name)
        return self._estimate(row.activation, row.penalty)

    def _estimate(self, of_p: Callable, of_q: Callable | None = None) -> Estimate:
        """E_P[of_p(ℓ)] − E_Q[of_q(ℓ)]."""
        sides = [(of_p, 1.0, self.log_p, self.seen_p, self.fold_p)]
        if of_q is not None:
            sides.append((of_q, -1.0, self.log_q, self.seen_q, self.fold_q))
        value, variance, seen, folds = torch.zeros(4, dtype=torch.float64).unbind()
        for function, sign, unseen_ell, seen_ell, fold in sides:
            values = sign * function(unseen_ell).double()
            value = value + values.mean()
            variance = variance + values.var() / len(values)
            if fold is not None and seen_ell is not None:
                seen = seen + (sign * function(seen_ell).double()).mean()
                means = [values[fold == k].mean() for k in range(int(fold.max()) + 1)]
                folds = folds + torch.stack(means)
        if folds.dim():
            between = folds.var() / len(folds)
            variance = torch.maximum(variance, between) + ((seen - value) / 2) ** 2
        return Estimate(float(value), float(variance) ** 0.5)

    @property
    def js_divergence(self) -> Estimate:
        """The Jensen-Shannon divergence, between 0 and log 2 nats (a lower bound)."""
        return self.divergence("js")

    @property
    def kl(self) -> Estimate:
        """KL(P || Q) = E_P[ℓ] over held-out samples of P, nats. Not a bound."""
        return self._estimate(lambda ell: ell)

    @property
    def objective(self) -> Estimate:
        """E_P[log D] + E_Q[log(1 − D)] = 2 JS − log 4, D = sigmoid(ℓ): −log 4 where P = Q.

        Source: Goodfellow et al. 2014 (arXiv:1406.2661), theorem 1.
        """
        js, se = self.js_divergence
        return (
            self.js_divergence if js is None or se is None else Estimate(2 * (js - LOG_2), 2 * se)
        )

    def calibration(self, bins: int = 10) -> Reliability:
        """Reliability of D(x) = sigmoid(ℓ(x)) in bins of equal numbers of held-out points."""
        n_p, n_q = len(self.log_p), len(self.log_q)
        d = torch.cat([self.log_p, self.log_q]).sigmoid().double().cpu()
        y = torch.cat([torch.ones(n_p), torch.zeros(n_q)]).to(d)
        w = torch.where(y > 0, 0.5 / n_p, 0.5 / n_q).to(d)
        rows, error = [], 0.0
        for i in d.argsort().chunk(bins):
            share = w[i] / w[i].sum()
            predicted, observed = share @ d[i], share @ y[i]
            se = (share * (y[i] - observed)).square().sum().sqrt()
            rows.append(torch.stack([predicted, observed, se]))
            error += float(w[i].sum() * (observed - predicted).abs())
        predicted, observed, se = torch.stack(rows, 1)
        return Reliability(predicted, observed, se, error)

    def plot(self, names: tuple[str, str] = ("P", "Q")) -> Figure:
        """Held-out log ratios under both samples, by their names, and the critic's reliability."""
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        log_p, log_q = self.log_p.cpu(), self.log_q.cpu()
        both = torch.cat([log_p, log_q])
        low, high = (float(v) for v in both.quantile(both.new_tensor([0.002, 0.998])))
        for name, values in zip(names, (log_p, log_q)):
            shown = values.clamp(low, high)
            left.hist(shown, bins=60, range=(low, high), density=True, alpha=0.6, label=name)
        ratio = "p/q" if names == ("P", "Q") else f"density ratio, {names[0]} / {names[1]}"
        left.set(xlabel=f"log {ratio} (nats)", ylabel="density of held-out points")
        left.set_title(f"Jensen-Shannon divergence {self.js_divergence}")
        left.legend()
        bins = self.calibration()
        right.plot([0, 1], [0, 1], color="grey", lw=1)
        right.errorbar(bins.predicted, bins.observed, 2 * bins.se, fmt="o", ms=4)
        right.set(
            xlabel=f"critic's probability of {names[0]}", ylabel=f"share of {names[0]} (2 s.e.)"
        )
        right.set_title(f"calibration error {bins.error:.3f}")
        return figure
