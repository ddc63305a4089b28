"""Data sets: embedded digits, MNIST and its kin, 2-D toys, and a user's own tables and images.

Splits are fixed. MNIST and Fashion-MNIST: the first 50,000 training images are `train`, the last
10,000 `valid`, the published test set is `test` (the split of Larochelle & Murray 2011, "The neural
autoregressive distribution estimator"). The toys are drawn afresh: 10,000, 1,000 and 1,000 points.
Splits that are given as files are taken as they are. Everything else is shuffled once by a fixed
permutation and cut 80 : 10 : 10.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import math
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from zoo.tables import ENDINGS, Column, agreed, matrix, prepared, read_array, read_frame, shown
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
PIXELS = ("none", "threshold", "static", "dynamic", "dequantised")
GREYS = {"digits": 17}  # grey levels of a set, 256 of any other


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, split and on one device.

    Attributes:
        name: what `load` was asked for.
        train, valid, test: float32, (N, D). Images are flat and lie in [0, 1].
        train_labels, valid_labels, test_labels: int64, (N,), or None where there are no labels.
        image_shape: (channels, height, width) of one row, or None where rows are not images.
        pixels: how pixels were treated (`load`). With `"dynamic"`, `train` holds the probabilities
            and `transform` draws from them; `valid` and `test` were drawn once. With
            `"dequantised"`, rows are (level + u) / levels with u uniform, drawn likewise.
        columns: names of the D columns of a table, or None.
        classes: names of the labels, where they are words.
        levels: grey levels of dequantised pixels.
        shift, scale: (D,) each, of a set that was standardised: its rows are (x - shift) / scale.
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
    columns: tuple[str, ...] | None = field(default=None, repr=False)
    classes: tuple[str, ...] | None = field(default=None, repr=False)
    levels: int | None = field(default=None, repr=False)
    shift: Tensor | None = field(default=None, repr=False)
    scale: Tensor | None = field(default=None, repr=False)

    @property
    def data_dim(self) -> int:
        """D, the number of values in a row."""
        return self.train.shape[-1]

    @property
    def all(self) -> Tensor:
        """Every row, (N, D): train, then valid, then test."""
        return torch.cat([self.train, self.valid, self.test])

    def transform(self, x: Tensor) -> Tensor:
        """Transform a training batch: draw the pixels if they are dynamic, or their noise."""
        if self.pixels == "dequantised":
            return _dequantised(x, self.levels or 256)
        return binarize(x) if self.pixels == "dynamic" else x

    @property
    def log_det(self) -> float:
        """Nats to be added to a log density of rows, for one in the units that were given.

        Those of dequantised pixels are grey levels, so that -log₂ p / D is a bound on the bits of
        a pixel (Theis et al. 2016, arXiv:1511.01844, section 3.1), as papers tell them.
        """
        standardised = 0.0 if self.scale is None else -float(self.scale.double().log().sum())
        return standardised - (self.data_dim * math.log(self.levels) if self.levels else 0.0)

    def standardised(self) -> DataSet:
        """Return the set with each column at mean 0 and standard deviation 1 in training.

        Raises:
            ValueError: a column is constant in training.
        """
        mean, sd = self.train.double().mean(0), self.train.double().std(0)
        constant = (self.train == self.train[:1]).all(0)
        if constant.any():
            d = int(constant.nonzero()[0])
            name = self.columns[d] if self.columns else str(d + 1)
            others = torch.cat([self.valid[:, d], self.test[:, d]])
            moves = bool((others != self.train[0, d]).any())
            raise ValueError(
                f"{self.name}: column {name!r} is {float(self.train[0, d]):g} in every training "
                f"row{' and not in validation or test' if moves else ''}, so it has no density. "
                f"Leave it out: --drop {name}."
            )
        shift, scale = mean.float(), sd.float()
        splits: dict[str, Any] = {
            s: ((getattr(self, s).double() - mean) / sd).float() for s in ("train", "valid", "test")
        }
        return dataclasses.replace(self, shift=shift, scale=scale, **splits)

    def original(self, x: Tensor) -> Tensor:
        """Return rows (..., D) of a standardised set in the units that they were given in."""
        return x if self.scale is None else x * self.scale.to(x) + self.shift.to(x)  # type: ignore[union-attr]

    def in_own_units(self) -> DataSet:
        """Return the set before it was standardised, to float32's rounding."""
        splits: dict[str, Any] = {
            s: self.original(getattr(self, s)) for s in ("train", "valid", "test")
        }
        return dataclasses.replace(self, shift=None, scale=None, **splits)

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


def _dequantised(x: Tensor, levels: int, generator: Generator | None = None) -> Tensor:
    """(level + u) / levels with u uniform, of pixels level / (levels - 1) in [0, 1]."""
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return ((x * (levels - 1)).round() + u) / levels


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
    name: Any = "digits",
    root: str | Path | None = None,
    download: bool = False,
    *,
    pixels: str = "none",
    seed: int = 0,
    label: str | None = None,
    drop: Collection[str] = (),
    missing: str = "refuse",
    categorical: str = "refuse",
    train: Any = None,
    valid: Any = None,
    test: Any = None,
) -> DataSet:
    """Load a data set by name, or a user's own table.

    Args:
        name: one of `SETS`; a DataFrame or Arrow table; or the path of a table (`.csv` with or
            without a header, `.tsv`, `.parquet`, `.feather`, `.npy` (N, D)), of images (`.npy` (N,
            H, W), (N, C, H, W) or (N, H, W, C)), or of a folder of images, whose folders, if any,
            are the labels. Images of 0 to 255 are divided by 255.
        root: the folder that holds `MNIST/raw`, `FashionMNIST/raw` (the published IDX files,
            packed or not) or `old_faithful`. Default: $ZOO_DATA, else ~/.cache/pyro-zoo. Nothing
            is written there unless `download`.
        download: fetch MNIST or Fashion-MNIST with torchvision where they are missing.
        pixels: `"none"` keeps the values; `"threshold"` sets those above 1/2 to one;
            `"static"` draws Bernoulli(pixel) once; `"dynamic"` leaves `train` as it is, to be drawn
            again at every step (`DataSet.transform`), and draws valid and test as `"static"` does;
            `"dequantised"` adds uniform noise of one grey level, likewise, for densities.
        seed: of the toys' points and of the pixels drawn here. Splits do not depend on it.
        label: the column of a table that holds labels; words become 0, 1, ...
        drop: columns to leave out.
        missing: `"refuse"`, `"drop-rows"`, or `"mean"`, which stands for what is missing.
        categorical: columns of words: `"refuse"`, `"one-hot"`, or `"drop"`.
        train, valid, test: published splits, each as `name`; taken as they are. Without `valid` or
            `test`, a tenth of `train` is held out for it.

    Raises:
        ValueError: unknown name or pixels, a damaged file, a cell that is not a number, NaNs,
            no data, a column that cannot be used, splits that overlap.
        FileNotFoundError: a file is missing; the message says where it was looked for.
    """
    if pixels not in PIXELS:
        raise ValueError(f"pixels: expected one of {list(PIXELS)}, got {pixels!r}.")
    root = Path(root or os.environ.get("ZOO_DATA") or "~/.cache/pyro-zoo").expanduser()
    generator = Generator().manual_seed(seed)
    key = str(name).lower().replace("_", "-")
    given = {"train": train, "valid": valid, "test": test}
    splits = {k: v for k, v in given.items() if v is not None}
    if splits and train is None:
        raise ValueError(f"--{next(iter(splits))}: name the training rows too, with --train.")
    how = {"label": label, "drop": drop, "missing": missing, "categorical": categorical}
    if splits:
        data = _published(splits, how)
    elif hasattr(name, "columns") or Path(name).suffix.lower() in ENDINGS:
        data = _table(name, how)
    elif Path(name).expanduser().is_dir():
        data = _image_folder(Path(name).expanduser())
    elif key in TOYS:
        x, labels = TOYS[key](12_000, generator)
        data = _split(key, x, labels, sizes=(10_000, 1_000, 1_000))
    elif key == "digits":
        data = _digits()
    elif key in _IDX_FOLDERS:
        data = _idx_set(key, root, download)
    elif key == "old-faithful":
        data = _table(_existing(root / "old_faithful" / "faithful.csv", key), how)
        data = dataclasses.replace(data, name=key)
    else:
        near = difflib.get_close_matches(key, SETS, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {list(SETS)}."
        raise ValueError(
            f"data: no set {str(name)!r}, and no path to a folder of images or to a file that ends "
            f"in {', '.join(ENDINGS)}; {hint}"
        )
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
    splits: dict[str, Any]
    if pixels == "threshold":
        splits = {s: (getattr(data, s) > 0.5).float() for s in ("train", "valid", "test")}
    elif pixels == "dequantised":
        levels = GREYS.get(data.name, 256)
        splits = {s: _dequantised(getattr(data, s), levels, generator) for s in ("test", "valid")}
        data = dataclasses.replace(data, levels=levels)
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
    rows = _finite(name, x)
    order = torch.randperm(len(rows), generator=Generator().manual_seed(0))
    held_out = max(1, len(rows) // 10)
    sizes = (len(rows) - 2 * held_out, held_out, held_out)
    y = None if labels is None else labels[order]
    return _split(name, rows[order], y, sizes, image_shape)


def _finite(name: str, x: np.ndarray) -> Tensor:
    """Rows (N, D) as float32, or ValueError."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: found below
        rows = torch.from_numpy(x.astype(np.float32)).reshape(len(x), -1)
    bad = ~torch.isfinite(rows)
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: {int(bad.sum())} values are NaN or infinite, the first in row {row}, column "
            f"{column} (counted from 0, without the header). Drop or impute them first."
        )
    return rows


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


def _table(given: Any, how: Mapping[str, Any]) -> DataSet:
    """A table, or an array of images, shuffled and cut."""
    path = None if hasattr(given, "columns") else Path(given).expanduser()
    if path is not None and path.suffix.lower() == ".npy" and path.is_file():
        x = read_array(path)
        if x.ndim > 2:
            return _images(path.name, x)
    frame, y = prepared(read_frame(given), **how)
    labels, classes = _labels(y)
    data = _shuffled(frame.name, matrix(frame), labels)
    return dataclasses.replace(data, columns=tuple(frame.columns), classes=classes)


def _labels(y: Column | None) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels 0, 1, ... and their names, where they are words or not these numbers."""
    if y is None:
        return None, None
    if y.levels:
        return y.tensor(), y.levels
    values, codes = np.unique(y.values, return_inverse=True)
    if len(values) > max(20, len(codes) // 5):
        raise ValueError(
            f"--label: column {y.name!r} has {len(values):,} different values: expected labels, "
            "of which there are few."
        )
    names = None if (values == np.arange(len(values))).all() else tuple(f"{v:g}" for v in values)
    return torch.from_numpy(codes.astype(np.int64)), names


def _images(name: str, x: np.ndarray, labels: Tensor | None = None) -> DataSet:
    """Images (N, H, W), (N, C, H, W) or (N, H, W, C), of 0 to 1 or of 0 to 255."""
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    shape = (1, *x.shape[1:]) if x.ndim == 3 else x.shape[1:]
    bytes_ = x.dtype == np.uint8 or (x.size and x.min() >= 0 and 1 < x.max() <= 255)
    return _shuffled(name, x / np.float32(255) if bytes_ else x, labels, shape)


def _image_folder(folder: Path) -> DataSet:
    """Images of one size in a folder, or in folders of it, whose names are then the labels."""
    from PIL import Image

    endings = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings)
    if len(paths) < 3:
        raise ValueError(f"{folder}: expected a folder of 3 images or more, got {len(paths)}.")
    images, first = [], None
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB"))
        first = first or (path, pixels.shape)
        if pixels.shape != first[1]:
            raise ValueError(
                f"{path}: expected an image of {first[1]} (height, width, channels) as "
                f"{first[0].name}, got {pixels.shape}. Make all images of one size."
            )
        images.append(pixels)
    kinds = sorted({p.parent.name for p in paths})
    there = [kinds.index(p.parent.name) for p in paths] if len(kinds) > 1 else None
    data = _images(folder.name, np.stack(images), None if there is None else torch.tensor(there))
    return dataclasses.replace(data, classes=tuple(kinds) if there else None)


def _published(given: Mapping[str, Any], how: Mapping[str, Any]) -> DataSet:
    """Splits as they are; a tenth of the training rows stands for one that is not given."""
    frames = agreed({split: read_frame(g) for split, g in given.items()})
    made = {split: prepared(frame, **how) for split, frame in frames.items()}
    rows = {s: _finite(f.name, matrix(f)) for s, (f, _) in made.items()}
    labels: dict[str, Tensor | None] = dict.fromkeys(made)
    classes = None
    if made["train"][1] is not None:
        columns = [y for _, y in made.values() if y is not None]
        every = dataclasses.replace(columns[0], values=np.concatenate([y.values for y in columns]))
        codes, classes = _labels(every)
        assert codes is not None
        seen = {*codes[: len(rows["train"])].tolist()}
        if unseen := sorted({*codes.tolist()} - seen):
            names = classes or tuple(map(str, range(int(codes.max()) + 1)))
            raise ValueError(
                f"--label: {shown([names[i] for i in unseen])} of column {columns[0].name!r} is in "
                "no training row. Leave out such rows."
            )
        labels = dict(zip(rows, codes.split([len(x) for x in rows.values()])))
    for split in ("valid", "test"):
        if split not in rows:
            order = torch.randperm(len(rows["train"]), generator=Generator().manual_seed(0))
            n = max(1, len(order) // 10)
            if len(order) < 3:
                raise ValueError(f"--train: expected at least 3 rows, got {len(order)}.")
            rows[split], rows["train"] = rows["train"][order[:n]], rows["train"][order[n:]]
            whole = labels["train"]
            if whole is not None:
                labels[split], labels["train"] = whole[order[:n]], whole[order[n:]]
            else:
                labels[split] = None
    name = made["train"][0].name
    x = [rows[s] for s in ("train", "valid", "test")]
    y = [labels[s] for s in ("train", "valid", "test")]
    columns_ = tuple(made["train"][0].columns)
    return DataSet(name, x[0], x[1], x[2], y[0], y[1], y[2], columns=columns_, classes=classes)
