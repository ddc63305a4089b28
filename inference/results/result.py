"""The base of everything that a function returns to be read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..estimate import Estimate
from .notebook import as_html
from .table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result:
    """Numbers that can be read as text, in a notebook, as JSON, as figures and as files.

    A subclass writes `lines_above`, `table` and `lines_below` (each may be empty), `to_dict`, and
    `figures` where it has some.

    Attributes:
        file_name: stem of the files that `save` writes.
    """

    __slots__ = ()
    file_name: ClassVar[str] = "result"

    def lines_above(self) -> list[str]:
        """Sentences above the table."""
        return []

    def table(self) -> Table | None:
        """The numbers, or None."""
        return None

    def lines_below(self) -> list[str]:
        """Sentences below the table."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Everything but large arrays, as plain Python."""
        raise NotImplementedError

    def figures(self) -> dict[str, Figure]:
        """Name -> figure."""
        return {}

    def __str__(self) -> str:
        table = self.table()
        middle = [] if table is None else [str(table)]
        return "\n".join([*self.lines_above(), *middle, *self.lines_below()])

    __repr__ = __str__

    @property
    def level(self) -> str:
        """ "good", "fair" or "bad" where the result is a verdict, else empty."""
        return ""

    def picture(self) -> Figure | None:
        """The small figure that a notebook shows."""
        return next(iter(self.figures().values()), None)

    def _repr_html_(self) -> str:
        """The result as HTML for a notebook."""
        return as_html(
            self.lines_above(), self.table(), self.lines_below(), self.picture, self.level,
            f"{type(self).__name__}: the figure of these numbers",
        )  # fmt: skip

    def to_json(self, path: str | Path | None = None) -> str:
        """`to_dict` as JSON, also written to a file when one is named."""
        text = json.dumps(plain(self.to_dict()), indent=2)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def plot(self, path: str | Path | None = None) -> Any:
        """The figures, by name; written to a folder as PNG files when one is named.

        Returns:
            The figures, or the paths of the files.
        """
        figures = self.figures()
        if path is None:
            return figures
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, figure in figures.items():
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=100)
        return paths

    def save(self, folder: str | Path) -> list[Path]:
        """Write the text, JSON and figures into a folder; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text, numbers = (folder / f"{self.file_name}.{end}" for end in ("txt", "json"))
        text.write_text(f"{self}\n", encoding="utf-8")
        self.to_json(numbers)
        return [text, numbers, *Result.plot(self, folder)]


def plain(value: Any) -> Any:
    """Python's own types for JSON, None for what JSON has no number for."""
    if isinstance(value, Estimate):
        said = {"value": plain(value.value), "se": plain(value.se)}
        return said if value else {**said, "because": value.because}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return plain(value.tolist())
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
