"""The look of figures: one light and one dark set of colours, and nothing global changed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

# Okabe & Ito's colours for lines; the classes of a scatter plot need ten that differ.
CYCLE = ("#2f6fdf", "#e07b1a", "#2a9d6e", "#b65bb3", "#c9a51f", "#57b1d6", "#d1495b", "#8a8f98")
CLASSES = (
    "#2f6fdf",
    "#e07b1a",
    "#2a9d6e",
    "#d1495b",
    "#8b6ad9",
    "#8c6d5a",
    "#d976b4",
    "#8a8f98",
    "#b5b02e",
    "#2fb5c6",
)
ACCENT = CYCLE[0]


@dataclass(frozen=True)
class Theme:
    """The colours that differ between light and dark."""

    name: str
    paper: str
    ink: str
    faint: str
    images: str  # matplotlib's colour map for one channel in [0, 1]
    density: str

    def settings(self) -> dict[str, Any]:
        """matplotlib's parameters."""
        return {
            "figure.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.edgecolor": self.faint,
            "xtick.color": self.faint,
            "ytick.color": self.faint,
            "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink,
            "grid.color": self.faint,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.prop_cycle": cycler(color=CYCLE),
            "axes.titlesize": 10.5,
            "axes.titleweight": "regular",
            "legend.frameon": False,
            "legend.fontsize": 9,
            "font.size": 10.5,
            "font.family": "DejaVu Sans",
            "lines.linewidth": 1.6,
            "image.cmap": self.images,
            "figure.constrained_layout.use": True,
        }


LIGHT = Theme("light", "#ffffff", "#1d2330", "#9aa1ad", "gray_r", "Blues")
DARK = Theme("dark", "#171b22", "#e4e7ec", "#6d7684", "gray", "cividis")
WIDTH, NARROW, DPI = 9.6, 5.2, 160  # inches; dots per inch


def png(draw: Callable[[Theme], Figure], theme: Theme = LIGHT) -> bytes:
    """Return a figure drawn in a theme."""
    with themed(theme):
        return saved(draw(theme))


def titled(draw: Callable[[Theme], Figure], title: str) -> Callable[[Theme], Figure]:
    """Return a drawing with a title of its own, so that its file reads alone."""

    def drawing(theme: Theme) -> Figure:
        figure = draw(theme)
        figure.suptitle(title, fontsize=11)
        return figure

    return drawing


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Figures drawn and saved inside the block look like the theme."""
    with matplotlib.rc_context(theme.settings()):
        yield


def saved(figure: Figure) -> bytes:
    """Save a figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
