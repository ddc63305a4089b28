"""`zoo complete`: the rest of held-out rows given a part of them, as a picture, array or table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from zoo.completion import Completion, complete, part_of
from zoo.data import DataSet

from ..report import Metric, Subject
from ..report.draw import Drawing
from ..report.images import columns_of_images
from ..report.theme import png
from .inputs import arguments_of
from .output import say
from .runs import read
from .sample import target

SHOWN = 6  # draws of each row in a picture


def draw(
    folder: str, given: str, rows: int, n: int, out: str | None, seed: int, pair: str | None = None
) -> Path:
    """Complete the first `rows` test rows and write `n` draws of each to a new file; its path.

    Raises:
        ValueError: a part that is empty, everything or no columns of these data; rows or n out of
            range; a model that cannot be completed; another ending, a file that exists.
    """
    if rows < 1:
        raise ValueError(f"--rows: expected at least 1, got {rows}.")
    plan, data, fitted = read(folder, pair)
    part = part_of(given, data.data_dim, data.image_shape)
    path = target(folder, out, ".png" if data.image_shape else ".csv", "completions")
    subject = Subject(fitted.model, data, seed=seed)
    x, *more = (a[:rows].cpu() for a in _arguments(fitted.model, data))
    found = complete(subject.on_host(), x, part, *more, draws=n, seed=seed)
    if data.scale is not None:  # in the units of the data as given
        found = in_own_units(found, data, part)
        x = data.original(x)
    if path.suffix == ".npy":
        np.save(path, found.draws.numpy())
    elif path.suffix == ".csv":
        _write_table(path, found)
    else:
        path.write_bytes(png(_picture(subject, x, found, f"{plan.card.name}: {given} given")))
    log_p = found.mean_log_prob()
    if log_p:
        note = (
            f"of {int((~part).sum())} values given {int(part.sum())}, {found.how}, {len(x):,} rows"
        )
        metric = Metric("log_rest", "", log_p.value, "nats per datum", log_p.se, note)
        say(f"log p(rest | part)  {metric}  ({note})")
    else:
        say(f"drawn {found.how}; {log_p.because}")
    return path


def in_own_units(found: Completion, data: DataSet, part: torch.Tensor) -> Completion:
    """A completion of standardised rows in the units of the data."""
    assert data.scale is not None
    log_det = -float(data.scale.double()[~part.cpu()].log().sum())
    log_p = None if found.log_prob is None else found.log_prob + log_det
    return dataclasses.replace(found, draws=data.original(found.draws), log_prob=log_p)


def _arguments(model: object, data: object) -> tuple:
    if not hasattr(model, "model"):
        return (data.test,)  # type: ignore[attr-defined]
    return arguments_of(model, data, "test")  # type: ignore[arg-type]


def _picture(s: Subject, x: torch.Tensor, found: Completion, title: str) -> Drawing:
    """A row of images for each datum: it, its given part, the mean of the draws, some draws."""
    seen = torch.where(found.given, x, 0.5)
    columns = {"x": x, "given": seen, "mean": found.draws.mean(0)}
    columns |= {f"draw {i + 1}": found.draws[i] for i in range(min(SHOWN, len(found.draws)))}
    return columns_of_images({k: s.images(v) for k, v in columns.items()}, title)


def _write_table(path: Path, found: Completion) -> None:
    draws, rows, d = found.draws.shape
    index = torch.cartesian_prod(torch.arange(draws), torch.arange(rows)).numpy()
    table = np.concatenate([index, found.draws.reshape(-1, d).numpy()], 1)
    head = ",".join(["draw", "row", *(f"x{i + 1}" for i in range(d))])
    np.savetxt(path, table, delimiter=",", fmt="%.7g", header=head, comments="")
