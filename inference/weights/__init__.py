"""Log weights of a pair: log p(x, z) - log q(z | x), per particle and per datum.

This folder is the only place that handles Pyro traces. Everything else (bounds, gradients,
evaluation, ArviZ) is arithmetic on what `log_weights` returns.
"""

from .enumeration import branches, without_averages
from .run import (
    discrete_posterior,
    dream,
    log_q_at,
    log_weights,
    plate_nesting,
    simulate,
    way_of,
)
from .sites import At
from .terms import LogWeights, Plate, Term, by_plate
from .ways import WAYS, no_validation

__all__ = [
    "WAYS",
    "At",
    "LogWeights",
    "Plate",
    "Term",
    "branches",
    "by_plate",
    "discrete_posterior",
    "dream",
    "log_q_at",
    "log_weights",
    "no_validation",
    "plate_nesting",
    "simulate",
    "way_of",
    "without_averages",
]
