"""The diagnosis of a fit, on the page of the fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .page import embedded, parts, template
from .theme import DARK, LIGHT, Theme, saved, themed

if TYPE_CHECKING:
    from inference.judging.diagnosis import Diagnosis

LEVELS = {"trust": "good", "trust the corrected posterior": "fair", "do not trust": "bad"}
MARKS = {True: "✓", False: "✗", None: ""}
CAPTIONS = {
    "weights": ("Importance weights", "k-hat above the dashed line: a tail too light to correct."),
    "marginals": ("Guide and corrected posterior", "The coordinates that differ most."),
    "data": ("Each observation", "k-hat of its weights, and its log predictive density."),
    "loo-pit": ("Left-out data", "Inside the band: predictive distributions of the right spread."),
    "predictive": ("Posterior predictive", "The data among replications of them."),
    "loss": ("Loss", "Of every step; flat where the fit has converged."),
    "gaps": ("What the guide loses", "By its family (approximation) and network (amortisation)."),
    "latents": ("Latents in use", "Below the dashed line a dimension says nothing about the data."),
    "worst-data": ("Least likely data", "Above what the model predicts for them."),
}  # fmt: skip


@dataclass(frozen=True)
class _Shown:
    name: str
    title: str
    caption: str
    light: str
    dark: str
    wide: bool


def include_diagnosis(diagnosis: Diagnosis, folder: str | Path, about: str = "") -> Path:
    """Put a diagnosis on the page of a fit, in place of one that stood there.

    Writes `diagnosis.json` and `figures/diagnosis-*.png` beside the page too.

    Args:
        diagnosis: what `diagnose` returned.
        folder: that `write` made.
        about: what was looked at, in words.

    Returns:
        The path of the page.

    Raises:
        ValueError: the folder has no page, or a damaged one.
    """
    folder = Path(folder)
    before, _, after = parts(folder, "diagnosis")
    light, dark = _drawn(diagnosis, LIGHT), _drawn(diagnosis, DARK)
    shown = [
        _Shown(name, *CAPTIONS[name], embedded(image), embedded(dark[name][0]), wide)
        for name, (image, wide) in light.items()
    ]
    section = template("diagnosis").render(
        diagnosis=diagnosis, about=about, level=LEVELS[diagnosis.verdict], pictures=shown,
        marks=MARKS,
    )  # fmt: skip
    diagnosis.to_json(folder / "diagnosis.json")
    for name, (image, _) in light.items():
        (folder / "figures" / f"diagnosis-{name}.png").write_bytes(image)
    page = folder / "report.html"
    page.write_text(f"{before}\n{section}\n{after}", encoding="utf-8")
    return page


def _drawn(diagnosis: Diagnosis, theme: Theme) -> dict[str, tuple[bytes, bool]]:
    """Figure -> PNG, and whether it asks for the full width of the page."""
    with themed(theme):
        return {n: (saved(f), f.get_figwidth() > 7) for n, f in diagnosis.figures().items()}
