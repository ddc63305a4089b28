"""A leaderboard: models by held-out log density, each against the best, paired over data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from inference.draws.measures import bits_per_dim
from inference.estimate import Estimate
from inference.results.result import Result
from inference.results.table import Table

from .draw import Drawing, new_figure
from .theme import ACCENT, LIGHT, WIDTH, Theme, themed

PARTICLES = 200  # draws for each test datum


@dataclass
class Row:
    """One model's place.

    Attributes:
        name: of the model.
        values: log p(x) of each test datum in nats, or a bound on it, (N,); None where it failed.
        kind: "exact", or "≥", a lower bound by importance weights or the ELBO.
        valid: mean on validation, by which options were chosen, in nats.
        options: what was chosen.
        gap: how far an upper bound on log p(x), by annealed chains, is above the value told, nats
            per datum; 0 where that is exact.
        told_apart: the accuracy with which a classifier tells draws from held-out data.
        code, code_words: how well latents tell labels (an accuracy), or how many are in use.
        parameters, steps, seconds: numbers of them; seconds are of all that was tried.
        why: it failed, in a sentence.
    """

    name: str
    values: Tensor | None = field(default=None, repr=False)
    kind: str = "exact"
    valid: float = -math.inf
    options: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    steps: int = 0
    seconds: float = 0.0
    why: str = ""
    gap: Estimate = field(default_factory=lambda: Estimate.none("not looked at"))
    told_apart: Estimate = field(default_factory=lambda: Estimate.none("not looked at"))
    code: Estimate = field(default_factory=lambda: Estimate.none("not looked at"))
    code_words: str = ""

    @property
    def mean(self) -> Estimate:
        """Nats per datum, with its standard error over the test data."""
        return Estimate.none(self.why) if self.values is None else Estimate.of(self.values)


@dataclass(repr=False)
class Leaderboard(Result):
    """Models in the order of their held-out log densities, each against the best, paired over data.

    Attributes:
        data: what they were fitted to, in words.
        dims: values in a datum.
        rows: the best first.
        baselines, flows: names of rows; where one of the latter does not beat one of the former,
            it is said.
        log_det: nats that standardising takes off log p(x); without them, it is as papers tell it
            (Papamakarios et al. 2017, arXiv:1705.07057, table 1; Durkan et al. 2019).
    """

    data: str
    dims: int
    rows: list[Row]
    baselines: tuple[str, ...] = ()
    flows: tuple[str, ...] = ()
    log_det: float = 0.0

    file_name: ClassVar[str] = "leaderboard"

    def behind(self, row: Row) -> Estimate:
        """Difference to the best, nats per datum, its error paired over data."""
        best = self.rows[0].values
        if row.values is None or best is None:
            return Estimate.none(row.why)
        return Estimate.of(best - row.values)

    def tied(self, row: Row) -> bool:
        """Tell whether the difference to the best is within error."""
        return row is self.rows[0] or self.within_error(self.rows[0], row)

    def within_error(self, a: Row, b: Row) -> bool:
        """Tell whether two rows differ by no more than two standard errors, paired over data.

        What is a lower bound may be as much higher as its gap, which is taken off the difference.
        """
        if a.values is None or b.values is None:
            return False
        apart = a.values - b.values
        value, se = Estimate.of(apart)
        if value is None:
            return False
        lower = a if value < 0 else b
        slack = lower.gap.value if lower.kind == "≥" else 0.0
        return abs(value) - max(slack or 0.0, 0.0) <= 2 * (se or 0.0)

    def like(self, row: Row) -> list[int]:
        """Places, from 1, of the other rows that it is within error of."""
        return [i for i, other in enumerate(self.rows, start=1)
                if other is not row and self.within_error(row, other)]  # fmt: skip

    def lines_above(self) -> list[str]:
        """The question and the data."""
        return [f"{self.data}. Held-out log p(x), nats per datum; higher is better."]

    def table(self) -> Table:
        """A model to a line."""
        head = ["", "model", "log p(x)", "", "at most", "behind the best", "within error of",
                "bits / dim", "told apart", "representation", "parameters", "steps", "seconds",
                "options chosen"]  # fmt: skip
        rows = [self._cells(i, r) for i, r in enumerate(self.rows, start=1)]
        return Table(head, rows, left=(1, 3, 6, 9, 13))

    def _cells(self, place: int, r: Row) -> list[str]:
        mean, gap = r.mean, self.behind(r)
        if not mean:
            return ["", r.name, "–", *[""] * 9, f"{r.seconds:.0f}", r.why]
        assert mean.value is not None
        most = "" if r.kind == "exact" else "?"
        if r.gap.value is not None and r.kind == "≥":
            most = f"{mean.value + r.gap.value:.2f} ± {r.gap.se or 0:.2f}"
        options = ", ".join(f"{k.replace('_', ' ')} {_written(v)}" for k, v in r.options.items())
        apart = f"{100 * r.told_apart.value:.0f} ± {100 * (r.told_apart.se or 0):.0f} %" \
            if r.told_apart.value is not None else "–"  # fmt: skip
        return [
            str(place), r.name, mean.number(2), r.kind, most,
            "best" if r is self.rows[0] else gap.number(2),
            ", ".join(map(str, self.like(r))) or "none",
            f"{bits_per_dim(mean, self.dims).value:.3f}", apart, self._code(r),
            f"{r.parameters:,}", f"{r.steps:,}" if r.steps else "", f"{r.seconds:.0f}", options,
        ]  # fmt: skip

    def _code(self, r: Row) -> str:
        if r.code.value is None:
            return "–"
        if r.code_words == "of labels":
            return f"{100 * r.code.value:.0f} ± {100 * (r.code.se or 0):.0f} % of labels"
        return f"{r.code.value:.0f} {r.code_words}"

    def lines_below(self) -> list[str]:
        """Sentences on the order: which differences are within error."""
        tied = [r.name for r in self.rows if self.tied(r)]
        lines = [
            f"{tied[0]} is best" + (
                f", and {', '.join(tied[1:])} within two standard errors of it, paired over data."
                if len(tied) > 1 else ", by more than two standard errors, paired over data."
            )
        ] if tied else []  # fmt: skip
        if any(r.kind == "≥" for r in self.rows):
            lines.append(
                f"≥: a lower bound on log p(x): importance weights (K = {PARTICLES}), or the ELBO. "
                "At most: an upper bound, by annealed chains there and back; the error is its own."
            )
        if any(r.told_apart for r in self.rows):
            lines.append("Told apart: the accuracy with which the best of three classifiers tells "
                         "draws from held-out data; 50 % is best.")  # fmt: skip
        if any(r.code for r in self.rows):
            lines.append("Representation: test accuracy of a linear classifier of labels on the "
                         "codes, or the dimensions of the code in use.")  # fmt: skip
        if self.log_det:
            lines.append(f"Papers tell nats of the standardised columns: add {-self.log_det:.2f} "
                         "to log p(x) for them.")  # fmt: skip
        known = [(r.name, r.values) for r in self.rows if r.values is not None]
        for flow, own in (k for k in known if k[0] in self.flows):
            for name, theirs in (k for k in known if k[0] in self.baselines):
                gap = Estimate.of(theirs - own)
                if gap.value is not None and gap.value > 0:
                    lines.append(f"{flow} does not beat {name}: {gap.number(2)} nats behind it.")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Every row as plain Python."""
        rows = []
        for r in self.rows:
            mean, gap = r.mean, self.behind(r)
            rows.append({
                "model": r.name, "log_px": mean.value, "log_px_se": mean.se, "kind": r.kind,
                "behind": gap.value, "behind_se": gap.se, "within_error": self.tied(r),
                "within_error_of": [self.rows[i - 1].name for i in self.like(r)],
                "log_px_standardised": None if mean.value is None else mean.value - self.log_det,
                "at_most": None if mean.value is None or r.gap.value is None
                else mean.value + r.gap.value,
                "gap": r.gap.value, "gap_se": r.gap.se,
                "bits_per_dim": bits_per_dim(mean, self.dims).value,
                "told_apart": r.told_apart.value, "told_apart_se": r.told_apart.se,
                "representation": r.code.value, "representation_of": r.code_words or None,
                "valid": r.valid, "parameters": r.parameters, "steps": r.steps,
                "seconds": r.seconds, "options": dict(r.options), "why": r.why or None,
            })  # fmt: skip
        return {"data": self.data, "dims": self.dims, "unit": "nats per datum", "rows": rows}

    def figures(self) -> dict[str, Figure]:
        """Figure of the differences to the best."""
        with themed(LIGHT):
            return {"behind": self.drawing()(LIGHT)}

    def drawing(self) -> Drawing:
        """Differences to the best, with two standard errors."""
        rows = [r for r in self.rows if r.values is not None]
        gaps = [self.behind(r) for r in rows]

        def draw(theme: Theme) -> Figure:
            figure = new_figure(WIDTH, 0.9 + 0.34 * len(rows))
            ax = figure.subplots()
            at = np.arange(len(rows))[::-1]
            value = np.array([-(g.value or 0.0) for g in gaps])
            error = np.array([2 * (g.se or 0.0) for g in gaps])
            colours = [ACCENT if self.tied(r) else theme.faint for r in rows]
            ax.errorbar(value, at, xerr=error, fmt="none", ecolor=theme.faint, lw=1.2)
            ax.scatter(value, at, c=colours, s=36, zorder=3)
            ax.axvline(0, color=theme.ink, lw=0.8)
            ax.set_yticks(at, [r.name for r in rows])
            ax.set_xlabel("nats per datum against the best, two standard errors")
            if len(value) > 3 and value.min() < 4 * np.median(value) - 1:
                ax.set_xscale("symlog", linthresh=max(1.0, -float(np.median(value))))
                ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}".replace("-", "−"))
            ax.grid(axis="y", visible=False)
            return figure

        return draw


def _written(value: Any) -> str:
    """An option as one would type it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(_written, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
