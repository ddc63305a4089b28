"""Rows that stay where they are until a batch asks for them: on disk, or in torch's data sets."""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from ..pairs.arguments import check_values
from ..randomness import forked

SAMPLED = 256  # rows that a fingerprint looks at
TOUCHED = 32  # rows whose pages, of up to 2 MB, are held at once
WRITTEN = 8_192  # rows of a parquet file in memory at once


class Source:
    """N rows of the arguments of a pair, read by batches.

    Attributes:
        rows: N.
        indexable: whether rows can be read in any order, and again.
        ahead: whether the next rows may be read by another thread meanwhile.
        shown: its name, in errors.
    """

    rows: int
    indexable = True
    ahead = False
    shown = "data"

    def take(self, index: Tensor) -> tuple:
        """The rows (n,) of all arguments, on the CPU."""
        raise NotImplementedError

    def checked(self, index: Tensor) -> tuple:
        """As `take`.

        Raises:
            ValueError: the rows hold values that are no finite numbers.
        """
        return check_values(self.take(index), self.shown)

    def fingerprint(self) -> str:
        """The hash of their number, and of some rows, evenly spread."""
        some = torch.linspace(0, self.rows - 1, min(SAMPLED, self.rows), dtype=torch.float64).long()
        digest = hashlib.sha256(f"{self.rows}".encode())
        for a in self.take(some):
            if torch.is_tensor(a):
                digest.update(f"{a.dtype}{tuple(a.shape)}".encode())
                digest.update(a.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Stored(Source):
    """Rows of arrays, some of them memory-mapped; what has no rows is passed on as it is."""

    ahead = True

    def __init__(self, columns: tuple):
        self.columns = columns
        self.rows = next(len(c) for c in columns if isinstance(c, np.memmap))

    def take(self, index: Tensor) -> tuple:
        """The rows; pages that were read for them are given back."""
        return tuple(self._rows(c, index) for c in self.columns)

    def _rows(self, column: Any, index: Tensor) -> Any:
        if not hasattr(column, "__len__") or len(column) != self.rows:
            return column
        if torch.is_tensor(column):
            return column[index.to(column.device)].cpu()
        found = np.empty((len(index), *np.shape(column)[1:]), column.dtype)
        held = getattr(column, "_mmap", None)
        kept = held is None or getattr(column, "mode", "c") == "c" or not hasattr(held, "madvise")
        for start in range(0, len(index), TOUCHED):
            part = slice(start, start + TOUCHED)
            found[part] = np.asarray(column)[index[part].numpy()]
            if held is not None and not kept:
                held.madvise(mmap.MADV_DONTNEED)
        return torch.from_numpy(found)


class Items(Source):
    """Items of a `torch.utils.data.Dataset`, put together by `default_collate`."""

    def __init__(self, items: Any):
        self.items, self.rows = items, len(items)

    def take(self, index: Tensor) -> tuple:
        """Each item by its number."""
        many = getattr(self.items, "__getitems__", None)
        found = many(index.tolist()) if many else [self.items[i] for i in index.tolist()]
        return _columns(default_collate(found))


class Stream(Source):
    """Batches of a `DataLoader`, in its own order, cut anew; epoch after epoch."""

    indexable = False

    def __init__(self, loader: DataLoader):
        self.loader, self.shown = loader, f"data: {type(loader).__name__}"
        try:
            self.rows = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError(
                f"data: {type(loader.dataset).__name__} does not say how many rows there are in "
                "all, by which the loss of a batch is scaled. Give it a __len__."
            ) from None
        self.seed = 0
        self._parts: Iterator[tuple] | None = None
        self._epoch = 0
        self._left: tuple | None = None

    def take(self, index: Tensor) -> tuple:
        """The next rows, as many as asked for, whatever their numbers."""
        found = [] if self._left is None else [self._left]
        while sum(len(part[0]) for part in found) < len(index):
            found.append(self._next())
        joined = tuple(torch.cat(column) for column in zip(*found))
        self._left = tuple(c[len(index) :].clone() for c in joined)
        return tuple(c[: len(index)] for c in joined)

    def _next(self) -> tuple:
        with forked((self.seed + self._epoch) % 2**63):  # its order follows from the run's seed
            fresh = self._parts is None
            if self._parts is None:
                self._parts = iter(self.loader)
                self._epoch += 1
            part = next(self._parts, None)
        if part is None:
            if fresh:
                raise ValueError(f"{self.shown} has no batches.")
            self._parts = None
            return self._next()
        return _columns(part)

    def fingerprint(self) -> str:
        """Of their number alone: rows cannot be looked at without taking them."""
        return hashlib.sha256(f"stream {self.rows}".encode()).hexdigest()


def _columns(item: Any) -> tuple:
    """The arguments in a collated batch."""
    columns = tuple(item) if isinstance(item, list | tuple) else (item,)
    for c in columns:
        if not torch.is_tensor(c) or not c.dim():
            raise ValueError(
                "data: expected items that are tensors, or tuples of tensors (the pair's "
                f"arguments), got {type(c).__name__}. Change the data set's __getitem__."
            )
    return columns


def source_of(data: Any, batch_size: int | None) -> Source | tuple | None:
    """The source that data are, None where they lie in memory; a tuple of tensors as they are.

    Args:
        data: a memory-mapped array, a path, a data set or a loader of torch; or a tuple with
            memory-mapped arrays.
        batch_size: of batches of single items.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it cannot be read by rows.
    """
    if isinstance(data, TensorDataset):
        return data.tensors
    if isinstance(data, DataLoader):
        return Stream(data)
    if isinstance(data, IterableDataset):
        return Stream(DataLoader(data, batch_size=batch_size))
    if isinstance(data, Dataset):
        return Items(data)
    columns = data if isinstance(data, tuple) else (data,)
    if not any(isinstance(c, np.memmap | str | Path) for c in columns):
        return None
    opened = tuple(_opened(Path(c)) if isinstance(c, str | Path) else c for c in columns)
    sizes = {len(c) for c in opened if isinstance(c, np.memmap)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"data: expected arrays with as many rows, at least one, got {sorted(sizes)}."
        )
    return Stored(opened)


def _opened(path: Path) -> np.memmap:
    """The rows of a file, memory-mapped."""
    if not path.exists():
        raise FileNotFoundError(f"data: {path}: expected a file, found none.")
    if path.suffix == ".npy":
        try:
            return np.load(path, mmap_mode="r")
        except ValueError as error:
            raise ValueError(f"data: {path}: expected an array of numbers: {error}.") from error
    if path.suffix == ".parquet" or path.is_dir():
        return _from_parquet(path)
    raise ValueError(f"data: {path}: expected a .npy or .parquet file, or a folder of .parquet.")


def _from_parquet(path: Path) -> np.memmap:
    """The columns of parquet files side by side, (N, D), copied by parts to a file on disk.

    Rows of parquet lie in compressed groups, and cannot be read one by one in another order. The
    copy has no name, and is gone with the array.

    Raises:
        ImportError: pyarrow is missing.
        ValueError: a column has no numbers, or there are no rows.
    """
    try:
        import pyarrow.dataset as parquet
    except ImportError as error:
        raise ImportError("data: parquet files need pyarrow: pip install pyarrow.") from error
    table = parquet.dataset(path, format="parquet")
    kind = np.dtype(str(torch.get_default_dtype()).removeprefix("torch."))
    rows, width = 0, 0
    with tempfile.TemporaryFile() as file:
        for batch in table.to_batches(batch_size=WRITTEN):
            if not len(batch):
                continue
            parts = [_numbers(path, n, c) for n, c in zip(batch.schema.names, batch.columns)]
            matrix = np.concatenate(parts, 1).astype(kind)
            if width not in (0, matrix.shape[1]):
                raise ValueError(f"data: {path}: rows have {width} values, and {matrix.shape[1]}.")
            rows, width = rows + len(matrix), matrix.shape[1]
            file.write(matrix.tobytes())
        if not rows:
            raise ValueError(f"data: {path}: expected at least one row, found none.")
        file.flush()
        return np.memmap(file, kind, "r", shape=(rows, width))


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:
    """A column of numbers, or of lists of as many, as (n, width)."""
    n = len(column)
    if hasattr(column, "flatten") and str(column.type).startswith(("list", "fixed", "large_list")):
        column = column.flatten()
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    if values.dtype.kind not in "biuf" or len(values) % n:
        raise ValueError(
            f"data: {path}: column {name!r}: expected numbers, or lists of as many, got "
            f"{column.type}. Turn it into numbers first, or leave it out."
        )
    return values.reshape(n, -1)
