"""Log weights of a pair: log p(x, z) - log q(z | x), per particle and per datum.

This folder is the only place that handles Pyro traces. Everything else (bounds, gradients,
evaluation, ArviZ) is arithmetic on what `log_weights` returns.
"""

from .run import PARTICLES, log_q_at, log_weights, no_validation, plate_nesting, stack
from .simulation import dream, simulate
from .sites import at
from .terms import LogWeights, Plate, Term

__all__ = [
    "PARTICLES",
    "LogWeights",
    "Plate",
    "Term",
    "at",
    "dream",
    "log_q_at",
    "log_weights",
    "no_validation",
    "plate_nesting",
    "simulate",
    "stack",
]
