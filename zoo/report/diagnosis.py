"""The diagnosis of a fit, on the page of the fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inference.training.folders import write_whole

from .page import make, put, require_page
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
    require_page(folder)
    light, dark = _drawn(diagnosis, LIGHT), _drawn(diagnosis, DARK)
    pictures = [
        {"name": name, "title": CAPTIONS[name][0], "caption": CAPTIONS[name][1], "wide": wide}
        for name, (_, wide) in light.items()
    ]
    said = {
        "about": about, "level": LEVELS[diagnosis.verdict], "headline": diagnosis.headline,
        "reasons": list(diagnosis.reasons),
        "findings": [
            {"mark": MARKS[f.good], "name": f.name, "what": f.what} for f in diagnosis.findings
        ],
    }  # fmt: skip
    write_whole(folder / "diagnosis.json", diagnosis.to_json().encode())
    put(folder, "diagnosis", said, pictures, {n: (light[n][0], dark[n][0]) for n in light})
    return make(folder)


def _drawn(diagnosis: Diagnosis, theme: Theme) -> dict[str, tuple[bytes, bool]]:
    """Figure -> PNG, and whether it asks for the full width of the page."""
    with themed(theme):
        return {n: (saved(f), f.get_figwidth() > 7) for n, f in diagnosis.figures().items()}
