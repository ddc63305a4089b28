"""From a signature to options of the command, and back: a new model needs no code here."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Union

import typer
from rich.markup import escape

PLAIN = (bool, int, float, str)
FILLED = ("data_dim", "data", "image_shape", "seed", "validate_args")  # not options of a model


@dataclass(frozen=True)
class Argument:
    """One keyword argument of a function, as an option of the command."""

    name: str
    kind: type  # what the command line reads: int, float, bool or str
    default: Any
    help: str
    read: Callable[[Any], Any] = lambda value: value  # from there to what the function wants

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    def typed(self, value: Any) -> list[str]:
        """The words that give it a value on the command line."""
        if self.kind is bool:
            return [self.flag if value else f"--no-{self.flag[2:]}"]
        return [self.flag, str(value)]


def arguments(function: Callable, skip: Collection[str] = ()) -> list[Argument]:
    """Return the arguments of a function or class that have a default and a type one can type.

    Their help is what the docstring's `Args` section says of them.
    """
    target = function.__init__ if inspect.isclass(function) else function
    try:
        hints = typing.get_type_hints(target)
    except (NameError, TypeError):  # a user's own, whose names are not there at run time
        hints = {}
    texts = _texts(function)
    found = []
    for p in inspect.signature(target).parameters.values():
        if p.name in skip or p.default is p.empty or p.kind is p.VAR_KEYWORD:
            continue
        reader = _reader(hints.get(p.name) or _kind_of(p.default))
        if reader is not None:
            found.append(Argument(p.name, reader[0], p.default, texts.get(p.name, ""), reader[1]))
    return found


def _kind_of(default: Any) -> Any:
    """The type of an argument that is not annotated."""
    if isinstance(default, tuple | list):
        return tuple[int, ...]
    return type(default) if type(default) in PLAIN else str


def takes(function: Callable) -> list[str]:
    """Return the names of a function's arguments (of a class: of its constructor)."""
    return list(inspect.signature(function).parameters)


def option(
    argument: Argument, instead: Mapping[str, Any] = types.MappingProxyType({}), panel: str = ""
) -> inspect.Parameter:
    """Return a typer parameter for an argument: None unless it is given.

    Args:
        argument: whose.
        instead: what the default is in special cases, by the words that name the case.
        panel: the heading under which help shows it.
    """
    silent = argument.default is None or argument.default is False
    default = "" if silent else shown(argument.default)
    cases = [f"{shown(value)} {case}" for case, value in instead.items()]
    info = explained(
        argument.help, "; ".join(filter(None, [default, *cases])),
        f"{argument.flag}/--no-{argument.flag[2:]}" if argument.kind is bool else argument.flag,
        rich_help_panel=panel or None,
    )  # fmt: skip
    kind: Any = argument.kind
    hint = Annotated[kind | None, info]
    return inspect.Parameter(
        argument.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint
    )


def explained(help: str, default: str = "", *flags: str, **more: Any) -> Any:
    """Return an option of typer's whose default stands behind its help."""
    text = escape(help) + (f" [dim]{escape(f'[{default}]')}[/dim]" if default else "")
    return typer.Option(*flags, help=text, show_default=False, **more)


def command(name: str, run: Callable, parameters: Iterable[inspect.Parameter], help: str) -> Any:
    """Return a command with these parameters that calls `run(**what was given)`."""

    def call(**given: Any) -> Any:
        return run(**{k: v for k, v in given.items() if v is not None})

    parameters = list(parameters)
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(name, help=escape(help))(call)
    return typer.main.get_command(app)


def shown(value: Any) -> str:
    """Return a default as one would type it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        nested = value and not isinstance(value[0], int)
        return "/".join(map(shown, value)) if nested else ",".join(map(str, value)) or "none"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
    )


def numbers(text: str) -> tuple[int, ...]:
    """`200,200` as (200, 200); `none` as ()."""
    parts = [] if text.strip().lower() in ("", "none", "()") else text.strip(" (),").split(",")
    try:
        return tuple(int(p) for p in parts)
    except ValueError:
        raise ValueError(f"expected whole numbers such as 200,200 or none, got {text!r}.") from None


GLOSSARY = {
    "latent_dim": "width of the latent.",
    "hidden": "widths of the hidden layers, or none.",
    "components": "the number of components.",
    "likelihood": "what the decoder's output means: bernoulli, gaussian, gaussian-unit, "
    "gaussian-diagonal, laplace, categorical, logistic-mixture or colour-mixture.",
    "act": "activation: tanh, relu, elu, silu or softplus.",
    "networks": "mlp, or conv for images.",
}


def _texts(function: Callable) -> dict[str, str]:
    """Return argument -> text from a function's docstring and from those that it refers to.

    A text too short to help a stranger ("L.") gives way to the glossary.
    """
    doc = inspect.getdoc(function) or ""
    texts = described(doc)
    for name in re.findall(r"as for `(\w+)`", doc):
        other = getattr(inspect.getmodule(function), name, None)
        if other is not None and other is not function:
            fuller = _texts(other)
            texts |= {k: v for k, v in fuller.items() if "as for" in texts.get(k, "as for")}
    texts = {
        k: re.sub(r"\s*(All others )?as for \w+[.;]?( by default)?.*", "", v) or ""
        for k, v in texts.items()
    }
    return GLOSSARY | {
        k: v for k, v in texts.items() if len(v) > 4 and k not in ("act", "likelihood")
    }


def described(doc: str) -> dict[str, str]:
    """argument -> its text in the `Args` section of a docstring."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", doc, re.M)
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(section[1]).splitlines() if section else ():
        head = re.match(r"([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)", line)
        if head:
            names, line = head[1].split(", "), head[2]
        for name in names:
            texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
    return {k: re.sub(r'[`"]', "", v).replace("()", "none") for k, v in texts.items()}


def _reader(hint: Any) -> tuple[type, Callable[[Any], Any]] | None:
    """Return the type the command line reads for a hint and the converter, or None for neither."""
    parts = [a for a in _members(hint) if a is not types.NoneType]
    plain = [p for p in parts if p in (int, float, bool, str)]
    sequences = [p for p in parts if typing.get_origin(p) in _SEQUENCES]
    if any(typing.get_origin(p) is Literal for p in parts):
        return str, str
    if sequences:
        nested = any(typing.get_origin(a) in _SEQUENCES for a in typing.get_args(sequences[0]))
        if str in typing.get_args(sequences[0]):
            return str, _words
        if nested:
            return str, _layers
        return str, _word_or_numbers if str in plain else numbers
    if plain == [str, float] or plain == [float, str]:
        return str, _word_or_number
    return (plain[0], lambda value: value) if plain else None


_SEQUENCES = (Sequence, tuple, list)


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _words(text: str) -> tuple[str, ...]:
    return tuple(t.strip() for t in text.split(",") if t.strip())


def _layers(text: str) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(numbers(t) for t in text.split("/"))
    except ValueError as error:
        raise ValueError(
            f"expected whole numbers with / between layers, such as 200,200/100, got {text!r}."
        ) from error


def _word_or_numbers(text: str) -> Any:
    return numbers(text) if re.fullmatch(r"[\d, ()]+", text) else text


def _word_or_number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def estimator(spec: str) -> Any:
    """Return an estimator of `inference.elbo` from `name`, `name:4` or `name:4,warmup=1000`.

    What follows the colon are the class's own arguments: `beta:4`, `iwae:8`,
    `beta:1,free_bits=0.5`.

    Raises:
        ValueError: there is no such estimator or argument (the nearest are named), or a value is
            out of range.
    """
    known = estimators()
    name, _, rest = spec.strip().partition(":")
    plain = {re.sub(r"\W|_", "", k): k for k in known}
    key = plain.get(re.sub(r"\W|_", "", name.lower()))
    if key is None:
        near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
        raise ValueError(f"--elbo: there is no estimator {name!r}; {hint}")
    made, named = [], {}
    for part in filter(None, re.split(r",(?![^(]*\))", rest)):
        left, equals, right = part.rpartition("=")
        try:
            value = ast.literal_eval(right.strip())
        except (ValueError, SyntaxError):
            value = right.strip()
        if left.strip() == "base":
            value = estimator(right.strip())
        if equals:
            named[left.strip().replace("-", "_")] = value
        else:
            made.append(value)
    takes = inspect.signature(known[key]).parameters
    unknown = [n for n in named if n not in takes]
    if unknown or len(made) > len(takes):
        near = difflib.get_close_matches(unknown[0], takes, n=1) if unknown else []
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"--elbo: {key} takes {', '.join(takes)}; got {rest!r}.{hint}")
    try:
        return known[key](*made, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--elbo {spec}: {error}") from error


def estimators() -> dict[str, type]:
    """Return the estimators of `inference.elbo`, and of installed packages, by their names."""
    from inference import elbo

    classes = {n: c for n, c in vars(elbo).items() if inspect.isclass(c)}
    ours = {
        _kebab(n): c
        for n, c in sorted(classes.items())
        if issubclass(c, elbo.Estimator) and c is not elbo.Estimator
    }
    return ours | {e.name: e.load() for e in entry_points(group="zoo.estimators")}


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z]{3})(?=[A-Z])", "-", name).lower()
