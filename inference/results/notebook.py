"""Results as HTML for a notebook: verdict, table and small figure, on light and on dark paper.

Text and lines take the notebook's own colours. A figure is drawn twice; which one is shown follows
the theme of JupyterLab or VS Code, else the colours that the browser asks for.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[], "Figure | None"]
INK = {"light": "#1d2330", "dark": "#e4e7ec"}
LEVELS = {"good": "#2a9d6e", "fair": "#c9a51f", "bad": "#d1495b"}
WIDEST = 720  # pixels of a figure
STYLE = """<style>
.zoo-result .zoo-dark{display:none}.zoo-result .zoo-light{display:block}
@media (prefers-color-scheme:dark){.zoo-result .zoo-dark{display:block}
.zoo-result .zoo-light{display:none}}
[data-jp-theme-light="true"] .zoo-result .zoo-dark,body.vscode-light .zoo-result .zoo-dark
{display:none}
[data-jp-theme-light="true"] .zoo-result .zoo-light,body.vscode-light .zoo-result .zoo-light
{display:block}
[data-jp-theme-light="false"] .zoo-result .zoo-dark,body.vscode-dark .zoo-result .zoo-dark
{display:block}
[data-jp-theme-light="false"] .zoo-result .zoo-light,body.vscode-dark .zoo-result .zoo-light
{display:none}
</style>"""


def as_html(
    above: Sequence[str] = (),
    table: Table | None = None,
    below: Sequence[str] = (),
    draw: Draw | None = None,
    level: str = "",
    alt: str = "",
) -> str:
    """Return a result as HTML.

    Args:
        above, below: sentences around the table.
        table: the numbers.
        draw: returns a figure, or None; called in light and in dark colours.
        level: of a verdict: `"good"`, `"fair"`, `"bad"`, which give the sentences a colour.
        alt: the figure in words, for who cannot see it.
    """
    edge = f"border-left:.3em solid {LEVELS[level]};padding-left:.7em;" if level else ""
    first = f'<div style="{edge}white-space:pre-wrap;margin:.2em 0 .5em">' + _text(above) + "</div>"
    last = f'<div style="white-space:pre-wrap;margin:.4em 0">{_text(below)}</div>'
    middle = "" if table is None else f'<div style="overflow-x:auto">{table.html()}</div>'
    images = {n: _drawn(draw, n) for n in INK} if draw is not None else {}
    shown = "".join(
        f'<img class="zoo-{n}" alt="{escape(alt, quote=True)}" style="max-width:100%" '
        f'src="data:image/png;base64,{image}">'
        for n, image in images.items()
        if image
    )
    style = STYLE if shown else ""
    body = (first if any(above) else "") + middle + shown + (last if any(below) else "")
    return f'<div class="zoo-result" style="color:inherit">{style}{body}</div>'


def _text(lines: Sequence[str]) -> str:
    return "\n".join(escape(line) for line in lines).strip()


def _drawn(draw: Draw, theme: str) -> str:
    """A figure as PNG in base64, transparent; empty where there is none, or no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return ""
    ink = INK[theme]
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color",
             "axes.titlecolor")  # fmt: skip
    settings: dict[str, Any] = dict.fromkeys(names, ink)
    settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none")
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with matplotlib.rc_context(settings):
        figure = draw()
        if figure is None:
            return ""
        out = io.BytesIO()
        dots = min(90.0, WIDEST / figure.get_figwidth())
        figure.savefig(out, format="png", dpi=dots, metadata={"Software": None})
    return base64.b64encode(out.getvalue()).decode()
