"""`zoo edit`: a fitted model's latent space walked through, as a picture or an array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data import DataSet
from zoo.edit import (
    WithCondition,
    apply_attribute,
    arithmetic,
    attribute_vector,
    interpolate,
    traverse,
)

from ..report import Subject
from ..report.draw import Drawing, scatter
from ..report.images import columns_of_images
from ..report.representation import map_of
from ..report.theme import png, titled
from .runs import read
from .sample import target

HOWS = ("interpolate", "traverse", "attribute", "arithmetic", "map")


def edit_run(
    folder: str, how: str, rows: int, steps: int, label: int | None, against: int | None,
    by: str, out: str | None, seed: int,
) -> Path:  # fmt: skip
    """Edit test rows in the latent space of a run; the new file's path.

    Raises:
        ValueError: a model without an encoder or decoder, another way, rows or steps out of range,
            an attribute that no row or every row has.
    """
    if how not in HOWS:
        raise ValueError(f"--how: expected one of {', '.join(HOWS)}, got {how!r}.")
    if rows < 1 or steps < 2:
        raise ValueError(f"--rows, --steps: expected at least 1 and 2, got {rows} and {steps}.")
    plan, data, fitted = read(folder)
    subject = Subject(fitted.model, data, seed=seed)
    needed = ("encode",) if how == "map" else ("encode", "decode")
    if not subject.offers(*needed):
        raise ValueError(
            f"{plan.card.name} has no latent that can be edited: it lacks {' or '.join(needed)}. "
            "A vae, an autoencoder or a bigan has both."
        )
    path = target(folder, out, ".png" if data.image_shape or how == "map" else ".csv", "edit")
    if how == "map":
        path.write_bytes(png(titled(*_map(subject, rows, by))))
        return path
    pair = _pair(subject, data)
    columns, title = _edited(pair, data, how, rows, steps, label, against)
    columns = {k: subject.original(v) for k, v in columns.items()}
    if path.suffix == ".png":
        shown = {k: subject.images(v) for k, v in columns.items()}
        path.write_bytes(png(columns_of_images(shown, title)))
        return path
    table = torch.stack(list(columns.values()))  # (columns, rows, D)
    if path.suffix == ".npy":
        np.save(path, table.numpy())
    else:
        index = torch.cartesian_prod(torch.arange(len(table)), torch.arange(table.shape[1]))
        body = torch.cat([index, table.flatten(0, 1)], 1).numpy()
        head = ",".join(["column", "row", *(data.columns or subject.names)])
        np.savetxt(path, body, delimiter=",", fmt="%.7g", header=head, comments="")
    return path


def _pair(s: Subject, data: DataSet) -> Any:
    """The model, or the model under the label of the first test row where it needs one."""
    model = s.on_host()
    return model if data.test_labels is None else WithCondition(model, data.test_labels[0])


def _edited(
    pair: Any, data: DataSet, how: str, rows: int, steps: int, label: int | None,
    against: int | None,
) -> tuple[dict[str, Tensor], str]:  # fmt: skip
    """Heading -> rows (n, D), and the title."""
    x, y = data.test, data.test_labels
    if isinstance(pair, WithCondition) and "y" in _names(pair.pair.decode):
        assert y is not None  # one label for all: rows of that label
        same = (y == y[0]).nonzero()[:, 0]
        x, y = x[same], y[same]
    rows = min(rows, len(x) // 3)
    if rows < 1:
        raise ValueError(f"--rows: expected at least 3 test rows to edit, got {len(x)}.")
    if how == "interpolate":
        path = interpolate(pair, x[:rows], x[rows : 2 * rows], steps, "spherical")
        walk = {f"{t:.2f}": v for t, v in zip(torch.linspace(0, 1, steps).tolist(), path)}
        return {"x": x[:rows], **walk, "x'": x[rows : 2 * rows]}, "From x to x', on the sphere"
    if how == "traverse":
        path = traverse(pair, x[: max(200, 2)], rows, steps)  # (dims, steps, D)
        share = torch.linspace(2, 98, steps).tolist()
        walk = {f"{q:.0f}%": v for q, v in zip(share, path.transpose(0, 1))}
        return walk, "One coordinate a row, through the quantiles of the codes"
    if how == "arithmetic":
        a, b, c = x[:rows], x[rows : 2 * rows], x[2 * rows : 3 * rows]
        return {"a": a, "b": b, "c": c, "a − b + c": arithmetic(pair, a, b, c)}, "Latent arithmetic"
    return _with_attribute(pair, data, rows, steps, label, against)


def _with_attribute(
    pair: Any, data: DataSet, rows: int, steps: int, label: int | None, against: int | None
) -> tuple[dict[str, Tensor], str]:
    """Test rows without an attribute, with more and more of it."""
    y, held = data.train_labels, data.test_labels
    if label is None or y is None or held is None:
        raise ValueError(
            "--label: an attribute is a label; name one of those of the data, as in --how "
            f"attribute --label 7 --against 1. {data.name} has "
            f"{'no labels' if y is None else f'labels up to {int(y.max())}'}."
        )
    among = (
        torch.ones_like(y, dtype=torch.bool) if against is None else (y == label) | (y == against)
    )
    vector = attribute_vector(pair, data.train[among], y[among] == label)
    plain = data.test[held != label if against is None else held == against][:rows]
    strengths = torch.linspace(0, 1.5, steps)
    walk = apply_attribute(pair, plain, vector, strengths)
    columns = {f"{s:.2f}": v for s, v in zip(strengths.tolist(), walk)}
    return {"x": plain, **columns}, f"More of label {label}: x + strength · vector"


def _map(s: Subject, rows: int, by: str) -> tuple[Drawing, str]:
    """The codes as points in the plane, and the title."""
    x, y = s.seen(max(rows, 5))
    points, axes = map_of(s.call("encode", x, labels=y), by, s.seed)
    drawing = scatter({"": (points.numpy(), None if y is None else y.numpy())}, axes)
    return drawing, f"Codes of {len(x):,} data"


def _names(method: Any) -> list[str]:
    from .options import takes

    return takes(method)
