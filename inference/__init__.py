"""Fit and judge a Pyro pair: any Pyro model and guide, the zoo's or yours."""

from . import elbo, optim
from .draws.datatree import to_datatree, write_datatree
from .guides import fit_guides, make_guide
from .judging.calibration import calibrate
from .judging.comparison import compare
from .judging.diagnosis import diagnose
from .judging.evaluation import evaluate
from .pairs.inspection import check
from .training.fitting import fit
from .training.many import fit_many
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
