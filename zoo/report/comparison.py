"""A comparison of estimators, on the page of the fit whose pair they were measured on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from inference.training.folders import write_whole

from .page import make, put, require_page
from .theme import DARK, LIGHT, saved, themed

if TYPE_CHECKING:
    from inference.judging.comparison import Comparison

CAPTION = "Against the particles K, per millisecond, and for each module of the pair."


def include_comparison(found: Comparison, folder: str | Path, about: str = "") -> Path:
    """Put a comparison on the page of a fit, in place of one that stood there.

    Writes `comparison.nc`, `.csv` and `figures/comparison-figure.png` beside the page too.

    Args:
        found: what `compare` returned.
        folder: that `write` made.
        about: what was measured on, in words.

    Returns:
        The path of the page.

    Raises:
        ValueError: the folder has no page, or a damaged one.
    """
    folder = Path(folder)
    require_page(folder)
    images = []
    for theme in (LIGHT, DARK):
        with themed(theme):
            images.append(saved(found.plot()))
    table = found.table()
    said = {
        "about": about, "recommendation": found.recommendation, "because": found.because,
        "head": list(table.head), "rows": [[str(c) for c in row] for row in table.rows],
        "below": " ".join(found.footnotes()),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as elsewhere:
        for write, name in ((found.to_nc, "comparison.nc"), (found.to_csv, "comparison.csv")):
            write(Path(elsewhere) / name)
            write_whole(folder / name, (Path(elsewhere) / name).read_bytes())
    picture = {
        "name": "figure",
        "title": "Signal, noise and cost",
        "wide": True,
        "caption": CAPTION,
    }
    put(folder, "comparison", said, [picture], {"figure": (images[0], images[1])})
    return make(folder)
