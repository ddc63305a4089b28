"""The kernel calls of inductor's code for a CPU graph, written down as lines of C.

Nothing is computed on the way. What inductor leaves to libraries is called from the same lines:
products of float32 matrices by `matmul.h`, tiny ones and triangular solves as plain loops.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .matmul import PARALLEL
from .threads import thread_count
from .trace import Generated, Kernel

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

PREFIX = "#include <torch/csrc/inductor/cpp_prefix.h>"


class NotReplayable(Exception):
    """The graph calls something that is neither a kernel nor a small product."""


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


class Calls:
    """Kernel calls in order, as lines of C over a table of pointers."""

    def __init__(self) -> None:
        self.pointers: list[tuple[int, int]] = []  # (address of the storage, offset in bytes)
        self.kernels: dict[str, str] = {}  # name -> source
        self.lines: list[str] = []
        self.arena = _Arena()

    def point(self, t: Tensor) -> int:
        """The tensor's place in the table."""
        start = t.untyped_storage().data_ptr()
        self.pointers.append((start, t.data_ptr() - start))
        return len(self.pointers) - 1

    def entries(self, t: Tensor) -> str:
        """C for the entries of a tensor of two or three axes."""
        batch, row, column = (0, *t.stride()) if t.dim() == 2 else t.stride()
        kind = _type(t)
        return f"Entries<{kind}>{{({kind}*)p[{self.point(t)}], {batch}, {row}, {column}}}"

    def kernel(self, name: str, kernel: Any) -> Callable:
        """The same kernel, written down when it is called."""
        if not isinstance(kernel, Kernel):
            raise NotReplayable("a kernel without its source")
        self.kernels[name] = kernel.source

        def call(*args: Any) -> None:
            if not all(torch.is_tensor(a) for a in args):
                raise NotReplayable("a kernel takes sizes")
            kinds = zip(kernel.argtypes, args)
            values = ", ".join(f"({kind})p[{self.point(a)}]" for kind, a in kinds)
            self.lines.append(f"{name}({values});")

        return call

    def product(self, a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """out = a @ b + bias, of two or three axes."""
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
        many = thread_count() if m * n * k >= PARALLEL else 1
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
            f"shared<{ROWS}, {ACROSS}>({many}, {m}, {n}, {k}, "
            f"{x}, {a.stride(-2)}, {a.stride(-1)}, {y}, {order}, {z}, {out.stride(-2)}, "
            f"{add}, {lead});{after}"
        )

    def solve(
        self, a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
    ) -> Tensor:
        """a⁻¹ b with `a` triangular, by substitution."""
        like = torch.linalg.solve_triangular(a, b, upper=upper, left=left)  # its layout
        x = self.arena.empty(like.shape, like.stride(), like.dtype)
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
        return x

    def cumsum(self, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        """Running sums along one axis."""
        out = self.arena.empty(x.shape, x.stride(), x.dtype)
        if not x.is_contiguous() or dtype not in (None, x.dtype):
            raise NotReplayable("running sums of scattered entries, or in another type")
        dim %= x.dim()
        outer, n, inner = math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])
        from_, to = (f"({_type(x)}*)p[{self.point(t)}]" for t in (x, out))
        self.lines.append(f"running_sums({outer}, {n}, {inner}, {from_}, {to});")
        return out

    def source(self) -> str:
        """All kernels and the loop, with a symbol `replay`, in one file for the compiler."""
        body = "\n        ".join(self.lines)
        kernels = "\n".join(_renamed(source, name) for name, source in self.kernels.items())
        return f"""
{PREFIX if kernels else ""}
#define W {VECTOR}
{Path(__file__).with_name("matmul.h").read_text()}
{kernels}
extern "C" void replay(void** p, int64_t updates, int64_t others, int64_t* places,
                       char** starts, int64_t* steps, char* loss, char* losses, int64_t size) {{
    for (int64_t u = 0; u < updates; u++) {{
        for (int64_t i = 0; i < others; i++) p[places[i]] = starts[i] + u * steps[i];
        {body}
        std::memcpy(losses + u * size, loss, size);
    }}
}}
"""


def _renamed(source: str, name: str) -> str:
    """A kernel of inductor's under its own name, private to the file, without its include."""
    source, found = re.subn(r'extern "C"\s+void\s+kernel\(', f"static void {name}(", source)
    source, more = re.subn(r"#include <torch/csrc/inductor/cpp_prefix.h>\s*\n", "", source)
    if found != 1 or more != 1 or "#include" in source:
        raise NotReplayable("a kernel of another form")
    return source


def _type(t: Tensor) -> str:
    if t.dtype not in (torch.float32, torch.float64):
        raise NotReplayable(f"a product of {t.dtype}")
    return "float" if t.dtype == torch.float32 else "double"


def calls_of(code: Generated) -> tuple[Calls, Tensor]:
    """Run inductor's code once, with every kernel written down instead; and its result.

    Raises:
        NotReplayable: it calls something that is not known here.
    """
    function, calls = code.function, Calls()
    if function is None:
        raise NotReplayable("more than one graph, or no generated function")
    space = dict(function.__globals__)
    kernels = [n for n in function.__code__.co_names if n.startswith("cpp_fused")]
    strange = set(function.__code__.co_names) - HARMLESS - set(kernels)
    if strange:
        raise NotReplayable(f"it calls {', '.join(sorted(strange))}")
    for name in kernels:
        space[name] = calls.kernel(name, space[name])
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
        out = types.FunctionType(function.__code__, space)(code.runner, list(code.arguments))
    if len(out) != 1:
        raise NotReplayable("more than one output")
    return calls, out[0]
