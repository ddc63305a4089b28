"""A Python function of tensors as one ATen graph, and that graph as compiled code."""

from __future__ import annotations

import functools
import logging
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

_HELP = {
    "_local_scalar_dense": "a tensor's value is read on the host (.item(), bool(), float(), an if "
    "on a tensor): keep it a tensor (torch.where, torch.clamp)",
    "nonzero": "the shape of a result depends on values (boolean-mask indexing, nonzero): use "
    "torch.where",
    "masked_select": "the shape of a result depends on values: use torch.where",
    "unique": "the shape of a result depends on values",
}


class TraceFailure(Exception):
    """Why a step cannot be compiled: `str()` is one line, `long()` tells where."""

    def __init__(
        self, why: str, where: str = "", site: str = "", cause: BaseException | None = None
    ):
        self.why, self.where, self.site, self.cause = why, where, site, cause
        super().__init__(
            why + (f", near site {site!r}" if site else "") + (f", at {where}" if where else "")
        )

    def long(self) -> str:
        """The reason, the line of the pair that caused it, and the underlying error."""
        lines = [f"Reason: {self.why}."]
        if self.site:
            lines.append(f"Site: {self.site!r} was the last one reached.")
        if self.where:
            lines.append(f"Line: {self.where}.")
        if self.cause is not None:
            lines.append(f"Error: {type(self.cause).__name__}: {str(self.cause).strip()[:2000]}")
        return "\n".join(lines)


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
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def compiled(
    graph: GraphModule, inputs: Sequence[Tensor], own: int = 0
) -> Callable[[list[Tensor]], Tensor]:
    """Machine code for a graph: a function of the list of inputs.

    Args:
        graph: from `traced`.
        inputs: example inputs.
        own: how many of them, from the first, will be the same tensors at every call.

    Random numbers come from torch's own generators in the graph's order, so that the same seed
    gives the same noise as the eager function. On CUDA the launches are captured once and replayed.

    Raises:
        TraceFailure: there is no working compiler, or inductor cannot lower an operation.
    """
    try:
        import torch._inductor.config as config
        from torch._inductor.compile_fx import compile_fx

        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        with torch.no_grad(), config.patch(fallback_random=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = compile_fx(graph, list(inputs))
            trial = [t.clone() for t in inputs]
            devices = list({t.device for t in trial if t.is_cuda})
            with torch.random.fork_rng(devices=devices):
                run(*trial)  # compile_fx is lazy: errors come with the first call
    except Exception as error:
        raise _failure(error, "") from error
    if any(t.is_cuda for t in inputs):
        return _captured(run, inputs, own)
    return functools.partial(_call, run)


def _call(run: Callable, inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        out = run(*inputs)
    return out[0] if isinstance(out, (list, tuple)) else out


def _captured(
    run: Callable, inputs: Sequence[Tensor], own: int
) -> Callable[[list[Tensor]], Tensor]:
    """Capture the launches of one call in a CUDA graph and replay them.

    The first `own` inputs are the same tensors at every call (parameters and state: used in
    place); the others are copied into fixed memory first.
    """
    fixed = [*inputs[:own], *(t.clone() for t in inputs[own:])]
    graph: torch.cuda.CUDAGraph | None = None
    out = torch.empty(0)

    def capture() -> torch.cuda.CUDAGraph:
        nonlocal out
        before = [t.clone() for t in fixed[:own]]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a first call allocates and tunes; it must not be captured
            _call(run, fixed)
        torch.cuda.current_stream().wait_stream(side)
        for t, b in zip(fixed, before):
            t.copy_(b)
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording):
            out = _call(run, fixed)
        return recording

    def call(now: list[Tensor]) -> Tensor:
        nonlocal graph
        if any(a is not b for a, b in zip(now[:own], fixed)):
            return _call(run, now)  # other variables, as in the proof
        for t, f in zip(now[own:], fixed[own:]):
            f.copy_(t)
        if graph is None:
            graph = capture()
        graph.replay()
        return out.clone()

    return call


def _failure(error: BaseException, site: str) -> TraceFailure:
    text = f"{type(error).__name__}: {error}"
    name = type(error).__name__
    if name in ("InvalidCxxCompiler", "CppCompileError") or "compiler" in text.lower()[:200]:
        return TraceFailure("no working C++ compiler (install g++)", cause=error)
    why = next((v for k, v in _HELP.items() if k in text), None)
    if why is None:
        why = f"{name}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"
    return TraceFailure(why, _users_line(error), site, error)


def _users_line(error: BaseException) -> str:
    """The innermost line of the traceback outside torch and outside this layer."""
    inner = ("/torch/", "/inference/", "/pyro/poutine/")
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not any(part in f.filename for part in inner)
    ]
    if not frames:
        return ""
    f = frames[-1]
    short = "/".join(f.filename.split("/")[-2:])
    return f"{short}:{f.lineno} ({f.line})" if f.line else f"{short}:{f.lineno}"
