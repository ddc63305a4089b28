"""`zoo export`: the encoder or decoder of a run as one file."""

from __future__ import annotations

from pathlib import Path

from zoo.sharing.exported import FORMATS, export

from .inputs import NamedSet
from .runs import read


def export_part(run: str, part: str, format: str, out: str | None, pair: str | None) -> Path:
    """Write a part of a run's model to a new file; its path.

    Raises:
        ValueError: another part or format; the model has none; the file exists.
    """
    ending = "." + format.lstrip(".")
    if ending not in FORMATS:
        raise ValueError(f"--format: expected pt2 or onnx, got {format!r}.")
    folder = Path(run)
    _, data, fitted = read(folder, pair)
    if isinstance(data, NamedSet) and data.whole:
        raise ValueError(f"export: the latents of {run} belong to all data: there is no {part}.")
    own = data.in_own_units() if data.scale is not None else data
    name = folder.resolve()
    path = Path(out) if out else name.with_name(f"{name.name}-{part}{ending}")
    return export(
        fitted.model, part, path, own.test, own.test_labels, data.shift, data.scale
    )  # fmt: skip
