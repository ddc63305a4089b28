"""A comparison of estimators, on the page of the fit whose pair they were measured on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .page import embedded, parts, template
from .theme import DARK, LIGHT, saved, themed

if TYPE_CHECKING:
    from inference.judging.comparison import Comparison


def include_comparison(found: Comparison, folder: str | Path, about: str = "") -> Path:
    """Put a comparison on the page of a fit, in place of one that stood there.

    Writes `comparison.nc`, `comparison.csv` and `figures/comparison.png` beside the page too.

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
    before, _, after = parts(folder, "comparison")
    images = []
    for theme in (LIGHT, DARK):
        with themed(theme):
            images.append(saved(found.plot()))
    section = template("comparison").render(
        found=found, about=about, table=found.table(), below=" ".join(found.footnotes()),
        light=embedded(images[0]), dark=embedded(images[1]),
    )  # fmt: skip
    found.to_nc(folder / "comparison.nc")
    found.to_csv(folder / "comparison.csv")
    (folder / "figures" / "comparison.png").write_bytes(images[0])
    page = folder / "report.html"
    page.write_text(f"{before}\n{section}\n{after}", encoding="utf-8")
    return page
