"""The file of a run's state: safetensors with a checksum, the last two kept. Nothing is pickled.

`state.safetensors` holds tensors and, as JSON in its header, everything else; `sha256` in the
header is the hash of the whole file with zeros in its place. The state before stands beside it. A
state appears whole: whatever is killed while it writes leaves the two that were there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load, save

from .. import elbo, optim
from .folders import STATE, read_whole, sweep, write_whole

FORMAT = 3
BEFORE = "state-before.safetensors"
BLANK = "0" * 64
log = logging.getLogger("inference")


def write(folder: Path, tensors: Mapping[str, torch.Tensor], fields: Mapping[str, Any]) -> None:
    """Write a state into a folder and keep the one before."""
    text = {"format": str(FORMAT), "sha256": BLANK, "fields": json.dumps(fields)}
    data = save(dict(tensors), text)
    data = data.replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
    sweep(folder)
    write_whole(folder / STATE, data, folder / BEFORE)


def read(folder: Path, check: Callable[[dict, Fields], Any]) -> Any:
    """`check(tensors, fields)` of the newest state that is whole, of a folder's two.

    Raises:
        FileNotFoundError: there is no state.
        ValueError: none is whole; file, field, what was expected and what came.
    """
    problems: list[Exception] = []
    for path in (folder / STATE, folder / BEFORE):
        try:
            found = check(*_opened(path))
        except (FileNotFoundError, ValueError) as error:
            problems.append(error)
            continue
        if problems:
            log.warning("%s Taken instead: the state before, %s.", problems[0], path)
        return found
    raise next((e for e in problems if isinstance(e, ValueError)), problems[0])


def _opened(path: Path) -> tuple[dict[str, torch.Tensor], Fields]:
    """The tensors and fields of a file whose checksum is right."""
    data = read_whole(path)
    wrong: Any = None
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])["__metadata__"]
        if header["format"] != str(FORMAT):
            wrong = f"format {header['format']!r:.20}; this version reads {FORMAT}"
        else:
            digest = header["sha256"].encode()
            if len(digest) != len(BLANK) or data[:end].count(digest) != 1:
                raise ValueError("no checksum")
            blank = data[:end].replace(digest, BLANK.encode()) + data[end:]
            if hashlib.sha256(blank).hexdigest().encode() != digest:
                raise ValueError("another checksum")
            tensors, fields = load(data), json.loads(header["fields"])
            if not isinstance(fields, dict):
                raise TypeError("fields are no object")
    except Exception as error:  # of whatever kind safetensors and json have for damaged bytes
        name = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} is damaged: expected a state with its checksum, got {name!r:.80}. Restore the "
            "file, or fit again."
        ) from error
    if wrong:
        raise ValueError(f"{path}: expected format {FORMAT}, got {wrong}. Fit again.")
    return tensors, Fields(path, fields)


class Fields:
    """The fields of a file, each checked as it is taken.

    Args:
        path: of the file; `values`: its content.
    """

    def __init__(self, path: Path, values: Any):
        self.path, self.values = path, values
        if not isinstance(values, dict):
            raise self.wrong("the file", "an object", values)

    def take(self, name: str, expected: str, good: Callable[[Any], Any]) -> Any:
        """The value of a field for which `good` holds.

        Raises:
            ValueError: file, field, what was expected and what came.
        """
        if name not in self.values:
            raise ValueError(
                f"{self.path}: field {name!r}: expected {expected}, found none. Restore the file, "
                "or fit again."
            )
        value = self.values[name]
        try:
            right = good(value)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):
            right = False
        if not right:
            raise self.wrong(f"field {name!r}", expected, value)
        return value

    def text(self, name: str, optional: bool = False) -> Any:
        """A string, or None where that is allowed."""
        words = "text or null" if optional else "text"
        return self.take(name, words, lambda v: isinstance(v, str) or (optional and v is None))

    def whole(self, name: str, least: int = 0) -> int:
        """A whole number."""
        return self.take(name, f"a whole number >= {least}", lambda v: whole(v, least))

    def number(self, name: str) -> float:
        """A number that is not negative."""
        return self.take(name, "a number >= 0", lambda v: number(v) and v >= 0)

    def wrong(self, name: str, expected: str, got: Any) -> ValueError:
        """The error that says so."""
        text = repr(got)
        text = text if len(text) < 60 else text[:57] + "..."
        return ValueError(
            f"{self.path}: {name}: expected {expected}, got {text}. Restore the file, or fit again."
        )


def whole(value: Any, least: int = 0) -> bool:
    """True for an integer of at least so much, that 64 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def number(value: Any) -> bool:
    """True for a number that a float can hold."""
    return isinstance(value, float) or whole(value, -(2**63))


# ---- nested values and options as JSON


def packed(value: Any, tensors: dict[str, torch.Tensor], name: str = "") -> Any:
    """Nested dictionaries and lists as JSON, their tensors put aside under names."""
    if torch.is_tensor(value):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[k, packed(v, tensors, f"{name}/{k}".strip("/"))] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        return {"list": [packed(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]}
    return {"value": value}


def unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Restore what `packed` took apart.

    Raises:
        KeyError, TypeError, ValueError: it did not.
    """
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: unpacked(v, tensors) for k, v in content}
    if kind == "list":
        return [unpacked(v, tensors) for v in content]
    if kind != "value" or isinstance(content, dict | list):
        raise ValueError(f"no kind of value: {kind!r}")
    return content


class GivenAgain:
    """An option that no file can hold: it is to be given again where a run goes on.

    Args:
        shown: what it was.
    """

    def __init__(self, shown: str):
        self.shown = shown


def option_as_json(value: Any) -> Any:
    """An option of a trainer as JSON: numbers, text, estimators and optimisers of ours."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return {"list": [option_as_json(v) for v in value]}
    if isinstance(value, optim.Optimiser) and _ours(optim, type(value)):
        own: dict[str, Any] = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"optim": [type(value).__name__, {k: option_as_json(v) for k, v in own.items()}]}
    if isinstance(value, elbo.Estimator) and _ours(elbo, type(value)):
        names = inspect.signature(type(value)).parameters
        if all(hasattr(value, n) for n in names):
            own = {n: option_as_json(getattr(value, n)) for n in names}
            return {"elbo": [type(value).__name__, own]}
    return {"again": repr(value)[:80]}


def option_from_json(value: Any) -> Any:
    """Read back what `option_as_json` wrote.

    Raises:
        ValueError, TypeError, KeyError: it did not.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a bare list")
        return value
    ((kind, content),) = value.items()
    if kind == "again":
        return GivenAgain(str(content))
    if kind == "list":
        return tuple(option_from_json(v) for v in content)
    room, base = {"optim": (optim, optim.Optimiser), "elbo": (elbo, elbo.Estimator)}[kind]
    name, own = content
    made: Any = getattr(room, name)
    if not (inspect.isclass(made) and issubclass(made, base)):
        raise ValueError(f"{name} is no {base.__name__}")
    values = {k: option_from_json(v) for k, v in own.items()}
    if kind == "optim":
        for own_field in dataclasses.fields(cast(Any, made)):
            _refuse_kind(values.get(own_field.name, own_field.default), own_field.default)
    return made(**values)


def _refuse_kind(value: Any, default: Any) -> None:
    """Raise ValueError for an option of another kind than its default."""
    if isinstance(default, tuple):
        right = isinstance(value, tuple) and len(value) == len(default) and all(map(number, value))
    else:
        right = isinstance(value, bool) if isinstance(default, bool) else number(value)
    if not right:
        raise ValueError(f"{value!r:.40} is no {type(default).__name__}")


def _ours(room: Any, kind: type) -> bool:
    return getattr(room, kind.__name__, None) is kind
