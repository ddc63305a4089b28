"""An update as it was made: every operation of torch in order, with what went in and came out.

Below autograd, whatever the pair's Python does (closures, globals, hyper-parameters) has become a
list of operations on numbered tensors. Two updates with the same list compute the same function of
their inputs, so the list is both the graph that is compiled and the key under which it is kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import traceback
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .noise import NORMAL, Noise, is_standard

aten = torch.ops.aten

SCALED = (aten.mul.Tensor, aten.div.Tensor)
HIDDEN = ("numpy", "tolist", "__dlpack__")  # ways to read a tensor that no operation shows
READ = (
    "a tensor's value is read on the host (.item(), bool(), float(), an if on a tensor): keep it a "
    "tensor (torch.where, torch.clamp)"
)
SHAPE = "the shape of a result depends on values (boolean-mask indexing, nonzero): use torch.where"


class TraceFailure(Exception):
    """A step cannot be compiled: the reason, the last site reached and the line of the pair."""

    def __init__(self, why: str, where: str = "", site: str = ""):
        near = f", near site {site!r}" if site else ""
        super().__init__(why + near + (f", at {where}" if where else ""))


class _Refused(Exception):
    """An operation that no graph can have."""


class Tape(TorchDispatchMode):
    """Write down every operation made inside the block, which are made as well.

    Tensors have numbers: the inputs come first, then the results in order. Those that are neither
    come from outside (data in a closure, `torch.tensor([...])`): they are further inputs, called
    constants, with the numbers -1, -2, ... A constant that is one number is written down by value.

    Args:
        inputs: what the function is of.
        outside: whether its noise may come from outside, as one more input.
        sizes: factors that follow from the number of data. They are written down as constants, so
            that another number of data is the same graph.

    Attributes:
        inputs: layout of each: (shape, strides, dtype, device).
        operations: [name, arguments, keyword arguments, numbers of the results].
        constants: as they were met.
        draws: what standard normals and uniforms were drawn, flat.
        noisy: for each draw (normal or else uniform, its layout); None for one of another kind.
        fixed: numbers of the tensors that depend on constants alone.

    Raises:
        _Refused: from inside the block, where the program depends on a tensor's value.
    """

    def __init__(
        self, inputs: Sequence[Tensor], outside: bool = True, sizes: Collection[float] = ()
    ):
        super().__init__()
        self.outside, self.sizes = outside, frozenset(sizes)
        self.inputs = [layout(t) for t in inputs]
        self.operations: list[list] = []
        self.constants: list[Tensor] = []
        self.draws: list[Tensor] = []
        self.fixed: set[int] = set()
        self.noisy: list[tuple[bool, tuple] | None] = []
        self._count = 0
        self._numbers: dict[int, tuple[Any, int]] = {}
        for t in inputs:
            self._add(t)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its compiler, two seconds, to keep it from this class."""
        return False

    def __enter__(self) -> Tape:
        self._patches = contextlib.ExitStack()
        for name in HIDDEN:
            self._patches.enter_context(patch.object(Tensor, name, self._watched(name)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patches.close()
        super().__exit__(*error)

    def _watched(self, name: str) -> Callable:
        before = getattr(Tensor, name)

        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            number = self._known(tensor)
            if number is not None and number >= 0 and number not in self.fixed:
                raise _Refused(READ)
            return before(tensor, *args, **kwargs)

        return read

    def _known(self, t: Tensor) -> int | None:
        found = self._numbers.get(id(t))
        return found[1] if found is not None and found[0]() is t else None

    def _add(self, t: Tensor) -> int:
        self._numbers[id(t)] = weakref.ref(t), self._count
        self._count += 1
        return self._count - 1

    def _written(self, a: Any) -> Any:
        """An argument as JSON has it."""
        if isinstance(a, Tensor):
            number = self._known(a)
            if number is None:
                self.constants.append(a)  # stays alive, and so keeps its id
                number = -len(self.constants)
                self._numbers[id(a)] = weakref.ref(a), number
            return {"t": number}
        if a is None or isinstance(a, (bool, int, float, str)):
            return a
        if isinstance(a, (list, tuple)):
            return [self._written(b) for b in a]
        if isinstance(a, (torch.dtype, torch.layout, torch.memory_format)):
            return {"torch": str(a).removeprefix("torch.")}
        if isinstance(a, torch.device):
            return {"device": str(a)}
        if isinstance(a, complex):
            return {"complex": [a.real, a.imag]}
        raise _Refused(f"an argument of type {type(a).__name__} in an operation of torch")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the operation and write it down."""
        kwargs = kwargs or {}
        if func is aten.lift_fresh.default and self._known(args[0]) is None:
            return self._lifted(args[0])
        name, seeded, reads, shaped, written = _about(func)
        standard = seeded and is_standard(func, args, kwargs)
        if standard:
            kwargs = {k: v for k, v in kwargs.items() if k != "generator"}
            func = {aten.randn.generator: aten.randn.default,
                    aten.rand.generator: aten.rand.default}.get(func, func)  # fmt: skip
            name = str(func)
            if func in (aten.randn.default, aten.rand.default):
                args = args[:1]
        a, k = self._written(args), {n: self._written(v) for n, v in kwargs.items()}
        if self._is_size(func, args):
            size = torch.full((), args[1], dtype=args[0].dtype, device=args[0].device)
            a[1] = self._written(size)
        used = list(_tensors([*a, *k.values()]))
        fixed = not seeded and all(n < 0 or n in self.fixed for n in used)
        if shaped and not fixed and not _by_number(func, args):
            raise _Refused(SHAPE)
        if reads and not fixed:
            raise _Refused(READ)
        targets = [a[i] if i < len(a) else k.get(n) for i, n in written]
        changed = set(_tensors(targets))
        if any(n < 0 for n in changed):
            raise _Refused(
                "a tensor from outside of the pair is changed in place: make it a buffer "
                "(register_buffer)"
            )
        out = func(*args, **kwargs)
        if reads:
            return out
        results = out if isinstance(out, (list, tuple)) else (out,)
        numbers: list[int | None] = []
        for r in results:
            if not isinstance(r, Tensor):
                if r is not None:
                    raise _Refused(f"{name} returns a {type(r).__name__}")
                numbers.append(None)
                continue
            number = self._known(r)
            if number is None or number < 0:
                number = self._add(r)
            numbers.append(number)
            if fixed:
                self.fixed.add(number)
        if changed & self.fixed and not fixed:
            self.fixed.clear()  # a view of it may be among the others
        self.operations.append([name, a, k, numbers])
        if seeded:
            self.noisy.append((func in NORMAL, layout(results[0])) if standard else None)
            if standard:
                self.draws.append(results[0].detach().clone().reshape(-1))
        return out

    def _is_size(self, func: Any, args: tuple) -> bool:
        return (
            func in SCALED and isinstance(args[1], (int, float)) and args[1] in self.sizes
            and args[0].is_floating_point()
        )  # fmt: skip

    def _lifted(self, t: Tensor) -> Tensor:
        """`torch.tensor(...)`: one number by its value, more as a constant."""
        if t.dim() == 0 and t.device.type == "cpu" and not t.is_complex():
            place = {"dtype": self._written(t.dtype), "device": {"device": "cpu"}}
            self.operations.append(["aten.full.default", [[], t.item()], place, [self._add(t)]])
        else:
            constant = self._written(t.detach().clone())  # as it is now: it may be changed in place
            self.operations.append(["aten.clone.default", [constant], {}, [self._add(t)]])
        self.fixed.add(self._count - 1)
        return t

    def end(self, result: Tensor) -> Tape:
        """Let this tensor be what the function returns."""
        number = self._known(result)
        if number is None or number < 0:
            raise TraceFailure("the result depends on nothing that is computed in the step")
        self.result = number
        self._numbers.clear()
        return self

    @functools.cached_property
    def text(self) -> str:
        """All that the graph is made of, without values of inputs and constants."""
        constants = [layout(t) for t in self.constants]
        return json.dumps(
            [self.inputs, constants, self.operations, self.result, self.noise() is not None]
        )

    @functools.cached_property
    def key(self) -> str:
        """A name for the graph."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def same(self, other: Tape) -> bool:
        """True where both are the same function, their constants included."""
        return self.text == other.text and all(
            a is b or _alike(a, b) for a, b in zip(self.constants, other.constants)
        )

    def noise(self) -> Noise | None:
        """The noise that is drawn for the graph from outside.

        None where it draws nothing, or something else than standard normals and uniforms of one
        type: then it must draw itself.
        """
        known = [n for n in self.noisy if n is not None]
        kinds = {where[2:] for _, where in known}
        if not self.outside or len(known) < len(self.noisy) or len(kinds) != 1:
            return None
        sizes = [torch.Size(where[0]).numel() for _, where in known]
        (kind,) = kinds
        example = torch.zeros(sum(sizes), dtype=getattr(torch, kind[0]), device=kind[1])
        return Noise([(normal, n) for (normal, _), n in zip(known, sizes)], example)


def recorded(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    outside: bool = True,
    sizes: Collection[float] = (),
) -> Tape:
    """Make `function(*inputs)`, which may change its inputs in place, and write it down.

    Args:
        function, inputs: what is made.
        outside, sizes: as for `Tape`.

    Raises:
        TraceFailure: the program depends on a tensor's value.
    """
    inputs = [t.detach() for t in inputs]  # one object each, though the memory may be the same
    tape, last = Tape(inputs, outside, sizes), _LastSite()
    try:
        with last, tape:
            result = function(*inputs)
    except _Refused as error:
        raise TraceFailure(str(error), users_line(error), last.name) from error
    return tape.end(result)


class _LastSite(Messenger):
    """Remembers the last sample or param site that was reached."""

    name = ""

    def _process_message(self, msg: Any) -> None:
        if msg["type"] in ("sample", "param") and msg["name"]:
            self.name = msg["name"]


def layout(t: Tensor) -> tuple:
    """(shape, strides, dtype, device) of a tensor, plain enough for JSON."""
    return (
        tuple(t.shape), tuple(t.stride()), str(t.dtype).removeprefix("torch."), str(t.device)
    )  # fmt: skip


def _tensors(written: Sequence[Any]) -> Iterator[int]:
    """Numbers of the tensors among written arguments."""
    for a in written:
        if isinstance(a, list):
            yield from _tensors(a)
        elif isinstance(a, dict) and "t" in a:
            yield a["t"]


_ABOUT: dict[Any, tuple] = {}


def _about(func: Any) -> tuple:
    """Name; whether it draws, reads a value, has a shape that values decide; what it writes to."""
    if func not in _ABOUT:
        tags = getattr(func, "tags", ())
        arguments = func._schema.arguments
        aliases = ((i, a.name) for i, a in enumerate(arguments) if a.alias_info)
        written = [(i, n) for i, n in aliases if arguments[i].alias_info.is_write]
        _ABOUT[func] = (
            str(func), torch.Tag.nondeterministic_seeded in tags,
            torch.Tag.data_dependent_output in tags, torch.Tag.dynamic_output_shape in tags,
            written,
        )  # fmt: skip
    return _ABOUT[func]


def _by_number(func: Any, args: tuple) -> bool:
    """True for entries picked by their numbers: how many those are, no value decides."""
    masks = (torch.bool, torch.uint8)
    return func is aten.index.Tensor and not any(
        isinstance(i, Tensor) and i.dtype in masks for i in args[1]
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    """True where all values are the same, NaN included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def users_line(error: BaseException) -> str:
    """The innermost line of the traceback outside torch and outside this layer."""
    ours = (str(Path(__file__).parents[1]), "<", str(Path(torch.__file__).parent))
    for f in reversed(traceback.extract_tb(error.__traceback__)):
        if not f.filename.startswith(ours) and "/pyro/" not in f.filename:
            place = f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno}"
            return f"{place} ({f.line})" if f.line else place
    return ""
