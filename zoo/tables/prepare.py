"""From the columns of a table to what is modelled: labels, categories, missing values, splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from .frame import Column, Frame, shown

MISSING = ("refuse", "drop-rows", "mean")
CATEGORICAL = ("refuse", "one-hot", "drop")


def prepared(
    frame: Frame,
    label: str | None = None,
    drop: Collection[str] = (),
    missing: str = "refuse",
    categorical: str = "refuse",
) -> tuple[Frame, Column | None]:
    """Return the columns to be modelled, all numbers, and the column of labels.

    Args:
        frame: as read.
        label: the column of labels, or None.
        drop: columns to leave out.
        missing: `"refuse"`, `"drop-rows"`, or `"mean"`, which stands for what is missing.
        categorical: `"refuse"`, `"one-hot"` (a column of 0 and 1 for each category), or `"drop"`.

    Raises:
        ValueError: a column that is not there, holds dates or text, or has missing values; no
            numeric column is left. One sentence that names it and says what to do.
    """
    for option, value, words in (
        ("missing", missing, MISSING), ("categorical", categorical, CATEGORICAL),
    ):  # fmt: skip
        if value not in words:
            raise ValueError(f"--{option}: expected {', '.join(words)}, got {value!r}.")
    frame.among(drop, "--drop")
    frame.among([label] if label else [], "--label")
    every = shown(frame.columns)
    kept = {n: c for n, c in frame.columns.items() if n not in drop}
    kept = {
        n: c for n, c in kept.items() if not (c.levels and n != label and categorical == "drop")
    }
    frame = usable(replace(frame, columns=kept), missing)
    y = frame.columns.get(label) if label else None
    columns: dict[str, Column] = {}
    for c in frame.columns.values():
        if y is not None and c.name == label:
            continue
        if not c.levels:
            columns[c.name] = c
        elif categorical == "one-hot":
            for i, level in enumerate(c.levels):
                one = f"{c.name}={level}"
                columns[one] = Column(one, (c.values == i).astype(np.float64), whole=True)
    texts = [c.name for c in frame.columns.values() if c.levels and c.name != label]
    if texts and categorical == "refuse":
        raise ValueError(
            f"{frame.name}: column {texts[0]!r} is no number but one of "
            f"{shown(frame.columns[texts[0]].levels)}. Take it as labels (--label {texts[0]}), "
            "code it (--categorical one-hot), or leave it out (--categorical drop)."
        )
    if not columns:
        raise ValueError(f"{frame.name}: no numeric column is left to be modelled, of {every}.")
    return Frame(frame.name, columns, frame.rows), y


def usable(frame: Frame, missing: str = "refuse") -> Frame:
    """Return the columns without missing values: refused, their rows dropped, or the mean there.

    Raises:
        ValueError: missing values, or a column of dates, lists, or numbers that are mistyped.
    """
    for c in frame.columns.values():
        if c.because:
            whole = "line " in c.because  # a sentence of its own
            said = c.because if whole else f"{frame.name}: column {c.name!r} {c.because}: --drop."
            raise ValueError(said.replace("--drop.", f"--drop {c.name}."))
    holes = {n: np.isnan(c.values) for n, c in frame.columns.items()}
    holes = {n: h for n, h in holes.items() if h.any()}
    if not holes:
        return frame
    if missing == "drop-rows":
        keep = ~np.logical_or.reduce(list(holes.values()))
        if not keep.any():
            raise ValueError(f"{frame.name}: every row misses a value; --missing mean fills them.")
        return frame.take(keep)
    name = next(iter(holes))
    texts = [n for n in holes if frame.columns[n].levels]
    if missing == "refuse" or texts:
        name = texts[0] if missing != "refuse" else name
        raise ValueError(
            f"{frame.name}: column {name!r} misses {int(holes[name].sum()):,} of {frame.rows:,} "
            f"values, the first in row {int(holes[name].argmax())} (counted from 0, without the "
            "header). Leave out such rows (--missing drop-rows)"
            + (f" or the column (--drop {name})." if texts else ", or put the column's mean there "
               f"(--missing mean), or leave out the column (--drop {name}).")
        )  # fmt: skip
    columns = dict(frame.columns)
    for n, h in holes.items():
        values = columns[n].values.copy()
        values[h] = np.nanmean(values)
        columns[n] = replace(columns[n], values=values, whole=False)
    return replace(frame, columns=columns)


def matrix(frame: Frame) -> np.ndarray:
    """The numbers of a prepared frame, (N, D)."""
    return np.stack([c.values for c in frame.columns.values()], -1)


def agreed(frames: Mapping[str, Frame]) -> dict[str, Frame]:
    """Splits of one table, their columns and categories made those of `train`.

    Raises:
        ValueError: columns differ; a category that the training rows lack; splits that overlap.
    """
    first = frames["train"]
    out = {"train": first}
    for split, frame in frames.items():
        if split == "train":
            continue
        if {*frame.columns} != {*first.columns}:
            odd = sorted({*frame.columns} ^ {*first.columns})
            raise ValueError(
                f"--{split}: {frame.name} and {first.name} differ in their columns ({shown(odd)}). "
                "Give splits of one table."
            )
        columns = {}
        for name, mine in first.columns.items():
            columns[name] = _recoded(mine, frame.columns[name], split, frame.name)
        out[split] = replace(frame, columns=columns)
    names = list(out)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            _refuse_overlap(a, out[a], b, out[b])
    return out


def _recoded(mine: Column, theirs: Column, split: str, file: str) -> Column:
    if bool(mine.levels) != bool(theirs.levels) and not (mine.because or theirs.because):
        raise ValueError(
            f"--{split}: column {mine.name!r} of {file} holds "
            f"{'categories' if theirs.levels else 'numbers'}, in training it does not."
        )
    if not mine.levels:
        return theirs
    present = {i for i in range(len(theirs.levels)) if (theirs.values == i).any()}
    unseen = [theirs.levels[i] for i in sorted(present) if theirs.levels[i] not in mine.levels]
    if unseen:
        raise ValueError(
            f"--{split}: column {mine.name!r} of {file} has {shown(unseen)}, which no training row "
            f"has ({shown(mine.levels)}). Leave out such rows, or the column: --drop {mine.name}."
        )
    to = np.array([
        mine.levels.index(level) if level in mine.levels else -1 for level in theirs.levels
    ] or [0], dtype=np.float64)  # fmt: skip
    there = ~np.isnan(theirs.values)
    values = np.full(len(theirs.values), np.nan)
    values[there] = to[theirs.values[there].astype(int)]
    return replace(theirs, values=values, levels=mine.levels)


def _refuse_overlap(a: str, first: Frame, b: str, second: Frame) -> None:
    """Raise ValueError where more rows of one split stand in another than repeat by chance.

    By chance a row repeats as often as training rows do among themselves: binary tables are full
    of equal rows, columns of real numbers have none.
    """
    x, y = (np.ascontiguousarray(matrix(f)) for f in (first, second))
    counts: dict[bytes, int] = {}
    for row in x:
        counts[row.tobytes()] = counts.get(row.tobytes(), 0) + 1
    shared = sum(row.tobytes() in counts for row in y)
    repeated = sum(n for n in counts.values() if n > 1) / len(x)
    sd = np.sqrt(len(y) * repeated * (1 - repeated) * (1 + len(y) / len(x)))
    if shared >= len(y) * repeated + 4 * sd + max(2, len(y) // 100) or np.array_equal(x, y):
        raise ValueError(
            f"--{b}: {shared:,} of its rows ({second.name}) are rows of --{a} ({first.name}) too. "
            "Give splits that do not overlap."
        )
