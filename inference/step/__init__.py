"""One update of the parameters: loss, gradient, optimiser. Eager, or traced once and compiled.

Both steps are the same pure function. The eager one calls it; the compiled one traces it at the
ATen level (`make_fx` on fake tensors), hands the graph to inductor and never runs the pair's
Python again. Before first use it is compared with the eager one on the same noise.

Randomness. A compiled step takes its noise from torch's own generators, in the order of the eager
step: one seed, one run. The exception is a step of a small model with several latent sites, or
several updates in one call: their normals are drawn at once, and numbers differ from the eager
run's, though not in law.
"""

from .steps import RETRACES, UNROLL, CompiledStep, EagerStep, ForeignStep, explain
from .update import DrawnAnew, Update, Variables, at_step, matmul_precision

__all__ = [
    "RETRACES",
    "UNROLL",
    "CompiledStep",
    "DrawnAnew",
    "EagerStep",
    "ForeignStep",
    "Update",
    "Variables",
    "at_step",
    "explain",
    "matmul_precision",
]
