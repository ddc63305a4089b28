"""The page of a fit: one HTML file that needs nothing else, and the data it is made from.

`page/` in a run folder holds, for each part of the page (`report`, `diagnosis`, `comparison`), what
it says as JSON, and its figures in light and in dark. The page is made anew from these each time.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, UndefinedError

from inference.results.result import plain
from inference.results.table import Table
from inference.training.checkpoint import Fields
from inference.training.folders import read_whole, subfolder, write_whole

from .draw import Picture
from .numbers import Metric, as_json
from .theme import DARK, LIGHT, png, titled

SECTIONS = ("diagnosis", "comparison")  # that are put on a page later
NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")  # of a figure


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
        headline: how many metrics stand at the top.
        tables: heading -> table.
    """

    title: str
    subtitle: str = ""
    command: str = ""
    metrics: Sequence[Metric] = ()
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    headline: int = 4
    tables: Mapping[str, Table] = field(default_factory=dict)


def write(report: Report, folder: str | Path) -> Path:
    """Write `figures/*.png`, `metrics.json` and `report.html` into an existing folder.

    What was put on the page later (`SECTIONS`) stays on it.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    pictures = [
        {"name": p.name, "title": p.title, "caption": p.caption, "wide": p.wide}
        for p in report.pictures
    ]
    shown = [{**asdict(m), "value": None, "se": None, "number": m.number} for m in report.metrics]
    said = {
        "title": report.title, "subtitle": report.subtitle, "command": report.command,
        "notes": list(report.notes), "metrics": shown, "headline": report.headline,
        "facts": {h: {k: str(v) for k, v in f.items()} for h, f in report.facts.items()},
        "tables": [
            {"title": title, "head": list(t.head), "rows": [list(map(str, r)) for r in t.rows]}
            for title, t in report.tables.items()
        ],
    }  # fmt: skip
    drawn = {
        p.name: (png(drawing, LIGHT), png(drawing, DARK))
        for p in report.pictures
        for drawing in [titled(p.drawing, p.title)]
    }
    numbers = json.dumps(as_json(list(report.metrics)), indent=2)
    write_whole(folder / "metrics.json", f"{numbers}\n".encode())
    put(folder, "report", said, pictures, drawn)
    return make(folder)


def put(
    folder: Path, part: str, said: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]],
    drawn: Mapping[str, tuple[bytes, bytes]],
) -> None:  # fmt: skip
    """Write what a part of the page is made from.

    Args:
        folder: of the run.
        part: "report", or one of `SECTIONS`.
        said: what its template takes; `pictures`: name, title, caption and width of each figure.
        drawn: picture -> its PNG in light and in dark colours.
    """
    figures, data = subfolder(folder, "figures"), subfolder(folder, "page")
    before = "" if part == "report" else f"{part}-"
    for name, (light, dark) in drawn.items():
        write_whole(figures / f"{before}{name}.png", light)
        write_whole(data / f"{before}{name}-dark.png", dark)
    text = json.dumps(plain({**said, "pictures": list(pictures)}), indent=1)
    write_whole(data / f"{part}.json", text.encode())


def make(folder: Path) -> Path:
    """Make the page from the data of its parts; its path.

    Raises:
        ValueError: the data are damaged; file, field, what was expected and what came.
        FileNotFoundError: there are none.
    """
    sections = "".join(_part(folder, s) for s in SECTIONS if _has_part(folder, s))
    page = folder / "report.html"
    write_whole(page, _part(folder, "report", sections=sections).encode())
    return page


def require_page(folder: Path) -> None:
    """Raise ValueError unless the page of a folder can be made."""
    if not _has_part(folder, "report"):
        raise ValueError(f"{folder} has no page yet. Make it with `zoo report {folder}`.")
    _part(folder, "report", sections="")


def _has_part(folder: Path, part: str) -> bool:
    return (folder / "page" / f"{part}.json").exists()


def _part(folder: Path, part: str, **more: Any) -> str:
    """One part of the page, its data checked."""
    data = subfolder(folder, "page")
    path = data / f"{part}.json"
    verb = {"diagnosis": "diagnose", "comparison": "compare"}.get(part, "report")
    try:
        said = Fields(path, json.loads(read_whole(path))).values
        pictures = Fields(path, said).take("pictures", "figures by name", lambda v: isinstance(
            v, list
        ) and all(NAME.fullmatch(p["name"]) for p in v))  # fmt: skip
        before = "" if part == "report" else f"{part}-"
        images = {
            p["name"]: (
                embedded(read_whole(subfolder(folder, "figures") / f"{before}{p['name']}.png")),
                embedded(read_whole(data / f"{before}{p['name']}-dark.png")),
            )
            for p in pictures
        }
        name = "page" if part == "report" else part
        return template(name).render(said=said, pictures=pictures, images=images, **more)
    except (UndefinedError, TypeError, AttributeError, RecursionError, UnicodeDecodeError,
            json.JSONDecodeError) as error:  # fmt: skip
        raise ValueError(
            f"{path} is damaged: expected the data of a page, got {str(error)!r:.80}. Make "
            f"it anew: zoo {verb} {folder}."
        ) from error


def embedded(image: bytes) -> str:
    """Return a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


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
