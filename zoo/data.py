"""Data sets: embedded digits, MNIST and its kin, 2-D toys, and a user's own .npy or .csv.

Splits are fixed. MNIST and Fashion-MNIST: the first 50,000 training images are `train`, the last
10,000 `valid`, the published test set is `test` (the split of Larochelle & Murray 2011, "The neural
autoregressive distribution estimator"). The toys are drawn afresh: 10,000, 1,000 and 1,000 points.
Everything else is shuffled once by a fixed permutation and cut 80 : 10 : 10.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import gzip
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from zoo.toys import TOYS

SETS: dict[str, str] = {
    "digits": "1,797 digits of 8x8 pixels, embedded in scikit-learn",
    "mnist": "70,000 digits of 28x28 pixels",
    "fashion-mnist": "70,000 pieces of clothing of 28x28 pixels",
    "old-faithful": "272 eruptions of a geyser: duration and waiting time, minutes",
    "moons": "2-D: two interleaved half circles",
    "rings": "2-D: four concentric circles",
    "eight-gaussians": "2-D: eight Gaussians on a circle of radius 4, standard deviation 0.5",
    "checkerboard": "2-D: uniform on the eight dark squares of [-4, 4]²",
    "pinwheel": "2-D: five bent arms",
    "two-spirals": "2-D: two spirals from the origin",
}
PIXELS = ("none", "threshold", "static", "dynamic")


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, split and on one device.

    Attributes:
        name: what `load` was asked for.
        train, valid, test: float32, (N, D). Images are flat and lie in [0, 1].
        train_labels, valid_labels, test_labels: int64, (N,), or None where there are no labels.
        image_shape: (channels, height, width) of one row, or None where rows are not images.
        pixels: how pixels were treated (`load`). With `"dynamic"`, `train` holds the probabilities
            and `transform` draws from them; `valid` and `test` were drawn once.
    """

    name: str
    train: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    train_labels: Tensor | None = field(default=None, repr=False)
    valid_labels: Tensor | None = field(default=None, repr=False)
    test_labels: Tensor | None = field(default=None, repr=False)
    image_shape: tuple[int, int, int] | None = None
    pixels: str = "none"

    @property
    def data_dim(self) -> int:
        """D, the number of values in a row."""
        return self.train.shape[-1]

    @property
    def all(self) -> Tensor:
        """Every row, (N, D): train, then valid, then test."""
        return torch.cat([self.train, self.valid, self.test])

    def transform(self, x: Tensor) -> Tensor:
        """Transform a training batch: draw the pixels if they are dynamic."""
        return binarize(x) if self.pixels == "dynamic" else x

    def to(self, device: torch.device | str) -> DataSet:
        """Return the same set with its tensors on `device`."""
        tensors: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)
        }
        return dataclasses.replace(self, **tensors)


def binarize(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw x_d ~ Bernoulli(x_d) on the device of `x`, any shape; traceable, without a host sync.

    Done at every step, it is the treatment of MNIST in Burda et al. 2016 (arXiv:1509.00519).
    """
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (u < x).to(x.dtype)


def hide_labels(data: DataSet, keep: int, seed: int = 0) -> DataSet:
    """Keep `keep` labels of the training rows, as many of each class, and set the others to −1.

    The validation rows lose theirs too, so that what is kept of a fit is chosen without them; the
    test rows have them still.

    Args:
        keep: how many, at least one of each class; `seed`: which.

    Raises:
        ValueError: the set has no labels, or fewer than asked for, or less than one a class.
    """
    y = data.train_labels
    if y is None:
        raise ValueError(f"labels: {data.name} has none that could be kept.")
    classes = int(y.max()) + 1
    if not classes <= keep <= len(y):
        raise ValueError(
            f"labels: expected at least one of each of the {classes} classes, and {data.name} has "
            f"{len(y):,} with a label; got {keep:,}."
        )
    order = torch.randperm(len(y), generator=Generator().manual_seed(seed))
    turn = torch.empty_like(y)  # how many of its class stand before a row
    for c in range(classes):
        mine = order[y[order] == c]
        turn[mine] = torch.arange(len(mine))
    first = (turn * classes + y).argsort()[:keep]  # one of each class, then the next of each
    left = torch.full_like(y, -1)
    left[first] = y[first]
    valid = None if data.valid_labels is None else torch.full_like(data.valid_labels, -1)
    return dataclasses.replace(data, train_labels=left, valid_labels=valid)


def load(
    name: str | Path = "digits",
    root: str | Path | None = None,
    download: bool = False,
    *,
    pixels: str = "none",
    seed: int = 0,
) -> DataSet:
    """Load a data set by name, or a user's own table.

    Args:
        name: one of `SETS`, or the path of a `.npy` file (N, D), (N, H, W) or (N, C, H, W), or of
            a `.csv` file of numbers with or without a header. Arrays of uint8 images are divided
            by 255.
        root: the folder that holds `MNIST/raw`, `FashionMNIST/raw` (the published IDX files,
            packed or not) or `old_faithful`. Default: $ZOO_DATA, else ~/.cache/pyro-zoo. Nothing
            is written there unless `download`.
        download: fetch MNIST or Fashion-MNIST with torchvision where they are missing.
        pixels: `"none"` keeps the values; `"threshold"` sets those above 1/2 to one;
            `"static"` draws Bernoulli(pixel) once; `"dynamic"` leaves `train` as it is, to be drawn
            again at every step (`DataSet.transform`), and draws valid and test as `"static"` does.
        seed: of the toys' points and of the pixels drawn here. Splits do not depend on it.

    Raises:
        ValueError: unknown name or pixels, a damaged file, a cell that is not a number, NaNs,
            no data.
        FileNotFoundError: a file is missing; the message says where it was looked for.
    """
    if pixels not in PIXELS:
        raise ValueError(f"pixels: expected one of {list(PIXELS)}, got {pixels!r}.")
    root = Path(root or os.environ.get("ZOO_DATA") or "~/.cache/pyro-zoo").expanduser()
    generator = Generator().manual_seed(seed)
    key = str(name).lower().replace("_", "-")
    if key in TOYS:
        x, labels = TOYS[key](12_000, generator)
        data = _split(key, x, labels, sizes=(10_000, 1_000, 1_000))
    elif key == "digits":
        data = _digits()
    elif key in _IDX_FOLDERS:
        data = _idx_set(key, root, download)
    elif key == "old-faithful":
        data = _shuffled(key, _read_csv(_existing(root / "old_faithful" / "faithful.csv", key)))
    elif Path(name).suffix.lower() in (".npy", ".csv"):
        data = _table(Path(name).expanduser())
    else:
        near = difflib.get_close_matches(key, SETS, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {list(SETS)}."
        raise ValueError(f"data: no set {str(name)!r}, and no path to a .npy or .csv; {hint}")
    return _treat_pixels(data, pixels, generator)


def _treat_pixels(data: DataSet, pixels: str, generator: Generator) -> DataSet:
    if pixels == "none":
        return data
    rows = (data.train, data.valid, data.test)
    low, high = min(x.min() for x in rows), max(x.max() for x in rows)
    if low < 0 or high > 1:
        raise ValueError(
            f"pixels: {pixels!r} needs values in [0, 1], but {data.name} has [{low:.3g}, "
            f"{high:.3g}]. Use pixels='none' or rescale the data."
        )
    if pixels == "threshold":
        splits: dict[str, Any] = {
            s: (getattr(data, s) > 0.5).float() for s in ("train", "valid", "test")
        }
    else:  # train last: valid and test are the same draws under "static" and "dynamic"
        drawn = ("test", "valid", "train") if pixels == "static" else ("test", "valid")
        splits = {s: binarize(getattr(data, s), generator) for s in drawn}
    return dataclasses.replace(data, pixels=pixels, **splits)


def _split(
    name: str,
    x: Tensor,
    labels: Tensor | None,
    sizes: Sequence[int],
    image_shape: tuple[int, int, int] | None = None,
) -> DataSet:
    """Cut consecutive pieces of the given sizes."""
    x1, x2, x3 = x.split(list(sizes))
    y1, y2, y3 = (None, None, None) if labels is None else labels.split(list(sizes))
    return DataSet(name, x1, x2, x3, y1, y2, y3, image_shape)


def _shuffled(
    name: str,
    x: np.ndarray,
    labels: Tensor | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> DataSet:
    """Check the numbers, shuffle the rows by a fixed permutation and cut 80 : 10 : 10."""
    if len(x) < 3 or x.size == 0:
        raise ValueError(
            f"{name}: expected at least 3 rows, one for each of train, valid and test, got an "
            f"array of shape {x.shape}."
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: found below
        rows = torch.from_numpy(x.astype(np.float32)).reshape(len(x), -1)  # (N, D)
    bad = ~torch.isfinite(rows)
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: {int(bad.sum())} values are NaN or infinite, the first in row {row}, column "
            f"{column} (counted from 0, without the header). Drop or impute them first."
        )
    order = torch.randperm(len(rows), generator=Generator().manual_seed(0))
    held_out = max(1, len(rows) // 10)
    sizes = (len(rows) - 2 * held_out, held_out, held_out)
    y = None if labels is None else labels[order]
    return _split(name, rows[order], y, sizes, image_shape)


def _existing(path: Path, name: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: there is no file {path}. Pass the folder that holds "
            f"{'/'.join(path.parts[-2:])} as root, or set ZOO_DATA to it."
        )
    return path


# ---- images ---------------------------------------------------------------------------------


def _digits() -> DataSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return _shuffled("digits", digits.data / 16.0, torch.as_tensor(digits.target), (1, 8, 8))


_IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}  # torchvision's class and folder


def _idx_set(name: str, root: Path, download: bool) -> DataSet:
    folder = root / _IDX_FOLDERS[name] / "raw"
    files = [
        folder / f"{part}-{what}-ubyte"
        for part in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    ]
    missing = [f for f in files if not f.is_file() and not f.with_name(f"{f.name}.gz").is_file()]
    if missing and not download:
        raise FileNotFoundError(
            f"{name}: there is no file {missing[0]} or {missing[0].name}.gz. Pass the folder that "
            f"holds {_IDX_FOLDERS[name]}/raw as root (or set ZOO_DATA to it), or download=True."
        )
    if missing:
        try:
            from torchvision import datasets

            getattr(datasets, _IDX_FOLDERS[name])(root, download=True)
        except (ImportError, OSError, RuntimeError) as error:
            raise FileNotFoundError(f"{name}: downloading to {folder} failed: {error}") from error
    x_train, y_train, x_test, y_test = (_read_idx(f) for f in files)
    for x, y, part in ((x_train, y_train, files[0]), (x_test, y_test, files[2])):
        if x.ndim != 3 or y.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: expected images (N, H, W) and labels (N,), got {x.shape} and {y.shape} "
                f"beside {part}. Copy the published files again, or delete them and download=True."
            )
    images = torch.from_numpy(np.concatenate([x_train, x_test])).flatten(1).float().div_(255)
    labels = torch.from_numpy(np.concatenate([y_train, y_test])).long()
    held_out = len(x_train) // 6
    sizes = (len(x_train) - held_out, held_out, len(x_test))
    return _split(name, images, labels, sizes, (1, x_train.shape[1], x_train.shape[2]))


def _read_idx(path: Path) -> np.ndarray:
    """Read a uint8 array from an IDX file or its .gz: zeros, type, rank; big-endian sizes; data."""
    file = path if path.is_file() else path.with_name(f"{path.name}.gz")
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if raw[:3] != b"\x00\x00\x08":
            raise ValueError("it is not an IDX file of bytes")
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (EOFError, IndexError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{file} is truncated or damaged ({error}). Copy the published file again, or delete "
            f"it and pass download=True."
        ) from error


# ---- a user's own ---------------------------------------------------------------------------


def _table(path: Path) -> DataSet:
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path.absolute()}.")
    if path.suffix.lower() == ".csv":
        return _shuffled(path.name, _read_csv(path))
    try:
        x = np.load(path, allow_pickle=False)
    except (EOFError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npy array of numbers ({error}).") from error
    if x.dtype.kind not in "biuf" or x.ndim not in (1, 2, 3, 4):
        raise ValueError(
            f"{path}: expected real numbers of shape (N, D), (N, H, W) or (N, C, H, W), got "
            f"{x.dtype} of shape {x.shape}."
        )
    shape = None if x.ndim < 3 else (1, *x.shape[1:]) if x.ndim == 3 else x.shape[1:]
    if shape and x.dtype == np.uint8:
        x = x / np.float32(255)
    return _shuffled(path.name, x, image_shape=shape)


def _read_csv(path: Path) -> np.ndarray:
    """Numbers separated by commas; a first line without a single number is a header."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [(i, line) for i, line in enumerate(csv.reader(file), start=1) if line]
    header = lines.pop(0)[1] if lines and not any(map(_is_number, lines[0][1])) else []
    for i, line in lines:
        if len(line) != len(lines[0][1]):
            raise ValueError(
                f"{path}: line {i} has {len(line)} cells, the first line of data "
                f"{len(lines[0][1])}. Make every line as long."
            )
        for j, cell in enumerate(line):
            if not _is_number(cell):
                column = f"{j + 1} ({header[j]})" if j < len(header) else f"{j + 1}"
                raise ValueError(
                    f"{path}: line {i}, column {column} is {cell!r}, not a number. Drop the "
                    f"column, or code it as numbers."
                )
    return np.array([line for _, line in lines], dtype=np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
