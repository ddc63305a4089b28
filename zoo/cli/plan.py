"""The plan of a run: its model, data and options, as `config.json` in its folder."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from inference.training.batches import fingerprint
from inference.training.checkpoint import FORMAT, Fields, whole
from inference.training.folders import read_whole
from zoo.cards import CARDS, Card
from zoo.data import PIXELS, DataSet, load

from .options import FILLED, Argument, arguments, shown

MOST = 1_000_000  # draws for a test datum, and test data


@dataclass(frozen=True)
class Plan:
    """The model, data and options of a run.

    Attributes:
        command: as typed.
        card: of the model.
        options: of the model.
        data, root, pixels, seed: what `zoo.data.load` was asked for.
        fingerprint: of the data set, once it was loaded.
        trainer, settings: which, and its keyword arguments.
        particles, test_rows: how it is judged.
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
    fingerprint: str = ""
    seed: int = 0
    particles: int = 500
    test_rows: int = 1_000
    resumed: str | None = None

    @property
    def stem(self) -> str:
        """The name of the run's folder, without its number."""
        return f"{self.card.name}-{Path(self.data).stem}"

    def load(self, download: bool = False) -> DataSet:
        """Return the data set."""
        return load(self.data, self.root, download, pixels=self.pixels, seed=self.seed)

    def pinned(self, data: DataSet) -> Plan:
        """Return the plan with absolute paths and the fingerprint of its data."""
        pinned: dict[str, Any] = {"fingerprint": fingerprint_of(data)}
        if Path(self.data).suffix.lower() in (".npy", ".csv"):
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
            "model": self.card.name,
            "options": dict(self.options),
            "data": {
                "name": self.data, "root": self.root, "pixels": self.pixels,
                "fingerprint": self.fingerprint,
            },
            "seed": self.seed,
            "trainer": self.trainer,
            "settings": dict(self.settings),
            "judged": {"particles": self.particles, "test_rows": self.test_rows},
            "resumed": self.resumed,
            "versions": versions | {name: _version(name) for name in libraries},
        }, indent=2)  # fmt: skip
        return f"{text}\n".encode()

    @staticmethod
    def read(folder: Path) -> Plan:
        """Read the plan in a run folder.

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
        name = fields.take("model", f"one of {', '.join(CARDS)}", lambda v: v in CARDS)
        card = CARDS[name]
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
        return Plan(
            fields.text("command"), card, options, data.text("name"), trainer, settings,
            data.text("root", optional=True),
            data.take("pixels", f"one of {', '.join(PIXELS)}", lambda v: v in PIXELS),
            data.text("fingerprint"), fields.whole("seed"), **numbers,
            resumed=fields.text("resumed", optional=True),
        )  # fmt: skip


def fingerprint_of(data: DataSet) -> str:
    """The hash of all splits and their labels."""
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
        value = inner.take(key, f"a value of {a.flag}", lambda v, a=a: _fits(a, _tuples(v)))
        found[key] = _tuples(value)
    return found


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
