"""The kernel calls of a compiled CPU graph, recorded once and replayed in a loop of C.

What a CUDA graph is on a GPU. Inductor's code for a small model is one kernel of some microseconds
between a hundred allocations in Python; recorded, it is a list of functions and pointers, and
many updates of a fit are one call. What inductor leaves to libraries is called from the same loop:
products of float32 matrices by `matmul.h`, tiny ones and triangular solves as plain loops.
"""

from __future__ import annotations

import ctypes
import math
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .matmul import PARALLEL

TINY, SMALL = 4_096, 2**17  # multiply-adds of a product, of a solve, for which plain loops do
WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"  # 32 registers of 16 floats
VECTOR, ROWS, ACROSS = (16, 5, 4) if WIDE else (8, 5, 2)  # a tile: rows, vectors across
HARMLESS = {
    "clear", "assert_size_stride", "assert_size_stride_grouped", "assert_tensor_metadata",
    "assert_alignment", "empty_strided_cpu", "reinterpret_tensor", "torch", "ops", "aten",
    "default", "mkldnn", "_linear_pointwise", "extern_kernels", "mm", "addmm", "bmm",
    "linalg_solve_triangular", "cumsum",
    *(str(t).removeprefix("torch.") for t in (torch.float32, torch.float64, torch.int64,
      torch.bool, torch.int32)),
}  # fmt: skip


class NotReplayable(Exception):
    """The graph calls something that is neither a kernel nor a small product."""


class Replay:
    """`replay(inputs, updates)` makes so many updates and returns their losses.

    Args:
        run: from `compiled`, of a graph whose one output is the loss.
        inputs: example inputs. The first `own` are used in place, here and at every call.
        own: how many of them are the same tensors at every call (variables, learning rate).

    Raises:
        NotReplayable: the graph calls something that cannot be recorded.
    """

    def __init__(self, run: Callable, inputs: Sequence[Tensor], own: int):
        kept = [t.clone() for t in inputs[:own]]
        calls = _Calls()
        try:
            self.loss = _record(run, inputs, calls)
        except NotReplayable:
            raise
        except Exception as error:  # whatever torch has changed, the compiled code still runs
            line = (str(error).strip().splitlines() or [""])[0][:160]
            raise NotReplayable(f"recording fails: {type(error).__name__}: {line}") from error
        finally:  # recording is a call too
            for t, k in zip(inputs, kept):
                t.copy_(k)
        if self.loss.device.type != "cpu" or not self.loss.is_contiguous():
            raise NotReplayable("the loss is not a plain CPU tensor")
        places = [_Offsets(t, calls.pointers) for t in inputs]
        if len({i for p in places for i, _ in p.entries}) < sum(len(p.entries) for p in places):
            raise NotReplayable("two inputs share memory")
        self._own, self._others = places[:own], places[own:]
        if not all(t.is_contiguous() for t in inputs[own:]):
            raise NotReplayable("an input whose entries do not lie together")
        self._memory = [t.data_ptr() for t in inputs[:own]]
        self._seen: Sequence[Tensor] | None = None  # whose memory was looked at last
        self._calls = calls  # alive as long as its pointers
        self._pointers = _array(ctypes.c_void_p, calls.pointers)
        self._functions = _array(ctypes.c_void_p, calls.functions)
        self._loop = _loaded(calls.source()).replay
        self._loop.restype = None

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
            if [t.data_ptr() for t in own] != self._memory:
                self._point_to(own)
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
            self._pointers, self._functions, ctypes.c_int64(updates or 1),
            ctypes.c_int64(len(places)), _array(ctypes.c_int64, places),
            _array(ctypes.c_void_p, starts), _array(ctypes.c_int64, steps),
            ctypes.c_void_p(self.loss.data_ptr()), ctypes.c_void_p(losses.data_ptr()),
            ctypes.c_int64(self.loss.numel() * self.loss.element_size()),
        )  # fmt: skip
        return losses if updates else losses[0]

    def _point_to(self, own: Sequence[Tensor]) -> None:
        """Let the recorded kernels work on the memory of these variables from now on."""
        for i, (offsets, t) in enumerate(zip(self._own, own)):
            if _layout(t) != offsets.layout:
                raise ValueError(
                    f"variable {i} of a compiled step has changed: recorded as (shape, strides, "
                    f"dtype) {offsets.layout}, now {_layout(t)}. Change variables in place."
                )
        for offsets, t in zip(self._own, own):
            for place, offset in offsets.entries:
                self._pointers[place] = t.data_ptr() + offset
        self._memory = [t.data_ptr() for t in own]


def _layout(t: Tensor) -> tuple:
    return tuple(t.shape), t.stride(), t.dtype


class _Offsets:
    """Offsets of one input in the pointer table: (place in the table, offset in bytes)."""

    def __init__(self, example: Tensor, pointers: list[int]):
        self.layout, self.dim = _layout(example), example.dim()
        last = sum((n - 1) * s for n, s in zip(example.shape, example.stride()))
        self.bytes = (last + 1) * example.element_size() if example.numel() else 0
        start = example.data_ptr()
        self.entries = [
            (i, p - start) for i, p in enumerate(pointers) if start <= p < start + self.bytes
        ]


class _Arena:
    """Reuse memory of intermediate results as soon as it is free.

    The same calls in the same order may share it in the same way.
    """

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As inductor's `empty_strided_cpu`."""
        numel = 1 + sum((n - 1) * s for n, s in zip(size, stride)) if all(size) else 0
        need = max(64, numel * torch.empty((), dtype=dtype).element_size())
        free = [
            b for b in self.blocks
            if need <= b.numel() <= 2 * need + 4_096
            and torch._C._storage_Use_Count(b.untyped_storage()._cdata) <= 2
        ]  # fmt: skip
        if free:
            block = min(free, key=Tensor.numel)
        else:
            block = torch.empty(need, dtype=torch.uint8)
            self.blocks.append(block)
        return torch.empty(0, dtype=dtype).set_(block.untyped_storage(), 0, size, stride)


def _loaded(source: str) -> Any:
    import torch._inductor.config as config
    from torch._inductor.codecache import CppCodeCache

    try:  # a fused multiply-add is one instruction, which the flag "off" forbids
        with config.patch({"cpp.enable_floating_point_contract_flag": "fast"}):
            return CppCodeCache.load(source)
    except Exception as error:  # a compiler without GCC's vectors
        raise NotReplayable(f"the loop does not compile: {error}") from error


def _array(kind: Any, values: list[int]) -> Any:
    return (kind * len(values))(*values)


class _Calls:
    """Kernel calls in order, as lines of C over a table of pointers."""

    def __init__(self) -> None:
        self.pointers: list[int] = []
        self.functions: list[int] = []
        self.lines: list[str] = []
        self.arena = _Arena()
        self.alive: list[Any] = []  # libraries, and constants of the graph

    def point(self, t: Tensor) -> int:
        """The tensor's place in the table."""
        self.pointers.append(t.data_ptr())
        return len(self.pointers) - 1

    def entries(self, t: Tensor) -> str:
        """C for the entries of a tensor of two or three axes."""
        batch, row, column = (0, *t.stride()) if t.dim() == 2 else t.stride()
        kind = _type(t)
        return f"Entries<{kind}>{{({kind}*)p[{self.point(t)}], {batch}, {row}, {column}}}"

    def kernel(self, function: Any) -> Callable:
        """The same kernel, written down when it is called."""
        library = ctypes.CDLL(function.__self__.__file__)
        address = ctypes.cast(library.kernel, ctypes.c_void_p).value
        assert address is not None
        self.alive.append(library)

        def call(*args: Any) -> None:
            if not all(torch.is_tensor(a) for a in args):
                raise NotReplayable("a kernel takes sizes")
            first = len(self.pointers)
            for a in args:
                self.point(a)
            self.functions.append(address)
            kinds = ", ".join(["void*"] * len(args))
            values = ", ".join(f"p[{first + i}]" for i in range(len(args)))
            self.lines.append(f"((void (*)({kinds}))f[{len(self.functions) - 1}])({values});")
            function(*args)

        return call

    def product(self, a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """out = a @ b + bias, of two or three axes."""
        torch.matmul(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)
        batch = out.shape[0] if out.dim() == 3 else 1
        (m, k), n = a.shape[-2:], b.shape[-1]
        if len({t.dtype for t in (a, b, out)}) > 1:
            raise NotReplayable("a product of different types")
        if batch * m * n * k > TINY:
            return self._large(a, b, out, bias)
        first = f"Entries<{_type(a)}>{{}}" if bias is None else self.entries(bias.expand(m, n))
        views = ", ".join(self.entries(t) for t in (a, b, out))
        self.lines.append(f"plain({batch}, {m}, {n}, {k}, {views}, {first});")

    def _large(self, a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None) -> None:
        """The same, in tiles of registers."""
        bias = None if bias is None else bias.expand(out.shape)
        if out.stride(-1) != 1 and out.shape[-1] > 1:
            a, b, out = b.mT, a.mT, out.mT  # the transpose, whose rows lie together
            bias = None if bias is None else bias.mT
        (m, k), n = a.shape[-2:], b.shape[-1]
        along = 1 in (b.stride(-2), b.stride(-1)) or n < VECTOR
        together = out.stride(-1) == 1 or n == 1
        if a.dtype != torch.float32 or not (along and together):
            raise NotReplayable(
                f"a product of {a.dtype}, {tuple(a.shape)} by {tuple(b.shape)}, strides "
                f"{b.stride()} to {out.stride()}"
            )
        order = f"{b.stride(-2)}, {b.stride(-1)}"
        threads = torch.get_num_threads() if m * n * k >= PARALLEL else 1
        places = [f"(float*)p[{self.point(t)}]" for t in (a, b, out)]
        steps = [t.stride(0) if t.dim() == 3 else 0 for t in (a, b, out)]
        x, y, z = (f"{p} + h * {s}" for p, s in zip(places, steps))
        add, lead, after = "nullptr", 0, ""
        if bias is not None:
            if bias.stride(-1) == 1 or n == 1:
                add, lead = f"(float*)p[{self.point(bias)}]", bias.stride(0)
            else:  # it is no row of the tile, so it is added later
                after = f" add({m}, {n}, {self.entries(out)}, {self.entries(bias)});"
        batch = out.shape[0] if out.dim() == 3 else 1
        self.lines.append(
            f"for (int h = 0; h < {batch}; h++) "
            f"shared<{ROWS}, {ACROSS}>({threads}, {m}, {n}, {k}, "
            f"{x}, {a.stride(-2)}, {a.stride(-1)}, {y}, {order}, {z}, {out.stride(-2)}, "
            f"{add}, {lead});{after}"
        )

    def solve(
        self, a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
    ) -> Tensor:
        """a⁻¹ b with `a` triangular, by substitution."""
        x = torch.linalg.solve_triangular(a, b, upper=upper, left=left, unitriangular=unitriangular)
        n, batch = a.shape[-1], math.prod(x.shape[:-2])
        plain = left and a.shape[:-2] == b.shape[:-2]
        if not plain or batch * n * n * x.shape[-1] > SMALL or a.dtype != b.dtype:
            raise NotReplayable(
                f"a triangular solve of {tuple(a.shape)} by {tuple(b.shape)}, left={left}"
            )
        flat = [t if t.dim() < 4 else t.flatten(0, -3) for t in (a, b, x)]
        if any(f.data_ptr() != t.data_ptr() for f, t in zip(flat, (a, b, x))):
            raise NotReplayable("a triangular solve whose batches do not lie in order")
        views = ", ".join(self.entries(t) for t in flat)
        kind = f"{str(upper).lower()}, {str(unitriangular).lower()}"
        self.lines.append(f"solve({batch}, {n}, {x.shape[-1]}, {kind}, {views});")
        self.alive.append(x)
        return x

    def cumsum(self, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        """Running sums along one axis."""
        out = torch.cumsum(x, dim)
        if not x.is_contiguous() or dtype not in (None, x.dtype):
            raise NotReplayable("running sums of scattered entries, or in another type")
        dim %= x.dim()
        outer, n, inner = math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])
        from_, to = (f"({_type(x)}*)p[{self.point(t)}]" for t in (x, out))
        self.lines.append(f"running_sums({outer}, {n}, {inner}, {from_}, {to});")
        self.alive.append(out)
        return out

    def source(self) -> str:
        """The loop, with a symbol `replay`. Addresses are arguments, so that it can be cached."""
        body = "\n        ".join(self.lines)
        return f"""
#define W {VECTOR}
{Path(__file__).with_name("matmul.h").read_text()}
extern "C" void replay(void** p, void** f, int64_t updates, int64_t others, int64_t* places,
                       char** starts, int64_t* steps, char* loss, char* losses, int64_t size) {{
    for (int64_t u = 0; u < updates; u++) {{
        for (int64_t i = 0; i < others; i++) p[places[i]] = starts[i] + u * steps[i];
        {body}
        std::memcpy(losses + u * size, loss, size);
    }}
}}
"""


def _type(t: Tensor) -> str:
    if t.dtype not in (torch.float32, torch.float64):
        raise NotReplayable(f"a product of {t.dtype}")
    return "float" if t.dtype == torch.float32 else "double"


def _record(run: Callable, inputs: Sequence[Tensor], calls: _Calls) -> Tensor:
    """Run inductor's code once, with every kernel written down in `calls`."""
    from torch._inductor.output_code import CompiledFxGraph

    found: list[tuple[Any, list]] = []
    before = CompiledFxGraph.__call__

    def keep(graph: Any, arguments: Any) -> Any:
        found.append((graph.current_callable, list(arguments)))
        return before(graph, arguments)

    with torch.no_grad(), patch.object(CompiledFxGraph, "__call__", keep):
        run(list(inputs))
    if len(found) != 1:
        raise NotReplayable("more than one graph")
    method, arguments = found[0]
    function = getattr(method, "__func__", None)
    if function is None:
        raise NotReplayable("no generated function")
    space = dict(function.__globals__)
    kernels = [n for n in function.__code__.co_names if n.startswith("cpp_fused")]
    strange = set(function.__code__.co_names) - HARMLESS - set(kernels)
    if strange:
        raise NotReplayable(f"it calls {', '.join(sorted(strange))}")
    for name in kernels:
        space[name] = calls.kernel(space[name])
    space["empty_strided_cpu"] = calls.arena.empty

    def addmm(bias: Tensor, a: Tensor, b: Tensor, *, alpha: int, beta: int, out: Tensor) -> None:
        if (alpha, beta) != (1, 1):
            raise NotReplayable("a scaled product")
        calls.product(a, b, out, bias)

    def product(a: Tensor, b: Tensor, *, out: Tensor) -> None:
        calls.product(a, b, out)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *identity: Any) -> Tensor:
        out = calls.arena.empty((len(x), len(weight)), (len(weight), 1), x.dtype)
        calls.product(x, weight.T, out, bias)
        return out

    solve = types.SimpleNamespace(default=calls.solve)
    sums = types.SimpleNamespace(default=calls.cumsum)
    aten = types.SimpleNamespace(linalg_solve_triangular=solve, cumsum=sums)
    mkldnn = types.SimpleNamespace(_linear_pointwise=types.SimpleNamespace(default=linear))
    space["extern_kernels"] = types.SimpleNamespace(mm=product, bmm=product, addmm=addmm)
    ops = types.SimpleNamespace(aten=aten, mkldnn=mkldnn)
    space["torch"] = types.SimpleNamespace(**{**vars(torch), "ops": ops})
    space["aten"] = aten
    with torch.no_grad():
        out = types.FunctionType(function.__code__, space)(method.__self__, arguments)
    if len(out) != 1:
        raise NotReplayable("more than one output")
    calls.alive.append(method)
    return out[0]
