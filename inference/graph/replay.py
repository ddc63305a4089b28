"""The kernel calls of a compiled CPU graph, replayed in a loop of C.

What a CUDA graph is on a GPU. Inductor's code for a small model is one kernel of some microseconds
between a hundred allocations in Python; recorded, it is a list of functions and pointers, and
many updates of a fit are one call. A `Program` is that list and its machine code, without memory:
any number of fits, in this process or a later one, have a `Replay` each.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .calls import NotReplayable, calls_of
from .tape import layout
from .trace import OPTIONS, Generated


@dataclass
class Program:
    """One update as machine code, and what its table of pointers holds.

    Attributes:
        inputs: layout of each, as `layout`: inputs and constants of the tape, and the noise.
        blocks: bytes of each block of memory for intermediate results.
        pointers: (input, or -1 - block; offset in bytes) for each place in the table.
        loss: (block, offset in bytes, shape, dtype).
        noisy: 1 where the last input is noise, else 0.
        library: a shared library with a symbol `replay`.
    """

    inputs: list
    blocks: list[int]
    pointers: list[tuple[int, int]]
    loss: tuple[int, int, Sequence[int], str]
    noisy: int
    library: str

    @functools.cached_property
    def loop(self) -> Any:
        """The library's function."""
        loop = ctypes.CDLL(self.library).replay
        loop.restype = None
        return loop


def program_of(code: Generated) -> Program:
    """Record the kernel calls of inductor's code, and compile them.

    Raises:
        NotReplayable: the graph calls something that cannot be recorded.
    """
    inputs = code.inputs
    if any(t.device.type != "cpu" for t in inputs):
        raise NotReplayable("not on a CPU")
    try:
        calls, loss = calls_of(code)
        known = {t.untyped_storage().data_ptr(): i for i, t in enumerate(inputs)}
        known[0] = 0  # of an empty tensor, which is never read
        for i, block in enumerate(calls.arena.blocks):
            known[block.untyped_storage().data_ptr()] = -1 - i
        pointers = [(known[start], offset) for start, offset in calls.pointers]
        where = known[loss.untyped_storage().data_ptr()]
        source = calls.source()
    except NotReplayable:
        raise
    except Exception as error:  # whatever torch has changed, the compiled code still runs
        line = (str(error).strip().splitlines() or [""])[0][:160]
        raise NotReplayable(f"recording fails: {type(error).__name__}: {line}") from error
    if where >= 0 or not loss.is_contiguous():
        raise NotReplayable("the loss is an input, or its entries do not lie together")
    start = loss.data_ptr() - loss.untyped_storage().data_ptr()
    return Program(
        [layout(t) for t in inputs], [b.numel() for b in calls.arena.blocks], pointers,
        (-1 - where, start, tuple(loss.shape), str(loss.dtype).removeprefix("torch.")),
        int(code.tape.noise() is not None), _built(source),
    )  # fmt: skip


def _built(source: str) -> str:
    """The path of a shared library."""
    import torch._inductor.config as config
    from torch._inductor.codecache import CppCodeCache

    try:  # a fused multiply-add is one instruction, which the flag "off" forbids
        with config.patch(OPTIONS):
            # as the part that is optimised, it is compiled with inductor's precompiled header
            return str(CppCodeCache.load_async("", optimized_code=source)()._name)
    except Exception as error:  # a compiler without GCC's vectors
        raise NotReplayable(f"the loop does not compile: {error}") from error


class Replay:
    """`replay(own, others, updates)` makes so many updates and returns their losses.

    Args:
        program: what is made; the memory between its kernels is this replay's own.
        own: how many of the inputs, the first, are the same tensors at every call (variables,
            learning rate).
        constants: the inputs after those of the tape, the same at every call.

    Raises:
        ValueError: a constant has another layout than when the program was recorded.
    """

    def __init__(self, program: Program, own: int, constants: Sequence[Tensor] = ()):
        self.program, self._constants = program, list(constants)
        self._blocks = [torch.empty(n, dtype=torch.uint8) for n in program.blocks]
        block, start, shape, dtype = program.loss
        self.loss = self._blocks[block][start:].view(-1)[: _bytes(shape, dtype)]
        self.loss = self.loss.view(getattr(torch, dtype)).view(tuple(shape))
        self._pointers = _array(ctypes.c_void_p, [0] * len(program.pointers))
        entries: list[list[tuple[int, int]]] = [[] for _ in program.inputs]
        for place, (where, offset) in enumerate(program.pointers):
            if where < 0:
                self._pointers[place] = self._blocks[-1 - where].data_ptr() + offset
            else:
                entries[where].append((place, offset))
        inputs = [_Offsets(e, where) for e, where in zip(entries, program.inputs)]
        noise = len(inputs) - program.noisy
        first = noise - len(self._constants)
        self._own, self._others = inputs[:own], [*inputs[own:first], *inputs[noise:]]
        self._point(inputs[first:noise], self._constants, "constant")
        self._memory: list[int] = []
        self._seen: Sequence[Tensor] | None = None  # whose memory was looked at last
        self._loop = program.loop

    def __call__(
        self, own: Sequence[Tensor], others: Sequence[Tensor], updates: int | None = None
    ) -> Tensor:
        """The losses, (updates, *loss), or the loss of one update where `updates` is None.

        Args:
            own: the variables. Where they lie is looked up when another list is given than before.
            others: one with one more axis than its example is a row per update.
            updates: how many to make.

        Raises:
            ValueError: a variable has another shape, dtype or strides than when it was recorded.
        """
        if own is not self._seen:  # variables may have moved, or others are meant, as in the proof
            memory = [t.data_ptr() for t in own]
            if memory != self._memory:
                self._point(self._own, own, "variable")
                _refuse_shared(self._own, own)
                self._memory = memory
            self._seen, self._storages = own, [t.untyped_storage() for t in own]
        losses = self.loss.new_empty(updates or 1, *self.loss.shape)
        places: list[int] = []  # in the table
        starts: list[int] = []  # what to write there
        steps: list[int] = []  # and how much to add after each update
        alive = []
        for other, t in zip(self._others, others):
            t = t.contiguous()
            alive.append(t)
            step = other.bytes if t.dim() > other.dim else 0
            for place, offset in other.entries:
                places.append(place)
                starts.append(t.data_ptr() + offset)
                steps.append(step)
        self._loop(
            self._pointers, ctypes.c_int64(updates or 1),
            ctypes.c_int64(len(places)), _array(ctypes.c_int64, places),
            _array(ctypes.c_void_p, starts), _array(ctypes.c_int64, steps),
            ctypes.c_void_p(self.loss.data_ptr()), ctypes.c_void_p(losses.data_ptr()),
            ctypes.c_int64(self.loss.numel() * self.loss.element_size()),
        )  # fmt: skip
        return losses if updates else losses[0]

    def _point(self, inputs: Sequence[_Offsets], tensors: Sequence[Tensor], what: str) -> None:
        """Let the recorded kernels work on the memory of these tensors from now on."""
        for i, (offsets, t) in enumerate(zip(inputs, tensors, strict=True)):
            if layout(t) != offsets.layout:
                raise ValueError(
                    f"{what} {i} of a compiled step has changed: recorded as (shape, strides, "
                    f"dtype, device) {offsets.layout}, now {layout(t)}. Change variables in place."
                )
        for offsets, t in zip(inputs, tensors):
            for place, offset in offsets.entries:
                self._pointers[place] = t.data_ptr() + offset


def _refuse_shared(inputs: Sequence[_Offsets], tensors: Sequence[Tensor]) -> None:
    """Raise ValueError where a change of one variable would be one of another."""
    sizes = [o.bytes for o in inputs]
    spans = sorted((t.data_ptr(), n, i) for i, (t, n) in enumerate(zip(tensors, sizes)) if n)
    for (begin, n, i), (start, _, j) in itertools.pairwise(spans):
        if start < begin + n:
            raise ValueError(f"variables {i} and {j} of a compiled step share memory. Clone one.")


class _Offsets:
    """One input in the pointer table: its layout and (place in the table, offset in bytes)."""

    def __init__(self, entries: list[tuple[int, int]], where: Sequence[Any]):
        shape, strides, dtype, device = where
        self.layout, self.entries = (tuple(shape), tuple(strides), dtype, device), entries
        self.dim = len(shape)
        self.bytes = _bytes(shape, dtype)


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * getattr(torch, dtype).itemsize


def _array(kind: Any, values: list[int]) -> Any:
    return (kind * len(values))(*values)
