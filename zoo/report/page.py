"""The page of a fit: one HTML file that needs nothing else, and the figures beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from .draw import Picture
from .numbers import Metric, as_json
from .theme import DARK, LIGHT, png

SECTIONS = ("diagnosis", "comparison")  # that are put on a page later, each between two comments


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

    What was put on the page later (`SECTIONS`) stays on it.

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
    page, text = folder / "report.html", html(report, drawn)
    for section in SECTIONS:
        with suppress(ValueError):  # the first page, or in place of a damaged one
            start = f"<!-- {section} -->"
            text = text.replace(start + "\n", start + parts(folder, section)[1], 1)
    page.write_text(text, encoding="utf-8")
    return page


def html(report: Report, drawn: Mapping[str, tuple[bytes, bytes]]) -> str:
    """Return the page as text.

    Args:
        report: what it says.
        drawn: picture -> its PNG in light and in dark colours.
    """
    images = {name: tuple(map(embedded, both)) for name, both in drawn.items()}
    return template("page").render(
        report=report, images=images, headline=list(report.metrics)[: report.headline]
    )


def embedded(image: bytes) -> str:
    """Return a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def parts(folder: str | Path, section: str) -> tuple[str, str, str]:
    """Split the page in a folder: before one of `SECTIONS`, the section itself, and after it.

    Raises:
        ValueError: there is no page, or it has no place for the section.
    """
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    page = Path(folder) / "report.html"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if start not in text or end not in text:
        raise ValueError(
            f"{page} is {'damaged' if text else 'missing'}. Make it with `zoo report {folder}`."
        )
    before, rest = text.split(start, 1)
    inside, after = rest.split(end, 1)
    return before + start, inside, end + after


@cache
def template(name: str) -> Template:
    """`page`, or one of `SECTIONS`."""
    environment = Environment(
        loader=PackageLoader("zoo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.jinja")
