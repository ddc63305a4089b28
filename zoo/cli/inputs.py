"""The arguments of a pair among data: of the catalogue x and its labels, of one's own by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from inference.pairs.arguments import rows_of, take_rows
from inference.pairs.gate import admit
from zoo.data import SETS, DataSet
from zoo.tables import agreed, read_frame, read_named

from .options import takes
from .own import OwnCard, arguments_by_name, labels_of

EMPTY = torch.empty(0)
LOOKED_AT = 64  # rows that show whether every site belongs to single data


@dataclass(frozen=True, eq=False)
class NamedSet(DataSet):
    """Data of a pair of the user's own, as its arguments.

    Attributes:
        given: split -> the pair's arguments; before `settled`, of the training rows alone.
        whole: true where latents belong to all data, so that all rows are fitted together.
        labels: argument -> names of its columns or categories.
    """

    given: Mapping[str, tuple] = field(default_factory=dict, repr=False)
    whole: bool = False
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)


def load_own(card: OwnCard, name: str, table: Mapping[str, Any]) -> NamedSet:
    """Read a file for a pair of the user's own: columns become arguments by their names.

    Args:
        card: whose model's arguments are looked for.
        name: of a table, or of a `.json` or `.npz`.
        table: options of the data: `train`, `valid`, `test`, and what is to be left out.
    """
    function = _model_of(card.load())
    files = {s: table[s] for s in ("train", "valid", "test") if table.get(s)}
    drop = {*table.get("drop", ())}
    if files:
        frames = agreed({s: read_frame(f) for s, f in files.items()})
        named = {s: f.columns for s, f in frames.items()}
    else:
        files, named = {"train": name}, {"train": read_named(name)}
    given = {
        s: arguments_by_name(function, {n: c for n, c in named[s].items() if n not in drop}, f)
        for s, f in files.items()
    }
    left = {n: c for n, c in named["train"].items() if n not in drop}
    return _filled(
        NamedSet(Path(files["train"]).name, EMPTY, EMPTY, EMPTY, given=given,
                 labels=labels_of(function, left))
    )  # fmt: skip


def _filled(data: NamedSet) -> NamedSet:
    """The set with its splits as rows (N, D), for what is told of them."""
    splits: dict[str, Any] = {}
    for split in ("train", "valid", "test"):
        args = data.given.get(split) or data.given["train"]
        n = rows_of(args)
        parts = [a.reshape(n, -1).float() for a in args if torch.is_tensor(a) and a.dim()
                 and len(a) == n]  # fmt: skip
        splits[split] = torch.cat(parts, -1) if parts else torch.zeros(1, 1)
    return dataclasses.replace(data, **splits)


def _model_of(factory: Any) -> Callable:
    """The model whose arguments are data: of a class its method, of a factory what it wraps."""
    found = getattr(factory, "model", None) or getattr(factory, "of", None)
    if found is None:
        found = factory().model
    if inspect.isclass(factory):
        parameters = list(inspect.signature(found).parameters.values())[1:]  # without self

        def stand_in(*_: Any) -> None: ...

        stand_in.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return stand_in
    return found


def settled(model: Any, data: DataSet) -> DataSet:
    """Return the data of a pair of one's own, split where every site belongs to single data.

    Where latents belong to all data (the parameters of a regression), all rows are fitted.
    """
    if isinstance(data, NamedSet):
        args = data.given["train"]
    else:
        args = arguments_of(model, data, "train")
    n = rows_of(args)
    few = take_rows(args, slice(LOOKED_AT)) if n > LOOKED_AT else args
    if _is_global(model, few):
        if not isinstance(data, NamedSet):
            parts = [arguments_of(model, data, s) for s in ("train", "valid", "test")]
            args = tuple(torch.cat(p) for p in zip(*parts))
        elif len(data.given) > 1:
            raise ValueError(
                "--valid, --test: the latents of this pair belong to all data, which are fitted "
                "together. Give one table, with --data."
            )
        given = dict.fromkeys(("train", "valid", "test"), args)
        return _filled(
            NamedSet(data.name, EMPTY,
            EMPTY,
            EMPTY, columns=data.columns, given=given,
                     whole=True, labels=getattr(data, "labels", {}))
        )  # fmt: skip
    if not isinstance(data, NamedSet):
        return data
    given = dict(data.given)
    order = torch.randperm(n, generator=Generator().manual_seed(0))
    held = max(1, n // 10)
    for split in ("valid", "test"):
        if split not in given:
            if len(order) <= held:
                raise ValueError(f"{data.name}: expected at least 3 rows, got {n}.")
            given[split] = _rows(args, order[:held])
            order = order[held:]
    if len(order) < n:
        given["train"] = _rows(args, order)
    return _filled(dataclasses.replace(data, given=given))


def _rows(args: tuple, rows: Tensor) -> tuple:
    n = rows_of(args)
    return tuple(
        a[rows] if torch.is_tensor(a) and a.dim() and len(a) == n else a for a in args
    )  # fmt: skip


def _is_global(model: Any, args: tuple) -> bool:
    """Tell whether a site lies outside of the plate of the data."""
    pair = admit(model, *args, who="zoo")
    with pair.ready(0):
        plates = pair.weights().plates
    return not any(p.dim == -1 and p.size == pair.rows for p in plates)


def arguments_of(model: Any, data: DataSet, split: str) -> tuple[Any, ...]:
    """The arguments of a pair on a split: (x,) or (x, y) of the catalogue's, else by name.

    A classifier is judged without labels.
    """
    if isinstance(data, NamedSet):
        return data.given[split]
    x, y = getattr(data, split), getattr(data, f"{split}_labels")
    return (x, y) if "y" in takes(model.model) and not hasattr(model, "classify") else (x,)


def is_named(name: str) -> bool:
    """Tell whether data are a file of the user's, whose columns have names."""
    endings = (".csv", ".tsv", ".parquet", ".feather", ".arrow", ".json", ".npz")
    return name not in SETS and Path(name).suffix.lower() in endings
