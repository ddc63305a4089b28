"""How a Pyro pair is fitted and judged: any Pyro model and guide, the zoo's or yours."""

from . import elbo, optim
from .arviz import to_datatree, write_datatree
from .calibrate import calibrate
from .check import check
from .compare import compare
from .diagnose import diagnose
from .evaluate import evaluate
from .fit import fit
from .guides import fit_guides, make_guide
from .many import fit_many
from .weights import log_weights

__all__ = [
    "calibrate",
    "check",
    "compare",
    "diagnose",
    "elbo",
    "evaluate",
    "fit",
    "fit_guides",
    "fit_many",
    "log_weights",
    "make_guide",
    "optim",
    "to_datatree",
    "write_datatree",
]
