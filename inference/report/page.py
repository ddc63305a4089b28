"""The page of a fit: one HTML file that needs nothing else, and the figures beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from .draw import Picture
from .metrics import Metric, as_json
from .theme import DARK, LIGHT, png


@dataclass(frozen=True)
class Report:
    """Everything a page says.

    Attributes:
        title, subtitle: what was fitted, and to what.
        command: what made it; shown so that it can be copied.
        metrics: the first few are the headline.
        pictures: in their order.
        facts: heading -> name -> value.
        notes: sentences that a reader must not miss (interrupted, eager because ...).
    """

    title: str
    subtitle: str = ""
    command: str = ""
    metrics: Sequence[Metric] = ()
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    headline: int = 4


def write(report: Report, folder: str | Path) -> Path:
    """Write `figures/*.png`, `metrics.json` and `report.html` into an existing folder.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    (folder / "figures").mkdir(exist_ok=True)
    drawn = {p.name: (png(p.drawing, LIGHT), png(p.drawing, DARK)) for p in report.pictures}
    for name, (light, _) in drawn.items():
        (folder / "figures" / f"{name}.png").write_bytes(light)
    numbers = json.dumps(as_json(list(report.metrics)), indent=2)
    (folder / "metrics.json").write_text(numbers + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(html(report, drawn), encoding="utf-8")
    return page


def html(report: Report, drawn: Mapping[str, tuple[bytes, bytes]]) -> str:
    """The page as text.

    Args:
        report: what it says.
        drawn: picture -> its PNG in light and in dark colours.
    """
    embedded = {
        name: tuple("data:image/png;base64," + base64.b64encode(p).decode() for p in both)
        for name, both in drawn.items()
    }
    return _template().render(
        report=report, images=embedded, headline=list(report.metrics)[: report.headline]
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("inference.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")
