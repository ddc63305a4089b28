"""How a Pyro pair is fitted and judged: any Pyro model and guide, the zoo's or yours."""

from . import elbo, optim
from .check import check
from .compare import compare
from .evaluate import evaluate
from .fit import fit
from .guides import fit_guides, make_guide
from .many import fit_many
from .weights import log_weights

__all__ = [
    "check",
    "compare",
    "elbo",
    "evaluate",
    "fit",
    "fit_guides",
    "fit_many",
    "log_weights",
    "make_guide",
    "optim",
]
