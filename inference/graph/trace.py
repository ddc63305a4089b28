"""A Python function of tensors as one ATen graph, and that graph as compiled code."""

from __future__ import annotations

import contextlib
import functools
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from ..randomness import forked
from .matmul import lowered, use_onednn

aten = torch.ops.aten

OPTIONS = {
    "fallback_random": True,  # torch's own generators
    "cpp.min_chunk_size": 4096,  # entries of a loop for which a second thread is woken
    "cpp.enable_floating_point_contract_flag": "fast",  # a multiply-add is one instruction
}

_READ = (
    "a tensor's value is read on the host (.item(), bool(), float(), an if on a tensor): keep it a "
    "tensor (torch.where, torch.clamp)"
)
_SHAPE = "the shape of a result depends on values (boolean-mask indexing, nonzero): use torch.where"
_HELP = {  # part of an error's text -> what it means
    "_local_scalar_dense": _READ, "DataDependent": _READ,
    "nonzero": _SHAPE, "masked_select": _SHAPE, "unique": _SHAPE,
}  # fmt: skip


class TraceFailure(Exception):
    """A step cannot be compiled: the reason, the last site reached and the line of the pair."""

    def __init__(self, why: str, where: str = "", site: str = ""):
        near = f", near site {site!r}" if site else ""
        super().__init__(why + near + (f", at {where}" if where else ""))


class _LastSite(Messenger):
    """Remembers the last sample or param site that was reached."""

    name = ""

    def _process_message(self, msg: Any) -> None:
        if msg["type"] in ("sample", "param") and msg["name"]:
            self.name = msg["name"]


def traced(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> GraphModule:
    """The ATen graph of `function(*inputs)`, which may change its inputs in place.

    Raises:
        TraceFailure: an operation needs values that are not known while tracing.
    """
    last = _LastSite()
    try:
        with last, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    except ValueError:
        raise  # a mistake in the pair, not in the tracing
    except Exception as error:
        raise _failure(error, last.name) from error
    _inline_numbers(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _inline_numbers(graph: GraphModule) -> None:
    """Write `torch.tensor(0.5)` as a number: as a stored tensor it would be one more input."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.lift_fresh_copy.default:
            continue
        source = node.args[0]
        value = getattr(graph, source.target, None) if source.op == "get_attr" else None
        if value is None or value.dim() or isinstance(value, FakeTensor):
            continue
        with graph.graph.inserting_before(node):
            number = graph.graph.call_function(
                aten.full.default,
                ([], value.item()),
                {"dtype": value.dtype, "device": value.device},
            )
            number.meta = node.meta
        node.replace_all_uses_with(number)
        graph.graph.erase_node(node)


NORMAL = (
    aten.normal_.default, aten.randn.default, aten.randn.generator, aten.randn_like.default,
)  # fmt: skip
UNIFORM = (
    aten.uniform_.default, aten.rand.default, aten.rand.generator, aten.rand_like.default,
)  # fmt: skip
IN_PLACE = (aten.normal_.default, aten.uniform_.default)


class Noise:
    """Random numbers of a graph as an input: standard normals and uniforms, one after another.

    Attributes:
        parts: (normal or else uniform, how many).
        example: (total,), zeros.
    """

    def __init__(self, parts: list[tuple[bool, int]], example: Tensor):
        self.parts, self.example = parts, example
        self._made: dict[int, tuple[Tensor, list[tuple[bool, Tensor]]]] = {}

    def draw(self, updates: int = 1) -> Tensor:
        """Draw anew: (total,), as the graph itself would, or (updates, total) for several."""
        if updates not in self._made:
            values = self.example.repeat(updates, 1) if updates > 1 else self.example
            columns = values.split([n for _, n in self.parts], -1)
            views = [(normal, v) for (normal, _), v in zip(self.parts, columns)]
            plain = updates > 1 and all(normal for normal, _ in views)
            self._made[updates] = values, [(True, values)] if plain else views
        values, views = self._made[updates]
        for normal, view in views:
            view.normal_() if normal else view.uniform_()
        return values


def hoisted(graph: GraphModule) -> tuple[GraphModule, Noise] | None:
    """The same graph with its noise as a last input, (total,), and what to draw for it.

    None where the graph draws nothing, or something else than standard normals and uniforms of
    one type: then it must draw itself.
    """
    noisy = [n for n in graph.graph.nodes if n.op == "call_function" and _random(n.target)]
    values = [n.meta["val"] for n in noisy]
    if (
        len({(v.dtype, v.device) for v in values}) != 1
        or not all(_standard(n) for n in noisy)
        or not all(v.is_contiguous() for v in values)  # else filled in another order
    ):
        return None
    last = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
    with graph.graph.inserting_after(last):
        place = graph.graph.placeholder("noise")
    start = 0
    for node, value in zip(noisy, values):
        with graph.graph.inserting_before(node):
            part = graph.graph.call_function(
                aten.slice.Tensor, (place, 0, start, start + value.numel())
            )
            shaped = graph.graph.call_function(aten.reshape.default, (part, list(value.shape)))
        node.replace_all_uses_with(shaped)
        graph.graph.erase_node(node)
        start += value.numel()
    graph.graph.eliminate_dead_code()
    graph.recompile()
    parts = [(n.target in NORMAL, v.numel()) for n, v in zip(noisy, values)]
    with torch.utils._python_dispatch._disable_current_modes():
        example = torch.zeros(start, dtype=values[0].dtype, device=values[0].device)
    return graph, Noise(parts, example)


def _standard(node: Any) -> bool:
    """True for a node that draws standard normals or uniforms from torch's own generator."""
    if node.target not in NORMAL + UNIFORM or node.kwargs.get("generator"):
        return False
    return node.target not in IN_PLACE or tuple(node.args[1:]) in ((), (0, 1))


def _random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


class Recorded(TorchDispatchMode):
    """Record every standard normal and uniform drawn inside, in order, as one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; keep what a random one returns."""
        out = func(*args, **(kwargs or {}))
        if func in NORMAL + UNIFORM:
            self.draws.append(out.detach().clone().reshape(-1))
        return out

    @property
    def noise(self) -> Tensor:
        """All draws, one after another."""
        return torch.cat(self.draws)


def compiled(
    graph: GraphModule, inputs: Sequence[Tensor], apart: bool = False
) -> Callable[[list[Tensor]], Tensor]:
    """Machine code for a graph from `traced`: a function of the list of inputs.

    The same graph again, in this process or another, comes from inductor's cache.

    Random numbers come from torch's own generators in the graph's order, so that the same seed
    gives the same noise as the eager function.

    Args:
        graph, inputs: what to compile, and example inputs.
        apart: keep writes to an input out of the kernels that read it. Inductor of torch 2.11 may
            else put the write before another of the kernel's reads.

    Raises:
        TraceFailure: there is no working compiler, or inductor cannot lower an operation.
    """
    try:
        import torch._inductor.config as config
        from torch._inductor.compile_fx import compile_fx

        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        ours = lowered() if use_onednn(graph) else contextlib.nullcontext()
        writes = _writes_apart() if apart else contextlib.nullcontext()
        # inductor looks into its cache only where it finds an environment of shapes
        fake = FakeTensorMode(shape_env=ShapeEnv())
        examples = [fake.from_tensor(t, static_shapes=True) for t in inputs]
        with (
            torch.no_grad(), config.patch(OPTIONS), ours, writes, warnings.catch_warnings(),
            tracing(TracingContext(fake)),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            run: Any = compile_fx(graph, examples)
            trial = [t.clone() for t in inputs]
            with forked():
                run(*trial)  # compile_fx is lazy: errors come with the first call
    except Exception as error:
        raise _failure(error, "") from error
    return functools.partial(_call, run)


@contextlib.contextmanager
def _writes_apart() -> Iterator[None]:
    """Inductor fuses no write with an earlier read of the same memory, and caches nothing."""
    import torch._inductor.config as config
    from torch._inductor.scheduler import Scheduler

    never = patch.object(Scheduler, "fusable_weak_dep", lambda *_: False)
    with never, config.patch(fx_graph_cache=False):
        yield


def _call(run: Callable, inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        out = run(*inputs)
    return out[0] if isinstance(out, (list, tuple)) else out


def _failure(error: BaseException, site: str) -> TraceFailure:
    name = type(error).__name__
    text = f"{name}: {error}"
    if name in ("InvalidCxxCompiler", "CppCompileError") or "compiler" in text.lower()[:200]:
        return TraceFailure("no working C++ compiler (install g++)")
    first = f"{name}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    why = next((v for k, v in _HELP.items() if k in text), first)
    return TraceFailure(why, _users_line(error), site)


def _users_line(error: BaseException) -> str:
    """The innermost line of the traceback outside torch and outside this layer."""
    ours = (str(Path(__file__).parents[1]), "<", str(Path(torch.__file__).parent))
    for f in reversed(traceback.extract_tb(error.__traceback__)):
        if not f.filename.startswith(ours) and "/pyro/" not in f.filename:
            place = f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno}"
            return f"{place} ({f.line})" if f.line else place
    return ""
