"""A step as one ATen graph: written down, compiled, and its kernels repeated without Python.

`tape` writes down the operations of a function of tensors, and `trace` makes machine code of them.
`calls` turns such code into a list of kernel calls, which `replay` makes in a loop of C on a CPU,
and `store` keeps for the next fit; `capture` replays launches on CUDA, and makes them from Python
where neither can be. `matmul` has the matrix products for `replay`, and oneDNN's where they are
faster.
"""

from .budget import Budget, OutOfBudget
from .calls import NotReplayable
from .capture import Captured, Launched
from .noise import Noise
from .replay import Program, Replay, program_of
from .store import forget, name_of, recall, remember
from .tape import Tape, TraceFailure, recorded
from .threads import threads_meant
from .trace import compiled, graph_of, traced

__all__ = [
    "Budget",
    "Captured",
    "Launched",
    "Noise",
    "NotReplayable",
    "OutOfBudget",
    "Program",
    "Replay",
    "Tape",
    "TraceFailure",
    "compiled",
    "forget",
    "graph_of",
    "name_of",
    "program_of",
    "recall",
    "recorded",
    "remember",
    "threads_meant",
    "traced",
]
