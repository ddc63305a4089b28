"""Matrix products of a graph by the faster of the two libraries that torch brings on a CPU.

`torch.mm` in float32 calls MKL, which leaves AVX-512 unused on processors not made by Intel;
oneDNN, called for fused layers, uses it. On a Zen 5 core that is 110 against 220 GFLOP/s.
"""

from __future__ import annotations

import contextlib
import functools
import math
import timeit
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule

from .threads import thread_count

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
IDENTITY = ("leaky_relu", [1.0], "")  # said so, inductor leaves the call alone
LARGE = 2**21  # multiply-adds of a product from which oneDNN's longer call pays
PARALLEL = 2**21  # multiply-adds of a product for which a second thread is woken
CLEARLY = 1.25  # how many times faster it must be: the choice must not hang on noise


def use_onednn(graph: GraphModule) -> bool:
    """Turn the graph's large float32 products into calls of oneDNN where that is faster here.

    Returns whether any was changed; such a graph must be compiled inside `lowered`.
    """
    changed = False
    for node in list(graph.graph.nodes):
        product = _product(node)
        if product is None or not faster_with_onednn(thread_count()):
            continue
        a, b, bias = product
        with graph.graph.inserting_before(node):
            rows = graph.graph.call_function(torch.ops.aten.t.default, (b,))
            rows.meta["val"] = b.meta["val"].t()
            new = graph.graph.call_function(
                torch.ops.mkldnn._linear_pointwise.default, (a, rows, bias, *IDENTITY)
            )
        new.meta = node.meta
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
        changed = True
    if changed:
        graph.recompile()
    return changed


def _product(node: Any) -> tuple | None:
    """(a, b, bias) of a large a @ b + bias on the CPU in float32, or None."""
    if node.target is torch.ops.aten.mm.default and not node.kwargs:
        (a, b), bias = node.args, None
    elif node.target is torch.ops.aten.addmm.default and not node.kwargs:
        bias, a, b = node.args
        if bias.meta["val"].dim() != 1 or len(bias.meta["val"]) != b.meta["val"].shape[1]:
            return None
    else:
        return None
    x = a.meta["val"]
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    return (a, b, bias) if multiply_adds(node) >= LARGE else None


def multiply_adds(node: Any) -> int:
    """Count the multiply-adds of a matrix product; 0 for any other node."""
    if node.target not in PRODUCTS:
        return 0
    a, b = node.args[-2:]
    return math.prod(a.meta["val"].shape) * b.meta["val"].shape[-1]


@contextlib.contextmanager
def lowered() -> Iterator[None]:
    """Inductor calls oneDNN on tensors as they lie, instead of making each contiguous first."""
    from torch._inductor.lowering import fallback_handler, lowerings
    from torch._inductor.mkldnn_lowerings import register_onednn_fusion_ops

    register_onednn_fusion_ops()
    op = torch.ops.mkldnn._linear_pointwise.default
    before = lowerings[op]
    lowerings[op] = fallback_handler(op, add_to_fallback_set=False)
    try:
        yield
    finally:
        lowerings[op] = before


@functools.cache
def faster_with_onednn(threads: int) -> bool:
    """True where oneDNN multiplies float32 matrices clearly faster than `torch.mm` (measured)."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if not torch.backends.mkl.is_available():
        return False  # torch.mm is another library then
    a, b = torch.ones(128, 512), torch.ones(512, 256)
    ours = functools.partial(torch.ops.mkldnn._linear_pointwise, a, b.t(), None, *IDENTITY)
    best = [math.inf, math.inf]
    with torch.no_grad():
        for _ in range(20):
            for i, f in enumerate((functools.partial(torch.mm, a, b), ours)):
                best[i] = min(best[i], timeit.timeit(f, number=1))
    return best[0] > CLEARLY * best[1]
