"""A tape as one ATen graph, and that graph as compiled code."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ..randomness import forked
from .budget import lowering
from .matmul import lowered, use_onednn
from .tape import SHAPE, Tape, TraceFailure, layout, recorded, users_line

aten = torch.ops.aten

OPTIONS = {
    "fallback_random": True,  # torch's own generators
    "cpp.min_chunk_size": 4096,  # entries of a loop for which a second thread is woken
    "cpp.enable_floating_point_contract_flag": "fast",  # a multiply-add is one instruction
    "cpp.vec_isa_ok": True,  # two trial compilations, 5 s, ask whether g++ knows the processor
}
_HELP = {"DataDependent": SHAPE, "nonzero": SHAPE}  # part of an error's text -> what it means


class Kernel:
    """A kernel of inductor's as source: compiled by itself only where it is called."""

    def __init__(self, argtypes: list[str], source: str):
        self.argtypes, self.source = argtypes, source

    @functools.cached_property
    def _function(self) -> Callable:
        import torch._inductor.config as config
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        with config.patch(OPTIONS):
            return CppPythonBindingsCodeCache.load_pybinding(self.argtypes, self.source)

    def __call__(self, *args: Any) -> None:
        """Run it."""
        self._function(*args)


def graph_of(tape: Tape) -> Any:
    """Return the tape as a `torch.fx.GraphModule`, which returns a tuple of one.

    It is a function of the tape's inputs, its constants and, where it is an input, its noise.
    """
    from torch.fx import Graph, GraphModule

    graph, noise = Graph(), tape.noise()
    nodes = {i: graph.placeholder(f"input_{i}") for i in range(len(tape.inputs))}
    nodes |= {-1 - i: graph.placeholder(f"constant_{i}") for i in range(len(tape.constants))}
    place = None if noise is None else graph.placeholder("noise")

    def read(a: Any) -> Any:
        if isinstance(a, list):
            return [read(b) for b in a]
        if not isinstance(a, dict):
            return a
        ((kind, value),) = a.items()
        if kind == "t":
            return nodes[value]
        if kind == "torch":
            return getattr(torch, value)
        return torch.device(value) if kind == "device" else complex(*value)

    start, parts = 0, iter([] if noise is None else noise.parts)
    shapes = iter([list(drawn[1][0]) for drawn in tape.noisy if drawn])
    for name, args, kwargs, results in tape.operations:
        operation: Any = functools.reduce(getattr, name.split("."), torch.ops)
        if noise is not None and torch.Tag.nondeterministic_seeded in operation.tags:
            end = start + next(parts)[1]
            part = graph.call_function(aten.slice.Tensor, (place, 0, start, end))
            nodes[results[0]] = graph.call_function(aten.reshape.default, (part, next(shapes)))
            start = end
            continue
        named = {k: read(v) for k, v in kwargs.items()}
        node = graph.call_function(operation, tuple(read(args)), named)
        if [str(r.type) for r in operation._schema.returns] == ["Tensor"]:
            nodes[results[0]] = node
            continue
        for i, number in enumerate(results):
            if number is not None:
                nodes[number] = graph.call_function(operator.getitem, (node, i))
    graph.output((nodes[tape.result],))
    graph.eliminate_dead_code()
    return GraphModule(torch.nn.Module(), graph)


def traced(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[..., Tensor]:
    """Return the operations that a function of tensors makes on these, as a function without it."""
    tape = recorded(function, [t.clone() for t in inputs], outside=False)
    graph, constants = graph_of(tape), tape.constants
    return lambda *others: graph(*others, *constants)[0]


def _valued(graph: Any, inputs: list[Tensor]) -> Any:
    """The same graph, its nodes with fake tensors for values."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    fake = FakeTensorMode(shape_env=ShapeEnv())
    with torch.no_grad():
        like = [fake.from_tensor(t, static_shapes=True) for t in inputs]
        FakeTensorProp(graph, mode=fake).propagate_dont_convert_inputs(*like)
    return graph


def examples(tape: Tape) -> list[Tensor]:
    """Tensors like the inputs, the constants and the noise, each with memory of its own."""
    like = [
        torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device=device)
        for shape, strides, dtype, device in [*tape.inputs, *map(layout, tape.constants)]
    ]
    noise = tape.noise()
    return like if noise is None else [*like, noise.example]


class Generated:
    """Inductor's code for a tape: Python that calls kernels and libraries.

    Attributes:
        function: that Python, a function of (runner, tensors); None where there is more than one.
        inputs: examples of them.
        runner, arguments: what it is called with for these.
        not_replayed: why its calls are made from Python.
    """

    not_replayed: str | None = None

    def __init__(self, run: Callable, tape: Tape):
        self._run, self.tape = run, tape
        self.inputs = examples(tape)
        self.function, self.runner, self.arguments = _found(run, self.inputs)

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        """The function of inputs, constants and noise, called from Python."""
        with torch.no_grad():
            out = self._run(*inputs)
        return out[0] if isinstance(out, (list, tuple)) else out

    def tried(self, inputs: list[Tensor]) -> Generated:
        """Compile the kernels, and call them once on copies: errors come with the first call.

        Raises:
            TraceFailure: the compiler or an operation fails.
        """
        try:
            with forked():
                self([t.clone() for t in inputs])
        except Exception as error:
            raise _failure(error) from error
        return self


def compiled(tape: Tape, apart: bool = False) -> Generated:
    """Machine code for a tape: a function of inputs, constants and noise.

    The same graph again, in this process or another, is lowered by inductor's cache. Kernels for a
    CPU are compiled when the function is first called; a replay has its own.

    Args:
        tape: what to compile.
        apart: keep writes to an input out of the kernels that read it. Inductor of torch 2.11 may
            else put the write before another of the kernel's reads.

    Raises:
        TraceFailure: there is no working compiler, or inductor cannot lower an operation.
        OutOfBudget: it would cost more than an open budget.
    """
    lowering(len(tape.operations))
    try:
        import torch._inductor.config as config
        from torch._guards import TracingContext, tracing
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.compile_fx import compile_fx
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _valued(graph_of(tape), examples(tape))
            ours = lowered() if use_onednn(graph) else contextlib.nullcontext()
            writes = _writes_apart() if apart else contextlib.nullcontext()
            # inductor looks into its cache only where it finds an environment of shapes
            fake = FakeTensorMode(shape_env=ShapeEnv())
            like = [fake.from_tensor(t, static_shapes=True) for t in examples(tape)]
            later = patch.object(AsyncCompile, "cpp_pybinding", lambda _, *kernel: Kernel(*kernel))
            with (
                torch.no_grad(), config.patch(OPTIONS), ours, writes, later,
                tracing(TracingContext(fake)),
            ):  # fmt: skip
                run: Any = compile_fx(graph, like)
                return Generated(run, tape)
    except Exception as error:
        raise _failure(error) from error


class _Call(Exception):
    """Inductor's code is about to be called."""


def _found(run: Callable, inputs: list[Tensor]) -> tuple:
    """Inductor's function and what it is called with; (None, None, []) where it is not one."""
    from torch._inductor.output_code import CompiledFxGraph

    calls: list[tuple[Any, list]] = []

    def stop(graph: Any, arguments: Any) -> Any:
        calls.append((graph.current_callable, list(arguments)))
        raise _Call

    calling = patch.object(CompiledFxGraph, "__call__", stop)
    with torch.no_grad(), calling, contextlib.suppress(_Call):
        run(*inputs)
    method, arguments = calls[0] if len(calls) == 1 else (None, [])
    return getattr(method, "__func__", None), getattr(method, "__self__", None), arguments


@contextlib.contextmanager
def _writes_apart() -> Iterator[None]:
    """Inductor fuses no write with an earlier read of the same memory, and caches nothing."""
    import torch._inductor.config as config
    from torch._inductor.scheduler import Scheduler

    never = patch.object(Scheduler, "fusable_weak_dep", lambda *_: False)
    with never, config.patch(fx_graph_cache=False):
        yield


def _failure(error: BaseException) -> TraceFailure:
    name = type(error).__name__
    text = f"{name}: {error}"
    if name in ("InvalidCxxCompiler", "CppCompileError") or "compiler" in text.lower()[:200]:
        return TraceFailure("no working C++ compiler (install g++)")
    first = f"{name}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    return TraceFailure(next((v for k, v in _HELP.items() if k in text), first), users_line(error))
