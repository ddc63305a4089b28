"""`zoo sample`: draws from a fitted model, as a picture, an array or a table."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch

from ..report import Subject, image_grid
from ..report.theme import png
from .options import takes
from .runs import read


def draw(
    folder: str,
    n: int,
    label: int | None,
    out: str | None,
    seed: int,
    pair: str | None = None,
    sampler: str | None = None,
) -> Path:
    """Write `n` draws of x to a new file and return its path.

    Raises:
        ValueError: n < 1, a label where none is taken (or one out of range), a model that cannot
            be drawn from, another ending, a file that exists.
    """
    if n < 1:
        raise ValueError(f"--n: expected at least 1, got {n}.")
    plan, data, fitted = read(folder, pair)
    subject = Subject(fitted.model, data, seed=seed)
    if not subject.offers("sample"):
        raise ValueError(f"{plan.card.name} has no density or prior to draw from.")
    if label is not None and not subject.conditional:
        raise ValueError(f"--label: {plan.card.name} takes none; conditional-vae does.")
    path = target(folder, out, ".png" if data.image_shape else ".csv", "samples")
    labels = None if label is None else torch.full((n,), label)
    if sampler is not None and "sampler" not in takes(fitted.model.sample):
        raise ValueError(f"--sampler: {plan.card.name} has one way to draw; diffusion has several.")
    own = [] if sampler is None else [sampler]
    x = subject.call("sample", n, *own, labels=labels)
    if path.suffix == ".npy":
        np.save(path, x.reshape(n, *(data.image_shape or (-1,))).numpy())
    elif path.suffix == ".csv":
        head = ",".join(data.columns or ())
        np.savetxt(path, x.numpy(), delimiter=",", fmt="%.7g", header=head, comments="")
    else:
        path.write_bytes(png(image_grid(subject.images(x), columns=min(8, n))))
    return path


def target(folder: str, out: str | None, ending: str, what: str) -> Path:
    """Return the file to write: `out`, or the next RUN-WHAT with this ending beside the run.

    Raises:
        ValueError: `out` exists, ends otherwise than in .png, .npy or .csv, or has no folder; a
            picture of what is no image.
    """
    if out is None:
        stem = Path(folder).resolve()
        named = (
            stem.with_name(f"{stem.name}-{what}{'' if i == 1 else f'-{i}'}{ending}")
            for i in itertools.count(1)
        )
        return next(p for p in named if not p.exists())
    path = Path(out).expanduser()
    if path.suffix not in (".png", ".npy", ".csv"):
        raise ValueError(f"--out: expected a name that ends in .png, .npy or .csv, got {out!r}.")
    if path.suffix == ".png" and ending != ".png":
        raise ValueError("--out: these data are no images; write .npy or .csv.")
    if path.exists():
        raise ValueError(f"--out: {path} exists already. Name a file that does not.")
    if not path.parent.is_dir():
        raise ValueError(f"--out: there is no folder {path.parent}.")
    return path
