"""The result of `posterior`: draws, a verdict, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import xarray as xr

from ..estimate import Estimate
from ..judging.diagnosis import Diagnosis, level_of
from ..judging.referee.verdict import Referee
from ..results.result import Result
from ..results.table import Table
from .paths import Paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Rung:
    """One guide on the way up.

    Attributes:
        guide: its kind.
        steps: of its fit; 0 for the path's own Gaussian.
        elbo: in nats.
        khat: of its weights, None where it was not judged.
        seconds: of the fit and the verdict.
        said: the verdict, or why there is none.
    """

    guide: str
    steps: int
    elbo: Estimate
    khat: float | None
    seconds: float
    said: str


@dataclass(repr=False)
class Posterior(Result):
    """Draws from a posterior, whether they can be trusted, and what it took.

    Attributes:
        verdict: "trust", "trust the corrected posterior" (`datatree` holds the corrected draws), or
            "do not trust".
        reasons: why it is not to be trusted, in sentences; empty where it is.
        datatree: the draws, importance-corrected where that could be relied on; as `to_datatree`.
        evidence: log p(x), nats, or why there is no estimate.
        rungs: the guides tried, in order; the last is the one that `datatree` comes from, unless
            none is trusted: then it comes from the one of the highest ELBO.
        diagnosis: of that guide; None where the budget left no time for one.
        run: its fit, or the pair (model, guide) of a Gaussian that was not fitted; for `diagnose`,
            `to_datatree`, `predict`.
        paths: where the quasi-Newton paths led.
        seconds: in all.
        referee: the chains of `referee="nuts"`; what they said is in the reasons or the notes.
    """

    verdict: str
    reasons: list[str]
    datatree: xr.DataTree = field(repr=False)
    evidence: Estimate
    rungs: list[Rung]
    diagnosis: Diagnosis | None = field(repr=False)
    run: Any = field(repr=False)
    paths: Paths = field(repr=False)
    seconds: float
    notes: list[str] = field(default_factory=list)
    referee: Referee | None = field(repr=False, default=None)

    file_name: ClassVar[str] = "posterior"

    @property
    def trust(self) -> bool:
        """True where `datatree` can be taken for draws from the posterior."""
        return self.verdict != "do not trust"

    def lines_above(self) -> list[str]:
        """The verdict, its reasons, and the evidence."""
        head = "Trust this posterior." if self.trust else "Do not trust this posterior, because"
        how = self.diagnosis and self.diagnosis.correction
        if self.trust and how:
            head = f"Trust this posterior (draws corrected by {how})."
        return [head, *(f"  - {r}" for r in self.reasons), f"log evidence {self.evidence}", ""]

    def table(self) -> Table:
        """A guide to a line."""
        rows = [
            [r.guide, str(r.steps), r.elbo.number(2) if r.elbo else "–",
             "–" if r.khat is None else f"{r.khat:.2f}", f"{r.seconds:.1f}", r.said]
            for r in self.rungs
        ]  # fmt: skip
        head = ("guide", "steps", "ELBO (nats)", "k-hat", "seconds", "")
        return Table(head, rows, left=(0, 5))

    def lines_below(self) -> list[str]:
        """Notes, and the time."""
        return [*self.notes, f"{self.seconds:.1f} s in all."]

    def to_dict(self) -> dict[str, Any]:
        """Verdict, evidence and rungs as plain Python."""
        return {
            "verdict": self.verdict, "trust": self.trust, "reasons": self.reasons,
            "evidence": self.evidence, "rungs": self.rungs, "notes": self.notes,
            "seconds": self.seconds,
            "diagnosis": self.diagnosis and self.diagnosis.to_dict(),
        }  # fmt: skip

    @property
    def level(self) -> str:
        """Of the verdict."""
        return level_of(self.verdict)

    def picture(self) -> Figure | None:
        """That of the diagnosis."""
        return self.diagnosis.picture() if self.diagnosis else None

    def figures(self) -> dict[str, Figure]:
        """Those of the diagnosis."""
        return self.diagnosis.figures() if self.diagnosis else {}
