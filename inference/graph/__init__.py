"""A step as one ATen graph: traced, compiled, and its kernels repeated without Python.

`trace` makes a graph of a function of tensors, and machine code of a graph. `replay` repeats the
kernel calls of such code in a loop of C on a CPU; `capture` replays its launches on CUDA, and makes
them from Python where neither can be. `matmul` has the matrix products for `replay`, and oneDNN's
where they are faster.
"""

from .budget import Budget, OutOfBudget
from .capture import Captured, Launched
from .replay import NotReplayable, Replay
from .trace import Noise, Recorded, TraceFailure, compiled, hoisted, traced

__all__ = [
    "Budget",
    "Captured",
    "Launched",
    "Noise",
    "NotReplayable",
    "OutOfBudget",
    "Recorded",
    "Replay",
    "TraceFailure",
    "compiled",
    "hoisted",
    "traced",
]
