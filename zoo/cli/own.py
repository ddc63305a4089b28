"""A pair of the user's own, named as FILE:NAME or MODULE:NAME: a card like those of the catalogue.

NAME is a class or an object with the methods `model` and `guide`, or a model that is a function.
Its options are read off the signature, as for the catalogue.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import torch
from torch import nn

from inference import make_guide
from inference.randomness import forked
from zoo.cards import Card
from zoo.tables import Column, Frame, matrix, prepared, shown, usable

from .options import PLAIN

GIVEN = ("self", "size")  # arguments of a model that are no data


class Halves:
    """A model and a guide that are two callables, as one pair."""

    def __init__(self, model: Callable, guide: Callable):
        self.model, self.guide = model, guide


@dataclass(frozen=True)
class OwnCard(Card):
    """The card of a pair of the user's own.

    Attributes:
        factory: the class, or a function that returns the pair; its options are the model's.
        source: the hash of the file that it comes from.
    """

    factory: Any = field(default=None, repr=False)
    source: str = ""

    def load(self) -> Any:
        """Return the factory."""
        return self.factory

    @property
    def reference(self) -> str:
        """FILE:NAME, as it stands in `config.json`."""
        return self.path


def is_own(name: str) -> bool:
    """Return whether a name means a pair of the user's own."""
    return ":" in name or name.endswith(".py")


def own_card(reference: str) -> OwnCard:
    """Import what FILE:NAME or MODULE:NAME means, and return its card.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be imported, has no such name, or holds no pair.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        where, name = (reference, "") if not where else (where, name)
    module, path = _module(where)
    if not name or not hasattr(module, name):
        there = ", ".join(_pairs_in(module)) or "none"
        raise ValueError(
            f"{reference}: expected FILE:NAME, with one of the pairs and models in {where} "
            f"({there}), got {name or 'no name'!r}."
        )
    subject = getattr(module, name)
    factory = _factory(subject, module, name, reference)
    doc = inspect.getdoc(subject if not isinstance(subject, nn.Module) else type(subject)) or ""
    summary = doc.split("\n\n")[0].replace("\n", " ").strip().rstrip(".") or f"{name} of {where}"
    text = path.read_bytes() if path is not None else b""
    at = f"{path.resolve()}:{name}" if path is not None and where.endswith(".py") else reference
    return OwnCard(
        name.lower().replace("_", "-"), at, summary, "your own", "not told", "Your own",
        data="", steps=5_000, pixels="none", factory=factory,
        source=hashlib.sha256(text).hexdigest()[:16],
    )  # fmt: skip


def installed() -> dict[str, Card]:
    """Return the cards of installed packages: entry points `zoo.models`, of a card or a pair."""
    found: dict[str, Card] = {}
    for entry in importlib.metadata.entry_points(group="zoo.models"):
        loaded = entry.load()
        card = loaded if isinstance(loaded, Card) else own_card(entry.value)
        found[entry.name] = dataclasses.replace(card, name=entry.name)
    return found


def _module(where: str) -> tuple[ModuleType, Path | None]:
    """Import a file or a dotted module."""
    try:
        if not where.endswith(".py"):
            sys.path.insert(0, "")
            module = importlib.import_module(where)
            return module, Path(module.__file__) if module.__file__ else None
        path = Path(where).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{where}: there is no file {path.absolute()}.")
        sys.path.insert(0, str(path.resolve().parent))  # what it imports may stand beside it
        name = f"zoo_own_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module, path
    except FileNotFoundError:
        raise
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{where} could not be imported: {error}. Expected a file such as my_pair.py or an "
            "importable module."
        ) from error
    except Exception as error:
        line = next((f.lineno for f in reversed(traceback.extract_tb(error.__traceback__))
                     if f.filename.endswith(Path(where).name)), None)  # fmt: skip
        at = f", line {getattr(error, 'lineno', None) or line}" if line else ""
        raise ValueError(
            f"{where}{at} could not be imported: {type(error).__name__}: {error}."
        ) from error


def _pairs_in(module: ModuleType) -> list[str]:
    """Names in a module that may be pairs or models."""
    return [
        n for n, v in vars(module).items()
        if getattr(v, "__module__", None) == module.__name__ and callable(getattr(v, "model", v))
    ]  # fmt: skip


def _factory(subject: Any, module: ModuleType, name: str, reference: str) -> Any:
    """Return what makes the pair: a class, or a function with the options as its arguments."""
    halves = [callable(getattr(subject, half, None)) for half in ("model", "guide")]
    if all(halves) and inspect.isclass(subject):
        return subject
    if all(halves):
        return lambda: subject
    if halves[0]:
        raise ValueError(
            f"{reference}: {name} has a method model and no guide. Add one, or name the model "
            "itself, as a function, to get a guide made for it."
        )
    if not callable(subject) or inspect.isclass(subject):
        raise ValueError(
            f"{reference}: expected a class with the methods model and guide, or a model; got "
            f"{type(subject).__name__}."
        )
    theirs = getattr(module, "guide", None) if callable(getattr(module, "guide", None)) else None
    return _of_function(subject, theirs, module)


def _of_function(model: Callable, theirs: Callable | None, module: ModuleType) -> Callable:
    """The factory of a model that is a function: its options, and which guide."""
    own = {
        p.name: p
        for p in inspect.signature(model).parameters.values()
        if type(p.default) in PLAIN and p.name not in GIVEN
    }
    default = "guide" if theirs is not None else "full-rank"

    def factory(*, guide: str = default, **options: Any) -> Halves:
        bound = functools.partial(model, **options) if options else model
        named = getattr(module, guide, None)
        if callable(named):
            takes = inspect.signature(named).parameters
            shared = {k: v for k, v in options.items() if k in takes}
            return Halves(bound, functools.partial(named, **shared) if shared else named)
        return Halves(bound, make_guide(guide, bound))

    text = f"a function of {Path(str(module.__file__)).name}, or a kind that make_guide knows."
    parameters = [
        inspect.Parameter("guide", inspect.Parameter.KEYWORD_ONLY, default=default,
                          annotation=str),
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()),
    ]  # fmt: skip
    factory.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    factory.__annotations__ = {"guide": str}
    factory.of = model  # type: ignore[attr-defined]
    factory.__doc__ = f"{inspect.getdoc(model) or ''}\n\nArgs:\n    guide: {text}\n"
    return factory


def arguments_by_name(model: Callable, named: Mapping[str, Any], source: str) -> tuple[Any, ...]:
    """Arguments of a model among data by name.

    An argument has the column of its name; `x` has all the other columns, (N, D), where none is
    called so; an argument with a default that no column has is left out, as are those after it.
    Numbers are float32 and categories int64; so are whole numbers where the model uses them as
    indices.

    Args:
        model: whose arguments.
        named: as `zoo.tables.read_named` returns.
        source: of the data, for messages.

    Raises:
        ValueError: an argument has no column; columns with text, dates or missing values.
    """
    args = _arguments(model, named, source, integers=False)
    if any(isinstance(v, Column) and v.whole for v in named.values()) and _indexes(model, args):
        args = _arguments(model, named, source, integers=True)
    return args


def _arguments(
    model: Callable, named: Mapping[str, Any], source: str, integers: bool
) -> tuple[Any, ...]:
    every = [p for p in inspect.signature(model).parameters.values() if p.name not in GIVEN]
    wanted = [p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = {p.name for p in wanted} & {*named}
    rest = {n: v for n, v in named.items() if n not in taken and isinstance(v, Column)}
    args: list[Any] = []
    for p in wanted:
        if p.name in named:
            value = named[p.name]
            if isinstance(value, Column):
                frame = usable(Frame(source, {p.name: value}, len(value.values)))
                value = frame.columns[p.name].tensor(integers)
            args.append(value)
        elif p.name == "x" and rest:
            rows = len(next(iter(rest.values())).values)
            numbers, _ = prepared(Frame(source, rest, rows))
            args.append(torch.from_numpy(matrix(numbers).astype(np.float32)))
        elif p.default is not p.empty:
            break
        else:
            raise ValueError(
                f"{source}: the model takes {p.name!r}, which is no column; there are "
                f"{shown(named)}. Rename the argument or the column, or call it x to get all "
                "columns that no other argument takes, (N, D)."
            )
    return tuple(args)


def labels_of(model: Any, named: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Argument -> names of its categories; of `x`, of its columns."""
    takes = list(inspect.signature(model).parameters)
    out = {n: c.levels for n, c in named.items() if isinstance(c, Column) and c.levels}
    rest = tuple(n for n in named if n not in takes)
    return out | ({"x": rest} if "x" in takes and "x" not in named and rest else {})


def _indexes(model: Callable, args: tuple[Any, ...]) -> bool:
    """Tell whether a model uses numbers as indices, which must be whole."""
    store: Any = {"params": {}, "constraints": {}}
    try:
        with forked(0), torch.no_grad(), pyro.get_param_store().scope(store), pyro.poutine.block():
            model(*args)
    except IndexError as error:
        return "indices" in str(error)
    except Exception:  # what else is wrong is said where the pair is looked at
        return False
    return False
