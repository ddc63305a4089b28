"""The plan of a run: its model, data and options, as `config.json` in its folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from inference.training.batches import fingerprint
from inference.training.checkpoint import FORMAT, Fields, whole
from inference.training.folders import read_whole
from zoo.cards import CARDS, Card
from zoo.data import PIXELS, SETS, DataSet, load

from .inputs import NamedSet, is_named, load_own
from .options import FILLED, Argument, arguments, shown
from .own import OwnCard, installed, is_own, own_card

log = logging.getLogger("zoo")
MOST = 1_000_000  # draws for a test datum, and test data


@dataclass(frozen=True)
class Plan:
    """The model, data and options of a run.

    Attributes:
        command: as typed.
        card: of the model.
        options: of the model.
        data, root, pixels, seed: what `zoo.data.load` was asked for; `table`: the other options of
            the data, by name.
        fingerprint: of the data set, once it was loaded.
        trainer, settings: which, and its keyword arguments.
        particles, test_rows, ais: how it is judged.
        resumed: the folder it went on from.
    """

    command: str
    card: Card
    options: Mapping[str, Any]
    data: str
    trainer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    root: str | None = None
    pixels: str = "none"
    table: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    seed: int = 0
    particles: int = 500
    test_rows: int = 1_000
    ais: int = 0
    resumed: str | None = None

    @property
    def stem(self) -> str:
        """The name of the run's folder, without its number."""
        return f"{self.card.name}-{Path(self.table.get('train') or self.data).stem}"

    def load(self, download: bool = False) -> DataSet:
        """Return the data set, standardised where that was asked for."""
        table = {k: v for k, v in self.table.items() if v is not None and k != "standardise"}
        if isinstance(self.card, OwnCard) and is_named(table.get("train") or self.data):
            return load_own(self.card, self.data, table)
        data = load(
            self.data, self.root, download, pixels=self.pixels, seed=self.seed, **table
        )  # fmt: skip
        return data.standardised() if self.standardises(data) else data

    def standardises(self, data: DataSet) -> bool:
        """Return whether the columns are standardised: by default those of a table of numbers.

        Raises:
            ValueError: neither yes, no nor auto.
        """
        word = self.table.get("standardise", "auto")
        if word not in ("yes", "no", "auto"):
            raise ValueError(f"--standardise: expected yes, no or auto, got {word!r}.")
        if word != "auto":
            return word == "yes"
        own = isinstance(self.card, OwnCard) or not self.card.standardise
        named = self.data in SETS and not self.table.get("train")
        binary = bool(((data.train == 0) | (data.train == 1)).all())
        return not (own or named or binary or data.image_shape)

    def pinned(self, data: DataSet) -> Plan:
        """Return the plan with absolute paths and the fingerprint of its data."""
        pinned: dict[str, Any] = {"fingerprint": fingerprint_of(data)}
        files = {s: self.table[s] for s in ("train", "valid", "test") if self.table.get(s)}
        if files:
            paths = {s: str(Path(f).expanduser().resolve()) for s, f in files.items()}
            pinned["table"] = {**self.table, **paths}
        elif self.data not in SETS and Path(self.data).expanduser().exists():
            pinned["data"] = str(Path(self.data).expanduser().resolve())
        elif data.name in ("mnist", "fashion-mnist", "old-faithful"):
            root = self.root or os.environ.get("ZOO_DATA") or "~/.cache/pyro-zoo"
            pinned["root"] = str(Path(root).expanduser().resolve())
        return dataclasses.replace(self, **pinned)

    def config(self) -> bytes:
        """Return the content of `config.json`."""
        libraries = ("torch", "pyro-ppl", "pyro-zoo")
        versions = {"python": platform.python_version()}
        text = json.dumps({
            "format": FORMAT,
            "command": self.command,
            "model": self.card.path if isinstance(self.card, OwnCard) else self.card.name,
            "source": self.card.source if isinstance(self.card, OwnCard) else None,
            "options": dict(self.options),
            "data": {
                "name": self.data, "root": self.root, "pixels": self.pixels,
                "fingerprint": self.fingerprint, "table": dict(self.table),
            },
            "seed": self.seed,
            "trainer": self.trainer,
            "settings": dict(self.settings),
            "judged": {
                "particles": self.particles, "test_rows": self.test_rows, "ais": self.ais,
            },
            "resumed": self.resumed,
            "versions": versions | {name: _version(name) for name in libraries},
        }, indent=2)  # fmt: skip
        return f"{text}\n".encode()

    @staticmethod
    def read(folder: Path, pair: str | None = None) -> Plan:
        """Read the plan in a run folder.

        Args:
            folder: of the run.
            pair: FILE:NAME, of a run of one's own pair. Code is run only where it is named here.

        Raises:
            FileNotFoundError: there is no run.
            ValueError: a field is not what it should be.
        """
        path = folder / "config.json"
        try:
            fields = Fields(path, json.loads(read_whole(path)))
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder}: no run here (looked for {path}).") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged: expected JSON, got {str(error)!r:.80}. Restore the file, or "
                "fit again."
            ) from error
        if fields.values.get("format") != FORMAT:
            raise fields.wrong("field 'format'", str(FORMAT), fields.values.get("format", "none"))
        card = _card_of(fields, folder, pair)
        known = {a.name: a for a in arguments(card.load(), skip=FILLED)}
        options = _options(fields, "options", known)
        trainer = fields.take("trainer", " or ".join(card.trainers), lambda v: v in card.trainers)
        from .train import TRAINERS

        own = {a.name: a for a in arguments(TRAINERS[trainer])}
        settings = _options(fields, "settings", own)
        data = Fields(path, fields.values.get("data"))
        judged = Fields(path, fields.values.get("judged"))
        numbers = {
            n: judged.take(n, f"1 to {MOST:,}", lambda v: whole(v, 1) and v <= MOST)
            for n in ("particles", "test_rows")
        }
        if "ais" in judged.values:
            numbers["ais"] = judged.take(
                "ais", f"0 to {MOST:,}", lambda v: whole(v, 0) and v <= MOST
            )
        return Plan(
            fields.text("command"), card, options, data.text("name"), trainer, settings,
            data.text("root", optional=True),
            data.take("pixels", f"one of {', '.join(PIXELS)}", lambda v: v in PIXELS),
            _options(data, "table", {a.name: a for a in arguments(columns)}),
            data.text("fingerprint"), fields.whole("seed"), **numbers,
            resumed=fields.text("resumed", optional=True),
        )  # fmt: skip


def columns(
    standardise: str = "auto",
    label: str | None = None,
    drop: Sequence[str] = (),
    missing: str = "refuse",
    categorical: str = "refuse",
    train: str | None = None,
    valid: str | None = None,
    test: str | None = None,
) -> None:
    """Declare the options of tables.

    Args:
        standardise: columns to mean 0 and deviation 1 in training, undone in draws and densities:
            yes, no, or auto, for tables of numbers.
        label: the column of labels.
        drop: columns to leave out, with commas between.
        missing: rows with missing values: refuse, drop-rows, or mean (of the column, in its place).
        categorical: columns of words: refuse, one-hot or drop.
        train: a published split, taken as it is, with --valid and --test.
        valid: likewise; else a tenth of the training rows.
        test: likewise; else a tenth of the training rows.
    """


def _card_of(fields: Fields, folder: Path, pair: str | None) -> Card:
    """The card of a run: of the catalogue, or of the pair that was named.

    Raises:
        ValueError: there is no such model; the run is of one's own pair, which was not named.
    """
    known = {**CARDS, **installed()}
    name = fields.take("model", f"one of {', '.join(known)}, or FILE:NAME", lambda v: (
        isinstance(v, str) and (v in known or is_own(v))
    ))  # fmt: skip
    if name in known:
        if pair is not None:
            raise ValueError(f"--pair: {folder} is a run of {name}. Leave it out.")
        return known[name]
    if pair is None:
        raise ValueError(
            f"{folder} is a run of a pair of your own. Name its file, which is run: --pair {name}"
        )
    card = own_card(pair)
    if card.source != fields.values.get("source"):
        log.warning("%s has changed since the run was fitted.", pair)
    return card


def fingerprint_of(data: DataSet) -> str:
    """The hash of all splits and their labels, or of a pair's arguments."""
    if isinstance(data, NamedSet):
        return fingerprint([a for s in sorted(data.given) for a in data.given[s]])
    splits = ("train", "valid", "test")
    return fingerprint([getattr(data, s + end) for s in splits for end in ("", "_labels")])


def _options(fields: Fields, name: str, known: Mapping[str, Argument]) -> dict[str, Any]:
    """A field that holds options by name, each as the command would have read it."""
    given = fields.take(
        name,
        f"options among {', '.join(known)}",
        lambda v: isinstance(v, dict) and v.keys() <= known.keys(),
    )
    inner = Fields(fields.path, given)
    found = {}
    for key in given:
        a = known[key]
        value = inner.take(key, f"a value of {a.flag}", partial(_fits_list, a))
        found[key] = _tuples(value)
    return found


def _fits_list(a: Argument, value: Any) -> bool:
    return _fits(a, _tuples(value))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _fits(a: Argument, value: Any) -> bool:
    """True for a value that the command would read for an option."""
    if value is None or value == a.default:
        return value is a.default or type(value) is type(a.default)
    if a.kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or (a.kind is int and not whole(value, -(2**31))):
        return False
    return bool(a.read(a.kind(shown(value))) == value)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
