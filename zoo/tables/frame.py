"""The columns of a table by name, from a data frame, CSV, parquet, Arrow, `.npy` or JSON.

A column is numbers, truth values (0 and 1) or categories (whole numbers, with their names). What
cannot be used, such as dates, is refused where it would be used, in one sentence that says what to
do; so a table with one odd column loses only that column.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ENDINGS = (".csv", ".tsv", ".parquet", ".feather", ".arrow", ".npy")
MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
DATE = re.compile(
    r"\d{4}[-/.]\d\d?[-/.]\d\d?([T ].*)?|\d\d?[/.-]\d\d?[/.-]\d{2,4}([T ].*)?"  # numbers
    rf"|\d\d?\.?[- ]{MONTH}\.?,?([- ]\d{{2,4}})?( .*)?|{MONTH}\.? \d\d?(,? \d{{2,4}})?( .*)?"
    r"|\d\d?:\d\d(:\d\d(\.\d+)?)?( ?[ap]m)?",  # times of day
    re.IGNORECASE,
)
NAMES_SHOWN = 8


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as the file has it.
        values: float64, (N,); NaN where it is missing; codes 0, 1, ... of categories.
        levels: names of the categories, in the order of their codes; empty for numbers.
        whole: true where every value is a whole number.
        because: why it cannot be used, with what to do; empty where it can.
    """

    name: str
    values: np.ndarray
    levels: tuple[str, ...] = ()
    whole: bool = False
    because: str = ""

    def tensor(self, integers: bool = False) -> Tensor:
        """The values as float32, or as int64 where they are categories (or whole, if asked)."""
        codes = bool(self.levels) or (integers and self.whole)
        return torch.from_numpy(self.values.astype(np.int64 if codes else np.float32))


@dataclass(frozen=True)
class Frame:
    """The columns of a table, each with as many rows.

    Attributes:
        name: of the file, for messages.
        columns: by name, in their order.
        rows: N.
    """

    name: str
    columns: Mapping[str, Column]
    rows: int

    def among(self, wanted: Collection[str], option: str) -> None:
        """Raise ValueError where one of these is no column."""
        for name in wanted:
            if name not in self.columns:
                raise ValueError(
                    f"{option}: {self.name} has no column {name!r}; it has {shown(self.columns)}."
                )

    def take(self, rows: np.ndarray) -> Frame:
        """Return some rows."""
        cut = {n: replace(c, values=c.values[rows]) for n, c in self.columns.items()}
        return Frame(self.name, cut, len(next(iter(cut.values())).values) if cut else 0)


def shown(names: Collection[str]) -> str:
    """A few names, and how many more."""
    listed = list(names)
    more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return ", ".join(listed[:NAMES_SHOWN]) + more


def read_frame(given: Any) -> Frame:
    """Read a table: a path that ends in one of `ENDINGS`, a DataFrame, or an Arrow table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lines differ in length, a number is mistyped.
    """
    if hasattr(given, "to_pandas"):
        given = given.to_pandas()
    if hasattr(given, "iloc"):
        return _of_pandas(given, type(given).__name__)
    path = Path(given).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path.absolute()}.")
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        return _of_csv(path, "\t" if ending == ".tsv" else ",")
    if ending == ".npy":
        x = read_array(path)
        x = x[:, None] if x.ndim == 1 else x
        if x.ndim != 2:
            raise ValueError(f"{path}: expected a table (N, D), got an array of shape {x.shape}.")
        if x.size == 0:
            raise ValueError(
                f"{path.name}: expected at least 3 rows of numbers, got shape {x.shape}."
            )
        named = [_numbers(str(j + 1), x[:, j].astype(np.float64)) for j in range(x.shape[1])]
        return Frame(path.name, {c.name: c for c in named}, len(x))
    return _of_pandas(_read_arrow(path), path.name)


def read_array(path: Path) -> np.ndarray:
    """Read a `.npy` of real numbers.

    Raises:
        ValueError: it is damaged, or holds anything else.
    """
    try:
        x = np.load(path, allow_pickle=False)
    except (EOFError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npy array of numbers ({error}).") from error
    if x.dtype.kind not in "biuf" or x.ndim not in (1, 2, 3, 4):
        raise ValueError(
            f"{path}: expected real numbers of shape (N, D), (N, H, W), (N, C, H, W) or "
            f"(N, H, W, C), got {x.dtype} of shape {x.shape}."
        )
    return x


def _read_arrow(path: Path) -> Any:
    import pandas

    try:
        import pyarrow as _  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{path.name}: reading {path.suffix} needs pyarrow: pip install 'pyro-zoo[data]'."
        ) from None
    try:
        return pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_feather(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}).") from error


def _of_csv(path: Path, separator: str) -> Frame:
    """Read a CSV; its first line is a header unless it holds a number."""
    import pandas

    first: list[str] = []
    width = rows = 0
    with path.open(newline="", encoding="utf-8-sig") as file:
        for i, line in enumerate(csv.reader(file, delimiter=separator), start=1):
            if not line:
                continue
            if not first:
                first = line
            elif rows == 0 and not any(map(_is_number, first)):
                width = len(line)
            width = width or len(line)
            header = not any(map(_is_number, first))
            if len(line) != width and not (header and line is first):
                raise ValueError(
                    f"{path}: line {i} has {len(line)} cells, the first line of data {width}. "
                    "Make every line as long."
                )
            rows += not (header and line is first)
    if not rows:
        raise ValueError(f"{path.name}: expected at least 3 rows, got none.")
    header = not any(map(_is_number, first))
    if header and len(first) != width:
        raise ValueError(f"{path}: the header has {len(first)} names, the lines {width} cells.")
    names = [n.strip() or str(j + 1) for j, n in enumerate(first)] if header else [
        str(j + 1) for j in range(width)]  # fmt: skip
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"{path}: two columns are called {repeated[0]!r}. Rename one.")
    frame = pandas.read_csv(
        path, sep=separator, header=0 if header else None, names=names, encoding="utf-8-sig",
        skipinitialspace=True, index_col=False, low_memory=False,
    )  # fmt: skip
    return _of_pandas(frame, path.name, _typing_error(path, header))


def _typing_error(path: Path, header: bool) -> Callable[[str, int, int, object], str]:
    """The sentence about a cell that should be a number."""

    def say(name: str, row: int, j: int, cell: object) -> str:
        where = f"{j + 1} ({name})" if header else f"{j + 1}"
        return (
            f"{path}: line {row + 1 + header}, column {where} is {str(cell)!r}, not a number. "
            "Mend the cell, or leave the column out: --drop."
        )

    return say


def _of_pandas(
    frame: Any, name: str, mistyped: Callable[[str, int, int, object], str] | None = None
) -> Frame:
    columns = {
        str(n): _of_series(str(n), j, frame.iloc[:, j], mistyped)
        for j, n in enumerate(frame.columns)
    }
    return Frame(name, columns, len(frame))


def _of_series(name: str, j: int, series: Any, mistyped: Any) -> Column:
    """One column of a data frame, by its type."""
    from pandas.api import types

    kind = series.dtype
    if types.is_bool_dtype(kind) or types.is_numeric_dtype(kind):
        if types.is_complex_dtype(kind):
            return Column(name, np.zeros(len(series)), because="holds complex numbers: split it")
        return _numbers(name, series.to_numpy(dtype=np.float64, na_value=np.nan))
    dates = "holds dates: turn it into numbers, such as days since the first, or leave it out"
    if types.is_datetime64_any_dtype(kind) or types.is_timedelta64_dtype(kind):
        return Column(name, np.zeros(len(series)), because=dates)
    cells = [None if _is_missing(v) else v for v in series.astype(object)]
    there = [v for v in cells if v is not None]
    if any(isinstance(v, (list, tuple, dict, set, np.ndarray)) for v in there):
        return Column(name, np.zeros(len(cells)), because="holds lists: give each its own column")
    texts = [str(v).strip() for v in there]
    words = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
    if texts and all(t.lower() in words for t in texts):
        return _numbers(name, np.array([
            np.nan if v is None else words[str(v).strip().lower()] for v in cells]))  # fmt: skip
    if texts and all(map(DATE.fullmatch, texts)):
        return Column(name, np.zeros(len(cells)), because=dates)
    typed = sum(map(_is_number, texts))
    if mistyped is not None and 2 * typed >= len(texts) > 0:
        row = next(i for i, v in enumerate(cells) if v is not None and not _is_number(str(v)))
        return Column(name, np.zeros(len(cells)), because=mistyped(name, row, j, cells[row]))
    ordered = getattr(getattr(series, "cat", None), "categories", None)
    levels = tuple(sorted({*texts})) if ordered is None else tuple(map(str, ordered))
    codes = {level: float(i) for i, level in enumerate(levels)}
    values = [np.nan if v is None else codes[str(v).strip()] for v in cells]
    return Column(name, np.array(values), levels, whole=True)


def _numbers(name: str, values: np.ndarray) -> Column:
    finite = values[np.isfinite(values)]
    return Column(name, values, whole=bool((finite == np.round(finite)).all()))


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def read_named(given: Any) -> dict[str, Any]:
    """Read data by name: the columns of a table, or the entries of a `.json` or `.npz`.

    Returns:
        name -> `Column`, or a tensor or number of a `.json` or `.npz` (as Stan's data have them).

    Raises:
        FileNotFoundError, ValueError: as `read_frame`.
    """
    path = None if hasattr(given, "columns") else Path(given).expanduser()
    if path is None or path.suffix.lower() not in (".json", ".npz"):
        return dict(read_frame(given).columns)
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path.absolute()}.")
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                entries: Mapping[str, Any] = {n: file[n] for n in file.files}
        else:
            entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, Mapping):
            raise ValueError(f"expected an object of named values, got {type(entries).__name__}")
        return {n: _named_value(n, v) for n, v in entries.items()}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}.") from error


def _named_value(name: str, value: Any) -> Any:
    """A number as it is; a list or an array as a tensor, whole numbers as int64."""
    if isinstance(value, (bool, int, float)):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"entry {name!r}: expected numbers of one shape, got {type(value)}")
    if array.ndim == 0:
        return array.item()
    kind = np.int64 if array.dtype.kind in "biu" else np.float32
    return torch.from_numpy(array.astype(kind))
